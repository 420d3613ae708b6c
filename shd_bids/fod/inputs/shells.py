"""The published input: the shells of one protocol, resampled on the hemisphere.

Elaldi, Gerig and Dey (2024), NeurIPS: least squares in even harmonics of at most degree 8 for each shell.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from shd_bids.boxes import Box
from shd_bids.errors import WeightsError
from shd_bids.fod.inputs.blocks import SlabCache, map_voxels, whole_block
from shd_bids.gradients.noise import fitting_degree
from shd_bids.gradients.table import GradientTable
from shd_bids.scan import Scan
from shd_bids.sphere.harmonics import sh_basis
from shd_bids.sphere.healpix import hemisphere

_SHELL_TOLERANCE = 100.0  # s/mm2 between a shell and the one that a network of shells was trained with


@dataclass(frozen=True, eq=False)
class Shells:
    """Maps the signal of voxels to its shells on the hemisphere, the published input: one network for one protocol.

    Parameters
    ----------
    estimate : Tensor, shape (S V, N)
        Least-squares resampling of each shell, b=0 included.
    scale : float
        White-matter signal at b=0; the signal is divided by it first.
    n_shells : int
    """

    estimate: Tensor
    scale: float
    n_shells: int

    @classmethod
    def of(cls, scan: Scan, channels: tuple[str, ...], *, nside: int, dtype: torch.dtype = torch.float32) -> Shells:
        """Build the maps of a scan for a network of some shells.

        Raises
        ------
        WeightsError
            When the gradient table has other shells.
        """
        estimate = _resampled_shells(scan.gradients, channels, nside)
        return cls(torch.as_tensor(estimate, dtype=dtype), scan.scale, len(channels))

    @property
    def reach(self) -> int:
        """Voxels around one, along each axis, that its input depends on."""
        return 0

    def to(self, device: torch.device | str) -> Shells:
        """Return the same maps on another device."""
        return Shells(self.estimate.to(device), self.scale, self.n_shells)

    def __call__(
        self, signal: Tensor, inside: Tensor | None = None, box: Box | None = None, cache: SlabCache | None = None
    ) -> Tensor:
        """Map the signal of a block (X, Y, Z, N), in input units, to channels (S, x, y, z, V).

        Nothing of a block serves the next, so ``cache`` stays as it is.
        """
        inside, box = whole_block(signal, inside, box)
        block = signal.new_zeros(len(self.estimate) // self.n_shells, *inside[box].shape, self.n_shells)
        map_voxels(self._channels, [signal[box] / self.scale], inside[box], block)
        return block.permute(4, 1, 2, 3, 0)

    def _channels(self, scaled: Tensor) -> Tensor:
        return (self.estimate @ scaled.T).unflatten(0, (self.n_shells, -1)).permute(1, 2, 0)


def shell_channels(bvalues: Iterable[float]) -> tuple[str, ...]:
    """Return the names of the input channels for shells: ``b0``, ``b1000``, ..."""
    return tuple(f"b{b:.0f}" for b in bvalues)


def is_shell_channel(name: str) -> bool:
    """Whether a channel is a raw shell."""
    return name[:1] == "b" and name[1:].isdecimal()


def _resampled_shells(gradients: GradientTable, channels: tuple[str, ...], nside: int) -> np.ndarray:
    """Fit each shell with harmonics of at most degree 8, as published, and evaluate them on the hemisphere, (S V, N)."""
    wanted = np.array([float(name.removeprefix("b")) for name in channels])
    found = np.array([shell.bvalue for shell in gradients.shells])
    if len(found) != len(wanted) or np.abs(found - wanted).max() > _SHELL_TOLERANCE:
        raise WeightsError(
            f"the network is fed with the shells {wanted.astype(int).tolist()} s/mm2, found {found.round().tolist()}; use the "
            "shipped weights, which serve any protocol"
        )
    vertices = hemisphere(nside)
    estimate = np.zeros((len(channels), len(vertices), gradients.n_volumes))
    for row, shell in zip(estimate, gradients.shells, strict=True):
        if shell.bvalue == 0:
            row[:, shell.indices] = 1 / len(shell.indices)
        else:
            l_max = fitting_degree(len(shell.indices))
            fit = np.linalg.pinv(sh_basis(gradients.directions[shell.indices], l_max))
            row[:, shell.indices] = sh_basis(vertices, l_max) @ fit
    return estimate.reshape(-1, gradients.n_volumes)
