"""The signal of a phantom under a gradient table, its noise and its bias field."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from scipy.ndimage import gaussian_filter1d

from shd_bids.gradients.table import GradientTable
from shd_bids.simulation.dispersion import densities
from shd_bids.simulation.microstructure import (
    L_MAX_SIGNAL,
    TABLE_SIZE,
    Microstructure,
    Subject,
    attenuation_tables,
    isotropic_attenuation,
    kernel_moments,
)
from shd_bids.simulation.phantoms import MAX_FIBRES, Phantom
from shd_bids.simulation.tissue import Tissue
from shd_bids.sphere.harmonics import SQRT_4PI, degrees, sh_basis, sh_inverse
from shd_bids.sphere.healpix import hemisphere

_NSIDE = 16  # of the grid from which densities become coefficients
_TRUNCATE = 3.0  # of the noise filter, standard deviations


def noiseless_signal(phantom: Phantom, micro: Microstructure, gradients: GradientTable) -> np.ndarray:
    """Return the signal of each voxel and volume before noise, shape (X, Y, Z, N), float32."""
    bvalues, volume_b = np.unique(gradients.bvals, return_inverse=True)
    tables = (attenuation_tables(micro, bvalues) * micro.s0[0]).astype(np.float32)
    gm, csf = isotropic_attenuation(micro, bvalues)
    iso = phantom.gm[..., None] * (micro.s0[1] * gm)[volume_b] + phantom.csf[..., None] * (micro.s0[2] * csf)[volume_b]
    signal = iso.reshape(-1, gradients.n_volumes).astype(np.float32)
    directions = phantom.directions.reshape(-1, MAX_FIBRES, 3).astype(np.float32)
    fractions = phantom.fractions.reshape(-1, MAX_FIBRES).astype(np.float32)
    owner = phantom.bundle.reshape(-1, MAX_FIBRES)
    volumes = gradients.directions.astype(np.float32)
    for slot in range(MAX_FIBRES):
        for bundle in np.unique(owner[:, slot][owner[:, slot] >= 0]):
            rows = np.flatnonzero(owner[:, slot] == bundle)
            position = np.abs(directions[rows, slot] @ volumes.T) * (TABLE_SIZE - 1)  # (n, N)
            left = np.minimum(position.astype(np.int32), TABLE_SIZE - 2)
            table = tables[bundle][volume_b]  # (N, T)
            low = table[np.arange(len(volume_b)), left]
            high = table[np.arange(len(volume_b)), left + 1]
            signal[rows] += fractions[rows, slot, None] * (low + (position - left) * (high - low))
    return signal.reshape(*phantom.gm.shape, -1)


def add_noise(signal: np.ndarray, sigma: float, rng: np.random.Generator, *, n_coils: int = 1) -> np.ndarray:
    """Return the magnitude of the signal with complex Gaussian noise: Rician, or noncentral chi for several coils."""
    noisy = (signal + rng.normal(0, sigma, signal.shape)) ** 2 + rng.normal(0, sigma, signal.shape) ** 2
    for _ in range(n_coils - 1):
        noisy += rng.normal(0, sigma, signal.shape) ** 2 + rng.normal(0, sigma, signal.shape) ** 2
    return np.sqrt(noisy).astype(np.float32)


def bias_field(rng: np.random.Generator, shape: tuple[int, int, int], strength: float) -> np.ndarray:
    """Return a smooth multiplicative field with mean one and log-amplitude ``strength``."""
    axes = [np.linspace(-1, 1, n) for n in shape]
    x, y, z = np.meshgrid(*axes, indexing="ij")
    terms = np.stack([x, y, z, x * y, x * z, y * z, x**2, y**2, z**2])
    log_field = np.tensordot(rng.normal(size=len(terms)), terms, axes=1)
    log_field = strength * (log_field - log_field.mean()) / max(float(log_field.std()), 1e-9)
    return np.exp(log_field)


def tissue_signal(tissue: Tissue, subject: Subject, gradients: GradientTable) -> np.ndarray:
    """Return the signal of each voxel and volume of dispersed bundles before noise, shape (X, Y, Z, N), float32.

    The density of each population, of degree :data:`L_MAX_SIGNAL`, is convolved with the kernel of its bundle.
    """
    bvalues, volume_b = np.unique(gradients.bvals, return_inverse=True)
    factors = kernel_moments(subject, bvalues) * subject.s0[0]
    factors *= 4 * np.pi / (2 * np.arange(0, L_MAX_SIGNAL + 1, 2) + 1)
    gm, csf = isotropic_attenuation(subject, bvalues)
    iso = (
        tissue.gm[..., None] * (subject.s0[1] * gm)[volume_b] + tissue.csf[..., None] * (subject.s0[2] * csf)[volume_b]
    )
    signal = iso.reshape(-1, gradients.n_volumes).astype(np.float32)
    rows, owner, coefficients = _densities(tissue, subject)
    degree = degrees(L_MAX_SIGNAL) // 2
    for b, bvalue in enumerate(bvalues):
        columns = np.flatnonzero(volume_b == b)
        if bvalue <= 0:
            amount = np.full(len(columns), SQRT_4PI * subject.s0[0], dtype=np.float32)
            predicted = coefficients[:, :1] * amount
        else:
            basis = sh_basis(gradients.directions[columns], L_MAX_SIGNAL).T.astype(np.float32)
            predicted = (coefficients * factors[owner, b][:, degree].astype(np.float32)) @ basis
        np.add.at(signal, (rows[:, None] // MAX_FIBRES, columns), predicted)
    return signal.reshape(*tissue.gm.shape, -1)


def _densities(tissue: Tissue, subject: Subject) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the populations that are there, as flat numbers, their bundles, and their densities as SH coefficients, (n, C)."""
    owner = tissue.bundle.reshape(-1)
    rows = np.flatnonzero(owner >= 0)
    directions, covariance = tissue.directions.reshape(-1, 3)[rows], tissue.covariance.reshape(-1, 3, 3)[rows]
    density = densities(directions, covariance, hemisphere(_NSIDE), tissue.tails[owner[rows]])
    coefficients = density @ _to_sh().T
    amount = subject.intensity[owner[rows]] * tissue.fractions.reshape(-1)[rows] / (SQRT_4PI * coefficients[:, 0])
    return rows, owner[rows], coefficients * amount[:, None].astype(np.float32)


@lru_cache
def _to_sh() -> np.ndarray:
    return sh_inverse(hemisphere(_NSIDE), L_MAX_SIGNAL).astype(np.float32)


def correlated_noise(
    signal: np.ndarray, sigma: float, rng: np.random.Generator, *, width: float, n_coils: int
) -> np.ndarray:
    """Return the magnitude with complex noise of standard deviation ``sigma`` that is smooth over ``width`` voxels.

    Parameters
    ----------
    signal : ndarray, shape (X, Y, Z, N), float32
    sigma : float
    rng : numpy.random.Generator
    width : float
        Standard deviation of the Gaussian filter that correlates neighbours, voxels; 0 for white noise.
    n_coils : int
    """
    squares = np.zeros_like(signal)
    for component in range(2 * n_coils):
        noise = rng.standard_normal(signal.shape, dtype=np.float32)
        if width > 0:
            for axis in range(3):
                noise = gaussian_filter1d(noise, width, axis=axis, mode="wrap", truncate=_TRUNCATE)
            noise /= _filter_gain(width)
        noise *= sigma
        if component == 0:
            noise += signal
        squares += noise**2
    return np.sqrt(squares)


def _filter_gain(width: float) -> float:
    """Return the standard deviation that white noise has after the filter along three axes."""
    delta = np.zeros(65)
    delta[32] = 1.0
    return float((gaussian_filter1d(delta, width, truncate=_TRUNCATE) ** 2).sum() ** 1.5)


def misaligned(signal: np.ndarray, rng: np.random.Generator, spread: float) -> np.ndarray:
    """Return a signal (X, Y, Z, N) whose volumes are shifted by ``spread`` voxels (standard deviation), linearly interpolated."""
    result = signal.copy()
    for axis in range(3):
        shift = np.clip(spread * rng.normal(size=signal.shape[-1]), -0.9, 0.9).astype(np.float32)
        ahead = np.concatenate([np.delete(result, 0, axis), np.take(result, [-1], axis)], axis)
        behind = np.concatenate([np.take(result, [0], axis), np.delete(result, -1, axis)], axis)
        result = (1 - np.abs(shift)) * result + shift.clip(0) * ahead + (-shift).clip(0) * behind
    return result
