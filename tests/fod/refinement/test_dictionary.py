"""Lobe dictionary: fODFs taken apart and put together, and what they predict."""

import numpy as np
import pytest

from shd_bids import simulation
from shd_bids.fod.config import RefinementConfig
from shd_bids.fod.refinement.dictionary import LobeDictionary
from shd_bids.peaks.search import find_peaks
from shd_bids.sphere.harmonics import SQRT_4PI
from tests.fod.refinement.answers import L_MAX, lobes_along, scan_of, subject

CONFIG = RefinementConfig()


@pytest.fixture(scope="module")
def dictionary():
    return LobeDictionary.of(scan_of(np.zeros((0, 53))), CONFIG, l_max=L_MAX)


def test_weights_lie_along_the_axes_of_their_lobes(dictionary, rng):
    axis = simulation.uniform_directions(rng, 20)[:, None]
    wm = 2.5 * lobes_along(axis, 45.0, L_MAX)
    weights = dictionary.decompose(wm).numpy()
    np.testing.assert_allclose(weights.sum(axis=1), SQRT_4PI * wm[:, 0], rtol=1e-5)
    near = np.abs(axis[:, 0] @ dictionary.axes.T) > np.cos(np.radians(12))
    assert (weights * near).sum(axis=1).min() > 0.8 * 2.5


@pytest.mark.parametrize("kappa", [12.0, 30.0, 45.0])
def test_a_decomposition_expands_to_the_fod_it_came_from(dictionary, rng, kappa):
    """Broad lobes stay broad and narrow ones narrow, alone and crossing."""
    for n_fibres in (1, 2):
        wm = lobes_along(simulation.uniform_directions(rng, 20 * n_fibres).reshape(20, n_fibres, 3), kappa, L_MAX)
        again = dictionary.decompose(wm).numpy() @ dictionary.lobes
        assert np.linalg.norm(again - wm) < 0.05 * np.linalg.norm(wm)


def test_an_axis_anywhere_becomes_one_peak(dictionary, rng):
    wm = lobes_along(simulation.uniform_directions(rng, 200)[:, None], 30.0, L_MAX)
    peaks = find_peaks(dictionary.decompose(wm).numpy() @ dictionary.lobes, max_peaks=3)
    assert (peaks.amplitudes[:, 1] < 0.1 * peaks.amplitudes[:, 0]).mean() > 0.98


@pytest.mark.parametrize("without", [(), ("gm",)])
def test_it_predicts_what_the_forward_operator_predicts(rng, without):
    _, responses = subject()
    scan = scan_of(np.zeros((0, 53)), responses.only([t for t in ("wm", "gm", "csf") if t not in without]))
    dictionary = LobeDictionary.of(scan, CONFIG, l_max=L_MAX)
    weights, isotropic = rng.random((5, CONFIG.n_axes)).astype(np.float32), rng.random((5, 2)).astype(np.float32)
    isotropic = isotropic[:, len(without) :]
    fod = dictionary.with_isotropic(weights @ dictionary.lobes, isotropic)
    expected = fod.predict(scan.forward(L_MAX))
    np.testing.assert_allclose(dictionary.scale * dictionary.predict(fod), expected, rtol=1e-4)
    stacked = np.concatenate([weights, isotropic], axis=1)
    np.testing.assert_allclose(dictionary.scale * stacked @ dictionary.kernel.T, expected, rtol=1e-4)
    np.testing.assert_allclose(fod.wm[:, 0] * SQRT_4PI, weights.sum(axis=1), rtol=1e-5)
    np.testing.assert_array_equal(dictionary.isotropic_of(fod), isotropic)
    assert all(not getattr(fod, tissue).any() for tissue in without)
