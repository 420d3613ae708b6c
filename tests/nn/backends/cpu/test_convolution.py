"""The compiled convolution: the spectral form in every instruction set, with gradients, in place and of unformed maps."""

import pytest
import torch

from shd_bids.nn.backends import cpu
from shd_bids.nn.backends.cpu import structs
from shd_bids.nn.layers.pool import Pooling, Unpooled
from tests.nn.convolutions import assert_close_by_norm, filters_of, make

pytestmark = pytest.mark.skipif(cpu.library() is None, reason="no compiled kernel and no compiler")


@pytest.mark.parametrize("level", [0, 1, 2])
@pytest.mark.parametrize(
    ("nside", "hemisphere", "ins", "out", "shape", "spatial"),
    [
        (2, True, (3, 2), 4, (2, 3, 4, 2), True),
        (4, True, (16, 17), 40, (3, 5, 2, 3), True),
        (4, False, (16,), 16, (1, 1, 1, 9), False),
        (4, True, (2,), 32, (2, 9, 1, 2), True),
        (1, True, (5,), 7, (2, 2, 1, 1), True),
        (1, True, (3, 5), 4, (2, 3, 23, 40), True),  # planes so large that they are cut into blocks of lines
    ],
)
def test_kernel_is_the_spectral_form(generator, monkeypatch, level, nside, hemisphere, ins, out, shape, spatial):
    if level > cpu.library().shd_best_level():
        pytest.skip("the processor has no such instructions")
    # A few planes at a time, so that the ring of planes wraps.
    monkeypatch.setattr(structs, "CACHE_BYTES", 1 << 16)
    conv = make(ins, out, nside=nside, hemisphere=hemisphere, spatial=spatial, dtype=torch.float32)
    vertices = conv.basis.n_vertices
    inputs = [torch.randn(vertices, *shape, f, generator=generator, requires_grad=True) for f in ins]
    exact = make(ins, out, nside=nside, hemisphere=hemisphere, spatial=spatial)
    expected = exact(*(x.double() for x in inputs))
    gradient = torch.randn(expected.shape, generator=generator)
    wanted = torch.autograd.grad((expected * gradient).sum(), [*inputs, *exact.parameters()])
    filters, plain = filters_of(conv), [x.detach() for x in inputs]
    y = cpu.forward(plain, filters, conv.bias.detach(), relu=True, level=level)
    of_inputs, of_filters = cpu.backward(gradient, plain, filters, needed=[True] * len(ins), level=level)
    assert_close_by_norm(y, expected.relu())
    for found, want in zip([*of_inputs, *of_filters], wanted, strict=False):  # wanted: bias too
        assert_close_by_norm(found, want)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("operator", [False, True])
def test_layer_and_operator_have_the_gradients_of_the_spectral_form(generator, operator, relu):
    conv, exact = make((3, 2), 4, dtype=torch.float32), make((3, 2), 4)
    inputs = [torch.randn(24, 2, 3, 2, 2, f, generator=generator, requires_grad=f == 3) for f in (3, 2)]
    expected = exact(*(x.double() for x in inputs), relu=relu)
    if operator:
        y = cpu.operator(inputs, filters_of(conv, detach=False), conv.bias, conv.basis, relu)
    else:
        y = conv(*inputs, relu=relu)
    wanted = torch.autograd.grad(expected.square().sum(), [inputs[0], *exact.parameters()])
    found = torch.autograd.grad(y.square().sum(), [inputs[0], *conv.parameters()])
    for a, b in zip(found, wanted, strict=True):
        assert_close_by_norm(a, b)


@pytest.mark.slow
def test_compiled_layer_is_one_graph(generator):
    conv = make((3, 2), 4, dtype=torch.float32)
    inputs = [torch.randn(24, 2, 3, 2, 2, f, generator=generator) for f in (3, 2)]
    compiled = torch.compile(conv, fullgraph=True, backend="aot_eager")
    results = []
    for evaluate in (conv, compiled):
        y = evaluate(*inputs, relu=True)
        results.append([y, *torch.autograd.grad(y.square().sum(), conv.parameters())])
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0)


def test_threads_do_not_change_the_result(generator, monkeypatch):
    conv = make((16,), 16, nside=4, dtype=torch.float32)
    x = torch.randn(96, 3, 4, 3, 3, 16, generator=generator)
    one = conv(x)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    torch.testing.assert_close(conv(x), one, rtol=0, atol=0)


@pytest.mark.parametrize("level", [0, 1, 2])
@pytest.mark.parametrize(
    ("nside", "hemisphere", "ins", "out", "cells"),
    [
        (2, True, (3, 2), 4, (2, 1, 2, 3)),
        (4, True, (16, 17), 40, (1, 5, 2, 3)),
        (4, False, (5, 16), 16, (2, 2, 1, 1)),
        (2, True, (2, 3), 9, (1, 3, 13, 21)),  # planes so large that they are cut into blocks of lines
    ],
)
@pytest.mark.parametrize("cache_bytes", [1 << 10, 1 << 17, 24 << 20])  # from one plane at a time to all
def test_unpooled_input_need_not_be_formed(
    generator, monkeypatch, level, nside, hemisphere, ins, out, cells, cache_bytes
):
    if level > cpu.library().shd_best_level():
        pytest.skip("the processor has no such instructions")
    monkeypatch.setattr(structs, "CACHE_BYTES", cache_bytes)
    pool = Pooling(nside, hemisphere=hemisphere, stride=2)
    vertices = len(pool.parent_index)
    batch, *size = cells
    skip = torch.randn(vertices, batch, *(2 * n for n in size), ins[0], generator=generator)
    source = torch.randn(vertices // 4, *cells, ins[1], generator=generator)
    exact = make(ins, out, nside=nside, hemisphere=hemisphere)
    conv = make(ins, out, nside=nside, hemisphere=hemisphere, dtype=torch.float32)
    found = cpu.forward(
        [skip, source],
        filters_of(conv),
        conv.bias.detach(),
        relu=False,
        parents=pool.parent_index,
        level=level,
    )
    with torch.no_grad():
        expected = exact(skip.double(), pool.unpool(source.double()))
        assert_close_by_norm(found, expected)
        assert_close_by_norm(conv(skip, Unpooled(pool, source)), expected)
        plain = exact(skip.double(), Unpooled(pool, source.double()))
    torch.testing.assert_close(plain, expected, rtol=0, atol=0)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("spatial", [True, False])
@pytest.mark.parametrize("unpooled", [True, False])
def test_result_takes_the_memory_of_an_input_that_is_its_own(generator, monkeypatch, unpooled, spatial, threads):
    monkeypatch.setattr(structs, "CACHE_BYTES", 1 << 10)  # one plane at a time
    conv, pool = make((3, 2), 3, spatial=spatial, dtype=torch.float32), Pooling(2, hemisphere=True, stride=2)
    x = torch.randn(24, 2, 6, 4, 8, 3, generator=generator)
    source = Unpooled(pool, torch.randn(6, 2, 3, 2, 4, 2, generator=generator))
    before, threads_before = x.clone(), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.no_grad():
            other = source if unpooled else source.formed()
            expected = conv(x, other, relu=True)
            torch.testing.assert_close(x, before, rtol=0, atol=0)
            found = conv(x, other, relu=True, in_place=True)
    finally:
        torch.set_num_threads(threads_before)
    assert found.data_ptr() == x.data_ptr()
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
