"""Streamlines and their density."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nipype.interfaces.base import File, traits

from shd_bids.interfaces.base import RuntimeInputSpec, StageInterface, StageOutputSpec, log_progress, qc_column
from shd_bids.options import Runtime, TrackingOptions

if TYPE_CHECKING:
    import numpy as np
    from nibabel.streamlines import ArraySequence

    from shd_bids.tractography.track import Tractogram

__all__ = ["TrackStreamlines"]

ALGORITHMS = {
    "det": "deterministic: the direction of largest amplitude within the cone",
    "prob": "probabilistic: a direction within the cone, drawn in proportion to amplitude",
    "ptt": "parallel transport tractography (Aydogan and Shi 2021)",
}
SEED_WM_FRACTION = 0.5  # seeded where white matter makes most of the signal
PREVIEW_STREAMLINES = 4000
MIN_STREAMLINES = 100  # fewer mean that something is wrong, not that there are few tracts


def track_image(
    *,
    fod_file: Path,
    mask_file: Path,
    vfwm_file: Path,
    options: TrackingOptions,
    runtime: Runtime,
    n_threads: int,
    label: str,
    out_dir: Path,
) -> dict[str, Any]:
    """Track streamlines from white matter and write them in every format chosen, with their density.

    Parameters
    ----------
    fod_file, mask_file, vfwm_file : Path
        ``fod.npy`` of `fit_image`, its mask, and the WM signal fraction, which decides where to seed.
    options : TrackingOptions
    runtime : Runtime
        Its seed is used.
    n_threads, label : int and str
        Threads, on which results do not depend; name of the stage in progress lines.
    out_dir : Path
        Gets ``tractogram.<format>``, ``tdi.nii.gz`` and ``preview.npz``, some streamlines for the report.
    """
    import numpy as np

    from shd_bids.images import load_mask, load_volume, save_volume
    from shd_bids.tractography.density import track_density
    from shd_bids.tractography.files import save_tractogram
    from shd_bids.tractography.track import track

    reference = load_volume(mask_file)
    mask = load_mask(mask_file, reference)
    tractogram = track(
        np.load(fod_file, mmap_mode="r"),
        mask,
        reference.affine,
        options,
        seed_mask=mask & (load_volume(vfwm_file).data > SEED_WM_FRACTION),
        random_seed=runtime.seed,
        nprocs=n_threads,
        progress=log_progress(label),
    )
    for form in options.tractogram_format:
        save_tractogram(out_dir / f"tractogram.{form}", tractogram.streamlines, reference.affine, mask.shape)
    density = track_density(tractogram.streamlines, reference.affine, mask.shape)
    save_volume(out_dir / "tdi.nii.gz", density, reference.affine, reference_header=reference.header)
    _save_preview(out_dir / "preview.npz", tractogram.streamlines)
    return {
        "tractogram_files": [str(out_dir / f"tractogram.{form}") for form in options.tractogram_format],
        "tdi_file": str(out_dir / "tdi.nii.gz"),
        "preview_file": str(out_dir / "preview.npz"),
        "facts": {
            "sidecar": {"tractography": _bep046(tractogram, options, seed=runtime.seed)},
            "notes": _notes(tractogram),
            "qc": _qc(tractogram, density, mask),
        },
    }


def _notes(tractogram: "Tractogram") -> list[str]:
    """Return what the user should look at."""
    if tractogram.n_accepted >= MIN_STREAMLINES:
        return []
    return [f"only {tractogram.n_accepted} streamlines from {tractogram.n_seeds} seeds: look at the fODFs first"]


def _bep046(tractogram: "Tractogram", options: TrackingOptions, *, seed: int) -> dict[str, Any]:
    """Return the sidecar blocks of BEP046."""
    name, lengths = options.tracking_algorithm, {"MaximumLength": options.max_length}
    return {
        "Name": "wholebrain",
        "StreamlineSeeding": {
            "Sources": [{"Type": "RandomPerElement", "Source": "WM signal fraction", "SeedsPerElement": options.seeds}],
            "AcceptanceCriteria": [{"Metric": "WM signal fraction", "Threshold": SEED_WM_FRACTION}],
        },
        "StreamlinePropagation": {
            "Algorithm": {"Name": name, "Description": ALGORITHMS[name], "URL": "https://dipy.org"},
            "AnglePerStep": options.max_angle,
            "Interpolation": "Linear",
            "StepSize": tractogram.step_size,
        },
        "StreamlineTermination": {
            "Anisotropy": [{"Metric": "fODF amplitude", "Threshold": tractogram.stop_amplitude}],
            "AnglePerStep": options.max_angle,
            **lengths,
        },
        "StreamlineAcceptanceCriteria": {"MinimumLength": options.min_length, **lengths},
        "StreamlineReconstructionDensity": {
            "Seeds": tractogram.n_seeds,
            "GeneratedStreamlines": tractogram.n_generated,
            "AcceptedStreamlines": tractogram.n_accepted,
        },
        "RandomSeed": seed,
    }


def _save_preview(path: Path, streamlines: "ArraySequence") -> None:
    """Write an evenly spaced part of the streamlines as points, (p, 3) mm, and number of points of each."""
    import numpy as np

    chosen = np.unique(np.linspace(0, len(streamlines), PREVIEW_STREAMLINES, endpoint=False).astype(int))
    chosen = chosen[: len(streamlines)]  # none of none
    few = [np.asarray(streamlines[index], dtype=np.float32) for index in chosen]
    points = np.concatenate(few) if few else np.zeros((0, 3), dtype=np.float32)
    np.savez(path, points=points, counts=np.array([len(line) for line in few], dtype=int))


def _qc(tractogram: "Tractogram", density: "np.ndarray", mask: "np.ndarray") -> dict[str, Any]:
    """Return the columns on streamlines."""
    import numpy as np

    lengths = np.array([np.linalg.norm(np.diff(points, axis=0), axis=1).sum() for points in tractogram.streamlines])
    measures: dict[str, Callable[[np.ndarray], Any]] = {
        "mean": np.mean,
        "median": np.median,
        "p95": lambda values: np.percentile(values, 95),
    }
    columns = {
        "n_streamlines": qc_column(tractogram.n_accepted, "Streamlines accepted", "1"),
        "streamlines_out_of_bounds": qc_column(
            tractogram.n_out_of_box, "Streamlines removed because they left the image", "1"
        ),
        "mask_coverage": qc_column(float((density[mask] > 0).mean()), "Share of the mask that streamlines visit", "1"),
    }
    for name, measure in measures.items():
        value = float(measure(lengths)) if len(lengths) else None
        columns[f"streamline_length_{name}"] = qc_column(value, f"Length of the streamlines, {name}", "mm")
    return columns


class _TrackStreamlinesInputSpec(RuntimeInputSpec):
    fod_file = File(exists=True, mandatory=True, desc="coefficients in the order of the mask")
    mask_file = File(exists=True, mandatory=True)
    vfwm_file = File(exists=True, mandatory=True, desc="WM signal fraction")


class _TrackStreamlinesOutputSpec(StageOutputSpec):
    tractogram_files = traits.List(File(exists=True), desc="one per format")
    tdi_file = File(exists=True, desc="streamlines per voxel")
    preview_file = File(exists=True, desc="some streamlines, for the report")


class TrackStreamlines(StageInterface):
    """Whole-brain streamlines."""

    input_spec = _TrackStreamlinesInputSpec
    output_spec = _TrackStreamlinesOutputSpec
    function = staticmethod(track_image)
    options_type = TrackingOptions
    wants = ("n_threads", "label")
