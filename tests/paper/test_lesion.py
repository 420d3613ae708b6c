"""The lesion: a volume-preserving displacement with the tangents that belong to it, and what becomes of the strands."""

import numpy as np
import pytest

from tests.benchmarks.paper.lesion import REGIONS, Lesion
from tests.benchmarks.paper.pathology import coherent_pairs, score
from tests.benchmarks.paper.strands import draw_strands, outside, strand_phantom

SIZE = 12


@pytest.fixture(scope="module")
def lesion():
    return Lesion(np.full(3, (SIZE - 1) / 2), 2.2)


@pytest.fixture(scope="module")
def strands():
    return draw_strands(np.random.default_rng(5), SIZE, n_bundles=5, radius=2.0)


def test_core_is_empty(lesion, strands):
    distance = np.linalg.norm(lesion.displace(strands).points - lesion.centre, axis=1)
    assert distance.min() >= lesion.radius


def test_displacement_keeps_volumes(lesion):
    r = np.array([1.0, 3.0])
    rho = np.cbrt(r**3 + lesion.radius**3)
    assert rho[1] ** 3 - rho[0] ** 3 == pytest.approx(r[1] ** 3 - r[0] ** 3)


def test_tangents_are_those_of_the_displaced_strands(lesion, strands):
    """Pieces of one strand follow one another, so differences of their places give the tangents."""
    moved = lesion.displace(strands)
    steps = (moved.points[2:] - moved.points[:-2])[:1000:7]
    within = np.linalg.norm(steps, axis=1) < 0.5  # not from one strand to the next
    steps /= np.linalg.norm(steps, axis=1, keepdims=True)
    cosine = (steps * moved.tangents[1:-1][:1000:7]).sum(axis=1)[within]
    assert within.sum() > 50
    assert cosine.min() > np.cos(np.radians(3))


def test_regions_follow_one_another(lesion):
    line = lesion.centre + np.linspace(0, 5.5, 200)[:, None] * np.array([1.0, 0, 0])
    shares = np.stack([lesion.within(name, line) for name in REGIONS])
    first = shares.argmax(axis=0)
    assert (np.diff(first) >= 0).all() and set(first) == {0, 1, 2, 3}


def test_rim_is_wet_and_thin(lesion, strands):
    moved = lesion.displace(strands)
    grid = np.indices((SIZE,) * 3).reshape(3, -1).T
    rim = lesion.within("oedema", grid)
    phantom, _ = strand_phantom(moved, SIZE, fluid=np.maximum(outside(SIZE), rim))
    inner = (rim > 0.6).reshape(phantom.csf.shape)
    assert inner.sum() > 20
    assert phantom.csf[inner].mean() > 0.3
    assert (phantom.csf > phantom.gm)[inner].all()


def test_peaks_that_are_the_truth_lose_and_invent_nothing(lesion, strands):
    phantom, _ = strand_phantom(lesion.displace(strands), SIZE)
    truth = phantom.true_directions()
    amplitudes = phantom.fractions * (phantom.fractions >= 0.1)
    where = np.ones(amplitudes.shape[:3], dtype=bool)
    found = score(truth, amplitudes, truth, where)
    assert found["lost"] < 0.02  # fibres less than 25 degrees apart may find one another
    assert found["invented"] < 0.02
    assert found["coherence"] > 0.98


def test_scattered_peaks_are_incoherent(rng):
    true = np.zeros((6, 6, 6, 3))
    true[..., 0] = 1
    found = rng.normal(size=true.shape)
    found /= np.linalg.norm(found, axis=-1, keepdims=True)
    where = np.ones((6, 6, 6), dtype=bool)
    assert coherent_pairs(true, true, where).min() == 1
    assert coherent_pairs(found, true, where).mean() < 0.6


def test_peaks_in_a_region_without_fibres_are_invented():
    peaks, none = np.zeros((2, 2, 2, 1, 3)), np.zeros((2, 2, 2, 1, 3))
    peaks[0, 0, 0, 0] = (1, 0, 0)
    assert score(peaks, (peaks.any(-1)).astype(float), none, np.ones((2, 2, 2), dtype=bool)) == {"invented": 1 / 8}
