"""How well the directions of the fibres of a scan are told: their errors, and the saddle that parts two of them."""

from __future__ import annotations

import numpy as np

from shd_bids.fod.config import PrecisionConfig
from shd_bids.gradients.table import GradientTable
from shd_bids.response.precision import direction_error
from shd_bids.scan import Scan

_DISPERSIONS = np.linspace(2.0, 40.0, 39)  # degrees


def direction_precision(scan: Scan, config: PrecisionConfig) -> np.ndarray:
    r"""Return the errors of directions for `shd_bids.peaks.lobes.direction_intervals`.

    With the bound :math:`\epsilon_1` that the noise of one voxel sets (:func:`~shd_bids.response.precision.direction_error`),
    a factor k and a share s of the dispersion :math:`\sigma` of the lobe,

    .. math:: \epsilon(\sigma) = k\, \epsilon_1(\sigma), \qquad \epsilon_0(\sigma) = s\, \sigma.

    Parameters
    ----------
    scan : Scan
    config : PrecisionConfig
        k and s, measured on simulated tissue with the weights that they belong to.

    Returns
    -------
    ndarray, shape (3, W)
        Dispersion, error by noise of a lobe of density one, and the rest; degrees.
    """
    least = direction_error(scan.responses.wm, scan.gradients, scan.sigma, _DISPERSIONS)
    return np.stack([_DISPERSIONS, config.noise_factor * least, config.width_share * _DISPERSIONS])


def saddle_prominence(gradients: GradientTable, config: PrecisionConfig) -> float:
    """Return the least depth of the saddle between two fibres of a scan, as a share of the lower one.

    Strong weightings show the fourth degree of the signal, which tells two bundles from one that fans: there, crossings have
    deep saddles, and shallow ones are the roughness of a broad lobe. With weak ones alone the saddles of clear crossings are
    shallow too.
    """
    strongest = max(shell.bvalue for shell in gradients.shells)
    return config.prominence if strongest >= config.strong_bvalue else config.weak_prominence
