"""Where a network runs, in which precision, and with how much memory."""

from __future__ import annotations

from typing import NamedTuple

import torch

from shd_bids.errors import DeviceError
from shd_bids.nn.backends.cpu import bf16_level

_SHARE_OF_FREE = 0.8  # of a GPU's memory; the rest is for its libraries and for what others start there


class Compute(NamedTuple):
    """Where a fit computes, and in which arithmetic: ``float32``, ``tf32``, ``mixed`` or ``bf16``, see `choose_precision`."""

    device: torch.device
    precision: str

    @property
    def rounds_decomposition(self) -> bool:
        """Whether products are rounded to bfloat16 where fODFs are decomposed into lobes."""
        return self.device.type == "cpu" and self.precision in ("mixed", "bf16")


def choose_compute(device: str, precision: str) -> Compute:
    """Return what the words for device and precision stand for here.

    Raises
    ------
    DeviceError
        See :func:`choose_device` and :func:`choose_precision`.
    """
    chosen = choose_device(device)
    return Compute(chosen, choose_precision(precision, chosen))


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


def choose_precision(precision: str, device: torch.device) -> str:
    """Return the arithmetic that ``auto``, ``float32``, ``tf32`` or ``bf16`` stands for on a device.

    ``auto`` is ``mixed`` on a processor that multiplies bfloat16, and float32 elsewhere. ``mixed`` rounds to bfloat16 where fODFs
    are decomposed into lobes, as what lobes do not hold of an fODF stays beside them. The network, where rounding changes the
    number of peaks, computes in float32 (measured: tests/benchmarks/precision.py). Only CUDA knows tf32: the CPU computes in
    float32.

    Raises
    ------
    DeviceError
        When bfloat16 is asked for on a processor without it.
    """
    if device.type != "cpu":
        return "float32" if precision == "auto" else precision
    if precision == "auto":
        return "float32" if bf16_level() is None else "mixed"
    if precision == "bf16" and bf16_level() is None:
        raise DeviceError(
            "precision bf16 was asked for; found a processor without AVX512-BF16 or no compiled kernel; "
            "use --precision auto or float32"
        )
    return "bf16" if precision == "bf16" else "float32"


def set_precision(compute: Compute) -> torch.dtype:
    """Return the type of the numbers between layers, and let CUDA round products for ``tf32`` alone.

    The CPU holds float32 and rounds to bfloat16 where it multiplies, see :meth:`shd_bids.nn.unet.UNet.multiply_in_bf16`.
    """
    torch.backends.cuda.matmul.allow_tf32 = compute.precision == "tf32"
    torch.backends.cudnn.allow_tf32 = compute.precision == "tf32"
    return torch.bfloat16 if compute.precision == "bf16" and compute.device.type != "cpu" else torch.float32


def usable_bytes(device: torch.device, memory_gb: float) -> int:
    """Return the memory a network may use: what is given of the host's, and on a GPU most of what is free there."""
    if device.type == "cpu":
        return int(memory_gb * 2**30)
    return int(_SHARE_OF_FREE * torch.cuda.mem_get_info(device)[0])
