"""One layer to test, and how near float32 comes to it."""

import torch

from shd_bids.nn.backends.arguments import Filters
from shd_bids.nn.layers.cheb import SphereBasis
from shd_bids.nn.layers.conv import SpatioSphericalConv


def make(ins, out, *, nside=2, hemisphere=True, spatial=True, dtype=torch.float64, order=5):
    torch.manual_seed(0)
    basis = SphereBasis(nside, hemisphere=hemisphere, order=order)
    conv = SpatioSphericalConv(basis, ins, out_channels=out, spatial=spatial)
    with torch.no_grad():
        conv.bias.normal_()
    return conv.to(dtype)


def filters_of(conv, *, detach=True):
    sph, spa = (w.detach() if detach and w is not None else w for w in (conv.weightSph, conv.weightSpa))
    return Filters(sph, spa, conv.basis.grid)


def assert_close_by_norm(found, expected):
    """Compare in float32 terms: each sum of thousands of terms is right to rounding of its size."""
    __tracebackhide__ = True
    assert found.shape == expected.shape
    error = (found.double() - expected.double()).norm() / expected.double().norm()
    assert error < 3e-6, f"relative error {error:.1e}"
