"""Tissue images of derivatives: which are found, what their labels mean, and what is wrong with them."""

import json

import numpy as np
import pytest

from shd_bids.bids.provenance import hash_inputs
from shd_bids.bids.run import DWIRun
from shd_bids.bids.stages import plan_stages
from shd_bids.errors import InputError
from shd_bids.settings import Settings
from tests.bids_trees import AFFINE, SHAPE, collect, write_description, write_dwi, write_image

COARSE = np.diag([-1.0, 1.0, 1.0, 1.0])
"""Grid of 1 mm over the same volume as `AFFINE` with `SHAPE`."""

SERIES = "sub-01_space-ACPC_desc-preproc_dwi"


@pytest.fixture
def prepared(tmp_path):
    """A derivative with a preprocessed series in a space of its own."""
    root = write_description(tmp_path / "prep", pipeline="prep")
    write_dwi(root, SERIES)
    return root


def labels(*values: int) -> np.ndarray:
    """Return slabs of labels along x on the fine grid."""
    image = np.zeros([2 * size for size in SHAPE], np.int16)
    for number, value in enumerate(values):
        image[len(image) * number // len(values) : len(image) * (number + 1) // len(values)] = value
    return image


def write_anat(root, name, data, affine=COARSE):
    return write_image(root / "sub-01" / "anat" / f"{name}.nii.gz", data, affine)


def tissues_of(run) -> dict[str, tuple[int, ...]]:
    return {part.tissue: part.labels for part in run.anatomy.parts}


def test_without_tissue_images_there_are_none(prepared):
    (run,) = collect(prepared)
    assert run.anatomy is None and run.anatomy_uris == ()


def test_labels_of_freesurfer_are_found_and_survive_json(prepared):
    write_anat(prepared, "sub-01_space-ACPC_desc-aseg_dseg", labels(3, 2, 10, 4, 41, 42))
    write_anat(prepared, "sub-01_space-ACPC_dseg", labels(1, 2, 3))
    write_anat(prepared, "sub-01_space-MNI152NLin2009cAsym_desc-aseg_dseg", labels(3, 2))
    (run,) = collect(prepared)
    assert run.anatomy_uris == ("bids:prep:sub-01/anat/sub-01_space-ACPC_desc-aseg_dseg.nii.gz",)
    assert "FreeSurfer" in run.anatomy.kind
    assert 10 in tissues_of(run)["deep"] and 41 in tissues_of(run)["white"] and 1012 in tissues_of(run)["cortical"]
    assert DWIRun.from_dict(json.loads(json.dumps(run.to_dict()))) == run


def test_other_tissues_make_other_streamlines_and_leave_what_is_before(prepared):
    settings = Settings(bids_dir=prepared, output_dir=prepared.parent / "out")
    plans = []
    for content in (labels(3, 2, 10, 4, 41, 42), labels(3, 2, 11, 4, 41, 42)):
        write_anat(prepared, "sub-01_space-ACPC_desc-aseg_dseg", content)
        (run,) = collect(prepared)
        plans.append(plan_stages(run, settings, hash_inputs(run, settings)).digests)
    changed = [stage for stage in plans[0] if plans[0][stage] != plans[1][stage]]
    assert changed[0] == "tractography" and not {"gradients", "response", "fod", "peaks"} & set(changed)


def test_labels_of_freesurfer_are_known_without_the_name(prepared):
    write_anat(prepared, "sub-01_space-ACPC_dseg", labels(3, 2, 10, 4, 41, 42))
    assert "FreeSurfer" in collect(prepared)[0].anatomy.kind


def test_a_table_names_the_tissues(prepared):
    write_anat(prepared, "sub-01_space-ACPC_dseg", labels(7, 5, 4))
    table = "index\tname\tabbreviation\n4\tCerebrospinal Fluid\tCSF\n5\tWhite Matter\tWM\n7\tGray Matter\tGM\n"
    (prepared / "dseg.tsv").write_text(table)
    assert tissues_of(collect(prepared)[0]) == {"fluid": (4,), "white": (5,), "cortical": (7,)}


@pytest.mark.parametrize(
    ("brightest", "expected"), [(3, {"white": (2, 10), "fluid": (3,)}), (1, {"white": (3,), "fluid": (1,)})]
)
def test_without_a_table_the_signal_tells_the_order(prepared, brightest, expected):
    """BIDS and FSL order the three tissues differently; fluid is the brightest at b=0."""
    write_anat(prepared, "sub-01_space-ACPC_dseg", labels(1, 2, 3))
    data = np.full((*SHAPE, 14), 300, dtype=np.int16)
    data[..., :2] = 500
    data[2 * brightest - 2 : 2 * brightest, :, :, :2] = 1500
    write_image(prepared / "sub-01" / "dwi" / f"{SERIES}.nii.gz", data, AFFINE)
    (run,) = collect(prepared)
    found = tissues_of(run)
    assert {tissue: found[tissue] for tissue in expected} == expected
    assert "has no table" in " ".join(run.notes)


def test_five_tissues_go_before_all_others(prepared):
    write_anat(prepared, "sub-01_space-ACPC_desc-aseg_dseg", labels(3, 2, 10, 4, 41, 42))
    five = np.stack([labels(1, 0, 0, 0), labels(0, 1), labels(0, 0, 1), labels(0, 0, 0, 1), labels(0)], axis=-1)
    write_anat(prepared, "sub-01_space-ACPC_desc-5tt_probseg", five.astype(np.float32))
    (run,) = collect(prepared)
    assert run.anatomy.kind == "five-tissue image"
    assert [(part.tissue, part.volume) for part in run.anatomy.parts] == [
        ("cortical", 0), ("deep", 1), ("white", 2), ("fluid", 3),
    ]  # fmt: skip


def test_probability_maps_by_label_and_by_label_map(prepared):
    for label, values in (("GM", (1, 0, 0)), ("WM", (0, 1, 0)), ("CSF", (0, 0, 1))):
        write_anat(prepared, f"sub-01_space-ACPC_label-{label}_probseg", labels(*values).astype(np.float32))
    (run,) = collect(prepared)
    assert run.anatomy.kind == "probability maps" and len(run.anatomy.files) == 3
    together = np.stack([labels(0, 0, 1), labels(1, 0, 0), labels(0, 1, 0)], axis=-1).astype(np.float32)
    path = write_anat(prepared, "sub-01_space-ACPC_probseg", together)
    path.with_name("sub-01_space-ACPC_probseg.json").write_text('{"LabelMap": ["CSF", "GM", "WM"]}')
    (run,) = collect(prepared)
    assert [(part.tissue, part.volume) for part in run.anatomy.parts] == [("fluid", 0), ("cortical", 1), ("white", 2)]


def test_images_of_another_space_session_or_kind_are_left_alone(prepared):
    write_anat(prepared, "sub-01_dseg", labels(1, 2, 3))
    write_anat(prepared, "sub-01_ses-2_space-ACPC_dseg", labels(1, 2, 3))
    write_anat(prepared, "sub-01_space-ACPC_atlas-x_dseg", labels(1, 2, 3))
    assert collect(prepared)[0].anatomy is None


@pytest.mark.parametrize(
    ("data", "affine", "told"),
    [
        (labels(3, 10, 4), COARSE, "no white matter"),
        (labels(3, 2, 10, 4, 41, 42), np.diag([-1.0, 1, 1, 1]) + np.eye(4, k=3) * 90, "not in the space"),
        (np.zeros((3, 3), np.int16), COARSE, "2 dimensions"),
    ],
)
def test_what_is_wrong_is_told_with_the_other_problems(prepared, data, affine, told):
    write_anat(prepared, "sub-01_space-ACPC_desc-aseg_dseg", data, affine)
    with pytest.raises(InputError, match=told) as caught:
        collect(prepared)
    assert "--act off" in str(caught.value) and "sub-01" in str(caught.value)
    assert collect(prepared, act="off")[0].anatomy is None
    assert collect(prepared, level="peaks")[0].anatomy is None


def test_several_images_that_are_as_good_need_a_choice(prepared, tmp_path):
    for acquisition in ("a", "b"):
        write_anat(prepared, f"sub-01_acq-{acquisition}_space-ACPC_desc-aseg_dseg", labels(3, 2, 10, 4, 41, 42))
    with pytest.raises(InputError, match="several tissue images"):
        collect(prepared)
    choice = tmp_path / "filter.json"
    choice.write_text('{"dseg": {"acquisition": "b"}}')
    (run,) = collect(prepared, bids_filter_file=choice)
    assert run.anatomy_uris[0].endswith("acq-b_space-ACPC_desc-aseg_dseg.nii.gz")
