"""Streamlines and their density."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nipype.interfaces.base import File, traits

from shd_bids.interfaces.base import (
    RuntimeInputSpec,
    StageInputSpec,
    StageInterface,
    StageOutputSpec,
    log_progress,
    qc_column,
)
from shd_bids.options import Runtime, TrackingOptions

if TYPE_CHECKING:
    import numpy as np
    from nibabel.streamlines import ArraySequence

    from shd_bids.tractography.anatomy import TissueImages
    from shd_bids.tractography.field import FibreField
    from shd_bids.tractography.track import TrackingFacts
    from shd_bids.tractography.tracker import Batch

__all__ = ["ConvertTractogram", "TrackStreamlines", "anatomy_inputs", "save_density"]

logger = logging.getLogger(__name__)

ALGORITHMS = {
    "det": "deterministic: the nearest maximum of the fODF, by the midpoint rule (after Tournier, Calamante and Connelly 2012)",
    "prob": "probabilistic: arcs drawn in proportion to the fODF along them (after Tournier, Calamante and Connelly 2010)",
}
PREVIEW_STREAMLINES = 4000
_TRACKING = 0.95  # share of the time; the rest writes
MIN_STREAMLINES = 100  # fewer mean that something is wrong, not that there are few tracts


@dataclass(frozen=True)
class TrackingFiles:
    """What streamlines are tracked through.

    Attributes
    ----------
    fod_file, mask_file : Path
        ``fod.npy`` of `fit_image` and its mask.
    vfwm_file, vfgm_file, vfcsf_file : Path
        Signal fractions, which decide where to seed and, with anatomy, where to end.
    anatomy_files : list of Path, optional
        Tissues, which then decide in place of the fractions.
    """

    fod_file: Path
    mask_file: Path
    vfwm_file: Path
    vfgm_file: Path
    vfcsf_file: Path
    anatomy_files: Sequence[Path] | None = None


def anatomy_inputs(images: "TissueImages | None") -> dict[str, Any]:
    """Return the inputs that hand tissue images to `TrackStreamlines`."""
    if images is None:
        return {}
    return {"anatomy_files": list(map(str, images.files)), "anatomy": images.to_dict()}


def track_image(
    *,
    files: TrackingFiles,
    anatomy: Mapping[str, Any] | None,
    options: TrackingOptions,
    runtime: Runtime,
    n_threads: int,
    label: str,
    out_dir: Path,
) -> dict[str, Any]:
    """Track streamlines from white matter and write them with their density.

    Parameters
    ----------
    files : TrackingFiles
    anatomy : mapping, optional
        What the tissue images hold, as `TissueImages.to_dict` tells it.
    options : TrackingOptions
    runtime : Runtime
        Its seed is used.
    n_threads, label : int and str
        Threads, on which results do not depend; name of the stage in progress lines.
    out_dir : Path
        Gets ``tractogram.trx``, ``tdi.nii.gz`` and ``preview.npz`` for the report.
    """
    from shd_bids.tractography.files import read_trx
    from shd_bids.tractography.track import track

    images = _tissue_images(files, anatomy)
    field = _read(files, images)
    container = out_dir / "tractogram.trx"
    progress = log_progress(label, until=_TRACKING)
    tracker = partial(track, field, options, random_seed=runtime.seed, n_threads=n_threads, progress=progress)
    facts, density, lengths = _write_streamlines(container, field, tracker)
    _tell_least_length(options, facts, label)
    about = _bep046(facts, options, seed=runtime.seed) | _anatomy_block(field, images, options)
    save_density(out_dir / "tdi.nii.gz", density, files.mask_file)
    _save_preview(out_dir / "preview.npz", read_trx(container))
    return {
        "tracks_file": str(container),
        "tdi_file": str(out_dir / "tdi.nii.gz"),
        "preview_file": str(out_dir / "preview.npz"),
        "facts": _told(facts, about, lengths, coverage=float((density[field.mask] > 0).mean())),
    }


def _write_streamlines(
    container: Path, field: "FibreField", tracker: Callable[[Callable[["Batch"], None]], "TrackingFacts"]
) -> tuple["TrackingFacts", "np.ndarray", "np.ndarray"]:
    """Write the streamlines as they come; return the facts, their density on the grid, and their lengths in mm."""
    import numpy as np

    from shd_bids.tractography.density import track_density
    from shd_bids.tractography.files import trx_writer

    grid = (field.affine, field.mask.shape)
    density = np.zeros(field.mask.shape)
    lengths: list[np.ndarray] = []
    with trx_writer(container, *grid) as writer:

        def keep(batch: "Batch") -> None:
            length = batch.arc_lengths
            writer.add(batch.points, batch.lengths, {"length": length, "ends": batch.ends})
            np.add(density, track_density(batch.streamlines, *grid), out=density)
            lengths.append(length)

        facts = tracker(keep)
    return facts, density, np.concatenate(lengths)


def convert_tractogram(
    *,
    tracks_file: Path,
    streamline_weights_file: Path | None,
    mask_file: Path,
    formats: Sequence[str],
    out_dir: Path,
) -> dict[str, Any]:
    """Write streamlines with their weights in every format, the weights beside a TCK, which has no place for them.

    Parameters
    ----------
    tracks_file : Path
        TRX of `track_image`.
    streamline_weights_file : Path, optional
        Array of `weigh_image`.
    mask_file : Path
        Its grid is that of the header of a TRK.
    formats : sequence of str
        ``trx``, ``tck``, ``trk``.
    out_dir : Path
        Gets the files, and with a TCK ``weights.txt`` in MRtrix3's form.
    """
    import numpy as np

    from shd_bids.images import load_volume
    from shd_bids.tractography.files import add_to_trx, copy_trx

    weights = None if streamline_weights_file is None else np.load(streamline_weights_file)
    paths = {form: out_dir / f"tractogram.{form}" for form in ("trx", *formats)}
    add_to_trx(tracks_file, paths["trx"], {} if weights is None else {"weight": weights})
    mask = load_volume(mask_file)
    for form in set(formats) - {"trx"}:
        copy_trx(paths["trx"], paths[form], mask.affine, mask.shape)
    if "trx" not in formats:
        paths["trx"].unlink()
    outputs: dict[str, Any] = {"tractogram_files": [str(paths[form]) for form in formats]}
    if "tck" in formats and weights is not None:
        outputs["weights_file"] = str(out_dir / "weights.txt")
        np.savetxt(outputs["weights_file"], weights, fmt="%.6g", header="weight")
    return outputs | {"facts": {"sidecar": {}, "qc": {}}}


def _tissue_images(files: TrackingFiles, content: Mapping[str, Any] | None) -> "TissueImages | None":
    from shd_bids.tractography.anatomy import TissueImages

    return TissueImages.from_dict({**content, "files": files.anatomy_files}) if files.anatomy_files else None


def _read(files: TrackingFiles, images: "TissueImages | None") -> "FibreField":
    import numpy as np

    from shd_bids.images import gather, load_mask, load_volume
    from shd_bids.tractography.anatomy import read_anatomy
    from shd_bids.tractography.field import FibreField

    reference = load_volume(files.mask_file)
    mask = load_mask(files.mask_file, reference)
    fractions = [gather(load_volume(path).data, mask) for path in (files.vfwm_file, files.vfgm_file, files.vfcsf_file)]
    coefficients = np.load(files.fod_file, mmap_mode="r")
    given = read_anatomy(images) if images else None
    return FibreField(coefficients, np.stack(fractions, axis=1), mask, reference.affine, given)


def _notes(facts: "TrackingFacts") -> list[str]:
    """Return what the user should look at."""
    if facts.n_accepted >= MIN_STREAMLINES:
        return []
    return [f"only {facts.n_accepted} streamlines from {facts.n_seeds} seeds: look at the fODFs first"]


def _anatomy_block(field: "FibreField", images: "TissueImages | None", options: TrackingOptions) -> dict[str, Any]:
    """Return the sidecar block on what ended streamlines."""
    if options.act == "off":
        return {"Anatomy": {"Type": "none"}}
    if images is not None:
        return {"Anatomy": {"Type": images.kind, "Files": [path.name for path in images.files]}}
    grey = "fitted" if field.has_grey else "even part of the fODF"
    return {"Anatomy": {"Type": "signal fractions of the tissues", "GreyMatter": grey}}


def _bep046(facts: "TrackingFacts", options: TrackingOptions, *, seed: int) -> dict[str, Any]:
    """Return the sidecar blocks of BEP046."""
    from shd_bids.tractography.field import SEED_WM_FRACTION

    name, lengths = options.tracking_algorithm, {"MaximumLength": options.max_length}
    source = "white matter" if options.seed_region == "white" else "white matter beside grey matter"
    return {
        "Name": "wholebrain",
        "StreamlineSeeding": {
            "Sources": [{"Type": "RandomPerElement", "Source": source, "SeedsPerElement": options.seeds}],
            "AcceptanceCriteria": [{"Metric": "share of white matter", "Threshold": SEED_WM_FRACTION}],
        },
        "StreamlinePropagation": {
            "Algorithm": {"Name": name, "Description": ALGORITHMS[name]},
            "AnglePerStep": facts.max_angle,
            "Interpolation": "Linear",
            "StepSize": facts.step_size,
        },
        "StreamlineTermination": {
            "Anisotropy": [{"Metric": "fODF amplitude", "Threshold": facts.cutoff}],
            "AnglePerStep": facts.max_angle,
            "Ends": facts.n_ends,
            **lengths,
        },
        "StreamlineAcceptanceCriteria": {
            "MinimumLength": facts.min_length,
            **lengths,
            "Refused": facts.n_refused,
            "OtherLength": facts.n_other_length,
        },
        "StreamlineReconstructionDensity": {
            "Seeds": facts.n_seeds,
            "GeneratedStreamlines": facts.n_generated,
            "AcceptedStreamlines": facts.n_accepted,
        },
        "RandomSeed": seed,
    }


def _tell_least_length(options: TrackingOptions, facts: "TrackingFacts", label: str) -> None:
    if options.min_length is None:
        logger.info("%s: streamlines shorter than %.3g mm are dropped", label, facts.min_length)


def _told(
    facts: "TrackingFacts", about: Mapping[str, Any], lengths: "np.ndarray", *, coverage: float
) -> dict[str, Any]:
    """Return the facts, ``about`` being the sidecar's."""
    return {
        "sidecar": {"tractography": about},
        "notes": _notes(facts),
        "tracking": asdict(facts),
        "qc": _qc(facts, lengths, coverage=coverage),
    }


def save_density(path: Path, density: "np.ndarray", mask_file: Path) -> None:
    """Write a density on the grid of the mask."""
    from shd_bids.images import load_volume, save_volume

    reference = load_volume(mask_file)
    save_volume(path, density, reference.affine, reference_header=reference.header)


def _save_preview(path: Path, streamlines: "ArraySequence") -> None:
    """Write an evenly spaced part of the streamlines as points, (p, 3) mm, and number of points of each."""
    import numpy as np

    chosen = np.unique(np.linspace(0, len(streamlines), PREVIEW_STREAMLINES, endpoint=False).astype(int))
    chosen = chosen[: len(streamlines)]  # none of none
    few = [np.asarray(streamlines[index], dtype=np.float32) for index in chosen]
    points = np.concatenate(few) if few else np.zeros((0, 3), dtype=np.float32)
    np.savez(path, points=points, counts=np.array([len(line) for line in few], dtype=int))


def _qc(facts: "TrackingFacts", lengths: "np.ndarray", *, coverage: float) -> dict[str, Any]:
    """Return the columns on streamlines."""
    import numpy as np

    measures: dict[str, Callable[[np.ndarray], Any]] = {
        "mean": np.mean,
        "median": np.median,
        "p95": lambda values: np.percentile(values, 95),
    }
    refused = sum(facts.n_refused.values()) / max(facts.n_generated, 1)
    columns = {
        "n_streamlines": qc_column(facts.n_accepted, "Streamlines accepted", "1"),
        "streamlines_refused": qc_column(refused, "Share of the streamlines refused for the place of an end", "1"),
        "mask_coverage": qc_column(coverage, "Share of the mask that streamlines visit", "1"),
    }
    for name, measure in measures.items():
        value = float(measure(lengths)) if len(lengths) else None
        columns[f"streamline_length_{name}"] = qc_column(value, f"Length of the streamlines, {name}", "mm")
    return columns


class _TrackStreamlinesInputSpec(RuntimeInputSpec):
    fod_file = File(exists=True, mandatory=True, desc="coefficients in the order of the mask")
    mask_file = File(exists=True, mandatory=True)
    vfwm_file = File(exists=True, mandatory=True, desc="WM signal fraction")
    vfgm_file = File(exists=True, mandatory=True, desc="GM signal fraction")
    vfcsf_file = File(exists=True, mandatory=True, desc="CSF signal fraction")
    anatomy_files = traits.List(File(exists=True), desc="tissues")
    anatomy = traits.Dict(desc="what they hold")


class _TrackStreamlinesOutputSpec(StageOutputSpec):
    tracks_file = File(exists=True, desc="TRX")
    tdi_file = File(exists=True, desc="streamlines per voxel")
    preview_file = File(exists=True, desc="some streamlines, for the report")


class TrackStreamlines(StageInterface):
    """Whole-brain streamlines."""

    input_spec = _TrackStreamlinesInputSpec
    output_spec = _TrackStreamlinesOutputSpec
    function = staticmethod(track_image)
    files_type = TrackingFiles
    options_type = TrackingOptions
    wants = ("n_threads", "label")


class _ConvertTractogramInputSpec(StageInputSpec):
    tracks_file = File(exists=True, mandatory=True, desc="TRX")
    streamline_weights_file = File(exists=True, desc="array of the weights")
    mask_file = File(exists=True, mandatory=True)
    formats = traits.List(traits.Str, mandatory=True, desc="trx, tck, trk")


class _ConvertTractogramOutputSpec(StageOutputSpec):
    tractogram_files = traits.List(File(exists=True), desc="one per format")
    weights_file = File(exists=True, desc="weights of the streamlines of a TCK, a text")


class ConvertTractogram(StageInterface):
    """Streamlines in every format asked for."""

    input_spec = _ConvertTractogramInputSpec
    output_spec = _ConvertTractogramOutputSpec
    function = staticmethod(convert_tractogram)
