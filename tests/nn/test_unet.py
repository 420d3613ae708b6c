"""The network: the published one exactly, its whole-volume form and its variants."""

import itertools

import numpy as np
import pytest
import torch

from shd_bids.nn.backends.cpu import bf16_level
from shd_bids.nn.layers import norm
from shd_bids.nn.unet import UNet, UNetConfig
from shd_bids.sphere import healpix, symmetry
from tests.helpers import assert_equivariant
from tests.nn.networks import SMALL, build, field
from tests.nn.oracle import unet


@pytest.mark.parametrize(("inputs", "count"), [(2, 843_938), (5, 844_802)])
def test_paper_network_has_the_published_parameters(inputs, count):
    # Less the published head's spatial weights, 64 numbers that never reach its output.
    net = UNet(UNetConfig(inputs, 2, form="patch"))
    assert sum(p.numel() for p in net.parameters()) == count - 64


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("hemisphere", [True, False])
@pytest.mark.parametrize("patch_size", [1, 2, 3])
def test_patch_form_is_the_published_network(generator, patch_size, hemisphere, train):
    net = build(nside=4, channels=(4, 6, 8), form="patch", patch_size=patch_size, hemisphere=hemisphere, train=train)
    x = field(generator, *[patch_size] * 3, vertices=96 * (2 - hemisphere), batch=2)
    torch.testing.assert_close(net(x), unet(x, net), rtol=0, atol=1e-10)


def test_network_on_the_hemisphere_is_that_on_the_sphere(generator):
    settings = {"nside": 4, "channels": (4, 6, 5)}
    half, whole = build(**settings), build(**settings, hemisphere=False)
    lookup = torch.tensor(healpix.hemisphere_lookup(4))
    x = field(generator, 3, 2, 4, vertices=96)
    torch.testing.assert_close(whole(x[..., lookup]), half(x)[..., lookup], rtol=0, atol=1e-9)


def test_sphere_only_network_treats_each_voxel_alone(generator):
    net = build(**SMALL, spatial_levels=0)
    x = field(generator, 2, 2, 1)
    torch.testing.assert_close(net(x)[:, :, 1:, 1:], net(x[:, :, 1:, 1:]), rtol=0, atol=1e-13)
    assert not any("weightSpa" in name for name, _ in net.named_parameters())


@pytest.mark.parametrize("size", [(4, 4, 4), (5, 3, 1)])
def test_gradients_reach_every_parameter_and_agree_between_evaluations(generator, size):
    x = field(generator, *size)
    exact, fast = build(**SMALL, train=True), build(**SMALL, train=True, dtype=torch.float32)
    for net, data in ((exact, x), (fast, x.float())):
        torch.nn.functional.softplus(net(data)).square().mean().backward()
    for (name, want), found in zip(exact.named_parameters(), fast.parameters(), strict=True):
        if name.endswith("conv.bias"):
            continue  # exactly zero under batch normalisation
        assert want.grad.abs().max() > 0, name
        error = (found.grad - want.grad).norm() / want.grad.norm()
        assert error < 1e-4, f"{name}: {error:.1e}"


@pytest.mark.parametrize("size", [(3, 5, 2), (1, 1, 7)])
def test_odd_sizes_are_a_part_of_a_larger_volume(generator, size):
    net = build(**SMALL)
    x = field(generator, *size)
    larger = field(generator, *(n + n % 2 for n in size))
    part = (..., *(slice(n) for n in size))
    larger[(*part, slice(None))] = x
    mask = torch.zeros(larger.shape[0], *larger.shape[2:5], dtype=torch.bool)
    mask[part] = True
    torch.testing.assert_close(net(x), net(larger, mask)[(*part, slice(None))], rtol=0, atol=1e-14)


def test_inference_leaves_its_input_alone(generator):
    net = build(nside=2, channels=(2, 2), dtype=torch.float32)
    x = torch.randn(24, 1, 4, 6, 2, 2, generator=generator)  # laid out as the network computes
    x = x.permute(1, 5, 2, 3, 4, 0)
    before = x.clone()
    with torch.no_grad():
        net(x), net.folded()(x)
    torch.testing.assert_close(x, before, rtol=0, atol=0)


@pytest.mark.parametrize("size", [(4, 6, 2), (5, 1, 3)])
@pytest.mark.parametrize("channels", [(4, 6), (4, 3, 5), (4, 4, 4)])
def test_inference_is_what_training_computes(generator, size, channels):
    net = build(nside=4, channels=channels, spatial_levels=len(channels), dtype=torch.float32)
    x = field(generator, *size, vertices=96, batch=2, dtype=torch.float32)
    with torch.no_grad():
        found = net(x)  # which leaves unpooled maps unformed
    torch.testing.assert_close(found, net(x).detach(), rtol=0, atol=1e-5)


def test_receptive_radius_is_reached_and_not_passed(generator):
    net = build(nside=2, channels=(6, 6))
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, norm.NormReLU):
                module.bias.fill_(4.0)  # nearly every unit on, so that nothing hides the reach
    radius = net.config.receptive_radius
    assert radius == 2 + 4 + 2 + 1
    x = field(generator, 24, 1, 1).requires_grad_()
    for place in (10, 11):
        (reach,) = torch.autograd.grad(net(x)[0, :, place].sum(), x)
        used = np.flatnonzero(reach.abs().sum((0, 1, 3, 4, 5)).numpy())
        assert place - used.min() <= radius >= used.max() - place
        assert max(place - used.min(), used.max() - place) >= radius - 1


def test_a_mask_of_everything_is_no_mask(generator):
    net, x = build(**SMALL), field(generator, 6, 4, 8)
    torch.testing.assert_close(net(x, torch.ones(1, 6, 4, 8, dtype=torch.bool)), net(x), rtol=0, atol=0)


def test_a_mask_that_does_not_fit_is_refused(generator):
    with pytest.raises(ValueError, match="found a mask of shape"):
        build(**SMALL)(field(generator, 6, 4, 8), torch.ones(1, 6, 4, 9, dtype=torch.bool))


def test_folded_network_is_the_same_in_fewer_steps(generator):
    net = build(**SMALL)
    folded = net.folded()
    x = field(generator, 4, 3, 2)
    torch.testing.assert_close(folded(x), net(x), rtol=0, atol=1e-12)
    assert folded.config.norm == "none"
    single, half = net.float().folded(), net.float().folded().bfloat16()
    error = (half(x.bfloat16()).float() - single(x.float())).norm() / single(x.float()).norm()
    assert 0 < error < 0.06  # bfloat16 rounds to 2^-9 in each of some twenty products: 0.033 measured


@pytest.mark.parametrize("element", range(8))
def test_network_commutes_with_joint_symmetries(generator, element):
    # A symmetry of the vertices' grid applied to space and sphere together, as a rotation of the object does.
    net = build(**SMALL)
    matrix, _ = symmetry.group(inversion=False)[element]
    image = torch.tensor(symmetry.permutation(2, tuple(map(tuple, matrix)), hemisphere_only=True))
    turns, mirrored = divmod(element, 2)

    def act(x):
        moved = torch.empty_like(x)
        moved[..., image] = x
        moved = moved.flip(2) if mirrored else moved
        return moved.rot90(turns, (2, 3))

    assert_equivariant(net, field(generator, 4, 4, 2), act, act, atol=1e-12)


@pytest.mark.parametrize(
    ("axes", "flip"), list(itertools.product(itertools.permutations((2, 3, 4)), ((), (4,), (2, 3, 4))))
)
def test_network_commutes_with_the_symmetries_of_the_cube(generator, axes, flip):
    act = lambda x: x.permute(0, 1, *axes, 5).flip(flip)  # noqa: E731
    assert_equivariant(build(**SMALL), field(generator, 4, 2, 2), act, act, atol=1e-12)


def test_configuration_survives_json_and_refuses_nonsense():
    config = UNetConfig(3, 2, channels=[16, 32], nside=4)
    assert UNetConfig.from_dict(config.to_dict()) == config
    with pytest.raises(ValueError, match="unknown network settings"):
        UNetConfig.from_dict({**config.to_dict(), "depth": 3})
    with pytest.raises(ValueError, match=r"power of two; 5 levels do not fit|expected a power of two"):
        UNetConfig(3, 2, nside=6, channels=(1, 2, 3, 4, 5))
    with pytest.raises(ValueError, match="expected 'volume' or 'patch'"):
        UNetConfig(3, 2, form="tile")


def test_wrong_input_is_refused(generator):
    with pytest.raises(ValueError, match="expected \\(batch, 2, x, y, z, 24\\)"):
        build(**SMALL)(torch.zeros(1, 3, 2, 2, 2, 24, dtype=torch.float64))
    with pytest.raises(ValueError, match="form='volume'"):
        build(**SMALL, form="patch")(field(generator, 4, 4, 4))


@pytest.mark.skipif(bf16_level() is None, reason="no instructions for bfloat16 here")
def test_products_of_bfloat16_change_the_network_by_their_rounding(generator):
    net, x = build(**SMALL).float().folded(), field(generator, 4, 4, 2).float()
    with torch.no_grad():
        exact = net(x)
        rounded = net.multiply_in_bf16()(x)
    assert 1e-5 < (rounded - exact).norm() / exact.norm() < 0.06  # as above
