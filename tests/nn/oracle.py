"""The published evaluation, written plainly from the equations: slow, dense, and the oracle of tests and benchmarks.

Layer: all Chebyshev polynomials as one dense (K V) x V matrix, then ``conv3d`` with the kernel expanded to 3 x 3 x 3.
Network: one patch for each voxel, concatenated skips, batch normalisation and ReLU as separate steps, tensors
(batch, channel, vertex, x, y, z).
"""

from collections.abc import Callable
from functools import lru_cache
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from shd_bids.nn.layers.conv import SpatioSphericalConv
from shd_bids.nn.unet import UNet
from shd_bids.sphere import graph, healpix

Layer: TypeAlias = Callable[[Tensor, SpatioSphericalConv], Tensor]


@lru_cache
def projector(nside: int, hemisphere: bool, order: int, dtype: torch.dtype, device: str = "cpu") -> Tensor:
    """Stack T_0 .. T_{K-1} of the rescaled Laplacian by their recurrence, shape (K V, V)."""
    laplacian = graph.rescaled_laplacian(nside, hemisphere_only=hemisphere)
    terms = [np.eye(len(laplacian)), laplacian]
    while len(terms) < order:
        terms.append(2 * laplacian @ terms[-1] - terms[-2])
    return torch.tensor(np.concatenate(terms[:order]), dtype=dtype, device=device)


def layer(x: Tensor, conv: SpatioSphericalConv) -> Tensor:
    """Map (B, I, V, X, Y, Z) to (B, O, V, X, Y, Z)."""
    vertices, order = x.shape[2], conv.weightSph.shape[2]
    matrix = projector(*conv.basis.grid, order, x.dtype, x.device.type)
    terms = matrix @ x.permute(2, 1, 0, 3, 4, 5).reshape(vertices, -1)  # (K V, I B X Y Z)
    return convolve(terms.view(order, vertices, x.shape[1], len(x), *x.shape[3:]), conv)


def convolve(terms: Tensor, conv: SpatioSphericalConv) -> Tensor:
    """Map Chebyshev terms (K, V, I, B, X, Y, Z) to (B, O, V, X, Y, Z) by the expanded kernel."""
    batch, vertices = terms.shape[3], terms.shape[1]
    terms = terms.permute(3, 1, 2, 0, 4, 5, 6)  # (B, V, I, K, X, Y, Z)
    kernel = conv.weightSph[..., None, None, None]  # (O, I, K, 1, 1, 1)
    if conv.weightSpa is not None:
        axis = torch.arange(-1, 2, device=terms.device).abs()
        kernel = kernel * conv.weightSpa[:, :, None, axis[:, None, None] + axis[:, None] + axis]
    y = functional.conv3d(terms.flatten(0, 1).flatten(1, 2), kernel.flatten(1, 2), conv.bias, padding="same")
    return y.unflatten(0, (batch, vertices)).transpose(1, 2)


def unet(x: Tensor, net: UNet, *, layer: Layer = layer) -> Tensor:
    """Map (B, C, X, Y, Z, V) to (B, O, X, Y, Z, V) with the weights of a network in patch form, each by ``layer``."""
    config = net.config
    x = x.permute(0, 1, 5, 2, 3, 4)
    skips = []
    for level, block in enumerate(net.encoder):
        x = _block(x, block, layer)
        skips.append(x)
        x = _pool(x, config.nsides[level], config.hemisphere)
    x = _block(x, net.bottom, layer)
    for level, block in zip(reversed(range(len(skips))), net.decoder, strict=True):
        x = _unpool(x, skips[level].shape[3:], config.nsides[level], config.hemisphere)
        x = _block(torch.cat([skips[level], x], dim=1), block, layer)
    x = functional.conv3d(x.flatten(2, 3), net.head.weightSph[..., None, None], net.head.bias).unflatten(
        2, x.shape[2:4]
    )
    return x.permute(0, 1, 3, 4, 5, 2)


def _block(x: Tensor, block: torch.nn.ModuleList, layer: Layer) -> Tensor:
    for unit in block:
        x = layer(x, unit.conv)
        norm = unit.norm
        if norm is not None:
            statistics = (None, None) if norm.training else (norm.running_mean, norm.running_var)
            x = functional.batch_norm(x, *statistics, norm.weight, norm.bias, training=norm.training, eps=norm.eps)
        x = functional.relu(x)
    return x


def _pool(x: Tensor, nside: int, hemisphere: bool) -> Tensor:
    batch, features, vertices, *size = x.shape
    if size[0] > 1:
        x = functional.avg_pool3d(x.flatten(0, 2)[:, None], 2, stride=2 - size[0] % 2)
        x = x.view(batch, features, vertices, *x.shape[2:])
    return x[:, :, torch.tensor(healpix.children(nside, hemisphere_only=hemisphere))].mean(3)


def _unpool(x: Tensor, size: torch.Size, nside: int, hemisphere: bool) -> Tensor:
    x = x[:, :, torch.tensor(healpix.parents(nside, hemisphere_only=hemisphere))]
    return functional.interpolate(x.flatten(1, 2), size=size, mode="nearest").unflatten(1, x.shape[1:3])
