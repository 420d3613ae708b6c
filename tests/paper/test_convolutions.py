"""The comparators of the paper obey the laws that name them, and break those that they lack; published forms are equal."""

import numpy as np
import pytest
import torch

from shd_bids.nn.layers.cheb import Grid
from shd_bids.nn.unet import UNet, UNetConfig
from shd_bids.sphere import healpix
from tests.benchmarks.paper import published
from tests.benchmarks.paper.comparators import ConcatConv, HarmonicConv, PonitaConv
from tests.benchmarks.paper.plain_unet import HarmonicUNet, PlainUNet, concatenated, ponita
from tests.nn import convolutions, oracle

NSIDE, EDGE = 2, 4
QUARTER = np.array(
    [[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
)  # about z: moves voxels and vertices onto themselves


def field(*, hemisphere, channels=2, vertices=None):
    generator = torch.Generator().manual_seed(1)
    count = vertices or len(healpix.grid(NSIDE, hemisphere_only=hemisphere))
    return torch.randn(1, channels, count, EDGE, EDGE, EDGE, generator=generator)


def turned_voxels(x, *, hemisphere):
    """Rotate what every voxel holds by a quarter about z."""
    points = healpix.grid(NSIDE, hemisphere_only=hemisphere) @ QUARTER
    source = healpix.match(points, NSIDE)
    return x[:, :, healpix.hemisphere_lookup(NSIDE)[source] if hemisphere else source]


def turned_grid(x):
    """Move the voxels by a quarter about z."""
    return x.rot90(1, (3, 4))


def mirrored_grid(x):
    """Move the voxels by a mirror and an exchange of axes that a quarter about z does not reach."""
    return x.transpose(3, 5).flip(3)


def error(function, move, x):
    moved_then_mapped, mapped_then_moved = function(move(x)), move(function(x))
    assert moved_then_mapped.shape == mapped_then_moved.shape
    return ((moved_then_mapped - mapped_then_moved).norm() / mapped_then_moved.norm()).item()


def voxels(hemisphere):
    return lambda x: turned_voxels(x, hemisphere=hemisphere)


def both(hemisphere):
    return lambda x: turned_grid(turned_voxels(x, hemisphere=hemisphere))


@pytest.mark.parametrize("hemisphere", [True, False])
def test_concatenated_convolution_commutes_with_voxel_rotations_only(hemisphere):
    conv = ConcatConv(Grid(NSIDE, hemisphere), 2, 3, spatial=True).requires_grad_(False)
    x = field(hemisphere=hemisphere)
    assert error(conv, voxels(hemisphere), x) < 1e-5
    assert error(conv, turned_grid, x) > 0.1


def test_harmonic_convolution_commutes_with_movements_of_the_grid():
    conv = HarmonicConv(6, 3, spatial=True).requires_grad_(False)
    for move in (turned_grid, mirrored_grid):
        assert error(conv, move, field(hemisphere=True, channels=6, vertices=1)) < 1e-5


@pytest.mark.parametrize("hemisphere", [True, False])
def test_ponita_commutes_with_rotations_of_the_object_only(hemisphere):
    torch.manual_seed(0)
    conv = PonitaConv(Grid(NSIDE, hemisphere), 2, 3, spatial=True).requires_grad_(False)
    conv.mix.bias.zero_()
    x = field(hemisphere=hemisphere)
    x = x - x.mean()
    assert error(conv, both(hemisphere), x) < 1e-4
    assert error(conv, turned_grid, x) > 1e-3


def test_ponita_is_the_sum_over_pairs():
    conv = PonitaConv(Grid(1, False), 1, 1, spatial=True).requires_grad_(False)
    points = torch.tensor(healpix.vertices(1), dtype=torch.float32)
    x = torch.zeros(1, 1, 12, 3, 3, 3)
    place, at = torch.tensor([1.0, 0.0, -1.0]), 5
    x[0, 0, at, 2, 1, 0] = 1.0  # one value, at the place +x -z of the middle
    depth = place @ points[at]
    aside = (place.square().sum() - depth**2).sqrt()
    kernel = conv.of_space(torch.stack([depth, aside])) * conv.of_sphere((points @ points[at])[:, None])[:, 0] / 12
    expected = conv.mix.weight[0, 0] * kernel + conv.mix.bias
    torch.testing.assert_close(conv(x)[0, 0, :, 1, 1, 1], expected, rtol=1e-4, atol=1e-5)


def test_ponita_keeps_the_contrast_between_orientations():
    """Kernels that hardly depend on the angle leave of a field without a mean over orientations what it is."""
    torch.manual_seed(0)
    conv = PonitaConv(Grid(NSIDE, True), 2, 2, spatial=True).requires_grad_(False)
    conv.mix.weight[:], conv.mix.bias[:] = torch.eye(2), 0
    x = field(hemisphere=True)
    x = x - x.mean(2, keepdim=True)
    y = conv(x)
    assert (y - y.mean(2, keepdim=True)).norm() > 0.5 * x.norm()


NETWORK = UNetConfig(2, 3, nside=NSIDE, channels=(4, 6), spatial_levels=2)


def network(kind):
    torch.manual_seed(0)
    net = HarmonicUNet(NETWORK, degree=2, out_degree=2) if kind == "harmonic" else kind(NETWORK)
    return net.eval().requires_grad_(False)


@pytest.mark.parametrize(
    ("kind", "kept", "broken"),
    [
        (concatenated, voxels(True), turned_grid),
        ("harmonic", turned_grid, voxels(True)),
        (ponita, both(True), turned_grid),
    ],
)
def test_networks_have_the_symmetry_of_their_layers(kind, kept, broken):
    net = network(kind)
    function = lambda x: net(x.permute(0, 1, 3, 4, 5, 2)).permute(0, 1, 5, 2, 3, 4)  # noqa: E731
    x = field(hemisphere=True)
    assert function(x).shape == (1, 3, 24, EDGE, EDGE, EDGE)
    assert error(function, kept, x) < 1e-3
    assert error(function, broken, x) > 3 * error(function, kept, x)


@pytest.mark.parametrize("form", published.FORMS)
@pytest.mark.parametrize("hemisphere", [True, False])
def test_published_forms_are_one_function(form, hemisphere):
    conv = convolutions.make((2,), 3, hemisphere=hemisphere)
    x = field(hemisphere=hemisphere).double()
    with torch.no_grad():
        expected = conv(x.permute(2, 0, 3, 4, 5, 1).contiguous()).permute(1, 5, 0, 2, 3, 4)
        torch.testing.assert_close(published.layer(x, conv, form=form), expected)


def test_network_of_any_layer_has_the_function_of_the_package():
    """The U-Net of the comparators is that of the package where its convolutions are."""
    config = UNetConfig(1, 2, nside=NSIDE, channels=(3, 4), form="patch", patch_size=4)
    torch.manual_seed(0)
    theirs = UNet(config).eval()
    units = iter([*theirs.encoder[0], *theirs.bottom, *theirs.decoder[0]])

    def take(grid, inputs, outputs, spatial):
        unit = next(units)
        assert (sum(unit.conv.in_channels), unit.conv.bias.numel()) == (inputs, outputs)
        return Wrapped(unit.conv)

    net = PlainUNet(config, take).eval()
    with torch.no_grad():
        net.head.weight[..., 0], net.head.bias[:] = theirs.head.weightSph[..., 0], theirs.head.bias
        x = torch.randn(1, 1, 4, 4, 4, 24)
        torch.testing.assert_close(net(x), theirs(x), rtol=1e-4, atol=1e-5)


class Wrapped(torch.nn.Module):
    """A layer of the package in the layout of the comparators."""

    def __init__(self, conv):
        super().__init__()
        self.conv = conv

    def forward(self, x):
        return oracle.layer(x, self.conv)
