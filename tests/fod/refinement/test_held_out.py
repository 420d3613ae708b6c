"""Choices by held-out directions: which volumes are left out, and which candidate wins."""

import numpy as np
import pytest

from shd_bids import simulation
from shd_bids.fod.refinement.held_out import first_close, held_out_directions


def test_a_fifth_of_each_shell_is_held_out_and_none_of_b0(rng):
    gradients = simulation.make_gradients(rng, {1000.0: 20, 2500.0: 30}, n_b0=3)
    hidden, shown = held_out_directions(gradients)
    assert [np.isin(shell.indices, hidden).sum() for shell in gradients.shells] == [0, 4, 6]
    np.testing.assert_array_equal(np.sort(np.r_[hidden, shown]), np.arange(gradients.n_volumes))


@pytest.mark.parametrize(("tolerance", "chosen"), [(1.0, 4), (1.05, 2), (2.0, 0)])
def test_the_first_candidate_near_the_best_is_chosen(tolerance, chosen):
    assert first_close({0: 2.0, 2: 1.04, 4: 1.0, 8: 1.3}, tolerance=tolerance) == chosen
