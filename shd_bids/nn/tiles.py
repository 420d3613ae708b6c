"""Running the U-Net over a masked volume in tiles: the same result as on the whole volume, in bounded memory.

The finest level holds nearly all data and work, the coarser ones nearly all of the receptive field. So the finest encoder is run
tile by tile and only its pooled output kept; then the coarser levels, tile by tile; then the finest encoder again, now with
its decoder. A tile carries a halo as wide as its own convolutions reach, so nothing is approximate, and places that no voxel
of the mask depends on are never computed.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from shd_bids.nn.unet import UNet, UNetConfig

Box = tuple[slice, slice, slice]

_TILE_COST = 100.0  # voxels whose evaluation costs as much as starting one more tile


@dataclass(frozen=True)
class Tile:
    """One piece of a volume: voxels to compute (``core``) and to read for it (``block``), both as slices of the volume."""

    core: Box
    block: Box

    def inside(self, *, of: Box | None = None) -> Box:
        """Give the core as slices of the block (or of another box)."""
        return _relative(self.core, self.block if of is None else of)


def apply_in_tiles(
    net: UNet,
    mask: np.ndarray,
    *,
    read: Callable[[Box], Tensor],
    write: Callable[[Box, Tensor], None],
    memory_bytes: int,
    progress: Callable[[float], None] | None = None,
) -> None:
    """Evaluate a volume-form network at every voxel of a mask.

    Parameters
    ----------
    net : UNet
        In evaluation mode; :meth:`UNet.folded` is fastest.
    mask : array of bool, shape (x, y, z)
        Voxels whose output is wanted.
    read : callable
        Gives the network's input on a box of the volume, (1, C, x, y, z, V), in the network's precision and on its device.
        Called up to twice for a voxel, so that the whole input need never exist.
    write : callable
        Takes a box and its output, (1, O, x, y, z, V). Boxes do not overlap and together cover the mask.
    memory_bytes : int
        Bound on the memory for activations.
    progress : callable, optional
        Told the fraction done after each tile.

    Raises
    ------
    ValueError
        If the network is in patch form or the bound is too small for the smallest tile.
    """
    if net.config.form != "volume":
        raise ValueError("the network is in patch form; only form='volume' runs in tiles")
    mask = np.asarray(mask, dtype=bool)
    if not mask.any():
        return
    stages = _staged if net.config.pool_strides[:1] == (2,) and 2 not in net.config.pool_strides[1:] else _direct
    with torch.inference_mode():
        for done in stages(net, mask, read, write, memory_bytes):
            if progress is not None:
                progress(done)


def plan(wanted: np.ndarray, *, halo: int, stride: int, memory_bytes: int, voxel_bytes: float) -> list[Tile]:
    """Cover the wanted voxels with tiles of the least total work whose blocks fit the memory.

    Parameters
    ----------
    wanted : array of bool, shape (x, y, z)
    halo : int
        Voxels around a core that its values depend on.
    stride : int
        Cores and blocks start and end at multiples of it (or at the end of the volume), so that pooling meets the same voxels
        as on the whole volume.
    memory_bytes : int
    voxel_bytes : float
        Memory for each voxel of a block.
    """
    occupied = [np.flatnonzero(wanted.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    first = [int(o[0]) // stride * stride for o in occupied]
    length = [int(o[-1]) + 1 - f for o, f in zip(occupied, first, strict=True)]
    margin = 2 * _up(halo, stride)
    best: tuple[float, list[Tile]] | None = None
    for edge in sorted({_up(max(1, -(-n // parts)), stride) for n in length for parts in range(1, 33)}, reverse=True):
        largest = np.prod([min(edge + margin, s) for s in wanted.shape], dtype=float)
        if largest * voxel_bytes > memory_bytes:
            continue
        tiles = list(_grid(wanted, first, [_even_edge(n, edge, stride) for n in length], halo, stride))
        work = sum(_voxels(tile.block) + _TILE_COST for tile in tiles)
        if best is None or work < best[0]:
            best = work, tiles
    if best is None:
        needed = (stride + margin) ** 3 * voxel_bytes
        raise ValueError(
            f"{memory_bytes / 2**20:.0f} MB are not enough for the smallest tile, which needs {needed / 2**20:.0f} MB; "
            "give more memory or a smaller network"
        )
    return best[1]


def voxel_bytes(config: UNetConfig, *, n_vertices: int, element_size: int) -> float:
    """Estimate the memory that a voxel of a finest-level block takes at the worst moment of inference.

    Two inputs and the output of the first decoder layer are alive together, besides the network's input and output and what
    the convolution holds of the expansion.
    """
    width = max(config.channels[0], config.in_channels)
    return 1.25 * n_vertices * element_size * (3 * width + config.in_channels + config.out_channels)


def _direct(net: UNet, mask: np.ndarray, read, write, memory_bytes: int) -> Iterator[float]:
    """Run the whole network on each tile."""
    config = net.config
    each = voxel_bytes(config, n_vertices=net.bases[0].n_vertices, element_size=net.head.bias.element_size())
    stride = config.spatial_stride
    tiles = plan(mask, halo=config.receptive_radius, stride=stride, memory_bytes=memory_bytes, voxel_bytes=each)
    for done, tile in enumerate(tiles, 1):
        write(tile.core, net(read(tile.block))[(..., *tile.inside(), slice(None))])
        yield done / len(tiles)


def _staged(net: UNet, mask: np.ndarray, read, write, memory_bytes: int) -> Iterator[float]:
    """Run the finest encoder, the coarser levels and the finest decoder one after another, each over all its tiles."""
    config, reach = net.config, net.config.convs_per_block
    size = net.head.bias.element_size()
    fine_bytes = voxel_bytes(config, n_vertices=net.bases[0].n_vertices, element_size=size)
    deeper_reach = reach * (2 if len(config.channels) > 2 else 1)
    cells = _cells(_dilated(mask, reach))  # coarse voxels that the finest decoder reads
    sources = _dilated(cells, deeper_reach)  # coarse voxels that those depend on
    pooled_wanted = np.repeat(np.repeat(np.repeat(sources, 2, 0), 2, 1), 2, 2)[tuple(map(slice, mask.shape))]
    vertices = net.bases[1].n_vertices
    coarse_channels = config.channels[0] + config.channels[0]
    held = float(cells.size) * vertices * size * coarse_channels
    free = memory_bytes - held
    if free <= 0:
        yield from _direct(net, mask, read, write, memory_bytes)
        return
    encoding = plan(pooled_wanted, halo=reach, stride=2, memory_bytes=free, voxel_bytes=fine_bytes)
    coarse_bytes = 1.25 * vertices * size * (3 * config.channels[1] + 2 * config.channels[0])
    inner = plan(cells, halo=deeper_reach, stride=1, memory_bytes=free, voxel_bytes=coarse_bytes)
    decoding = plan(mask, halo=2 * reach, stride=2, memory_bytes=free, voxel_bytes=fine_bytes)
    work = [sum(_voxels(t.block) * w for t in tiles) for tiles, w in ((encoding, 0.3), (inner, 1.0), (decoding, 1.0))]
    done, total = 0.0, sum(work)

    pooled = deeper = None
    for tile in encoding:
        x = net.pools[0](net.encode(0, net.pad(_inside_first(read(tile.block)))))
        part = _halved(tile.core)
        if pooled is None:
            pooled = x.new_zeros(vertices, 1, *cells.shape, x.shape[-1])
        pooled[(slice(None), slice(None), *part)] = x[(slice(None), slice(None), *_relative(part, _halved(tile.block)))]
        done += 0.3 * _voxels(tile.block)
        yield done / total
    for tile in inner:
        x = net.descend(1, pooled[(slice(None), slice(None), *tile.block)].contiguous())
        if deeper is None:
            deeper = x.new_zeros(vertices, 1, *cells.shape, x.shape[-1])
        deeper[(slice(None), slice(None), *tile.core)] = x[(slice(None), slice(None), *tile.inside())]
        done += _voxels(tile.block)
        yield done / total
    del pooled
    for tile in decoding:
        skip = net.encode(0, net.pad(_inside_first(read(tile.block))))
        narrow = _grown(tile.core, _up(reach, 2), mask.shape)
        part = _halved(narrow)
        near = tuple(slice(2 * s.start, 2 * s.stop) for s in _relative(part, _halved(tile.block)))
        skip = skip[(slice(None), slice(None), *near)].contiguous()
        x = net.decode(0, skip, deeper[(slice(None), slice(None), *part)].contiguous())
        del skip
        x = net.classify(x[(slice(None), slice(None), *tile.inside(of=narrow))])
        write(tile.core, x.permute(1, 5, 2, 3, 4, 0))
        done += _voxels(tile.block)
        yield done / total


def _grid(wanted: np.ndarray, first: list[int], edges: list[int], halo: int, stride: int) -> Iterator[Tile]:
    """Yield tiles of a regular grid, each shrunk to the wanted voxels in it; empty ones are left out."""
    starts = [range(f, s, e) for f, s, e in zip(first, wanted.shape, edges, strict=True)]
    for x in starts[0]:
        for y in starts[1]:
            for z in starts[2]:
                corner = (x, y, z)
                there = wanted[tuple(slice(c, c + e) for c, e in zip(corner, edges, strict=True))]
                if not there.any():
                    continue
                core = []
                for axis, (start, size) in enumerate(zip(corner, wanted.shape, strict=True)):
                    used = np.flatnonzero(there.any(axis=tuple({0, 1, 2} - {axis})))
                    low = start + int(used[0]) // stride * stride
                    core.append(slice(low, min(start + _up(int(used[-1]) + 1, stride), size)))
                box = (core[0], core[1], core[2])
                yield Tile(box, _grown(box, _up(halo, stride), wanted.shape))


def _even_edge(length: int, edge: int, stride: int) -> int:
    """Give the edge that covers a length with as many tiles as ``edge`` does, but of equal size."""
    return _up(-(-length // -(-length // edge)), stride)


def _grown(box: Box, by: int, shape: tuple[int, ...]) -> Box:
    x, y, z = (slice(max(s.start - by, 0), min(s.stop + by, n)) for s, n in zip(box, shape, strict=True))
    return x, y, z


def _halved(box: Box) -> Box:
    x, y, z = (slice(s.start // 2, -(-s.stop // 2)) for s in box)
    return x, y, z


def _relative(box: Box, of: Box) -> Box:
    x, y, z = (slice(s.start - o.start, s.stop - o.start) for s, o in zip(box, of, strict=True))
    return x, y, z


def _voxels(box: Box) -> int:
    return int(np.prod([s.stop - s.start for s in box]))


def _dilated(mask: np.ndarray, by: int) -> np.ndarray:
    """Mark every voxel within ``by`` along each axis."""
    return ndimage.maximum_filter(mask, size=2 * by + 1, mode="constant") if by else mask


def _cells(mask: np.ndarray) -> np.ndarray:
    """Mark the cells of 2 x 2 x 2 voxels that hold a marked voxel."""
    padded = np.pad(mask, [(0, n % 2) for n in mask.shape])
    x, y, z = (n // 2 for n in padded.shape)
    return padded.reshape(x, 2, y, 2, z, 2).any(axis=(1, 3, 5))


def _inside_first(x: Tensor) -> Tensor:
    """Turn (1, C, X, Y, Z, V) into (V, 1, X, Y, Z, C)."""
    return x.permute(5, 0, 2, 3, 4, 1).contiguous()


def _up(n: int, unit: int) -> int:
    return -(-n // unit) * unit
