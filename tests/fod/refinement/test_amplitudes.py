"""Amounts of tissues: the data settle what they can tell, and b=0 is matched."""

from dataclasses import replace

import numpy as np
import pytest

from shd_bids import simulation
from shd_bids.fod.config import RefinementConfig
from shd_bids.fod.fod import FOD
from shd_bids.fod.refinement import amplitudes
from shd_bids.fod.refinement.amplitudes import fit_amplitudes
from shd_bids.fod.refinement.dictionary import LobeDictionary
from tests.fod.refinement.answers import L_MAX, lobes_along, scan_of, subject


def dictionary_without(*tissues):
    _, responses = subject()
    scan = scan_of(np.zeros((0, 53)), responses.only([t for t in ("wm", "gm", "csf") if t not in tissues]))
    return LobeDictionary.of(scan, RefinementConfig(), l_max=L_MAX)


def test_the_data_settle_the_amplitudes_and_the_network_what_they_cannot_tell(rng):
    shape = rng.uniform(1.0, 3.0, size=(5, 40))
    basis = rng.uniform(1.0, 3.0, size=(40, 2))
    truth_s, truth_z = np.array([[0.6], [1.0], [1.3], [1.9], [1.2]]), rng.uniform(0.1, 1.0, size=(5, 2))
    signal = truth_s * shape + truth_z @ basis.T
    prior, given = np.full((5, 2), 0.3), {"amount": np.full((5, 1), 0.2), "dictionary": dictionary_without()}
    s, z = amplitudes._solve(signal * 1e4, shape * 1e4, basis * 1e4, prior, **given)
    np.testing.assert_allclose(s, truth_s, rtol=0.05)
    np.testing.assert_allclose(z, truth_z, rtol=0.1)
    s, z = amplitudes._solve(signal * 1e-6, shape * 1e-6, basis * 1e-6, prior, **given)
    np.testing.assert_allclose(s, 1.0, atol=1e-3)
    np.testing.assert_allclose(z, prior, atol=1e-3)


@pytest.mark.parametrize("without", [(), ("gm",)])
def test_the_measured_b0_is_matched_exactly_and_shapes_stay(rng, without):
    dictionary = replace(dictionary_without(*without), noise=0.01)
    wm = lobes_along(simulation.uniform_directions(rng, 60).reshape(30, 2, 3), 20.0, L_MAX).astype(np.float32)
    fod = FOD(wm, *rng.uniform(0.05, 0.15, size=(2, 30)).astype(np.float32))
    signal = rng.uniform(0.2, 1.0, size=(30, 53)).astype(np.float32)
    found = fit_amplitudes(fod, signal, dictionary)
    predicted, b0 = dictionary.predict(found), dictionary.b0
    np.testing.assert_allclose(predicted[:, b0].mean(axis=1), signal[:, b0].mean(axis=1), rtol=1e-4)
    factor = found.wm[:, 1:] / wm[:, 1:]
    np.testing.assert_allclose(factor, factor[:, :1].repeat(factor.shape[1], axis=1), rtol=1e-3)
