"""Streamlines from fODFs in world axes, by dipy's compiled trackers.

dipy steps along voxel axes (in mm) through a table of amplitudes sampled on directions. The one border between the two
frames is `_voxel_frame`: the table of the tracker's direction v holds the fODF at the world direction R v, with R the
columns of the affine at unit length. No coefficient is rotated, and streamlines return in world mm (RAS+).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import nibabel as nib
import numpy as np
from dipy.core.sphere import Sphere
from dipy.direction.pmf import SimplePmfGen
from dipy.tracking.stopping_criterion import BinaryStoppingCriterion
from dipy.tracking.tracker_parameters import generate_tracking_parameters
from dipy.tracking.tractogen import generate_tractogram
from nibabel.streamlines import ArraySequence

from shd_bids.boxes import chunks
from shd_bids.errors import InputError
from shd_bids.peaks.measures import largest_amplitude
from shd_bids.peaks.search import find_peaks
from shd_bids.sphere.harmonics import l_max_of, sh_basis
from shd_bids.sphere.spiral import spiral

ALGORITHMS = ("det", "prob", "ptt")

REFERENCE_SHARE = 0.1
"""Default stop amplitude as a share of the median largest amplitude in the seed mask (MRtrix3: 0.1 of about 1)."""

_TABLE_BYTES = 1.6e9  # amplitudes of the bounding box, float64 because dipy reads no other
_DIRECTIONS = (250, 750)  # 9 to 5 degrees apart, over a hemisphere
_PTT_DIRECTIONS = 250  # PTT looks for the nearest direction hundreds of times a step, and steps along a smooth curve
_BUFFER_BYTES = 2e8  # dipy reserves the longest possible streamline for every seed of a batch
_VOXELS_PER_CHUNK = 16384


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
    *,
    seed_mask: np.ndarray,
    algorithm: str = "prob",
    seeds_per_voxel: int = 2,
    select: int | None = None,
    step_size: float | None = None,
    max_angle: float = 45.0,
    min_length: float = 20.0,
    max_length: float = 250.0,
    stop_amplitude: float | None = None,
    random_seed: int = 0,
    nprocs: int = 1,
    progress: Callable[[str, float], None] | None = None,
) -> Tractogram:
    """Track streamlines through fODFs from seeds drawn uniformly in a mask.

    Each seed starts along one peak of its voxel, drawn in proportion to amplitude. A streamline goes on while its voxel
    lies in the mask and some direction within ``max_angle`` has an interpolated amplitude; amplitudes below
    ``stop_amplitude`` count as none.

    Parameters
    ----------
    coefficients : (n, C) array
        Even real SH coefficients in world axes (MRtrix3 basis), in C order of the mask.
    mask : (x, y, z) bool array
        Voxels of the rows of ``coefficients``; streamlines end where they leave it.
    affine : (4, 4) array
        Voxel to world mm (RAS+).
    seed_mask : (x, y, z) bool array
        Voxels that are seeded, where also in ``mask``.
    algorithm : {"det", "prob", "ptt"}
        Deterministic, probabilistic, or parallel transport tractography (Aydogan and Shi 2021).
    seeds_per_voxel : int
        Seeds in each voxel of the seed mask, at uniform random places.
    select : int, optional
        Stop when this many streamlines are accepted (the seeds come in random order); 0 or None uses every seed.
    step_size : float, optional
        mm; by default half of the smallest voxel edge, for "ptt" a fifth.
    max_angle : float
        Largest turn in one step, degrees.
    min_length, max_length : float
        Limits of accepted lengths, mm.
    stop_amplitude : float, optional
        In the units of the fODF; by default a tenth of the median largest amplitude in the seed mask.
    random_seed : int
        Fixes seeds, start directions and random walks; results do not depend on ``nprocs``.
    nprocs : int
        Threads.
    progress : callable, optional
        Called with a text and the share done.

    Returns
    -------
    Tractogram

    Raises
    ------
    ValueError
        If shapes disagree or an option is out of range.
    InputError
        If no voxel can be seeded or the fODFs are nowhere above the stop amplitude.
    """
    mask, affine = np.asarray(mask, dtype=bool), np.asarray(affine, dtype=np.float64)
    seed_mask = np.asarray(seed_mask, dtype=bool)
    _check_options(coefficients, mask, seed_mask, algorithm, seeds_per_voxel, max_angle, min_length, max_length)
    seed_mask = seed_mask & mask
    if not seed_mask.any():
        raise InputError(
            "the seed mask has no voxel inside the brain mask; lower the white-matter share that is seeded"
        )
    voxel_size, _ = _voxel_frame(affine)
    if step_size is None:
        step_size = float(voxel_size.min()) * (0.2 if algorithm == "ptt" else 0.5)
    seeded = seed_mask[mask]
    if stop_amplitude is None:
        stop_amplitude = REFERENCE_SHARE * reference_amplitude(coefficients[seeded])

    rng = np.random.default_rng(random_seed)
    most_directions = _PTT_DIRECTIONS if algorithm == "ptt" else _DIRECTIONS[1]
    space = _AmplitudeField(coefficients, mask, affine, stop_amplitude, most_directions)
    places, directions = _seeds(coefficients[seeded], seed_mask, affine, seeds_per_voxel, stop_amplitude, rng)
    parameters = generate_tracking_parameters(
        algorithm,
        min_len=0,
        max_len=math.ceil(max_length + 2 * step_size),
        step_size=step_size,
        voxel_size=voxel_size,
        probe_length=3 * step_size,
        probe_quality=5,
        random_seed=int(rng.integers(2**19, 2**20)),  # times a place in the box this stays below 2^32
        **_limits(algorithm, max_angle, stop_amplitude, voxel_size),
    )
    streamlines, n_seeds, n_generated, n_out_of_box = ArraySequence(), 0, 0, 0
    for batch in _batches(len(places), max_length / step_size, select or len(places)):
        raw = list(
            generate_tractogram(
                places[batch],
                directions[batch],
                space.stopping,
                parameters,
                space.pmf,
                space.affine,
                nbr_threads=nprocs,
            )
        )
        n_seeds += len(places[batch])
        n_generated += len(places[batch]) - sum(len(points) < 2 for points in raw)  # dipy withholds those too long
        fitting = [points for points in raw if min_length <= _length(points) <= max_length]
        new = _inside_image(fitting, affine, mask.shape)
        n_out_of_box += len(fitting) - len(new)
        streamlines.extend(new[: select - len(streamlines)] if select else new)
        if progress:
            progress("tracking", len(streamlines) / select if select else n_seeds / len(places))
        if select and len(streamlines) >= select:
            break
    return Tractogram(
        streamlines=streamlines,
        n_seeds=n_seeds,
        n_generated=n_generated,
        n_accepted=len(streamlines),
        n_out_of_box=n_out_of_box,
        step_size=step_size,
        stop_amplitude=float(stop_amplitude),
    )


def reference_amplitude(coefficients: np.ndarray) -> float:
    """Return the median over voxels of the largest fODF amplitude, of at most 5000 of the (n, C) coefficients."""
    rows = np.linspace(0, len(coefficients) - 1, min(5000, len(coefficients))).astype(int)
    return float(np.median(largest_amplitude(coefficients[rows])))


class _AmplitudeField:
    """What dipy tracks in: amplitudes on a box around the mask, where to stop, and the affine of the box."""

    def __init__(
        self,
        coefficients: np.ndarray,
        mask: np.ndarray,
        affine: np.ndarray,
        stop_amplitude: float,
        most_directions: int,
    ) -> None:
        corners = np.argwhere(mask)
        low = corners.min(axis=0) - 1  # one voxel more all around: what lies beyond the image then reads as zero
        shape = corners.max(axis=0) + 2 - low
        n_directions = int(np.clip(_TABLE_BYTES / (8 * shape.prod()), _DIRECTIONS[0], most_directions))
        vertices = spiral(n_directions)
        basis = sh_basis(vertices @ _voxel_frame(affine)[1].T, l_max_of(coefficients.shape[1])).astype(np.float32)
        table = np.zeros((*shape, n_directions))
        rows = np.ravel_multi_index(tuple((corners - low).T), tuple(shape))
        flat = table.reshape(-1, n_directions)
        for part in chunks(len(rows), _VOXELS_PER_CHUNK):
            amplitudes = np.asarray(coefficients[part], dtype=np.float32) @ basis.T
            flat[rows[part]] = np.where(amplitudes >= stop_amplitude, np.maximum(amplitudes, 0), 0)
        is_open = flat.any(axis=1).reshape(tuple(shape))
        if not is_open.any():
            raise InputError(
                f"no fODF amplitude reaches the stop amplitude {stop_amplitude:g}; look at the fODF or lower it"
            )
        self.affine = affine @ nib.affines.from_matvec(np.eye(3), low)
        self.pmf = SimplePmfGen(table, Sphere(xyz=vertices))
        self.stopping = BinaryStoppingCriterion(is_open)


def _voxel_frame(affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return voxel sizes (3,) in mm and R (3, 3), which turns a direction along voxel axes into a world direction."""
    sizes = nib.affines.voxel_sizes(affine)
    return sizes, affine[:3, :3] / sizes


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
    coefficients: np.ndarray,
    seed_mask: np.ndarray,
    affine: np.ndarray,
    seeds_per_voxel: int,
    stop_amplitude: float,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Return seed places in world mm and start directions along voxel axes, each (s, 3), in random order.

    A voxel without a peak gives seeds without direction, which dipy leaves where they are.
    """
    peaks = find_peaks(coefficients, absolute_threshold=stop_amplitude)
    voxel = rng.permutation(np.repeat(np.arange(len(coefficients)), seeds_per_voxel))
    places = np.argwhere(seed_mask)[voxel] + rng.uniform(-0.5, 0.5, (len(voxel), 3))
    cumulative = peaks.amplitudes.cumsum(axis=1)[voxel]
    choice = (cumulative <= rng.uniform(0, cumulative[:, -1:])).sum(axis=1).clip(max=cumulative.shape[1] - 1)
    world = peaks.directions[voxel, choice].astype(np.float64)
    along_axes = world @ np.linalg.inv(_voxel_frame(affine)[1]).T
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


def _check_options(
    coefficients: np.ndarray,
    mask: np.ndarray,
    seed_mask: np.ndarray,
    algorithm: str,
    seeds_per_voxel: int,
    max_angle: float,
    min_length: float,
    max_length: float,
) -> None:
    """Raise ValueError naming every option that is out of range."""
    problems = []
    if mask.ndim != 3 or seed_mask.shape != mask.shape or len(coefficients) != mask.sum():
        problems.append(
            f"found mask {mask.shape} with {mask.sum()} voxels, seed mask {seed_mask.shape}, {len(coefficients)} "
            "rows of coefficients; expected one grid and one row a mask voxel"
        )
    if algorithm not in ALGORITHMS:
        problems.append(f"found algorithm {algorithm!r}, expected one of {', '.join(ALGORITHMS)}")
    if seeds_per_voxel < 1 or not 0 < max_angle <= 90 or not 0 <= min_length < max_length:
        problems.append(
            f"found seeds_per_voxel {seeds_per_voxel}, max_angle {max_angle}, lengths {min_length} to {max_length}; "
            "expected at least 1, degrees in (0, 90], and 0 <= min_length < max_length"
        )
    if problems:
        raise ValueError("; ".join(problems))
