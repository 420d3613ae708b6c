"""A dictionary of lobes along many axes, in which fODFs are taken apart and what they predict is linear."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
from torch import Tensor

from shd_bids.fod.config import RefinementConfig
from shd_bids.fod.fod import FOD
from shd_bids.scan import Scan
from shd_bids.solvers import ISRA, low_rank
from shd_bids.sphere.harmonics import SQRT_4PI, l_max_of, sh_basis, sh_inverse
from shd_bids.sphere.healpix import hemisphere
from shd_bids.sphere.lobes import lobes
from shd_bids.sphere.spiral import spiral

_NSIDE = 8  # of the grid on which lobes are expanded in harmonics: two vertices for each coefficient of degree 18
_RIPPLE_MARGIN = 2.0  # times what keeps lobes from predicting less than nothing of one another
_LEAST_AMPLITUDE = 1e-6


@dataclass(frozen=True, eq=False)
class LobeDictionary:
    r"""Lobes :math:`e^{-\kappa\sin^2}` of unit integral along fixed axes, and the signal that a scan would show of each.

    Signals are relative to that of white matter at b=0.

    Attributes
    ----------
    axes : ndarray, shape (A, 3)
        Unit vectors.
    lobes : ndarray, shape (A, C), float32
        SH coefficients of a unit lobe along each axis.
    wm : ndarray, shape (N, C), float32
        Signal of fODFs, of unit coefficients.
    isotropic : ndarray, shape (N, T - 1), float32
        Signal of the fitted isotropic tissues, of unit coefficients.
    b0 : ndarray of int
        Volumes without weighting.
    tissues : tuple of str
        The fitted isotropic ones.
    scale : float
        White-matter signal at b=0, by which signals are divided.
    noise : float
        Noise and model error, relative to the scale.
    config : RefinementConfig
    rounds : bool
        Whether products that decompose fODFs are in bfloat16.
    """

    axes: np.ndarray
    lobes: np.ndarray
    wm: np.ndarray
    isotropic: np.ndarray
    b0: np.ndarray
    tissues: tuple[str, ...]
    scale: float
    noise: float
    config: RefinementConfig
    rounds: bool = False

    @classmethod
    def of(cls, scan: Scan, config: RefinementConfig, *, l_max: int, rounds: bool = False) -> LobeDictionary:
        """Build the dictionary of a scan for fODFs of degree ``l_max``."""
        lobe = _lobes(config.n_axes, config.kappa, l_max)
        model = scan.forward(l_max)
        matrix = model.matrix.double().numpy()  # rounded to single precision, and so is its scale
        scale = float(matrix[scan.gradients.b0_indices[0], 0]) / SQRT_4PI
        wm, isotropic = np.split(matrix / scale, [lobe.shape[1]], axis=1)
        return cls(
            axes=spiral(config.n_axes),
            lobes=lobe.astype(np.float32),
            wm=wm.astype(np.float32),
            isotropic=isotropic.astype(np.float32),
            b0=scan.gradients.b0_indices,
            tissues=model.tissues[1:],
            scale=scale,
            noise=max(scan.sigma / scale, config.model_error),
            config=config,
            rounds=rounds,
        )

    @cached_property
    def kernel(self) -> np.ndarray:
        """Signal of unit lobes, then of the isotropic tissues, (N, A + T - 1)."""
        return np.concatenate([self.wm.astype(np.float64) @ self.lobes.T.astype(np.float64), self.isotropic], axis=1)

    def decompose(self, wm: np.ndarray) -> Tensor:
        r"""Return the weights (n, A) of lobes that add up to fODFs (n, C), as far as lobes can.

        The weights f come from ISRA updates

        .. math:: f \leftarrow f\,\frac{B^T W c}{B^T W B f},

        with the coefficients c of the fODF, those of the lobes, B, and weights W of the degrees, see :func:`_matching`.
        """
        coefficients = torch.as_tensor(wm, dtype=torch.float32)
        n_axes, l_max = len(self.axes), l_max_of(wm.shape[1])
        amplitudes = (coefficients @ _amplitude_basis(n_axes, l_max)).clamp_min_(_LEAST_AMPLITUDE)
        largest = amplitudes.amax(dim=1, keepdim=True)
        start = (amplitudes - self.config.small_lobe * largest).clamp_min_(_LEAST_AMPLITUDE)
        dtype = torch.bfloat16 if self.rounds else torch.float32
        of_degrees, isra = _matching(n_axes, self.config.kappa, l_max, dtype)
        n_updates = self.config.decomposition_updates
        weights = isra(start, of_degrees * coefficients, n_updates=n_updates, momentum=True)
        total = weights.sum(dim=1, keepdim=True).clamp_min_(_LEAST_AMPLITUDE)
        return weights * (SQRT_4PI * coefficients[:, :1].clamp_min(0) / total)

    def predict(self, fod: FOD) -> np.ndarray:
        """Return the signal (n, N) of fODFs and the fitted isotropic tissues, relative to the scale."""
        return fod.wm @ self.wm.T + self.isotropic_of(fod) @ self.isotropic.T

    def isotropic_of(self, fod: FOD) -> np.ndarray:
        """Return the amplitudes of the fitted isotropic tissues, (n, T - 1)."""
        amplitudes = [getattr(fod, tissue) for tissue in self.tissues]
        return np.stack(amplitudes, axis=1) if amplitudes else np.zeros((len(fod), 0), dtype=np.float32)

    def with_isotropic(self, wm: np.ndarray, amplitudes: np.ndarray) -> FOD:
        """Return fODFs (n, C) with the amplitudes (n, T - 1) of the fitted isotropic tissues; others are zero."""
        found = {"gm": np.zeros(len(wm), dtype=np.float32), "csf": np.zeros(len(wm), dtype=np.float32)}
        return FOD(wm, **found | {tissue: amplitudes[:, k] for k, tissue in enumerate(self.tissues)})

    def signal_of(self, scan: Scan, part: slice) -> np.ndarray:
        """Return the signal of some voxels relative to the scale, (n, N), float32."""
        return (scan.voxels[part] / self.scale).astype(np.float32)


@lru_cache
def _amplitude_basis(n_axes: int, l_max: int) -> Tensor:
    """Return what maps coefficients to amplitudes along the axes, (C, A)."""
    return torch.as_tensor(sh_basis(spiral(n_axes), l_max).T, dtype=torch.float32).contiguous()


@lru_cache
def _lobes(n_axes: int, kappa: float, l_max: int) -> np.ndarray:
    """Return the coefficients of a unit lobe along each axis, (A, C)."""
    grid = hemisphere(_NSIDE)
    lobe = lobes(grid, spiral(n_axes), kappa) @ sh_inverse(grid, l_max).T
    return lobe / (SQRT_4PI * lobe[:, :1])


@lru_cache
def _matching(n_axes: int, kappa: float, l_max: int, dtype: torch.dtype) -> tuple[Tensor, ISRA]:
    """Return the weights (C,) of coefficients, and what finds lobe weights that match coefficients so weighted.

    Multiplicative updates need lobes that do not predict less than nothing of one another. Cut at a degree they do, by their
    ripples, and weights would grow without bound where they do. So the coefficient of degree 0, the same for all lobes, weighs
    more.
    """
    kernel = _lobes(n_axes, kappa, l_max)
    lack = max(0.0, -float((kernel @ kernel.T).min()))
    weights = np.ones(kernel.shape[1])
    weights[0] = np.sqrt(1 + _RIPPLE_MARGIN * lack / kernel[0, 0] ** 2)
    return torch.as_tensor(weights, dtype=torch.float32), ISRA.build(low_rank((weights * kernel).T), dtype=dtype)
