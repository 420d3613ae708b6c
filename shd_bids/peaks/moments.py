r"""Widths of the lobes of even spherical functions, by the second moments of what exceeds a tenth of the height of each.

.. math:: w(v) = \max\left(\frac{f(v)}{h} - 0.1,\, 0\right)

weighs the directions v of a lobe of height h. Ripples of a lobe that is flat on top hardly matter, as they do for the curvature
at its maximum, and neither does what lies beside the lobe.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from shd_bids.peaks.widths import NARROWEST, WIDEST

_WITHIN = math.cos(math.radians(50.0))  # of the axis of a lobe lies all that counts of it
_LEVEL = 0.1  # of the height of a lobe, above which it counts
_VARIANCE_SHARE = 0.6042  # of the variance of a Gaussian along one axis of a plane, in its part above that level


@dataclass(frozen=True, eq=False)
class _Above:
    """What of m lobes is above the level: points (p, 3) towards their axes, their weights (p,), and whose each is, (p,)."""

    points: torch.Tensor
    weights: torch.Tensor
    owner: torch.Tensor

    def sums(self, values: torch.Tensor, n: int) -> torch.Tensor:
        """Return the weighted sums (m, ...) over each lobe of values (p, ...)."""
        weighted = values * self.weights.reshape(-1, *[1] * (values.ndim - 1))
        return values.new_zeros(n, *values.shape[1:]).index_add_(0, self.owner, weighted)


def lobe_deviations(
    samples: torch.Tensor, axes: torch.Tensor, directions: torch.Tensor, heights: torch.Tensor
) -> torch.Tensor:
    r"""Return the standard deviations of lobes along the plane in which they are widest and across it, degrees.

    .. math:: \sigma_i^2 = \frac{1}{0.604} \frac{\sum_v w(v)\, x_i(v)^2}{\sum_v w(v)}

    with the offsets x of v from the mean direction, as angles in the tangent plane; 0.604 makes it the variance of a Gaussian.

    Parameters
    ----------
    samples : (V, n) tensor
        Functions of voxels on a grid, above their isotropic part.
    axes : (V, 3) tensor
        The grid.
    directions : (n, K, 3) tensor
        Axes of the lobes of each voxel; each owns what is nearest to it.
    heights : (n, K) tensor
        Of the lobes, above the isotropic part; zero where there is none.

    Returns
    -------
    (m, 2) tensor
        Of the lobes that are there, in the order of ``heights.nonzero()``; between `NARROWEST` and `WIDEST`.
    """
    voxel, slot = (heights > 0).nonzero(as_tuple=True)
    part = _above_level(samples, axes, directions, heights, voxel, slot)
    n = len(voxel)
    total = part.sums(torch.ones_like(part.weights), n).clamp_min(1e-12)
    centre = part.sums(part.points, n)
    centre = torch.where(centre.any(dim=1, keepdim=True), centre, directions[voxel, slot])
    centre = torch.nn.functional.normalize(centre, dim=1)
    first, other = (tangent[part.owner] for tangent in _tangents(centre))
    cosine = (part.points * centre[part.owner]).sum(dim=1).clamp(-1, 1 - 1e-6)
    stretch = torch.arccos(cosine) / (1 - cosine**2).sqrt().clamp_min(1e-6)  # of the plane, for offsets to be angles
    x, y = (stretch * (part.points * tangent).sum(dim=1) for tangent in (first, other))
    xx, yy, xy = (part.sums(product, n) / total for product in (x * x, y * y, x * y))
    mean, radius = (xx + yy) / 2, torch.hypot((xx - yy) / 2, xy)
    variance = torch.stack([mean + radius, mean - radius], dim=1).clamp_min(0) / _VARIANCE_SHARE
    return torch.rad2deg(variance.sqrt()).clamp(NARROWEST, WIDEST)


def _above_level(
    samples: torch.Tensor,
    axes: torch.Tensor,
    directions: torch.Tensor,
    heights: torch.Tensor,
    voxel: torch.Tensor,
    slot: torch.Tensor,
) -> _Above:
    """Return what of the lobes at some voxels and slots, (m,) each, is above the level."""
    relative = samples.T[voxel] / heights[voxel, slot, None]  # (m, V)
    owner, vertex = (relative > _LEVEL).nonzero(as_tuple=True)
    points, weights = axes[vertex], relative[owner, vertex] - _LEVEL
    cosines = torch.einsum("pi,pki->pk", points, directions[voxel[owner]])
    own = cosines.gather(1, slot[owner, None])[:, 0]
    kept = (own.abs() > _WITHIN) & (own.abs() >= cosines.abs().amax(dim=1))
    return _Above(points[kept] * own[kept].sign()[:, None], weights[kept], owner[kept])


def _tangents(points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return two unit vectors (m, 3) that are orthogonal to each point (m, 3) and to each other."""
    least = torch.eye(3, dtype=points.dtype, device=points.device)[points.abs().argmin(dim=1)]
    first = torch.nn.functional.normalize(torch.linalg.cross(points, least), dim=1)
    return first, torch.linalg.cross(points, first)
