"""Cut many rows into few at a time, so that what is computed from them fits the memory or the cache."""

from __future__ import annotations


def chunks(n: int, size: int) -> list[slice]:
    """Cut n rows into slices of ``size`` rows; the last may hold fewer."""
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]
