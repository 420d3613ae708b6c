"""fODFs for the tests of peaks."""

import numpy as np

from shd_bids.sphere.harmonics import degrees, n_coefficients, sh_basis


def lobes(axes: np.ndarray, weights: np.ndarray, l_max: int, width: float = 0.01) -> np.ndarray:
    """Return coefficients (n, C) of smoothed delta lobes at ``axes`` (n, k, 3) with ``weights`` (n, k)."""
    n, k = weights.shape
    basis = sh_basis(axes.reshape(-1, 3), l_max).reshape(n, k, -1)
    l = degrees(l_max)  # noqa: E741
    return np.einsum("nk,nkc->nc", weights, basis) * np.exp(-width * l * (l + 1))


def random_fods(rng: np.random.Generator, n: int, l_max: int, noise: float = 0.02) -> np.ndarray:
    """Return fODFs of one to three fibres with noise that falls off like the lobes do."""
    axes = rng.normal(size=(n, 3, 3))
    weights = rng.uniform(0.3, 1, (n, 3)) * (np.arange(3) < rng.integers(1, 4, n)[:, None])
    return (
        lobes(axes / np.linalg.norm(axes, axis=2, keepdims=True), weights, l_max)
        + noise
        * lobes(np.tile([0.0, 0, 1], (n, 1, 1)), np.ones((n, 1)), l_max).max()
        * rng.normal(size=(n, n_coefficients(l_max)))
        / 3
    )
