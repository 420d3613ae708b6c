"""Choices by held-out directions: which volumes each part leaves out, and which candidate wins."""

import numpy as np
import pytest

from shd_bids import simulation
from shd_bids.fod.refinement.held_out import cross_validated, first_close, folds


def test_every_direction_is_hidden_once_and_b0_never(rng):
    gradients = simulation.make_gradients(rng, {1000.0: 20, 2500.0: 33}, n_b0=3)
    parts = folds(gradients)
    weighted = np.setdiff1d(np.arange(gradients.n_volumes), gradients.b0_indices)
    np.testing.assert_array_equal(np.sort(np.concatenate([part.hidden for part in parts])), weighted)
    for part in parts:
        assert np.isin(gradients.shells[1].indices, part.hidden).sum() == 2
        np.testing.assert_array_equal(np.sort(np.r_[part.hidden, part.shown]), np.arange(gradients.n_volumes))


def test_every_voxel_belongs_to_one_part(rng):
    gradients = simulation.make_gradients(rng, {1000.0: 12}, n_b0=1)
    voxels = np.concatenate([np.arange(47)[part.voxels] for part in folds(gradients)])
    np.testing.assert_array_equal(np.sort(voxels), np.arange(47))


def test_errors_are_averaged_over_all_parts(rng):
    gradients = simulation.make_gradients(rng, {1000.0: 12}, n_b0=1)

    def errors(fold):
        best_here = fold.voxels.start < 2
        return {
            "seldom": np.full((3, 2), 0.0 if best_here else 1.0),
            "often": np.full((3, 2), 1.0 if best_here else 0.0),
        }

    assert cross_validated(errors, gradients, tolerance=1.02) == "often"


def test_without_directions_or_voxels_nothing_is_chosen(rng):
    gradients = simulation.make_gradients(rng, {1000.0: 12}, n_b0=1)
    assert cross_validated(lambda fold: {0: np.zeros((0, 1))}, gradients, tolerance=1.02) is None


@pytest.mark.parametrize(("tolerance", "chosen"), [(1.0, 4), (1.05, 2), (2.0, 0)])
def test_the_first_candidate_near_the_best_is_chosen(tolerance, chosen):
    assert first_close({0: 2.0, 2: 1.04, 4: 1.0, 8: 1.3}, tolerance=tolerance) == chosen
