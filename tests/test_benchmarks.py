"""What the comparisons compute themselves: figures of scores, bundles of published geometries."""

import numpy as np
import pytest

from shd_bids.simulation.scoring import score_peaks
from tests.benchmarks.scenes import bundles_from_control_points
from tests.benchmarks.scores import fnr_at, full_fibre_amplitude, peaks_per_voxel


def axes(*degrees):
    """Return axes in the x-y plane at the given angles, (k, 3)."""
    angle = np.radians(degrees)
    return np.stack([np.cos(angle), np.sin(angle), np.zeros_like(angle)], axis=1)


def test_missed_at_equal_discoveries():
    """The share missed is read off the curve between thresholds, and everything is missed where no error is allowed."""
    peaks = np.stack([axes(0, 45), axes(0, 45)])
    score = score_peaks(peaks, np.array([[1, 0.5], [0.2, 1]]), np.stack([axes(0), axes(0)]))
    assert fnr_at(score, 1.0) == 0.0
    assert fnr_at(score, 0.5) == 0.0
    assert 0.0 < fnr_at(score, 0.4) <= fnr_at(score, 0.1) <= 1.0
    assert fnr_at(score, 0.0) == 1.0


@pytest.mark.parametrize("scale", [1e-3, 1.0, 700.0])
def test_full_fibre_amplitude_is_the_scale_of_the_method(rng, scale):
    """An amplitude in proportion to the fraction gives the factor, whatever crossings and empty voxels there are."""
    fractions = rng.uniform(0.05, 1, (400, 3)) * (np.arange(3) < rng.integers(0, 4, 400)[:, None])
    assert full_fibre_amplitude(scale * fractions, fractions) == pytest.approx(scale)


def test_full_fibre_amplitude_needs_a_single_fibre():
    with pytest.raises(ValueError, match="exactly one fibre"):
        full_fibre_amplitude(np.ones((4, 2)), np.full((4, 2), 0.5))


def test_peaks_per_voxel_counts_those_above():
    amplitudes = np.array([[0.5, 0.1, 0.0], [0.05, 0.0, 0.0]])
    assert peaks_per_voxel(amplitudes, 0.1) == 0.5
    assert peaks_per_voxel(amplitudes, 0.04) == 1.5
    assert peaks_per_voxel(np.zeros((0, 3)), 0.1) == 0


def test_control_points_become_a_bundle_of_the_same_radius():
    geometry = {"arc": {"control_points": [-10, 0, 0, 0, 4, 0, 10, 0, 0], "radius": 2.0}}
    (bundle,) = bundles_from_control_points(geometry, shape=(20, 20, 20), extent=20.0)
    assert bundle.radius[0] == pytest.approx(2.0)
    nearest = np.linalg.norm(bundle.curve - np.array([9.5, 13.5, 9.5]), axis=1).min()
    assert nearest < 0.15, "the curve does not pass through its middle control point"


def test_turned_control_points_are_the_turned_bundle():
    geometry = {"arc": {"control_points": [-10, 0, 0, 0, 4, 0, 10, 0, 0], "radius": 2.0}}
    turn = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))[0]
    (plain,), (turned,) = (
        bundles_from_control_points(geometry, shape=(20, 20, 20), extent=20.0, turn=t) for t in (None, turn)
    )
    np.testing.assert_allclose(turned.curve - 9.5, (plain.curve - 9.5) @ turn, atol=1e-9)
