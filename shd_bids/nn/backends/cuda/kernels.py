"""The Triton kernels: per mode, shell sums and their products with the mode weights in one pass.

A program owns a tile of the columns (b, y, z) of one mode and walks along x, so that it reads each plane of voxels once. Of plane
x it needs three sums by distance within the plane: p_0 the voxel itself, p_1 its four sides, p_2 its four corners. The shells are

    S_0 = p_0,   S_d = p_d + p'_{d-1}   (p_3 = 0, and ' sums the planes x - 1 and x + 1),

so plane x gives  p_0 W_0 + p_1 W_1 + p_2 W_2  to its own output and  p_0 W_1 + p_1 W_2 + p_2 W_3  to those beside it: six small
matrix products from nine reads, and the shell sums exist only in registers. Sums are made in float32 whatever the data are.

Set TRITON_INTERPRET=1 before the first import to run them without a GPU.
"""

import os

import triton
import triton.language as tl

# Triton measures these on the device, once for each set of channel counts. None of them changes an order of summation, so results
# do not depend on which is taken. More would not pay: each costs seconds to compile, and one stage is enough, as nine
# reads in flight hide their latency and leave no registers for more.
_TILES = [
    triton.Config({"BLOCK_P": columns}, num_warps=warps, num_stages=1)
    for columns, warps in ((64, 4), (64, 8), (128, 8))
]
_WARPS = [triton.Config({}, num_warps=warps, num_stages=1) for warps in (4, 8)]


def _tuned(configs: list[triton.Config], key: list[str]):
    """Autotune a kernel; the interpreter has nothing to measure and takes the first choice."""
    return triton.autotune(configs[:1] if os.environ.get("TRITON_INTERPRET") == "1" else configs, key=key)


# Sizes that change from tile to tile of a volume: a kernel compiled for one of them serves all.
_SIZES = ["columns", "X", "Y", "Z"]


@triton.jit
def _columns(tile, columns, X, Y, Z, BLOCK_P: tl.constexpr):
    """Give, for each column of a tile: whether it exists, its row at x = 0, y and z."""
    column = tile * BLOCK_P + tl.arange(0, BLOCK_P)
    inside = column % (Y * Z)
    row = column // (Y * Z) * X * Y * Z + inside
    return column < columns, row, inside // Z, inside % Z


@triton.jit
def _read(pointer, row, there, channel, channels):
    """Read rows of channels as float32, zero where there is none: (P, C)."""
    mask = there[:, None] & (channel < channels)[None, :]
    return tl.load(pointer + row[:, None] * channels + channel[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _plane_sums(pointer, row, there, y, z, channel, channels, Y, Z):
    """Sum over voxel, sides and corners within a plane: three (P, C)."""
    north, south = there & (y > 0), there & (y < Y - 1)
    west, east = z > 0, z < Z - 1
    centre = _read(pointer, row, there, channel, channels)
    sides = _read(pointer, row - Z, north, channel, channels) + _read(pointer, row + Z, south, channel, channels)
    sides += _read(pointer, row - 1, there & west, channel, channels)
    sides += _read(pointer, row + 1, there & east, channel, channels)
    corners = _read(pointer, row - Z - 1, north & west, channel, channels)
    corners += _read(pointer, row - Z + 1, north & east, channel, channels)
    corners += _read(pointer, row + Z - 1, south & west, channel, channels)
    corners += _read(pointer, row + Z + 1, south & east, channel, channels)
    return centre, sides, corners


@triton.jit
def _add_products(
    own, beside, pointer, channels, weight, mask_o, stride_d, stride_i,
    row, there, y, z, Y, Z, PRECISION: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """Add what one plane of one input gives to its own output and to those of the planes beside it, each (P, O)."""
    for start in range(0, channels, BLOCK_I):
        channel = start + tl.arange(0, BLOCK_I)
        p_0, p_1, p_2 = _plane_sums(pointer, row, there, y, z, channel, channels, Y, Z)
        where = weight + channel[:, None] * stride_i
        mask = (channel < channels)[:, None] & mask_o
        w_1 = tl.load(where + stride_d, mask=mask, other=0.0)
        w_2 = tl.load(where + 2 * stride_d, mask=mask, other=0.0)
        p_0, p_1, p_2 = p_0.to(w_1.dtype), p_1.to(w_1.dtype), p_2.to(w_1.dtype)
        own = tl.dot(p_0, tl.load(where, mask=mask, other=0.0), own, input_precision=PRECISION)
        own = tl.dot(p_1, w_1, own, input_precision=PRECISION)
        own = tl.dot(p_2, w_2, own, input_precision=PRECISION)
        beside = tl.dot(p_0, w_1, beside, input_precision=PRECISION)
        beside = tl.dot(p_1, w_2, beside, input_precision=PRECISION)
        w_3 = tl.load(where + 3 * stride_d, mask=mask, other=0.0)
        beside = tl.dot(p_2, w_3, beside, input_precision=PRECISION)
    return own, beside


@_tuned(_TILES, key=["first_channels", "second_channels", "out_channels"])
@triton.jit(do_not_specialize=_SIZES)
def product(
    first, second, weight, distinct, bias, constant, out,
    columns, X, Y, Z, first_channels, second_channels, out_channels,
    stride_u, stride_d, stride_i, stride_o,
    PRECISION: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Write the spectrum of a layer's output: sum over inputs and shells of S_d x W_d, and bias times ``constant``.

    ``first`` and ``second`` (or None) are spectra (V, B, X, Y, Z, I_j), ``weight`` is (U, 4, I_0 + I_1, O) with any strides,
    ``distinct`` (V,) names the weights of each mode, ``constant`` (V,) is the spectrum of the function 1 (both it and ``bias``
    may be None), and ``out`` is (V, B, X, Y, Z, O). ``columns`` is B Y Z.
    """
    mode = tl.program_id(2)
    there, row, y, z = _columns(tl.program_id(0), columns, X, Y, Z, BLOCK_P)
    voxels = (columns * X).to(tl.int64)
    channel = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    mask_o = (channel < out_channels)[None, :]
    first += mode * voxels * first_channels
    if second is not None:
        second += mode * voxels * second_channels
    weight += tl.load(distinct + mode).to(tl.int64) * stride_u + channel[None, :] * stride_o
    out += mode * voxels * out_channels + channel[None, :]
    waiting = tl.zeros((BLOCK_P, BLOCK_O), tl.float32)  # output of plane x - 1 but for what plane x gives
    given = tl.zeros((BLOCK_P, BLOCK_O), tl.float32)  # what plane x - 1 gives to plane x
    offset = tl.zeros((1, BLOCK_O), tl.float32)
    if bias is not None:
        offset += tl.load(constant + mode) * tl.load(bias + channel[None, :], mask=mask_o, other=0.0).to(tl.float32)
    for x in range(X):
        own, beside = tl.zeros_like(waiting) + offset, tl.zeros_like(given)
        own, beside = _add_products(
            own, beside, first, first_channels, weight, mask_o, stride_d, stride_i,
            row, there, y, z, Y, Z, PRECISION, BLOCK_I,
        )  # fmt: skip
        if second is not None:
            own, beside = _add_products(
                own, beside, second, second_channels, weight + first_channels * stride_i, mask_o, stride_d, stride_i,
                row, there, y, z, Y, Z, PRECISION, BLOCK_I,
            )  # fmt: skip
        before = out + (row - Y * Z)[:, None] * out_channels
        tl.store(before, waiting + beside, mask=(there & (x > 0))[:, None] & mask_o)
        waiting, given = own + given, beside
        row += Y * Z
    tl.store(out + (row - Y * Z)[:, None] * out_channels, waiting, mask=there[:, None] & mask_o)


@_tuned(_WARPS, key=["in_channels", "out_channels"])
@triton.jit(do_not_specialize=[*_SIZES, "tiles", "splits", "blocks_o"])
def correlation(
    x_spectrum, y_gradient, rows, out,
    columns, X, Y, Z, in_channels, out_channels, blocks_o, tiles, splits,
    stride_s, stride_u, stride_d, stride_i,
    PRECISION: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Correlate the shell sums of an input with the gradient of the output: the gradient of the mode weights.

    ``x_spectrum`` is (V, B, X, Y, Z, I), ``y_gradient`` (V, B, X, Y, Z, O), and the modes rows[u] .. rows[u + 1] share
    weights. Programs share the tiles of columns; each writes its sum into its own part of ``out``, (splits, U, 4, I, O) float32.
    """
    channel_i = tl.program_id(0) // blocks_o * BLOCK_I + tl.arange(0, BLOCK_I)
    channel_o = tl.program_id(0) % blocks_o * BLOCK_O + tl.arange(0, BLOCK_O)
    begin = tl.load(rows + tl.program_id(1))
    modes = tl.load(rows + tl.program_id(1) + 1) - begin
    voxels = (columns * X).to(tl.int64)
    sum_0 = tl.zeros((BLOCK_I, BLOCK_O), tl.float32)
    sum_1, sum_2, sum_3 = tl.zeros_like(sum_0), tl.zeros_like(sum_0), tl.zeros_like(sum_0)
    for share in range(tl.program_id(2), modes * tiles, splits):
        mode = begin + share // tiles
        there, row, y, z = _columns(share % tiles, columns, X, Y, Z, BLOCK_P)
        source, target = x_spectrum + mode * voxels * in_channels, y_gradient + mode * voxels * out_channels
        last = tl.zeros((BLOCK_P, BLOCK_O), tl.float32)
        here = _read(target, row, there, channel_o, out_channels)
        for x in range(X):
            after = _read(target, row + Y * Z, there & (x < X - 1), channel_o, out_channels)
            p_0, p_1, p_2 = _plane_sums(source, row, there, y, z, channel_i, in_channels, Y, Z)
            kind = x_spectrum.dtype.element_ty
            p_0, p_1, p_2 = tl.trans(p_0.to(kind)), tl.trans(p_1.to(kind)), tl.trans(p_2.to(kind))
            own, beside = here.to(kind), (last + after).to(kind)
            sum_0 = tl.dot(p_0, own, sum_0, input_precision=PRECISION)
            sum_1 = tl.dot(p_1, own, sum_1, input_precision=PRECISION)
            sum_1 = tl.dot(p_0, beside, sum_1, input_precision=PRECISION)
            sum_2 = tl.dot(p_2, own, sum_2, input_precision=PRECISION)
            sum_2 = tl.dot(p_1, beside, sum_2, input_precision=PRECISION)
            sum_3 = tl.dot(p_2, beside, sum_3, input_precision=PRECISION)
            last, here = here, after
            row += Y * Z
    out += tl.program_id(2).to(tl.int64) * stride_s + tl.program_id(1).to(tl.int64) * stride_u
    out += channel_i[:, None] * stride_i + channel_o[None, :]
    mask = (channel_i < in_channels)[:, None] & (channel_o < out_channels)[None, :]
    tl.store(out, sum_0, mask=mask)
    tl.store(out + stride_d, sum_1, mask=mask)
    tl.store(out + 2 * stride_d, sum_2, mask=mask)
    tl.store(out + 3 * stride_d, sum_3, mask=mask)
