"""The orientation check: right directions pass, wrong ones are found and undone, and noise decides nothing."""

import nibabel as nib
import numpy as np
import pytest

from shd_bids import simulation
from shd_bids.errors import GradientError
from shd_bids.gradients.dti import fit_tensor
from shd_bids.gradients.frames import image_rotation
from shd_bids.gradients.orientation import check_orientation, corrected
from shd_bids.gradients.table import GradientTable
from tests.phantoms import many_bundles, rotation


@pytest.fixture
def protocol(rng):
    """Two b=0 volumes and 30 directions of b=1000."""
    return simulation.make_gradients(rng, {1000.0: 30}, n_b0=2)


@pytest.fixture(scope="module")
def head():
    """A noisy phantom of straight tubes, stored with unequal voxels and an oblique affine."""
    signal, along_axes = many_bundles(np.random.default_rng(3))
    axes = rotation(25, (0, 0, 1)) @ rotation(-20, (1, 0, 0))
    affine = nib.affines.from_matvec(axes * (2, 2, 3), (-30, 20, 5))
    table = GradientTable.from_dict(along_axes.to_dict() | {"directions": (along_axes.directions @ axes.T).tolist()})
    return signal, np.ones(signal.shape[:3], bool), table, affine


def disturbed(table: GradientTable, affine: np.ndarray, matrix: np.ndarray) -> GradientTable:
    axes = image_rotation(affine)
    turned = table.directions @ (axes @ matrix @ axes.T).T
    return GradientTable.from_dict(table.to_dict() | {"directions": turned.tolist()})


def test_right_directions_are_found_right(head):
    signal, mask, table, affine = head
    check = check_orientation(signal, mask, table, affine)
    assert check.is_given_best
    assert check.is_conclusive
    assert len(check.scores) == 24
    assert check.scores[0][0] == "x,y,z"
    np.testing.assert_array_equal(check.best_transform, np.eye(3))
    assert corrected(table, check, affine) is table


def test_wrong_orientations_are_found_and_undone(head):
    signal, mask, table, affine = head
    candidates = check_orientation(signal, mask, table, affine).scores
    assert len({str(np.abs(m).tolist()) for _, m, _ in candidates}) == 6
    for label, matrix, _ in candidates[1::4]:  # from near misses to the worst
        wrong = disturbed(table, affine, matrix)
        check = check_orientation(signal, mask, wrong, affine)
        assert not check.is_given_best, label
        assert check.best > check.given
        repaired = corrected(wrong, check, affine).directions[1:]
        np.testing.assert_allclose(np.abs((repaired * table.directions[1:]).sum(1)), 1, atol=1e-9, err_msg=label)


def test_small_pieces_give_no_false_alarm(head, rng):
    signal, mask, table, affine = head
    for corner in rng.integers(0, 18, size=(10, 3)):
        piece = tuple(slice(start, start + 10) for start in corner)
        assert check_orientation(signal[piece], mask[piece], table, affine).is_given_best


def test_noise_cannot_be_judged(rng, protocol):
    signal = simulation.add_noise(np.full((12, 12, 12, 32), 1.0), 0.1, rng)
    check = check_orientation(signal, np.ones((12, 12, 12), bool), protocol, np.eye(4))
    assert check.is_given_best
    assert not check.is_conclusive
    assert "cannot be judged" in check.message


def test_nothing_to_look_at_cannot_be_judged(protocol):
    check = check_orientation(np.zeros((5, 5, 5, 32)), np.zeros((5, 5, 5), bool), protocol, np.eye(4))
    assert check.is_given_best
    assert not check.is_conclusive


def test_few_slices_are_judged_in_plane_only_and_not_fixed(head):
    signal, mask, table, affine = head
    slices = np.s_[:, :, [4, 11, 18]]
    check = check_orientation(signal[slices], mask[slices], table, affine)
    assert check.is_given_best
    assert len(check.scores) == 4
    mirrored = disturbed(table, affine, np.diag([-1.0, 1, 1]))
    check = check_orientation(signal[slices], mask[slices], mirrored, affine)
    assert not check.is_given_best
    assert not check.is_fixable
    with pytest.raises(GradientError, match="too few slices"):
        corrected(mirrored, check, affine)


def test_planar_encoding_is_told_from_wrong_axes(head):
    signal, mask, table, affine = head
    weighted = table.bvals > 0
    tensors = fit_tensor(signal.reshape(-1, signal.shape[-1]), table)
    projected = np.einsum("ni,vij,nj->vn", table.directions[weighted], tensors, table.directions[weighted])
    b0 = signal[..., ~weighted].mean(axis=-1).reshape(-1, 1)
    planar = signal.copy()
    trace = np.trace(tensors, axis1=1, axis2=2)[:, None]
    planar[..., weighted] = (b0 * np.exp(-1000 * (trace - projected) / 2)).reshape(*mask.shape, -1)
    check = check_orientation(planar, mask, table, affine)
    assert not check.is_linear
    assert not check.is_fixable
    assert "encoding may not be linear" in check.message


def test_linear_encoding_with_wrong_axes_stays_linear(head):
    signal, mask, table, affine = head
    for _, matrix, _ in check_orientation(signal, mask, table, affine).scores[::5]:
        assert check_orientation(signal, mask, disturbed(table, affine, matrix), affine).is_linear
