"""The other networks of the paper's comparison, small: a CNN on spherical harmonics, and one after PONITA (Bekkers et al. 2024).

Both take and give what the package's networks in patch form do, (B, C, V, X, Y, Z) with V vertices of the hemisphere.
"""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from shd_bids.nn.unet import UNetConfig
from shd_bids.sphere.harmonics import sh_basis, sh_inverse
from shd_bids.sphere.healpix import hemisphere

_L_IN, _L_OUT = 8, 18  # degrees of the CNN's input, as published, and of its fODF
_KERNEL_FEATURES = 16  # of the small networks that give PONITA's kernels


class PeerNet(nn.Module):
    """What the trainings and fits of the package ask of a network in patch form.

    Parameters
    ----------
    config : UNetConfig
        Of the number of channels, of features (the first) and of the grid; levels do not apply.
    """

    def __init__(self, config: UNetConfig):
        super().__init__()
        self.config = config
        self.bases = [SimpleNamespace(n_vertices=6 * config.nside**2)]

    def folded(self) -> PeerNet:
        """Return the network for inference, itself."""
        return self


class SphericalCNN(PeerNet):
    """Convolutions of 3 x 3 x 3 voxels on the coefficients of all shells as channels; not equivariant to rotations of voxels."""

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
    """Separable convolutions over positions and orientations, with kernels of what rotations leave unchanged.

    Its orientations are those of the next coarser grid, as many as memory allows a product of all pairs.
    """

    def __init__(self, config: UNetConfig):
        super().__init__(config)
        fine, coarse, features = hemisphere(config.nside), hemisphere(config.nside // 2), config.channels[0]
        self.register_buffer("to_coarse", _resampling(fine, coarse), persistent=False)
        self.register_buffer("to_fine", _resampling(coarse, fine), persistent=False)
        self.lift = nn.Linear(config.in_channels, features)
        self.blocks = nn.ModuleList(PonitaBlock(coarse, features) for _ in range(2))
        self.head = nn.Linear(features, config.out_channels)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return output (B, O, X, Y, Z, V) of input (B, C, X, Y, Z, V)."""
        h = self.lift((x @ self.to_coarse.T).movedim(1, -1))  # (B, X, Y, Z, W, F)
        for block in self.blocks:
            h = block(h)
        return self.head(h).movedim(-1, 1) @ self.to_fine.T


class PonitaBlock(nn.Module):
    r"""A convolution over space, one over the sphere, each channel by itself, and a residual network of the channels.

    The kernel over space depends on :math:`(d \cdot n)^2` and :math:`|d|^2` of an offset d and an orientation n, that over
    the sphere on :math:`(n \cdot n')^2`, which makes both even.
    """

    def __init__(self, orientations: np.ndarray, features: int):
        super().__init__()
        vertices = torch.tensor(orientations, dtype=torch.float32)
        offsets = torch.cartesian_prod(*[torch.arange(-1.0, 2.0)] * 3)
        along = (offsets @ vertices.T) ** 2  # (27, V)
        lengths = (offsets**2).sum(dim=1, keepdim=True).expand_as(along)
        self.register_buffer("near", torch.stack([along, lengths], dim=-1), persistent=False)
        self.register_buffer("angle", ((vertices @ vertices.T) ** 2)[..., None], persistent=False)
        self.over_space, self.over_sphere = _kernel_net(2, features), _kernel_net(1, features)
        self.norm = nn.BatchNorm1d(features)
        self.mix = nn.Sequential(nn.Linear(features, 2 * features), nn.GELU(), nn.Linear(2 * features, features))

    def forward(self, x: Tensor) -> Tensor:
        """Return features (B, X, Y, Z, V, F)."""
        size = x.shape[1:4]
        padded = nn.functional.pad(x, (0, 0, 0, 0, 1, 1, 1, 1, 1, 1))
        kernel = self.over_space(self.near) / len(self.near)  # (27, V, F)
        moved = torch.zeros_like(x)
        for number, (i, j, k) in enumerate(torch.cartesian_prod(*[torch.arange(3)] * 3).tolist()):
            moved = moved + kernel[number] * padded[:, i : i + size[0], j : j + size[1], k : k + size[2]]
        kernel = self.over_sphere(self.angle) / len(self.angle)  # (V, V, F)
        turned = torch.einsum("bxyzvf,vwf->bxyzwf", moved, kernel)
        normed = self.norm(turned.reshape(-1, turned.shape[-1])).view_as(turned)
        return x + self.mix(relu(normed))


def _resampling(source: np.ndarray, target: np.ndarray) -> Tensor:
    """Return the map of amplitudes from one set of orientations to another by even harmonics, (target, source)."""
    l_max = _largest_degree(len(source), (10, 6, 2))
    return torch.tensor(sh_basis(target, l_max) @ sh_inverse(source, l_max), dtype=torch.float32)


def _largest_degree(n_orientations: int, choices: tuple[int, ...]) -> int:
    """Return the first of some degrees whose even harmonics so many orientations determine."""
    return next(degree for degree in choices if (degree + 1) * (degree + 2) // 2 <= n_orientations)


def _kernel_net(n_invariants: int, features: int) -> nn.Sequential:
    """Return a small network from invariants to a value of the kernel for each channel."""
    return nn.Sequential(nn.Linear(n_invariants, _KERNEL_FEATURES), nn.GELU(), nn.Linear(_KERNEL_FEATURES, features))
