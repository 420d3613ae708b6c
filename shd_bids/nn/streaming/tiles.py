"""Running the U-Net over a masked volume a few planes at a time: the same result as on the whole volume, in bounded memory.

Planes of x stream through all layers together, as feature maps that exist in slabs (:mod:`shd_bids.nn.streaming.slabs`).
Nothing is computed outside the mask, where all features are zero, but in plain PyTorch the rectangle around it. The compiled
kernel keeps what it analysed of a layer's input for the next slab; PyTorch reads and analyses the planes at the slab's borders
again.

If a whole cross-section does not fit the memory it is cut into tiles, which run one after another and each compute the
voxels around themselves again. The coarser levels reach far. So then it can cost less to run in three stages, of which each
has its own tiles with a narrow halo: the finest encoder, whose pooled output alone is kept; the coarser levels; the finest
encoder again, now with its decoder.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product

import numpy as np
import torch
from torch import Tensor, nn

from shd_bids.boxes import Box, box_of, cells_of, dilated, doubled, grown, halved, index_in, overlap, padded, twice
from shd_bids.nn.backends import backend_for
from shd_bids.nn.backends.cpu import SlabPlan
from shd_bids.nn.layers.checkpoint import Activation
from shd_bids.nn.layers.pool import Unpooled
from shd_bids.nn.streaming.plan import plan
from shd_bids.nn.streaming.slabs import Convolution, Feature, MakeSlab, Slab, Store, UnpooledFeature
from shd_bids.nn.unet import ConvNormReLU, UNet

_VERTICES_AT_ONCE = 48  # that the last step takes


def apply_in_tiles(
    net: UNet,
    mask: np.ndarray,
    *,
    read: Callable[[Box], Tensor],
    write: Callable[[Box, Tensor], None],
    memory_bytes: int,
    progress: Callable[[float], None] | None = None,
) -> None:
    """Evaluate a volume-form network on a mask: the values there of ``net(x, mask)``, see :meth:`UNet.forward`.

    Parameters
    ----------
    net : UNet
        In evaluation mode; :meth:`UNet.folded` is fastest.
    mask : array of bool, shape (x, y, z)
    read : callable
        Gives the network's input on a box of the volume, (1, C, x, y, z, V), in the network's precision and on its device; of
        voxels outside the mask, anything. Called once for a voxel in each tile, so that the whole input need never exist.
    write : callable
        Takes a box and its output, (1, O, x, y, z, V). Boxes do not overlap and together cover the mask.
    memory_bytes : int
        Bound on the memory for activations.
    progress : callable, optional
        Told the fraction done after each slab.

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
    # Planes are cut across the longest axis, as memory goes by their area; a single plane then needs no copy to be turned.
    longest = int(np.argmax([side.stop - side.start for side in box_of(mask)]))
    axes = np.array([longest, *(axis for axis in range(3) if axis != longest)])
    read, write = _turned(read, write, axes)
    mask = mask.transpose(axes)
    size = mask.shape
    mask = padded(mask, net.config.spatial_stride)
    chosen = plan(net, mask, memory_bytes=memory_bytes)
    stream = _Stream(net, _source(net, read, size), mask, chosen.thickness)
    run = stream.run_in_stages if chosen.staged else stream.run
    with torch.inference_mode():
        for done in run(chosen.edges, write):
            if progress is not None:
                progress(done)


class _Stream:
    """The network over a volume as a chain of feature maps, each made from those before it.

    Parameters
    ----------
    net : UNet
    source : callable
        Gives the input in a box, (V, 1, x, y, z, C).
    mask : array of bool, shape (x, y, z)
    thickness : int
        Planes of a slab at the finest level.
    """

    def __init__(self, net: UNet, source: Callable[[Box], Tensor], mask: np.ndarray, thickness: int):
        self._net, self._source, self._thickness = net, source, thickness
        # The kernel computes what is marked, and slabs of one size fit where others were. PyTorch computes all.
        self._tight = not backend_for(net.head.bias).in_slabs
        self._masks = [mask]  # of each level
        for stride in net.config.pool_strides:
            self._masks.append(cells_of(self._masks[-1]) if stride else self._masks[-1])

    def run(self, edges: tuple[int, int], write: Callable[[Box, Tensor], None]) -> Iterator[float]:
        """Run the whole network on each tile; yield the share done."""
        done, mask = 0, self._masks[0]
        for tile in _tiles(mask, edges):
            for box, values in self._level(0, tile, self._input).slabs():
                self._finish(box, values, write)
                done += int(tile[box].sum())
                yield done / mask.sum()

    def run_in_stages(self, edges: tuple[int, int], write: Callable[[Box, Tensor], None]) -> Iterator[float]:
        """Run the finest encoder, the coarser levels and the finest decoder one after another, each over its tiles."""
        mask, cells, *_ = self._masks
        halves = edges[0] // 2, edges[1] // 2
        pooled, deeper = Store(cells), Store(cells)
        stages = (
            (0.3, cells, halves, self._encoded, pooled.put),
            (0.1, cells, halves, lambda part: self._level(1, part, partial(self._kept, 1, pooled)), deeper.put),
            (0.6, mask, edges, lambda part: self._decoded(part, deeper), partial(self._finish, write=write)),
        )
        before = 0.0
        for share, needed, sizes, chain, take in stages:
            done = 0
            for tile in _tiles(needed, sizes):
                for box, values in chain(tile).slabs():
                    take(box, values)
                    done += int(tile[box].sum())
                    yield before + share * done / int(needed.sum())
            before += share

    def _finish(self, box: Box, values: Tensor, write: Callable[[Box, Tensor], None]) -> None:
        parts = values.split(_VERTICES_AT_ONCE)  # else copies of all that is in the box come and go in ever other sizes
        write(box, torch.cat([self._net.head(part) for part in parts]).permute(1, 5, 2, 3, 4, 0))

    def _level(self, level: int, needed: np.ndarray, source: Callable[[np.ndarray], Feature]) -> Feature:
        """Chain a level and everything coarser; ``source`` gives the level's input at the voxels it is told."""
        net = self._net
        around = self._around(level, needed)
        if level == len(net.encoder):
            return self._block(level, net.bottom, [source(around)], needed)
        if net.config.pool_strides[level] == 0:
            skip = self._block(level, net.encoder[level], [source(self._around(level, around))], around)
            deeper: Feature | UnpooledFeature = self._feature(level, around, partial(self._below, level, skip))
        else:
            cells = self._cells(level, needed)
            made = around | self._voxels(level, self._reads(level + 1, cells))
            skip = self._block(level, net.encoder[level], [source(self._around(level, made))], made)
            coarse = self._level(level + 1, cells, lambda pooled: self._pooled(level, skip, pooled))
            deeper = UnpooledFeature(coarse, net.pools[level])
        return self._block(level, net.decoder[len(net.decoder) - 1 - level], [skip, deeper], needed)

    def _encoded(self, cells: np.ndarray) -> Feature:
        """Chain the finest encoder alone up to its pooled output."""
        made = self._voxels(0, cells)
        skip = self._block(0, self._net.encoder[0], [self._input(self._around(0, made))], made)
        return self._pooled(0, skip, cells, keep=False)

    def _decoded(self, needed: np.ndarray, deeper: Store) -> Feature:
        """Chain the finest encoder and its decoder, with what the coarser levels gave."""
        cells = self._cells(0, needed)
        made = self._around(0, needed) | self._voxels(0, cells)
        skip = self._block(0, self._net.encoder[0], [self._input(self._around(0, made))], made)
        coarse = self._kept(1, deeper, cells)
        return self._block(0, self._net.decoder[-1], [skip, UnpooledFeature(coarse, self._net.pools[0])], needed)

    def _input(self, needed: np.ndarray) -> Feature:
        return self._feature(0, needed, lambda box, _: Slab(box, self._source(box)))

    def _kept(self, level: int, store: Store, needed: np.ndarray) -> Feature:
        return self._feature(level, needed, lambda box, _: Slab(box, store.read(box)))

    def _around(self, level: int, needed: np.ndarray) -> np.ndarray:
        """Mark the voxels of its input on which a block's result at the needed voxels depends."""
        return dilated(needed, self._reach(level)) & self._masks[level]

    def _cells(self, level: int, needed: np.ndarray) -> np.ndarray:
        """Mark the cells that a decoder block reads for its result at the needed voxels, some outside the mask of its level."""
        return cells_of(dilated(needed, self._reach(level))) & self._masks[level + 1]

    def _reach(self, level: int) -> int:
        """Voxels that a block reaches in space."""
        return self._net.config.convs_per_block * self._net.config.spatial[level]

    def _voxels(self, level: int, cells: np.ndarray) -> np.ndarray:
        """Mark the voxels of cells."""
        return doubled(cells) & self._masks[level]

    def _reads(self, level: int, needed: np.ndarray) -> np.ndarray:
        """Mark the voxels of a level's input on which its result at the needed voxels depends."""
        around = self._around(level, needed)
        if level == len(self._net.encoder):
            return around
        if self._net.config.pool_strides[level]:
            around = around | self._voxels(level, self._reads(level + 1, self._cells(level, needed)))
        return self._around(level, around)

    def _feature(self, level: int, needed: np.ndarray, make: MakeSlab) -> Feature:
        unit = None if self._tight else self._side_unit(level)
        return Feature(needed, max(1, self._thickness >> level), make, unit=unit)

    def _side_unit(self, level: int) -> int:
        """Return what the ends of the rectangles of a level are multiples of: whole cells where it is pooled."""
        return 2 if self._net.config.pool_strides[level : level + 1] == (2,) else 1

    def _block(
        self, level: int, units: nn.ModuleList, inputs: Sequence[Feature | UnpooledFeature], needed: np.ndarray
    ) -> Feature:
        """Chain the convolutions of a block."""
        reach = int(self._net.config.spatial[level])
        for left, unit in zip(reversed(range(len(units))), units, strict=True):
            wanted = dilated(needed, reach * left) & self._masks[level]
            result = self._feature(level, wanted, self._convolution(level, unit, inputs, reach, wanted))
            inputs = [result]
        return result

    def _convolution(
        self,
        level: int,
        unit: ConvNormReLU,
        inputs: Sequence[Feature | UnpooledFeature],
        reach: int,
        wanted: np.ndarray,
    ) -> MakeSlab:
        if self._tight:
            return partial(self._convolved, level, unit, inputs, reach)
        plan = SlabPlan(wanted, self._masks[level], max(1, self._thickness >> level), self._side_unit(level))
        return Convolution(unit, inputs, reach=reach, plan=plan)

    def _convolved(
        self,
        level: int,
        unit: ConvNormReLU,
        inputs: Sequence[Feature | UnpooledFeature],
        reach: int,
        box: Box,
        _: Tensor | None,
    ) -> Slab:
        """Run one convolution in plain PyTorch, on all voxels of a rectangle."""
        wide = grown(box, reach, self._masks[level].shape)
        if isinstance(inputs[-1], UnpooledFeature):
            wide = twice(halved(wide))
        for feature in inputs:
            feature.prepare(wide[0].stop)
        values = [self._masked(level, feature.read(wide), wide) for feature in inputs]
        for feature in inputs:
            feature.forget(box[0].stop - reach)
        made = (box[0], *wide[1:])
        return Slab(made, unit(*values)[index_in(made, wide)])

    def _masked(self, level: int, values: Tensor | Unpooled, box: Box) -> Tensor | Unpooled:
        """Put zeros outside the mask."""
        if isinstance(values, Unpooled):
            return Unpooled(values.pool, self._masked(level + 1, values.source, halved(box)))
        return values * torch.from_numpy(self._masks[level][box]).to(values.device)[..., None]

    def _pooled(self, level: int, skip: Feature, needed: np.ndarray, *, keep: bool = True) -> Feature:
        """Pool the encoder's output and keep it for others."""

        def make(box: Box, _: Tensor | None) -> Slab:
            fine = twice(box)
            values, inside = skip.read(fine), self._masks[level][fine]
            # Others than those in a cell with some of the mask may be anything before and after.
            x, y, z = (torch.from_numpy(at).to(values.device) for at in np.nonzero(doubled(cells_of(inside)) & ~inside))
            values[:, :, x, y, z] = 0
            pooled = self._net.pools[level](values)
            if not keep:
                skip.forget(fine[0].stop)
            return Slab(box, pooled)

        return self._feature(level + 1, needed, make)

    def _below(self, level: int, skip: Feature, box: Box, _: Tensor | None) -> Slab:
        """Run the levels below, which treat each voxel alone."""
        pool = self._net.pools[level]
        pooled = Activation(pool(skip.read(box)))
        return Slab(box, pool.unpool(self._net.descend(level + 1, [pooled]).values))


def _turned(
    read: Callable[[Box], Tensor], write: Callable[[Box, Tensor], None], axes: np.ndarray
) -> tuple[Callable[[Box], Tensor], Callable[[Box, Tensor], None]]:
    """Return ``read`` and ``write`` for the volume with its axes in another order."""
    back = np.argsort(axes)

    def original(box: Box) -> Box:
        x, y, z = (box[axis] for axis in back)
        return x, y, z

    def read_turned(box: Box) -> Tensor:
        return read(original(box)).permute(0, 1, *(2 + axes).tolist(), 5)

    def write_turned(box: Box, values: Tensor) -> None:
        write(original(box), values.permute(0, 1, *(2 + back).tolist(), 5))

    return read_turned, write_turned


def _source(net: UNet, read: Callable[[Box], Tensor], size: tuple[int, ...]) -> Callable[[Box], Tensor]:
    """Return the input with vertices first, and zeros beyond the volume's end."""

    def source(box: Box) -> Tensor:
        there = overlap(box, (slice(0, size[0]), slice(0, size[1]), slice(0, size[2])))
        if there == box:
            return read(box).permute(5, 0, 2, 3, 4, 1).contiguous()
        shape = (s.stop - s.start for s in box)
        values = net.head.bias.new_zeros(net.bases[0].n_vertices, 1, *shape, net.config.in_channels)
        if there is not None:
            values[index_in(there, box)] = read(there).permute(5, 0, 2, 3, 4, 1)
        return values

    return source


def _tiles(mask: np.ndarray, edges: tuple[int, int]) -> Iterator[np.ndarray]:
    """Yield the parts of a mask in tiles of the cross-section, without the empty ones; tiles start at even voxels."""
    _, y, z = box_of(mask)
    starts = (range(side.start // 2 * 2, side.stop, edge) for side, edge in zip((y, z), edges, strict=True))
    for first in product(*starts):
        tile = (slice(None), *(slice(f, f + edge) for f, edge in zip(first, edges, strict=True)))
        part = np.zeros_like(mask)
        part[tile] = mask[tile]
        if part.any():
            yield part
