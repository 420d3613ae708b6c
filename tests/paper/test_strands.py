"""The strand phantom: its truth is that of its strands, and its signal that of the truth."""

import numpy as np
import pytest

from shd_bids import simulation
from tests.benchmarks.paper.strands import draw_strands, strand_phantom, strand_signal

SIZE = 10


@pytest.fixture(scope="module")
def drawn():
    strands = draw_strands(np.random.default_rng(2), SIZE, n_bundles=6, radius=1.8)
    return strands, *strand_phantom(strands, SIZE)


def test_fractions_fill_each_voxel(drawn):
    _, phantom, weight = drawn
    dropped = np.asarray(weight.sum(axis=1)).reshape(phantom.gm.shape) - phantom.wm
    total = phantom.wm + phantom.gm + phantom.csf + dropped
    np.testing.assert_allclose(total, 1, atol=1e-12)
    assert dropped.min() > -1e-12 and np.mean(dropped > 0.1) < 0.02
    assert phantom.gm.min() >= 0 and phantom.wm.max() <= 0.95 + 1e-9


def test_directions_are_those_of_the_strands(drawn):
    strands, phantom, _ = drawn
    place = np.rint(strands.points).astype(int)
    voxel = tuple(np.argwhere(phantom.fractions[..., 1] > 0.2)[0])
    here = (place == voxel).all(axis=1)
    for slot in range(2):
        own = here & (strands.bundle == phantom.bundle[*voxel, slot])
        mean = strands.tangents[own].mean(axis=0)
        assert abs(mean @ phantom.directions[*voxel, slot]) > 0.999 * np.linalg.norm(mean)


def test_bundles_cross(drawn):
    assert ((drawn[1].fractions >= 0.1).sum(axis=-1) >= 2).mean() > 0.1


def test_signal_is_lowest_along_the_strands(rng, drawn):
    strands, phantom, weight = drawn
    gradients = simulation.make_gradients(rng, {2000.0: 60}, n_b0=2)
    signal = strand_signal(strands, phantom, weight, gradients)
    single = np.argwhere((phantom.fractions[..., 0] > 0.6) & (phantom.fractions[..., 1] == 0))
    assert len(single)
    for voxel in single:
        lowest = gradients.directions[signal[tuple(voxel)][2:].argmin() + 2]
        assert abs(lowest @ phantom.directions[(*voxel, 0)]) > np.cos(np.radians(20))


def test_same_seed_gives_the_same_strands():
    one, other = (draw_strands(np.random.default_rng(7), SIZE, n_bundles=2, radius=1.0) for _ in range(2))
    np.testing.assert_array_equal(one.points, other.points)
