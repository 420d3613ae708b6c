"""Updates by the data: nothing is split that the signal does not split."""

import numpy as np
import pytest

from shd_bids import simulation
from shd_bids.fod.config import RefinementConfig
from shd_bids.fod.refinement.dictionary import LobeDictionary
from shd_bids.fod.refinement.updates import DataUpdates
from shd_bids.peaks.search import find_peaks
from tests.fod.refinement.answers import L_MAX, fod_of, lobes_along, scan_of


@pytest.fixture(scope="module")
def dictionary():
    return LobeDictionary.of(scan_of(np.zeros((0, 53))), RefinementConfig(), l_max=L_MAX)


@pytest.mark.parametrize("kappa", [3.0, 6.0, 20.0])
def test_a_lobe_that_explains_its_signal_stays_as_broad_as_it_is(dictionary, rng, kappa):
    fod = fod_of(lobes_along(simulation.uniform_directions(rng, 20)[:, None], kappa, L_MAX))
    found = DataUpdates(dictionary, 32)(fod, dictionary.predict(fod))
    assert np.linalg.norm(found.wm - fod.wm) < 0.1 * np.linalg.norm(fod.wm)
    assert (find_peaks(found.wm, relative_threshold=0.1, prominence=0.15).n_fibres == 1).all()


def test_a_second_fibre_of_the_signal_is_found(dictionary, rng):
    axes = simulation.uniform_directions(rng, 40).reshape(20, 2, 3)
    axes[:, 1] = np.cross(axes[:, 0], axes[:, 1])
    axes[:, 1] /= np.linalg.norm(axes[:, 1], axis=1, keepdims=True)
    truth = fod_of(lobes_along(axes, 20.0, L_MAX))
    answer = fod_of(0.9 * lobes_along(axes[:, :1], 20.0, L_MAX) + 0.1 * lobes_along(axes[:, 1:], 20.0, L_MAX))
    found = DataUpdates(dictionary, 64)(answer, dictionary.predict(truth))
    assert np.linalg.norm(found.wm - truth.wm) < 0.4 * np.linalg.norm(answer.wm - truth.wm)


def test_without_updates_nothing_changes(dictionary):
    fod = fod_of(lobes_along(np.array([[[0.0, 0.0, 1.0]]]), 20.0, L_MAX))
    assert DataUpdates(dictionary, 0)(fod, dictionary.predict(fod)) is fod
