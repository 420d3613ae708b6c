"""Digits on the sphere in a volume: rotations move what they say, and tubes hold their digit."""

import numpy as np
import pytest

pytest.importorskip("sklearn")

from shd_bids.sphere.healpix import hemisphere
from tests.benchmarks.paper import digits
from tests.benchmarks.paper.digits import Digits, Sizes
from tests.benchmarks.paper.mnist import dice

SIZES = Sizes(edge=8, n_tubes=3, width=3, n_digits=4, nside=4)


@pytest.fixture(scope="module")
def data():
    return Digits.load(n_digits=4, test=True)


def test_test_images_are_no_training_images():
    parts = [Digits.load(n_digits=10, test=test) for test in (False, True)]
    assert len(parts[0].labels) + len(parts[1].labels) == 1797
    assert 0.19 < len(parts[1].labels) / 1797 < 0.21


def test_sampling_is_even_and_shows_the_image_upright():
    image = np.zeros((8, 8))
    image[6, 3:5] = 1.0  # at +x of the middle
    points = np.array(
        [[np.sin(0.93), 0, np.cos(0.93)], [-np.sin(0.93), 0, -np.cos(0.93)], [-np.sin(0.93), 0, np.cos(0.93)]]
    )
    values = digits.sampling(points) @ image.ravel()
    np.testing.assert_allclose(values, [1, 1, 0], atol=0.05)


def test_voxel_rotation_moves_the_image_on_the_sphere():
    image = np.random.default_rng(0).uniform(size=64)
    turn = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    points = hemisphere(4)
    quarter = np.rot90(image.reshape(8, 8)).ravel()
    np.testing.assert_allclose(digits.sampling(points @ turn) @ image, digits.sampling(points) @ quarter, atol=1e-9)


@pytest.mark.parametrize("kind", digits.ROTATIONS)
def test_rotations_are_of_the_parts_that_they_name(kind):
    voxel, grid = digits.draw_rotations(np.random.default_rng(0), kind)
    assert np.allclose(voxel, np.eye(3)) == (kind in ("none", "grid"))
    assert np.allclose(grid, np.eye(3)) == (kind in ("none", "voxel"))
    assert np.allclose(voxel, grid) == (kind in ("none", "joint"))


def test_tubes_run_along_one_axis_and_keep_their_size(rng):
    still = digits.tubes(rng, SIZES, np.eye(3))
    assert (still == still[:, :, :1]).all()
    counts = np.bincount(still.ravel(), minlength=5)
    assert sorted(counts[:4]) == [0, 72, 72, 72]
    turned = digits.tubes(np.random.default_rng(0), SIZES, np.array([[0.0, 0, 1], [0, 1, 0], [-1, 0, 0]]))
    assert (turned == turned[:1]).all()


def test_voxels_hold_images_of_their_digit(rng, data):
    signal, labels = digits.volume(rng, data, SIZES, "none")
    assert signal.shape == (8, 8, 8, 96)
    matrix = digits.sampling(hemisphere(4))
    for digit in np.unique(labels[labels < 4]):
        shown = data.images[data.labels == digit].reshape(-1, 64) @ matrix.T
        here = signal[labels == digit][:5]
        assert np.abs(here[:, None] - shown).max(axis=2).min(axis=1).max() < 1e-5


def test_dice_of_half_a_digit():
    true = np.array([0, 0, 1, 1, 2])
    assert dice(true, true, 2) == 1.0
    assert dice(np.array([0, 2, 1, 1, 2]), true, 2) == pytest.approx((2 / 3 + 1) / 2)
