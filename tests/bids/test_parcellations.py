"""Label images of a series: given or found by name, with their tables, and every problem of them."""

import numpy as np
import pytest

from shd_bids.bids.provenance import hash_inputs
from shd_bids.bids.run import DWIRun
from shd_bids.errors import InputError
from shd_bids.settings import Settings
from tests.bids_trees import AFFINE, SHAPE, collect, raw_dataset, write_description, write_image, write_mask

TABLE = "index\tname\n1\tleft\n2\tright\n"


def labels(*, shape=SHAPE) -> np.ndarray:
    """Two halves, with a border of none."""
    data = np.zeros(shape, np.int16)
    data[1:-1, 1:-1, 1:-1] = 1
    data[shape[0] // 2 :] *= 2
    return data


def settings(raw):
    return Settings(bids_dir=raw, output_dir=raw.parent / "out")


@pytest.fixture
def raw(tmp_path):
    return raw_dataset(tmp_path / "raw")


@pytest.fixture
def derived(tmp_path):
    return write_description(tmp_path / "atlases", pipeline="qsirecon")


def test_a_file_is_taken_with_the_table_beside_it(raw, tmp_path):
    image = write_image(tmp_path / "my_labels.nii.gz", labels())
    (run,) = collect(raw, parcellation=(str(image),))
    (one,) = run.parcellations
    assert (one.image, one.table, one.label, one.n_regions) == (image, None, "seg-mylabels", 2)
    image.with_name("my_labels.tsv").write_text(TABLE + "3\tthird\n")
    (run,) = collect(raw, parcellation=(str(image),))
    assert run.parcellations[0].n_regions == 3
    assert run.parcellations[0].files == (image, image.with_name("my_labels.tsv"))
    assert (
        len({name for name in hash_inputs(run, settings(raw)) if name.startswith("parcellations/seg-mylabels/")}) == 2
    )
    assert any("not in the image (3)" in note for note in run.notes)


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("dwi/sub-01_seg-X1_dseg", "seg-X1"),
        ("anat/sub-01_space-orig_atlas-X1_scale-2_dseg", "atlas-X1_scale-2"),
        ("dwi/sub-01_desc-X1_dseg", "seg-X1"),
    ],
)
def test_a_name_is_found_in_derivatives(raw, derived, name, label):
    path = write_image(derived / "sub-01" / f"{name}.nii.gz", labels())
    write_image(derived / "sub-01" / "dwi" / "sub-01_seg-other_dseg.nii.gz", labels())
    (run,) = collect(raw, parcellation=("X1",), derivatives={"q": derived})
    (one,) = run.parcellations
    assert (one.image, one.label) == (path, label)
    assert one.uri == f"bids:q:{path.relative_to(derived).as_posix()}"
    assert run.links["q"] == derived
    assert DWIRun.from_dict(run.to_dict()).parcellations == run.parcellations


@pytest.mark.parametrize(
    "place",
    [
        "sub-01/dwi/sub-01_seg-X1_dseg.tsv",
        "sub-01/seg-X1_dseg.tsv",
        "seg-X1_dseg.tsv",
        "atlases/atlas-X1/atlas-X1_dseg.tsv",
    ],
)
def test_tables_are_inherited(raw, derived, place):
    write_image(derived / "sub-01/dwi/sub-01_seg-X1_dseg.nii.gz", labels())
    (derived / "seg-X2_dseg.tsv").write_text("of another")
    (derived / place).parent.mkdir(parents=True, exist_ok=True)
    (derived / place).write_text(TABLE)
    (run,) = collect(raw, parcellation=("X1",), derivatives={"q": derived})
    assert run.parcellations[0].table == derived / place


def test_sessions_and_runs_have_their_own(tmp_path, derived):
    raw = raw_dataset(tmp_path / "raw", "sub-01_ses-a_run-1_dwi", "sub-01_ses-b_run-1_dwi")
    for session in "ab":
        for run in (1, 2):
            name = f"sub-01_ses-{session}_run-{run}_seg-X1_dseg.nii.gz"
            write_image(derived / "sub-01" / f"ses-{session}" / "dwi" / name, labels())
    runs = collect(raw, parcellation=("X1",), derivatives={"q": derived})
    assert [run.parcellations[0].image.name[:16] for run in runs] == ["sub-01_ses-a_run", "sub-01_ses-b_run"]
    assert all("run-1" in run.parcellations[0].image.name for run in runs)


def test_labels_on_a_finer_grid_of_the_same_space_are_taken(raw, tmp_path):
    fine = np.kron(labels(), np.ones((2, 2, 2))).astype(np.int16)
    affine = AFFINE @ np.array([[0.5, 0, 0, -0.25], [0, 0.5, 0, -0.25], [0, 0, 0.5, -0.25], [0, 0, 0, 1]])
    (run,) = collect(raw, parcellation=(str(write_image(tmp_path / "fine.nii.gz", fine, affine)),))
    assert run.parcellations[0].n_regions == 2


class TestProblems:
    """Each stops before anything runs, together with all others."""

    def told(self, raw, *asked, **more) -> str:
        with pytest.raises(InputError) as caught:
            collect(raw, parcellation=asked, **more)
        return "\n".join(caught.value.problems)

    def test_a_name_that_is_nowhere(self, raw, derived):
        text = self.told(raw, "X1", derivatives={"q": derived})
        assert "--parcellation X1: not found (_dseg of atlas-, seg- or desc-X1" in text and str(derived) in text

    def test_a_name_in_another_space(self, raw, derived):
        for name in ("sub-01_space-ACPC_seg-X1_dseg", "sub-01_seg-X1_dseg"):
            write_image(derived / "sub-01" / "anat" / f"{name}.nii.gz", labels())
        assert "only in space ACPC, T1w, expected orig; resample it" in self.told(raw, "X1", derivatives={"q": derived})

    def test_several_of_a_name(self, raw, derived):
        for name in ("sub-01_seg-X1_desc-a_dseg", "sub-01_seg-X1_desc-b_dseg"):
            write_image(derived / "sub-01" / "dwi" / f"{name}.nii.gz", labels())
        assert "2 apply" in self.told(raw, "X1", derivatives={"q": derived})

    def test_two_of_one_label(self, raw, tmp_path):
        images = [write_image(tmp_path / folder / "l.nii.gz", labels()) for folder in "ab"]
        assert "seg-l is also" in self.told(raw, *map(str, images))

    def test_labels_far_away(self, raw, tmp_path):
        far = AFFINE.copy()
        far[:3, 3] = 200
        image = write_image(tmp_path / "l.nii.gz", labels(), far)
        assert "100% of its labels lie outside of the diffusion image" in self.told(raw, str(image))

    def test_all_are_told_with_those_of_other_files(self, raw, tmp_path):
        write_mask(raw, "sub-01_desc-brain_mask", shape=(5, 6, 6))
        images = [
            write_image(tmp_path / "whole.nii.gz", labels() + 0.25),
            write_image(tmp_path / "four.nii.gz", np.stack([labels()] * 2, axis=-1)),
        ]
        text = self.told(raw, *map(str, images), "X1")
        for part in ("voxels, expected (6, 6, 6)", "not whole", "4 dimensions", "X1: not found"):
            assert part in text
