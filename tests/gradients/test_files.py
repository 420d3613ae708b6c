"""Gradient tables in files: what is read, and what is said of damage."""

import numpy as np
import pytest

from shd_bids.errors import GradientError
from shd_bids.gradients.files import read_fsl, read_mrtrix
from shd_bids.gradients.frames import world_to_fsl
from tests.gradients.frames import AFFINES, write_fsl


def test_files_by_rows_and_by_columns_are_read_alike(tmp_path, protocol):
    affine = AFFINES["LAS"]
    bvecs = world_to_fsl(protocol.directions, affine)
    rows = read_fsl(*write_fsl(tmp_path, protocol.bvals, bvecs.T), affine, 32)
    np.savetxt(tmp_path / "dwi.bval", protocol.bvals[:, None])
    columns = read_fsl(*(tmp_path / "dwi.bval", write_fsl(tmp_path, protocol.bvals, bvecs)[1]), affine, 32)
    np.testing.assert_allclose(rows.directions, protocol.directions, atol=1e-8)
    np.testing.assert_array_equal(rows.directions, columns.directions)


def test_all_problems_of_both_files_are_told(tmp_path):
    (tmp_path / "a.bval").write_text("0 1000 1000\n")
    with pytest.raises(GradientError) as caught:
        read_fsl(tmp_path / "a.bval", tmp_path / "missing.bvec", np.eye(4), 32)
    assert len(caught.value.problems) == 2
    assert "a.bval: 3 b-values, expected 32" in str(caught.value)
    assert "missing.bvec: no such file" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("0 1 2\n0 abc 1\n0 0 0\n", "line 2 holds 'abc', expected numbers"),
        ("1 0 0\n0 1\n0 0 1\n", "unequal length"),
        ("0 0,5 1\n0 -0,1 1\n0 0 0\n", "line 1 holds '0,5', a decimal comma"),
        ("", "empty"),
        ("\n".join(["0 " * 32] * 4), "found 4 x 32 numbers, expected 3 rows of 32"),
        ("\n".join(["0 " * 31] * 3), "31 directions, expected 32"),
    ],
)
def test_a_bad_bvec_file_is_named_with_what_is_wrong(tmp_path, protocol, content, message):
    bval, bvec = write_fsl(tmp_path, protocol.bvals, protocol.directions.T)
    bvec.write_text(content)
    with pytest.raises(GradientError, match=message) as caught:
        read_fsl(bval, bvec, np.eye(4), 32)
    assert all(str(bvec) in problem for problem in caught.value.problems)


def test_problems_of_the_numbers_name_the_file_they_are_in(tmp_path, protocol):
    bval, bvec = write_fsl(
        tmp_path, protocol.bvals + 1000, np.where(protocol.bvals == 0, np.nan, protocol.directions.T)
    )
    with pytest.raises(GradientError) as caught:
        read_fsl(bval, bvec, np.eye(4), 32)
    first, second = caught.value.problems
    assert first.startswith(f"{bval}: no b=0")
    assert second.startswith(f"{bvec}: the directions of 2 volumes")


@pytest.mark.parametrize("separator", [",", ", ", " ,"])
def test_commas_may_part_numbers(tmp_path, protocol, separator):
    files = write_fsl(tmp_path, protocol.bvals, protocol.directions.T)
    plain = read_fsl(*files, np.eye(4), 32)
    for path in files:
        path.write_text(path.read_text().replace(" ", separator))
    np.testing.assert_array_equal(read_fsl(*files, np.eye(4), 32).directions, plain.directions)


def test_a_binary_file_is_refused(tmp_path, protocol):
    bval, bvec = write_fsl(tmp_path, protocol.bvals, protocol.directions.T)
    bvec.write_bytes(b"\x1f\x8b\x08\xff\xfe")
    with pytest.raises(GradientError, match="cannot be read as text"):
        read_fsl(bval, bvec, np.eye(4), 32)


def test_mrtrix_file_is_in_world_axes_already(tmp_path, protocol):
    path = tmp_path / "dwi.b"
    np.savetxt(path, np.column_stack([protocol.directions, protocol.bvals]), header="command_history: x")
    np.testing.assert_allclose(read_mrtrix(path, 32).directions, protocol.directions, atol=1e-9)
    with pytest.raises(GradientError, match="32 rows, expected 33"):
        read_mrtrix(path, 33)
    np.savetxt(path, protocol.directions)
    with pytest.raises(GradientError, match="expected 4 columns x y z b"):
        read_mrtrix(path, 32)
