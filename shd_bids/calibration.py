"""Let the data of each voxel correct the answer of the network, whose lobes are narrowed first.

A network that was trained on simulations knows what fODFs look like; the signal knows what it is. :func:`sharpen` takes back
part of the width that lobes had in the training. :func:`calibrate` scales the tissues of a voxel and keeps the shape of the
fODF. :func:`correct` then goes from that answer towards the deconvolution of the voxel, and lets left-out volumes decide how
far.
"""

from __future__ import annotations

from itertools import islice

import numpy as np
import torch
from torch import Tensor

from shd_bids.chunks import chunks
from shd_bids.conditioning import lobes
from shd_bids.gradients import GradientTable
from shd_bids.model import ForwardModel
from shd_bids.sharpening import Updater, factors
from shd_bids.sphere.harmonics import l_max_of, sh_basis, sh_inverse
from shd_bids.sphere.healpix import hemisphere

MODEL_ERROR = 0.03
"""Share of the b=0 signal by which responses miss the signal of a voxel, besides noise."""

UPDATES = (0, 1, 2, 4, 8, 16, 32, 48, 64, 96, 128)
"""Numbers of updates among which left-out volumes choose; 0 keeps the answer of the network."""

VOXELS_PER_CHUNK = 16384
"""Bounds the predicted signal: 16 384 voxels x 300 volumes x 4 bytes = 20 MB."""

SHARPNESS = 80.0
"""Concentration of the lobes that stand for axes in the end; degree 18 holds narrower ones with ripples."""

_SHARPENING = 15  # updates
_SMALL_LOBE = 0.05  # of the largest amplitude: what is below does not grow
_LEAST_AMPLITUDE = 1e-6
_SQRT_4PI = float(np.sqrt(4 * np.pi))
_AMPLITUDE_SPREAD = 0.15  # typical error of the network's tissue fractions
_AMPLITUDE_RANGE = (0.1, 10.0)  # of the scale that the data give the fODF; within (0.5, 2) real scans got too little
_DESCENT_STEPS = 30
_TOLERANCE = 1.05  # the fewest updates win whose error is this close to the least: more cost sharpness
_SAMPLE = 2000  # voxels that decide on their number
_FLOOR = 1e-3  # of the largest amplitude of a voxel: what mass every axis has to grow from
_NSIDE = 8  # of the grid of axes: two for each coefficient of degree 18


def sharpen(wm: np.ndarray, *, taught: float) -> np.ndarray:
    r"""Undo part of the width that an axis has in what the network was taught.

    It learned a lobe :math:`e^{-\kappa\sin^2}` in place of each axis, so that a crossing narrower than the lobe shows as one that
    is long. Masses of the axes come from multiplicative updates with those lobes as the kernel, and stand for lobes of
    :data:`SHARPNESS` instead. The total mass of a voxel stays.

    Parameters
    ----------
    wm : ndarray, shape (n, C)
    taught : float
        Concentration kappa of the lobes taught.

    Returns
    -------
    ndarray, shape (n, C)
        A new array; ``wm`` itself where the lobes taught are no wider.
    """
    if taught >= SHARPNESS:
        return wm
    axes = hemisphere(_NSIDE)
    l_max = l_max_of(wm.shape[1])
    area = 4 * np.pi / len(axes)
    basis = torch.as_tensor(sh_basis(axes, l_max).T, dtype=torch.float32)
    narrow = torch.as_tensor(area * lobes(axes, axes, SHARPNESS) @ sh_inverse(axes, l_max).T, dtype=torch.float32)
    update = Updater.build(factors(area * lobes(axes, axes, taught)))
    result = np.empty_like(wm)
    for part in chunks(len(wm), VOXELS_PER_CHUNK):
        amplitudes = (torch.as_tensor(wm[part], dtype=torch.float32) @ basis).clamp_min_(_LEAST_AMPLITUDE)
        largest = amplitudes.amax(dim=1, keepdim=True)
        masses = (amplitudes - _SMALL_LOBE * largest).clamp_min_(_LEAST_AMPLITUDE)
        sharp = (update(masses, amplitudes, times=_SHARPENING, momentum=True) @ narrow).numpy()
        result[part] = sharp * (wm[part, :1] / np.maximum(sharp[:, :1], _LEAST_AMPLITUDE))
    return result


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
    for part in chunks(len(voxels), VOXELS_PER_CHUNK):
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
) -> tuple[np.ndarray, np.ndarray, int]:
    r"""Move the amplitudes towards the data as far as that predicts left-out volumes better.

    From the answer of the network, as masses f along the axes of a grid and of the isotropic tissues, go multiplicative updates

    .. math:: f \leftarrow f\,\frac{K^T y}{K^T K f},

    with the predicted signal K of unit masses, hastened by momentum. What the network found empty stays nearly so, and nothing
    becomes negative. One number of updates serves all voxels: the smallest of :data:`UPDATES` at which the error of a fifth of
    the directions, hidden from the updates, is within 5 % of the least. The b=0 signal is fitted as any other: matching it
    exactly, as :func:`calibrate` does, would hand its noise on to all shells.

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
    times : int
        Number of updates; 0 where the answer of the network predicts best, and nothing is changed then.
    """
    scale = _wm_signal(model, gradients)
    axes = _Axes(model, scale)
    sample = slice(None, None, max(1, len(voxels) // _SAMPLE))
    times = _best_times(axes, wm[sample], isotropic[sample], signal=voxels[sample] / scale, gradients=gradients)
    if times == 0:
        return wm, isotropic, times
    update = Updater.build(factors(axes.kernel))
    for part in chunks(len(voxels), VOXELS_PER_CHUNK):
        signal = torch.as_tensor(voxels[part] / scale, dtype=torch.float32)
        masses = update(axes.masses(wm[part], isotropic[part]), signal, times=times, momentum=True)
        wm[part], isotropic[part] = axes.coefficients(masses)
    return wm, isotropic, times


class _Axes:
    """The grid of axes: what unit masses along them predict, (N, V + T - 1), and the way from coefficients and back."""

    def __init__(self, model: ForwardModel, scale: float):
        self.basis = sh_basis(hemisphere(_NSIDE), model.l_max).astype(np.float32)  # (V, C)
        self.matrix = model.matrix.double().numpy() / scale
        wm, isotropic = np.split(self.matrix, [self.basis.shape[1]], axis=1)
        self.kernel = np.concatenate([wm @ self.basis.T.astype(np.float64), isotropic], axis=1)

    def masses(self, wm: np.ndarray, isotropic: np.ndarray) -> Tensor:
        """Sample amplitudes, so that a little mass is everywhere and can grow."""
        amplitudes = (wm @ self.basis.T).clip(0)
        amplitudes += _FLOOR * amplitudes.max(axis=1, keepdims=True, initial=0) + _LEAST_AMPLITUDE
        density = amplitudes * (4 * np.pi / len(self.basis))
        return torch.as_tensor(np.concatenate([density, isotropic.clip(_FLOOR)], axis=1), dtype=torch.float32)

    def coefficients(self, masses: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Expand masses in harmonics, so that both predict the same signal."""
        values = masses.numpy()
        return values[:, : len(self.basis)] @ self.basis, values[:, len(self.basis) :]


def _best_times(
    axes: _Axes, wm: np.ndarray, isotropic: np.ndarray, *, signal: np.ndarray, gradients: GradientTable
) -> int:
    """Return the smallest number of updates whose error on hidden directions is close to the least."""
    hidden = np.concatenate([shell.indices[2::5] for shell in gradients.shells[1:]])
    if not len(hidden) or not len(signal):
        return 0
    shown = np.setdiff1d(np.arange(gradients.n_volumes), hidden)
    update = Updater.build(factors(axes.kernel[shown]))
    known, wanted = (torch.as_tensor(signal[:, volumes], dtype=torch.float32) for volumes in (shown, hidden))
    predicting = torch.as_tensor(axes.kernel[hidden].T, dtype=torch.float32)
    answer = np.concatenate([wm, isotropic], axis=1) @ axes.matrix[hidden].T
    errors = {0: float(((answer - signal[:, hidden]) ** 2).mean())}
    steps = update.steps(axes.masses(wm, isotropic), known, momentum=True)
    for times, masses in enumerate(islice(steps, UPDATES[-1] + 1)):
        if times in UPDATES[1:]:
            errors[times] = float(((masses @ predicting - wanted) ** 2).mean())
    return next(times for times, error in errors.items() if error <= _TOLERANCE * min(errors.values()))
