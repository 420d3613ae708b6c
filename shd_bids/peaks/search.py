"""Fibre directions of fODFs: local maxima of an even spherical function, exact to a small part of a degree.

The function is sampled on a grid much finer than its lobes, every grid point above its neighbours starts a safeguarded
Newton ascent on the spherical harmonics themselves, and what arrives at the same maximum is merged. Voxels are worked
on together; no step loops over them. Frames follow the coefficients: world axes in, world axes out.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
import torch
from scipy.spatial import ConvexHull

from shd_bids.boxes import chunks
from shd_bids.peaks.rule import Rule, by_voxel, select
from shd_bids.peaks.widths import BROAD, lobe_widths, mean_directions
from shd_bids.sphere.derivatives import SHDerivatives
from shd_bids.sphere.harmonics import SQRT_4PI, l_max_of, sh_basis
from shd_bids.sphere.healpix import hemisphere
from shd_bids.threads import reporting, run_on_threads

GRID_NSIDE = 16
"""HEALPix resolution of the search grid: 1536 axes 3.7 degrees apart, six times finer than a degree-18 lobe is wide."""

COARSE_NSIDE = 8
"""HEALPix resolution of the grid over which broad lobes are averaged."""

_NEWTON_STEPS = 12  # the first three or four suffice nearly everywhere; the rest serve flat ridges
_STEP_TOLERANCE = 1e-4  # radians (0.006 degrees); convergence is quadratic, so the remaining error is far smaller
_CELL_REACH = math.radians(6.0)  # covering radius of the grid, 2.7 degrees, and room for the first quadratic model
_STEP_LIMIT = math.radians(2.5)  # keeps an ascent within the cell that started it until it is convex
_VOXELS_PER_CHUNK = 2048  # the sampled chunk (12 MB) stays near the cache while its neighbours are compared
_VOXELS_PER_DEVICE_CHUNK = 65536  # 400 MB sampled
_WITHIN_LOBE = math.cos(math.radians(50.0))  # maxima of one lobe lie closer than that
_MEDIAN_STRIDE = 5  # of the grid points whose median is taken: 308 of them
_BETWEEN = (0.35, 0.5, 0.65)  # of the way from one maximum to the next: where the function is looked at
_GRID_SLACK = 0.75  # a sample may lie this far below the maximum beside it: degree 18, 2.3 degrees away, measured 0.84


@dataclass(frozen=True, eq=False)
class Peaks:
    """Fibre directions of voxels.

    Attributes
    ----------
    directions : (n, K, 3) float32
        Unit axes in the frame of the coefficients, with z >= 0; zero where there is no peak.
    amplitudes : (n, K) float32
        Value of the function there, descending; zero where there is no peak.
    isotropic : (n,) float32
        Part of the function that is alike in all directions: its median over the sphere, where that is positive.
    """

    directions: np.ndarray
    amplitudes: np.ndarray
    isotropic: np.ndarray

    @property
    def heights(self) -> np.ndarray:
        """Return the amplitudes above the isotropic part, (n, K); zero where there is no peak."""
        return np.where(self.amplitudes > 0, self.amplitudes - self.isotropic[:, None], 0)

    @property
    def n_fibres(self) -> np.ndarray:
        """Return the number of fibre orientations, (n,) uint8."""
        return (self.amplitudes > 0).sum(axis=1).astype(np.uint8)

    @property
    def vectors(self) -> np.ndarray:
        """Return direction times amplitude, (n, 3 K), the peaks format of MRtrix3 and BEP016."""
        return (self.directions * self.amplitudes[..., None]).reshape(len(self.directions), -1)

    @property
    def afd_max(self) -> np.ndarray:
        """Return the amplitude of the largest lobe, (n,); 0 without a peak."""
        return self.amplitudes.max(axis=1, initial=0.0)

    @property
    def afd_sum(self) -> np.ndarray:
        """Return the sum of the peak amplitudes, (n,)."""
        return self.amplitudes.sum(axis=1)


def isotropic_part(samples: torch.Tensor) -> torch.Tensor:
    """Return the part (m,) of functions (V, m) on the search grid that is alike in all directions: the median, if positive."""
    return samples[::_MEDIAN_STRIDE].median(dim=0).values.clamp_min(0)


def find_peaks(
    coefficients: np.ndarray | torch.Tensor,
    *,
    max_peaks: int = 5,
    relative_threshold: float = 0.1,
    absolute_threshold: float = 0.0,
    min_separation: float = 15.0,
    prominence: float = 0.0,
    device: str | torch.device = "cpu",
    progress: Callable[[str, float], None] | None = None,
) -> Peaks:
    """Return the local maxima of even spherical functions given by their SH coefficients.

    Two maxima are those of one broad lobe unless the function between them falls by ``prominence``, as a share of the
    lower one: noise and the limit of the degree roughen a lobe that is flat on top. They count as one peak, and the
    direction of a broad lobe is its mean around its maximum (`mean_directions`). A peak is kept when its height exceeds
    ``relative_threshold`` times the largest of its voxel and ``absolute_threshold``, and when no larger kept peak lies
    within ``min_separation``. Heights are above the isotropic part of the function, as on a pedestal of grey matter that one
    shell cannot tell from fibres every ripple is a maximum.

    Parameters
    ----------
    coefficients : (n, C) array or tensor
        Even real SH coefficients (MRtrix3 basis); rows with a non-finite entry give no peak.
    max_peaks : int
        Number of peaks K kept in a voxel, largest first.
    relative_threshold : float
        Smallest height as a share of the largest of the voxel, in [0, 1).
    absolute_threshold : float
        Smallest height in the units of the function; see `noise_threshold`.
    min_separation : float
        Smallest angle between two kept peaks, degrees.
    prominence : float
        Least relative depth of the saddle between two peaks, in [0, 1); 0 keeps every maximum where it is.
    device : str or torch.device
        Where to compute.
    progress : callable, optional
        Called with a text and the share done.

    Returns
    -------
    Peaks

    Raises
    ------
    ValueError
        If an option is out of range or the number of coefficients belongs to no even degree.
    """
    rule = Rule(max_peaks, relative_threshold, max(absolute_threshold, 0.0), min_separation, prominence)
    n, l_max = len(coefficients), l_max_of(coefficients.shape[1])
    found = Peaks(*(np.zeros(shape, dtype=np.float32) for shape in ((n, max_peaks, 3), (n, max_peaks), (n,))))
    if l_max == 0:  # a constant has no maximum
        return found
    _search_parts(_PeakSearch(l_max, torch.device(device), rule), coefficients, found, progress)
    return found


def _search_parts(
    search: "_PeakSearch",
    coefficients: np.ndarray | torch.Tensor,
    found: Peaks,
    progress: Callable[[str, float], None] | None,
) -> None:
    """Search chunk by chunk and write into the arrays of ``found``."""
    parts = chunks(len(coefficients), _VOXELS_PER_CHUNK if search.is_on_cpu else _VOXELS_PER_DEVICE_CHUNK)

    def work(part: slice) -> None:
        results = (array.cpu().numpy() for array in search(coefficients[part]))
        found.directions[part], found.amplitudes[part], found.isotropic[part] = results

    reported = reporting(work, len(parts), progress and partial(progress, "peaks"))
    if search.is_on_cpu:
        run_on_threads(reported, parts)
    else:
        list(map(reported, parts))


class _PeakSearch:
    """Peak search for one degree on one device, with its tables."""

    def __init__(self, l_max: int, device: torch.device, rule: Rule) -> None:
        axes, neighbours = _search_grid(GRID_NSIDE)
        self.rule, self.device = rule, device
        self.axes = torch.tensor(axes, dtype=torch.float32, device=device)  # (V, 3)
        self.neighbours = torch.tensor(neighbours, device=device)  # (V, k)
        self.basis = torch.tensor(sh_basis(axes, l_max), dtype=torch.float32, device=device)  # (V, C)
        self.coarse_axes = torch.tensor(hemisphere(COARSE_NSIDE), dtype=torch.float32, device=device)
        self.coarse_basis = torch.tensor(sh_basis(hemisphere(COARSE_NSIDE), l_max), dtype=torch.float32, device=device)
        self.derivatives = SHDerivatives(l_max, device)

    @property
    def is_on_cpu(self) -> bool:
        return self.device.type == "cpu"

    def __call__(self, coefficients: np.ndarray | torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return directions (n, K, 3), amplitudes (n, K) and isotropic parts (n,) of one chunk of voxels (n, C)."""
        if not isinstance(coefficients, torch.Tensor):
            coefficients = torch.from_numpy(np.array(coefficients, dtype=np.float32))
        columns = coefficients.detach().to(self.device, torch.float32).T.contiguous()  # (C, n)
        columns = torch.where(columns.isfinite().all(0), columns, 0.0)
        samples = self.basis @ columns  # (V, n)
        isotropic = isotropic_part(samples)
        columns[0] -= isotropic * SQRT_4PI
        directions, heights = self._find(columns, samples - isotropic, isotropic)
        return directions, torch.where(heights > 0, heights + isotropic[:, None], 0.0), isotropic

    def _find(
        self, columns: torch.Tensor, samples: torch.Tensor, isotropic: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return directions (n, K, 3) and heights (n, K) of functions (C, n) without their isotropic part, (n,).

        They are sampled on the grid, (V, n).
        """
        voxel, vertex, is_top = self._candidates(samples)
        directions, amplitudes, is_maximum = self._ascend(columns, voxel, self.axes[vertex], is_top)
        keep = is_maximum & (amplitudes > self.rule.absolute_threshold)
        table = by_voxel(voxel[keep], directions[keep], amplitudes[keep], columns.shape[1])
        if not self.rule.prominence:
            return select(*table, self.rule)
        return self._centred(columns, *select(*self._joined(columns, isotropic, *table), self.rule))

    def _joined(
        self, columns: torch.Tensor, isotropic: torch.Tensor, directions: torch.Tensor, amplitudes: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Join the maxima (n, K, 3), (n, K) that no saddle of the rule's prominence parts, each with the largest it can."""
        cosine = torch.einsum("nic,njc->nij", directions, directions)
        counts = (amplitudes > 0) & (amplitudes >= self.rule.relative_threshold * amplitudes[:, :1])
        near = (cosine.abs() > _WITHIN_LOBE) & counts[:, :, None] & counts[:, None, :]
        voxel, high, low = near.triu(1).nonzero(as_tuple=True)
        if not len(voxel):
            return directions, amplitudes
        first, second = directions[voxel, high], directions[voxel, low]
        second = second * cosine[voxel, high, low].sign()[:, None]
        saddle = torch.stack([self._values(columns[:, voxel], torch.lerp(first, second, t)) for t in _BETWEEN]).amin(0)
        is_one = torch.zeros_like(near)
        lower = amplitudes[voxel, low]
        is_one[voxel, high, low] = lower - saddle < self.rule.prominence * (lower + isotropic[voxel])
        total = directions * amplitudes[..., None]
        kept = amplitudes > 0
        rank = torch.arange(amplitudes.shape[1], 0, -1, device=self.device)
        for k in range(1, amplitudes.shape[1]):
            owners = is_one[:, :, k] & kept
            rows = owners.any(1).nonzero()[:, 0]
            owner = (owners[rows] * rank).argmax(1)  # the first, which is the largest
            total[rows, owner] += total[rows, k] * cosine[rows, owner, k].sign()[:, None]
            kept[rows, k] = False
            total[rows, k] = 0.0
        changed, slot = (is_one.any(2) & kept).nonzero(as_tuple=True)
        mean = torch.nn.functional.normalize(total[changed, slot], dim=1)
        directions, amplitudes = directions.clone(), torch.where(kept, amplitudes, 0.0)
        directions[changed, slot] = mean
        amplitudes[changed, slot] = self._values(columns[:, changed], mean)
        order = torch.argsort(amplitudes, dim=1, descending=True, stable=True)
        return directions.gather(1, order[..., None].expand(-1, -1, 3)), amplitudes.gather(1, order)

    def _centred(
        self, columns: torch.Tensor, directions: torch.Tensor, amplitudes: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Move peaks (n, K, 3) of broad lobes to the mean direction of their lobe; amplitudes (n, K) stay those of the peaks."""
        voxel, slot = (amplitudes > 0).nonzero(as_tuple=True)
        widths = lobe_widths(self.derivatives, columns[:, voxel], directions[voxel, slot])[:, 0]
        broad = (widths > BROAD).nonzero()[:, 0]
        voxel, slot, widths = voxel[broad], slot[broad], widths[broad]
        nearness = torch.einsum("vc,mkc->kvm", self.coarse_axes, directions[voxel]).abs()
        own = nearness.gather(0, slot.expand(1, nearness.shape[1], -1))[0]
        samples = (self.coarse_basis @ columns[:, voxel]) * (own >= nearness.amax(0))
        mean = mean_directions(samples, self.coarse_axes, directions[voxel, slot], widths)
        directions[voxel, slot] = torch.where(mean[:, 2:] < 0, -mean, mean)
        return directions, amplitudes

    def _values(self, columns: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
        """Return function k (C, m) at point k (m, 3) of any length."""
        return self.derivatives(columns, torch.nn.functional.normalize(points, dim=1))[0]

    def _candidates(self, samples: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return voxel and grid index of every possible start among samples (V, n), and whether it is above its neighbours.

        A sample below a single neighbour counts too: beside a larger lobe the rise can begin within one cell of a
        small maximum. Samples hopelessly below a threshold do not count.
        """
        floor = _GRID_SLACK * torch.clamp(
            self.rule.relative_threshold * samples.amax(0), min=self.rule.absolute_threshold
        )
        n_higher = torch.zeros(samples.shape, dtype=torch.int8, device=samples.device)
        for k in range(self.neighbours.shape[1]):
            n_higher += samples[self.neighbours[:, k]] > samples
        vertex, voxel = ((samples > floor) & (n_higher < 2)).nonzero(as_tuple=True)
        return voxel, vertex, n_higher[vertex, voxel] == 0

    def _ascend(
        self, columns: torch.Tensor, voxel: torch.Tensor, start: torch.Tensor, is_top: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return directions (m, 3) and amplitudes (m,) of the maximum above each start, and whether it is one.

        A start that is not ``is_top`` goes on only when its first step points to a maximum within reach of its cell.
        """
        directions = start.clone()
        amplitudes = torch.zeros(len(start), device=self.device)
        is_maximum = torch.zeros(len(start), dtype=torch.bool, device=self.device)
        active = torch.arange(len(start), device=self.device)
        for iteration in range(_NEWTON_STEPS):
            if not len(active):
                break
            points = directions[active]
            value, step, is_concave = self._newton_step(columns[:, voxel[active]], points)
            length = step.norm(dim=1)
            moved = points + step * torch.clamp(_STEP_LIMIT / length.clamp(min=1e-12), max=1.0)[:, None]
            directions[active] = moved / moved.norm(dim=1, keepdim=True)
            is_there = length < _STEP_TOLERANCE
            amplitudes[active] = value
            is_maximum[active] = is_there & is_concave
            goes_on = ~is_there
            if iteration == 0:
                goes_on &= is_top | (is_concave & (length < _CELL_REACH))
            active = active[goes_on]
        return directions, amplitudes, is_maximum

    def _newton_step(
        self, columns: torch.Tensor, points: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return value (m,), tangent ascent step (m, 3) and whether the Hessian is negative definite (m,).

        Where it is not, its eigenvalues are lowered by a common shift until the step climbs (Levenberg).
        """
        value, axes, slope, hessian = there = self.derivatives.along_sphere(columns, points)
        mean, radius = there.eigenvalues
        highest, scale = mean + radius, mean.abs() + radius
        is_concave = highest < -1e-4 * scale
        shift = torch.where(is_concave, 0.0, highest + 0.1 * scale)
        h11, h22, h12 = hessian[:, 0, 0] - shift, hessian[:, 1, 1] - shift, hessian[:, 0, 1]
        determinant = (h11 * h22 - h12**2).clamp(min=1e-30)
        step_1 = -(h22 * slope[:, 0] - h12 * slope[:, 1]) / determinant
        step_2 = -(h11 * slope[:, 1] - h12 * slope[:, 0]) / determinant
        return value, step_1[:, None] * axes[:, 0] + step_2[:, None] * axes[:, 1], is_concave


@lru_cache
def _search_grid(nside: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the hemisphere axes (V, 3) and, padded with the vertex itself, the neighbours of each (V, k).

    Neighbours share an edge of the triangulation of the sphere, so they surround the vertex and no maximum slips
    between; across the rim they are the antipodes.
    """
    axes = hemisphere(nside)
    n = len(axes)
    triangles = ConvexHull(np.concatenate([axes, -axes])).simplices
    edges = np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]]) % n
    edges = np.unique(np.concatenate([edges, edges[:, ::-1]]), axis=0)
    counts = np.bincount(edges[:, 0], minlength=n)
    neighbours = np.repeat(np.arange(n)[:, None], counts.max(), axis=1)
    neighbours[edges[:, 0], np.arange(len(edges)) - np.repeat(np.cumsum(counts) - counts, counts)] = edges[:, 1]
    return axes, neighbours
