r"""The convolutions over space and sphere that the paper compares its own with.

Tensors are (batch, feature, vertex, x, y, z). With :math:`T_k` the Chebyshev polynomials of the Laplacian:

* :class:`ConcatConv`, concatenated SO(3): the 27 voxels of a neighbourhood are channels of a filter of the sphere,
  :math:`y_o(v, x) = b_o + \sum_{i,k,d} w_{oikd} (T_k x_i)(v, x + d)`; equivariant to rotations of what voxels hold only.
* :class:`HarmonicConv`, E(3) on spherical harmonics: coefficients are channels of a convolution with one weight a distance,
  :math:`y_o(x) = b_o + \sum_{i,d} w_{oi|d|} x_i(x + d)`; equivariant to movements of the grid only.
* :class:`PonitaConv`, after Bekkers et al. 2024 (arXiv:2310.02970): a kernel of the invariants of pairs of place and orientation,
  separable into space, sphere and channels; equivariant to rotations of the object (SE(3)).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from shd_bids.nn.layers.cheb import Grid
from shd_bids.sphere import healpix
from tests.nn import oracle

_ORDER = 5  # published: Chebyshev terms of a filter


class ConcatConv(nn.Module):
    """Filter the sphere of each voxel with its neighbours as channels.

    Parameters
    ----------
    grid : Grid
    in_channels, out_channels : int
    spatial : bool
        Use the 3 x 3 x 3 neighbourhood; else the voxel alone.
    """

    def __init__(self, grid: Grid, in_channels: int, out_channels: int, *, spatial: bool):
        super().__init__()
        self.grid = grid
        edge = 3 if spatial else 1
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels * _ORDER, edge, edge, edge))
        nn.init.normal_(self.weight, std=(2 / (in_channels * _ORDER * edge**3)) ** 0.5)
        self.bias = nn.Parameter(torch.full((out_channels,), 0.01))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, I, V, X, Y, Z) to (B, O, V, X, Y, Z)."""
        matrix = oracle.projector(*self.grid, _ORDER, x.dtype, x.device.type).unflatten(0, (_ORDER, -1))
        terms = torch.einsum("kuv,bivxyz->buikxyz", matrix, x).flatten(2, 3)  # (B, V, I K, X, Y, Z)
        y = functional.conv3d(terms.flatten(0, 1), self.weight, self.bias, padding="same")
        return y.unflatten(0, terms.shape[:2]).transpose(1, 2)


class HarmonicConv(nn.Module):
    """Convolve maps of coefficients, (B, I, 1, X, Y, Z), with one weight for each distance.

    Parameters
    ----------
    in_channels, out_channels : int
    spatial : bool
        Use the 3 x 3 x 3 neighbourhood; else the voxel alone.
    """

    def __init__(self, in_channels: int, out_channels: int, *, spatial: bool):
        super().__init__()
        axis = torch.arange(-1, 2).abs() if spatial else torch.zeros(1, dtype=torch.long)
        self.register_buffer("shell", axis[:, None, None] + axis[:, None] + axis, persistent=False)
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, int(self.shell.max()) + 1))
        nn.init.normal_(self.weight, std=(2 / (in_channels * self.shell.numel())) ** 0.5)
        self.bias = nn.Parameter(torch.full((out_channels,), 0.01))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, I, 1, X, Y, Z) to (B, O, 1, X, Y, Z)."""
        return functional.conv3d(x[:, :, 0], self.weight[..., self.shell], self.bias, padding="same")[:, :, None]


class PonitaConv(nn.Module):
    r"""Convolve on positions and orientations with kernels of their invariants.

    .. math:: y_v(p) = W \left[x_v(p) + \frac{1}{V} \sum_{u} k_2(o_v \cdot o_u) \sum_d k_1(d \cdot o_u, |d_\perp|) \,
              x_u(p + d)\right] + b

    The first term is the residual connection of the published blocks; the mean over orientations alone leaves next to nothing
    of the contrast between them.

    Parameters
    ----------
    grid : Grid
    in_channels, out_channels : int
    spatial : bool
        Use the 3 x 3 x 3 neighbourhood; else the voxel alone.
    hidden : int
        Width of the perceptrons that make the kernels.
    """

    along: Tensor  # (V, taps, 2): invariants of place against orientation
    across: Tensor  # (V, V, 1): cosines between orientations

    def __init__(self, grid: Grid, in_channels: int, out_channels: int, *, spatial: bool, hidden: int = 16):
        super().__init__()
        points = torch.tensor(healpix.grid(grid.nside, hemisphere_only=grid.hemisphere), dtype=torch.float32)
        axis = torch.arange(-1.0, 2.0) if spatial else torch.zeros(1)
        taps = torch.cartesian_prod(axis, axis, axis)  # (taps, 3)
        depth = points @ taps.T
        aside = (taps.square().sum(1) - depth.square()).clamp(min=0).sqrt()
        self.edge = len(axis)
        self.register_buffer("along", _invariants(torch.stack([depth, aside], dim=-1), grid), persistent=False)
        self.register_buffer("across", _invariants((points @ points.T)[..., None], grid), persistent=False)
        self.of_space, self.of_sphere = _kernel(2, hidden, in_channels), _kernel(1, hidden, in_channels)
        self.mix = nn.Linear(in_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, I, V, X, Y, Z) to (B, O, V, X, Y, Z)."""
        features, vertices = x.shape[1:3]
        taps = self.of_space(self.along).permute(2, 0, 1).reshape(-1, 1, self.edge, self.edge, self.edge)
        y = functional.conv3d(x.flatten(1, 2), taps, padding="same", groups=features * vertices)
        y = torch.einsum("uvi,bivxyz->buxyzi", self.of_sphere(self.across) / vertices, y.unflatten(1, x.shape[1:3]))
        return self.mix(y + x.permute(0, 2, 3, 4, 5, 1)).permute(0, 5, 1, 2, 3, 4)


def _invariants(values: Tensor, grid: Grid) -> Tensor:
    """Return invariants of orientations, without their sign where a vertex stands for its antipode too."""
    return values.abs() if grid.hemisphere else values


def _kernel(inputs: int, hidden: int, features: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, features)
    )
