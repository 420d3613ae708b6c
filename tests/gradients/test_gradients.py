"""Gradient tables: frames, shells and checks."""

import itertools
import json
import subprocess

import nibabel as nib
import numpy as np
import pytest

from shd_bids import simulation
from shd_bids.errors import GradientError
from shd_bids.gradients.files import read_fsl, read_mrtrix
from shd_bids.gradients.frames import fsl_to_world, image_rotation, world_to_fsl
from shd_bids.gradients.table import GradientTable, gradient_table
from tests.helpers import requires_mrtrix


def turn(degrees: float, axis: int) -> np.ndarray:
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    matrix = np.eye(3)
    others = [k for k in range(3) if k != axis]
    matrix[np.ix_(others, others)] = [[c, -s], [s, c]]
    return matrix


def affine_of(axes: np.ndarray, voxel_size=(2.0, 2.0, 2.5)) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = axes * np.array(voxel_size)
    affine[:3, 3] = [-30, 20, 5]
    return affine


AFFINES = {
    "RAS": affine_of(np.eye(3)),
    "LAS": affine_of(np.diag([-1.0, 1, 1])),
    "LPS": affine_of(np.diag([-1.0, -1, 1])),
    "PSR": affine_of(np.eye(3)[[2, 0, 1]] * np.array([-1.0, 1, 1])),
    "oblique RAS": affine_of(turn(20, 0) @ turn(-15, 2)),
    "oblique LAS": affine_of(turn(20, 1) @ turn(10, 0) @ np.diag([-1.0, 1, 1])),
}


@pytest.fixture
def protocol(rng):
    """Two b=0 volumes and 30 directions of b=1000."""
    return simulation.make_gradients(rng, {1000.0: 30}, n_b0=2)


# --- frames


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
def test_fsl_and_world_are_inverse(affine, protocol):
    there_and_back = fsl_to_world(world_to_fsl(protocol.directions, affine), affine)
    np.testing.assert_allclose(there_and_back, protocol.directions, atol=1e-12)


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
def test_fsl_directions_do_not_change_when_the_image_is_stored_mirrored(affine, protocol):
    """FSL's x flip exists for this: mirroring the storage along x leaves the .bvec as it is."""
    mirrored = affine @ np.diag([-1.0, 1, 1, 1])
    np.testing.assert_allclose(
        world_to_fsl(protocol.directions, affine), world_to_fsl(protocol.directions, mirrored), atol=1e-12
    )


def test_fsl_rule_on_paper():
    v = np.array([[0.6, 0.8, 0.0]])
    np.testing.assert_allclose(fsl_to_world(v, AFFINES["RAS"]), [[-0.6, 0.8, 0]], atol=1e-15)
    np.testing.assert_allclose(fsl_to_world(v, AFFINES["LAS"]), [[-0.6, 0.8, 0]], atol=1e-15)
    np.testing.assert_allclose(fsl_to_world(v, AFFINES["LPS"]), [[0.6, -0.8, 0]], atol=1e-15)
    np.testing.assert_allclose(fsl_to_world(v, affine_of(turn(90, 2))), [[-0.8, -0.6, 0]], atol=1e-15)


def test_oblique_directions_turn_with_the_head_not_against_it():
    """Along the first image axis of an oblique LAS image: the axis itself, not its mirror in the inverse rotation."""
    affine = AFFINES["oblique LAS"]
    axis = affine[:3, 0] / np.linalg.norm(affine[:3, 0])
    np.testing.assert_allclose(fsl_to_world([[1.0, 0, 0]], affine)[0], axis, atol=1e-12)


def test_image_rotation_ignores_voxel_size_and_shear_keeps_it_orthogonal():
    sheared = AFFINES["oblique RAS"].copy()
    sheared[:3, 1] += 0.1 * sheared[:3, 0]
    rotation = image_rotation(sheared)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(image_rotation(AFFINES["oblique RAS"]), turn(20, 0) @ turn(-15, 2), atol=1e-12)


@requires_mrtrix
@pytest.mark.parametrize("name", ["RAS", "LAS", "PSR", "oblique RAS", "oblique LAS"])
def test_world_directions_are_those_of_mrtrix(tmp_path, name, protocol):
    affine = AFFINES[name]
    bval, bvec = write_fsl(tmp_path, protocol.bvals, world_to_fsl(protocol.directions, affine).T)
    image = tmp_path / "dwi.nii"
    nib.save(nib.Nifti1Image(np.ones((4, 5, 6, protocol.n_volumes), np.float32), affine), image)
    command = ["mrinfo", image, "-fslgrad", bvec, bval, "-dwgrad", "-quiet"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    oracle = np.array([line.split() for line in told.splitlines()], dtype=float)
    ours = read_fsl(bval, bvec, affine, protocol.n_volumes)
    np.testing.assert_allclose(ours.directions[2:], oracle[2:, :3], atol=1e-5)


# --- shells


def shells_of(bvals, rng) -> list[tuple[float, int]]:
    table = gradient_table(np.array(bvals, float), simulation.uniform_directions(rng, len(bvals), n_steps=5))
    return [(round(shell.bvalue), len(shell.indices)) for shell in table.shells]


def test_b_values_around_a_nominal_shell_stay_together(rng):
    """The published code rounds to multiples of 200 and parts 1495 from 1505."""
    nominal = [0, *([1495, 1505] * 10), *([695, 705] * 5)]
    assert shells_of(nominal, rng) == [(0, 1), (700, 10), (1500, 20)]


def test_b0_is_what_lies_at_or_below_the_threshold(rng):
    assert shells_of([0, 5, 45, 50, *[1000] * 10], rng) == [(0, 4), (1000, 10)]
    assert shells_of([0, 5, 45, *[51] * 6, *[1000] * 10], rng) == [(0, 3), (51, 6), (1000, 10)]


def test_shells_part_where_b_jumps_by_more_than_the_tolerance(rng):
    assert shells_of([0, *[1000] * 6, *[1080] * 6], rng) == [(0, 1), (1040, 12)]
    assert shells_of([0, *[1000] * 6, *[1081] * 6], rng) == [(0, 1), (1000, 6), (1081, 6)]


def test_true_b_values_are_kept(rng):
    bvals = np.array([0.0, *rng.normal(2000, 10, 20)])
    table = gradient_table(bvals, simulation.uniform_directions(rng, 21))
    np.testing.assert_array_equal(table.bvals, bvals)
    assert table.shell_bvalues == pytest.approx([0, bvals[1:].mean()])


def test_q_space_grid_is_refused(rng):
    grid = np.array([p for p in itertools.product(range(-4, 5), repeat=3) if 0 < np.dot(p, p) <= 16], float)
    bvals = np.array([0, *(400 * (grid**2).sum(1))])
    with pytest.raises(GradientError, match="do not form shells"):
        gradient_table(bvals, np.concatenate([[[0, 0, 1]], grid]))


# --- repair and refusal


def test_b0_directions_are_ignored_and_the_rest_normalised(protocol):
    directions = protocol.directions.copy()
    directions[0] = np.nan
    directions[1] = [1, 0, 0]
    directions[5] *= 1.2
    table = gradient_table(protocol.bvals, directions)
    np.testing.assert_allclose(table.directions, protocol.directions, atol=1e-12)
    np.testing.assert_array_equal(table.bvals, protocol.bvals)
    assert "unit length" in table.notes[0]


def test_a_weighted_volume_without_direction_is_dropped_from_table_and_image(protocol):
    directions = protocol.directions.copy()
    directions[7] = 0
    table = gradient_table(protocol.bvals, directions)
    assert table.n_volumes == 31
    assert table.n_source_volumes == 32
    assert 7 not in table.source_volumes
    assert "volume 7 dropped" in table.notes[0]
    image = np.arange(32.0)[None]
    np.testing.assert_array_equal(table.take(image)[0], np.delete(image[0], 7))
    with pytest.raises(GradientError, match="31 volumes"):
        table.take(image[:, 1:])


def test_many_volumes_without_direction_are_refused(protocol):
    directions = protocol.directions.copy()
    directions[4:6] = 0
    with pytest.raises(GradientError, match="2 of 30 weighted volumes have no direction"):
        gradient_table(protocol.bvals, directions)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b, d: (b[2:], d[2:]), "no b=0 volume"),
        (lambda b, d: (np.zeros_like(b), d), "no diffusion weighting"),
        (lambda b, d: (np.where(b > 0, np.nan, b), d), "b-values of 30 volumes .* not finite"),
        (lambda b, d: (np.where(b == 0, -5, b), d), "b-values of 2 volumes .* are negative"),
        (lambda b, d: (b, np.where(d == d[3], np.nan, d)), "directions of volume 3 are not finite"),
        (lambda b, d: (b[:7], d[:7]), "5 different gradient directions, expected at least 6"),
        (lambda b, d: (b, np.where(d.any(1, keepdims=True), d[2], 0)), "1 different gradient direction"),
        (lambda b, d: (b, d * [1, 1, 0] + (b[:, None] > 0) * [1e-9, 0, 0]), "cone or plane"),
        (lambda b, d: (b[:-1], d), "expected \\(N,\\) and \\(N, 3\\)"),
    ],
)
def test_a_bad_table_is_refused_in_one_line(protocol, change, message):
    with pytest.raises(GradientError, match=message) as caught:
        gradient_table(*change(protocol.bvals, protocol.directions))
    assert len(caught.value.problems) == 1


def write_fsl(folder, bvals, bvecs):
    bval, bvec = folder / "dwi.bval", folder / "dwi.bvec"
    np.savetxt(bval, np.atleast_2d(bvals), fmt="%g")
    np.savetxt(bvec, bvecs, fmt="%.9f")
    return bval, bvec


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


# --- the table as a value


def test_json_holds_the_table_without_loss(protocol):
    again = GradientTable.from_dict(json.loads(json.dumps(protocol.to_dict())))
    np.testing.assert_array_equal(again.directions, protocol.directions)
    np.testing.assert_array_equal(again.bvals, protocol.bvals)
    np.testing.assert_array_equal(again.shell_index, protocol.shell_index)
    assert again.to_dict() == protocol.to_dict()


def test_selection_keeps_rows_and_shells(rng):
    table = simulation.make_gradients(rng, {1000.0: 20, 2000.0: 30}, n_b0=3)
    part = table.select(np.r_[0, 1, 3:13, 30:40])
    assert [(s.bvalue, len(s.indices)) for s in part.shells] == [(0, 2), (1000, 10), (2000, 10)]
    np.testing.assert_array_equal(part.directions, table.directions[np.r_[0, 1, 3:13, 30:40]])
    np.testing.assert_array_equal(part.bvals[part.shell_index == 2], 2000)
    np.testing.assert_array_equal(table.select(table.bvals < 1500).bvals, table.bvals[:23])
    with pytest.raises(GradientError, match="no b=0"):
        table.select(np.arange(5, 10))


# --- tensors and orientation
