"""What a dry run tells of volumes, table and mask."""

import nibabel as nib
import numpy as np
import pytest

from shd_bids.bids.doubts import bright_part
from tests.bids_trees import collect, raw_dataset, write_mask
from tests.phantoms import head, many_bundles, write_head


@pytest.fixture
def raw(tmp_path):
    return raw_dataset(tmp_path / "raw")


def change(raw, volumes, value):
    """Set some volumes of the series to a value."""
    path = raw / "sub-01" / "dwi" / "sub-01_dwi.nii.gz"
    image = nib.load(path)
    data = np.asanyarray(image.dataobj).copy()
    data[..., volumes] = value
    nib.save(nib.Nifti1Image(data, image.affine), path)


def notes(raw, **options):
    return "\n".join(collect(raw, dry_run="text", **options)[0].notes)


def test_an_empty_volume_is_told_by_a_dry_run(raw):
    assert "dropped" not in notes(raw)
    change(raw, [5], 0)
    assert "1 of 14 volumes dropped: volume 5 is empty" in notes(raw)
    assert not any("dropped" in note for note in collect(raw)[0].notes)  # there the stage says so


def test_what_stops_the_series_is_told_by_a_dry_run(raw):
    change(raw, slice(2, 9), 0)
    assert "will fail: 7 of 12 weighted volumes do not fit their shell" in notes(raw)


def test_a_mask_over_everything_is_told_by_a_dry_run(raw):
    write_mask(raw, "sub-01_desc-brain_mask")
    assert "covers" not in notes(raw)
    mask = raw / "sub-01" / "dwi" / "sub-01_desc-brain_mask.nii.gz"
    nib.save(nib.Nifti1Image(np.ones((6, 6, 6), np.uint8), nib.load(mask).affine), mask)
    assert "the mask covers 100.0% of the field of view" in notes(raw)


def test_voxels_are_those_of_the_mask_or_else_counted(raw):
    assert collect(raw, dry_run="text")[0].n_mask == 216  # an image without background
    assert collect(raw)[0].n_mask is None
    write_mask(raw, "sub-01_desc-brain_mask")
    assert collect(raw, dry_run="text")[0].n_mask == collect(raw)[0].n_mask == 64


def test_the_bright_part_is_the_ball(rng):
    distance = np.linalg.norm(np.indices((30, 30, 30)) - 14.5, axis=0)
    ball = distance < 10
    image = np.where(ball, 700.0, 20.0) * rng.uniform(0.6, 1.4, ball.shape)
    image[0, 0, 0] = 1e5  # a bright vessel moves no threshold
    found = bright_part(image)
    assert (found != ball).sum() <= 1


@pytest.fixture(scope="module")
def turned(tmp_path_factory):
    """A data set of straight tubes whose vectors have x and y exchanged."""
    root = tmp_path_factory.mktemp("turned")
    signal, table = many_bundles(np.random.default_rng(3))
    write_head(root, signal, table)
    path = root / "sub-01" / "dwi" / "sub-01_dwi.bvec"
    np.savetxt(path, np.loadtxt(path)[[1, 0, 2]], fmt="%.6f")
    return root


@pytest.mark.parametrize(
    ("gradient_check", "told"),
    [("error", "will fail: the gradient directions do not"), ("fix", "\nthe gradient directions do not"), ("off", "")],
)
def test_directions_that_do_not_fit_are_told_by_a_dry_run(turned, gradient_check, told):
    found = "\n" + notes(turned, gradient_check=gradient_check)
    assert told in found
    assert ("gradient directions" in found) == (gradient_check != "off")


def test_directions_that_cannot_be_judged_are_told_by_a_dry_run(raw):
    assert "cannot be judged from this image" in notes(raw)


def test_an_image_without_background_is_counted_whole(tmp_path):
    signal, table, _ = head(np.random.default_rng(8), size=12)
    write_head(tmp_path / "raw", signal, table)
    assert collect(tmp_path / "raw", dry_run="text")[0].n_mask == 12**3
