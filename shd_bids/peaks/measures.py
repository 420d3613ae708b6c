"""What is read off fODFs besides directions: apparent fibre density and direction-encoded colour."""

import numpy as np
import torch

from shd_bids.boxes import chunks
from shd_bids.peaks.search import Peaks, find_peaks
from shd_bids.sphere.harmonics import SQRT_4PI, l_max_of, sh_basis
from shd_bids.sphere.healpix import hemisphere

_NEAR_LARGEST = 0.99  # of the largest: lower maxima need not be climbed


def afd_total(coefficients: np.ndarray) -> np.ndarray:
    r"""Return the total apparent fibre density of (n, C) coefficients, (n,): the integral over the sphere.

    .. math:: \int_{S^2} f(u)\,du = \sqrt{4\pi}\, c_{00}

    It is 1 in a voxel of pure white matter under MRtrix3's scale.
    """
    return SQRT_4PI * np.asarray(coefficients, dtype=np.float64)[:, 0]


def dec(coefficients: np.ndarray) -> np.ndarray:
    r"""Return the direction-encoded colour of (n, C) coefficients, (n, 3), x red, y green, z blue in world axes.

    .. math:: d = \int_{S^2} \max(f(u), 0)\, |u|\,du

    componentwise, scaled to the Euclidean length of the total apparent fibre density (zero where that is negative).
    """
    coefficients = np.asarray(coefficients, dtype=np.float32)
    axes = hemisphere(8)
    basis = sh_basis(axes, l_max_of(coefficients.shape[1])).astype(np.float32)
    weights = np.abs(axes).astype(np.float32)
    colour = np.zeros((len(coefficients), 3), dtype=np.float32)
    for part in chunks(len(coefficients)):
        colour[part] = np.maximum(coefficients[part] @ basis.T, 0) @ weights
    length = np.linalg.norm(colour, axis=1, keepdims=True)
    return colour * (np.maximum(afd_total(coefficients), 0)[:, None] / np.where(length > 0, length, 1))


def largest_peak(coefficients: np.ndarray | torch.Tensor, *, device: str | torch.device = "cpu") -> Peaks:
    """Return the largest peak of (n, C) coefficients; what is clearly lower is not searched."""
    return find_peaks(coefficients, max_peaks=1, relative_threshold=_NEAR_LARGEST, device=device)
