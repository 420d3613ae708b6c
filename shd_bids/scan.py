"""One diffusion series with everything that its fit needs, as a value that checks itself."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike

from shd_bids.boxes import Box, box_around, row_numbers
from shd_bids.errors import InputError
from shd_bids.gradients.noise import estimate_noise
from shd_bids.gradients.table import GradientTable
from shd_bids.images import load_mask, load_volume, scatter
from shd_bids.response.forward import ForwardModel, forward_model
from shd_bids.response.mrtrix import read_responses
from shd_bids.response.response import Responses
from shd_bids.sphere.harmonics import SQRT_4PI


@dataclass(frozen=True, eq=False)
class Scan:
    """The signal in the n voxels of a mask, its N volumes, and the tissue responses of the subject or of a group.

    Attributes
    ----------
    voxels : ndarray, shape (n, N), float32
        Signal in any unit, in the order of the true entries of the mask.
    mask : ndarray of bool, shape (X, Y, Z)
    affine : ndarray, shape (4, 4)
        From voxels to the world, in which the gradients are given; mm.
    gradients : GradientTable
        World axes.
    responses : Responses
        In the unit of the signal; one row for each shell of the gradients.
    sigma : float
        Noise level, in the unit of the signal.
    places : ndarray of int, shape (k, 3), or None
        Voxels around which the signal is whole in a crop; None says that it is so around any voxel.

    Raises
    ------
    ValueError
        When the parts do not fit one another.
    """

    voxels: np.ndarray
    mask: np.ndarray
    affine: np.ndarray
    gradients: GradientTable
    responses: Responses
    sigma: float
    places: np.ndarray | None = None

    def __post_init__(self) -> None:
        expected = (int(self.mask.sum()), self.gradients.n_volumes)
        if self.voxels.shape != expected:
            raise ValueError(f"voxels have shape {self.voxels.shape}, mask and gradients say {expected}")
        if self.mask.ndim != 3 or np.shape(self.affine) != (4, 4):
            raise ValueError(
                f"mask has {self.mask.ndim} axes and affine shape {np.shape(self.affine)}, expected 3 and (4, 4)"
            )
        for response in self.responses.tissues:
            if len(response.coefficients) != len(self.gradients.shells):
                raise ValueError(
                    f"the {response.tissue} response has {len(response.coefficients)} rows, the gradients have "
                    f"{len(self.gradients.shells)} shells"
                )

    @classmethod
    def of_volume(
        cls, signal: np.ndarray, mask: np.ndarray, gradients: GradientTable, responses: Responses, affine: np.ndarray
    ) -> Scan:
        """Build a scan from a volume and estimate its noise; none of the signal's memory is kept.

        Parameters
        ----------
        signal : array, shape (X, Y, Z, N)
            The volumes of the gradient table, see :meth:`~shd_bids.gradients.table.GradientTable.take`.
        mask : array of bool, shape (X, Y, Z)
        gradients : GradientTable
            World axes.
        responses : Responses
            In the unit of the signal.
        affine : array, shape (4, 4)
            From voxels to world mm (RAS+).

        Raises
        ------
        GradientError
            When signal, mask and gradients do not fit one another.
        InputError
            When the mask is empty, or a value in it is not finite.
        """
        gradients.check_shapes(signal, mask)
        voxels = np.ascontiguousarray(signal[mask], dtype=np.float32)
        _require_signal(voxels)
        return cls(voxels, mask, affine, gradients, responses, estimate_noise(voxels, gradients))

    @property
    def scale(self) -> float:
        """White-matter signal at b=0."""
        return float(self.responses.wm.coefficients[0, 0]) / SQRT_4PI

    @property
    def snr(self) -> float:
        """Signal-to-noise ratio of white matter at b=0."""
        return self.scale / max(self.sigma, 1e-12)

    @cached_property
    def rows(self) -> np.ndarray:
        """Row of each voxel in :attr:`voxels`, (X, Y, Z), int64; -1 outside the mask."""
        return row_numbers(self.mask)

    def forward(self, l_max: int, *, dtype: torch.dtype = torch.float32) -> ForwardModel:
        """Return the forward operator for fODFs of degree ``l_max``."""
        return forward_model(self.gradients, self.responses, l_max=l_max, dtype=dtype)

    def select(self, volumes: ArrayLike) -> Scan:
        """Return the scan with some of its volumes (integers or booleans), which must keep a b=0."""
        rows = np.arange(self.gradients.n_volumes)[np.asarray(volumes)]
        shells = [bool(np.isin(rows, shell.indices).any()) for shell in self.gradients.shells]
        return replace(
            self,
            voxels=np.ascontiguousarray(self.voxels[:, rows]),
            gradients=self.gradients.select(rows),
            responses=self.responses.of_shells(np.flatnonzero(shells).tolist()),
        )

    def within(self, mask: np.ndarray) -> Scan:
        """Return the scan in those of its voxels that another mask (X, Y, Z) marks too; the noise level stays."""
        kept = self.mask & mask
        return replace(self, voxels=np.ascontiguousarray(self.voxels[kept[self.mask]]), mask=kept)

    def to_volume(self, values: np.ndarray) -> np.ndarray:
        """Return values (n, ...) of the voxels as a volume (X, Y, Z, ...), zero outside the mask."""
        if len(values) != len(self.voxels):
            raise ValueError(f"values of shape {values.shape}, expected one row for each of {len(self.voxels)} voxels")
        return scatter(values, self.mask)

    def crop(self, box: Box) -> Scan:
        """Return the scan in a box of its grid."""
        inside = np.zeros_like(self.mask)
        inside[box] = True
        affine = self.affine.copy()
        affine[:3, 3] += affine[:3, :3] @ [side.start for side in box]
        return replace(self.within(inside), mask=self.mask[box], affine=affine, places=None)

    def thinned(self, n_crops: int, *, side: int, seed: int) -> Scan:
        """Return the scan in crops of ``side`` voxels around ``n_crops`` random places, so that many scans fit the memory."""
        inside = np.argwhere(self.mask)
        places = inside[np.random.default_rng(seed).choice(len(inside), size=min(n_crops, len(inside)), replace=False)]
        near = np.zeros_like(self.mask)
        for place in places:
            near[box_around(place, side, self.mask.shape)] = True
        return replace(self.within(near), places=places)


def _require_signal(voxels: np.ndarray) -> None:
    """Raise `InputError` where there are no voxels (n, N), or values that are no numbers: one would spoil the noise of all."""
    if not len(voxels):
        raise InputError("the mask is empty, expected voxels in it")
    if not np.isfinite([voxels.min(), voxels.max()]).all():
        n_bad = int((~np.isfinite(voxels)).any(axis=1).sum())
        raise InputError(
            f"{n_bad} of {len(voxels)} voxels of the mask hold values that are not finite, expected numbers; leave these voxels "
            "out of the mask, or set the values to 0"
        )


def read_scan(dwi_file: Path, mask_file: Path, gradients_file: Path, response_files: Sequence[Path]) -> Scan:
    """Read one diffusion series.

    Parameters
    ----------
    dwi_file, mask_file : Path
        4-D image, and a mask on its grid.
    gradients_file : Path
        Gradient table, the JSON form of :meth:`~shd_bids.gradients.table.GradientTable.to_dict`.
    response_files : sequence of Path
        ``<tissue>.txt`` in the text form of MRtrix3; a tissue without one is not fitted.

    Raises
    ------
    InputError
        When a file is missing, damaged, or does not fit the others.
    """
    gradients = GradientTable.from_dict(json.loads(gradients_file.read_text(encoding="utf-8")))
    reference = load_volume(mask_file)
    mask = load_mask(mask_file, reference)
    return Scan.of_volume(
        gradients.take(load_volume(dwi_file).data),  # no name holds the image, so that its memory is free at once
        mask,
        gradients,
        read_responses(response_files, gradients.shell_bvalues),
        reference.affine,
    )
