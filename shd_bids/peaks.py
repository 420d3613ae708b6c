"""Find the fibre directions of fODFs: local maxima of an even spherical function, exact to a small part of a degree.

The function is sampled on a grid much finer than its lobes, every grid point above its neighbours starts a safeguarded
Newton ascent on the spherical harmonics themselves, and what arrives at the same maximum is merged. Voxels are worked
on together; no step loops over them. Frames follow the coefficients: world axes in, world axes out.
"""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import count

import numpy as np
import torch
from scipy.spatial import ConvexHull

from shd_bids.chunks import chunks
from shd_bids.sphere.harmonics import l_max_of, sh_basis
from shd_bids.sphere.healpix import hemisphere

GRID_NSIDE = 16
"""HEALPix resolution of the search grid: 1536 axes 3.7 degrees apart, six times finer than a degree-18 lobe is wide."""

MERGE_ANGLE = 1.0
"""Degrees within which two converged ascents are the same maximum."""

_NEWTON_STEPS = 12  # the first three or four suffice nearly everywhere; the rest serve flat ridges
_STEP_TOLERANCE = 1e-4  # radians (0.006 degrees); convergence is quadratic, so the remaining error is far smaller
_CELL_REACH = math.radians(6.0)  # covering radius of the grid, 2.7 degrees, and room for the first quadratic model
_STEP_LIMIT = math.radians(2.5)  # keeps an ascent within the cell that started it until it is convex
_VOXELS_PER_CHUNK = 2048  # the sampled chunk (12 MB) stays near the cache while its neighbours are compared
_VOXELS_PER_DEVICE_CHUNK = 65536  # 400 MB sampled
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
    """

    directions: np.ndarray
    amplitudes: np.ndarray

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


def find_peaks(
    coefficients: np.ndarray | torch.Tensor,
    *,
    max_peaks: int = 5,
    relative_threshold: float = 0.1,
    absolute_threshold: float = 0.0,
    min_separation: float = 15.0,
    device: str | torch.device = "cpu",
    progress: Callable[[str, float], None] | None = None,
) -> Peaks:
    """Find the local maxima of even spherical functions given by their SH coefficients.

    A peak is kept when its amplitude exceeds ``relative_threshold`` times the largest of its voxel and
    ``absolute_threshold``, and when no larger kept peak lies within ``min_separation``.

    Parameters
    ----------
    coefficients : (n, C) array or tensor
        Even real SH coefficients (MRtrix3 basis); rows with a non-finite entry give no peak.
    max_peaks : int
        Number of peaks K kept in a voxel, largest first.
    relative_threshold : float
        Smallest amplitude as a share of the largest of the voxel, in [0, 1).
    absolute_threshold : float
        Smallest amplitude in the units of the function; see `noise_threshold`.
    min_separation : float
        Smallest angle between two kept peaks, degrees.
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
    if max_peaks < 1 or not 0 <= relative_threshold < 1 or not 0 <= min_separation <= 90:
        raise ValueError(
            f"found max_peaks {max_peaks}, relative_threshold {relative_threshold}, min_separation {min_separation}; "
            "expected at least 1, a share in [0, 1) and degrees in [0, 90]"
        )
    n, l_max = len(coefficients), l_max_of(coefficients.shape[1])
    directions = np.zeros((n, max_peaks, 3), dtype=np.float32)
    amplitudes = np.zeros((n, max_peaks), dtype=np.float32)
    if l_max == 0:  # a constant has no maximum
        return Peaks(directions, amplitudes)
    search = _PeakSearch(l_max, torch.device(device))
    done = count(1)  # its steps are atomic, in whatever thread

    def work(part: slice) -> None:
        chunk = coefficients[part]
        found = search(
            chunk if isinstance(chunk, torch.Tensor) else torch.from_numpy(np.array(chunk, dtype=np.float32)),
            max_peaks=max_peaks,
            relative_threshold=relative_threshold,
            absolute_threshold=max(absolute_threshold, 0.0),
            min_separation=max(min_separation, MERGE_ANGLE),
        )
        directions[part], amplitudes[part] = (array.cpu().numpy() for array in found)
        if progress:
            progress("peaks", next(done) / len(parts))

    size = _VOXELS_PER_CHUNK if search.device.type == "cpu" else _VOXELS_PER_DEVICE_CHUNK
    parts = chunks(n, size)
    if search.device.type == "cpu" and len(parts) > 1:
        _run_on_threads(work, parts)
    else:
        for part in parts:
            work(part)
    return Peaks(directions, amplitudes)


def afd_total(coefficients: np.ndarray) -> np.ndarray:
    r"""Return the total apparent fibre density of (n, C) coefficients, (n,): the integral over the sphere.

    .. math:: \int_{S^2} f(u)\,du = \sqrt{4\pi}\, c_{00}

    It is 1 in a voxel of pure white matter under MRtrix3's scale.
    """
    return np.sqrt(4 * np.pi) * np.asarray(coefficients)[:, 0]


def dec(coefficients: np.ndarray) -> np.ndarray:
    r"""Return the direction-encoded colour of (n, C) coefficients, (n, 3), x red, y green, z blue in world axes.

    .. math:: d = \int_{S^2} \max(f(u), 0)\, |u|\,du

    componentwise, scaled to the Euclidean length of the total apparent fibre density (zero where that is negative).
    """
    coefficients = np.asarray(coefficients, dtype=np.float32)
    axes = hemisphere(8)
    basis = sh_basis(axes, l_max_of(coefficients.shape[1])).astype(np.float32)
    weights = np.abs(axes).astype(np.float32)
    colour = np.zeros((len(coefficients), 3), dtype=np.float32)
    for part in chunks(len(coefficients), 8 * _VOXELS_PER_CHUNK):
        colour[part] = np.maximum(coefficients[part] @ basis.T, 0) @ weights
    length = np.linalg.norm(colour, axis=1, keepdims=True)
    return colour * (np.maximum(afd_total(coefficients), 0)[:, None] / np.where(length > 0, length, 1))


def largest_amplitude(coefficients: np.ndarray | torch.Tensor, *, device: str | torch.device = "cpu") -> np.ndarray:
    """Return the amplitude of the largest peak of (n, C) coefficients, (n,); 0 where none is positive."""
    return find_peaks(coefficients, max_peaks=1, relative_threshold=0.0, device=device).afd_max


def noise_threshold(
    coefficients: np.ndarray,
    csf_fraction: np.ndarray,
    *,
    wm_fraction: np.ndarray,
    factor: float = 2.0,
    device: str | torch.device = "cpu",
) -> float:
    """Return an absolute peak threshold from voxels that hold fluid and so, no fibre.

    The threshold is ``factor`` times the median largest amplitude of CSF-dominated voxels (the ventricle rule of
    Dell'Acqua et al. 2013 as scilpy applies it), held between 2 and 20 percent of the median largest amplitude of
    WM-dominated voxels, so that neither a perfect fit nor a wrong tissue map decides alone. With fewer than 20 such
    voxels the lower bound (for CSF) or the largest amplitudes present (for WM) take their place.

    Parameters
    ----------
    coefficients : (n, C) array
        Even real SH coefficients.
    csf_fraction, wm_fraction : (n,) arrays
        Signal fractions in [0, 1].
    factor : float
        How far above the typical spurious lobe a peak must rise.
    device : str or torch.device
        Where to compute.

    Returns
    -------
    float
        In the units of the function.
    """
    white = _sample_of(np.flatnonzero(np.asarray(wm_fraction) > 0.8))
    fluid = _sample_of(np.flatnonzero(np.asarray(csf_fraction) > 0.9))
    if len(white) < 20:
        white = np.argsort(-np.asarray(wm_fraction), kind="stable")[:200]
    reference = float(np.median(largest_amplitude(coefficients[white], device=device))) if len(white) else 0.0
    low, high = 0.02 * reference, 0.2 * reference
    if len(fluid) < 20:
        return low
    return float(np.clip(factor * np.median(largest_amplitude(coefficients[fluid], device=device)), low, high))


def _sample_of(indices: np.ndarray, limit: int = 5000) -> np.ndarray:
    """Return at most ``limit`` of the indices, evenly spaced: a median needs no more."""
    return indices[np.linspace(0, len(indices) - 1, min(limit, len(indices))).astype(int)]


def _run_on_threads(work: Callable[[slice], None], parts: list[slice]) -> None:
    """Run the parts side by side, one thread each, on as many threads as torch may use.

    The operations of a part are too short to be split among threads: doing so was up to ten times slower on two busy
    cores than one thread alone (measured with 20 000 voxels of degree 18).
    """
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            list(pool.map(work, parts))
    finally:
        torch.set_num_threads(threads)


class _PeakSearch:
    """Peak search for one degree on one device, with its tables."""

    def __init__(self, l_max: int, device: torch.device) -> None:
        axes, neighbours = _search_grid(GRID_NSIDE)
        self.l_max = l_max
        self.device = device
        self.axes = torch.tensor(axes, dtype=torch.float32, device=device)  # (V, 3)
        self.neighbours = torch.tensor(neighbours, device=device)  # (V, k)
        self.basis = torch.tensor(sh_basis(axes, l_max), dtype=torch.float32, device=device)  # (V, C)
        self.derivatives = SHDerivatives(l_max, device)

    def __call__(
        self,
        coefficients: torch.Tensor,
        *,
        max_peaks: int,
        relative_threshold: float,
        absolute_threshold: float,
        min_separation: float,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return directions (n, K, 3) and amplitudes (n, K) of one chunk of voxels (n, C)."""
        n = len(coefficients)
        columns = coefficients.detach().to(self.device, torch.float32).T.contiguous()  # (C, n)
        columns = torch.where(columns.isfinite().all(0), columns, 0.0)
        voxel, vertex, is_top = self._candidates(columns, relative_threshold, absolute_threshold)
        directions, amplitudes, is_maximum = self._ascend(columns, voxel, self.axes[vertex], is_top)
        keep = is_maximum & (amplitudes > absolute_threshold)
        voxel, directions, amplitudes = voxel[keep], directions[keep], amplitudes[keep]
        table = _pad_by_voxel(voxel, directions, amplitudes, n)
        return _select(*table, max_peaks=max_peaks, relative=relative_threshold, separation=min_separation)

    def _candidates(
        self, columns: torch.Tensor, relative_threshold: float, absolute_threshold: float
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return voxel and grid index of every possible start, and whether the sample is above all its neighbours.

        A sample below a single neighbour counts too: beside a larger lobe the rise can begin within one cell of a
        small maximum. Samples hopelessly below a threshold do not count.
        """
        samples = self.basis @ columns  # (V, n)
        floor = _GRID_SLACK * torch.clamp(relative_threshold * samples.amax(0), min=absolute_threshold)
        n_higher = torch.zeros(samples.shape, dtype=torch.int8, device=samples.device)
        for k in range(self.neighbours.shape[1]):
            n_higher += samples[self.neighbours[:, k]] > samples
        vertex, voxel = ((samples > floor) & (n_higher < 2)).nonzero(as_tuple=True)
        return voxel, vertex, n_higher[vertex, voxel] == 0

    def _ascend(
        self, columns: torch.Tensor, voxel: torch.Tensor, start: torch.Tensor, is_top: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Climb from each start to its maximum; return directions (m, 3), amplitudes (m,) and whether it is one.

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
        value, gradient, hessian = self.derivatives(columns, points)
        first, second = _tangent_axes(points)
        slope_1, slope_2 = (gradient * first).sum(1), (gradient * second).sum(1)
        radial = (gradient * points).sum(1)  # curvature of the sphere: H = P D2f P - (n . Df) P
        curved_1 = torch.einsum("mij,mj->mi", hessian, first)
        h11 = (curved_1 * first).sum(1) - radial
        h12 = (curved_1 * second).sum(1)
        h22 = torch.einsum("mi,mij,mj->m", second, hessian, second) - radial
        mean = (h11 + h22) / 2
        radius = torch.sqrt(((h11 - h22) / 2) ** 2 + h12**2)
        highest, scale = mean + radius, mean.abs() + radius
        is_concave = highest < -1e-4 * scale
        shift = torch.where(is_concave, 0.0, highest + 0.1 * scale)
        h11, h22 = h11 - shift, h22 - shift
        determinant = (h11 * h22 - h12**2).clamp(min=1e-30)
        step_1 = -(h22 * slope_1 - h12 * slope_2) / determinant
        step_2 = -(h11 * slope_2 - h12 * slope_1) / determinant
        return value, step_1[:, None] * first + step_2[:, None] * second, is_concave


class SHDerivatives:
    r"""Value, gradient and Hessian of even spherical functions at one point each.

    The functions are extended from the sphere to space without a singularity at the poles,

    .. math:: F(x, y, z) = \Re \sum_m C_m(z)\, (x + iy)^m, \qquad
              C_m(z) = \sum_l (c_{l,m} - i\, c_{l,-m})\, \Pi_{lm}(z),

    with :math:`\Pi_{lm} = N_{lm}\, d^m P_l / dz^m`, whose derivative is a multiple of :math:`\Pi_{l,m+1}`.
    On the sphere F is the function itself; its derivatives along the sphere follow from those in space.

    Parameters
    ----------
    l_max : int
        Even degree of at least 2.
    device : torch.device
        Where to compute.
    """

    def __init__(self, l_max: int, device: torch.device) -> None:
        self.l_max = l_max
        tables = _legendre_tables(l_max)
        self._first, self._rise, self._fall, self._slope = (
            torch.tensor(t, dtype=torch.float32, device=device) for t in tables
        )
        self._order = torch.arange(l_max + 1, device=device, dtype=torch.float32)[:, None]

    def __call__(self, columns: torch.Tensor, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Evaluate function k at point k.

        Parameters
        ----------
        columns : (C, m) float32 tensor
            Coefficients, one function a column.
        points : (m, 3) float32 tensor
            Unit vectors.

        Returns
        -------
        value : (m,) tensor
        gradient : (m, 3) tensor
            Of the extension F, in space.
        hessian : (m, 3, 3) tensor
            Of the extension F, in space.
        """
        x, y, z = points.unbind(1)
        factor, slope, bend = self._z_factors(columns, z)  # C_m and its derivatives in z: (L + 1, m) complex
        power = torch.ones_like(factor)
        power[1:] = torch.complex(x, y)
        power = power.cumprod(0)  # (x + iy)^m
        power_1 = self._order * _delay(power)  # derivatives in w = x + iy
        power_2 = self._order * _delay(power_1)
        f, f_w, f_ww = ((factor * p).sum(0) for p in (power, power_1, power_2))
        f_z, f_wz, f_zz = (slope * power).sum(0), (slope * power_1).sum(0), (bend * power).sum(0)
        gradient = torch.stack([f_w.real, -f_w.imag, f_z.real], dim=1)
        row_x = torch.stack([f_ww.real, -f_ww.imag, f_wz.real], dim=1)
        row_y = torch.stack([-f_ww.imag, -f_ww.real, -f_wz.imag], dim=1)
        row_z = torch.stack([f_wz.real, -f_wz.imag, f_zz.real], dim=1)
        return f.real, gradient, torch.stack([row_x, row_y, row_z], dim=1)

    def _z_factors(self, columns: torch.Tensor, z: torch.Tensor) -> list[torch.Tensor]:
        """Sum coefficients times Legendre factors over l; return C_m, C_m' and C_m'', each (L + 1, m) complex."""
        real = columns.new_zeros(3, self.l_max + 1, len(z))
        imaginary = torch.zeros_like(real)
        before = current = columns.new_zeros(self.l_max + 1, len(z))
        for l in range(self.l_max + 1):  # noqa: E741 - the degree, as in the paper
            before, current = current, (self._rise[l] * z) * current - self._fall[l] * before
            current[l] = self._first[l]
            if l % 2:
                continue
            middle = l * (l + 1) // 2  # row of order 0
            cosine, sine = columns[middle : middle + l + 1], columns[middle - l : middle].flip(0)
            for k in range(min(3, l + 1)):  # the k-th derivative in z of order m is a multiple of order m + k
                top = l + 1 - k
                factor = self._slope[l, k, :top] * current[k : l + 1] if k else current[: l + 1]
                real[k, :top].addcmul_(cosine[:top], factor)
                imaginary[k, 1:top].addcmul_(sine[: max(top - 1, 0)], factor[1:], value=-1)
        return [torch.complex(real[k], imaginary[k]) for k in range(3)]


@lru_cache
def _legendre_tables(l_max: int) -> tuple[np.ndarray, ...]:
    r"""Tabulate the recursion of the factors :math:`\Pi_{lm}` and the multiples that give their derivatives.

    .. math:: \Pi_{lm} = a_{lm} z\, \Pi_{l-1,m} - b_{lm}\, \Pi_{l-2,m}, \qquad
              \Pi_{lm}^{(k)} = s_{lkm}\, \Pi_{l,m+k}

    Returns
    -------
    first : (L + 1,) array
        The constants :math:`\Pi_{ll}`.
    rise, fall : (L + 1, L + 1, 1) arrays
        a and b by degree and order; zero where m >= l, and b zero where m > l - 2.
    slope : (L + 1, 3, L + 1, 1) array
        s by degree, k and order.
    """
    size = l_max + 1
    degree, order = np.arange(size)[:, None].astype(float), np.arange(size)[None].astype(float)
    below, two_below = order < degree, order < degree - 1
    with np.errstate(invalid="ignore", divide="ignore"):
        rise = np.where(below, np.sqrt((4 * degree**2 - 1) / (degree**2 - order**2)), 0)
        fall = np.where(two_below, rise * np.sqrt(((degree - 1) ** 2 - order**2) / (4 * (degree - 1) ** 2 - 1)), 0)
        # N_lm / N_l,m+1 of the basis: the Condon-Shortley sign, and sqrt(2) for every order but 0
        root_two = np.where(order == 0, math.sqrt(2), 1)
        ratio = -np.sqrt(np.where(below, (degree - order) * (degree + order + 1), 0)) / root_two
    slope = np.zeros((size, 3, size))
    slope[:, 0] = 1
    slope[:, 1] = ratio
    slope[:, 2, :-1] = ratio[:, :-1] * ratio[:, 1:]
    m = np.arange(1, size)
    first = np.concatenate([[1.0], math.sqrt(2) * np.cumprod(-np.sqrt((2 * m + 1) / (2 * m)))]) / math.sqrt(4 * math.pi)
    return first, rise[..., None], fall[..., None], slope[..., None]


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


def _tangent_axes(points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return two unit vectors (m, 3) that complete each unit vector to a right-handed frame (Duff et al. 2017)."""
    x, y, z = points.unbind(1)
    sign = torch.where(z >= 0, 1.0, -1.0)
    a = -1 / (sign + z)
    b = x * y * a
    first = torch.stack([1 + sign * x * x * a, sign * b, -sign * x], dim=1)
    second = torch.stack([b, sign + y * y * a, -y], dim=1)
    return first, second


def _delay(power: torch.Tensor) -> torch.Tensor:
    """Shift the rows down by one, with zeros on top."""
    return torch.cat([torch.zeros_like(power[:1]), power[:-1]])


def _pad_by_voxel(
    voxel: torch.Tensor, directions: torch.Tensor, amplitudes: torch.Tensor, n: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Lay flat peaks out as directions (n, K, 3) and amplitudes (n, K), descending, zero padded."""
    order = torch.argsort(amplitudes, descending=True, stable=True)
    order = order[torch.argsort(voxel[order], stable=True)]
    counts = torch.bincount(voxel, minlength=n)
    rank = torch.arange(len(voxel), device=voxel.device) - (counts.cumsum(0) - counts)[voxel[order]]
    width = max(int(counts.max()), 1) if n else 1
    table = directions.new_zeros(n, width, 3)
    heights = amplitudes.new_zeros(n, width)
    table[voxel[order], rank] = directions[order]
    heights[voxel[order], rank] = amplitudes[order]
    return table, heights


def _select(
    directions: torch.Tensor, amplitudes: torch.Tensor, *, max_peaks: int, relative: float, separation: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keep, from the largest down, peaks above the threshold and apart from every kept one; return the first few."""
    kept = (amplitudes > 0) & (amplitudes >= relative * amplitudes[:, :1])
    is_near = torch.einsum("nic,njc->nij", directions, directions).abs() > math.cos(math.radians(separation))
    for k in range(1, amplitudes.shape[1]):
        kept[:, k] &= ~(is_near[:, k, :k] & kept[:, :k]).any(1)
    first = torch.argsort(~kept, dim=1, stable=True)[:, :max_peaks]
    is_kept = kept.gather(1, first)
    directions = directions.gather(1, first[..., None].expand(-1, -1, 3))
    directions = torch.where(directions[..., 2:] < 0, -directions, directions)
    directions = torch.where(is_kept[..., None], directions, 0.0)
    amplitudes = torch.where(is_kept, amplitudes.gather(1, first), 0.0)
    padding = max_peaks - first.shape[1]
    return (
        torch.nn.functional.pad(directions, (0, 0, 0, padding)),
        torch.nn.functional.pad(amplitudes, (0, padding)),
    )
