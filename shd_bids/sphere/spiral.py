"""Axes spread evenly over the hemisphere, in any number."""

from functools import lru_cache

import numpy as np

from shd_bids.sphere import constant

_GOLDEN_ANGLE = np.pi * (3 - np.sqrt(5))


@lru_cache
def spiral(n: int) -> np.ndarray:
    r"""Return n axes along a Fibonacci spiral from the pole to the equator, shape (n, 3), unit length.

    .. math:: z_i = 1 - \frac{i + 1/2}{n}, \qquad \phi_i = i\,\pi(3 - \sqrt5)

    References
    ----------
    Swinbank and Purser (2006), Quarterly Journal of the Royal Meteorological Society 132, equation 1.
    """
    index = np.arange(n)
    z = 1 - (index + 0.5) / n
    radius, azimuth = np.sqrt(1 - z**2), index * _GOLDEN_ANGLE
    return constant(np.stack([radius * np.cos(azimuth), radius * np.sin(azimuth), z], axis=1))
