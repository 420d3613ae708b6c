"""Streamlines from fODFs in world axes, by dipy's compiled trackers (`shd_bids.tractography.field` turns the frames).

Streamlines return in world mm (RAS+).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import nibabel as nib
import numpy as np
from dipy.tracking.tracker_parameters import TrackerParameters, generate_tracking_parameters
from dipy.tracking.tractogen import generate_tractogram
from nibabel.streamlines import ArraySequence

from shd_bids.boxes import chunks
from shd_bids.errors import InputError
from shd_bids.options import TrackingOptions
from shd_bids.peaks.measures import largest_peak
from shd_bids.peaks.search import Peaks, find_peaks
from shd_bids.tractography.field import AmplitudeField, voxel_frame

REFERENCE_SHARE = 0.1
"""Stop amplitude as a share of the median largest amplitude in the seed mask (MRtrix3: 0.1 of about 1)."""

_BUFFER_BYTES = 2e8  # dipy reserves the longest possible streamline for every seed of a batch
_STEP_SHARE = {"det": 0.5, "prob": 0.5, "ptt": 0.2}  # of the smallest voxel edge


@dataclass(frozen=True, eq=False)
class Tractogram:
    """Accepted streamlines and how they came about.

    Attributes
    ----------
    streamlines : ArraySequence
        Points in world mm (RAS+), float32.
    n_seeds : int
        Seeds tracked, to the end of the batch in which ``select`` was reached.
    n_generated : int
        Streamlines that took at least one step from them.
    n_accepted : int
        Streamlines kept.
    n_out_of_box : int
        Streamlines removed because a point lay outside the image.
    step_size : float
        Step in mm.
    stop_amplitude : float
        Amplitude below which tracking stopped, in the units of the fODF.
    """

    streamlines: ArraySequence = field(repr=False)
    n_seeds: int
    n_generated: int
    n_accepted: int
    n_out_of_box: int
    step_size: float
    stop_amplitude: float


def track(
    coefficients: np.ndarray,
    mask: np.ndarray,
    affine: np.ndarray,
    options: TrackingOptions,
    *,
    seed_mask: np.ndarray,
    random_seed: int = 0,
    nprocs: int = 1,
    progress: Callable[[str, float], None] | None = None,
) -> Tractogram:
    """Track streamlines through fODFs from seeds drawn uniformly in a mask.

    Each seed starts along one peak of its voxel, drawn in proportion to amplitude. A streamline goes on while its voxel
    lies in the mask and some direction within ``max_angle`` has an interpolated amplitude; amplitudes below a tenth of
    the median largest amplitude in the seed mask count as none. It is kept if its length is allowed and no point lies
    outside the image.

    Parameters
    ----------
    coefficients : (n, C) array
        Even real SH coefficients in world axes (MRtrix3 basis), in C order of the mask.
    mask : (x, y, z) bool array
        Voxels of the rows of ``coefficients``; streamlines end where they leave it.
    affine : (4, 4) array
        Voxel to world mm (RAS+).
    options : TrackingOptions
    seed_mask : (x, y, z) bool array
        Voxels that are seeded, where also in ``mask``.
    random_seed : int
        Fixes seeds, start directions and random walks; results do not depend on ``nprocs``.
    nprocs : int
        Threads.
    progress : callable, optional
        Called with a text and the share done.

    Raises
    ------
    ValueError
        If shapes disagree.
    InputError
        If no voxel can be seeded or the fODFs are nowhere above the stop amplitude.
    """
    mask, affine = np.asarray(mask, dtype=bool), np.asarray(affine, dtype=np.float64)
    seed_mask = np.asarray(seed_mask, dtype=bool)
    _check_grids(coefficients, mask, seed_mask)
    seeded = seed_mask[mask]
    stop_amplitude = REFERENCE_SHARE * reference_amplitude(coefficients[seeded])
    rng = np.random.default_rng(random_seed)
    space = AmplitudeField(
        coefficients, mask, affine, stop_amplitude=stop_amplitude, algorithm=options.tracking_algorithm
    )
    peaks = find_peaks(coefficients[seeded], absolute_threshold=stop_amplitude)
    places, directions = _seeds(peaks, np.argwhere(seed_mask & mask), affine, options.seeds, rng)
    step_size, parameters = _parameters(options, stop_amplitude, voxel_frame(affine)[0], rng)
    found = Tractogram(ArraySequence(), 0, 0, 0, 0, step_size=step_size, stop_amplitude=float(stop_amplitude))
    for batch in _batches(len(places), options.max_length / step_size, options.select or len(places)):
        raw = generate_tractogram(
            places[batch], directions[batch], space.stopping, parameters, space.pmf, space.affine, nbr_threads=nprocs
        )
        found = _extended(found, list(raw), len(places[batch]), options, affine, mask.shape)
        if progress:
            progress("tracking", found.n_accepted / options.select if options.select else found.n_seeds / len(places))
        if found.n_accepted == options.select > 0:
            break
    return found


def reference_amplitude(coefficients: np.ndarray) -> float:
    """Return the median over voxels of the largest fODF amplitude, of at most 5000 of the (n, C) coefficients."""
    rows = np.linspace(0, len(coefficients) - 1, min(5000, len(coefficients))).astype(int)
    return float(np.median(largest_peak(coefficients[rows]).heights))


def _parameters(
    options: TrackingOptions, stop_amplitude: float, voxel_size: np.ndarray, rng: np.random.Generator
) -> tuple[float, TrackerParameters]:
    """Return the step size in mm and what dipy is to do; lengths are checked afterwards."""
    step_size = options.step_size
    if step_size is None:
        step_size = float(voxel_size.min()) * _STEP_SHARE[options.tracking_algorithm]
    return step_size, generate_tracking_parameters(
        options.tracking_algorithm,
        min_len=0,
        max_len=math.ceil(options.max_length + 2 * step_size),
        step_size=step_size,
        voxel_size=voxel_size,
        probe_length=3 * step_size,
        probe_quality=5,
        random_seed=int(rng.integers(2**19, 2**20)),  # times a place in the box this stays below 2^32
        **_limits(options.tracking_algorithm, options.max_angle, stop_amplitude, voxel_size),
    )


def _limits(algorithm: str, max_angle: float, stop_amplitude: float, voxel_size: np.ndarray) -> dict[str, float]:
    """Return the limits as dipy reads them.

    Its PTT takes an amplitude as the threshold where the other trackers take a share of the largest. And dipy 1.12 finds the
    largest curvature of PTT in voxels and applies it in mm: turns came out larger by the voxel size (measured: 20 degrees for
    8 at 2.5 mm).
    """
    if algorithm != "ptt":
        return {"max_angle": max_angle, "pmf_threshold": 0.1}
    sine = math.sin(math.radians(max_angle) / 2) / float(voxel_size.mean())
    return {"max_angle": math.degrees(2 * math.asin(min(1.0, sine))), "pmf_threshold": stop_amplitude}


def _seeds(
    peaks: Peaks, voxels: np.ndarray, affine: np.ndarray, seeds_per_voxel: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return seed places in world mm and start directions along voxel axes, each (s, 3), in random order.

    A voxel without a peak gives seeds without direction, which dipy leaves where they are.
    """
    voxel = rng.permutation(np.repeat(np.arange(len(voxels)), seeds_per_voxel))
    places = voxels[voxel] + rng.uniform(-0.5, 0.5, (len(voxel), 3))
    cumulative = peaks.amplitudes.cumsum(axis=1)[voxel]
    choice = (cumulative <= rng.uniform(0, cumulative[:, -1:])).sum(axis=1).clip(max=cumulative.shape[1] - 1)
    world = peaks.directions[voxel, choice].astype(np.float64)
    along_axes = world @ np.linalg.inv(voxel_frame(affine)[1]).T
    length = np.linalg.norm(along_axes, axis=1, keepdims=True)
    along_axes = np.where(length > 0, along_axes / np.where(length > 0, length, 1), 0)
    return nib.affines.apply_affine(affine, places), along_axes


def _batches(n_seeds: int, n_points: float, wanted: int) -> list[slice]:
    """Cut the seeds into batches.

    A batch is as large as its buffer of twice ``n_points`` points a seed allows, and not much larger than the
    streamlines ``wanted`` need, because a batch is tracked to its end.
    """
    largest = int(np.clip(_BUFFER_BYTES / (2 * 3 * 8 * n_points), 100, 10_000))
    size = min(largest, max(wanted // 4, 100))
    return chunks(n_seeds, size)


def _extended(
    found: Tractogram,
    raw: list[np.ndarray],
    n_seeds: int,
    options: TrackingOptions,
    affine: np.ndarray,
    shape: tuple[int, int, int],
) -> Tractogram:
    """Add the streamlines of one batch that may be kept, up to the number wanted."""
    fitting = [points for points in raw if options.min_length <= _length(points) <= options.max_length]
    new = _inside_image(fitting, affine, shape)
    found.streamlines.extend(new[: options.select - found.n_accepted] if options.select else new)
    return replace(
        found,
        n_seeds=found.n_seeds + n_seeds,
        n_generated=found.n_generated + n_seeds - sum(len(points) < 2 for points in raw),  # dipy withholds the too long
        n_accepted=len(found.streamlines),
        n_out_of_box=found.n_out_of_box + len(fitting) - len(new),
    )


def _length(points: np.ndarray) -> float:
    """Return the length in mm of one streamline; its steps need not be equal (dipy's PTT leaves its seed by two)."""
    return float(np.sqrt((np.diff(points, axis=0) ** 2).sum(axis=1)).sum())


def _inside_image(streamlines: list[np.ndarray], affine: np.ndarray, shape: tuple[int, int, int]) -> list[np.ndarray]:
    """Return, in float32, the streamlines all of whose points lie inside the image, faces included."""
    if not streamlines:
        return []
    points = nib.affines.apply_affine(np.linalg.inv(affine), np.concatenate(streamlines))
    is_in = ((points >= -0.5) & (points <= np.asarray(shape) - 0.5)).all(axis=1)
    starts = np.cumsum([0] + [len(points) for points in streamlines[:-1]])
    whole = np.logical_and.reduceat(is_in, starts)
    return [points.astype(np.float32) for points, is_whole in zip(streamlines, whole, strict=True) if is_whole]


def _check_grids(coefficients: np.ndarray, mask: np.ndarray, seed_mask: np.ndarray) -> None:
    if mask.ndim != 3 or seed_mask.shape != mask.shape or len(coefficients) != mask.sum():
        raise ValueError(
            f"found mask {mask.shape} with {mask.sum()} voxels, seed mask {seed_mask.shape}, {len(coefficients)} "
            "rows of coefficients; expected one grid and one row a mask voxel"
        )
    if not (seed_mask & mask).any():
        raise InputError(
            "the seed mask has no voxel inside the brain mask; lower the white-matter share that is seeded"
        )
