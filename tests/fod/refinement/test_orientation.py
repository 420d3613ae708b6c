"""Rotation of fODFs towards the data: exact on the sphere, back to the truth, and nothing where nothing is wrong."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from shd_bids import simulation
from shd_bids.fod.config import RefinementConfig
from shd_bids.fod.fod import FOD
from shd_bids.fod.refinement.dictionary import LobeDictionary
from shd_bids.fod.refinement.orientation import Alignment, generators, held_out_prior, rotated
from shd_bids.sphere.harmonics import degrees
from tests.fod.refinement.answers import L_MAX, fod_of, lobes_along, scan_of, subject

CONFIG = RefinementConfig()


def turned(axes, angle, rng):
    """Turn axes (n, K, 3) of each voxel as a whole by an angle in degrees about random axes; return these as vectors too."""
    vectors = rng.normal(size=(len(axes), 3))
    vectors *= np.deg2rad(angle) / np.linalg.norm(vectors, axis=1, keepdims=True)
    matrices = Rotation.from_rotvec(vectors).as_matrix()
    return np.einsum("nij,nkj->nki", matrices, axes), vectors


def test_generators_are_antisymmetric_and_keep_degrees_apart():
    for generator in generators(8):
        np.testing.assert_allclose(generator, -generator.T, atol=1e-6)
        degree = degrees(8)
        assert np.abs(generator[degree[:, None] != degree]).max() < 1e-6


@pytest.mark.parametrize("angle", [1.0, 8.0, 20.0])
def test_the_series_is_the_rotation(rng, angle):
    axes = simulation.uniform_directions(rng, 20).reshape(10, 2, 3)
    moved, vectors = turned(axes, angle, rng)
    before, after = (lobes_along(a, 30.0, L_MAX) for a in (axes, moved))
    assert np.linalg.norm(rotated(before, vectors, L_MAX) - after) < 0.01 * np.linalg.norm(after)


@pytest.fixture
def crossing(rng):
    """Answers that are off by six degrees, the truth, and a scan of its signal."""
    axes = simulation.uniform_directions(rng, 60).reshape(30, 2, 3)
    truth = fod_of(lobes_along(axes, 20.0, L_MAX))
    answer = fod_of(lobes_along(turned(axes, 6.0, rng)[0], 20.0, L_MAX))
    scan = scan_of(np.zeros((30, 53)), subject()[1])
    matrix = scan.forward(L_MAX).matrix.double().numpy()
    signal = truth.wm @ matrix[:, : truth.wm.shape[1]].T + rng.normal(0, 0.01, size=(30, 53))
    return answer, truth, scan_of(signal)


def distance(first: FOD, second: FOD) -> float:
    return float(np.linalg.norm(first.wm - second.wm) / np.linalg.norm(second.wm))


def test_answers_turn_back_to_the_truth_and_keep_their_shape(crossing):
    answer, truth, scan = crossing
    dictionary = LobeDictionary.of(scan, CONFIG, l_max=L_MAX)
    signal = dictionary.signal_of(scan, slice(None))
    assert held_out_prior(answer, signal, scan, dictionary) > 0
    align = Alignment(scan, dictionary, l_max=L_MAX, prior=8.0, volumes=np.arange(53))
    found = align(answer, signal)
    assert distance(found, truth) < 0.4 * distance(answer, truth)
    for degree in (2, 8, 16):
        there = degrees(L_MAX) == degree
        power = [np.linalg.norm(f.wm[:, there], axis=1) for f in (found, answer)]
        np.testing.assert_allclose(*power, rtol=0.02)


def test_right_answers_stay(crossing):
    _, truth, scan = crossing
    dictionary = LobeDictionary.of(scan, CONFIG, l_max=L_MAX)
    signal = dictionary.signal_of(scan, slice(None))
    assert held_out_prior(truth, signal, scan, dictionary) == 0
    assert Alignment(scan, dictionary, l_max=L_MAX, prior=0.0, volumes=np.arange(53))(truth, signal) is truth
