"""Shape of the lobe beneath each peak: how far its fibres disperse, how many there are, and how sure its direction is.

A lobe is taken for a Bingham density around its peak, whose two widths follow from the curvature there (Riffert et al.
2014).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from scipy.interpolate import RegularGridInterpolator

from shd_bids.boxes import chunks
from shd_bids.peaks.search import Peaks
from shd_bids.peaks.widths import NARROWEST, WIDEST, lobe_widths
from shd_bids.sphere.derivatives import SHDerivatives
from shd_bids.sphere.harmonics import l_max_of, zonal_means
from shd_bids.sphere.healpix import hemisphere

CONTAINED = float(np.sqrt(2 * np.log(10)))
"""Radius, in standard deviations along each axis, of the disc that holds 90 % of a Gaussian in a plane."""

_NODES = np.linspace(NARROWEST, WIDEST, 39)
_PEAKS_PER_CHUNK = 65536


@dataclass(frozen=True, eq=False)
class Lobes:
    """Shape of the lobe of each peak; zero where there is no peak.

    Attributes
    ----------
    dispersion : (n, K, 2) float32
        Standard deviation of the fibre directions, degrees, along the plane in which they spread most and across it.
    density : (n, K) float32
        Apparent fibre density of the lobe: its integral over the sphere, 1 in pure white matter with one fibre.
    """

    dispersion: np.ndarray
    density: np.ndarray


def measure_lobes(coefficients: np.ndarray, peaks: Peaks) -> Lobes:
    r"""Measure the lobes of peaks from amplitude and curvature of the fODF there.

    .. math:: f(u) \approx A\, e^{-x_1^2/2\sigma_1^2 - x_2^2/2\sigma_2^2}, \qquad
              \sigma_i^2 = -A / \lambda_i,

    with the eigenvalues :math:`\lambda_i` of the Hessian of f on the sphere at the peak, and
    :math:`\mathrm{AFD} = A \int_{S^2} e^{-\dots}`.

    Parameters
    ----------
    coefficients : (n, C) array
        Even real SH coefficients.
    peaks : Peaks
        Of the same voxels.

    Returns
    -------
    Lobes

    References
    ----------
    Riffert et al. (2014), NeuroImage 100, section 2.2, for the widths and integral of a peak.
    """
    voxel, slot = np.nonzero(peaks.amplitudes > 0)
    dispersion = np.zeros((*peaks.amplitudes.shape, 2), dtype=np.float32)
    density = np.zeros(peaks.amplitudes.shape, dtype=np.float32)
    l_max = l_max_of(coefficients.shape[1])
    wide, low = _truncation(l_max)
    integral = RegularGridInterpolator((_NODES, _NODES), _integral_table())
    derivatives = SHDerivatives(l_max, torch.device("cpu"))
    for part in chunks(len(voxel), _PEAKS_PER_CHUNK):
        rows, places = voxel[part], slot[part]
        columns = torch.as_tensor(coefficients[rows], dtype=torch.float32).T.contiguous()
        shown = lobe_widths(derivatives, columns, torch.as_tensor(peaks.directions[rows, places])).numpy()
        widths = np.interp(shown, wide, _NODES)
        dispersion[rows, places] = widths
        whole = peaks.amplitudes[rows, places] / np.sqrt(np.interp(widths, _NODES, low).prod(axis=1))
        density[rows, places] = whole * integral(widths)
    return Lobes(dispersion, density)


def direction_intervals(lobes: Lobes, precision: np.ndarray) -> np.ndarray:
    r"""Return the angle around each peak that holds the true direction with 90 % confidence, degrees, (n, K) float32.

    .. math:: \Delta = \sqrt{2 \ln 10\,\left(\epsilon(\sigma)^2 / a^2 + \epsilon_0(\sigma)^2\right)}, \qquad
              \sigma = \sqrt{\sigma_1 \sigma_2}

    Parameters
    ----------
    lobes : Lobes
        Of density a and widths :math:`\sigma_i`.
    precision : (3, W) array
        Widths, ascending, and at each the error of the direction of a lobe of density one that noise causes,
        :math:`\epsilon`, and that which stays without noise, :math:`\epsilon_0`; all in degrees.
    """
    there = lobes.density > 0
    width = np.sqrt(lobes.dispersion[there].prod(axis=1))
    noise, rest = (np.interp(width, precision[0], row) for row in precision[1:])
    intervals = np.zeros(lobes.density.shape, dtype=np.float32)
    intervals[there] = np.minimum(CONTAINED * np.hypot(noise / lobes.density[there], rest), 90.0)
    return intervals


@lru_cache
def _truncation(l_max: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the width that round lobes of each width in `_NODES` show when cut at a degree, and their amplitude, relative.

    A lobe narrower than the degree holds looks wider and lower than it is.
    """
    kappa = 1 / (2 * np.deg2rad(_NODES) ** 2)
    degree = np.arange(0, l_max + 1, 2)
    power = zonal_means(kappa, l_max) * (2 * degree + 1)  # of a lobe of unit integral, times 4 pi
    amplitude = power.sum(axis=1)
    curvature = power @ (degree * (degree + 1) / 2)  # P_l''(0) = -l (l + 1) / 2 along the sphere
    whole = 4 * np.pi / np.diagonal(_integral_table())
    return np.rad2deg(np.sqrt(amplitude / curvature)), amplitude / whole


@lru_cache
def _integral_table() -> np.ndarray:
    """Return the integral over the sphere of Bingham lobes of amplitude 1 for both widths in `_NODES`, (W, W)."""
    axes = hemisphere(64)
    along, across = axes[:, 0] ** 2 / 2, axes[:, 1] ** 2 / 2
    first, second = (np.exp(-square[:, None] / np.deg2rad(_NODES) ** 2) for square in (along, across))
    return 4 * np.pi * (first.T @ second) / len(axes)
