"""Pooling and unpooling."""

import pytest
import torch

from shd_bids.nn.backends import cpu
from shd_bids.nn.layers.pool import Pooling
from tests.helpers import assert_adjoint


@pytest.mark.parametrize("stride", [0, 1, 2])
@pytest.mark.parametrize("fast", [True, False])
def test_pooling_and_unpooling_have_their_adjoints(generator, monkeypatch, stride, fast):
    if fast and cpu.library() is None:
        pytest.skip("no compiled kernel")
    dtype = torch.float32 if fast else torch.float64
    pool, size = Pooling(2, hemisphere=True, stride=stride), (3, 3, 3) if stride == 1 else (4, 2, 6)
    x = torch.randn(24, 1, *size, 3, generator=generator, dtype=dtype)
    y = pool(x)
    if stride:
        assert y.shape[2:5] == tuple((n - 2) // stride + 1 for n in size)
    torch.testing.assert_close(y.mean(), x.mean()) if stride != 1 else None
    back = lambda f, shape: lambda g: torch.autograd.functional.vjp(f, torch.zeros(shape, dtype=dtype), g)[1]  # noqa: E731
    assert_adjoint(pool, back(pool, x.shape), x, torch.randn(y.shape, generator=generator, dtype=dtype), rtol=1e-4)
    assert_adjoint(pool.unpool, back(pool.unpool, y.shape), y, x, rtol=1e-4)
    torch.testing.assert_close(pool(pool.unpool(y)), y) if stride != 1 else None


def test_unpooling_an_odd_patch_copies_as_published(generator):
    pool = Pooling(2, hemisphere=True, stride=1)
    y = torch.arange(8.0).view(1, 1, 2, 2, 2, 1).expand(6, 1, 2, 2, 2, 1)
    torch.testing.assert_close(pool.unpool(y)[0, 0, :, 0, 0, 0], torch.tensor([0.0, 0.0, 4.0]))
