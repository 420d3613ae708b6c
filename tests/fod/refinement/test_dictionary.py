"""Lobe dictionary: fODFs taken apart and put together, the width of lobes, and what they predict."""

import numpy as np
import pytest

from shd_bids import simulation
from shd_bids.fod.config import RefinementConfig
from shd_bids.fod.refinement.dictionary import LobeDictionary, LobeField
from shd_bids.peaks.search import find_peaks
from shd_bids.sphere.harmonics import SQRT_4PI, sh_basis
from shd_bids.sphere.healpix import hemisphere
from shd_bids.sphere.lobes import lobes
from tests.fod.refinement.answers import L_MAX, TRAINED_KAPPA, fod_of, lobes_along, scan_of, subject

CONFIG = RefinementConfig()


@pytest.fixture(scope="module")
def dictionary():
    return LobeDictionary.of(scan_of(np.zeros((0, 53))), CONFIG, l_max=L_MAX)


def test_weights_lie_along_the_axes_of_their_lobes(dictionary, rng):
    axis = simulation.uniform_directions(rng, 20)[:, None]
    wm = 2.5 * lobes_along(axis, 45.0, L_MAX)
    weights = dictionary.decompose(fod_of(wm), 45.0).weights
    np.testing.assert_allclose(weights.sum(axis=1), SQRT_4PI * wm[:, 0], rtol=1e-5)
    near = np.abs(axis[:, 0] @ dictionary.axes.T) > np.cos(np.radians(12))
    assert (weights * near).sum(axis=1).min() > 0.8 * 2.5


def test_an_axis_anywhere_becomes_one_peak(dictionary, rng):
    wm = lobes_along(simulation.uniform_directions(rng, 200)[:, None], 30.0, L_MAX)
    fod = dictionary.expand(dictionary.decompose(fod_of(wm), 30.0))
    peaks = find_peaks(fod.wm, max_peaks=3)
    assert (peaks.amplitudes[:, 1] < 0.1 * peaks.amplitudes[:, 0]).mean() > 0.98


def test_the_lobes_resemble_the_answer(dictionary, rng):
    wm = lobes_along(simulation.uniform_directions(rng, 40).reshape(20, 2, 3), 45.0, L_MAX)
    grid = hemisphere(8)
    amplitudes = dictionary.decompose(fod_of(wm), 45.0).weights @ lobes(grid, dictionary.axes, 45.0)
    for found, expected in zip(amplitudes, wm @ sh_basis(grid, L_MAX).T, strict=True):
        assert np.corrcoef(found, expected)[0, 1] > 0.98


def test_narrower_lobes_part_a_crossing_that_those_of_the_training_hide(dictionary, rng):
    first = simulation.uniform_directions(rng, 20)
    side = np.cross(first, simulation.uniform_directions(rng, 20))
    side /= np.linalg.norm(side, axis=1, keepdims=True)
    half = np.radians(9)
    pair = np.stack([np.cos(half) * first + sign * np.sin(half) * side for sign in (-1, 1)], axis=1)
    before = lobes_along(pair, 45.0, L_MAX)
    after = dictionary.expand(dictionary.decompose(fod_of(before), 34.0)).wm
    dip = []
    for c in (before, after):
        middle = np.einsum("nc,nc->n", c, sh_basis(first, L_MAX))
        dip.append(middle / np.einsum("nc,nc->n", c, sh_basis(pair[:, 0], L_MAX)))
    assert np.mean(dip[1]) < np.mean(dip[0]) - 0.02


@pytest.mark.parametrize("given", [15.0, 36.0, 45.0])
def test_the_width_is_that_of_single_fibres_and_more_the_wider_they_are(dictionary, rng, given):
    fibres = [simulation.uniform_directions(rng, n * 100).reshape(100, n, 3) for n in (1, 2)]
    wm = np.concatenate([rng.uniform(0.8, 1.0, size=(100, 1)) * lobes_along(axes, given, L_MAX) for axes in fibres])
    empty = 0.05 * lobes_along(fibres[0], 80.0, L_MAX)  # narrow, but no white matter
    found = dictionary.width_in(fod_of(np.concatenate([wm, empty])), trained_kappa=TRAINED_KAPPA)
    assert found == pytest.approx(max(given**2 / TRAINED_KAPPA, 20), abs=1)


def test_without_white_matter_the_width_of_the_training_is_assumed(dictionary):
    for n in (3, 0):
        assert dictionary.width_in(fod_of(np.zeros((n, 190))), trained_kappa=TRAINED_KAPPA) == TRAINED_KAPPA


@pytest.mark.parametrize("without", [(), ("gm",)])
def test_lobes_predict_what_their_coefficients_predict(rng, without):
    _, responses = subject()
    scan = scan_of(np.zeros((0, 53)), responses.only([t for t in ("wm", "gm", "csf") if t not in without]))
    dictionary = LobeDictionary.of(scan, CONFIG, l_max=L_MAX)
    field = LobeField(rng.random((5, CONFIG.n_axes)).astype(np.float32), *rng.random((2, 5)).astype(np.float32))
    fod = dictionary.expand(field)
    np.testing.assert_allclose(
        fod.predict(scan.forward(L_MAX)), dictionary.scale * dictionary.predict(field), rtol=1e-4
    )
    np.testing.assert_allclose(fod.wm[:, 0] * SQRT_4PI, field.weights.sum(axis=1), rtol=1e-5)
    assert all(not getattr(fod, tissue).any() for tissue in without)
    same = dictionary.unstacked(dictionary.stacked(field), field)
    for name in ("weights", "gm", "csf"):
        np.testing.assert_array_equal(getattr(same, name), getattr(field, name))
