"""Adaptation to scans: held-out signal never gets worse, and a fit that was interrupted goes on to the same network."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from shd_bids.response.response import Responses
from shd_bids.training.adapt import AdaptationOptions, _arithmetic, _thinned, adapt
from shd_bids.training.config import ScanTraining, load_network_recipe
from tests.tiny import tiny_scan, tiny_weights


@pytest.fixture(scope="module")
def weights():
    return tiny_weights()


@pytest.fixture(scope="module")
def scene():
    return tiny_scan()


def run_adaptation(scene, weights, *, checkpoint=None, progress=lambda stage, share: None, recipe=None, **options):
    return adapt(
        [scene],
        weights=weights,
        device=torch.device("cpu"),
        options=AdaptationOptions(**({"max_steps": 20, "seed": 1} | options)),
        checkpoint=checkpoint,
        progress=progress,
        recipe=recipe,
    )


@pytest.fixture(scope="module")
def adapted(scene, weights):
    """What twenty steps make of the weights."""
    return run_adaptation(scene, weights)


def test_adaptation_improves_what_the_network_never_saw(adapted, weights):
    assert adapted.improved and (adapted.weights.name, adapted.weights.sha256) == (weights.name, weights.sha256)
    assert adapted.facts["held_out_after"] < adapted.facts["held_out_before"]
    assert all(np.isfinite(r["loss"]) for r in adapted.facts["history"] if "loss" in r)


def test_the_penalty_of_the_total_variation_is_used(scene, weights):
    squared, absolute = (run_adaptation(scene, weights, max_steps=2, tv_penalty=p) for p in ("squared", "absolute"))
    first, second = (a.facts["history"][1]["smoothness"] for a in (squared, absolute))
    assert second > 2 * first, "differences below one are larger than their squares"


def test_a_harmful_adaptation_is_not_kept(scene, adapted, monkeypatch):
    good = adapted.weights
    monkeypatch.setattr("shd_bids.training.adapt._FROM_WEIGHTS", ScanTraining(steps=60, learning_rate=30.0))
    worse = run_adaptation(scene, good, max_steps=10)
    assert not worse.improved
    for name, value in worse.weights.state.items():
        torch.testing.assert_close(value, good.state[name], rtol=0, atol=0)


@pytest.mark.slow
def test_an_interrupted_adaptation_goes_on_to_the_same_network(scene, weights, adapted, tmp_path):
    def stop(stage, share):
        if share == 0.6:
            raise KeyboardInterrupt

    checkpoint = tmp_path / "checkpoint.pt"
    with pytest.raises(KeyboardInterrupt):
        run_adaptation(scene, weights, checkpoint=checkpoint, progress=stop)
    assert checkpoint.exists()
    parts = run_adaptation(scene, weights, checkpoint=checkpoint)
    assert parts.facts["history"] == adapted.facts["history"]
    for name, value in adapted.weights.state.items():
        torch.testing.assert_close(parts.weights.state[name], value, rtol=0, atol=0)
    assert not checkpoint.exists()


def scans_of(scene):
    """Two series of one head: as it is, and eight times brighter with half of the directions."""
    half = scene.select(np.arange(0, scene.gradients.n_volumes, 2))
    bright = Responses(*(response.scaled(8) for response in half.responses.tissues))
    return [scene, replace(half, voxels=8 * half.voxels, responses=bright, sigma=8 * half.sigma)]


@pytest.mark.slow
def test_a_cohort_is_adapted_to_all_of_its_series_together(scene, weights):
    adapted = adapt(
        scans_of(scene),
        weights=weights,
        device=torch.device("cpu"),
        options=AdaptationOptions(max_steps=40, seed=1),
        checkpoint=None,
        progress=lambda stage, share: None,
    )
    errors = adapted.facts["held_out_by_scan"]
    assert adapted.improved and all(after < before for before, after in errors)
    assert np.mean([before for before, _ in errors]) == pytest.approx(adapted.facts["held_out_before"])
    assert errors[0][0] == pytest.approx(errors[1][0], rel=0.5), "errors are relative to the signal of each series"


@pytest.mark.slow
def test_adaptation_from_nothing_learns_the_fibre_directions(scene):
    network = {"nside": 2, "channels": (8, 8)}
    recipe = replace(load_network_recipe("conditioned"), network=network, l_max=4)
    adapted = run_adaptation(scene, None, max_steps=30, recipe=recipe)
    held = [r["held_out"] for r in adapted.facts["history"] if "held_out" in r]
    assert adapted.improved and min(held) < 0.5 * held[0]
    assert (adapted.weights.method, adapted.weights.is_refined) == ("conditioned", True)


def test_the_loss_weight_of_the_user_counts_before_that_of_the_recipe(scene, weights):
    plain, none = (run_adaptation(scene, weights, max_steps=1, lambda_tv=value) for value in (None, 0.0))
    assert plain.facts["tv_weight"] == 0.5 and "smoothness" in plain.facts["history"][1]
    assert none.facts["tv_weight"] == 0.0 and "smoothness" not in none.facts["history"][1]


def test_long_records_are_thinned():
    history = [{"step": 0, "held_out": 1.0}, *({"step": n, "loss": 1.0} for n in range(1, 9001))]
    history[777]["held_out"] = 0.5
    kept = _thinned(history)
    assert len(kept) < 2010 and kept[0] == history[0] and history[777] in kept and kept[-1] == history[-1]


def test_an_adaptation_on_the_cpu_is_in_float32():
    assert _arithmetic("bf16", torch.device("cpu")) == _arithmetic("auto", torch.device("cpu")) == "float32"
    assert _arithmetic("bf16", torch.device("cuda", 0)) == "bf16"
