"""What streamlines visit, against the same by points so dense that no voxel is missed."""

import nibabel as nib
import numpy as np
import pytest
from nibabel.streamlines import ArraySequence
from scipy.spatial.transform import Rotation

from shd_bids.errors import InputError
from shd_bids.tractography import visits
from shd_bids.tractography.density import means_along, track_density
from shd_bids.tractography.fixels import WIDEST, Fixels
from shd_bids.tractography.visits import lengths_in

SHAPE = (9, 8, 7)
_TURNED = Rotation.from_rotvec([0.2, 0.5, -0.3]).as_matrix() @ np.diag([-2.0, 2, 2.5])
AFFINE = nib.affines.from_matvec(_TURNED, -_TURNED @ (np.array(SHAPE) - 1) / 2)  # the middle is the origin
DENSE = 4000  # points of a segment


@pytest.fixture
def lines(rng) -> ArraySequence:
    """Lines with steps of several voxels, some of them out of the image."""
    turns = [np.cumsum(rng.normal(0, 4, (k, 3)), axis=0) for k in (2, 5, 9, 3)]
    return ArraySequence([(line - line[0] + 0.3).astype(np.float32) for line in turns])


@pytest.fixture
def fixels(rng) -> Fixels:
    """Two lobes in most voxels of a mask with holes."""
    mask = rng.random(SHAPE) > 0.2
    directions = rng.normal(size=(mask.sum(), 2, 3))
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    density = rng.random((mask.sum(), 2)) * (rng.random((mask.sum(), 2)) > 0.3)
    return Fixels(
        directions.astype(np.float32), density.astype(np.float32), np.ones(mask.sum(), np.float32), mask, AFFINE
    )


def dense(line: np.ndarray):
    """Yield voxel and length in mm of each of many small pieces, with the direction of its segment."""
    middle = (np.arange(DENSE) + 0.5)[:, None] / DENSE
    for a, b in zip(line[:-1].astype(float), line[1:].astype(float), strict=True):
        length = np.linalg.norm(b - a)
        places = np.rint(nib.affines.apply_affine(np.linalg.inv(AFFINE), a + middle * (b - a))).astype(int)
        inside = ((places >= 0) & (places < SHAPE)).all(axis=1)
        yield places[inside], length / DENSE, (b - a) / length


def expected_lengths(fixels: Fixels, line: np.ndarray) -> np.ndarray:
    numbers = np.full(SHAPE, -1)
    numbers[fixels.mask] = np.arange(fixels.mask.sum())
    lengths = np.zeros(fixels.density.size)
    for places, piece, direction in dense(line):
        rows = numbers[tuple(places.T)]
        rows = rows[rows >= 0]
        along = np.abs(fixels.directions[rows] @ direction) * (fixels.density[rows] > 0)
        found = along.max(axis=1) >= WIDEST
        np.add.at(lengths, 2 * rows[found] + along.argmax(axis=1)[found], piece)
    return lengths


@pytest.mark.parametrize("n_threads", [1, 3])
def test_lengths_are_those_of_small_pieces(fixels, lines, n_threads):
    found = lengths_in(fixels, lines, n_threads=n_threads)
    expected = np.stack([expected_lengths(fixels, line) for line in lines])
    assert expected.sum() > 10
    np.testing.assert_allclose(found.toarray(), expected, atol=0.03)
    assert found.has_canonical_format


def test_threads_change_nothing(fixels, lines):
    one, many = (lengths_in(fixels, lines, n_threads=n) for n in (1, 8))
    np.testing.assert_array_equal(one.toarray(), many.toarray())


def test_density_counts_every_voxel_once(lines):
    """Voxels that small pieces miss are those that a line only touches."""
    expected = np.zeros(SHAPE)
    for line in lines:
        visited = np.zeros(SHAPE, bool)
        for places, _, _ in dense(line):
            visited[tuple(places.T)] = True
        expected += visited
    found = track_density(lines, AFFINE, SHAPE)
    assert (found >= expected).all() and found.sum() <= expected.sum() + 2


def test_density_of_weights_is_their_sum(lines):
    weights = np.array([0.5, 2.0, 0.0, 1.25])
    alone = [track_density(lines[k : k + 1], AFFINE, SHAPE) for k in range(len(lines))]
    np.testing.assert_allclose(track_density(lines, AFFINE, SHAPE, weights), np.tensordot(weights, alone, 1))


def test_means_are_those_of_small_pieces(lines, rng):
    volume = rng.random(SHAPE).astype(np.float32)
    found = means_along(lines, volume, AFFINE)
    for line, mean in zip(lines, found, strict=True):
        pieces = [(volume[tuple(places.T)].sum() * piece, len(places) * piece) for places, piece, _ in dense(line)]
        total, length = np.sum(pieces, axis=0)
        assert mean == pytest.approx(total / length, abs=0.01)
    outside = ArraySequence([np.array([[900, 0, 0], [905, 0, 0]], np.float32)])
    assert np.isnan(means_along(outside, volume, AFFINE)).all()


def test_a_point_that_is_no_number_ends(fixels):
    bad = ArraySequence([np.array([[0, 0, 0], [np.nan, 0, 0], [2, 0, 0]], np.float32)])
    assert lengths_in(fixels, bad).shape == (1, fixels.density.size)
    assert track_density(bad, AFFINE, SHAPE).max() <= 1


def test_without_a_kernel_the_user_is_told(monkeypatch, fixels, lines):
    monkeypatch.setattr(visits, "library", lambda kernel: None)
    with pytest.raises(InputError, match=r"C\+\+ compiler"):
        lengths_in(fixels, lines)
