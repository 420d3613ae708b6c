r"""Convolution over space and sphere, equivariant to E(3) x SO(3), exactly as published but in spectral form.

The layer of Elaldi, Gerig and Dey 2024 (arXiv:2411.11819, on the hemisphere as in figure 3A; ``model/graphconv.py`` of
their code), which is that of RT-ESD (Elaldi, Gerig and Dey 2023, arXiv:2304.06103) on half the vertices:

.. math:: y_o(v, x) = b_o + \sum_i \sum_k \sum_{d \in \{-1,0,1\}^3}
          w^{sph}_{oik} \, w^{spa}_{o i |d|} \, (T_k(\tilde L) x_i)(v, x + d)

Three exact identities make it cheap: the 27 spatial taps share one weight per distance, so four shell sums replace them;
the Laplacian is fixed and symmetric, so in its eigenbasis the K Chebyshev terms collapse into one matrix per mode; and
shell sums, being spatial, commute with that basis. Per mode m

.. math:: \hat y_m = \sum_d S_d \hat x_m W_{md}, \quad W_{mdio} = w^{spa}_{oid} \sum_k w^{sph}_{oik} T_k(\lambda_m).

Inside the network tensors are (vertex, batch, x, y, z, channel): a change of basis is then one matrix product over columns,
the channel product one batched product over modes, and channels stay contiguous.
"""

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from shd_bids.nn.backends import Backend, backend_for, cpu
from shd_bids.nn.backends.arguments import Filters
from shd_bids.nn.backends.eager import N_SHELLS
from shd_bids.nn.layers.cheb import SphereBasis
from shd_bids.nn.layers.checkpoint import Activation, Recipe, restore, save
from shd_bids.nn.layers.pool import Pooling, Unpooled

Input: TypeAlias = Tensor | Activation | Unpooled


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

    Attributes
    ----------
    level : int or None
        Instruction set by which the compiled kernel evaluates the layer without gradients; None is the best for float32.
    """

    def __init__(self, basis: SphereBasis, in_channels: tuple[int, ...], *, out_channels: int, spatial: bool):
        super().__init__()
        self.basis = basis
        self.in_channels = in_channels
        self.level: int | None = None
        channels, order = sum(in_channels), basis.order
        self.weightSph = nn.Parameter(torch.empty(out_channels, channels, order))
        nn.init.normal_(self.weightSph, std=(2 / (channels * order)) ** 0.5)  # published initialisation
        if spatial:
            self.weightSpa = nn.Parameter(torch.empty(out_channels, channels, N_SHELLS))
            nn.init.normal_(self.weightSpa, std=(2 / (channels * 27)) ** 0.5)
        else:
            self.register_parameter("weightSpa", None)
        self.bias = nn.Parameter(torch.full((out_channels,), 0.01))

    def forward(self, *inputs: Input, relu: bool = False, in_place: bool = False) -> Tensor:
        """Map inputs of shape (V, B, X, Y, Z, I_j) to (V, B, X, Y, Z, O), rectified where asked.

        Without gradients the last input may be :class:`Unpooled`, and the result may take the memory of the first where
        ``in_place`` says that nothing else reads that.
        """
        maps, recipes = _at_one_precision(inputs)
        backend = backend_for(*(x.source if isinstance(x, Unpooled) else x for x in maps), self.bias)
        if backend.in_slabs and not torch.is_grad_enabled():
            return self._infer(maps, relu=relu, in_place=in_place)
        values = [x.formed() if isinstance(x, Unpooled) else x for x in maps]
        if backend.operator is not None:
            return backend.operator(values, self._filters(), self.bias, self.basis, relu)
        weights = backend.weights(self._filters(), self.basis)
        call = _Call(backend, self.basis, relu, recipes)
        return _Convolution.apply(call, self.bias, *values, *weights)

    def slabwise(self, plan: cpu.SlabPlan, *, relu: bool = False, pool: Pooling | None = None) -> cpu.SlabwiseConv:
        """Return what evaluates one sample a few planes at a time without gradients, where the backend runs in slabs.

        With ``pool`` the last input is given as what it was unpooled from.
        """
        parents = None if pool is None else pool.parent_index
        return cpu.SlabwiseConv(
            self.in_channels, self._filters(), self.bias, plan, relu=relu, parents=parents, level=self.level
        )

    def _infer(self, maps: Sequence[Tensor | Unpooled], *, relu: bool, in_place: bool) -> Tensor:
        """Evaluate by the compiled kernel, which need not form a map that is copied to the voxels of cells."""
        last, parents = maps[-1], None
        if isinstance(last, Unpooled) and last.pool.stride == 2 and self.weightSpa is not None:
            parents, maps = last.pool.parent_index, [*maps[:-1], last.source]
        values = [(x.formed() if isinstance(x, Unpooled) else x).contiguous() for x in maps]
        how = {"relu": relu, "parents": parents, "in_place": in_place, "level": self.level}
        return cpu.forward(values, self._filters(), self.bias, **how)

    def _filters(self) -> Filters:
        return Filters(self.weightSph, self.weightSpa, self.basis.grid)


class _Call(NamedTuple):
    """How to evaluate one convolution, and what makes its inputs again on the way back."""

    backend: Backend
    basis: SphereBasis
    relu: bool
    recipes: tuple[Recipe | None, ...]


class _Convolution(torch.autograd.Function):
    """Evaluate the layer by a backend from its inputs and weights, saving nothing but those for the way back.

    Saving the expansions in eigenvectors instead would keep several times the input; they are made again.
    """

    @staticmethod
    def forward(ctx, call: _Call, bias: Tensor, *inputs_and_weights: Tensor) -> Tensor:
        count = len(call.recipes)
        inputs, weights = inputs_and_weights[:count], inputs_and_weights[count:]
        y = call.backend.forward(inputs, weights, bias, call.basis)
        if call.relu:
            y = y.relu_()
        ctx.backend, ctx.basis, ctx.relu = call.backend, call.basis, call.relu
        save(ctx, inputs, call.recipes, *weights, *[y] * call.relu)
        return y

    @staticmethod
    def backward(ctx, gradient: Tensor):
        inputs, again, weights = restore(ctx)
        if ctx.relu:
            gradient = gradient * (weights.pop() > 0)
        of_inputs, of_weights, of_bias = ctx.backend.backward(
            gradient, inputs, weights, ctx.basis, needed=ctx.needs_input_grad[2 : 2 + len(inputs)], reuse=again
        )
        return None, of_bias, *of_inputs, *of_weights


def _at_one_precision(inputs: Sequence[Input]) -> tuple[list[Tensor | Unpooled], tuple[Recipe | None, ...]]:
    """Return the maps at the precision of autocast or else of the first, and the recipes of those that were not cast."""
    pairs = [x if isinstance(x, Activation) else Activation(x) for x in inputs]
    first = pairs[0].values
    device = first.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else first.dtype
    recipes = tuple(recipe if recipe and values.dtype == dtype else None for values, recipe in pairs)
    return [values.to(dtype) for values, _ in pairs], recipes
