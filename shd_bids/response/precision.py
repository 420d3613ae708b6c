"""How precisely the signal of one voxel tells the direction of a fibre."""

from __future__ import annotations

import numpy as np

from shd_bids.gradients.table import GradientTable
from shd_bids.response.response import Response
from shd_bids.sphere.harmonics import zonal_means


def direction_error(response: Response, gradients: GradientTable, sigma: float, dispersion: np.ndarray) -> np.ndarray:
    r"""Return the least standard deviation of the direction of a fibre of density one, in each plane through it.

    The Cramer-Rao bound of a lobe of Watson form, whose Legendre means are :math:`w_l`, seen by :math:`N_s` evenly spread
    directions in each shell s under Gaussian noise,

    .. math:: \frac{1}{\epsilon^2} = \frac{1}{\sigma^2} \sum_s \frac{N_s}{2} \sum_l
              \frac{l(l+1)}{4\pi}\, r_{s,l}^2\, w_l^2.

    Of a lobe of density a it is :math:`\epsilon / a`.

    Parameters
    ----------
    response : Response
        Of white matter, in the unit of ``sigma``.
    gradients : GradientTable
        Its shells are those of the response.
    sigma : float
        Standard deviation of the noise.
    dispersion : ndarray, shape (W,)
        Standard deviations of the directions within the lobe, degrees.

    Returns
    -------
    ndarray, shape (W,)
        Degrees.

    References
    ----------
    Kay (1993), Fundamentals of Statistical Signal Processing, equation 3.31.
    """
    degree = 2 * np.arange(response.coefficients.shape[1])
    means = zonal_means(1 / (2 * np.deg2rad(dispersion) ** 2), int(degree[-1]))  # (W, L)
    number = np.array([len(shell.indices) for shell in gradients.shells])
    power = number / 2 @ response.coefficients**2 * degree * (degree + 1) / (4 * np.pi)
    return np.rad2deg(sigma / np.sqrt(np.maximum(means**2 @ power, 1e-30)))
