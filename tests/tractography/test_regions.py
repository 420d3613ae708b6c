"""Label images and tables: what is read, and every way in which they can be wrong."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from shd_bids.errors import InputError
from shd_bids.tractography.regions import read_regions, read_table

AFFINE = np.diag([2.0, 2.0, 3.0, 1.0])
LABELS = np.zeros((4, 4, 3), np.int16)
LABELS[0], LABELS[1, 0], LABELS[3] = 7, 3, 1002


def image(folder: Path, data: np.ndarray = LABELS) -> Path:
    path = folder / "x_dseg.nii.gz"
    nib.save(nib.Nifti1Image(data, AFFINE), path)
    return path


def table(folder: Path, text: str) -> Path:
    path = folder / "x_dseg.tsv"
    path.write_text(text)
    return path


@pytest.mark.parametrize("dtype", [np.int16, np.float32, np.uint16])
def test_without_a_table_every_label_is_a_region(tmp_path, dtype):
    regions = read_regions(image(tmp_path, LABELS.astype(dtype)), None)
    assert regions.labels.tolist() == [3, 7, 1002] and regions.names == ("3", "7", "1002")
    np.testing.assert_array_equal(regions.node[:, 0, 0], [1, 0, -1, 2])
    np.testing.assert_allclose(regions.volumes, [3 * 12, 12 * 12, 12 * 12])
    assert len(regions.centres) == 27 and not regions.notes


def test_the_rows_of_a_table_are_the_regions(tmp_path):
    """In the order of their index, also those that this image lacks; other labels are left out."""
    rows = table(
        tmp_path, "index\tname\tcolor\n0\tUnknown\t#000000\n1002\tcuneus\t#1\n7\tThalamus\t#2\n9\tnone here\t#3\n"
    )
    regions = read_regions(image(tmp_path), rows)
    assert regions.labels.tolist() == [7, 9, 1002]
    assert regions.names == ("Thalamus", "none here", "cuneus")
    assert regions.volumes[1] == 0 and (regions.node == -1).sum() == 48 - 24
    assert "1 labels are not in the table, left out (3)" in regions.notes[0]
    assert "1 labels are not in the image (9)" in regions.notes[1]


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (LABELS + 0.5, "values that are not whole"),
        (-LABELS, "values down to -1002, expected labels from 0"),
        (0 * LABELS, "no label, all voxels are 0"),
        (LABELS.astype(np.int32) + 614_454_270, "labels up to 614455296, expected less than 16777216"),
        (np.stack([LABELS] * 2, axis=-1), "an image of 4 dimensions"),
        (np.arange(24_000).reshape(40, 30, 20).astype(np.int32), "23999 labels, expected at most 10000"),
    ],
)
def test_images_that_are_no_labels_are_refused(tmp_path, data, told):
    with pytest.raises(InputError, match=told):
        read_regions(image(tmp_path, data), None)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "found nothing, expected the tab-separated columns index and name"),
        ("label,name\n1,a\n", "found label,name, expected"),
        ("index\tname\n1.5\ta\n", "index '1.5', expected whole numbers"),
        ("index\tname\n1\ta\n1\tb\n", "index 1 stands twice"),
        ("index\tname\n0\ta\n", "no index above 0"),
    ],
)
def test_tables_that_are_none_are_refused(tmp_path, text, told):
    with pytest.raises(InputError, match=told):
        read_table(table(tmp_path, text))


def test_a_table_of_another_image_is_refused(tmp_path):
    with pytest.raises(InputError, match="none of its labels is an index of"):
        read_regions(image(tmp_path), table(tmp_path, "index\tname\n5\ta\n"))


def test_a_region_without_a_name_has_its_label(tmp_path):
    assert read_table(table(tmp_path, "index\tname\n5\t\n6\n")) == {5: "5", 6: "6"}
