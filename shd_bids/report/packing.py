"""Arrays as text that a browser unpacks: quantised, compressed, base64."""

import base64
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

KINDS = frozenset({"uint8", "int8", "int16", "uint16", "uint32"})
"""Types that the script knows."""

Packed = Mapping[str, Any]


def packed(values: np.ndarray) -> Packed:
    """Return an array of integers, first axis fastest, as ``{"type", "shape", "data"}``: zlib in base64."""
    if values.dtype.name not in KINDS:
        raise TypeError(f"type {values.dtype.name}, expected one of {', '.join(sorted(KINDS))}")
    little = values.astype(values.dtype.newbyteorder("<"), copy=False)
    data = zlib.compress(little.tobytes(order="F"), 9)
    return {"type": values.dtype.name, "shape": list(values.shape), "data": base64.b64encode(data).decode()}


def unpacked(text: Packed) -> np.ndarray:
    """Return the array of `packed`."""
    data = zlib.decompress(base64.b64decode(text["data"]))
    values = np.frombuffer(data, dtype=np.dtype(text["type"]).newbyteorder("<"))
    return values.reshape(text["shape"], order="F")


def levels(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return values as 1 to 255 between two ends, 0 where they are not finite; uint8."""
    scaled = 1 + 254 * (np.nan_to_num(values) - low) / ((high - low) or 1.0)
    return np.where(np.isfinite(values), np.clip(np.rint(scaled), 1, 255), 0).astype(np.uint8)


def steps(numbers: np.ndarray) -> Packed:
    """Return ascending whole numbers as their differences, which compress well."""
    return packed(np.diff(numbers, prepend=0).astype(np.uint32))
