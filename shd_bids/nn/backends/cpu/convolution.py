"""One convolution by the compiled kernel, forward and backward, and as an operator of torch."""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from shd_bids.nn.backends.arguments import Filters
from shd_bids.nn.backends.cpu.build import library
from shd_bids.nn.backends.cpu.structs import basis_of, layer_of, pointers
from shd_bids.nn.layers.cheb import Grid, SphereBasis


def forward(
    inputs: Sequence[Tensor],
    filters: Filters,
    bias: Tensor,
    *,
    relu: bool,
    parents: Tensor | None = None,
    in_place: bool = False,
    level: int | None = None,
) -> Tensor:
    """Evaluate one layer: inputs (V, B, X, Y, Z, I_j) to (V, B, X, Y, Z, O), all float32 and contiguous on the CPU.

    With ``parents``, (V,) of int64, the last input is (V / 4, B, X / 2, Y / 2, Z / 2, I) and stands for its copy to all children
    of its vertices and all voxels of its cells, which is not formed. ``in_place`` says that nothing else reads the first input:
    the result takes its memory if it has as many channels, as the kernel has read the planes of an input before it writes them.
    """
    basis, _ = basis_of(filters.grid, filters.sph.shape[2])
    layer, _kept = layer_of(inputs[0].shape[1:5], [x.shape[-1] for x in inputs], filters, level)
    layer.parent = None if parents is None else parents.data_ptr()
    first, out_channels = inputs[0], len(filters.sph)
    fits = in_place and first.shape[-1] == out_channels
    output = first.detach() if fits else first.new_empty(*first.shape[:-1], out_channels)
    library().shd_forward(
        ctypes.byref(basis), ctypes.byref(layer), pointers(inputs), bias.data_ptr(), relu, output.data_ptr()
    )
    return output


def backward(
    gradient: Tensor,
    inputs: Sequence[Tensor],
    filters: Filters,
    *,
    needed: Sequence[bool],
    reuse: Sequence[bool] = (False, False),
    level: int | None = None,
) -> tuple[list[Tensor | None], list[Tensor]]:
    """Return the gradients of the needed inputs, and those of the filters, all arguments being contiguous.

    The gradient of an input to ``reuse`` takes its memory: the kernel has read the planes of an input before it writes them.
    """
    basis, _ = basis_of(filters.grid, filters.sph.shape[2])
    layer, _kept = layer_of(inputs[0].shape[1:5], [x.shape[-1] for x in inputs], filters, level)
    of_inputs = [
        (x.detach() if over else torch.empty_like(x)) if need else None
        for x, need, over in zip(inputs, needed, reuse, strict=False)
    ]
    of_filters = [torch.empty_like(weight) for weight in (filters.sph, filters.spa) if weight is not None]
    sph, spa = (*of_filters, None)[:2]
    library().shd_backward(
        ctypes.byref(basis),
        ctypes.byref(layer),
        pointers(inputs),
        gradient.data_ptr(),
        pointers(of_inputs),
        sph.data_ptr(),
        None if spa is None else spa.data_ptr(),
    )
    return of_inputs, of_filters


def weights(filters: Filters, basis: SphereBasis) -> tuple[Tensor, ...]:
    """Return the filters themselves; the kernel makes the weights of each mode on the spot."""
    return tuple(weight.contiguous() for weight in (filters.sph, filters.spa) if weight is not None)


def forward_of(inputs: Sequence[Tensor], weights: Sequence[Tensor], bias: Tensor, basis: SphereBasis) -> Tensor:
    """Evaluate one layer, as :func:`shd_bids.nn.backends.eager.forward` does."""
    return forward([x.contiguous() for x in inputs], _filters(weights, basis.grid), bias.contiguous(), relu=False)


def backward_of(
    gradient: Tensor,
    inputs: Sequence[Tensor],
    weights: Sequence[Tensor],
    basis: SphereBasis,
    *,
    needed: Sequence[bool],
    reuse: Sequence[bool],
) -> tuple[list[Tensor | None], list[Tensor], Tensor]:
    """Return all gradients, as :func:`shd_bids.nn.backends.eager.backward` does."""
    contiguous = [x.contiguous() for x in inputs]
    filters = _filters(weights, basis.grid)
    of_inputs, of_weights = backward(gradient.contiguous(), contiguous, filters, needed=needed, reuse=reuse)
    return of_inputs, of_weights, gradient.flatten(0, -2).sum(0)


def operator(inputs: Sequence[Tensor], filters: Filters, bias: Tensor, basis: SphereBasis, relu: bool) -> Tensor:
    """Evaluate one layer as an operator of torch."""
    return spectral_conv(inputs, filters.sph, filters.spa, bias, *filters.grid, relu)


def _filters(weights: Sequence[Tensor], grid: Grid) -> Filters:
    sph, spa = (*weights, None)[:2]
    return Filters(sph, spa, grid)


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
    spa = None if weight_spa is None else weight_spa.contiguous()
    filters = Filters(weight_sph.contiguous(), spa, Grid(nside, hemisphere))
    return forward([x.contiguous() for x in inputs], filters, bias.contiguous(), relu=relu)


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
    """Return the gradients of the needed inputs, then of the weights."""
    spa = None if weight_spa is None else weight_spa.contiguous()
    filters = Filters(weight_sph.contiguous(), spa, Grid(nside, hemisphere))
    contiguous = [x.contiguous() for x in inputs]
    of_inputs, of_filters = backward(gradient.contiguous(), contiguous, filters, needed=needed)
    return [result for result in (*of_inputs, *of_filters) if result is not None]


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
    inputs, (weight_sph, *rest) = ctx.saved_tensors[: ctx.n_inputs], ctx.saved_tensors[ctx.n_inputs :]
    if ctx.relu:
        gradient = gradient * (rest.pop() > 0)
    weight_spa = rest.pop() if ctx.spatial else None
    needed = [tensor.requires_grad for tensor in inputs]
    results = iter(spectral_conv_backward(gradient, inputs, weight_sph, weight_spa, ctx.nside, ctx.hemisphere, needed))
    of_inputs = [next(results) if need else None for need in needed]
    of_sph, of_spa = next(results), next(results) if ctx.spatial else None
    return of_inputs, of_sph, of_spa, gradient.flatten(0, -2).sum(0), None, None, None


spectral_conv.register_autograd(_differentiate, setup_context=_save)
