"""Responses: estimated or given, and doubts that reach the user."""

import nibabel as nib
import numpy as np
import pytest

from shd_bids.errors import InputError
from shd_bids.interfaces.base import read_json
from shd_bids.interfaces.response import EstimateResponses, ReadResponses
from shd_bids.report.facts import RunReport
from shd_bids.report.methods import methods_text
from tests.interfaces.stages import run


def test_responses_estimated_then_given_are_the_same(dwi_file, prepared, tmp_path):
    inputs = {"gradients_file": prepared.gradients_file}
    estimated = run(EstimateResponses, tmp_path / "a", dwi_file=str(dwi_file), mask_file=prepared.mask_file, **inputs)
    facts = read_json(tmp_path / "a" / "facts.json")
    text = methods_text([RunReport("sub-01", {"response": facts})])
    assert "Response functions of white matter, grey matter and CSF were estimated" in text
    assert facts["qc"]["n_voxels_response_wm"]["value"] > 0
    files = [estimated.wm_file, estimated.gm_file, estimated.csf_file]
    files = [file for file in files if isinstance(file, str)]
    run(ReadResponses, tmp_path / "b", response_files=files[::-1], **inputs)  # names decide, not the order
    read = read_json(tmp_path / "b" / "facts.json")["sidecar"]["response"]
    assert read.keys() == facts["sidecar"]["response"].keys()
    for tissue, rows in read.items():
        np.testing.assert_allclose(rows, facts["sidecar"]["response"][tissue], rtol=1e-13)  # 15 digits of text


def test_doubts_about_a_small_mask_reach_the_user_and_the_facts(dwi_file, prepared, tmp_path, caplog):
    image = nib.load(prepared.mask_file)
    mask = np.asarray(image.dataobj) > 0
    mask[np.cumsum(mask).reshape(mask.shape) > 30] = False
    nib.save(nib.Nifti1Image(mask.astype(np.uint8), image.affine), tmp_path / "small.nii.gz")
    inputs = {"gradients_file": prepared.gradients_file, "mask_file": str(tmp_path / "small.nii.gz")}
    run(EstimateResponses, tmp_path / "few", dwi_file=str(dwi_file), series="sub-01", **inputs)
    notes = read_json(tmp_path / "few" / "facts.json")["notes"]
    assert any("few voxels of WM" in note for note in notes)
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warned == [f"sub-01: {note}" for note in notes]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("csf.txt",), "expected at least wm"),
        (("group.txt",), "one of wm, gm, csf"),
        (("wm.txt", "sub-1_WM.txt"), "each once"),
    ],
)
def test_responses_without_a_clear_tissue_are_refused(prepared, tmp_path, names, message):
    for name in names:
        (tmp_path / name).write_text("1 0\n")
    with pytest.raises(InputError, match=message):
        run(
            ReadResponses,
            tmp_path / "b",
            response_files=[str(tmp_path / name) for name in names],
            gradients_file=prepared.gradients_file,
        )
