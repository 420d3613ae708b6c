r"""Convolution over space and sphere, equivariant to E(3) x SO(3), exactly as published but in spectral form.

.. math:: y_o(v, x) = b_o + \sum_i \sum_k \sum_{d \in \{-1,0,1\}^3}
          w^{sph}_{oik} \, w^{spa}_{o i |d|} \, (T_k(\tilde L) x_i)(v, x + d)

Three exact identities make it cheap: the 27 spatial taps share one weight per distance, so four shell sums replace them;
the Laplacian is fixed and symmetric, so in its eigenbasis the K Chebyshev terms collapse into one matrix per mode; and
shell sums, being spatial, commute with that basis. Per mode m

.. math:: \hat y_m = \sum_d S_d \hat x_m W_{md}, \quad W_{mdio} = w^{spa}_{oid} \sum_k w^{sph}_{oik} T_k(\lambda_m).

Inside the network tensors are (vertex, batch, x, y, z, channel): a change of basis is then one matrix product over columns,
the channel product one batched product over modes, and channels stay contiguous.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from shd_bids.nn.backends import cpu, cuda
from shd_bids.nn.layers.cheb import SphereBasis
from shd_bids.nn.layers.pool import Pooling, Unpooled

N_SHELLS = 4  # distances 0, 1, sqrt 2, sqrt 3 in the 3 x 3 x 3 kernel, with 1, 6, 12, 8 taps

# Bytes of shell sums made at once. They are four times the input: made as a whole they would dominate memory, in pieces
# they stay in cache. On a GPU a piece must be large enough to fill the device.
_PIECE_BYTES = {"cpu": 4 << 20, "cuda": 512 << 20}


class SpatioSphericalConv(nn.Module):
    """Convolve features on R^3 x S^2; the parameters are those of the published layer and nothing else.

    Parameters
    ----------
    basis : SphereBasis
        Eigenbasis of the grid, shared by all layers of a level.
    in_channels : tuple of int
        Channels of each input; several inputs act as one concatenated along channels, without concatenating them.
    out_channels : int
    spatial : bool
        Use the 3 x 3 x 3 kernel (zero padding); else each voxel is filtered on its own sphere.
    """

    def __init__(self, basis: SphereBasis, in_channels: tuple[int, ...], *, out_channels: int, spatial: bool):
        super().__init__()
        self.basis = basis
        self.in_channels = in_channels
        channels, order = sum(in_channels), basis.order
        self.weightSph = nn.Parameter(torch.empty(out_channels, channels, order))
        nn.init.normal_(self.weightSph, std=(2 / (channels * order)) ** 0.5)  # published initialisation
        if spatial:
            self.weightSpa = nn.Parameter(torch.empty(out_channels, channels, N_SHELLS))
            nn.init.normal_(self.weightSpa, std=(2 / (channels * 27)) ** 0.5)
        else:
            self.register_parameter("weightSpa", None)
        self.bias = nn.Parameter(torch.full((out_channels,), 0.01))

    def forward(self, *inputs: Tensor | Unpooled, relu: bool = False, own: bool = False) -> Tensor:
        """Map inputs of shape (V, B, X, Y, Z, I_j) to (V, B, X, Y, Z, O), rectified where asked.

        Without gradients the last input may be :class:`Unpooled`, and the result may take the memory of the first where
        ``own`` says that nothing else reads that.
        """
        last = inputs[-1]
        cells = isinstance(last, Unpooled) and self._reads_cells(last)
        values = [(x.source if cells else x.formed()) if isinstance(x, Unpooled) else x for x in inputs]
        if cells or (own and self._in_place(values)):
            return cpu.forward(
                [x.contiguous() for x in values],
                self.weightSph,
                self.weightSpa,
                self.bias,
                nside=self.basis.nside,
                hemisphere=self.basis.hemisphere,
                relu=relu,
                parents=last.pool.parent_index if cells else None,
                own=own,
            )
        device = values[0].device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else values[0].dtype
        values = [x.to(dtype) for x in values]
        if cpu.suits(*values, self.bias):
            parameters = (self.weightSph, self.weightSpa, self.bias)
            return cpu.spectral_conv(values, *parameters, self.basis.nside, self.basis.hemisphere, relu)
        weight = mode_weights(self.weightSph, self.weightSpa, self.basis.terms)  # (U, D, I, O)
        if cuda.suits(values):
            return cuda.mode_conv(values, weight, self.bias, self.basis.nside, self.basis.hemisphere, relu)
        pairs = zip(values, weight.to(dtype).split(self.in_channels, dim=2), strict=True)
        arguments = [tensor for pair in pairs for tensor in pair]
        y = _SpectralConv.apply(self.basis, self.bias.to(dtype), *arguments)
        return y.relu() if relu else y

    def slabwise(self, course: cpu.Course, *, relu: bool = False, pool: Pooling | None = None) -> cpu.Slabwise:
        """Give what evaluates one sample a few planes at a time without gradients, by the compiled kernel.

        With ``pool`` the last input is given as what it was unpooled from; else see :class:`native.Slabwise`.
        """
        return cpu.Slabwise(
            self.in_channels,
            self.weightSph,
            self.weightSpa,
            self.bias,
            nside=self.basis.nside,
            hemisphere=self.basis.hemisphere,
            relu=relu,
            course=course,
            parents=None if pool is None else pool.parent_index,
        )

    def _reads_cells(self, last: Unpooled) -> bool:
        """Whether a map copied to the voxels of cells can be left unformed: by the compiled kernel alone, at its precision."""
        return _as_is(last.source) and last.pool.stride == 2 and self.weightSpa is not None

    def _in_place(self, values: list[Tensor]) -> bool:
        """Whether the result can take the memory of an input: without gradients, by the compiled kernel alone."""
        return not torch.is_grad_enabled() and _as_is(*values, self.bias)


def _as_is(*values: Tensor) -> bool:
    """Whether the compiled kernel can be called on values as they are: no other precision is asked for, nothing is traced."""
    plain = not torch.is_autocast_enabled("cpu") and not torch.compiler.is_compiling()
    return plain and cpu.suits(*values)


def mode_weights(weight_sph: Tensor, weight_spa: Tensor | None, terms: Tensor) -> Tensor:
    """Collapse the Chebyshev and shell weights into one matrix per distinct mode and shell, shape (U, D, I, O)."""
    with torch.autocast(weight_sph.device.type, enabled=False):
        response = torch.einsum("oik,uk->uio", weight_sph, terms.to(weight_sph.dtype))  # (U, I, O)
        if weight_spa is None:
            return response[:, None]
        return response[:, None] * weight_spa.permute(2, 1, 0)


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


class _SpectralConv(torch.autograd.Function):
    """Evaluate the layer from its inputs and mode weights, saving nothing but those for the way back.

    Saving the expansions instead would keep several times the input; they are recomputed.
    """

    @staticmethod
    def forward(ctx, basis: SphereBasis, bias: Tensor, *inputs_and_weights: Tensor) -> Tensor:
        ctx.basis = basis
        ctx.save_for_backward(*inputs_and_weights)
        inputs, weights = inputs_and_weights[::2], inputs_and_weights[1::2]
        spectrum = inputs[0].new_empty(*inputs[0].shape[:-1], len(bias))
        for index, (x, weight) in enumerate(zip(inputs, weights, strict=True)):
            _accumulate(spectrum, basis.to_modes(x), weight, basis=basis, first=index == 0)
        return basis.to_vertices(spectrum).add_(bias)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        saved = ctx.saved_tensors  # asked for once: each time makes again what was not kept
        inputs, weights = saved[::2], saved[1::2]
        spectrum = ctx.basis.to_modes(gradient.contiguous())
        results: list[Tensor | None] = []
        for index, (x, weight) in enumerate(zip(inputs, weights, strict=True)):
            need_x, need_weight = ctx.needs_input_grad[2 + 2 * index : 4 + 2 * index]
            x_gradient = None
            if need_x:
                x_gradient = torch.empty_like(x)
                _accumulate(x_gradient, spectrum, weight.transpose(2, 3), basis=ctx.basis, first=True)
                x_gradient = ctx.basis.to_vertices(x_gradient)
            results += [x_gradient, _weight_gradient(x, spectrum, weight, basis=ctx.basis) if need_weight else None]
        return None, gradient.flatten(0, -2).sum(0), *results


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
