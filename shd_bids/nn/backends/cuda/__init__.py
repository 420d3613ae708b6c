"""The spatio-spherical convolution on CUDA: two matrix products and, between them, a Triton kernel, as torch operators.

The change of basis is one product over columns, which the vendor's library does best. What lies between, the four shell
sums and their products with the weights of each mode, is one kernel, so that the fourfold expansion is never written to
memory. Layers without neighbours are products alone. Gradients have kernels of the same kind; both are registered with torch, so
that they can be compiled, differentiated and recorded in CUDA graphs.

Triton comes with the CUDA builds of torch. Where it is missing or does not run, the layer runs in plain PyTorch.
"""

import logging
from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor

from shd_bids.nn.backends import eager
from shd_bids.nn.backends.arguments import Filters, constant_result
from shd_bids.nn.layers.cheb import Grid, SphereBasis
from shd_bids.sphere import symmetry

_log = logging.getLogger(__name__)

_TYPES = (torch.float32, torch.bfloat16, torch.float16)
_BLOCK = 64  # most output channels of a program
# Bytes of an input's channels (in the weight gradient: of columns) that a program takes at a time: registers hold no more.
_BLOCK_BYTES = 64
_PROGRAMS = 2048  # enough for every multiprocessor of a large GPU to hold several


def suits(*tensors: Tensor) -> bool:
    """Whether the kernels can take these tensors: on a CUDA device where Triton runs, in at most 32 bits."""
    there = all(t.device.type == "cuda" and t.dtype in _TYPES for t in tensors)
    return there and _runs_on(tensors[0].device.index or 0)


@constant_result
def _runs_on(device: int) -> bool:
    return _tried(device)


@lru_cache
def _tried(device: int) -> bool:
    """Whether a small layer runs: a compiler or the driver may be missing."""
    if find_spec("triton") is None or torch.cuda.get_device_capability(device) < (8, 0):
        _log.info("no Triton or a device too old for it: convolutions run in plain PyTorch")
        return False
    x = torch.ones(6, 1, 2, 2, 2, 16, device=torch.device("cuda", device))
    try:
        _forward([x], x.new_ones(6, eager.N_SHELLS, 16, 16), x.new_ones(16), Grid(1, True))
        torch.cuda.synchronize(device)
    except Exception as error:  # whatever it is, there is another way
        _log.warning("Triton does not run here (%s): convolutions run in plain PyTorch, several times slower", error)
        return False
    return True


class _Tables(NamedTuple):
    vectors: Tensor  # (V modes, V vertices)
    constant: Tensor  # (V,): the spectrum of the function 1
    distinct: Tensor  # (V,): which weights a mode has
    rows: Tensor  # (U + 1,): the first mode with each weights; modes that share them lie together


@lru_cache
def _tables(grid: Grid, dtype: torch.dtype, device: torch.device) -> _Tables:
    exact = symmetry.eigenbasis(grid.nside, hemisphere_only=grid.hemisphere)
    vectors, mode = torch.tensor(exact.vectors.T), torch.tensor(exact.mode, dtype=torch.int32)
    rows = torch.searchsorted(mode, torch.arange(len(exact.eigenvalues) + 1, dtype=torch.int32)).int()
    return _Tables(
        vectors=vectors.to(device, dtype),
        constant=vectors.sum(1).to(device, torch.float32),
        distinct=mode.to(device),
        rows=rows.to(device),
    )


def forward(inputs: Sequence[Tensor], weights: Sequence[Tensor], bias: Tensor, basis: SphereBasis) -> Tensor:
    """Evaluate one layer, as :func:`shd_bids.nn.backends.eager.forward` does."""
    return _forward([x.contiguous() for x in inputs], weights[0], bias, basis.grid)


def backward(
    gradient: Tensor,
    inputs: Sequence[Tensor],
    weights: Sequence[Tensor],
    basis: SphereBasis,
    *,
    needed: Sequence[bool],
    reuse: Sequence[bool],
) -> tuple[list[Tensor | None], list[Tensor], Tensor]:
    """Return all gradients, as :func:`shd_bids.nn.backends.eager.backward` does; those of weights and bias in float32."""
    contiguous = [x.contiguous() for x in inputs]
    found, of_weight = _backward(gradient.contiguous(), contiguous, weights[0], basis.grid, needed=needed)
    results = iter(found)
    return [next(results) if need else None for need in needed], [of_weight], _bias_gradient(gradient)


def operator(inputs: Sequence[Tensor], filters: Filters, bias: Tensor, basis: SphereBasis, relu: bool) -> Tensor:
    """Evaluate one layer as an operator of torch."""
    return mode_conv(inputs, *eager.mode_weights(filters, basis), bias, *basis.grid, relu)


def _forward(inputs: Sequence[Tensor], weight: Tensor, bias: Tensor, grid: Grid) -> Tensor:
    """Map contiguous inputs (V, B, X, Y, Z, I_j), by mode weights (U, D, sum of I_j, O), to (V, B, X, Y, Z, O)."""
    tables = _tables(grid, inputs[0].dtype, inputs[0].device)
    spectra = [_changed(tables.vectors, x) for x in (inputs if len(inputs) <= 2 else [torch.cat(inputs, dim=-1)])]
    return _changed(tables.vectors.T, _product(spectra, _packed(weight, inputs[0]), tables, bias))


def _backward(
    gradient: Tensor, inputs: Sequence[Tensor], weight: Tensor, grid: Grid, *, needed: Sequence[bool]
) -> tuple[list[Tensor], Tensor]:
    """Return the gradients of the needed inputs and that of the weights, (U, D, I, O) float32, from that of the output."""
    tables = _tables(grid, gradient.dtype, gradient.device)
    spectrum = _changed(tables.vectors, gradient)
    of_inputs, of_weight = [], []
    parts = weight.split([x.shape[-1] for x in inputs], dim=2)
    for x, part, need in zip(inputs, parts, needed, strict=True):
        of_weight.append(_correlation(_changed(tables.vectors, x), spectrum, part.shape[:2], tables))
        if need:
            product = _product([spectrum], _packed(part, x).transpose(2, 3), tables, None)
            of_inputs.append(_changed(tables.vectors.T, product))
    return of_inputs, torch.cat(of_weight, dim=2)


def _bias_gradient(gradient: Tensor) -> Tensor:
    return gradient.flatten(0, -2).sum(0, dtype=torch.float32)


def _changed(basis: Tensor, x: Tensor) -> Tensor:
    """Change the basis of the first axis."""
    return (basis @ x.view(len(basis), -1)).view(x.shape)


def _packed(weight: Tensor, like: Tensor) -> Tensor:
    """Return the weights in another precision and with output channels next to each other, as programs read them."""
    return like.new_empty(weight.shape).copy_(weight)


def _product(spectra: Sequence[Tensor], weight: Tensor, tables: _Tables, bias: Tensor | None) -> Tensor:
    """Multiply shell sums by the weights of each mode: spectra (V, B, X, Y, Z, I_j) to (V, B, X, Y, Z, O)."""
    if weight.shape[1] != eager.N_SHELLS:
        return _pointwise_product(spectra, weight[:, 0], tables, bias)
    from shd_bids.nn.backends.cuda import kernels

    first, second = (*spectra, None)[:2]
    n_modes, batch, *size = first.shape[:5]
    out = first.new_empty(*first.shape[:5], weight.shape[3])
    columns, block_o = batch * size[1] * size[2], _block(weight.shape[3], _BLOCK)
    block_i = _block(max(x.shape[-1] for x in spectra), _BLOCK_BYTES // first.element_size())
    with torch.cuda.device_of(first):
        kernels.product[lambda meta: (_up(columns, meta["BLOCK_P"]), _up(weight.shape[3], block_o), n_modes)](
            first, second, weight, tables.distinct, bias, tables.constant, out,
            columns, *size, first.shape[-1], 0 if second is None else second.shape[-1], weight.shape[3],
            *weight.stride(), PRECISION=_precision(), BLOCK_I=block_i, BLOCK_O=block_o,
        )  # fmt: skip
    return out


def _pointwise_product(spectra: Sequence[Tensor], weight: Tensor, tables: _Tables, bias: Tensor | None) -> Tensor:
    """Do the same without neighbours; weight (U, I, O)."""
    parts = weight[tables.distinct].split([x.shape[-1] for x in spectra], dim=1)
    total = None if bias is None else (tables.constant[:, None] * bias)[:, None].to(weight.dtype)
    for x, part in zip(spectra, parts, strict=True):
        voxels = x.flatten(1, 4)
        total = torch.bmm(voxels, part) if total is None else torch.baddbmm(total, voxels, part)
    return total.view(*spectra[0].shape[:5], -1)


def _correlation(x: Tensor, gradient: Tensor, shape: Sequence[int], tables: _Tables) -> Tensor:
    """Correlate shell sums of an input's spectrum with the output's gradient: (U, D, I, O) float32; ``shape`` is U, D."""
    in_channels, out_channels = x.shape[-1], gradient.shape[-1]
    if shape[1] != eager.N_SHELLS:
        by_mode = torch.bmm(x.flatten(1, 4).transpose(1, 2), gradient.flatten(1, 4)).float()
        total = by_mode.new_zeros(shape[0], in_channels, out_channels)
        return total.index_add_(0, tables.distinct, by_mode)[:, None]
    from shd_bids.nn.backends.cuda import kernels

    batch, *size = x.shape[1:5]
    block_p = _BLOCK_BYTES // x.element_size()
    block_i, block_o = _block(in_channels, 2 * block_p), _block(out_channels, 2 * block_p)
    columns = batch * size[1] * size[2]
    tiles, blocks_o = _up(columns, block_p), _up(out_channels, block_o)
    blocks = _up(in_channels, block_i) * blocks_o
    splits = min(tiles, _up(_PROGRAMS, shape[0] * blocks))
    parts = torch.empty(splits, *shape, in_channels, out_channels, device=x.device)
    with torch.cuda.device_of(x):
        kernels.correlation[(blocks, shape[0], splits)](
            x, gradient, tables.rows, parts,
            columns, *size, in_channels, out_channels, blocks_o, tiles, splits, *parts.stride()[:4],
            PRECISION=_precision(), BLOCK_I=block_i, BLOCK_O=block_o, BLOCK_P=block_p,
        )  # fmt: skip
    return parts.sum(0)


def _block(channels: int, largest: int) -> int:
    """Return the power of two, at least the 16 that a matrix unit takes, that holds the channels or a good part of them."""
    return min(largest, max(16, 1 << (channels - 1).bit_length()))


def _up(n: int, unit: int) -> int:
    return -(-n // unit)


def _precision() -> str:
    """Return how to multiply float32: as torch's own matrix products do."""
    return "tf32" if torch.backends.cuda.matmul.allow_tf32 else "ieee"


@torch.library.custom_op("shd_bids::mode_conv", mutates_args=())
def mode_conv(
    inputs: Sequence[Tensor], weight: Tensor, bias: Tensor, nside: int, hemisphere: bool, relu: bool
) -> Tensor:
    """Evaluate one layer from its mode weights; see :func:`shd_bids.nn.backends.eager.forward`."""
    y = _forward([x.contiguous() for x in inputs], weight, bias, Grid(nside, hemisphere))
    return y.relu_() if relu else y


@torch.library.custom_op("shd_bids::mode_conv_backward", mutates_args=())
def mode_conv_backward(
    gradient: Tensor, inputs: Sequence[Tensor], weight: Tensor, nside: int, hemisphere: bool, needed: Sequence[bool]
) -> list[Tensor]:
    """Return the gradients of the needed inputs, then that of the weights."""
    x = [x.contiguous() for x in inputs]
    of_inputs, of_weight = _backward(gradient.contiguous(), x, weight, Grid(nside, hemisphere), needed=needed)
    return [*of_inputs, of_weight]


@mode_conv.register_fake
def _(inputs, weight, bias, nside, hemisphere, relu):
    return inputs[0].new_empty(*inputs[0].shape[:-1], weight.shape[3])


@mode_conv_backward.register_fake
def _(gradient, inputs, weight, nside, hemisphere, needed):
    wanted = [
        torch.empty_like(x, memory_format=torch.contiguous_format) for x, n in zip(inputs, needed, strict=True) if n
    ]
    return [*wanted, weight.new_empty(weight.shape, dtype=torch.float32)]


def _save(ctx, inputs, output) -> None:
    tensors, weight, _bias, ctx.nside, ctx.hemisphere, ctx.relu = inputs
    ctx.save_for_backward(*tensors, weight, *[output] * ctx.relu)
    ctx.n_inputs = len(tensors)


def _differentiate(ctx, gradient: Tensor):
    inputs, (weight, *output) = ctx.saved_tensors[: ctx.n_inputs], ctx.saved_tensors[ctx.n_inputs :]
    if ctx.relu:
        gradient = gradient * (output[0] > 0)
    needed = ctx.needs_input_grad[0]
    results = mode_conv_backward(gradient, inputs, weight, ctx.nside, ctx.hemisphere, needed)
    found = iter(results)
    of_inputs = [next(found) if need else None for need in needed]
    return of_inputs, next(found), _bias_gradient(gradient), None, None, None


mode_conv.register_autograd(_differentiate, setup_context=_save)
