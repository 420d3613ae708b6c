"""The signal of a phantom under a gradient table, its noise and its bias field."""

from __future__ import annotations

import numpy as np

from shd_bids.gradients.table import GradientTable
from shd_bids.simulation.microstructure import TABLE_SIZE, Microstructure, attenuation_tables, isotropic_attenuation
from shd_bids.simulation.phantoms import MAX_FIBRES, Phantom


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
