"""Shape of the lobe beneath each peak: how far its fibres disperse, how many there are, and how sure its direction is.

A lobe is taken for a Bingham density around its peak, whose two widths are those of what exceeds a tenth of its height.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from scipy.interpolate import LinearNDInterpolator, NearestNDInterpolator
from scipy.spatial.transform import Rotation

from shd_bids.boxes import chunks
from shd_bids.peaks.moments import lobe_deviations
from shd_bids.peaks.search import GRID_NSIDE, Peaks, isotropic_part
from shd_bids.peaks.widths import WIDEST
from shd_bids.sphere.harmonics import l_max_of, sh_basis, sh_inverse
from shd_bids.sphere.healpix import hemisphere
from shd_bids.threads import run_on_threads

CONTAINED = float(np.sqrt(2 * np.log(10)))
"""Radius, in standard deviations along each axis, of the disc that holds 90 % of a Gaussian in a plane."""

_NODES = np.linspace(4.0, WIDEST, 37)  # degrees
_VOXELS_PER_CHUNK = 512  # 3 MB of samples
_N_FRAMES = 4  # in which known lobes are shown
_FINE_NSIDE = 64


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
    r"""Measure the lobes of peaks.

    Among Bingham densities

    .. math:: f(u) = A\, e^{-s_1^2/2\kappa_1^2 - s_2^2/2\kappa_2^2}

    of sines s, cut at the degree of the function, that which shows the widths of the lobe
    (`shd_bids.peaks.moments.lobe_deviations`) gives its dispersion, the standard deviation of its angles, and
    :math:`\mathrm{AFD}`, its integral.

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
    Riffert et al. (2014), NeuroImage 100, section 2.2, for the integral of a lobe of two widths.
    """
    dispersion = np.zeros((*peaks.amplitudes.shape, 2), dtype=np.float32)
    density = np.zeros(peaks.amplitudes.shape, dtype=np.float32)
    shapes, there = _shapes(l_max_of(coefficients.shape[1])), peaks.amplitudes > 0
    some = np.flatnonzero(there.any(axis=1))

    def measure(part: slice) -> None:
        rows = some[part]
        found = shapes(_shown_widths(coefficients[rows], peaks, rows))
        voxel, slot = np.nonzero(there[rows])
        dispersion[rows[voxel], slot] = found[:, :2]
        density[rows[voxel], slot] = peaks.amplitudes[rows[voxel], slot] * found[:, 2]

    run_on_threads(measure, chunks(len(some), _VOXELS_PER_CHUNK))
    return Lobes(dispersion, density)


def _shown_widths(coefficients: np.ndarray, peaks: Peaks, rows: np.ndarray) -> np.ndarray:
    """Return the widths (m, 2) that the lobes of the peaks of some voxels show on the grid, degrees."""
    axes, basis = _grid(l_max_of(coefficients.shape[1]))
    samples = basis @ torch.as_tensor(coefficients, dtype=torch.float32).T - torch.as_tensor(peaks.isotropic[rows])
    n_most = int(peaks.n_fibres[rows].max())
    directions, heights = (torch.as_tensor(a[rows, :n_most]) for a in (peaks.directions, peaks.heights))
    return lobe_deviations(samples, axes, directions, heights).numpy()


@lru_cache
def _grid(l_max: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the axes (V, 3) on which lobes are sampled, and the basis there, (V, C)."""
    axes = hemisphere(GRID_NSIDE)
    return torch.tensor(axes, dtype=torch.float32), torch.tensor(sh_basis(axes, l_max), dtype=torch.float32)


def direction_intervals(lobes: Lobes, precision: np.ndarray) -> np.ndarray:
    r"""Return the angle around each peak that holds the true direction with 90 % confidence, degrees, (n, K) float32.

    .. math:: \Delta = \sqrt{2 \ln 10\,\left(\epsilon(\sigma)^2 / a^2 + \epsilon_0(\sigma)^2\right)}, \qquad
              \sigma^2 = (\sigma_1^2 + \sigma_2^2) / 2

    Parameters
    ----------
    lobes : Lobes
        Of density a and widths :math:`\sigma_i`.
    precision : (3, W) array
        Widths, ascending, and at each the error of the direction of a lobe of density one that noise causes,
        :math:`\epsilon`, and that which stays without noise, :math:`\epsilon_0`; all in degrees.
    """
    there = lobes.density > 0
    width = np.sqrt((lobes.dispersion[there] ** 2).mean(axis=1))
    noise, rest = (np.interp(width, precision[0], row) for row in precision[1:])
    intervals = np.zeros(lobes.density.shape, dtype=np.float32)
    intervals[there] = np.minimum(CONTAINED * np.hypot(noise / lobes.density[there], rest), 90.0)
    return intervals


class _Table:
    """Values (k, 3) of known lobes by the widths (k, 2) that they show; between them linear, beyond them the nearest."""

    def __init__(self, shown: np.ndarray, values: np.ndarray):
        self._within, self._beyond = LinearNDInterpolator(shown, values), NearestNDInterpolator(shown, values)

    def __call__(self, shown: np.ndarray) -> np.ndarray:
        found = self._within(shown)
        outside = np.isnan(found[:, 0])
        found[outside] = self._beyond(shown[outside])
        return found


@lru_cache
def _shapes(l_max: int) -> _Table:
    """Return what gives dispersion along and across, degrees, and integral over amplitude, (m, 3), of shown widths (m, 2).

    Shown widths are not those of the density: a degree holds no narrow lobe, and what a broad one leaves in all directions
    counts as isotropic.
    """
    along, across = (_NODES[index] for index in np.tril_indices(len(_NODES)))
    axes, basis = _grid(l_max)
    grid = axes.double().numpy()
    to_sh = sh_inverse(grid, l_max)
    shown, top = np.zeros((len(along), 2)), np.zeros(len(along))
    for frame in Rotation.from_quat(np.random.default_rng(0).normal(size=(_N_FRAMES, 4))).as_matrix():
        coefficients = to_sh @ _bingham(along, across, grid @ frame)
        samples = basis @ torch.as_tensor(coefficients, dtype=torch.float32)
        height = sh_basis(frame[None, :, 2], l_max)[0] @ coefficients
        isotropic = isotropic_part(samples)
        middle = torch.as_tensor(frame[:, 2], dtype=torch.float32).expand(len(along), 1, 3)
        above = torch.as_tensor(height, dtype=torch.float32) - isotropic
        shown += lobe_deviations(samples - isotropic, axes, middle, above[:, None]).numpy() / _N_FRAMES
        top += height / _N_FRAMES
    deviations, integrals = _moments(along, across)
    return _Table(shown, np.column_stack([*deviations, integrals / top]))


def _bingham(along: np.ndarray, across: np.ndarray, local: np.ndarray) -> np.ndarray:
    """Return the densities (V, k) of lobes of two widths (k,), degrees, around the last axis of points (V, 3); 1 at the top."""
    precision = 1 / (2 * np.deg2rad([along, across]) ** 2)
    return np.exp(-(local[:, :2] ** 2) @ precision)


def _moments(along: np.ndarray, across: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    """Return the standard deviations of the angles of lobes towards both of their widths, degrees, and their integrals, (k,)."""
    points = hemisphere(_FINE_NSIDE)
    density = _bingham(along, across, points)
    sine = np.sqrt(np.maximum(1 - points[:, 2] ** 2, 1e-12))
    offsets = (np.arccos(np.abs(points[:, 2]).clip(max=1)) / sine)[:, None] * points[:, :2]
    deviations = [np.rad2deg(np.sqrt(offset**2 @ density / density.sum(axis=0))) for offset in offsets.T]
    return deviations, 4 * np.pi * density.mean(axis=0)
