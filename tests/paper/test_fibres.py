"""Fibre detection: the validation volume chooses the threshold at which the test volume is told."""

import numpy as np
import pytest

from tests.benchmarks.paper import fibres
from tests.benchmarks.paper.base import Settings


@pytest.fixture
def drawn(monkeypatch):
    volumes = fibres.volumes(0, fibres.Size(6, 4, 1.6))
    monkeypatch.setattr(fibres, "volumes", lambda seed, size: volumes)
    return volumes


def with_false_peak(scene, share):
    """Return the true fibres, all of amplitude 1, with a false one of an amplitude as large as ``share``."""
    true = scene.truth
    false = np.cross(true[:, :1], [0.36, 0.48, 0.8])
    is_single = true.any(-1).sum(-1) == 1
    amplitudes = np.concatenate([true.any(-1), share * is_single[:, None]], axis=1)
    return fibres.Found(np.concatenate([true, false], axis=1), amplitudes)


@pytest.mark.parametrize(("at_validation", "rejects"), [(0.5, True), (0.2, False)])
def test_validation_volume_chooses_the_threshold(drawn, monkeypatch, tmp_path, at_validation, rejects):
    """False peaks of 0.4 in the test volume are rejected only where those of the validation volume ask for it."""
    shares = {id(drawn.validate): at_validation, id(drawn.test): 0.4}
    monkeypatch.setattr(fibres, "finder", lambda *_: lambda scene: with_false_peak(scene, shares[id(scene)]))
    outcome = fibres.measure("csd", fibres.HIGH, 0, Settings(1, "small", "cpu", tmp_path))
    assert outcome.arrays["threshold"] == pytest.approx(at_validation)
    assert (outcome.values["fdr"] == 0) == rejects
    assert (outcome.values["f1"] == 1) == rejects


def test_networks_are_trained_once_and_see_both_volumes(drawn, monkeypatch, tmp_path):
    trained, seen = [], []
    monkeypatch.setattr(fibres.learned, "train", lambda *_, **__: trained.append(1))
    monkeypatch.setattr(fibres.learned, "maxima", lambda _, scan, __: seen.append(scan) or "found")
    find = fibres.finder("shd", fibres.LOW, drawn, 0, Settings(1, "small", "cpu", tmp_path))
    assert [find(drawn.validate), find(drawn.test)] == ["found"] * 2
    assert len(trained) == 1
    assert all(scan.responses is not None for scan in seen)
    assert not np.array_equal(seen[0].voxels, seen[1].voxels)
