r"""The arithmetic of the layers in plain PyTorch, on any device and at any precision: what the other backends must equal.

The convolution is

.. math:: \hat y_m = \sum_d S_d \hat x_m W_{md}, \quad W_{mdio} = w^{spa}_{oid} \sum_k w^{sph}_{oik} T_k(\lambda_m)

for each mode m, see :mod:`shd_bids.nn.layers.conv`.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from shd_bids.nn.backends.arguments import Filters, Ranges
from shd_bids.nn.layers.cheb import SphereBasis

N_SHELLS = 4  # distances 0, 1, sqrt 2, sqrt 3 in the 3 x 3 x 3 kernel, with 1, 6, 12, 8 taps

# Bytes of shell sums made at once. They are four times the input: made as a whole they would dominate memory, in pieces
# they stay in cache. On a GPU a piece must be large enough to fill the device.
_PIECE_BYTES = {"cpu": 4 << 20, "cuda": 512 << 20}


def mode_weights(filters: Filters, basis: SphereBasis) -> tuple[Tensor]:
    """Return one matrix per distinct mode and shell, shape (U, D, I, O): Chebyshev and shell weights collapsed."""
    with torch.autocast(filters.sph.device.type, enabled=False):
        response = torch.einsum("oik,uk->uio", filters.sph, basis.terms.to(filters.sph.dtype))  # (U, I, O)
        if filters.spa is None:
            return (response[:, None],)
        return (response[:, None] * filters.spa.permute(2, 1, 0),)


def forward(inputs: Sequence[Tensor], weights: Sequence[Tensor], bias: Tensor, basis: SphereBasis) -> Tensor:
    """Evaluate one layer.

    Parameters
    ----------
    inputs : sequence of Tensor, shape (V, B, X, Y, Z, I_j)
    weights : tuple of one Tensor, shape (U, D, sum of I_j, O)
        As :func:`mode_weights` returns them.
    bias : Tensor, shape (O,)
    basis : SphereBasis

    Returns
    -------
    Tensor, shape (V, B, X, Y, Z, O)
    """
    spectrum = inputs[0].new_empty(*inputs[0].shape[:-1], len(bias))
    for index, (x, weight) in enumerate(zip(inputs, _parts(weights, inputs), strict=True)):
        _accumulate(spectrum, basis.to_modes(x), weight, basis=basis, first=index == 0)
    return basis.to_vertices(spectrum).add_(bias.to(spectrum.dtype))


def backward(
    gradient: Tensor,
    inputs: Sequence[Tensor],
    weights: Sequence[Tensor],
    basis: SphereBasis,
    *,
    needed: Sequence[bool],
    reuse: Sequence[bool],
) -> tuple[list[Tensor | None], list[Tensor], Tensor]:
    """Return the gradients of the needed inputs, of the weights and of the bias, from that of the output.

    ``reuse`` names inputs that nothing else reads, whose memory the result may take; it is not taken here.
    """
    spectrum = basis.to_modes(gradient.contiguous())
    of_inputs: list[Tensor | None] = []
    of_weights = []
    for x, weight, need in zip(inputs, _parts(weights, inputs), needed, strict=True):
        of_input = None
        if need:
            of_input = torch.empty_like(x)
            _accumulate(of_input, spectrum, weight.transpose(2, 3), basis=basis, first=True)
            of_input = basis.to_vertices(of_input)
        of_inputs.append(of_input)
        of_weights.append(_weight_gradient(x, spectrum, weight, basis=basis))
    return of_inputs, [torch.cat(of_weights, dim=2)], gradient.flatten(0, -2).sum(0)


def shell_sums(x: Tensor) -> Tensor:
    """Sum over the neighbours at each distance, zero outside: (M, B, X, Y, Z, F) to (M, B, X, Y, Z, 4, F).

    The sums are the elementary symmetric polynomials of the three neighbour sums A_x, A_y, A_z, so six sums of two
    neighbours and three additions make all 26 taps.
    """
    sums = x.new_empty(*x.shape[:-1], N_SHELLS, x.shape[-1])
    along_z = _neighbours(x, 4)
    plane_1 = along_z + _neighbours(x, 3)  # A_z + A_y
    plane_2 = _neighbours(along_z, 3)  # A_z A_y
    sums[..., 0, :] = x
    torch.add(plane_1, _neighbours(x, 2), out=sums[..., 1, :])
    torch.add(plane_2, _neighbours(plane_1, 2), out=sums[..., 2, :])
    sums[..., 3, :] = _neighbours(plane_2, 2)
    return sums


def moments(y: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance of each channel of y (rows, F), at least in float32."""
    variance, mean = torch.var_mean(y.to(torch.promote_types(y.dtype, torch.float32)), 0, correction=0)
    return mean, variance


def rectify(y: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Return max(0, y scale + shift) for y (rows, F)."""
    return torch.addcmul(shift, y, scale).relu_().to(y.dtype)


def gradient_sums(gradient: Tensor, y: Tensor, scale: Tensor, shift: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
    """Sum the gradient of :func:`rectify` where the unit is on, and that times y - centre, over rows: two (F,)."""
    on = torch.where(torch.addcmul(shift, y, scale) > 0, gradient, 0)
    return on.sum(0, dtype=scale.dtype), (on * (y - centre)).sum(0, dtype=scale.dtype)


def rectify_gradient(
    gradient: Tensor, y: Tensor, scale: Tensor, shift: Tensor, offset: Tensor, slope: Tensor, *, out: Tensor
) -> None:
    """Put scale times the gradient where the unit is on, less offset + slope y, into ``out``, which may be y."""
    on = torch.where(torch.addcmul(shift, y, scale) > 0, gradient, 0)
    out.copy_(scale * on - offset - slope * y)


def box_sum(x: Tensor, index: Tensor, ranges: Sequence[Ranges], factor: float) -> Tensor:
    """Sum x (V, B, X, Y, Z, F) over source vertices, index (V', S), and boxes of voxels; times ``factor``."""
    for dim, axis in zip((2, 3, 4), ranges, strict=True):
        start, end = axis.on(x.device)
        total = x.index_select(dim, start)
        if axis.longest == 2:
            second = x.index_select(dim, (start + 1).clamp(max=x.shape[dim] - 1))
            there = (end - start == 2).to(x.dtype).view(-1, *[1] * (5 - dim))
            total = total + second * there
        x = total
    return x[index.flatten()].unflatten(0, (-1, index.shape[1])).sum(1) * factor


def _parts(weights: Sequence[Tensor], inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    """Return the weights of each input, at its precision."""
    return weights[0].to(inputs[0].dtype).split([x.shape[-1] for x in inputs], dim=2)


def _accumulate(out: Tensor, spectrum: Tensor, weight: Tensor, *, basis: SphereBasis, first: bool) -> None:
    """Add (or store, for the first) the shell sums of ``spectrum`` times the mode weights (U, D, I, O) to ``out``."""
    for modes, shared, piece in _pieces(spectrum, weight, basis):
        sums = _shells(piece, weight).flatten(1, 4).flatten(2)  # (p, copies B X Y Z, D I)
        target = out[modes].view(len(piece), -1, weight.shape[3])
        matrix = weight[shared].flatten(1, 2)  # (p, D I, O)
        torch.baddbmm(target, sums, matrix, beta=0 if first else 1, out=target)


def _weight_gradient(x: Tensor, spectrum: Tensor, weight: Tensor, *, basis: SphereBasis) -> Tensor:
    """Correlate the input with the shell sums of the output gradient, shape (U, D, I, O)."""
    result = torch.empty_like(weight)
    expanded = basis.to_modes(x)
    for modes, shared, piece in _pieces(expanded, weight, basis):
        sums = _shells(piece, weight).flatten(1, 4).flatten(2)  # (p, copies B X Y Z, D I)
        target = spectrum[modes].view(len(piece), -1, weight.shape[3])
        result[shared] = (sums.transpose(1, 2) @ target).view_as(result[shared])
    return result


def _shells(piece: Tensor, weight: Tensor) -> Tensor:
    return shell_sums(piece) if weight.shape[1] == N_SHELLS else piece[..., None, :]


def _pieces(spectrum: Tensor, weight: Tensor, basis: SphereBasis) -> Iterator[tuple[slice, slice, Tensor]]:
    """Yield (rows of the spectrum, distinct modes, those rows as (p, copies B, X, Y, Z, F)).

    Modes with one eigenvalue share their weights: their copies, neighbours in memory, join the batch.
    """
    limit = _PIECE_BYTES.get(spectrum.device.type, _PIECE_BYTES["cuda"])
    row = distinct = 0
    for size, copies in basis.copies:
        bytes_per_mode = copies * weight.shape[1] * spectrum[0].numel() * spectrum.element_size()
        step = max(1, limit // max(bytes_per_mode, 1))
        for start in range(0, size, step):
            count = min(step, size - start)
            modes = slice(row + start * copies, row + (start + count) * copies)
            shared = slice(distinct + start, distinct + start + count)
            yield modes, shared, spectrum[modes].view(count, -1, *spectrum.shape[2:])
        row, distinct = row + size * copies, distinct + size


def _neighbours(x: Tensor, dim: int) -> Tensor:
    """Add the two neighbours along one axis, zero outside."""
    size = x.shape[dim]
    result = torch.zeros_like(x)
    if size > 1:
        result.narrow(dim, 0, size - 1).copy_(x.narrow(dim, 1, size - 1))
        result.narrow(dim, 1, size - 1).add_(x.narrow(dim, 0, size - 1))
    return result
