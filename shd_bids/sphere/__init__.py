"""The sphere: HEALPix sampling, its graph Laplacian and symmetry, and even real spherical harmonics."""

import numpy as np


def constant(values: np.ndarray) -> np.ndarray:
    """Make an array read-only in place and return it: a table that a cache hands out to every caller."""
    values.flags.writeable = False
    return values
