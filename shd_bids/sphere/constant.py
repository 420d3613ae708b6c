"""Arrays that nobody may change, for tables that a cache hands out to every caller."""

import numpy as np


def constant(values: np.ndarray) -> np.ndarray:
    """Make an array read-only in place and return it."""
    values.flags.writeable = False
    return values
