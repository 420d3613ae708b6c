"""Value, gradient and Hessian of even spherical functions, without a singularity at the poles."""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch

from shd_bids.sphere.harmonics import SQRT_4PI


class TangentDerivatives(NamedTuple):
    """Value and derivatives of functions along the sphere, one point each.

    Attributes
    ----------
    value : (m,) tensor
    axes : (m, 2, 3) tensor
        Orthogonal unit vectors of the tangent plane, to which the derivatives refer.
    gradient : (m, 2) tensor
    hessian : (m, 2, 2) tensor
        Symmetric.
    """

    value: torch.Tensor
    axes: torch.Tensor
    gradient: torch.Tensor
    hessian: torch.Tensor

    @property
    def eigenvalues(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the mean (m,) of both eigenvalues of the Hessian and half their difference (m,), which is not negative."""
        first, second, mixed = self.hessian[:, 0, 0], self.hessian[:, 1, 1], self.hessian[:, 0, 1]
        return (first + second) / 2, torch.sqrt(((first - second) / 2) ** 2 + mixed**2)


class SHDerivatives:
    r"""Value, gradient and Hessian of even spherical functions at one point each.

    The functions are extended from the sphere to space without a singularity at the poles,

    .. math:: F(x, y, z) = \Re \sum_m C_m(z)\, (x + iy)^m, \qquad
              C_m(z) = \sum_l (c_{l,m} - i\, c_{l,-m})\, \Pi_{lm}(z),

    with :math:`\Pi_{lm} = N_{lm}\, d^m P_l / dz^m`, whose derivative is a multiple of :math:`\Pi_{l,m+1}`.
    On the sphere F is the function itself; its derivatives along the sphere follow from those in space.

    Parameters
    ----------
    l_max : int
        Even degree of at least 2.
    device : torch.device
        Where to compute.
    """

    def __init__(self, l_max: int, device: torch.device) -> None:
        self.l_max = l_max
        tables = _legendre_tables(l_max)
        self._first, self._rise, self._fall, self._slope = (
            torch.tensor(t, dtype=torch.float32, device=device) for t in tables
        )
        self._order = torch.arange(l_max + 1, device=device, dtype=torch.float32)[:, None]

    def __call__(self, columns: torch.Tensor, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return value and derivatives of function k at point k.

        Parameters
        ----------
        columns : (C, m) float32 tensor
            Coefficients, one function a column.
        points : (m, 3) float32 tensor
            Unit vectors.

        Returns
        -------
        value : (m,) tensor
        gradient : (m, 3) tensor
            Of the extension F, in space.
        hessian : (m, 3, 3) tensor
            Of the extension F, in space.
        """
        x, y, z = points.unbind(1)
        factor, slope, bend = self._z_factors(columns, z)  # C_m and its derivatives in z: (L + 1, m) complex
        power = torch.ones_like(factor)
        power[1:] = torch.complex(x, y)
        power = power.cumprod(0)  # (x + iy)^m
        power_1 = self._order * _delay(power)  # derivatives in w = x + iy
        power_2 = self._order * _delay(power_1)
        f, f_w, f_ww = ((factor * p).sum(0) for p in (power, power_1, power_2))
        f_z, f_wz, f_zz = (slope * power).sum(0), (slope * power_1).sum(0), (bend * power).sum(0)
        gradient = torch.stack([f_w.real, -f_w.imag, f_z.real], dim=1)
        row_x = torch.stack([f_ww.real, -f_ww.imag, f_wz.real], dim=1)
        row_y = torch.stack([-f_ww.imag, -f_ww.real, -f_wz.imag], dim=1)
        row_z = torch.stack([f_wz.real, -f_wz.imag, f_zz.real], dim=1)
        return f.real, gradient, torch.stack([row_x, row_y, row_z], dim=1)

    def along_sphere(self, columns: torch.Tensor, points: torch.Tensor) -> TangentDerivatives:
        r"""Return value and derivatives of function k along the sphere at point k; arguments as of a call.

        .. math:: H = T (D^2 F) T^T - (n \cdot D F) I

        with the tangent axes in the rows of T and the curvature of the sphere in the second term.
        """
        value, gradient, hessian = self(columns, points)
        axes = torch.stack(tangent_axes(points), dim=1)  # (m, 2, 3)
        radial = (gradient * points).sum(1)[:, None, None] * torch.eye(2, device=points.device)
        bent = axes @ hessian @ axes.transpose(1, 2) - radial
        return TangentDerivatives(value, axes, (gradient[:, None] * axes).sum(2), bent)

    def _z_factors(self, columns: torch.Tensor, z: torch.Tensor) -> list[torch.Tensor]:
        """Return C_m, C_m' and C_m'', sums of coefficients times Legendre factors over l, each (L + 1, m) complex."""
        real = columns.new_zeros(3, self.l_max + 1, len(z))
        imaginary = torch.zeros_like(real)
        before = current = columns.new_zeros(self.l_max + 1, len(z))
        for l in range(self.l_max + 1):  # noqa: E741 - the degree, as in the paper
            before, current = current, (self._rise[l] * z) * current - self._fall[l] * before
            current[l] = self._first[l]
            if l % 2:
                continue
            middle = l * (l + 1) // 2  # row of order 0
            cosine, sine = columns[middle : middle + l + 1], columns[middle - l : middle].flip(0)
            for k in range(min(3, l + 1)):  # the k-th derivative in z of order m is a multiple of order m + k
                top = l + 1 - k
                factor = self._slope[l, k, :top] * current[k : l + 1] if k else current[: l + 1]
                real[k, :top].addcmul_(cosine[:top], factor)
                imaginary[k, 1:top].addcmul_(sine[: max(top - 1, 0)], factor[1:], value=-1)
        return [torch.complex(real[k], imaginary[k]) for k in range(3)]


def tangent_axes(points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return two unit vectors (m, 3) that complete each unit vector to a right-handed frame (Duff et al. 2017)."""
    x, y, z = points.unbind(1)
    sign = torch.where(z >= 0, 1.0, -1.0)
    a = -1 / (sign + z)
    b = x * y * a
    first = torch.stack([1 + sign * x * x * a, sign * b, -sign * x], dim=1)
    second = torch.stack([b, sign + y * y * a, -y], dim=1)
    return first, second


@lru_cache
def _legendre_tables(l_max: int) -> tuple[np.ndarray, ...]:
    r"""Return the recursion of the factors :math:`\Pi_{lm}` and the multiples that give their derivatives.

    .. math:: \Pi_{lm} = a_{lm} z\, \Pi_{l-1,m} - b_{lm}\, \Pi_{l-2,m}, \qquad
              \Pi_{lm}^{(k)} = s_{lkm}\, \Pi_{l,m+k}

    Returns
    -------
    first : (L + 1,) array
        The constants :math:`\Pi_{ll}`.
    rise, fall : (L + 1, L + 1, 1) arrays
        a and b by degree and order; zero where m >= l, and b zero where m > l - 2.
    slope : (L + 1, 3, L + 1, 1) array
        s by degree, k and order.
    """
    size = l_max + 1
    degree, order = np.arange(size)[:, None].astype(float), np.arange(size)[None].astype(float)
    below, two_below = order < degree, order < degree - 1
    with np.errstate(invalid="ignore", divide="ignore"):
        rise = np.where(below, np.sqrt((4 * degree**2 - 1) / (degree**2 - order**2)), 0)
        fall = np.where(two_below, rise * np.sqrt(((degree - 1) ** 2 - order**2) / (4 * (degree - 1) ** 2 - 1)), 0)
        # N_lm / N_l,m+1 of the basis: the Condon-Shortley sign, and sqrt(2) for every order but 0
        root_two = np.where(order == 0, math.sqrt(2), 1)
        ratio = -np.sqrt(np.where(below, (degree - order) * (degree + order + 1), 0)) / root_two
    slope = np.zeros((size, 3, size))
    slope[:, 0] = 1
    slope[:, 1] = ratio
    slope[:, 2, :-1] = ratio[:, :-1] * ratio[:, 1:]
    m = np.arange(1, size)
    first = np.concatenate([[1.0], math.sqrt(2) * np.cumprod(-np.sqrt((2 * m + 1) / (2 * m)))]) / SQRT_4PI
    return first, rise[..., None], fall[..., None], slope[..., None]


def _delay(power: torch.Tensor) -> torch.Tensor:
    """Return the rows shifted down by one, with zeros on top."""
    return torch.cat([torch.zeros_like(power[:1]), power[:-1]])
