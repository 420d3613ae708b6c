"""The layer: equal to the dense oracle in every evaluation, with gradients, and equivariant."""

import itertools

import numpy as np
import pytest
import torch
from scipy import ndimage

from shd_bids.boxes import cells_of
from shd_bids.nn.backends import cpu
from shd_bids.nn.layers.cheb import SphereBasis, chebyshev
from shd_bids.nn.layers.conv import SpatioSphericalConv, shell_sums
from shd_bids.nn.layers.pool import Pooling, Unpooled
from shd_bids.sphere import healpix, symmetry
from tests.helpers import assert_equivariant
from tests.nn.oracle import layer

needs_kernel = pytest.mark.skipif(cpu.library() is None, reason="no compiled kernel and no compiler")


def make(ins, out, *, nside=2, hemisphere=True, spatial=True, dtype=torch.float64, order=5):
    torch.manual_seed(0)
    basis = SphereBasis(nside, hemisphere=hemisphere, order=order)
    conv = SpatioSphericalConv(basis, ins, out_channels=out, spatial=spatial)
    with torch.no_grad():
        conv.bias.normal_()
    return conv.to(dtype)


def public(x):
    """Reorder (V, B, X, Y, Z, F) to (B, F, V, X, Y, Z)."""
    return x.permute(1, 5, 0, 2, 3, 4)


@pytest.mark.parametrize("spatial", [True, False])
@pytest.mark.parametrize("hemisphere", [True, False])
def test_spectral_form_is_the_dense_layer(generator, hemisphere, spatial):
    conv = make((3, 2), 4, hemisphere=hemisphere, spatial=spatial)
    vertices = conv.basis.n_vertices
    inputs = [torch.randn(vertices, 2, 3, 4, 2, f, generator=generator, dtype=torch.float64) for f in (3, 2)]
    expected = layer(public(torch.cat(inputs, dim=-1)), conv)
    torch.testing.assert_close(public(conv(*inputs)), expected, rtol=0, atol=1e-12)


def test_all_parameters_are_those_of_the_paper():
    assert set(dict(make((2,), 3).named_parameters())) == {"weightSph", "weightSpa", "bias"}
    assert set(make((2,), 3).state_dict()) == {"weightSph", "weightSpa", "bias"}
    assert set(make((2,), 3, spatial=False).state_dict()) == {"weightSph", "bias"}


@pytest.mark.parametrize("spatial", [True, False])
def test_gradients_are_those_of_finite_differences(generator, spatial):
    conv = make((2, 1), 2, nside=1, spatial=spatial)
    inputs = [
        torch.randn(6, 1, 2, 1, 3, f, generator=generator, dtype=torch.float64, requires_grad=True) for f in (2, 1)
    ]

    def run(*tensors):
        values = dict(zip(dict(conv.named_parameters()), tensors[2:], strict=True))
        return torch.func.functional_call(conv, values, tensors[:2])

    assert torch.autograd.gradcheck(run, (*inputs, *conv.parameters()))


@needs_kernel
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
    monkeypatch.setattr(cpu, "_CACHE_BYTES", 1 << 16)
    conv = make(ins, out, nside=nside, hemisphere=hemisphere, spatial=spatial, dtype=torch.float32)
    vertices = conv.basis.n_vertices
    inputs = [torch.randn(vertices, *shape, f, generator=generator, requires_grad=True) for f in ins]
    exact = make(ins, out, nside=nside, hemisphere=hemisphere, spatial=spatial)
    expected = exact(*(x.double() for x in inputs))
    gradient = torch.randn(expected.shape, generator=generator)
    wanted = torch.autograd.grad((expected * gradient).sum(), [*inputs, *exact.parameters()])
    where = {"nside": nside, "hemisphere": hemisphere, "level": level}
    weights = [conv.weightSph.detach(), conv.weightSpa.detach() if spatial else None]
    plain = [x.detach() for x in inputs]
    y = cpu.forward(plain, *weights, conv.bias.detach(), relu=True, **where)
    of_inputs, *of_weights = cpu.backward(gradient, plain, *weights, needed=[True] * len(ins), **where)
    assert_close_by_norm(y, expected.relu())
    for found, want in zip([*of_inputs, *of_weights[: 1 + spatial]], wanted, strict=False):  # wanted: bias too
        assert_close_by_norm(found, want)


@needs_kernel
@pytest.mark.parametrize("relu", [False, True])
def test_operator_has_the_gradients_of_the_spectral_form(generator, relu):
    conv, exact = make((3, 2), 4, dtype=torch.float32), make((3, 2), 4)
    inputs = [torch.randn(24, 2, 3, 2, 2, f, generator=generator, requires_grad=f == 3) for f in (3, 2)]
    y, expected = conv(*inputs, relu=relu), exact(*(x.double() for x in inputs), relu=relu)
    wanted = torch.autograd.grad(expected.square().sum(), [inputs[0], *exact.parameters()])
    found = torch.autograd.grad(y.square().sum(), [inputs[0], *conv.parameters()])
    assert y.grad_fn.name().startswith("Generated")  # the registered operator, not the fallback
    for a, b in zip(found, wanted, strict=True):
        assert_close_by_norm(a, b)


@needs_kernel
def test_compiled_layer_is_one_graph(generator):
    conv = make((3, 2), 4, dtype=torch.float32)
    inputs = [torch.randn(24, 2, 3, 2, 2, f, generator=generator) for f in (3, 2)]
    compiled = torch.compile(conv, fullgraph=True, backend="aot_eager")
    results = []
    for evaluate in (conv, compiled):
        y = evaluate(*inputs, relu=True)
        results.append([y, *torch.autograd.grad(y.square().sum(), conv.parameters())])
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0)


@needs_kernel
def test_threads_do_not_change_the_result(generator, monkeypatch):
    conv = make((16,), 16, nside=4, dtype=torch.float32)
    x = torch.randn(96, 3, 4, 3, 3, 16, generator=generator)
    one = conv(x)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    torch.testing.assert_close(conv(x), one, rtol=0, atol=0)


@needs_kernel
@pytest.mark.parametrize("thickness", [1, 2, 3, 10])
@pytest.mark.parametrize("spatial", [True, False])
@pytest.mark.parametrize("unpooled", [True, False])
@pytest.mark.parametrize("start", [0, 1, 4])
def test_a_few_planes_at_a_time_are_those_of_the_whole(generator, start, unpooled, spatial, thickness):
    if unpooled and not spatial:
        pytest.skip("where space is pooled there is a spatial kernel")
    conv, pool = make((3, 2), 4, spatial=spatial, dtype=torch.float32), Pooling(2, hemisphere=True, stride=2)
    rng = np.random.default_rng(0)
    wanted, inside = (rng.random((10, 8, 22)) < share for share in (0.05, 0.3))
    wanted[:start] = wanted[:, :2] = wanted[:, :, 18:] = False
    wanted[start, 3, 5] = wanted[9, 7, 1] = True
    sizes = [(24, 1, 10, 8, 22, 3), (6, 1, 5, 4, 11, 2) if unpooled else (24, 1, 10, 8, 22, 2)]
    inputs = [torch.randn(*size, generator=generator) for size in sizes]
    marks = [inside, cells_of(inside) if unpooled else inside]
    for x, holding in zip(inputs, marks, strict=True):
        x[:, :, ~holding] = 0
    with torch.no_grad():
        whole = conv(inputs[0], pool.unpool(inputs[1]) if unpooled else inputs[1], relu=True)
    read = ndimage.maximum_filter(wanted, 3) if spatial else wanted
    reads = [read, cells_of(read) if unpooled else read]
    for x, holding, needed in zip(inputs, marks, reads, strict=True):
        x[:, :, ~(holding & needed)] = torch.nan  # must not matter
    course = cpu.Course(wanted, inside, thickness, unit=2)
    layer = conv.slabwise(course, relu=True, pool=pool if unpooled else None)
    done = [max(start - spatial, 0), max(start - spatial, 0)]
    if unpooled:
        done[1] //= 2
    for first in range(start, 10, thickness):
        stop = min(first + thickness, 10)
        for index, x in enumerate(inputs):
            last = min(stop + spatial, 10)
            last = -(-last // 2) if unpooled and index == 1 else last
            for planes in (slice(done[index], min(done[index] + 1, last)), slice(min(done[index] + 1, last), last)):
                if planes.start < planes.stop:  # in slabs that are larger than what is taken from them
                    place = (planes, slice(0, x.shape[3]), slice(0, x.shape[4]))
                    layer.analyse(index, x[:, :, planes], place, planes)
            done[index] = last
        y = layer.combine(slice(first, stop))
        there = torch.from_numpy(wanted[first:stop][:, *layer.sides])
        expected = whole[:, :, first:stop, *layer.sides]
        torch.testing.assert_close(y[:, :, there], expected[:, :, there], rtol=0, atol=1e-5)


@needs_kernel
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
    monkeypatch.setattr(cpu, "_CACHE_BYTES", cache_bytes)
    pool = Pooling(nside, hemisphere=hemisphere, stride=2)
    vertices = len(pool.parent_index)
    batch, *size = cells
    skip = torch.randn(vertices, batch, *(2 * n for n in size), ins[0], generator=generator)
    source = torch.randn(vertices // 4, *cells, ins[1], generator=generator)
    exact = make(ins, out, nside=nside, hemisphere=hemisphere)
    conv = make(ins, out, nside=nside, hemisphere=hemisphere, dtype=torch.float32)
    weights = [conv.weightSph.detach(), conv.weightSpa.detach(), conv.bias.detach()]
    found = cpu.forward(
        [skip, source],
        *weights,
        nside=nside,
        hemisphere=hemisphere,
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


@needs_kernel
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("spatial", [True, False])
@pytest.mark.parametrize("unpooled", [True, False])
def test_result_takes_the_memory_of_an_input_that_is_its_own(generator, monkeypatch, unpooled, spatial, threads):
    monkeypatch.setattr(cpu, "_CACHE_BYTES", 1 << 10)  # one plane at a time
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
            found = conv(x, other, relu=True, own=True)
    finally:
        torch.set_num_threads(threads_before)
    assert found.data_ptr() == x.data_ptr()
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_input_stays_where_gradients_or_widths_ask_for_it(generator):
    conv, x = make((3,), 3, dtype=torch.float32), torch.randn(24, 1, 2, 2, 2, 3, generator=generator)
    before = x.clone()
    conv(x, own=True)
    with torch.no_grad():
        make((3,), 4, dtype=torch.float32)(x, own=True)
    torch.testing.assert_close(x, before, rtol=0, atol=0)


def test_without_a_kernel_the_result_is_the_same(generator, monkeypatch):
    conv = make((4,), 8, dtype=torch.float32)
    x = torch.randn(24, 2, 3, 3, 3, 4, generator=generator)
    fast = conv(x)
    monkeypatch.setattr(cpu, "library", lambda: None)
    torch.testing.assert_close(conv(x), fast, rtol=1e-4, atol=1e-4)


def test_half_precision_stays_within_its_rounding(generator):
    conv = make((16,), 16)
    x = torch.randn(24, 2, 3, 3, 3, 16, generator=generator, dtype=torch.float64)
    expected = conv(x)
    with torch.autocast("cpu", torch.bfloat16):
        found = make((16,), 16, dtype=torch.float32)(x.float())
    assert found.dtype == torch.bfloat16
    error = (found.double() - expected).norm() / expected.norm()
    assert error < 1e-2  # 8 bits of mantissa through three products: about 2^-8 each


def test_shell_sums_are_the_taps_at_each_distance(generator):
    x = torch.randn(2, 1, 3, 4, 5, 2, generator=generator, dtype=torch.float64)
    taps = torch.nn.functional.pad(x, (0, 0, 1, 1, 1, 1, 1, 1))
    expected = torch.zeros(*x.shape[:-1], 4, 2, dtype=torch.float64)
    for i, j, k in itertools.product(range(3), repeat=3):
        expected[..., abs(i - 1) + abs(j - 1) + abs(k - 1), :] += taps[:, :, i : i + 3, j : j + 4, k : k + 5]
    torch.testing.assert_close(shell_sums(x), expected)


def test_chebyshev_terms_by_their_recurrence():
    values = np.linspace(-1, 1, 9)
    terms = chebyshev(values, 5)
    np.testing.assert_allclose(terms[:, 4], 8 * values**4 - 8 * values**2 + 1, atol=1e-14)


@pytest.mark.parametrize(
    ("axes", "flip"), list(itertools.product(itertools.permutations((2, 3, 4)), ((), (2,), (2, 3, 4))))
)
def test_layer_commutes_with_the_symmetries_of_the_cube(generator, axes, flip):
    conv = make((3,), 4)
    x = torch.randn(24, 1, 3, 3, 3, 3, generator=generator, dtype=torch.float64)
    act = lambda t: t.permute(0, 1, *axes, 5).flip(flip)  # noqa: E731
    assert_equivariant(conv, x, act, act, atol=1e-12)


@pytest.mark.parametrize("element", range(8))
def test_layer_commutes_with_the_symmetries_of_the_sphere_grid(generator, element):
    conv = make((3,), 4)
    matrix, _ = symmetry.group(inversion=False)[element]
    image = torch.tensor(symmetry.permutation(2, tuple(map(tuple, matrix)), hemisphere_only=True))
    x = torch.randn(24, 1, 2, 3, 2, 3, generator=generator, dtype=torch.float64)
    assert_equivariant(conv, x, lambda t: t[image], lambda t: t[image], atol=1e-12)


def test_hemisphere_is_the_sphere_on_even_signals(generator):
    half, whole = make((2,), 3, nside=4), make((2,), 3, nside=4, hemisphere=False)
    x = torch.randn(96, 1, 2, 3, 2, 2, generator=generator, dtype=torch.float64)
    lookup = torch.tensor(healpix.hemisphere_lookup(4))
    torch.testing.assert_close(whole(x[lookup]), half(x)[lookup], rtol=0, atol=1e-9)


def test_basis_survives_a_detour_through_low_precision():
    basis = SphereBasis(2, hemisphere=True, order=5)
    exact = basis.double().vectors.clone()
    torch.testing.assert_close(basis.bfloat16().double().vectors, exact, rtol=0, atol=0)
    assert not basis.state_dict()


def assert_close_by_norm(found, expected):
    """Compare in float32 terms: each sum of thousands of terms is right to rounding of its size."""
    __tracebackhide__ = True
    assert found.shape == expected.shape
    error = (found.double() - expected.double()).norm() / expected.double().norm()
    assert error < 3e-6, f"relative error {error:.1e}"
