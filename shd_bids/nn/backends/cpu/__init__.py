"""The compiled CPU kernel of the spatio-spherical convolution, as torch operators.

The source, in the folder ``spectral``, has no dependency. A library built with the package is used if it is there;
else the source is compiled at first use, once per user, if a C++ compiler is found; else :func:`library` returns None and the
layer runs in plain PyTorch, computing the same at a fraction of the speed.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from shd_bids.boxes import cells_of, doubled, rectangle
from shd_bids.nn.backends.cpu.build import library
from shd_bids.nn.backends.memory import lasting_zeros
from shd_bids.nn.layers.cheb import chebyshev
from shd_bids.nn.layers.checkpoint import is_spare
from shd_bids.sphere import symmetry

# Bytes of the expansion held at once, measured: tests/benchmarks/README.md.
_CACHE_BYTES = 48 << 20

# Below this many vertices one dense block costs less than the butterflies.
_DENSE_VERTICES = 24


class _Basis(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int32) for name in ("vertices", "distinct", "order", "blocks")] + [
        (name, ctypes.c_void_p)
        for name in (
            "size",
            "copies",
            "analyse_start",
            "analyse_index",
            "analyse_sign",
            "synthesise_start",
            "synthesise_index",
            "synthesise_sign",
            "analyse_matrix",
            "synthesise_matrix",
            "terms",
        )
    ]


class _Layer(ctypes.Structure):
    _fields_ = [
        ("shape", ctypes.c_int64 * 4),
        ("inputs", ctypes.c_int32),
        ("out_channels", ctypes.c_int32),
        ("in_channels", ctypes.c_void_p),
        ("weight_sph", ctypes.c_void_p),
        ("weight_spa", ctypes.c_void_p),
        ("threads", ctypes.c_int32),
        ("level", ctypes.c_int32),
        ("cache_bytes", ctypes.c_int64),
        ("wanted", ctypes.c_void_p),
        ("read", ctypes.c_void_p),
        ("inside", ctypes.c_void_p),
        ("parent", ctypes.c_void_p),
        ("read_cells", ctypes.c_void_p),
        ("inside_cells", ctypes.c_void_p),
        ("held", ctypes.c_void_p),
        ("ring", ctypes.c_int64),
        ("cells_ring", ctypes.c_int64),
    ]


class _Slab(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p)] + [
        (name, ctypes.c_int64) for name in ("first", "planes", "lines", "line", "low", "left")
    ]


def suits(*tensors: Tensor) -> bool:
    """Say whether the kernel can take these tensors: float32 on the CPU, and a kernel there."""
    return all(t.device.type == "cpu" and t.dtype == torch.float32 for t in tensors) and _is_there()


@torch.compiler.assume_constant_result
def _is_there() -> bool:
    return library() is not None


@lru_cache
def _basis(nside: int, hemisphere: bool, order: int) -> tuple[_Basis, list[np.ndarray]]:
    """Lay the eigenbasis out for the kernel; the arrays are returned to keep them alive."""
    exact = symmetry.eigenbasis(nside, hemisphere_only=hemisphere)
    adapted, blocks, eigenvalues = exact.adapted, exact.blocks, exact.eigenvalues
    if len(adapted) <= _DENSE_VERTICES:
        adapted, blocks, eigenvalues = np.eye(len(adapted)), ((exact.vectors, 1),), eigenvalues[exact.mode]
    signs, analyse, synthesise, start = [], [], [], 0
    for rotation, copies in blocks:
        columns = adapted[:, start : start + len(rotation) * copies]
        scale = np.abs(columns[:, ::copies]).max(axis=0)
        signs.append(columns / np.repeat(scale, copies))
        analyse.append((rotation.T * scale).ravel())
        synthesise.append((rotation * scale[:, None]).ravel())
        start += len(rotation) * copies
    sign = np.concatenate(signs, axis=1)
    sign[np.abs(sign) < 1e-9] = 0
    tables = [
        np.array([len(rotation) for rotation, _ in blocks], dtype=np.int32),
        np.array([copies for _, copies in blocks], dtype=np.int32),
        *_compressed(sign.T),
        *_compressed(sign),
        np.concatenate(analyse).astype(np.float32),
        np.concatenate(synthesise).astype(np.float32),
        np.ascontiguousarray(chebyshev(eigenvalues, order), dtype=np.float32),
    ]
    return _Basis(len(adapted), len(eigenvalues), order, len(blocks), *(t.ctypes.data for t in tables)), tables


def _compressed(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Give row starts, column indices and values of the non-zeros."""
    rows, columns = np.nonzero(matrix)
    start = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=len(matrix)))])
    return start.astype(np.int32), columns.astype(np.int32), matrix[rows, columns].astype(np.float32)


def _layer(
    shape: Sequence[int], channels: Sequence[int], weight_sph: Tensor, weight_spa: Tensor | None, level: int | None
) -> tuple[_Layer, object]:
    widths = (ctypes.c_int32 * len(channels))(*channels)
    layer = _Layer(
        (ctypes.c_int64 * 4)(*shape),
        len(channels),
        len(weight_sph),
        ctypes.cast(widths, ctypes.c_void_p),
        weight_sph.data_ptr(),
        None if weight_spa is None else weight_spa.data_ptr(),
        torch.get_num_threads(),
        library().shd_best_level() if level is None else level,
        _CACHE_BYTES,
    )
    return layer, widths


def _widths(inputs: Sequence[Tensor]) -> list[int]:
    return [x.shape[-1] for x in inputs]


def _pointers(tensors: Sequence[Tensor | None]) -> ctypes.Array:
    return (ctypes.c_void_p * len(tensors))(*(None if t is None else t.data_ptr() for t in tensors))


def forward(
    inputs: Sequence[Tensor],
    weight_sph: Tensor,
    weight_spa: Tensor | None,
    bias: Tensor,
    *,
    nside: int,
    hemisphere: bool,
    relu: bool,
    parents: Tensor | None = None,
    own: bool = False,
    level: int | None = None,
) -> Tensor:
    """Evaluate one layer: inputs (V, B, X, Y, Z, I_j) to (V, B, X, Y, Z, O), all float32 and contiguous on the CPU.

    With ``parents``, (V,) of int64, the last input is (V / 4, B, X / 2, Y / 2, Z / 2, I) and stands for its copy to all children
    of its vertices and all voxels of its cells, which is not formed. ``own`` says that nothing else reads the first input: the
    result takes its memory if it has as many channels, as the kernel has read the planes of an input before it writes them.
    """
    basis, _ = _basis(nside, hemisphere, weight_sph.shape[2])
    layer, _channels = _layer(inputs[0].shape[1:5], _widths(inputs), weight_sph, weight_spa, level)
    layer.parent = None if parents is None else parents.data_ptr()
    first = inputs[0]
    fits = own and first.shape[-1] == len(weight_sph)
    output = first.detach() if fits else first.new_empty(*first.shape[:-1], len(weight_sph))
    library().shd_forward(
        ctypes.byref(basis),
        ctypes.byref(layer),
        _pointers(inputs),
        bias.data_ptr(),
        relu,
        output.data_ptr(),
    )
    return output


@dataclass(frozen=True, eq=False)
class Course:
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


class Slabwise:
    """One layer over a volume (V, 1, X, Y, Z, I_j) whose planes of x come, and are asked for, a few at a time and in order.

    Each plane is analysed once: what the results to come will need of it stays.

    Parameters
    ----------
    channels : sequence of int
        Of each input.
    weight_sph, weight_spa, bias : Tensor
    nside, hemisphere, relu
        As in :func:`forward`.
    course : Course
    parents : Tensor, optional
        The last input is given on cells, see :func:`forward`. It is zero but in the cells that hold a voxel of ``inside``.
    level : int, optional

    Attributes
    ----------
    sides : tuple of slice
        The rectangle in y and z of the results.
    """

    def __init__(
        self,
        channels: Sequence[int],
        weight_sph: Tensor,
        weight_spa: Tensor | None,
        bias: Tensor,
        *,
        nside: int,
        hemisphere: bool,
        relu: bool,
        course: Course,
        parents: Tensor | None = None,
        level: int | None = None,
    ):
        wanted, inside = course.wanted, course.inside
        read = wanted if weight_spa is None else ndimage.maximum_filter(wanted, 3, mode="constant")
        marks = [wanted, read, read & inside]
        if parents is not None:
            marks += [cells_of(read), cells_of(read) & cells_of(inside)]
        holding = marks[2] if parents is None else doubled(marks[4])
        self.sides = sides = rectangle(wanted | holding, course.unit)  # beyond which are zeros
        marks[3:] = [cells[:, *(slice(side.start // 2, side.stop // 2) for side in sides)] for cells in marks[3:]]
        marks[:3] = [voxels[:, *sides] for voxels in marks[:3]]
        self._marks = [np.ascontiguousarray(part, dtype=np.uint8) for part in marks]
        self._basis, tables = _basis(nside, hemisphere, weight_sph.shape[2])
        size = self._marks[0].shape
        layer, kept = _layer((1, *size), channels, weight_sph, weight_spa, level)
        layer.ring = min(course.thickness + 2 * (weight_spa is not None), size[0])
        layer.wanted, layer.read, layer.inside = (marks.ctypes.data for marks in self._marks[:3])
        numbers = layer.ring * size[1] * size[2] * sum(channels[: len(channels) - (parents is not None)])
        if parents is not None:
            layer.cells_ring = min(course.thickness // 2 + 2, size[0] // 2)
            layer.parent = parents.data_ptr()
            layer.read_cells, layer.inside_cells = (marks.ctypes.data for marks in self._marks[3:])
            numbers += layer.cells_ring * size[1] // 2 * size[2] // 2 * (channels[-1] + 4 * len(weight_sph))
        self._held = lasting_zeros((len(tables[2]) - 1, numbers))  # as many rows as vertices
        layer.held = self._held.data_ptr()
        self._layer, self._relu, self._bias = layer, relu, bias
        self._kept = kept, weight_sph, weight_spa, parents  # which the layer points to
        self._cells = 0, 0

    def analyse(self, index: int, values: Tensor, place: tuple[slice, ...], planes: slice) -> None:
        """Take some planes of an input from a slab of it that covers ``sides`` and lies at ``place`` of the volume."""
        values = values.contiguous()
        low, left = (
            side.start // (1 + self._on_cells(index)) - there.start
            for side, there in zip(self.sides, place[1:], strict=True)
        )
        self._take(index, _Slab(values.data_ptr(), place[0].start, *values.shape[2:5], low, left), planes)

    def leave_out(self, index: int, planes: slice) -> None:
        """Go on without some planes of an input, in which there are but zeros."""
        self._take(index, _Slab(), planes)

    def _on_cells(self, index: int) -> bool:
        return self._layer.parent is not None and index == self._layer.inputs - 1

    def _take(self, index: int, slab: _Slab, planes: slice) -> None:
        library().shd_analyse(
            ctypes.byref(self._basis), ctypes.byref(self._layer), index, ctypes.byref(slab), planes.start, planes.stop
        )
        if self._on_cells(index):
            begin, end = self._cells
            self._cells = begin if begin < end else planes.start, planes.stop

    def combine(self, planes: slice, spare: Tensor | None = None) -> Tensor:
        """Give planes of the result, (V, 1, x, y, z, O) on ``sides``, in the memory of an earlier result where it fits."""
        shape = (len(self._held), 1, planes.stop - planes.start, *self._marks[0].shape[1:], len(self._bias))
        output = spare if spare is not None and spare.shape == shape else lasting_zeros(shape)
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


def backward(
    gradient: Tensor,
    inputs: Sequence[Tensor],
    weight_sph: Tensor,
    weight_spa: Tensor | None,
    *,
    nside: int,
    hemisphere: bool,
    needed: Sequence[bool],
    spare: Sequence[bool] = (False, False),
    level: int | None = None,
) -> tuple[list[Tensor | None], Tensor, Tensor | None]:
    """Give the gradients of the needed inputs, of weight_sph and of weight_spa.

    The gradient of a ``spare`` input takes its memory: the kernel has read the planes of an input before it writes them.
    """
    gradient, inputs, weight_sph = gradient.contiguous(), [x.contiguous() for x in inputs], weight_sph.contiguous()
    weight_spa = None if weight_spa is None else weight_spa.contiguous()
    basis, _ = _basis(nside, hemisphere, weight_sph.shape[2])
    layer, _channels = _layer(inputs[0].shape[1:5], _widths(inputs), weight_sph, weight_spa, level)
    results = [
        (x.detach() if over else torch.empty_like(x)) if need else None
        for x, need, over in zip(inputs, needed, spare, strict=False)
    ]
    sph = torch.empty_like(weight_sph)
    spa = None if weight_spa is None else torch.empty_like(weight_spa)
    library().shd_backward(
        ctypes.byref(basis),
        ctypes.byref(layer),
        _pointers(inputs),
        gradient.data_ptr(),
        _pointers(results),
        sph.data_ptr(),
        None if spa is None else spa.data_ptr(),
    )
    return results, sph, spa


def moments(y: Tensor) -> tuple[Tensor, Tensor]:
    """Give mean and biased variance, float64, of each channel of contiguous y (rows, F)."""
    mean, variance = torch.empty(2, y.shape[1], dtype=torch.float64)
    library().shd_moments(*y.shape, y.data_ptr(), mean.data_ptr(), variance.data_ptr(), *_how())
    return mean, variance


def rectify(y: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Give max(0, y scale + shift) for contiguous y (rows, F)."""
    out = torch.empty_like(y)
    library().shd_rectify(*y.shape, *(t.data_ptr() for t in (y, scale, shift, out)), *_how())
    return out


def gradient_sums(gradient: Tensor, y: Tensor, scale: Tensor, shift: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
    """Sum the gradient of :func:`rectify` where it is on, and that times y - centre, over rows: two (F,) float64."""
    sums = torch.empty(2, y.shape[1], dtype=torch.float64)
    pointers = (t.data_ptr() for t in (gradient, y, scale, shift, centre, *sums))
    library().shd_gradient_sums(*y.shape, *pointers, *_how())
    return sums[0], sums[1]


def rectify_gradient(
    gradient: Tensor, y: Tensor, scale: Tensor, shift: Tensor, offset: Tensor, slope: Tensor, *, out: Tensor
) -> None:
    """Put scale times the gradient where the unit is on, less offset + slope y, into ``out``, which may be y."""
    pointers = (t.data_ptr() for t in (gradient, y, scale, shift, offset, slope, out))
    library().shd_rectify_gradient(*y.shape, *pointers, *_how())


def box_sum(x: Tensor, index: Tensor, ranges: Sequence[Tensor], factor: float) -> Tensor:
    """Sum contiguous x (V, B, X, Y, Z, F) over source vertices, index (V', S), and boxes of voxels; times ``factor``.

    ``ranges`` holds for each axis a tensor (2, X') of first and one-past-last source voxels.
    """
    size = [r.shape[1] for r in ranges]
    out = x.new_empty(len(index), x.shape[1], *size, x.shape[5])
    library().shd_box_sum(
        x.data_ptr(),
        out.data_ptr(),
        len(index),
        x.shape[1],
        (ctypes.c_int64 * 3)(*x.shape[2:5]),
        (ctypes.c_int64 * 3)(*size),
        x.shape[5],
        index.shape[1],
        index.data_ptr(),
        (ranges := torch.cat([r.flatten() for r in ranges])).data_ptr(),
        factor,
        *_how(),
    )
    return out


def _how() -> tuple[int, int]:
    return torch.get_num_threads(), library().shd_best_level()


@torch.library.custom_op("shd_bids::spectral_conv", mutates_args=(), device_types="cpu")
def spectral_conv(
    inputs: Sequence[Tensor],
    weight_sph: Tensor,
    weight_spa: Tensor | None,
    bias: Tensor,
    nside: int,
    hemisphere: bool,
    relu: bool,
) -> Tensor:
    """Evaluate one layer by the compiled kernel; see :class:`shd_bids.nn.layers.conv.SpatioSphericalConv`."""
    return forward(
        [x.contiguous() for x in inputs],
        weight_sph.contiguous(),
        None if weight_spa is None else weight_spa.contiguous(),
        bias.contiguous(),
        nside=nside,
        hemisphere=hemisphere,
        relu=relu,
    )


@torch.library.custom_op("shd_bids::spectral_conv_backward", mutates_args=(), device_types="cpu")
def spectral_conv_backward(
    gradient: Tensor,
    inputs: Sequence[Tensor],
    weight_sph: Tensor,
    weight_spa: Tensor | None,
    nside: int,
    hemisphere: bool,
    needed: Sequence[bool],
) -> list[Tensor]:
    """Give the gradients of the needed inputs, then of the weights."""
    of_inputs, of_sph, of_spa = backward(
        gradient, inputs, weight_sph, weight_spa, nside=nside, hemisphere=hemisphere, needed=needed
    )
    return [result for result in (*of_inputs, of_sph, of_spa) if result is not None]


@spectral_conv.register_fake
def _(inputs, weight_sph, weight_spa, bias, nside, hemisphere, relu):
    return inputs[0].new_empty(*inputs[0].shape[:-1], len(weight_sph))


@spectral_conv_backward.register_fake
def _(gradient, inputs, weight_sph, weight_spa, nside, hemisphere, needed):
    wanted = [x for x, need in zip(inputs, needed, strict=True) if need]
    weights = [weight_sph] if weight_spa is None else [weight_sph, weight_spa]
    return [torch.empty_like(tensor) for tensor in (*wanted, *weights)]


def _save(ctx, inputs, output) -> None:
    tensors, weight_sph, weight_spa, _bias, ctx.nside, ctx.hemisphere, ctx.relu = inputs
    ctx.n_inputs, ctx.spatial = len(tensors), weight_spa is not None
    kept = [weight_sph] + [weight_spa] * ctx.spatial + [output] * ctx.relu
    ctx.save_for_backward(*tensors, *kept)


def _differentiate(ctx, gradient: Tensor):
    saved = ctx.saved_tensors  # asked for once: each time makes again what was not kept
    inputs, (weight_sph, *rest) = saved[: ctx.n_inputs], saved[ctx.n_inputs :]
    if ctx.relu:
        gradient = gradient * (rest.pop() > 0)
    weight_spa = rest.pop() if ctx.spatial else None
    needed = [tensor.requires_grad for tensor in inputs]
    spare = [is_spare(x) for x in inputs]
    if any(spare):  # an operator may not give back the memory that it was given
        of_inputs, of_sph, of_spa = backward(
            gradient,
            inputs,
            weight_sph,
            weight_spa,
            nside=ctx.nside,
            hemisphere=ctx.hemisphere,
            needed=needed,
            spare=spare,
        )
    else:
        results = iter(
            spectral_conv_backward(gradient, inputs, weight_sph, weight_spa, ctx.nside, ctx.hemisphere, needed)
        )
        of_inputs = [next(results) if need else None for need in needed]
        of_sph, of_spa = next(results), next(results) if ctx.spatial else None
    return of_inputs, of_sph, of_spa, gradient.flatten(0, -2).sum(0), None, None, None


spectral_conv.register_autograd(_differentiate, setup_context=_save)
