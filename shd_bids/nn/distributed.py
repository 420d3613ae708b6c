"""Means over the processes of a data-parallel training, so that it computes what one process would on all crops.

A process alone, which is the usual case, gets back what it gave. All processes have to call these functions in the same order.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, distributed


def n_processes() -> int:
    """Return the number of processes that train together."""
    return distributed.get_world_size() if _together() else 1


def rank() -> int:
    """Return the number of this process; the first, 0, is the one that writes."""
    return distributed.get_rank() if _together() else 0


def mean(values: Tensor) -> Tensor:
    """Average a tensor over the processes."""
    if not _together():
        return values
    total = values.detach().clone()
    distributed.all_reduce(total)
    return total / n_processes()


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Replace every gradient by its mean over the processes, all in one exchange."""
    if _together():
        gradients = [p.grad for p in parameters if p.grad is not None]
        averaged = mean(torch.cat([g.flatten() for g in gradients])).split([g.numel() for g in gradients])
        for gradient, value in zip(gradients, averaged, strict=True):
            gradient.copy_(value.view_as(gradient))


def _together() -> bool:
    return distributed.is_available() and distributed.is_initialized()
