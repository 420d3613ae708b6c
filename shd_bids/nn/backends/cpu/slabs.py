"""One convolution over a volume whose planes come a few at a time."""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from torch import Tensor

from shd_bids.boxes import cells_of, doubled, rectangle
from shd_bids.nn.backends.arguments import Filters
from shd_bids.nn.backends.cpu.build import library
from shd_bids.nn.backends.cpu.structs import Slab, basis_of, layer_of
from shd_bids.nn.backends.memory import lasting_zeros


@dataclass(frozen=True, eq=False)
class SlabPlan:
    """What is asked of a layer over a volume whose planes come a few at a time.

    Attributes
    ----------
    wanted, inside : array of bool, shape (X, Y, Z)
        Voxels whose result matters (that of others may be anything), and those whose input is not zero, whatever it holds.
    thickness : int
        Planes of the result that are asked for at once, at most.
    unit : int
        Results come in rectangles whose ends in y and z are multiples of it: 2 where cells of 2 x 2 x 2 voxels are read of them.
    """

    wanted: np.ndarray
    inside: np.ndarray
    thickness: int
    unit: int


class SlabwiseConv:
    """One layer over a volume (V, 1, X, Y, Z, I_j) whose planes of x come, and are asked for, a few at a time and in order.

    Each plane is analysed once: what the results to come will need of it stays.

    Parameters
    ----------
    channels : sequence of int
        Of each input.
    filters : Filters
    bias : Tensor, shape (O,)
    plan : SlabPlan
    relu : bool
        Rectify the result.
    parents : Tensor, optional
        The last input is given on cells, see :func:`~shd_bids.nn.backends.cpu.forward`. It is zero but in the cells that hold a
        voxel of ``plan.inside``.
    level : int, optional
        The instruction set, by default the best that the processor has.

    Attributes
    ----------
    sides : tuple of slice
        The rectangle in y and z of the results.
    """

    def __init__(
        self,
        channels: Sequence[int],
        filters: Filters,
        bias: Tensor,
        plan: SlabPlan,
        *,
        relu: bool,
        parents: Tensor | None = None,
        level: int | None = None,
    ):
        spatial, on_cells = filters.spa is not None, parents is not None
        self.sides, self._marks = _marks(plan, spatial=spatial, on_cells=on_cells)
        self._basis, tables = basis_of(filters.grid, filters.sph.shape[2])
        size = self._marks[0].shape
        layer, kept = layer_of((1, *size), channels, filters, level)
        layer.ring = min(plan.thickness + 2 * spatial, size[0])
        layer.wanted, layer.read, layer.inside = (marks.ctypes.data for marks in self._marks[:3])
        numbers = layer.ring * size[1] * size[2] * sum(channels[: len(channels) - on_cells])
        if on_cells:
            layer.cells_ring = min(plan.thickness // 2 + 2, size[0] // 2)
            layer.parent = parents.data_ptr()
            layer.read_cells, layer.inside_cells = (marks.ctypes.data for marks in self._marks[3:])
            numbers += layer.cells_ring * size[1] // 2 * size[2] // 2 * (channels[-1] + 4 * len(bias))
        self._held = lasting_zeros((len(tables[2]) - 1, numbers))  # as many rows as vertices
        layer.held = self._held.data_ptr()
        self._layer, self._relu, self._bias = layer, relu, bias
        self._kept = kept, parents  # which the layer points to
        self._cells = 0, 0

    def analyse(self, index: int, values: Tensor, place: tuple[slice, ...], planes: slice) -> None:
        """Take some planes of an input from a slab of it that covers ``sides`` and lies at ``place`` of the volume."""
        values = values.contiguous()
        low, left = (
            side.start // (1 + self._on_cells(index)) - there.start
            for side, there in zip(self.sides, place[1:], strict=True)
        )
        self._take(index, Slab(values.data_ptr(), place[0].start, *values.shape[2:5], low, left), planes)

    def leave_out(self, index: int, planes: slice) -> None:
        """Go on without some planes of an input, in which there are but zeros."""
        self._take(index, Slab(), planes)

    def _on_cells(self, index: int) -> bool:
        return self._layer.parent is not None and index == self._layer.inputs - 1

    def _take(self, index: int, slab: Slab, planes: slice) -> None:
        library().shd_analyse(
            ctypes.byref(self._basis), ctypes.byref(self._layer), index, ctypes.byref(slab), planes.start, planes.stop
        )
        if self._on_cells(index):
            begin, end = self._cells
            self._cells = begin if begin < end else planes.start, planes.stop

    def combine(self, planes: slice, reuse: Tensor | None = None) -> Tensor:
        """Return planes of the result, (V, 1, x, y, z, O) on ``sides``, in the memory of an earlier result where it fits."""
        shape = (len(self._held), 1, planes.stop - planes.start, *self._marks[0].shape[1:], len(self._bias))
        output = reuse if reuse is not None and reuse.shape == shape else lasting_zeros(shape)
        library().shd_combine(
            ctypes.byref(self._basis),
            ctypes.byref(self._layer),
            planes.start,
            planes.stop,
            *self._cells,
            self._bias.data_ptr(),
            self._relu,
            output.data_ptr(),
        )
        self._cells = 0, 0
        return output


def _marks(plan: SlabPlan, *, spatial: bool, on_cells: bool) -> tuple[tuple[slice, slice], list[np.ndarray]]:
    """Return the rectangle in y and z beyond which are zeros, and on it the marks of what is wanted, read and not zero.

    The last two come again for the cells of 2 x 2 x 2 voxels of an input that lies on them.
    """
    wanted, inside = plan.wanted, plan.inside
    read = ndimage.maximum_filter(wanted, 3, mode="constant") if spatial else wanted
    marks = [wanted, read, read & inside]
    if on_cells:
        marks += [cells_of(read), cells_of(read) & cells_of(inside)]
    holding = doubled(marks[4]) if on_cells else marks[2]
    sides = rectangle(wanted | holding, plan.unit)
    halves = tuple(slice(side.start // 2, side.stop // 2) for side in sides)
    cut = [voxels[:, *sides] for voxels in marks[:3]] + [cells[:, *halves] for cells in marks[3:]]
    return sides, [np.ascontiguousarray(part, dtype=np.uint8) for part in cut]
