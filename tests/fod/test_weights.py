"""Weights files: what is saved comes back, and anything else is refused with a reason."""

import hashlib
import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from shd_bids.errors import WeightsError
from shd_bids.fod.config import CHANNELS, InputConfig, PrecisionConfig, RefinementConfig, TrainedDomain
from shd_bids.fod.weights import FORMAT, Weights, load_weights, save_weights
from shd_bids.nn.unet import UNet, UNetConfig


@pytest.fixture
def net():
    torch.manual_seed(0)
    return UNet(UNetConfig(len(CHANNELS), 3, nside=2, channels=(4, 4)))


@pytest.fixture
def file(net, tmp_path):
    return save_weights(tmp_path / "own.safetensors", Weights.of(net, l_max=4, training={"seed": 1}))


def rewrite(file, *, metadata=None, state=None, drop=()):
    """Write the file again with other metadata or parameters."""
    from safetensors import safe_open

    with safe_open(file, framework="pt") as handle:
        old = {name: value for name, value in handle.metadata().items() if name not in drop}
    save_file(load_file(file) if state is None else state, file, metadata=old | (metadata or {}))


def test_saved_weights_compute_the_same(net, file, rng):
    weights = load_weights(file)
    x = torch.as_tensor(rng.normal(size=(1, len(CHANNELS), 4, 4, 4, 24)), dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(weights.network()(x), net.eval()(x), rtol=0, atol=0)
    assert (weights.l_max, weights.name, weights.training) == (4, "own", {"seed": 1})
    assert weights.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()


def test_tuned_numbers_and_the_domain_are_kept_with_the_weights(net, tmp_path):
    weights = replace(
        Weights.of(net, l_max=4, training={"seed": 1}, inputs=InputConfig(admm_penalty=(200.0, 20.0, 5.0))),
        refinement=RefinementConfig(updates=(0, 2)),
        precision=PrecisionConfig(noise_factor=0.4),
        domain=TrainedDomain(snr=(10.0, 20.0)),
    )
    found = load_weights(save_weights(tmp_path / "tuned.safetensors", weights))
    assert (found.inputs, found.refinement) == (weights.inputs, weights.refinement)
    assert (found.precision, found.domain) == (weights.precision, weights.domain)


def test_a_file_without_tuned_numbers_has_the_defaults(file):
    rewrite(file, drop=("inputs", "refinement", "precision", "domain"))
    found = load_weights(file)
    assert (found.inputs, found.refinement) == (InputConfig(), RefinementConfig())
    assert (found.precision, found.domain) == (PrecisionConfig(), TrainedDomain())


def test_a_number_that_is_not_known_is_refused(file):
    rewrite(file, metadata={"refinement": json.dumps({"n_axis": 3})})
    with pytest.raises(WeightsError, match=r"no usable configuration \(RefinementConfig has no n_axis"):
        load_weights(file)


def test_nothing_but_the_file_is_left(file):
    assert [p.name for p in file.parent.iterdir()] == ["own.safetensors"]
    assert file.stat().st_mode & 0o777 == 0o644, "another user could not read the weights"


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(WeightsError, match=r"no weights file at .*; give a \.safetensors file"):
        load_weights(tmp_path / "none.safetensors")


def test_truncated_file_is_refused(file):
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(WeightsError, match="cannot be read as safetensors"):
        load_weights(file)


def test_other_format_is_refused(file):
    rewrite(file, metadata={"format": "other-9"})
    with pytest.raises(WeightsError, match=f"format 'other-9', expected '{FORMAT}'"):
        load_weights(file)


def test_other_input_channels_are_refused(file):
    rewrite(file, metadata={"channels": json.dumps(["shell"])})
    with pytest.raises(WeightsError, match="with inputs"):
        load_weights(file)


def test_parameters_of_another_network_are_refused(file):
    rewrite(file, metadata={"config": json.dumps(UNetConfig(len(CHANNELS), 3, nside=2, channels=(8, 8)).to_dict())})
    with pytest.raises(WeightsError, match="does not fit its network"):
        load_weights(file)


def test_parameters_that_are_not_finite_are_refused(file):
    state = load_file(file)
    name = next(k for k in state if k.endswith("bias"))
    state[name] = torch.full_like(state[name], torch.nan)
    rewrite(file, state=state)
    with pytest.raises(WeightsError, match=name):
        load_weights(file)


@pytest.mark.parametrize("l_max", ["1000", "-2", "3", "0", "abc"])
def test_a_degree_that_no_fod_has_is_refused(file, l_max):
    rewrite(file, metadata={"l_max": l_max})
    with pytest.raises(WeightsError, match=f"no usable configuration .*{l_max}"):
        load_weights(file)


@pytest.mark.parametrize(
    "change",
    [
        {"convs_per_block": 2**40},
        {"order": 2**40},
        {"nside": 2**40},
        {"nside": 2**40, "channels": [4] * 41},
        {"channels": [2**40, 4]},
        {"channels": [2000, 4]},
        {"patch_size": 2**40},
        {"in_channels": 2**40},
        {"channels": None},
        {"channels": ["a"]},
        {"channels": []},
        {"nside": "x"},
        {"hemisphere": ""},
        {"hemisphere": False},
    ],
)
def test_absurd_networks_are_refused_before_they_are_built(file, net, change, monkeypatch):
    rewrite(file, metadata={"config": json.dumps(net.config.to_dict() | change)})
    monkeypatch.setattr("shd_bids.fod.weights.UNet", None)
    with pytest.raises(WeightsError, match="no usable configuration"):
        load_weights(file)


@pytest.mark.parametrize(
    "metadata",
    [
        {"config": "[]"},
        {"config": "[" * 100_000},
        {"training": "[]"},
        {"training": "[" * 100_000},
        {"channels": "{}"},
        {"channels": "[[]]"},
        {"inputs": '{"l_max": "12"}'},
        {"inputs": '{"isra_updates": 1099511627776}'},
        {"inputs": '{"admm_reach": []}'},
        {"refinement": '{"kappa": NaN}'},
        {"refinement": '{"amplitude_error": 0}'},
        {"inputs": '{"admm_penalty": [300, -20, 10]}'},
        {"refinement": '{"updates": [[1]]}'},
        {"domain": "3"},
    ],
)
def test_metadata_of_other_types_are_refused(file, metadata):
    rewrite(file, metadata=metadata)
    with pytest.raises(WeightsError):
        load_weights(file)


def test_parameters_that_are_all_zero_are_refused(file):
    rewrite(file, state={name: torch.zeros_like(value) for name, value in load_file(file).items()})
    with pytest.raises(WeightsError, match="filters are zero, first: "):
        load_weights(file)


def test_the_shipped_weights_are_sound():
    assert load_weights().name == "shd_bids"
