"""Processes of a data-parallel training, and means over them, so that it computes what one process would on all crops.

A process alone, which is the usual case, gets back what it gave. All processes have to call these functions in the same order.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from uuid import uuid4

import torch
from torch import Tensor, distributed

from shd_bids.errors import DeviceError, ShdError
from shd_bids.nn.device import choose_device


def run_together(function: Callable[..., Any], arguments: Mapping[str, Any], *, n_processes: int, device: str) -> Any:
    """Call ``function(**arguments, device=...)`` in processes of one group, and return what the first of them returns.

    It is what ``torchrun --standalone`` does with a command. A process alone is this one.

    Parameters
    ----------
    function : callable
        Defined at the top level of an importable module.
    arguments : mapping
        Picklable.
    n_processes : int
    device : str
        As of :func:`shd_bids.nn.device.choose_device`. On CUDA each process takes a GPU of its own, from this one on.

    Raises
    ------
    DeviceError
        When there are fewer GPUs than processes.
    ShdError
        Whatever the function raised of them.
    """
    first = choose_device(device)
    if n_processes == 1:
        return function(**arguments, device=first)
    left = torch.cuda.device_count() - (first.index or 0)
    if first.type == "cuda" and left < n_processes:
        raise DeviceError(
            f"found {left} CUDA devices from {first} on, expected one for each of {n_processes} processes"
        )
    # Here, as it takes a second to import and one process does without it.
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    rendezvous = {"run_id": str(uuid4()), "rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0"}
    config = LaunchConfig(min_nodes=1, max_nodes=1, nproc_per_node=n_processes, max_restarts=0, **rendezvous)
    answer = elastic_launch(config, _join)(function, dict(arguments), first)[0]
    if isinstance(answer, ShdError):
        raise answer
    return answer


def _join(function: Callable[..., Any], arguments: dict[str, Any], first: torch.device) -> Any:
    """Call the function as a member of the group, and return its result, or an error of ours, in the first process."""
    number, count = int(os.environ["LOCAL_RANK"]), int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(max(1, torch.get_num_threads() // count))
    device = first
    if first.type == "cuda":
        device = torch.device("cuda", (first.index or 0) + number)
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if first.type == "cuda" else "gloo")
    try:
        answer = function(**arguments, device=device)
    except ShdError as error:  # all processes meet it, and it is told in one line
        answer = error
    distributed.destroy_process_group()
    return answer if number == 0 else None


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
