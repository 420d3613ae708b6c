"""The constrained fit: against Lawson and Hanson, and its constraints."""

import numpy as np
from scipy.optimize import nnls

from shd_bids.response import single_fibre


def test_constrained_fit_is_the_non_negative_least_squares_of_lawson_and_hanson(rng):
    design = rng.normal(size=(30, 6))
    rows = rng.normal(size=(40, 30))
    expected = np.stack([nnls(design, row)[0] for row in rows])
    assert (expected == 0).any()
    np.testing.assert_allclose(single_fibre.constrained_fit(rows, design, np.eye(6)), expected, atol=1e-7)


def test_constrained_fit_obeys_its_constraints_and_leaves_the_free_alone(rng):
    design, rows = rng.normal(size=(30, 5)), 1e4 * rng.normal(size=(50, 30))
    constraints = rng.normal([3, 0, 0, 0, 0], 1, size=(80, 5))
    solution = single_fibre.constrained_fit(rows, design, constraints)
    assert (solution @ constraints.T).min() > -1e-6 * np.abs(solution).max()
    free = np.linalg.lstsq(design, rows.T, rcond=None)[0].T
    is_free = (free @ constraints.T).min(axis=1) >= 0
    assert 0 < is_free.sum() < 50
    np.testing.assert_allclose(solution[is_free], free[is_free], rtol=1e-6)
