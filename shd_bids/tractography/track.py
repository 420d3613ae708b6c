"""Streamlines from fODFs in world axes, a batch at a time.

The compiled tracker (folder ``kernel``) interpolates the harmonics of the fODFs between voxels and evaluates them exactly, in a
frame whose pole is the direction of the streamline. Probabilistic tracking draws arcs of a circle in proportion to the product
of the amplitudes at their quarters (second-order integration: Tournier, Calamante and Connelly, ISMRM 2010); deterministic
tracking follows the maximum of a lobe, found by Newton's method from the last direction (Tournier, Calamante and Connelly
2012), by the midpoint rule.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import nibabel as nib
import numpy as np

from shd_bids.boxes import chunks
from shd_bids.errors import InputError
from shd_bids.options import TrackingOptions
from shd_bids.tractography.field import FibreField
from shd_bids.tractography.tracker import ENDS, Batch, Rules, Tracker

_USUAL_LEAST = 20.0  # mm, of a streamline in a human brain
_LEAST_SHARE = 1 / 6  # of the diameter of a smaller brain; 20 mm at 0.9 litres
_STEP_SHARE = 0.5  # of the smallest voxel edge
_MAX_ANGLE = {"prob": 20.0, "det": 60.0}  # degrees; a cone is even, a lobe turns where noise moves its maximum
_BATCH = 20_000  # seeds; bounds what is held of their streamlines
_LEAST_BATCH = 500
_REWINDS = 20  # of each side of a streamline that must not end where it does


@dataclass(frozen=True)
class TrackingFacts:
    """How the streamlines came about.

    Attributes
    ----------
    n_seeds : int
        Seeds tracked, to the end of the batch in which ``select`` was reached.
    n_generated : int
        Streamlines of at least one step from them.
    n_accepted : int
        Streamlines kept.
    n_other_length : int
        Streamlines removed because they are shorter or longer than allowed.
    n_refused : dict
        Streamlines removed for the place of an end, by what that is.
    n_ends : dict
        Ends of the streamlines kept, by why they are ends.
    step_size : float
        Step in mm.
    max_angle : float
        Largest turn in one step, degrees.
    min_length : float
        Length in mm below which streamlines were dropped.
    cutoff : float
        Amplitude below which tracking stopped, in the units of the fODF.
    uses_tissue : bool
        Whether anatomy ended streamlines.
    """

    n_seeds: int
    n_generated: int
    n_accepted: int
    n_other_length: int
    n_refused: dict[str, int]
    n_ends: dict[str, int]
    step_size: float
    max_angle: float
    min_length: float
    cutoff: float
    uses_tissue: bool


def track(
    field: FibreField,
    options: TrackingOptions,
    keep: Callable[[Batch], None],
    *,
    random_seed: int = 0,
    n_threads: int = 1,
    progress: Callable[[str, float], None] | None = None,
) -> TrackingFacts:
    """Track streamlines from seeds drawn uniformly in white matter.

    A seed starts in a direction drawn in proportion to amplitude and is tracked both ways. With anatomy, a streamline ends
    in cortical grey matter, in deep grey matter or where it leaves the mask; one that leaves deep grey matter again is cut
    where the amplitude is lowest there. One that loses its direction in white matter or comes into fluid goes back and tries
    again, and is refused if that does not help (after Smith et al. 2012).

    Parameters
    ----------
    field : FibreField
    options : TrackingOptions
    keep : callable
        Called with each batch of streamlines, in the order of the seeds.
    random_seed : int
        Fixes seeds, start directions and random walks; results do not depend on ``n_threads``.
    n_threads : int
    progress : callable, optional
        Called with a text and the share done.

    Raises
    ------
    InputError
        If no voxel can be seeded or the fODFs are nowhere above the cutoff.
    """
    rules = _rules(field, options, random_seed)
    tracker = Tracker(field, rules, field.anatomy if options.act == "auto" else None)
    voxels = field.seeded_voxels(at_border=options.seed_region == "border")
    order = np.random.default_rng(random_seed).permutation(len(voxels) * options.seeds) // options.seeds
    batches: list[Batch] = []
    n_accepted = n_seeds = 0
    for part in chunks(len(order), _batch_size(options.select)):
        places = _places(voxels[order[part]], field.affine, np.random.default_rng([random_seed, part.start]))
        batch = tracker.track(places, first=part.start, threads=n_threads)
        batch = batch.head(options.select - n_accepted) if options.select else batch
        keep(batch)
        batches.append(batch.without_points())
        n_accepted, n_seeds = n_accepted + len(batch), part.start + len(places)
        if progress:
            progress("tracking", n_accepted / options.select if options.select else n_seeds / len(order))
        if n_accepted == options.select > 0:
            break
    return _facts(batches, n_seeds, rules, uses_tissue=options.act == "auto")


def _rules(field: FibreField, options: TrackingOptions, random_seed: int) -> Rules:
    """Return the rules of the kernel.

    Raises
    ------
    InputError
        If no amplitude reaches the cutoff.
    """
    cutoff = options.tracking_cutoff
    if cutoff is None:
        cutoff = field.usual_cutoff
    if not cutoff > 0:
        raise InputError("the fODFs are zero in white matter: there is nothing to track; look at the fODFs")
    smallest = float(nib.affines.voxel_sizes(field.affine).min())
    return Rules(
        is_probabilistic=options.tracking_algorithm == "prob",
        step=smallest * _STEP_SHARE if options.step_size is None else options.step_size,
        max_angle=math.radians(_largest_turn(options)),
        min_length=_least_length(field, options),
        max_length=options.max_length,
        cutoff=cutoff,
        rewinds=_REWINDS,
        seed=random_seed,
    )


def _largest_turn(options: TrackingOptions) -> float:
    """Return the largest turn in one step, degrees."""
    return _MAX_ANGLE[options.tracking_algorithm] if options.max_angle is None else options.max_angle


def _least_length(field: FibreField, options: TrackingOptions) -> float:
    """Return the length in mm that a streamline must have: as given, else by the ball that is as large as the mask."""
    if options.min_length is not None:
        return options.min_length
    volume = float(np.count_nonzero(field.mask) * abs(np.linalg.det(field.affine[:3, :3])))
    diameter = (6 / math.pi * volume) ** (1 / 3)
    return min(_USUAL_LEAST, _LEAST_SHARE * diameter, options.max_length / 2)


def _batch_size(wanted: int) -> int:
    """Return the seeds of a batch, not many more than the streamlines ``wanted`` need, as a batch is tracked to its end."""
    return min(_BATCH, max(wanted // 4, _LEAST_BATCH)) if wanted else _BATCH


def _places(voxels: np.ndarray, affine: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a place in world mm within each voxel, (s, 3)."""
    return nib.affines.apply_affine(affine, voxels + rng.uniform(-0.5, 0.5, voxels.shape))


def _facts(batches: list[Batch], n_seeds: int, rules: Rules, *, uses_tissue: bool) -> TrackingFacts:
    ends = sum((np.bincount(batch.ends.ravel(), minlength=len(ENDS)) for batch in batches), np.zeros(len(ENDS), int))
    refused = sum((batch.refused for batch in batches), np.zeros(len(ENDS), int))
    return TrackingFacts(
        n_seeds=n_seeds,
        n_generated=sum(batch.n_started for batch in batches),
        n_accepted=sum(map(len, batches)),
        n_other_length=sum(batch.n_other_length for batch in batches),
        n_refused={name: int(count) for name, count in zip(ENDS, refused, strict=True) if count},
        n_ends={name: int(count) for name, count in zip(ENDS, ends, strict=True) if count},
        step_size=float(rules.step),
        max_angle=round(math.degrees(rules.max_angle), 3),
        min_length=round(float(rules.min_length), 3),
        cutoff=float(rules.cutoff),
        uses_tissue=uses_tissue,
    )
