"""The U-Net of the paper with other convolutions: two with batch normalisation and ReLU in each block, skips concatenated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from shd_bids.nn.layers.cheb import Grid
from shd_bids.nn.unet import UNetConfig
from shd_bids.sphere import healpix
from shd_bids.sphere.harmonics import n_coefficients, sh_basis, sh_inverse
from tests.benchmarks.paper.comparators import ConcatConv, HarmonicConv, PonitaConv

Factory: TypeAlias = Callable[[Grid, int, int, bool], nn.Module]
"""Grid, features in and out, whether space is convolved -> convolution."""


def concatenated(config: UNetConfig) -> PlainUNet:
    """Return a U-Net of concatenated SO(3) convolutions."""
    return PlainUNet(config, lambda grid, i, o, spatial: ConcatConv(grid, i, o, spatial=spatial))


def ponita(config: UNetConfig) -> PlainUNet:
    """Return a U-Net of convolutions on positions and orientations."""
    return PlainUNet(config, lambda grid, i, o, spatial: PonitaConv(grid, i, o, spatial=spatial))


class PlainUNet(nn.Module):
    """Map (B, C, X, Y, Z, V) to (B, O, X, Y, Z, V); space must be divisible as often as it is halved.

    Parameters
    ----------
    config : UNetConfig
        Levels, features and pooling; ``order`` and ``norm`` are not read.
    conv : callable
    sphere : bool
        False leaves vertices, of which there is one, unpooled.
    """

    def __init__(self, config: UNetConfig, conv: Factory, *, sphere: bool = True):
        super().__init__()
        self.config, self._conv, self._sphere = config, conv, sphere
        widths, finer = config.channels, (config.channels[0], *config.channels[:-1])
        bottom = len(widths) - 1
        sources = (config.in_channels, *widths[:-1])
        self.encoder = nn.ModuleList(self._block(n, sources[n], widths[n], widths[n]) for n in range(bottom))
        self.bottom = self._block(bottom, sources[bottom], widths[bottom], finer[bottom])
        self.decoder = nn.ModuleList(self._block(n, 2 * widths[n], widths[n], finer[n]) for n in range(bottom))
        self.head = nn.Conv1d(finer[0], config.out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, X, Y, Z, V) to (B, O, X, Y, Z, V)."""
        x = self._descend(0, x.permute(0, 1, 5, 2, 3, 4))  # (B, F, V, X, Y, Z)
        y = self.head(x.flatten(2)).unflatten(2, x.shape[2:])
        return y.permute(0, 1, 3, 4, 5, 2)

    def _descend(self, level: int, x: Tensor) -> Tensor:
        if level == len(self.encoder):
            return self.bottom(x)
        skip = self.encoder[level](x)
        coarse = self._descend(level + 1, self._pool(skip, level))
        return self.decoder[level](torch.cat([skip, self._unpool(coarse, level, skip.shape[3:])], dim=1))

    def _pool(self, x: Tensor, level: int) -> Tensor:
        nside, stride = self.config.nsides[level], self.config.pool_strides[level]
        if stride:
            x = functional.avg_pool3d(x.flatten(0, 1), 2, stride=stride).unflatten(0, x.shape[:2])
        if not self._sphere:
            return x
        children = torch.tensor(healpix.children(nside, hemisphere_only=self.config.hemisphere), device=x.device)
        return x[:, :, children].mean(3)

    def _unpool(self, x: Tensor, level: int, size: torch.Size) -> Tensor:
        if self._sphere:
            parents = healpix.parents(self.config.nsides[level], hemisphere_only=self.config.hemisphere)
            x = x[:, :, torch.tensor(parents, device=x.device)]
        return functional.interpolate(x.flatten(0, 1), size=size, mode="nearest").unflatten(0, x.shape[:2])

    def _block(self, level: int, inputs: int, width: int, outputs: int) -> nn.Sequential:
        grid = Grid(self.config.nsides[level], self.config.hemisphere)
        spatial = self.config.spatial[level]
        return nn.Sequential(
            *(_Unit(self._conv(grid, i, o, spatial), o) for i, o in ((inputs, width), (width, outputs)))
        )


class HarmonicUNet(nn.Module):
    """A U-Net over space whose features are harmonics of the input: E(3) on spherical harmonics.

    Parameters
    ----------
    config : UNetConfig
        Its levels halve space; the sphere is left at the door.
    degree : int
        Of the input.
    out_degree : int
        Of the output; 0 gives values that are equal in all directions.
    """

    to_sh: Tensor  # (K, V)
    from_sh: Tensor  # (V, K')

    def __init__(self, config: UNetConfig, *, degree: int, out_degree: int):
        super().__init__()
        points = healpix.grid(config.nside, hemisphere_only=config.hemisphere)
        self.register_buffer("to_sh", torch.tensor(sh_inverse(points, degree), dtype=torch.float32), persistent=False)
        self.register_buffer(
            "from_sh", torch.tensor(sh_basis(points, out_degree), dtype=torch.float32), persistent=False
        )
        inner = replace(
            config,
            in_channels=config.in_channels * n_coefficients(degree),
            out_channels=config.out_channels * n_coefficients(out_degree),
        )
        self.net = PlainUNet(inner, lambda grid, i, o, spatial: HarmonicConv(i, o, spatial=spatial), sphere=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, X, Y, Z, V) to (B, O, X, Y, Z, V)."""
        coefficients = (x @ self.to_sh.T).permute(0, 1, 5, 2, 3, 4).flatten(1, 2)  # (B, C K, X, Y, Z)
        y = self.net(coefficients[..., None])[..., 0]  # (B, O K', X, Y, Z)
        return y.unflatten(1, (-1, self.from_sh.shape[1])).movedim(2, -1) @ self.from_sh.T


class _Unit(nn.Module):
    """One convolution, batch normalisation over everything but features, and ReLU."""

    def __init__(self, conv: nn.Module, channels: int):
        super().__init__()
        self.conv, self.norm = conv, nn.BatchNorm1d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, I, V, X, Y, Z) to (B, O, V, X, Y, Z)."""
        y = self.conv(x)
        return functional.relu(self.norm(y.flatten(2))).unflatten(2, y.shape[2:])
