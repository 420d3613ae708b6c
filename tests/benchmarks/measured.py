"""A measured volume, as every method takes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from shd_bids.gradients.table import GradientTable
from shd_bids.response.response import Responses
from shd_bids.scan import Scan


class Measured(Protocol):
    """Signal (X, Y, Z, N), mask (X, Y, Z), gradients in world axes and affine."""

    @property
    def signal(self) -> np.ndarray: ...
    @property
    def mask(self) -> np.ndarray: ...
    @property
    def gradients(self) -> GradientTable: ...
    @property
    def affine(self) -> np.ndarray: ...


@dataclass(frozen=True, eq=False)
class Series:
    """One series under its name."""

    name: str
    signal: np.ndarray
    mask: np.ndarray
    gradients: GradientTable
    affine: np.ndarray


def scan_of(measured: Measured, responses: Responses) -> Scan:
    """Return what a fit takes."""
    return Scan.of_volume(measured.signal, measured.mask, measured.gradients, responses, measured.affine)
