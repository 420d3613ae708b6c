"""The compiled CPU kernel of the layers.

The source, in the folder ``spectral``, has no dependency. A library built with the package is used if it is there; else the
source is compiled at first use, once per user, if a C++ compiler is found; else :func:`library` returns None and the layers
run in plain PyTorch, computing the same at a fraction of the speed.
"""

import torch
from torch import Tensor

from shd_bids.nn.backends.arguments import constant_result
from shd_bids.nn.backends.cpu.build import bf16_level, library
from shd_bids.nn.backends.cpu.convolution import backward, backward_of, forward, forward_of, operator, weights
from shd_bids.nn.backends.cpu.rows import box_sum, gradient_sums, moments, rectify, rectify_gradient
from shd_bids.nn.backends.cpu.slabs import SlabPlan, SlabwiseConv

__all__ = [
    "SlabPlan",
    "SlabwiseConv",
    "backward",
    "backward_of",
    "bf16_level",
    "box_sum",
    "forward",
    "forward_of",
    "gradient_sums",
    "library",
    "moments",
    "operator",
    "rectify",
    "rectify_gradient",
    "suits",
    "weights",
]


def suits(*tensors: Tensor) -> bool:
    """Whether the kernel can take these tensors: float32 on the CPU, and a kernel there."""
    return all(t.device.type == "cpu" and t.dtype == torch.float32 for t in tensors) and _is_there()


@constant_result
def _is_there() -> bool:
    return library() is not None
