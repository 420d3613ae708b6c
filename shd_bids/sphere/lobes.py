"""Lobes on the sphere: how the density of a fibre is spread around its axis."""

from __future__ import annotations

import numpy as np


def lobes(directions: np.ndarray, axes: np.ndarray, kappa: float) -> np.ndarray:
    r"""Return the lobe :math:`e^{-\kappa\sin^2}` of unit integral around each axis.

    Parameters
    ----------
    directions : ndarray, shape (V, 3)
    axes : ndarray, shape (..., 3)
    kappa : float
        Concentration.

    Returns
    -------
    ndarray, shape (..., V)
    """
    grid = np.linspace(0, 1, 20001)
    integral = 4 * np.pi * np.exp(kappa * (grid**2 - 1)).mean()
    return np.exp(kappa * ((axes @ directions.T) ** 2 - 1)) / integral
