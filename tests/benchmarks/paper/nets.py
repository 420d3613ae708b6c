"""The other networks of the paper's comparison: a CNN on spherical harmonics, and one after PONITA (Bekkers et al. 2024).

Both take and give what the package's networks in patch form do, (B, C, V, X, Y, Z) with V vertices of the hemisphere.
"""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from shd_bids.nn.unet import UNetConfig
from shd_bids.sphere.harmonics import sh_basis, sh_inverse
from shd_bids.sphere.healpix import hemisphere
from tests.benchmarks.paper.plain_unet import ponita

_L_IN, _L_OUT = 8, 18  # degrees of the CNN's input, as published, and of its fODF


class PeerNet(nn.Module):
    """What the trainings and fits of the package ask of a network in patch form.

    Parameters
    ----------
    config : UNetConfig
        Of the number of channels, of features and of the grid.
    """

    def __init__(self, config: UNetConfig):
        super().__init__()
        self.config = config
        self.bases = [SimpleNamespace(n_vertices=6 * config.nside**2)]

    def folded(self) -> PeerNet:
        """Return the network for inference, itself."""
        return self


class SphericalCNN(PeerNet):
    """Convolutions of 3 x 3 x 3 voxels on the coefficients of all shells as channels; not equivariant to rotations of voxels.

    It has one level, of the features of the first of its configuration.
    """

    def __init__(self, config: UNetConfig):
        super().__init__(config)
        vertices = hemisphere(config.nside)
        l_out = _largest_degree(len(vertices), (_L_OUT, _L_IN, 4))
        self.register_buffer(
            "to_sh", torch.tensor(sh_inverse(vertices, min(_L_IN, l_out)), dtype=torch.float32), persistent=False
        )
        self.register_buffer("to_grid", torch.tensor(sh_basis(vertices, l_out), dtype=torch.float32), persistent=False)
        features, n_sh = 4 * config.channels[0], len(self.to_sh)
        sizes = [config.in_channels * n_sh, features, features, features]
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Conv3d(a, b, 3, padding=1), nn.BatchNorm3d(b), nn.ReLU()) for a, b in pairwise(sizes)
        )
        self.head = nn.Conv3d(features, self.to_grid.shape[1] + config.out_channels - 1, 1)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return output (B, O, X, Y, Z, V) of input (B, C, X, Y, Z, V)."""
        h = torch.einsum("bcxyzv,kv->bckxyz", x, self.to_sh).flatten(1, 2)  # (B, C K, X, Y, Z)
        for layer in self.layers:
            h = layer(h)
        h = self.head(h)
        n = self.to_grid.shape[1]
        fod = torch.einsum("bkxyz,vk->bxyzv", h[:, :n], self.to_grid)[:, None]
        flat = h[:, n:, ..., None].expand(-1, -1, -1, -1, -1, len(self.to_grid))
        return torch.cat([fod, flat], dim=1)


class Ponita(PeerNet):
    """The U-Net of convolutions on positions and orientations, as the trainings and fits of the package ask for it."""

    def __init__(self, config: UNetConfig):
        super().__init__(config)
        self.net = ponita(config)

    @property
    def head(self) -> nn.Module:
        """The last layer."""
        return self.net.head

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return output (B, O, X, Y, Z, V) of input (B, C, X, Y, Z, V)."""
        return self.net(x)


def _largest_degree(n_orientations: int, choices: tuple[int, ...]) -> int:
    """Return the first of some degrees whose even harmonics so many orientations determine."""
    return next(degree for degree in choices if (degree + 1) * (degree + 2) // 2 <= n_orientations)
