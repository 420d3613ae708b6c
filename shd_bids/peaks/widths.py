"""Widths and mean directions of the lobes of an even spherical function."""

import torch

from shd_bids.sphere.derivatives import SHDerivatives

WIDEST = 40.0
"""Largest standard deviation of a lobe, degrees; a flat maximum has no width of its own."""

NARROWEST = 2.0
"""Smallest standard deviation of a lobe, degrees; degree 18 holds nothing below 4."""

BROAD = 9.0
"""Standard deviation, degrees, from which a lobe is flat enough on top for its maximum to follow the noise."""

_SHIFTS = 3  # steps towards the mean; each halves the distance


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
    value, gradient, hessian = derivatives(columns, points)
    frame = torch.stack(tangent_axes(points), dim=1)  # (m, 2, 3)
    radial = (gradient * points).sum(1)  # curvature of the sphere: H = P D2f P - (n . Df) P
    tangent = frame @ hessian @ frame.transpose(1, 2)
    first, second, mixed = tangent[:, 0, 0] - radial, tangent[:, 1, 1] - radial, tangent[:, 0, 1]
    mean, radius = (first + second) / 2, torch.sqrt(((first - second) / 2) ** 2 + mixed**2)
    curvature = -torch.stack([mean + radius, mean - radius], dim=1)
    variance = value[:, None].clamp_min(0) / curvature.clamp_min(1e-12)
    return torch.rad2deg(variance.sqrt()).clamp(NARROWEST, WIDEST)


def mean_directions(
    samples: torch.Tensor, axes: torch.Tensor, points: torch.Tensor, widths: torch.Tensor
) -> torch.Tensor:
    r"""Move points from the maximum of lobes to the mean direction of what lies within one width.

    .. math:: u \leftarrow \sum_v w_v f_v v \Big/ \Big\|\dots\Big\|, \qquad w_v = e^{-(1 - (u \cdot v)^2)/2\sigma^2}

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
    lobe, precision = samples.clamp_min(0), 1 / (2 * torch.deg2rad(widths) ** 2)
    for _ in range(_SHIFTS):
        cosine = axes @ points.T  # (V, m)
        weight = torch.exp((cosine**2 - 1) * precision).mul_(lobe).mul_(cosine.sign())
        points = torch.nn.functional.normalize(weight.T @ axes, dim=1)
    return points


def tangent_axes(points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return two unit vectors (m, 3) that complete each unit vector to a right-handed frame (Duff et al. 2017)."""
    x, y, z = points.unbind(1)
    sign = torch.where(z >= 0, 1.0, -1.0)
    a = -1 / (sign + z)
    b = x * y * a
    first = torch.stack([1 + sign * x * x * a, sign * b, -sign * x], dim=1)
    second = torch.stack([b, sign + y * y * a, -y], dim=1)
    return first, second
