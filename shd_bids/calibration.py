"""Let the data of each voxel correct the answer of the network: first how much of each tissue there is, then its shape.

A network that was trained on simulations knows what fODFs look like; the signal knows what it is. :func:`calibrate` scales the
tissues of a voxel and keeps the shape of the fODF. :func:`correct` then solves a constrained deconvolution whose prior is
that answer, and lets left-out volumes decide how much the data may move it.
"""

from __future__ import annotations

import numpy as np
import torch

from shd_bids.conditioning import VOXELS_IN_CACHE, lobe_power
from shd_bids.gradients import GradientTable
from shd_bids.model import ForwardModel
from shd_bids.sphere.harmonics import n_coefficients, sh_basis
from shd_bids.sphere.healpix import hemisphere

MODEL_ERROR = 0.03
"""Share of the b=0 signal by which responses miss the signal of a voxel, besides noise."""

WIDTHS = (0.0, *np.logspace(-2, 3, 11))
"""Widths of the prior among which left-out volumes choose, relative to the noise; 0 keeps the answer of the network."""

VOXELS_PER_CHUNK = 16384
"""Bounds the predicted signal: 16 384 voxels x 300 volumes x 4 bytes = 20 MB."""

_SQRT_4PI = float(np.sqrt(4 * np.pi))
_AMPLITUDE_SPREAD = 0.15  # typical error of the network's tissue fractions
_AMPLITUDE_RANGE = (0.1, 10.0)  # of the scale that the data give the fODF; within (0.5, 2) real scans got too little
_DESCENT_STEPS = 30
_TOLERANCE = 1.05  # the narrowest prior wins whose error is this close to the least: a wider one costs sharpness
_SAMPLE = 4000  # voxels that decide on the width
_ROUNDS = 20  # of the constrained solution; twice as many change the predicted signal by less than the noise
_NSIDE = 8  # of the grid on which the fODF is kept from being negative: two vertices for each coefficient of degree 18


def calibrate(
    wm: np.ndarray,
    fractions: np.ndarray,
    *,
    voxels: np.ndarray,
    gradients: GradientTable,
    model: ForwardModel,
    sigma: float,
) -> tuple[np.ndarray, np.ndarray]:
    r"""Let the data of each voxel settle how much of each tissue there is; the network settles the shape of the fODF.

    The amplitude s of the network's fODF and those z of the isotropic tissues minimise

    .. math:: \frac{\|y - s\,A\hat c - Bz\|^2}{\sigma^2} + \frac{(s-1)^2}{\tau_s^2} + \frac{\|z-\hat z\|^2}{\tau^2},
              \qquad \tfrac1{10} \le s \le 10,\; z \ge 0,

    so that what the data cannot tell stays as the network said. Before and after, all amplitudes are scaled to match the
    measured b=0 exactly (method of the paper). Grey matter that is not fitted becomes an isotropic part of the fODF, as in any
    deconvolution with two tissues.

    Returns
    -------
    wm : ndarray, shape (n, C)
    isotropic : ndarray, shape (n, T - 1)
        SH coefficients of degree 0, in the order of the model.
    """
    matrix = model.matrix.numpy()
    n_wm, tissues = wm.shape[1], model.tissues[1:]
    columns = [matrix[:, n_wm + i] for i in range(len(tissues))]
    estimates = [fractions[:, ("gm", "csf").index(tissue)] / _SQRT_4PI for tissue in tissues]
    if "gm" not in tissues:
        columns.append(matrix[:, 0])
        estimates.append(fractions[:, 0] / _SQRT_4PI)
    basis, amplitudes = np.stack(columns, axis=1), np.stack(estimates, axis=1)  # (N, K), (n, K)
    b0 = gradients.b0_indices
    noise = max(sigma, MODEL_ERROR * _wm_signal(model, gradients))
    for start in range(0, len(voxels), VOXELS_PER_CHUNK):
        part = slice(start, start + VOXELS_PER_CHUNK)
        measured = voxels[part]
        shape = wm[part] @ matrix[:, :n_wm].T  # (n, N)
        first = _b0_factor(measured, shape + amplitudes[part] @ basis.T, b0)
        shape *= first
        amplitudes[part] *= first
        s, z = _solve(measured / noise, shape / noise, basis / noise, amplitudes[part], mass=wm[part, :1] * first)
        second = _b0_factor(measured, s * shape + z @ basis.T, b0)
        wm[part] *= first * s * second
        amplitudes[part] = z * second
    if "gm" in tissues:
        return wm, amplitudes
    wm[:, 0] += amplitudes[:, -1]
    return wm, amplitudes[:, :-1]


def _wm_signal(model: ForwardModel, gradients: GradientTable) -> float:
    """Return the signal of pure white matter at b=0."""
    return float(model.matrix[gradients.b0_indices[0], 0]) / _SQRT_4PI


def _b0_factor(measured: np.ndarray, predicted: np.ndarray, b0: np.ndarray) -> np.ndarray:
    """Return what brings the predicted to the measured b=0 signal, (n, 1); zero where nothing is predicted."""
    found, wanted = predicted[:, b0].mean(axis=1, keepdims=True), measured[:, b0].mean(axis=1, keepdims=True)
    return np.where(found > 0, wanted / np.maximum(found, 1e-12), 0.0).astype(np.float32)


def _solve(
    measured: np.ndarray, shape: np.ndarray, basis: np.ndarray, prior: np.ndarray, *, mass: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Minimise the bounded quadratic of :func:`calibrate` by coordinate descent; return s (n, 1) and z (n, K).

    All signals are in units of the noise; ``mass`` (n, 1) is the degree-0 coefficient of the fODF, which sets how far s may
    go: an fODF that hardly fills the voxel may change by more of itself.
    """
    spread = _AMPLITUDE_SPREAD / _SQRT_4PI
    precision_s = (np.maximum(mass, spread) / spread) ** 2
    precision_z = 1 / spread**2
    shape_basis = shape @ basis  # (n, K)
    gram = basis.T @ basis
    curvature = (shape**2).sum(axis=1, keepdims=True) + precision_s
    right = (shape * measured).sum(axis=1, keepdims=True) + precision_s
    right_z = measured @ basis + precision_z * prior
    s, z = np.ones_like(mass), prior.copy()
    for _ in range(_DESCENT_STEPS):
        s = ((right - (shape_basis * z).sum(axis=1, keepdims=True)) / curvature).clip(*_AMPLITUDE_RANGE)
        for k in range(z.shape[1]):
            others = z @ gram[:, k] - z[:, k] * gram[k, k]
            rest = right_z[:, k] - s[:, 0] * shape_basis[:, k] - others
            z[:, k] = (rest / (gram[k, k] + precision_z)).clip(0)
    return s, z


def correct(
    wm: np.ndarray, isotropic: np.ndarray, *, voxels: np.ndarray, gradients: GradientTable, model: ForwardModel
) -> tuple[np.ndarray, np.ndarray, float]:
    r"""Move the coefficients towards the data as far as that predicts left-out volumes better.

    .. math:: \hat c = \arg\min_c \|y - Ac\|^2 + \tfrac1w (c - c_0)^T P^{-1} (c - c_0), \qquad
              P_{lm} = \tfrac1{4\pi} e^{-l(l+1)/(2\kappa)}, \qquad f \ge 0,\; z \ge 0

    with the answer of the network as c_0. One width w serves all voxels: the smallest of :data:`WIDTHS` at which the error of
    leaving out one weighted volume is within 5 % of the least. Such errors have a closed form, the residual of the
    unconstrained solution over one minus its leverage. The constraint is met to about a percent, by alternating directions.
    The b=0 signal is fitted as any other: matching it exactly, as :func:`calibrate` does, would hand its noise on to all shells.

    Parameters
    ----------
    wm : ndarray, shape (n, C)
        Overwritten by the result.
    isotropic : ndarray, shape (n, T - 1)
        SH coefficients of degree 0, in the order of the model; overwritten too.
    voxels : ndarray, shape (n, N)
    gradients : GradientTable
    model : ForwardModel

    Returns
    -------
    wm, isotropic : ndarray
    width : float
        0 where the answer of the network predicts best; nothing is changed then.

    References
    ----------
    Allen (1974), Technometrics 16 (the error of leaving one out); Boyd et al. (2011), Foundations and Trends in Machine Learning
    3, section 3.1.1 (alternating directions in scaled form).
    """
    scale = _wm_signal(model, gradients)
    matrix = model.matrix.double().numpy() / scale
    variances = _prior_variances(model)
    sample = slice(None, None, max(1, len(voxels) // _SAMPLE))
    width = _best_width(
        wm[sample], isotropic[sample], voxels[sample] / scale, matrix=matrix, variances=variances, gradients=gradients
    )
    if width == 0:
        return wm, isotropic, width
    solver = _Constrained(matrix, variances * width, l_max=model.l_max)
    for start in range(0, len(voxels), VOXELS_PER_CHUNK):
        part = slice(start, start + VOXELS_PER_CHUNK)
        prior = np.concatenate([wm[part], isotropic[part]], axis=1)
        moved = solver(voxels[part] / scale, prior)
        wm[part], isotropic[part] = moved[:, : wm.shape[1]], moved[:, wm.shape[1] :].clip(0)
    return wm, isotropic, width


def _prior_variances(model: ForwardModel) -> np.ndarray:
    n_isotropic = len(model.tissues) - 1
    return np.concatenate([lobe_power(model.l_max), np.ones(n_isotropic)]) / (4 * np.pi)


def _best_width(
    wm: np.ndarray,
    isotropic: np.ndarray,
    signal: np.ndarray,
    *,
    matrix: np.ndarray,
    variances: np.ndarray,
    gradients: GradientTable,
) -> float:
    """Return the smallest width whose leave-one-out error is close to the least."""
    residual = signal - np.concatenate([wm, isotropic], axis=1) @ matrix.T
    covariance = (matrix * variances) @ matrix.T
    weighted = np.setdiff1d(np.arange(len(matrix)), gradients.b0_indices)
    errors = []
    for width in WIDTHS:
        precision = np.linalg.inv(width * covariance + np.eye(len(matrix)))
        left_out = residual @ precision / np.diag(precision)
        errors.append(float((left_out[:, weighted] ** 2).mean()) if len(residual) else 0.0)
    return next(width for width, error in zip(WIDTHS, errors, strict=True) if error <= _TOLERANCE * min(errors))


class _Constrained:
    """Solve the quadratic of :func:`correct` under its constraints for many voxels at once."""

    def __init__(self, matrix: np.ndarray, variances: np.ndarray, *, l_max: int):
        n_wm, n = n_coefficients(l_max), matrix.shape[1]
        basis = sh_basis(hemisphere(_NSIDE), l_max)
        bounds = np.zeros((len(basis) + n - n_wm, n))  # what may not be negative: amplitudes, then isotropic tissues
        bounds[: len(basis), :n_wm] = basis
        bounds[len(basis) :, n_wm:] = np.eye(n - n_wm) * np.sqrt(len(basis) / (4 * np.pi))
        gram = matrix.T @ matrix
        penalty = np.trace(gram) / np.trace(bounds.T @ bounds)
        inverse = np.linalg.inv(gram + np.diag(1 / variances) + penalty * bounds.T @ bounds)
        from_bounds = penalty * bounds @ inverse
        matrices = (matrix @ inverse, inverse / variances[:, None], from_bounds, bounds.T, from_bounds @ bounds.T)
        self.from_data, self.from_prior, self.from_bounds, self.to_bounds, self.turn = (
            torch.as_tensor(m, dtype=torch.float32) for m in matrices
        )

    def __call__(self, signal: np.ndarray, prior: np.ndarray) -> np.ndarray:
        """Return the coefficients (n, C) for signals (n, N) and prior coefficients (n, C)."""
        result = np.empty_like(prior)
        for first in range(0, len(signal), VOXELS_IN_CACHE):
            part = slice(first, first + VOXELS_IN_CACHE)
            known = torch.as_tensor(prior[part], dtype=torch.float32)
            free = torch.as_tensor(signal[part], dtype=torch.float32) @ self.from_data + known @ self.from_prior
            # The positive part of the total is the bounded copy, the negative one the scaled multipliers.
            fixed, size = free @ self.to_bounds, (known @ self.to_bounds).clamp_min_(0)
            total = torch.zeros_like(fixed)
            for _ in range(_ROUNDS - 1):
                total.clamp_max_(0).add_(fixed).addmm_(size, self.turn)
                torch.abs(total, out=size)
            result[part] = torch.addmm(free, size, self.from_bounds).numpy()
        return result
