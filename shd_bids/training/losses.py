"""The terms of the training loss, each a function of whole-volume tensors.

`reconstruction`, `negativity`, `sparsity` and `smoothness` are those of Elaldi, Gerig and Dey 2024 (arXiv:2411.11819).
fODF amplitudes are held on the hemisphere grid, so a mean over its vertices equals the mean over the sphere. ``mask`` is 1
in the voxels that count. Shapes: amplitudes (B, X, Y, Z, V), signals (B, X, Y, Z, N), masks (B, X, Y, Z).
"""

from __future__ import annotations

import torch
from torch import Tensor

CAUCHY_SCALE = 1e-5
"""Scale sigma of the sparsity term in the published configurations."""


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Average ``values`` (..., K) over the voxels of ``mask`` (...) and the last axis."""
    return (values.mean(dim=-1) * mask).sum() / mask.sum().clamp_min(1)


def reconstruction(predicted: Tensor, measured: Tensor, mask: Tensor) -> Tensor:
    r"""Penalise the misfit of the signal: :math:`\langle(\hat S - S)^2\rangle`."""
    return masked_mean((predicted - measured) ** 2, mask)


def negativity(amplitudes: Tensor, mask: Tensor) -> Tensor:
    r"""Penalise negative amplitudes: :math:`\langle\min(f, 0)^2\rangle`."""
    return masked_mean(amplitudes.clamp_max(0) ** 2, mask)


def sparsity(amplitudes: Tensor, mask: Tensor, *, scale: float = CAUCHY_SCALE) -> Tensor:
    r"""Favour few directions by the Cauchy prior: :math:`\langle 2\ln(1 + f^2/(2\sigma))\rangle`."""
    return masked_mean(2 * torch.log1p(amplitudes**2 / (2 * scale)), mask)


def smoothness(amplitudes: Tensor, mask: Tensor, *, squared: bool = True) -> Tensor:
    r"""Penalise change of the shape of the fODF between neighbours (the "TV" of SHD-TV).

    .. math:: \frac16 \sum_{e} \langle |\hat f(x) - \hat f(x+e)|^p \rangle, \qquad
              \hat f = f / \|f\|_2

    over the six neighbours of each voxel, both in the mask, with the norm over the whole sphere. ``squared`` gives the
    published p = 2; otherwise the true total variation, the norm over the sphere of each difference without the square.

    Parameters
    ----------
    amplitudes : Tensor, shape (B, X, Y, Z, V)
    mask : Tensor, shape (B, X, Y, Z)
    squared : bool
    """
    norm = 2**0.5 * amplitudes.norm(dim=-1, keepdim=True)  # over both halves of the sphere
    unit = amplitudes / norm.clamp_min(1e-6)
    total = amplitudes.new_zeros(())
    for axis, pair in enumerate(_neighbours(mask), 1):
        n = mask.shape[axis] - 1
        change = ((unit.narrow(axis, 0, n) - unit.narrow(axis, 1, n)) ** 2).mean(dim=-1)
        total = total + ((change if squared else (change + 1e-8).sqrt()) * pair).sum()
    return total / neighbour_count(mask).clamp_min(1)


def neighbour_count(mask: Tensor) -> Tensor:
    """Count the pairs of neighbours, both in the mask, over which :func:`smoothness` averages."""
    return torch.stack([pair.sum() for pair in _neighbours(mask)]).sum()


def _neighbours(mask: Tensor) -> list[Tensor]:
    """Mark for each axis the voxels that, like the next one, are in the mask."""
    return [mask.narrow(axis, 0, n - 1) * mask.narrow(axis, 1, n - 1) for axis, n in enumerate(mask.shape[1:], 1)]


def fibre_density_error(amplitudes: Tensor, truth: Tensor, mask: Tensor) -> Tensor:
    r"""Penalise the distance to a known fODF, relative to how much white matter the voxel holds.

    .. math:: \left\langle \frac{(f - f^*)^2}{\bar f^* + 0.1} \right\rangle

    where the bar is the mean over the sphere times :math:`4\pi`, so that voxels with few fibres still count.
    """
    mass = 4 * torch.pi * truth.mean(dim=-1, keepdim=True)
    return masked_mean((amplitudes - truth) ** 2 / (mass + 0.1), mask)


def hellinger(amplitudes: Tensor, truth: Tensor, mask: Tensor) -> Tensor:
    r"""Penalise the squared Hellinger distance of non-negative fODFs to known ones.

    .. math:: \left\langle \left(\sqrt{f + \epsilon} - \sqrt{f^* + \epsilon}\right)^2 \right\rangle

    Missing a whole fibre costs in proportion to its volume, where :func:`fibre_density_error` goes with the square, so that the
    minor fibres of a crossing count; a false lobe costs as much. :math:`\epsilon` = 0.01, a 700th of the height of a lone
    fibre, bounds the gradient.
    """
    floor = 0.01
    return masked_mean(((amplitudes + floor).sqrt() - (truth + floor).sqrt()) ** 2, mask)


def fraction_error(fractions: Tensor, truth: Tensor, mask: Tensor) -> Tensor:
    """Penalise the squared error of the isotropic tissue fractions (B, X, Y, Z, 2)."""
    return masked_mean((fractions - truth) ** 2, mask)
