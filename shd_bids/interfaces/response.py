"""Response functions: from this image, or as given."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nipype.interfaces.base import File, traits

from shd_bids.interfaces.base import StageInputSpec, StageInterface, StageOutputSpec, qc_column, read_json
from shd_bids.response import TISSUES

if TYPE_CHECKING:
    from shd_bids.response.response import Responses

__all__ = ["EstimateResponses", "ReadResponses"]


def estimate_from_image(*, dwi_file: Path, mask_file: Path, gradients_file: Path, out_dir: Path) -> dict[str, Any]:
    """Estimate the responses of white matter, grey matter and CSF from an image.

    Parameters
    ----------
    dwi_file, mask_file, gradients_file : Path
        4-D image, its mask and the table made by `prepare_gradients`.
    out_dir : Path
        Gets ``wm.txt``, ``gm.txt``, ``csf.txt`` (MRtrix3's form; only the tissues found) and
        ``voxels.nii.gz``, the voxels each was measured in: 1 WM, 2 GM, 3 CSF.
    """
    import numpy as np

    from shd_bids.gradients.table import GradientTable
    from shd_bids.images import load_mask, load_volume, save_volume
    from shd_bids.response.estimate import estimate_responses

    table = GradientTable.from_dict(read_json(gradients_file))
    reference = load_volume(mask_file)
    mask = load_mask(mask_file, reference)
    estimate = estimate_responses(table.take(load_volume(dwi_file).data), mask, table)
    labels = np.zeros(mask.shape, dtype=np.uint8)
    for number, tissue in enumerate(TISSUES, start=1):
        if tissue in estimate.voxels:
            labels[estimate.voxels[tissue]] = number
    save_volume(out_dir / "voxels.nii.gz", labels, reference.affine, reference_header=reference.header, dtype="uint8")
    counts = {tissue: int((labels == number).sum()) for number, tissue in enumerate(TISSUES, start=1)}
    outputs = _write(estimate.responses, out_dir, message=estimate.message, counts=counts, notes=estimate.notes)
    return outputs | {"voxels_file": str(out_dir / "voxels.nii.gz")}


def read_given(*, response_files: list[Path], gradients_file: Path, out_dir: Path) -> dict[str, Any]:
    """Read given responses, whose names tell the tissues, and check that they fit the shells of the image.

    Raises
    ------
    InputError
        The tissue of a file is not clear, WM is not among them, or a response is one for other shells.
    """
    from shd_bids.gradients.table import GradientTable
    from shd_bids.response.given import read_given as read_files

    table = GradientTable.from_dict(read_json(gradients_file))
    responses = read_files(response_files, table.shell_bvalues)
    names = [path.name for path in response_files]
    message = f"responses were given: {', '.join(names)}"
    written = _write(responses, out_dir, message=message, counts={})
    written["facts"]["given"] = names
    return written


def _write(
    responses: "Responses", out_dir: Path, *, message: str, counts: dict[str, int], notes: Sequence[str] = ()
) -> dict[str, Any]:
    """Write each response as text; return the outputs and facts."""
    from shd_bids.response.mrtrix import format_response

    files = {response.tissue: str(out_dir / f"{response.tissue}.txt") for response in responses.tissues}
    for response in responses.tissues:
        Path(files[response.tissue]).write_text(format_response(response), encoding="utf-8")
    outputs: dict[str, Any] = {f"{tissue}_file": path for tissue, path in files.items()}
    outputs["response_files"] = list(files.values())
    coefficients = {response.tissue: response.coefficients.tolist() for response in responses.tissues}
    shares = {
        f"response_wm_l2_share_b{bvalue:.0f}": qc_column(
            float(row[1] / row[0]), f"WM response, zonal degree 2 over degree 0, at b = {bvalue:.0f} s/mm2", "1"
        )
        for bvalue, row in zip(responses.wm.bvalues, responses.wm.coefficients, strict=True)
        if bvalue > 0 and len(row) > 1 and row[0]
    }
    first = {
        f"response_{tissue}_b0": qc_column(rows[0][0], f"{tissue.upper()} response, degree 0, at b = 0")
        for tissue, rows in coefficients.items()
    }
    n_voxels = {
        f"n_voxels_response_{tissue}": qc_column(count, f"Voxels in which the {tissue.upper()} response was measured")
        for tissue, count in counts.items()
    }
    outputs["facts"] = {
        "sidecar": {"response": coefficients},
        "fitted_tissues": list(coefficients),
        "message": message,
        "notes": list(notes),
        "qc": first | shares | n_voxels,
    }
    return outputs


class _ResponseOutputSpec(StageOutputSpec):
    wm_file = File(exists=True)
    gm_file = File(exists=True)
    csf_file = File(exists=True)
    response_files = traits.List(File(exists=True), desc="all of them, <tissue>.txt")
    voxels_file = File(exists=True)


class _EstimateResponsesInputSpec(StageInputSpec):
    dwi_file = File(exists=True, mandatory=True, desc="4-D image")
    mask_file = File(exists=True, mandatory=True, desc="mask on its grid")
    gradients_file = File(exists=True, mandatory=True, desc="table made by PrepareGradients")


class EstimateResponses(StageInterface):
    """Responses of the tissues that this image can tell apart."""

    input_spec = _EstimateResponsesInputSpec
    output_spec = _ResponseOutputSpec
    function = staticmethod(estimate_from_image)


class _ReadResponsesInputSpec(StageInputSpec):
    response_files = traits.List(File(exists=True), mandatory=True, desc="MRtrix3's text form, names with wm, gm, csf")
    gradients_file = File(exists=True, mandatory=True, desc="table made by PrepareGradients")


class ReadResponses(StageInterface):
    """Responses that the user gave."""

    input_spec = _ReadResponsesInputSpec
    output_spec = _ResponseOutputSpec
    function = staticmethod(read_given)
