"""The result of a fit: fODFs and tissue amplitudes of the voxels of a mask, how well they explain the signal, and facts."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from shd_bids.response.forward import ForwardModel
from shd_bids.sphere.harmonics import l_max_of

VOXELS_PER_CHUNK = 16384
"""Bounds what is held of voxels beside their fODFs: 16 384 voxels x (768 lobe weights + 300 volumes) x 4 bytes = 70 MB."""


@dataclass(frozen=True, eq=False)
class Quality:
    """How far the predicted signal is from the measured one, in the unit of the signal.

    Attributes
    ----------
    r_squared : ndarray, shape (n,)
        Share of the variance of the signal over its volumes that the fit explains.
    residual_std : ndarray, shape (n,)
        Root mean square of the residual of each voxel over its volumes.
    explained_error : float
        Residual that noise and responses explain.
    most_misfit : float
        Above which the signal is unlike any that the method was made for.
    volume_residuals : ndarray, shape (N,)
        Root mean square of the residual of each volume over the voxels.
    shell_residuals : dict
        b-value of each shell -> median over voxels of the root mean square within the shell.
    """

    r_squared: np.ndarray
    residual_std: np.ndarray
    explained_error: float
    most_misfit: float
    volume_residuals: np.ndarray
    shell_residuals: dict[float, float]

    @property
    def misfit(self) -> np.ndarray:
        """Return the residual of each voxel in units of what noise and responses explain, (n,): about 1 where the model holds."""
        return self.residual_std / np.float32(self.explained_error)


@dataclass(frozen=True)
class FitFacts:
    """What provenance and the report say about a fit.

    Attributes
    ----------
    method : str
        Name of the method of the network.
    weights, weights_sha256 : str, str or None
        Name and SHA-256 of the weights file that the network came from; ``none`` and None without one.
    device : str
    precision : str
        Arithmetic: ``float32``, ``tf32``, ``mixed`` or ``bf16``, see :class:`shd_bids.nn.device.Compute`.
    l_max : int
        Degree of the fODF.
    noise_sigma, snr : float
        Noise level in the unit of the signal; signal-to-noise ratio of white matter at b=0.
    correction_updates : int
        Updates of the refinement by the data; 0 without refinement.
    prominence : float
        Least depth of the saddle between two fibres, as a share of the lower one, with the protocol of the scan.
    warnings : tuple of str
        In which ways the scan lies outside the training of the weights or is not explained by the fit.
    peak_gpu_mb : int or None
        None on the CPU.
    """

    method: str
    weights: str
    weights_sha256: str | None
    device: str
    precision: str
    l_max: int
    noise_sigma: float
    snr: float
    correction_updates: int
    prominence: float
    warnings: tuple[str, ...]
    peak_gpu_mb: int | None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-safe values by name, without the memory of a GPU where there is none."""
        values = asdict(self) | {"warnings": list(self.warnings)}
        return {name: value for name, value in values.items() if name != "peak_gpu_mb" or value is not None}


@dataclass(frozen=True, eq=False)
class FOD:
    r"""fODFs and amplitudes of the isotropic tissues in n voxels, as SH coefficients (MRtrix3 basis, world axes).

    Attributes
    ----------
    wm : ndarray, shape (n, C), float32
        A voxel of pure white matter has :math:`c_{00} = 1/\sqrt{4\pi}`.
    gm, csf : ndarray, shape (n,), float32
        Degree 0; zero where the tissue was not fitted.
    quality, facts : Quality and FitFacts, or None
        Of the whole fit; None on the way to it.
    direction_errors : ndarray, shape (3, W), or None
        Of the whole fit, see :func:`shd_bids.fod.precision.direction_precision`.
    """

    wm: np.ndarray
    gm: np.ndarray
    csf: np.ndarray
    quality: Quality | None = None
    facts: FitFacts | None = None
    direction_errors: np.ndarray | None = None

    def __post_init__(self) -> None:
        shapes = [self.wm.shape[:1], self.gm.shape, self.csf.shape]
        if self.wm.ndim != 2 or len(set(shapes)) > 1:
            raise ValueError(
                f"wm, gm and csf have shapes {self.wm.shape}, {self.gm.shape} and {self.csf.shape}, "
                "expected (n, C), (n,) and (n,)"
            )

    def __len__(self) -> int:
        return len(self.wm)

    def __getitem__(self, part: slice | np.ndarray) -> FOD:
        """Return the FOD of some voxels."""
        return FOD(self.wm[part], self.gm[part], self.csf[part])

    def __setitem__(self, part: slice | np.ndarray, other: FOD) -> None:
        """Overwrite some voxels."""
        self.wm[part], self.gm[part], self.csf[part] = other.wm, other.gm, other.csf

    @property
    def l_max(self) -> int:
        """Degree of the fODF."""
        return l_max_of(self.wm.shape[1])

    @property
    def fractions(self) -> np.ndarray:
        """Share of WM, GM and CSF among the coefficients of degree 0, (n, 3); zero where there is nothing."""
        parts = np.stack([self.wm[:, 0], self.gm, self.csf], axis=1).clip(0)
        total = parts.sum(axis=1, keepdims=True)
        return np.where(total > 0, parts / np.maximum(total, 1e-12), 0).astype(np.float32)

    def isotropic(self, model: ForwardModel) -> np.ndarray:
        """Return the amplitudes of the isotropic tissues of a forward operator, in its order, (n, T - 1)."""
        amplitudes = [getattr(self, tissue) for tissue in model.tissues[1:]]
        return np.stack(amplitudes, axis=1) if amplitudes else np.zeros((len(self), 0), dtype=np.float32)

    def predict(self, model: ForwardModel) -> np.ndarray:
        """Return the signal (n, N) that a forward operator predicts."""
        return np.concatenate([self.wm, self.isotropic(model)], axis=1) @ model.matrix.numpy().T
