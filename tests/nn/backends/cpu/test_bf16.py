"""Layers whose products are of bfloat16: near float32, alike on any number of threads, equivariant, and only where asked.

A number is rounded by 2^-9 of itself at most. Each of the three products of a layer (into the basis, with the weights of a mode,
out of the basis) rounds both its factors, so that the result is off by 6 x 2^-9 of its norm at most where the terms of a sum do
not cancel; with signs at random some 2^-8 are measured.
"""

import numpy as np
import pytest
import torch

from shd_bids.nn.backends import cpu
from shd_bids.nn.backends.cpu import structs
from shd_bids.nn.layers.pool import Pooling
from shd_bids.sphere import symmetry
from tests.nn import oracle
from tests.nn.convolutions import filters_of, make

BOUND = 6 * 2.0**-9

pytestmark = pytest.mark.skipif(cpu.bf16_level() is None, reason="no instructions for bfloat16 here")


@pytest.fixture(autouse=True)
def without_gradients():
    """Evaluate without gradients, where alone a layer takes the level that it is given."""
    with torch.no_grad():
        yield


def rounding(ins, out, **how):
    """Return a layer with products of bfloat16."""
    conv = make(ins, out, dtype=torch.float32, **how).requires_grad_(False)
    conv.level = cpu.bf16_level()
    return conv


def relative(found, expected):
    assert found.shape == expected.shape
    return ((found.double() - expected.double()).norm() / expected.double().norm()).item()


@pytest.mark.parametrize(
    ("nside", "hemisphere", "ins", "out", "shape", "spatial"),
    [
        (2, True, (3, 2), 4, (2, 3, 4, 2), True),
        (4, True, (16, 17), 40, (3, 5, 2, 3), True),
        (4, False, (16,), 16, (1, 1, 1, 9), False),
        (2, True, (17, 16), 7, (1, 2, 3, 2), False),  # an odd number of factors
        (1, True, (5,), 7, (2, 2, 1, 1), True),
        (1, True, (3, 5), 4, (2, 3, 23, 40), True),  # planes so large that they are cut into blocks of lines
    ],
)
@pytest.mark.parametrize(
    "cache_bytes", [1 << 16, 24 << 20]
)  # a few planes at a time, so that the ring wraps; all at once
def test_layer_is_the_dense_one_to_its_rounding(
    generator, monkeypatch, cache_bytes, nside, hemisphere, ins, out, shape, spatial
):
    monkeypatch.setattr(structs, "CACHE_BYTES", cache_bytes)
    conv = rounding(ins, out, nside=nside, hemisphere=hemisphere, spatial=spatial)
    inputs = [torch.randn(conv.basis.n_vertices, *shape, f, generator=generator) for f in ins]
    dense = oracle.layer(torch.cat(inputs, dim=-1).permute(1, 5, 0, 2, 3, 4).double(), conv.double())
    expected = dense.permute(2, 0, 3, 4, 5, 1) - conv.bias
    found = conv.float()(*inputs) - conv.bias
    assert 2.0**-14 < relative(found, expected) < BOUND  # less would be float32


def test_layer_in_float32_stays_as_it_is(generator):
    conv, x = make((16,), 16, nside=4, dtype=torch.float32).requires_grad_(False), torch.randn(96, 1, 3, 3, 3, 16)
    before = conv(x)
    rounding((16,), 16, nside=4)(x)
    best = cpu.forward([x], filters_of(conv), conv.bias, relu=False, level=cpu.library().shd_best_level())
    torch.testing.assert_close(conv(x), before, rtol=0, atol=0)
    torch.testing.assert_close(best, before, rtol=0, atol=0)


def test_gradients_are_those_of_float32(generator):
    conv = rounding((16,), 16, nside=4).requires_grad_(True)
    x = torch.randn(96, 1, 3, 3, 3, 16, generator=generator)
    exact = make((16,), 16, nside=4, dtype=torch.float32)
    with torch.enable_grad():
        found, wanted = (torch.autograd.grad(layer(x).square().sum(), layer.parameters()) for layer in (conv, exact))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-4)


def test_threads_do_not_change_the_result(generator, monkeypatch):
    conv = rounding((16,), 16, nside=4)
    x = torch.randn(96, 3, 4, 3, 3, 16, generator=generator)
    one = conv(x)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    torch.testing.assert_close(conv(x), one, rtol=0, atol=0)


@pytest.mark.parametrize("element", range(8))
def test_layer_commutes_with_the_symmetries_of_the_sphere_grid_to_its_rounding(generator, element):
    conv = rounding((3,), 4)
    matrix, _ = symmetry.group(inversion=False)[element]
    image = torch.tensor(symmetry.permutation(2, tuple(map(tuple, matrix)), hemisphere_only=True))
    x = torch.randn(24, 1, 2, 3, 2, 3, generator=generator)
    assert relative(conv(x[image]), conv(x)[image]) < 2 * BOUND


@pytest.mark.parametrize("flip", [(2,), (2, 3, 4)])
def test_layer_commutes_with_reflections_of_space_to_the_bit(generator, flip):
    # Sums of two neighbours do not depend on their order, and a voxel is a column of each product.
    conv = rounding((16,), 16)
    x = torch.randn(24, 1, 3, 3, 3, 16, generator=generator)
    torch.testing.assert_close(conv(x.flip(flip)), conv(x).flip(flip), rtol=0, atol=0)


def test_unpooled_input_need_not_be_formed(generator):
    pool = Pooling(4, hemisphere=True, stride=2)
    skip, source = (torch.randn(*size, generator=generator) for size in ((96, 1, 10, 4, 6, 16), (24, 1, 5, 2, 3, 17)))
    exact, conv = make((16, 17), 40, nside=4), rounding((16, 17), 40, nside=4)
    found = cpu.forward(
        [skip, source], filters_of(conv), conv.bias, relu=False, parents=pool.parent_index, level=conv.level
    )
    expected = exact(skip.double(), pool.unpool(source.double()))
    # Products of cells are added up to eight times over with weights that are sums themselves.
    assert relative(found, expected) < 2 * BOUND


@pytest.mark.parametrize("spatial", [True, False])
def test_a_few_planes_at_a_time_are_those_of_the_whole(generator, spatial):
    conv, rng = rounding((3, 2), 4, spatial=spatial), np.random.default_rng(0)
    wanted = rng.random((6, 8, 22)) < 0.3
    inputs = [torch.randn(24, 1, 6, 8, 22, f, generator=generator) for f in (3, 2)]
    layer = conv.slabwise(cpu.SlabPlan(wanted, np.ones_like(wanted), 2, unit=2), relu=True)
    whole, done = conv(*inputs, relu=True), 0
    for first in range(0, 6, 2):
        last = min(first + 2 + spatial, 6)
        for index, x in enumerate(inputs):
            planes = slice(done, last)
            layer.analyse(index, x[:, :, planes], (planes, slice(0, 8), slice(0, 22)), planes)
        done = last
        y = layer.combine(slice(first, first + 2))
        there = torch.from_numpy(wanted[first : first + 2][:, *layer.sides])
        torch.testing.assert_close(
            y[:, :, there], whole[:, :, first : first + 2, *layer.sides][:, :, there], rtol=0, atol=1e-5
        )
