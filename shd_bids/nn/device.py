"""Where a network runs, in which precision, and with how much memory."""

from __future__ import annotations

import torch

from shd_bids.errors import DeviceError

_SHARE_OF_FREE = 0.8  # of a GPU's memory; the rest is for its libraries and for what others start there


def choose_device(name: str) -> torch.device:
    """Return the device that ``auto``, ``cpu``, ``cuda`` or ``cuda:N`` stands for.

    Raises
    ------
    DeviceError
        When CUDA is asked for and absent.
    """
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    index = int(name.partition(":")[2] or 0)
    if not torch.cuda.is_available() or index >= torch.cuda.device_count():
        raise DeviceError(
            f"device {name!r} was asked for, found {torch.cuda.device_count()} CUDA devices; use --device auto or cpu"
        )
    return torch.device("cuda", index)


def describe_device(device: torch.device) -> str:
    """Return the name of a device for the record, with that of the GPU and the version of CUDA."""
    if device.type == "cpu":
        return str(device)
    return f"{device} ({torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda})"


def set_precision(precision: str) -> torch.dtype:
    """Return the type of numbers for ``float32``, ``tf32`` or ``bf16``, and let CUDA round products for the second alone."""
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    return torch.bfloat16 if precision == "bf16" else torch.float32


def usable_bytes(device: torch.device, memory_gb: float) -> int:
    """Return the memory a network may use: what is given of the host's, and on a GPU most of what is free there."""
    if device.type == "cpu":
        return int(memory_gb * 2**30)
    return int(_SHARE_OF_FREE * torch.cuda.mem_get_info(device)[0])
