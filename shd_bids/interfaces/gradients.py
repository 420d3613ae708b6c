"""Gradients and mask: the table in world axes, tested against the data, and the voxels to work on."""

import csv
import io
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nipype.interfaces.base import File, traits

from shd_bids.errors import GradientError
from shd_bids.files import write_json, write_text
from shd_bids.interfaces.base import (
    OptionsInputSpec,
    StageInputSpec,
    StageInterface,
    StageOutputSpec,
    qc_column,
    read_json,
)
from shd_bids.options import GradientOptions

if TYPE_CHECKING:
    import numpy as np

    from shd_bids.gradients.orientation import OrientationCheck
    from shd_bids.gradients.table import GradientTable
    from shd_bids.images import Volume

__all__ = ["PrepareGradients", "RequireOrientation"]

logger = logging.getLogger(__name__)


def prepare_gradients(
    *,
    dwi_file: Path,
    bval_file: Path | None,
    bvec_file: Path | None,
    b_file: Path | None,
    mask_file: Path | None,
    mask_origin: str,
    options: GradientOptions,
    out_dir: Path,
) -> dict[str, Any]:
    """Read the gradient table of an image, find its mask and test the directions by the data.

    Parameters
    ----------
    dwi_file : Path
        4-D image.
    bval_file, bvec_file : Path, optional
        FSL/BIDS gradients; not needed beside ``b_file``.
    b_file : Path, optional
        Gradients in world axes, MRtrix3's form; they win.
    mask_file : Path, optional
        Mask on the grid of the image; estimated where absent.
    mask_origin : str
        ``given``, ``derivative`` or ``estimated``.
    options : GradientOptions
        An error of the check is raised by `require_orientation`, after the pictures that show why were drawn.
    out_dir : Path
        Gets ``gradients.json``, ``mask.nii.gz``, ``b0.nii.gz``, the mean b=0, and ``orientation.tsv``, the coherence
        of every orientation that was tested.

    Raises
    ------
    InputError
        The image, the mask or the gradients cannot be used.
    """
    from shd_bids.images import load_volume

    volume = load_volume(dwi_file, n_dims=(4,))
    table = _read_table(volume, fsl_files=(bval_file, bvec_file), b_file=b_file, options=options)
    b0 = table.take(volume.data)[..., table.b0_indices].mean(axis=-1)
    mask, notes = _find_mask(volume, b0, mask_file)
    table = _fitting(volume, mask, table, name=dwi_file.name)
    b0 = table.take(volume.data)[..., table.b0_indices].mean(axis=-1)
    n_empty = int((mask & (b0 <= 0)).sum())
    mask &= b0 > 0  # without a b=0 signal nothing can be scaled
    table, check, stop = _checked(volume, mask, table, name=dwi_file.name, action=options.gradient_check)
    notes += table.notes  # also of a correction
    if check is not None and not check.is_conclusive:
        notes.append(check.message)
    facts = {
        "sidecar": {"shells": table.shell_bvalues.tolist(), "mask_origin": mask_origin},
        "shells": [{"bvalue": shell.bvalue, "n_volumes": len(shell.indices)} for shell in table.shells],
        "notes": notes,
        "repaired": volume.n_repaired,
        "orientation_check": check and _check_facts(check, action=options.gradient_check, stop=stop),
        "qc": _qc(volume, table, mask, n_empty=n_empty, check=check),
    }
    return _save(out_dir, volume, table, mask=mask, b0=b0, check=check) | {"facts": facts}


def require_orientation(
    *, gradients_file: Path, facts_file: Path, shown_files: list[str], out_dir: Path
) -> dict[str, Any]:
    """Stop a series whose directions do not fit the anatomy, and say where that can be seen.

    Parameters
    ----------
    gradients_file : Path
        Table of `prepare_gradients`, passed on.
    facts_file : Path
        Its facts, with the outcome of the test.
    shown_files : list of str
        Picture and table of the test, where the user finds them.
    out_dir : Path
        Not used.

    Raises
    ------
    GradientError
        Another orientation fits clearly better, and going on was not asked for.
    """
    check = read_json(facts_file)["orientation_check"]
    if check and check["stop"]:
        shown = [path for path in shown_files if "_desc-gradients_" in path or "_desc-orientation_" in path]
        raise GradientError("; ".join([check["stop"], *([f"shown in {' and '.join(shown)}"] if shown else [])]))
    return {"gradients_file": str(gradients_file), "facts": {}}


def _read_table(
    volume: "Volume", *, fsl_files: tuple[Path | None, Path | None], b_file: Path | None, options: GradientOptions
) -> "GradientTable":
    from shd_bids.gradients.files import read_fsl, read_mrtrix

    thresholds = {"b0_threshold": options.b0_threshold, "shell_tolerance": options.shell_tolerance}
    if b_file is not None:
        return read_mrtrix(b_file, volume.shape[3], **thresholds)
    bval_file, bvec_file = fsl_files
    return read_fsl(bval_file, bvec_file, volume.affine, volume.shape[3], **thresholds)


def _fitting(volume: "Volume", mask: "np.ndarray", table: "GradientTable", *, name: str) -> "GradientTable":
    """Return the table without the volumes that do not fit the others; errors name the image."""
    from shd_bids.gradients.volumes import check_volumes

    try:
        return check_volumes(table.take(volume.data), mask, table)
    except GradientError as error:
        raise GradientError(f"{name}: {problem}" for problem in error.problems) from None


def _find_mask(volume: "Volume", b0: "np.ndarray", mask_file: Path | None) -> tuple["np.ndarray", list[str]]:
    """Read or estimate the mask; return it with notes on image and mask."""
    from shd_bids.images import check_signal, estimate_mask, load_mask, mask_notes

    mask = estimate_mask(b0, voxel_size=volume.voxel_size) if mask_file is None else load_mask(mask_file, volume)
    notes = [*volume.notes, *mask_notes(mask, b0), *check_signal(volume, mask)]
    if mask_file is None:
        notes.append("no mask was given; it was estimated from the b=0 images: look at it in the report")
    return mask, notes


def _save(
    out_dir: Path,
    volume: "Volume",
    table: "GradientTable",
    *,
    mask: "np.ndarray",
    b0: "np.ndarray",
    check: "OrientationCheck | None",
) -> dict[str, Any]:
    """Write the files of the stage and return them as outputs."""
    from shd_bids.images import save_volume

    write_json(out_dir / "gradients.json", table.to_dict())
    save_volume(out_dir / "mask.nii.gz", mask, volume.affine, reference_header=volume.header, dtype="uint8")
    save_volume(out_dir / "b0.nii.gz", b0, volume.affine, reference_header=volume.header)
    files = {"gradients_file": "gradients.json", "mask_file": "mask.nii.gz", "b0_file": "b0.nii.gz"}
    if check is not None:
        write_text(out_dir / "orientation.tsv", _scores_table(check))
        files["orientation_file"] = "orientation.tsv"
    return {output: str(out_dir / name) for output, name in files.items()}


def _checked(
    volume: "Volume", mask: "np.ndarray", table: "GradientTable", *, name: str, action: str
) -> tuple["GradientTable", "OrientationCheck | None", str | None]:
    """Test the directions against the data; return the table to use, the outcome, and why to stop, where to stop."""
    from shd_bids.gradients.orientation import check_orientation, corrected

    if action == "off":
        return table, None, None
    check = check_orientation(table.take(volume.data), mask, table, volume.affine)
    if not check.is_linear and action != "warn":
        remedy = "by --bids-filter-file, or go on with --gradient-check warn or off"
        return table, check, f"{name}: {check.message} {remedy}"
    if check.is_given_best and check.is_linear:
        return table, check, None
    if action == "error":
        remedy = "or use --gradient-check fix (takes the better one), warn or off"
        return table, check, f"{name}: {check.message}, {remedy}"
    if action == "fix" and not check.is_fixable:
        return (
            table,
            check,
            f"{name}: {check.message}; the image has too few slices to fix it, correct the file by hand",
        )
    logger.warning("%s: %s", name, check.message)
    return (corrected(table, check, volume.affine) if action == "fix" else table), check, None


def _check_facts(check: "OrientationCheck", *, action: str, stop: str | None) -> dict[str, Any]:
    return {
        "action": action,
        "stop": stop,
        "is_given_best": check.is_given_best,
        "is_linear": check.is_linear,
        "is_conclusive": check.is_conclusive,
        "given": check.given,
        "best": check.best,
        "confidence": check.confidence,
        "message": check.message,
        "scores": [
            {"label": label, "matrix": matrix.tolist(), "score": score} for label, matrix, score in check.scores
        ],
    }


def _scores_table(check: "OrientationCheck") -> str:
    """Write the orientations that were tested, best first, as tab-separated text; ``x,y,z`` is the one given."""
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t", lineterminator="\n")
    writer.writerow(["axes", "coherence"])
    writer.writerows([label, f"{score:.6g}"] for label, _, score in check.scores)
    return text.getvalue()


def _qc(
    volume: "Volume", table: "GradientTable", mask: "np.ndarray", *, n_empty: int, check: "OrientationCheck | None"
) -> dict[str, Any]:
    """Return the columns on the input; names as in QSIPrep where it measures the same."""
    voxel_ml = float(volume.voxel_size.prod()) / 1000
    columns = {
        "n_volumes": qc_column(table.n_volumes, "Volumes used", "1"),
        "n_b0": qc_column(len(table.b0_indices), "Volumes with b = 0", "1"),
        "shells": qc_column(
            " ".join(f"{shell.bvalue:.0f}:{len(shell.indices)}" for shell in table.shells),
            "Mean b-value and number of volumes of each shell",
            "s/mm2",
        ),
    }
    for axis, size in zip("xyz", volume.voxel_size, strict=True):
        columns[f"voxel_size_{axis}"] = qc_column(float(size), f"Voxel size along image axis {axis}", "mm")
    columns |= {
        "mask_volume_ml": qc_column(float(mask.sum()) * voxel_ml, "Volume of the mask", "ml"),
        "mask_zero_signal_fraction": qc_column(
            n_empty / max(int(mask.sum()) + n_empty, 1), "Share of the mask without b = 0 signal, left out", "1"
        ),
        "nan_fraction": qc_column(
            (volume.n_repaired["nan"] + volume.n_repaired["inf"]) / volume.data.size, "Share of values not finite", "1"
        ),
    }
    if check is not None:
        columns |= {
            "gradient_coherence_given": qc_column(check.given, "Coherence of fibres with the directions as given", "1"),
            "gradient_coherence_best": qc_column(check.best, "Coherence of fibres with the best orientation", "1"),
            "gradient_flip_suggested": qc_column(
                "n/a" if check.is_given_best or not check.is_linear else check.scores[0][0],
                "Orientation that fits clearly better than the given",
            ),
        }
    return columns


class _PrepareGradientsInputSpec(OptionsInputSpec):
    dwi_file = File(exists=True, mandatory=True, desc="4-D image")
    bval_file = File(exists=True, desc="b-values, FSL's form")
    bvec_file = File(exists=True, desc="directions, FSL's form")
    b_file = File(exists=True, desc="gradients in world axes, MRtrix3's form")
    mask_file = File(exists=True, desc="mask on the grid of the image; estimated where absent")
    mask_origin = traits.Enum("given", "derivative", "estimated", mandatory=True)


class _PrepareGradientsOutputSpec(StageOutputSpec):
    gradients_file = File(exists=True, desc="GradientTable as JSON")
    mask_file = File(exists=True)
    b0_file = File(exists=True, desc="mean b=0")
    orientation_file = File(exists=True, desc="coherence of every orientation tested; absent where none was")


class PrepareGradients(StageInterface):
    """Gradient table, mask and mean b=0 of one series."""

    input_spec = _PrepareGradientsInputSpec
    output_spec = _PrepareGradientsOutputSpec
    function = staticmethod(prepare_gradients)
    options_type = GradientOptions


class _RequireOrientationInputSpec(StageInputSpec):
    gradients_file = File(exists=True, mandatory=True, desc="GradientTable as JSON")
    facts_file = File(exists=True, mandatory=True, desc="facts of PrepareGradients")
    shown_files = traits.List(traits.Str, desc="figures and tables in the data set")


class _RequireOrientationOutputSpec(StageOutputSpec):
    gradients_file = File(exists=True, desc="the table, fit for use")


class RequireOrientation(StageInterface):
    """Nothing, unless the directions do not fit the anatomy: then the end of the series."""

    input_spec = _RequireOrientationInputSpec
    output_spec = _RequireOrientationOutputSpec
    function = staticmethod(require_orientation)
    is_isolated = False  # reads one small file
    is_reported = False
