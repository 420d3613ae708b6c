"""Masks that are estimated from the image without weighting."""

import numpy as np
import pytest

from shd_bids.errors import InputError
from shd_bids.images import estimate_mask


def ball(size, radius):
    grid = np.stack(np.meshgrid(*[np.arange(size) - (size - 1) / 2] * 3), axis=-1)
    return np.linalg.norm(grid, axis=-1) < radius


def test_a_brain_in_air_is_found(rng):
    truth = ball(24, 8)
    image = np.abs(np.where(truth, 100, 0) + rng.normal(0, 4, truth.shape))
    found = estimate_mask(image, voxel_size=2.5)
    assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.97


def test_a_small_brain_is_found_as_a_large_one(rng):
    truth = ball(24, 8)
    image = np.abs(np.where(truth, 100, 0) + rng.normal(0, 4, truth.shape))
    np.testing.assert_array_equal(estimate_mask(image, voxel_size=0.1), estimate_mask(image, voxel_size=2.5))


def test_a_crop_from_inside_the_brain_is_taken_whole(rng):
    """Fluid four times as bright as tissue: Otsu's threshold parts these two."""
    image = np.where(ball(12, 4), 400, 100) + rng.normal(0, 5, (12, 12, 12))
    assert estimate_mask(image).all()


def test_no_mask_of_nothing():
    with pytest.raises(InputError, match="zero everywhere"):
        estimate_mask(np.zeros((5, 5, 5)))
