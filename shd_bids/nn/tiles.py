"""Running the U-Net over a masked volume a few planes at a time: the same result as on the whole volume, in bounded memory.

Planes of x stream through all layers together. A feature map is made in slabs of a few planes when a layer asks for them and
forgotten when no layer will ask again, so that each plane of each layer is computed once. Nothing is computed outside the
mask, where all features are zero, but in plain PyTorch the rectangle around it. The compiled kernel keeps what it analysed of
a layer's input for the next slab; PyTorch reads and analyses the planes at the slab's borders again.

If a whole cross-section does not fit the memory it is cut into tiles, which run one after another and each compute the
voxels around themselves again. The coarser levels reach far. So then it can cost less to run in three stages, of which each
has its own tiles with a narrow halo: the finest encoder, whose pooled output alone is kept; the coarser levels; the finest
encoder again, now with its decoder.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import product

import numpy as np
import torch
from torch import Tensor, nn

from shd_bids.nn import memory, native
from shd_bids.nn.boxes import (
    Box,
    box_of,
    cells_of,
    dilated,
    doubled,
    grown,
    halved,
    index_in,
    n_voxels,
    overlap,
    padded,
    rectangle,
    twice,
)
from shd_bids.nn.pool import Pooling, Unpooled
from shd_bids.nn.unet import ConvNormReLU, UNet

_THICKNESS = (16, 8, 4, 2)  # planes of a slab at the finest level
_MOST_CUTS = 16  # of one side of the cross-section
_ENCODED_AGAIN = 1.4  # work of the three stages, which run the finest encoder twice
_VERTICES_AT_ONCE = 48  # that the last step takes
_FULL = 0.85  # share of the memory from which on freed memory is handed back; the next layer has to fit into the rest


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
    # Planes are cut across the longest axis, as memory goes by their area.
    axes = np.argsort([side.start - side.stop for side in box_of(mask)], kind="stable")
    read, write = _turned(read, write, axes)
    mask = mask.transpose(axes)
    size = mask.shape
    mask = padded(mask, net.config.spatial_stride)
    chosen = plan(net, mask, memory_bytes=memory_bytes)
    most = memory.resident_bytes() + int(_FULL * memory_bytes)
    stream = _Stream(net, _source(net, read, size), mask, chosen.thickness, most)
    run = stream.run_in_stages if chosen.staged else stream.run
    with torch.inference_mode():
        for done in run(chosen.edges, write):
            if progress is not None:
                progress(done)


@dataclass(frozen=True)
class Plan:
    """How to run: edges of the tiles along y and z, planes of a slab, and whether in three stages."""

    edges: tuple[int, int]
    thickness: int
    staged: bool


@dataclass(frozen=True)
class _Way:
    """A way to run: work for each voxel, bytes held throughout, and which levels run together with what halo."""

    staged: bool
    cost: float
    held: float
    chains: tuple[tuple[range, int], ...]


def plan(net: UNet, mask: np.ndarray, *, memory_bytes: float) -> Plan:
    """Choose the way of least work that fits the memory.

    Parameters
    ----------
    net : UNet
    mask : array of bool, shape (x, y, z)
        Of multiples of the network's spatial stride.
    memory_bytes : float
    """
    config, (_, *sides) = net.config, box_of(mask)
    depth, reach = len(config.channels), 2 * config.convs_per_block
    ways = [_Way(False, 1.0, 0.0, ((range(depth), config.receptive_radius),))]
    if config.pool_strides[:1] == (2,):
        stored = 2 * int(cells_of(mask).sum())
        held = float(stored) * net.bases[1].n_vertices * config.channels[0] * net.head.bias.element_size()
        ways.append(_Way(True, _ENCODED_AGAIN, held, ((range(1), reach), (range(1, depth), 2 * reach))))
    best: tuple[tuple[float, float], Plan] | None = None
    least = np.inf
    for edges in product(*(_edges(side, config.spatial_stride) for side in sides)):
        for way, thickness in product(ways, _THICKNESS):
            areas = [_areas(sides, edges, halo) for _, halo in way.chains]
            columns = (column_bytes(net, thickness, levels=levels) for levels, _ in way.chains)
            needed = way.held + max(largest * each for (_, largest), each in zip(areas, columns, strict=True))
            # In plain PyTorch a slab expands two planes again in each layer, which is about half of the work on them.
            work = way.cost * areas[0][0] * (1 if native.suits(net.head.bias) else 1 + 1 / thickness)
            least = min(least, needed)
            if needed <= memory_bytes and (best is None or (work, needed) < best[0]):
                best = (work, needed), Plan((edges[0], edges[1]), thickness, way.staged)
    if best is None:
        raise ValueError(
            f"{memory_bytes / 2**20:.0f} MB are not enough for the smallest tile, which needs {least / 2**20:.0f} MB; "
            "give more memory or a smaller network"
        )
    return best[1]


def column_bytes(net: UNet, thickness: int, *, levels: range) -> float:
    """Estimate the memory for each voxel of a cross-section when slabs of ``thickness`` planes stream through some levels.

    Each layer keeps the planes of its input that the next slab needs again. Beside them there are the slabs on their way from
    one layer to the next. A skip waits until the next level answers.
    """
    config, numbers = net.config, 0.0
    for level in levels:
        if level and not config.spatial[level]:
            break
        waiting = config.receptive_radius >> level if level + 1 in levels and config.spatial[level + 1] else 0
        planes = max(1, thickness >> level)
        held = waiting + (2 * config.convs_per_block - 1) * (planes + 2) + 2 * planes + 1
        enters = config.channels[level - 1] if level else config.in_channels + config.out_channels
        numbers += net.bases[level].n_vertices * (config.channels[level] * held + enters * (planes + 4)) / 4**level
    return 1.1 * numbers * net.head.bias.element_size()


def _areas(sides: list[slice], edges: tuple[int, ...], halo: int) -> tuple[int, int]:
    """Give the voxels of all tiles with their halos, and those of the largest; nothing is computed beyond the sides."""
    y, z = (_widths(*along, halo) for along in zip(sides, edges, strict=True))
    return sum(y) * sum(z), max(y) * max(z)


@dataclass(frozen=True)
class _Slab:
    """Some planes of a feature map: where they lie and their values (V, 1, X, Y, Z, F)."""

    box: Box
    values: Tensor


_Make = Callable[[Box, Tensor | None], _Slab]


class _Feature:
    """One feature map, made in slabs when asked for.

    Parameters
    ----------
    needed : array of bool, shape (x, y, z)
        Voxels whose values matter; elsewhere they are whatever is at hand.
    thickness : int
        Planes of a slab.
    make : callable
        Makes the slab of a box, which may be larger in y and z; is given the values of one that was forgotten, to reuse.
    unit : int, optional
        Make all slabs in one rectangle whose ends are multiples of it. Without it, each as small as what is needed.
    """

    def __init__(self, needed: np.ndarray, thickness: int, make: _Make, *, unit: int | None):
        self.needed, self.thickness, self._make = needed, thickness, make
        self._sides = rectangle(needed, unit) if unit and needed.any() else None
        self._slabs: list[_Slab] = []
        self._spare: Tensor | None = None
        self._end = int(needed.any(axis=(1, 2)).argmax()) // 2 * 2  # so that a slab of cells needs one of voxels

    def prepare(self, last: int) -> None:
        """Make all planes before ``last``."""
        while self._end < last:
            first, self._end = self._end, min(self._end + self.thickness, last)
            part = self.needed[first : self._end]
            if part.any():
                spare, self._spare = self._spare, None
                self._slabs.append(self._make((slice(first, self._end), *(self._sides or box_of(part)[1:])), spare))

    def read(self, box: Box) -> Tensor:
        """Give the values in a box, none of whose planes was forgotten; zero where nothing was needed."""
        self.prepare(box[0].stop)
        parts = [(slab, common) for slab in self._slabs if (common := overlap(slab.box, box))]
        if len(parts) == 1 and parts[0][1] == box:
            return parts[0][0].values[index_in(box, parts[0][0].box)]
        like = self._slabs[-1].values
        shape = (len(like), 1, *(side.stop - side.start for side in box), like.shape[-1])
        whole = sum(n_voxels(common) for _, common in parts) == n_voxels(box)
        result = like.new_empty(shape) if whole else like.new_zeros(shape)
        for slab, common in parts:
            result[index_in(common, box)] = slab.values[index_in(common, slab.box)]
        return result

    def slabs(self) -> Iterator[tuple[Box, Tensor]]:
        """Yield boxes that cover what is needed, with their values, and forget them."""
        stop = box_of(self.needed)[0].stop
        for first in range(self._end, stop, self.thickness):
            part = self.needed[first : min(first + self.thickness, stop)]
            if part.any():
                box = (slice(first, first + len(part)), *box_of(part)[1:])
                yield box, self.read(box)
                self.forget(box[0].stop)

    def planes(self, begin: int, end: int) -> tuple[int, int]:
        """Say which of its planes are needed of those from ``begin`` to ``end`` of its reader."""
        return begin, end

    def between(self, begin: int, end: int) -> Iterator[tuple[_Slab, slice]]:
        """Yield the slabs with planes from ``begin`` to ``end``, and which of those planes they hold."""
        self.prepare(end)
        for slab in self._slabs:
            planes = slice(max(slab.box[0].start, begin), min(slab.box[0].stop, end))
            if planes.start < planes.stop:
                yield slab, planes

    def forget(self, before: int) -> None:
        """Let go of the slabs that end before ``before``."""
        while self._slabs and self._slabs[0].box[0].stop <= before:
            self._spare = self._slabs.pop(0).values


class _Unpooled:
    """A feature map copied from a coarser one, in whose place its readers are given that.

    Parameters
    ----------
    coarse : _Feature
    pool : Pooling
    """

    def __init__(self, coarse: _Feature, pool: Pooling):
        self._coarse, self.pool = coarse, pool
        self._done = 0

    def prepare(self, last: int) -> None:
        """Make all planes before ``last``."""
        self._coarse.prepare(-(-last // 2))

    def read(self, box: Box) -> Unpooled:
        """Give the map in a box of whole cells."""
        return Unpooled(self.pool, self._coarse.read(halved(box)))

    def planes(self, begin: int, end: int) -> tuple[int, int]:
        """Say which planes of cells are needed for those from ``begin`` to ``end`` of its reader, each once."""
        begin, self._done = max(begin // 2, self._done), -(-end // 2)
        return begin, self._done

    def between(self, begin: int, end: int) -> Iterator[tuple[_Slab, slice]]:
        """Yield the slabs with planes of cells from ``begin`` to ``end``, and which of those they hold."""
        return self._coarse.between(begin, end)

    def forget(self, before: int) -> None:
        """Let go of the planes before ``before``."""
        self._coarse.forget(before // 2)


class _Convolution:
    """One convolution by the compiled kernel, which takes each plane of its inputs once.

    Parameters
    ----------
    unit : ConvNormReLU
    inputs : sequence of _Feature or _Unpooled
    reach : int
        Planes on each side that a result depends on.
    course : native.Course
    most : int
        Bytes of the process beyond which it hands back freed memory.
    """

    def __init__(
        self,
        unit: ConvNormReLU,
        inputs: Sequence[_Feature | _Unpooled],
        *,
        reach: int,
        course: native.Course,
        most: int,
    ):
        self._unit, self._inputs, self._reach, self._most = unit, inputs, reach, most
        self._planes, self._done = len(course.wanted), 0
        pool = inputs[-1].pool if isinstance(inputs[-1], _Unpooled) else None
        self._start = partial(unit.slabwise, course, pool=pool)

    @cached_property
    def _layer(self) -> native.Slabwise:
        return self._start()

    def __call__(self, box: Box, spare: Tensor | None) -> _Slab:
        """Make a slab, at the wanted voxels of its planes."""
        begin, end = max(self._done, box[0].start - self._reach), min(box[0].stop + self._reach, self._planes)
        for feature in self._inputs:
            feature.prepare(end)
        for index, feature in enumerate(self._inputs):
            self._analyse(index, feature, begin, end)
            feature.forget(end)
        self._done = end
        memory.hand_back_freed_memory(self._most)
        y = self._layer.combine(box[0], spare)
        return _Slab((box[0], *self._layer.sides), self._unit.normalise(y))

    def _analyse(self, index: int, feature: _Feature | _Unpooled, begin: int, end: int) -> None:
        at, end = feature.planes(begin, end)
        for slab, planes in feature.between(at, end):
            if at < planes.start:
                self._layer.leave_out(index, slice(at, planes.start))
            self._layer.analyse(index, slab.values, slab.box, planes)
            at = planes.stop
        if at < end:
            self._layer.leave_out(index, slice(at, end))


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
    most : int
        Bytes of the process beyond which it hands back freed memory.
    """

    def __init__(self, net: UNet, source: Callable[[Box], Tensor], mask: np.ndarray, thickness: int, most: int):
        self._net, self._source, self._thickness, self._most = net, source, thickness, most
        # The kernel computes what is marked, and slabs of one size fit where others were. PyTorch computes all.
        self._tight = not native.suits(net.head.bias)
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
        pooled, deeper = _Store(cells), _Store(cells)
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
        write(box, torch.cat([self._net.classify(part) for part in parts]).permute(1, 5, 2, 3, 4, 0))

    def _level(self, level: int, needed: np.ndarray, source: Callable[[np.ndarray], _Feature]) -> _Feature:
        """Chain a level and everything coarser; ``source`` gives the level's input at the voxels it is told."""
        net = self._net
        around = self._around(level, needed)
        if level == len(net.encoder):
            return self._block(level, net.bottom, [source(around)], needed)
        if net.config.pool_strides[level] == 0:
            skip = self._block(level, net.encoder[level], [source(self._around(level, around))], around)
            deeper: _Feature | _Unpooled = self._feature(level, around, partial(self._below, level, skip))
        else:
            cells = self._cells(level, needed)
            made = around | self._voxels(level, self._reads(level + 1, cells))
            skip = self._block(level, net.encoder[level], [source(self._around(level, made))], made)
            coarse = self._level(level + 1, cells, lambda pooled: self._pooled(level, skip, pooled))
            deeper = _Unpooled(coarse, net.pools[level])
        return self._block(level, net.decoder[len(net.decoder) - 1 - level], [skip, deeper], needed)

    def _encoded(self, cells: np.ndarray) -> _Feature:
        """Chain the finest encoder alone up to its pooled output."""
        made = self._voxels(0, cells)
        skip = self._block(0, self._net.encoder[0], [self._input(self._around(0, made))], made)
        return self._pooled(0, skip, cells, keep=False)

    def _decoded(self, needed: np.ndarray, deeper: "_Store") -> _Feature:
        """Chain the finest encoder and its decoder, with what the coarser levels gave."""
        cells = self._cells(0, needed)
        made = self._around(0, needed) | self._voxels(0, cells)
        skip = self._block(0, self._net.encoder[0], [self._input(self._around(0, made))], made)
        coarse = self._kept(1, deeper, cells)
        return self._block(0, self._net.decoder[-1], [skip, _Unpooled(coarse, self._net.pools[0])], needed)

    def _input(self, needed: np.ndarray) -> _Feature:
        return self._feature(0, needed, lambda box, _: _Slab(box, self._source(box)))

    def _kept(self, level: int, store: "_Store", needed: np.ndarray) -> _Feature:
        return self._feature(level, needed, lambda box, _: _Slab(box, store.read(box)))

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

    def _feature(self, level: int, needed: np.ndarray, make: _Make) -> _Feature:
        unit = None if self._tight else self._side_unit(level)
        return _Feature(needed, max(1, self._thickness >> level), make, unit=unit)

    def _side_unit(self, level: int) -> int:
        """Give what the ends of the rectangles of a level are multiples of: whole cells where it is pooled."""
        return 2 if self._net.config.pool_strides[level : level + 1] == (2,) else 1

    def _block(
        self, level: int, units: nn.ModuleList, inputs: Sequence[_Feature | _Unpooled], needed: np.ndarray
    ) -> _Feature:
        """Chain the convolutions of a block."""
        reach = int(self._net.config.spatial[level])
        for left, unit in zip(reversed(range(len(units))), units, strict=True):
            wanted = dilated(needed, reach * left) & self._masks[level]
            result = self._feature(level, wanted, self._convolution(level, unit, inputs, reach, wanted))
            inputs = [result]
        return result

    def _convolution(
        self, level: int, unit: ConvNormReLU, inputs: Sequence[_Feature | _Unpooled], reach: int, wanted: np.ndarray
    ) -> _Make:
        if self._tight:
            return partial(self._convolved, level, unit, inputs, reach)
        course = native.Course(wanted, self._masks[level], max(1, self._thickness >> level), self._side_unit(level))
        return _Convolution(unit, inputs, reach=reach, course=course, most=self._most)

    def _convolved(
        self,
        level: int,
        unit: ConvNormReLU,
        inputs: Sequence[_Feature | _Unpooled],
        reach: int,
        box: Box,
        _: Tensor | None,
    ) -> _Slab:
        """Run one convolution in plain PyTorch, on all voxels of a rectangle."""
        wide = grown(box, reach, self._masks[level].shape)
        if isinstance(inputs[-1], _Unpooled):
            wide = twice(halved(wide))
        for feature in inputs:
            feature.prepare(wide[0].stop)
        values = [self._masked(level, feature.read(wide), wide) for feature in inputs]
        for feature in inputs:
            feature.forget(box[0].stop - reach)
        made = (box[0], *wide[1:])
        return _Slab(made, unit(*values)[index_in(made, wide)])

    def _masked(self, level: int, values: Tensor | Unpooled, box: Box) -> Tensor | Unpooled:
        """Put zeros outside the mask."""
        if isinstance(values, Unpooled):
            return Unpooled(values.pool, self._masked(level + 1, values.source, halved(box)))
        return values * torch.from_numpy(self._masks[level][box]).to(values.device)[..., None]

    def _pooled(self, level: int, skip: _Feature, needed: np.ndarray, *, keep: bool = True) -> _Feature:
        """Pool the encoder's output and keep it for others."""

        def make(box: Box, _: Tensor | None) -> _Slab:
            fine = twice(box)
            values, inside = skip.read(fine), self._masks[level][fine]
            # Others than those in a cell with some of the mask may be anything before and after.
            x, y, z = (torch.from_numpy(at).to(values.device) for at in np.nonzero(doubled(cells_of(inside)) & ~inside))
            values[:, :, x, y, z] = 0
            pooled = self._net.pools[level](values)
            if not keep:
                skip.forget(fine[0].stop)
            return _Slab(box, pooled)

        return self._feature(level + 1, needed, make)

    def _below(self, level: int, skip: _Feature, box: Box, _: Tensor | None) -> _Slab:
        """Run the levels below, which treat each voxel alone."""
        pool = self._net.pools[level]
        return _Slab(box, pool.unpool(self._net.descend(level + 1, pool(skip.read(box)))))


class _Store:
    """A feature map held at the voxels of a mask."""

    def __init__(self, mask: np.ndarray):
        self._count = int(mask.sum())
        self._row = np.where(mask, mask.cumsum().reshape(mask.shape) - 1, self._count)  # a last row of zeros elsewhere
        self._values: Tensor | None = None

    def put(self, box: Box, values: Tensor) -> None:
        """Take the values in a box."""
        if self._values is None:
            self._values = values.new_zeros(len(values), self._count + 1, values.shape[-1])
        rows = torch.from_numpy(self._row[box]).to(values.device)
        there = rows < self._count
        self._values[:, rows[there]] = values[:, 0, there]

    def read(self, box: Box) -> Tensor:
        """Give the values in a box, zero off the mask."""
        assert self._values is not None
        return self._values[:, None, torch.from_numpy(self._row[box]).to(self._values.device)]


def _turned(
    read: Callable[[Box], Tensor], write: Callable[[Box, Tensor], None], axes: np.ndarray
) -> tuple[Callable[[Box], Tensor], Callable[[Box, Tensor], None]]:
    """Give ``read`` and ``write`` for the volume with its axes in another order."""
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
    """Give the input with vertices first, and zeros beyond the volume's end."""

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


def _edges(side: slice, stride: int) -> list[int]:
    """Give the edges that cut a side into equal parts of multiples of ``stride``."""
    length = side.stop - side.start // stride * stride
    return sorted({_up(-(-length // parts), stride) for parts in range(1, _MOST_CUTS + 1)}, reverse=True)


def _widths(side: slice, edge: int, halo: int) -> list[int]:
    """Give the widths of the tiles of a side with their halos."""
    starts = range(side.start, side.stop, edge)
    return [min(first + edge + halo, side.stop) - max(first - halo, side.start) for first in starts]


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


def _up(n: int, unit: int) -> int:
    return -(-n // unit) * unit
