"""The layer: equal to the dense oracle in every evaluation, with gradients, and equivariant."""

import itertools

import pytest
import torch

from shd_bids.nn.backends import cpu
from shd_bids.sphere import healpix, symmetry
from tests.helpers import assert_equivariant
from tests.nn.convolutions import make
from tests.nn.oracle import layer


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


@pytest.mark.slow
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


def test_input_stays_where_gradients_or_widths_ask_for_it(generator):
    conv, x = make((3,), 3, dtype=torch.float32), torch.randn(24, 1, 2, 2, 2, 3, generator=generator)
    before = x.clone()
    conv(x, in_place=True)
    with torch.no_grad():
        make((3,), 4, dtype=torch.float32)(x, in_place=True)
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
