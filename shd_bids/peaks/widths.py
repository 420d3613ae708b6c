"""Widths and mean directions of the lobes of an even spherical function."""

import torch

from shd_bids.sphere.derivatives import SHDerivatives

WIDEST = 40.0
"""Largest standard deviation of a lobe, degrees; a flat maximum has no width of its own."""

NARROWEST = 2.0
"""Smallest standard deviation of a lobe, degrees; degree 18 holds nothing below 4."""

BROAD = 9.0
"""Standard deviation, degrees, from which a lobe is flat enough on top for its maximum to follow the noise."""

_SHIFTS = 3  # steps towards the mean
_REACH = 1.5  # of the width of a lobe, over which its mean is taken: less follows its ripples, more what lies beside it


def lobe_widths(derivatives: SHDerivatives, columns: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    r"""Return the standard deviations of lobes by their curvature, degrees, along the flattest direction and across it.

    .. math:: \sigma_i^2 = -f / \lambda_i

    with the eigenvalues :math:`\lambda_i` of the Hessian of f on the sphere, as of :math:`e^{-x^2/2\sigma^2}` at its maximum.

    Parameters
    ----------
    derivatives : SHDerivatives
    columns : (C, m) tensor
        Coefficients, one function a column.
    points : (m, 3) tensor
        Unit vectors, at or near the maximum of each lobe.

    Returns
    -------
    (m, 2) tensor
        Between `NARROWEST` and `WIDEST`.
    """
    there = derivatives.along_sphere(columns, points)
    mean, radius = there.eigenvalues
    curvature = -torch.stack([mean + radius, mean - radius], dim=1)
    variance = there.value[:, None].clamp_min(0) / curvature.clamp_min(1e-12)
    return torch.rad2deg(variance.sqrt()).clamp(NARROWEST, WIDEST)


def mean_directions(
    samples: torch.Tensor, axes: torch.Tensor, points: torch.Tensor, widths: torch.Tensor
) -> torch.Tensor:
    r"""Move points from the maximum of lobes to the mean direction of what lies within a reach of their widths.

    .. math::

        u \leftarrow \sum_v w_v f_v v \Big/ \Big\|\dots\Big\|, \qquad w_v = e^{-(1 - (u \cdot v)^2)/2(r\sigma)^2}, \qquad r = 1.5

    The maximum of a lobe that is flat on top follows the noise; its mean does not.

    Parameters
    ----------
    samples : (V, m) tensor
        The lobe of each point on a grid, zero where it is that of another.
    axes : (V, 3) tensor
        The grid.
    points : (m, 3) tensor
    widths : (m,) tensor
        Standard deviations, degrees.

    References
    ----------
    Comaniciu and Meer (2002), IEEE Trans. PAMI 24, equation 17 (mean shift).
    """
    lobe, precision = samples.clamp_min(0), 1 / (2 * torch.deg2rad(_REACH * widths) ** 2)
    for _ in range(_SHIFTS):
        cosine = axes @ points.T  # (V, m)
        weight = torch.exp((cosine**2 - 1) * precision).mul_(lobe).mul_(cosine.sign())
        points = torch.nn.functional.normalize(weight.T @ axes, dim=1)
    return points
