"""Activations that are made again on the way back: the same gradients, made once, and not kept."""

import pytest
import torch

from shd_bids.nn.layers import norm
from shd_bids.nn.layers.checkpoint import Activation
from tests.nn.networks import SMALL, build, field


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_activations_made_again_change_nothing(generator, monkeypatch, dtype):
    x, normalise = field(generator, 4, 2, 2, dtype=dtype), norm.NormReLU.normalise
    first, second = (build(**SMALL, train=True, dtype=dtype) for _ in range(2))
    first(x).square().mean().backward()
    monkeypatch.setattr(norm.NormReLU, "normalise", lambda *y, **how: Activation(normalise(*y, **how).values))
    second(x).square().mean().backward()
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=0, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("masked", [False, True])
def test_what_a_normalisation_puts_out_is_not_kept(generator, dtype, masked):
    net, x = build(**SMALL, train=True, dtype=dtype), field(generator, 4, 2, 2, dtype=dtype)
    mask = torch.arange(16).view(1, 4, 2, 2) > 0 if masked else None
    kept = {}

    def keep(tensor):
        kept[tensor.data_ptr()] = tensor.shape
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        net(x, mask)
    maps = [shape for shape in kept.values() if len(shape) == 6 and shape[-1] > 1]
    assert len(maps) == 2 + 6  # the input, that of the coarser level, and what each convolution puts out


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_way_back_is_gone_once(generator, dtype):
    loss = build(**SMALL, train=True, dtype=dtype)(field(generator, 4, 2, 2, dtype=dtype)).sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="was taken before"):
        loss.backward()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_activations_are_made_again_once(generator, monkeypatch, dtype):
    made, rectify = [], norm._rectify
    monkeypatch.setattr(norm, "_rectify", lambda *arguments: made.append(1) or rectify(*arguments))
    loss = build(**SMALL, train=True, dtype=dtype)(field(generator, 4, 2, 2, dtype=dtype)).square().mean()
    forward = len(made)
    loss.backward()
    assert forward == 6
    assert len(made) == 2 * forward
