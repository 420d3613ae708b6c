"""Batch normalisation and ReLU in one step."""

import pytest
import torch

from shd_bids.nn.layers import norm


def test_training_keeps_the_running_statistics_of_batch_norm(generator):
    own, torchs = norm.NormReLU(3), torch.nn.BatchNorm1d(3)
    for _ in range(2):
        y = torch.randn(50, 3, generator=generator) * 3 + 5
        torch.testing.assert_close(own(y), torchs(y).relu(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(dict(own.state_dict()), dict(torchs.state_dict()), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_normalisation_has_the_gradients_of_batch_norm(generator, dtype):
    own, torchs = norm.NormReLU(5).to(dtype), torch.nn.BatchNorm1d(5).to(dtype)
    y = (torch.randn(70, 5, generator=generator, dtype=dtype) * 2 + 1).requires_grad_()
    target = torch.randn(70, 5, generator=generator, dtype=dtype)
    found = torch.autograd.grad((own(y) * target).sum(), [y, own.weight, own.bias])
    wanted = torch.autograd.grad((torchs(y).relu() * target).sum(), [y, torchs.weight, torchs.bias])
    torch.testing.assert_close(found, wanted, rtol=1e-4 if dtype == torch.float32 else 1e-10, atol=1e-5)
