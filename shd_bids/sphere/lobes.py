"""Lobes on the sphere: how the density of a fibre is spread around its axis."""

from __future__ import annotations

import numpy as np


def lobes(directions: np.ndarray, axes: np.ndarray, sharpness: float) -> np.ndarray:
    r"""Return the lobe :math:`e^{-\kappa\sin^2}` of unit integral around each axis.

    Parameters
    ----------
    directions : ndarray, shape (V, 3)
    axes : ndarray, shape (..., 3)
    sharpness : float
        Concentration kappa.

    Returns
    -------
    ndarray, shape (..., V)
    """
    grid = np.linspace(0, 1, 20001)
    integral = 4 * np.pi * np.exp(sharpness * (grid**2 - 1)).mean()
    return np.exp(sharpness * ((axes @ directions.T) ** 2 - 1)) / integral
