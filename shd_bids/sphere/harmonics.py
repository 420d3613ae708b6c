"""Even real spherical harmonics in the basis of MRtrix3.

One convention in the whole package: degrees 0, 2, ..., l_max, orders -l..l within a degree, orthonormal, with the
Condon-Shortley phase; sqrt(2) Im Y_l^|m| for m < 0, Y_l^0, sqrt(2) Re Y_l^m for m > 0. It is the basis that MRtrix3
reads and writes, and equals ``tournier07`` with ``legacy=False`` in dipy.
"""

import math
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import eval_legendre

from shd_bids.sphere import constant

SQRT_4PI = math.sqrt(4 * math.pi)
"""Integral over the sphere of the harmonic of degree 0: a coefficient of degree 0 times this is the integral of its function."""

Y00 = math.sqrt(1 / (4 * math.pi))
"""Value of the harmonic of degree 0."""

_QUADRATURE = 64  # Gauss-Legendre nodes on [-1, 1]


def n_coefficients(l_max: int) -> int:
    """Return the number of even coefficients up to degree ``l_max``: (l_max + 1)(l_max + 2) / 2."""
    if l_max < 0 or l_max % 2:
        raise ValueError(f"l_max is {l_max}, expected an even degree of at least 0; give 0, 2, 4, ...")
    return (l_max + 1) * (l_max + 2) // 2


def l_max_of(n: int) -> int:
    """Return the degree whose even basis has ``n`` coefficients."""
    l_max = round((np.sqrt(8 * max(n, 0) + 1) - 3) / 2)
    if n < 1 or l_max % 2 or n_coefficients(l_max) != n:
        raise ValueError(
            f"found {n} coefficients, expected 1, 6, 15, 28, 45, ...: (l + 1)(l + 2)/2 of an even degree l"
        )
    return l_max


@lru_cache
def degrees(l_max: int) -> np.ndarray:
    """Return the degree l of each coefficient, shape (C,)."""
    return constant(np.concatenate([np.full(2 * degree + 1, degree) for degree in _even(l_max)]))


@lru_cache
def zonal_factors(l_max: int) -> np.ndarray:
    r"""Return :math:`\sqrt{4\pi/(2l+1)}` of each coefficient, shape (C,).

    Times a zonal coefficient r_l they turn spherical convolution with a kernel symmetric about the pole into a product
    of coefficients (Driscoll and Healy 1994, theorem 1).
    """
    return constant(np.sqrt(4 * np.pi / (2 * degrees(l_max) + 1)))


def zonal_means(exponents: ArrayLike, l_max: int) -> np.ndarray:
    r"""Return the means of the Legendre polynomials of even degree over axes of density :math:`e^{a z^2}`.

    .. math:: m_l = \int_0^1 P_l(z)\, e^{a z^2} dz \Big/ \int_0^1 e^{a z^2} dz

    With a positive exponent this is a lobe around the pole, with :math:`a = -bD` the signal of a stick.

    Parameters
    ----------
    exponents : array, shape (...)

    Returns
    -------
    array, shape (..., l_max / 2 + 1)
    """
    nodes, weights = np.polynomial.legendre.leggauss(_QUADRATURE)
    exponents = np.asarray(exponents, dtype=np.float64)[..., None]
    density = weights * np.exp(exponents * nodes**2 - exponents.clip(0))
    return density @ eval_legendre(np.array(_even(l_max)), nodes[:, None]) / density.sum(axis=-1, keepdims=True)


def sh_basis(directions: ArrayLike, l_max: int) -> np.ndarray:
    r"""Return the values of the even real basis at directions.

    .. math:: Y_{lm}(x, y, z) = N_{lm} \, \tilde P_l^{|m|}(z) \, \{\Im, \Re\} (x + i y)^{|m|}

    where :math:`\tilde P` is the associated Legendre function without its power of the sine, so that no angle is formed
    and the poles need no special case.

    Parameters
    ----------
    directions : array, shape (N, 3)
        Points; only their direction counts.
    l_max : int
        Highest degree, even.

    Returns
    -------
    array, shape (N, C), float64

    Raises
    ------
    ValueError
        For a wrong shape, an odd degree, or a direction without length.
    """
    points = np.asarray(directions, dtype=np.float64)
    if points.ndim != 2 or points.shape[1] != 3:
        raise ValueError(f"directions have shape {points.shape}, expected (N, 3)")
    length = np.linalg.norm(points, axis=1)
    if not np.all(length > 0):
        raise ValueError(f"{np.count_nonzero(~(length > 0))} directions have no length; leave b=0 volumes out")
    x, y, z = (points / length[:, None]).T
    basis = np.empty((len(points), n_coefficients(l_max)))
    sectoral = Y00  # normalised P_m^m without sin^m
    azimuth = np.ones(len(points), dtype=np.complex128)  # (x + iy)^m
    for m in range(l_max + 1):
        for degree, legendre in _legendre_column(m, sectoral, z, l_max):
            if degree % 2:
                continue
            middle = n_coefficients(degree) - degree - 1  # column of (degree, 0)
            if m == 0:
                basis[:, middle] = legendre
            else:
                basis[:, middle + m] = np.sqrt(2) * legendre * azimuth.real
                basis[:, middle - m] = np.sqrt(2) * legendre * azimuth.imag
        sectoral *= -np.sqrt((2 * m + 3) / (2 * m + 2))
        azimuth *= x + 1j * y
    return basis


def sh_inverse(directions: ArrayLike, l_max: int) -> np.ndarray:
    """Return the least-squares map from amplitudes at ``directions`` to coefficients, shape (C, N)."""
    basis = sh_basis(directions, l_max)
    if len(basis) < basis.shape[1]:
        raise ValueError(
            f"{len(basis)} directions cannot determine {basis.shape[1]} coefficients of degree {l_max}; lower the degree"
        )
    return np.linalg.pinv(basis)


def _legendre_column(m: int, sectoral: float, z: np.ndarray, l_max: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (l, normalised P_l^m(z) / sin^m) for l = m..l_max by the stable upward recurrence in l."""
    before, now = np.zeros_like(z), np.full_like(z, sectoral)
    yield m, now
    previous = 0.0
    for degree in range(m + 1, l_max + 1):
        factor = np.sqrt((4 * degree**2 - 1) / (degree**2 - m**2))
        before, now = now, factor * (z * now - previous * before)
        previous = 1 / factor
        yield degree, now


def _even(l_max: int) -> range:
    n_coefficients(l_max)  # refuses odd degrees
    return range(0, l_max + 1, 2)
