"""How much of each tissue a voxel holds, by its signal."""

from __future__ import annotations

import numpy as np

from shd_bids.fod.fod import FOD
from shd_bids.fod.refinement.dictionary import LobeDictionary
from shd_bids.sphere.harmonics import SQRT_4PI

_DESCENT_STEPS = 30


def fit_amplitudes(fod: FOD, signal: np.ndarray, dictionary: LobeDictionary) -> FOD:
    r"""Let the data of each voxel settle how much of each tissue there is; the shape of the fODF stays.

    The factor s of the fODF and the amplitudes z of the isotropic tissues minimise

    .. math:: \frac{\|y - s\,A\hat c - Bz\|^2}{\sigma^2} + \frac{(s-1)^2}{\tau_s^2} + \frac{\|z-\hat z\|^2}{\tau^2},
              \qquad \tfrac1{10} \le s \le 10,\; z \ge 0,

    so that what the data cannot tell stays as the network said. Before and after, all amplitudes are scaled to match the
    measured b=0 exactly (method of the paper). Grey matter that is not fitted becomes an isotropic part of the fODF, as in any
    deconvolution with two tissues.

    Parameters
    ----------
    fod : FOD
    signal : ndarray, shape (n, N)
        Relative to the scale of the dictionary.
    dictionary : LobeDictionary
    """
    without_gm = "gm" not in dictionary.tissues
    basis, prior = dictionary.isotropic, dictionary.isotropic_of(fod)
    if without_gm:
        basis = np.concatenate([basis, dictionary.wm[:, :1]], axis=1)  # (N, K)
        prior = np.concatenate([prior, fod.gm[:, None]], axis=1)  # (n, K)
    shape = fod.wm @ dictionary.wm.T  # (n, N)
    first = _b0_factor(signal, shape + prior @ basis.T, dictionary.b0)
    shape *= first
    amount = first * fod.wm[:, :1].clip(0)
    unit = dictionary.noise
    s, z = _solve(signal / unit, shape / unit, basis / unit, first * prior, amount=amount, dictionary=dictionary)
    second = _b0_factor(signal, s * shape + z @ basis.T, dictionary.b0)
    wm, z = fod.wm * (first * s * second), z * second
    if without_gm:
        wm[:, 0] += z[:, -1]
    return dictionary.with_isotropic(wm, z)


def _b0_factor(measured: np.ndarray, predicted: np.ndarray, b0: np.ndarray) -> np.ndarray:
    """Return what brings the predicted to the measured b=0 signal, (n, 1); zero where nothing is predicted."""
    found, wanted = predicted[:, b0].mean(axis=1, keepdims=True), measured[:, b0].mean(axis=1, keepdims=True)
    return np.where(found > 0, wanted / np.maximum(found, 1e-12), 0.0).astype(np.float32)


def _solve(
    measured: np.ndarray,
    shape: np.ndarray,
    basis: np.ndarray,
    prior: np.ndarray,
    *,
    amount: np.ndarray,
    dictionary: LobeDictionary,
) -> tuple[np.ndarray, np.ndarray]:
    """Minimise the bounded quadratic of :func:`fit_amplitudes` by coordinate descent; return s (n, 1) and z (n, K).

    All signals are in units of the noise; ``amount`` (n, 1) is the degree-0 coefficient of the fODF, which sets how far s may
    go: an fODF that hardly fills the voxel may change by more of itself.
    """
    error = dictionary.config.amplitude_error / SQRT_4PI
    precision_s = (np.maximum(amount, error) / error) ** 2
    precision_z = 1 / error**2
    shape_basis = shape @ basis  # (n, K)
    gram = basis.T @ basis
    curvature = (shape**2).sum(axis=1, keepdims=True) + precision_s
    right = (shape * measured).sum(axis=1, keepdims=True) + precision_s
    right_z = measured @ basis + precision_z * prior
    s, z = np.ones_like(amount), prior.copy()
    for _ in range(_DESCENT_STEPS):
        s = ((right - (shape_basis * z).sum(axis=1, keepdims=True)) / curvature).clip(
            *dictionary.config.amplitude_range
        )
        for k in range(z.shape[1]):
            others = z @ gram[:, k] - z[:, k] * gram[k, k]
            rest = right_z[:, k] - s[:, 0] * shape_basis[:, k] - others
            z[:, k] = (rest / (gram[k, k] + precision_z)).clip(0)
    return s, z
