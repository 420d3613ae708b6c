"""The noise level of a scan."""

from __future__ import annotations

import numpy as np

from shd_bids.gradients.table import GradientTable
from shd_bids.sphere.harmonics import n_coefficients, sh_basis


def estimate_noise(voxels: np.ndarray, gradients: GradientTable) -> float:
    r"""Return the noise level, from what smooth functions on the sphere leave unexplained.

    In each shell the signal is fitted with spherical harmonics of the highest even degree whose coefficients number at most
    70 % of the directions; the residual gives :math:`\hat\sigma^2 = \|r\|^2/(n - k)`, and the median over voxels is kept.
    Several b=0 volumes count as a shell of degree 0. The smallest shell estimate is returned: motion and model error only
    add.

    Parameters
    ----------
    voxels : ndarray, shape (n, N)
        Signal in the mask.
    gradients : GradientTable

    Returns
    -------
    float
        In the units of the signal; zero when the signal is noise-free.
    """
    sample = voxels[:: max(1, len(voxels) // 20000)]
    estimates = []
    for shell in gradients.shells:
        n = len(shell.indices)
        l_max = fitting_degree(0.7 * n)
        if l_max is None or n < 4 or (l_max == 0 and shell.bvalue > 0):
            continue
        directions = gradients.directions[shell.indices]
        basis = sh_basis(directions, l_max) if shell.bvalue > 0 else np.ones((n, 1))
        values = sample[:, shell.indices]
        residual = values - values @ np.linalg.pinv(basis).T @ basis.T
        variance = (residual**2).sum(axis=1) / (n - basis.shape[1])
        estimates.append(float(np.sqrt(np.median(variance))))
    return min(estimates, default=float(0.03 * np.median(sample[:, gradients.b0_indices])))


def fitting_degree(n: float) -> int | None:
    """Return the highest even degree, to 8, with at most ``n`` coefficients; None where even degree 0 has more."""
    return max((d for d in (0, 2, 4, 6, 8) if n_coefficients(d) <= n), default=None)
