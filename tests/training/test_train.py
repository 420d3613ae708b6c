"""Training on simulated crops: the loss falls, and a run that was stopped goes on to the same numbers."""

import json
import os
import subprocess
import sys
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from shd_bids import simulation
from shd_bids.errors import TrainingError
from shd_bids.fod.fit import fit_fod
from shd_bids.fod.weights import load_weights
from shd_bids.options import Runtime
from shd_bids.scan import Scan
from shd_bids.training import losses, train
from shd_bids.training.config import TrainingConfig
from shd_bids.training.objective import LossWeights

CONFIG = TrainingConfig(nside=2, channels=(8, 8), l_max=4, size=6, batch=2, steps=6, pool=4, seed=3)


def log(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_stopped_run_goes_on_to_the_same_weights(tmp_path, monkeypatch):
    whole = train.train(CONFIG, tmp_path / "whole", device="cpu", n_workers=0)
    monkeypatch.setattr(train, "CHECKPOINT_EVERY", 2)
    monkeypatch.setattr(train, "learning_rate", stop_at(4, train.learning_rate))
    with pytest.raises(KeyboardInterrupt):
        train.train(CONFIG, tmp_path / "parts", device="cpu", n_workers=0)
    monkeypatch.undo()
    parts = train.train(CONFIG, tmp_path / "parts", device="cpu", n_workers=0)
    for name, value in load_weights(whole).state.items():
        torch.testing.assert_close(load_weights(parts).state[name], value, rtol=0, atol=0)


def stop_at(step, rate):
    """Return ``rate`` until it is asked for ``step``; then act as the user pressing control-C."""

    def wrapped(now, config):
        if now == step:
            raise KeyboardInterrupt
        return rate(now, config)

    return wrapped


@pytest.mark.slow
def test_given_weights_are_the_start_and_must_fit(tmp_path, monkeypatch):
    first = load_weights(train.train(CONFIG, tmp_path / "first", device="cpu", n_workers=0))
    monkeypatch.setattr(train, "learning_rate", lambda step, config: 0.0)
    frozen = replace(CONFIG, frozen_share=1.0)
    second = load_weights(train.train(frozen, tmp_path / "second", device="cpu", start=first, n_workers=0))
    for name, value in first.state.items():
        torch.testing.assert_close(second.state[name], value, rtol=0, atol=0)
    with pytest.raises(TrainingError, match="weights to start from"):
        train.train(replace(CONFIG, channels=(8, 4)), tmp_path / "third", device="cpu", start=first, n_workers=0)


def test_what_is_written_is_the_mean_of_the_last_states(tmp_path, monkeypatch):
    states = {}
    for steps in range(4, CONFIG.steps + 1):
        monkeypatch.setattr(train, "learning_rate", lambda step, config: 1e-3)
        path = train.train(
            replace(CONFIG, steps=steps, frozen_share=0.0), tmp_path / str(steps), device="cpu", n_workers=0
        )
        states[steps] = load_weights(path).network().state_dict()
    config = replace(CONFIG, frozen_share=0.0, averaged_share=0.5)
    for _ in range(2):  # a finished training gives the same weights when it is asked for again
        mean = load_weights(train.train(config, tmp_path / "mean", device="cpu", n_workers=0)).network().state_dict()
        for name, value in mean.items():
            if value.is_floating_point():
                torch.testing.assert_close(value, sum(state[name] for state in states.values()) / len(states))
    assert not torch.equal(mean["head.bias"], states[CONFIG.steps]["head.bias"])


@pytest.mark.slow
def test_mixed_precision_trains_nearly_as_full_precision_does(tmp_path):
    for precision, steps in (("float32", 1), ("bf16", 20)):
        config = replace(CONFIG, precision=precision, steps=steps, reuse=12, learning_rate=1e-2)
        train.train(config, tmp_path / precision, device="cpu", n_workers=0)
    full, mixed = ([r["loss"] for r in log(tmp_path / name)] for name in ("float32", "bf16"))
    assert mixed[0] != full[0] and mixed[0] == pytest.approx(full[0], rel=0.02)
    assert np.mean(mixed[-6:]) < 0.8 * np.mean(mixed[:6])


def test_half_precision_is_refused_on_the_cpu(tmp_path, capsys):
    (tmp_path / "config.toml").write_text('precision = "bf16"\n')
    with pytest.raises(SystemExit, match="2"):
        train.main([str(tmp_path / "config.toml"), str(tmp_path / "out")])
    assert "found --device cpu" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_processes_that_cannot_share_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(train.distributed, "n_processes", lambda: 3)
    with pytest.raises(TrainingError, match="3 processes cannot share batches of 2 evenly"):
        train.train(CONFIG, tmp_path, device="cpu")


@pytest.mark.slow
def test_two_processes_reach_what_one_does(tmp_path):
    # Biases before a norm have no gradient but rounding, which Adam makes steps of; a frozen norm would show them.
    text = """
        nside = 2\nchannels = [8, 8]\nl_max = 4\nsize = 6\nbatch = 2\nsteps = 8\npool = 4\nseed = 3
        frozen_share = 0.0
        [loss]\nreconstruction = 1.0\nnegativity = 0.1\nsmoothness = 0.5
    """
    (tmp_path / "config.toml").write_text(text)
    train.train(TrainingConfig.from_toml(text), tmp_path / "one", device="cpu", n_workers=0)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = ["-m", "shd_bids.training", str(tmp_path / "config.toml"), str(tmp_path / "two"), "--workers", "0"]
    subprocess.run([*launcher, *command], check=True, timeout=300)
    for one, two in zip(log(tmp_path / "one"), log(tmp_path / "two"), strict=True):
        assert one.pop("seconds") >= 0 and two.pop("seconds") >= 0
        # Equal weights give equal losses; then other threads round otherwise, and each step of Adam makes more of it.
        assert two == pytest.approx(one, rel=1e-5 if one["step"] == 1 else 1e-3)
    found, expected = (load_weights(tmp_path / name / "weights.safetensors").state for name in ("two", "one"))
    for name, value in expected.items():
        if not name.endswith(("conv.bias", "running_mean")):
            torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_device_trains_as_the_cpu_does(tmp_path, precision):
    for device in ("cpu", "cuda"):
        config = replace(CONFIG, precision=precision if device == "cuda" else "float32")
        train.train(config, tmp_path / device, device=device, n_workers=0)
    here, there = ([r["loss"] for r in log(tmp_path / device)] for device in ("cpu", "cuda"))
    assert there == pytest.approx(here, rel=0.05 if precision == "bf16" else 0.01)


@pytest.mark.slow
def test_every_term_trains_and_the_loss_falls(tmp_path):
    loss = LossWeights(reconstruction=1.0, negativity=0.1, sparsity=5e-5, smoothness=0.5)
    config = replace(CONFIG, steps=40, learning_rate=1e-2, loss=loss)
    train.train(config, tmp_path, device="cpu", n_workers=0)
    records = log(tmp_path)
    assert set(records[0]) >= {field.name for field in fields(LossWeights)}
    losses = [r["loss"] for r in records]
    assert np.mean(losses[-8:]) < 0.7 * np.mean(losses[:8])


def test_a_network_of_raw_shells_trains_and_serves_its_protocol(tmp_path, rng):
    config = replace(CONFIG, steps=2, input="shells", protocol={"1000": 30, "3000": 60})
    weights = load_weights(train.train(config, tmp_path, device="cpu", n_workers=0))
    assert weights.channels == ("b0", "b1000", "b3000")
    gradients = config.gradients(rng)
    phantom = simulation.random_phantom(rng, 4)
    micro = simulation.draw_microstructure(rng, len(phantom.bundles))
    signal = simulation.noiseless_signal(phantom, micro, gradients)
    responses = simulation.true_responses(micro, gradients)
    mask = np.ones((4, 4, 4), dtype=bool)
    scan = Scan.of_volume(signal, mask, gradients, responses, np.eye(4))
    found = fit_fod(scan, weights, runtime=Runtime(device="cpu"))
    assert np.isfinite(found.wm).all()


@pytest.mark.slow
def test_frozen_norms_keep_their_averages(tmp_path):
    whole, half, free = (
        load_weights(train.train(replace(CONFIG, frozen_share=s), tmp_path / str(s), device="cpu", n_workers=0)).state
        for s in (1.0, 0.5, 0.0)
    )
    means = [name for name in whole if name.endswith("running_mean")]
    assert means and all(torch.all(whole[name] == 0) for name in means)
    assert all(torch.any(free[name] != 0) for name in means)
    counts = [state["encoder.0.0.norm.num_batches_tracked"].item() for state in (whole, half, free)]
    assert counts == [0, CONFIG.steps // 2, CONFIG.steps]


def test_a_loss_that_is_not_finite_stops_the_training(tmp_path, monkeypatch):
    monkeypatch.setattr(losses, "fraction_error", lambda found, *_: found.sum() * torch.nan)
    with pytest.raises(TrainingError, match="not finite in three steps up to 3; lower learning_rate"):
        train.train(CONFIG, tmp_path, device="cpu", n_workers=0)


def test_simulating_processes_take_one_thread_each(tmp_path, monkeypatch):
    """Whatever the training itself may use: libraries that each take all cores slow one another down."""
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    monkeypatch.setattr(train, "train", lambda *arguments, **named: None)
    monkeypatch.setattr(train, "keep_freed_memory", lambda: None)
    (tmp_path / "config.toml").write_text("steps = 1\n")
    threads = torch.get_num_threads()
    assert train.main([str(tmp_path / "config.toml"), str(tmp_path / "out"), "--threads", str(threads)]) == 0
    assert os.environ["OPENBLAS_NUM_THREADS"] == "1"
