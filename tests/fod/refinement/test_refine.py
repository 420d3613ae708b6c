"""The chain of the refinement: good answers keep their shape, wrong ones are moved towards the data."""

import numpy as np
import pytest

from shd_bids import simulation
from shd_bids.fod.config import RefinementConfig
from shd_bids.fod.fod import FOD
from shd_bids.fod.refinement.refine import refine_fod
from shd_bids.response.forward import forward_model
from shd_bids.sphere.harmonics import sh_basis
from shd_bids.sphere.healpix import hemisphere
from tests.fod.refinement.answers import L_MAX, lobes_along, scan_of, subject

CONFIG = RefinementConfig()


@pytest.fixture(scope="module")
def matrix():
    return forward_model(*subject(), l_max=L_MAX).matrix.double().numpy()


@pytest.fixture
def voxels(matrix, rng):
    """Crossings with grey matter and CSF, and their noisy signal."""
    directions = simulation.uniform_directions(rng, 60).reshape(30, 2, 3)
    isotropic = rng.uniform(0.05, 0.2, size=(30, 2))
    truth = np.concatenate([lobes_along(directions, CONFIG.kappa, L_MAX), isotropic], axis=1)
    signal = truth @ matrix.T
    return truth, signal + rng.normal(0, 0.01, size=signal.shape)


def refined(answer, signal, config=CONFIG):
    """Refine coefficients (n, C + 2); return them with the number of updates."""
    wm, gm, csf = np.split(answer.astype(np.float32), [-2, -1], axis=1)
    fod = FOD(wm.copy(), gm[:, 0].copy(), csf[:, 0].copy())
    fod, n_updates = refine_fod(fod, scan_of(signal), config)
    return np.concatenate([fod.wm, fod.gm[:, None], fod.csf[:, None]], axis=1), n_updates


def test_an_answer_that_predicts_well_keeps_its_shape(voxels):
    truth, signal = voxels
    found, _ = refined(truth, signal)
    assert np.linalg.norm((found - truth)[:, :-2]) < 0.15 * np.linalg.norm(truth[:, :-2])
    np.testing.assert_allclose(found[:, -2:], truth[:, -2:], atol=0.05)


def test_a_wrong_answer_is_moved_towards_the_data_and_stays_one_of_lobes(matrix, voxels):
    truth, signal = voxels
    prior = truth.copy()
    prior[:, 1:-2] *= 0.7  # too blunt
    prior[:, -2:] *= 1.5
    found, n_updates = refined(prior, signal)
    clean = truth @ matrix.T
    error = found @ matrix.T - clean
    assert n_updates > 0 and (error**2).mean() < 0.2 * ((prior @ matrix.T - clean) ** 2).mean()
    negative = [-(c @ sh_basis(hemisphere(8), L_MAX).T).clip(max=0).sum() for c in (found[:, :-2], truth[:, :-2])]
    assert negative[0] < 1.2 * negative[1] and found[:, -2:].min() >= 0  # no more than the ripples of lobes


def test_the_configuration_decides_among_which_numbers_of_updates(voxels):
    truth, signal = voxels
    blunt = truth * np.r_[1, np.full(truth.shape[1] - 3, 0.7), 1.5, 1.5]
    assert refined(blunt, signal, RefinementConfig(updates=(0,)))[1] == 0
    assert refined(blunt, signal, RefinementConfig(updates=(0, 64), tolerance=1.0))[1] == 64


def test_no_voxels_are_no_problem(voxels):
    truth, signal = voxels
    found, n_updates = refined(truth[:0], signal[:0])
    assert (found.shape, n_updates) == (truth[:0].shape, 0)
