"""Feature maps of a masked volume that exist a few planes at a time.

A map is made in slabs when a layer asks for them and forgotten when no layer will ask again, so that each plane of each layer
is computed once.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import torch
from torch import Tensor

from shd_bids.boxes import Box, box_of, halved, index_in, n_voxels, overlap, rectangle
from shd_bids.nn.backends.cpu import SlabPlan, SlabwiseConv
from shd_bids.nn.layers.pool import Pooling, Unpooled
from shd_bids.nn.unet import ConvNormReLU


@dataclass(frozen=True)
class Slab:
    """Some planes of a feature map: where they lie and their values (V, 1, X, Y, Z, F)."""

    box: Box
    values: Tensor


MakeSlab = Callable[[Box, Tensor | None], Slab]  # of a box, in the memory of an earlier slab where that fits


class Feature:
    """One feature map, made in slabs when asked for.

    Parameters
    ----------
    needed : array of bool, shape (x, y, z)
        Voxels whose values matter; elsewhere they are whatever is at hand.
    thickness : int
        Planes of a slab.
    make : MakeSlab
        The slab may be larger than its box in y and z. It is given the values of one that was forgotten, to reuse.
    unit : int, optional
        Make all slabs in one rectangle whose ends are multiples of it. Without it, each as small as what is needed.
    """

    def __init__(self, needed: np.ndarray, thickness: int, make: MakeSlab, *, unit: int | None):
        self.needed, self.thickness, self._make = needed, thickness, make
        self._sides = rectangle(needed, unit) if unit and needed.any() else None
        self._slabs: list[Slab] = []
        self._reusable: Tensor | None = None
        self._end = int(needed.any(axis=(1, 2)).argmax()) // 2 * 2  # so that a slab of cells needs one of voxels

    def prepare(self, last: int) -> None:
        """Make all planes before ``last``."""
        while self._end < last:
            first, self._end = self._end, min(self._end + self.thickness, last)
            part = self.needed[first : self._end]
            if part.any():
                reuse, self._reusable = self._reusable, None
                self._slabs.append(self._make((slice(first, self._end), *(self._sides or box_of(part)[1:])), reuse))

    def read(self, box: Box) -> Tensor:
        """Return the values in a box, none of whose planes was forgotten; zero where nothing was needed."""
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
        """Return which of its planes are needed of those from ``begin`` to ``end`` of its reader."""
        return begin, end

    def between(self, begin: int, end: int) -> Iterator[tuple[Slab, slice]]:
        """Yield the slabs with planes from ``begin`` to ``end``, all made before, and which of those planes they hold."""
        for slab in self._slabs:
            planes = slice(max(slab.box[0].start, begin), min(slab.box[0].stop, end))
            if planes.start < planes.stop:
                yield slab, planes

    def forget(self, before: int) -> None:
        """Let go of the slabs that end before ``before``."""
        while self._slabs and self._slabs[0].box[0].stop <= before:
            self._reusable = self._slabs.pop(0).values


class UnpooledFeature:
    """A feature map copied from a coarser one, in whose place its readers are given that.

    Parameters
    ----------
    coarse : Feature
    pool : Pooling
    """

    def __init__(self, coarse: Feature, pool: Pooling):
        self._coarse, self.pool = coarse, pool

    def prepare(self, last: int) -> None:
        """Make all planes before ``last``."""
        self._coarse.prepare(-(-last // 2))

    def read(self, box: Box) -> Unpooled:
        """Return the map in a box of whole cells."""
        return Unpooled(self.pool, self._coarse.read(halved(box)))

    def planes(self, begin: int, end: int) -> tuple[int, int]:
        """Return which planes of cells are needed for those from ``begin`` to ``end`` of its reader."""
        return begin // 2, -(-end // 2)

    def between(self, begin: int, end: int) -> Iterator[tuple[Slab, slice]]:
        """Yield the slabs with planes of cells from ``begin`` to ``end``, all made before, and which of those they hold."""
        return self._coarse.between(begin, end)

    def forget(self, before: int) -> None:
        """Let go of the planes before ``before``."""
        self._coarse.forget(before // 2)


class Convolution:
    """One convolution by the compiled kernel, which takes each plane of its inputs once.

    Parameters
    ----------
    unit : ConvNormReLU
    inputs : sequence of Feature or UnpooledFeature
    reach : int
        Planes on each side that a result depends on.
    plan : SlabPlan
    """

    def __init__(
        self,
        unit: ConvNormReLU,
        inputs: Sequence[Feature | UnpooledFeature],
        *,
        reach: int,
        plan: SlabPlan,
    ):
        self._unit, self._inputs, self._reach = unit, inputs, reach
        self._planes, self._done = len(plan.wanted), [0] * len(inputs)
        pool = inputs[-1].pool if isinstance(inputs[-1], UnpooledFeature) else None
        self._start = partial(unit.slabwise, plan, pool=pool)

    @cached_property
    def _layer(self) -> SlabwiseConv:
        return self._start()

    def __call__(self, box: Box, reuse: Tensor | None) -> Slab:
        """Make a slab, at the wanted voxels of its planes."""
        begin, end = max(box[0].start - self._reach, 0), min(box[0].stop + self._reach, self._planes)
        for feature in self._inputs:
            feature.prepare(end)
        for index, feature in enumerate(self._inputs):
            self._analyse(index, feature, begin, end)
            feature.forget(end)
        y = self._layer.combine(box[0], reuse)
        return Slab((box[0], *self._layer.sides), self._unit.normalise(y).values)

    def _analyse(self, index: int, feature: Feature | UnpooledFeature, begin: int, end: int) -> None:
        begin, end = feature.planes(begin, end)
        at, self._done[index] = max(begin, self._done[index]), end
        for slab, planes in feature.between(at, end):
            if at < planes.start:
                self._layer.leave_out(index, slice(at, planes.start))
            self._layer.analyse(index, slab.values, slab.box, planes)
            at = planes.stop
        if at < end:
            self._layer.leave_out(index, slice(at, end))


class Store:
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
        """Return the values in a box, zero off the mask."""
        assert self._values is not None
        return self._values[:, None, torch.from_numpy(self._row[box]).to(self._values.device)]
