"""Implementations of the arithmetic of the layers: plain PyTorch, compiled for the CPU, and Triton's for CUDA.

:func:`backend_for` is the one place that asks which of them suits.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from shd_bids.nn.backends import cpu, cuda, eager


@dataclass(frozen=True, eq=False)
class Backend:
    """One implementation; :mod:`shd_bids.nn.backends.eager` documents the arguments of all but ``operator``.

    Attributes
    ----------
    weights, forward, backward : callable
        The convolution: what it and its derivative take of the filters, and both of them.
    moments, rectify, gradient_sums, rectify_gradient : callable
        Batch normalisation and ReLU, on rows of channels.
    box_sum : callable
        Pooling and unpooling.
    in_slabs : bool
        Whether without gradients a convolution can run in place, and on a volume a few planes at a time.
    operator : callable, optional
        The convolution as an operator of torch (inputs, filters, bias, basis, relu), in which a compiler finds no Python.
    """

    weights: Callable[..., tuple[Tensor, ...]]
    forward: Callable[..., Tensor]
    backward: Callable[..., tuple[list[Tensor | None], list[Tensor], Tensor]]
    moments: Callable[..., tuple[Tensor, Tensor]]
    rectify: Callable[..., Tensor]
    gradient_sums: Callable[..., tuple[Tensor, Tensor]]
    rectify_gradient: Callable[..., None]
    box_sum: Callable[..., Tensor]
    in_slabs: bool = False
    operator: Callable[..., Tensor] | None = None


EAGER = Backend(
    weights=eager.mode_weights,
    forward=eager.forward,
    backward=eager.backward,
    moments=eager.moments,
    rectify=eager.rectify,
    gradient_sums=eager.gradient_sums,
    rectify_gradient=eager.rectify_gradient,
    box_sum=eager.box_sum,
)
CUDA = replace(EAGER, forward=cuda.forward, backward=cuda.backward)
CPU = Backend(
    weights=cpu.weights,
    forward=cpu.forward_of,
    backward=cpu.backward_of,
    moments=cpu.moments,
    rectify=cpu.rectify,
    gradient_sums=cpu.gradient_sums,
    rectify_gradient=cpu.rectify_gradient,
    box_sum=cpu.box_sum,
    in_slabs=True,
)
# While torch compiles, kernels that it cannot look into have to be operators; all else is left to it.
_COMPILED_CPU = replace(EAGER, operator=cpu.operator)
_COMPILED_CUDA = replace(EAGER, operator=cuda.operator)


def backend_for(*tensors: Tensor) -> Backend:
    """Return the fastest implementation that takes these tensors, all of one device."""
    compiling = torch.compiler.is_compiling()
    if cpu.suits(*tensors):
        return _COMPILED_CPU if compiling else CPU
    if cuda.suits(*tensors):
        return _COMPILED_CUDA if compiling else CUDA
    return EAGER
