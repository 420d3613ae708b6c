"""Intensities of a series on a scale that all subjects and sites share: the tissues of a voxel add up to one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import combinations_with_replacement
from typing import Any

import numpy as np

from shd_bids.fod.fod import FOD
from shd_bids.scan import Scan
from shd_bids.sphere.harmonics import SQRT_4PI

__all__ = ["Normalisation", "normalise_fod"]

BIAS_ORDER = 3
"""Of the polynomial: 20 terms, smooth enough that it cannot follow anatomy."""

FENCE = 1.5  # interquartile ranges beyond the quartiles, Tukey (1977)
ROUNDS = 15
FEWEST_PER_TERM = 10  # voxels, so that a small mask does not bend the field
LEAST_BALANCE = 0.2  # of the least over the mean: a tissue that is nearly absent says nothing of its own scale


@dataclass(frozen=True)
class Normalisation:
    """What the amplitudes of a series were divided by.

    Attributes
    ----------
    mode : str
        ``global`` or ``bias``.
    factor : float
        Geometric mean of the field over the voxels used; 1 where the intensities are already those of the responses.
    field_range : (float, float)
        1st and 99th percentile of the field over its mean; both 1 without a bias field.
    balance : dict
        Tissue -> factor by which its amplitudes were weighed in the sum, geometric mean 1.
    outlier_share : float
        Share of the voxels whose sum is too far from the field to be used.
    """

    mode: str
    factor: float
    field_range: tuple[float, float]
    balance: dict[str, float]
    outlier_share: float

    def to_dict(self) -> dict[str, Any]:
        """Return what sidecars say of it."""
        return {
            "Mode": self.mode,
            "Method": "sum of tissue amplitudes to one, in the log domain, outliers rejected",
            "Factor": self.factor,
            "FieldRange": list(self.field_range),
            "PolynomialOrder": BIAS_ORDER if self.mode == "bias" else 0,
            "TissueBalance": self.balance,
            "OutlierShare": self.outlier_share,
        }


def normalise_fod(fod: FOD, scan: Scan, mode: str) -> tuple[FOD, Normalisation | None]:
    r"""Divide the amplitudes of all tissues by a smooth positive field, so that their sum is one.

    .. math:: \log \sum_t b_t\, f_t(x) \approx g(x) = \sum_k c_k\, p_k(x)

    with amplitudes :math:`f_t` of degree 0, in units of pure tissue, and a constant (``global``) or a polynomial of third order
    (``bias``) g. The balance :math:`b_t`, geometric mean one, makes up for responses whose scales do not fit; it enters the
    estimate of g alone. In turn, g follows from least squares over the voxels used, the balance from least squares of
    :math:`\sum_t b_t f_t e^{-g} = 1`, and the voxels used are those whose residual lies within 1.5 interquartile ranges of the
    quartiles. Shapes of fODFs and tissue fractions stay.

    Parameters
    ----------
    fod : FOD
    scan : Scan
        Mask, affine, and which tissues have a response.
    mode : {"global", "bias"}

    Returns
    -------
    fod : FOD
    normalisation : Normalisation or None
        None where nothing was done, because white matter alone was fitted: its amount differs between voxels by itself.

    References
    ----------
    Raffelt et al. (2017), Proc ISMRM 25:3541; Dhollander et al. (2021), Proc ISMRM 29:2472.
    """
    tissues = [response.tissue for response in scan.responses.tissues]
    amplitudes = SQRT_4PI * np.stack([fod.wm[:, 0], *(getattr(fod, name) for name in tissues[1:])], axis=1).astype(
        float
    )
    amplitudes = np.maximum(np.nan_to_num(amplitudes), 0.0)
    basis = _polynomials(scan, BIAS_ORDER if mode == "bias" else 0)
    if len(tissues) < 2 or (amplitudes.sum(axis=1) > 0).sum() < FEWEST_PER_TERM * basis.shape[1]:
        return fod, None
    log_field, balance, used = _fit(amplitudes, basis)
    centre = log_field[used].mean()
    low, high = np.exp(np.percentile(log_field, (1, 99)) - centre)
    field = np.exp(log_field).astype(np.float32)
    normalisation = Normalisation(
        mode=mode,
        factor=float(np.exp(centre)),
        field_range=(float(low), float(high)),
        balance=dict(zip(tissues, balance.tolist(), strict=True)),
        outlier_share=float(1 - used.mean()),
    )
    errors = fod.direction_errors
    if errors is not None:
        errors = errors / np.array([[1.0], [normalisation.factor], [1.0]])  # noise counts in the unit of the fODFs
    scaled = replace(fod, wm=fod.wm / field[:, None], gm=fod.gm / field, csf=fod.csf / field, direction_errors=errors)
    return scaled, normalisation


def _fit(amplitudes: np.ndarray, basis: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the log field (n,), the balance (T,) and which voxels were used (n,)."""
    used = amplitudes.sum(axis=1) > 0
    balance = np.ones(amplitudes.shape[1])
    log_field = np.zeros(len(amplitudes))
    for _ in range(ROUNDS):
        log_sum = np.log(np.maximum(amplitudes @ balance, np.finfo(float).tiny))
        log_field = basis @ np.linalg.lstsq(basis[used], log_sum[used], rcond=None)[0]
        before, used = used, _within(log_sum - log_field, log_sum > np.log(1e-6))
        if (before == used).all():
            break
        balance = _balance(amplitudes[used] * np.exp(-log_field[used, None]))
    return log_field, balance, used


def _within(residual: np.ndarray, is_there: np.ndarray) -> np.ndarray:
    """Return which residuals (n,) lie within the fences of their quartiles; voxels without signal do not."""
    low, high = np.percentile(residual[is_there], (25, 75))
    reach = FENCE * (high - low)
    return is_there & (residual >= low - reach) & (residual <= high + reach)


def _balance(amplitudes: np.ndarray) -> np.ndarray:
    """Return the factors (T,) that bring the sums of amplitudes (n, T) nearest to one, as geometric mean one."""
    solved = np.linalg.lstsq(amplitudes, np.ones(len(amplitudes)), rcond=None)[0]
    solved = np.clip(solved, LEAST_BALANCE, 1 / LEAST_BALANCE)
    return solved / np.exp(np.log(solved).mean())


def _polynomials(scan: Scan, order: int) -> np.ndarray:
    """Return the monomials of the place to an order (n, K), places in the world scaled to [-1, 1]."""
    places = np.argwhere(scan.mask) @ scan.affine[:3, :3].T
    low, high = places.min(axis=0), places.max(axis=0)
    places = (2 * places - low - high) / np.maximum(high - low, 1e-6)
    terms = [term for degree in range(order + 1) for term in combinations_with_replacement(range(3), degree)]
    return np.stack([places[:, list(term)].prod(axis=1) for term in terms], axis=1)
