"""Measure how far the fibres of a voxel spread within a plane, from its signal and that of its neighbours.

Two fibres that cross at 20 degrees look to one noisy voxel at b = 1000 like one fibre: the signal differs by less than its
noise. What differs is linear in the second moments of their directions, though, so that estimates of many voxels can be
averaged before anything is decided, which no decision voxel by voxel makes up for.
"""

from __future__ import annotations

from itertools import product

import numpy as np
import torch
from numpy.polynomial.legendre import leg2poly
from scipy.ndimage import gaussian_filter1d
from torch import Tensor

from shd_bids.boxes import chunks, row_numbers
from shd_bids.fod.fod import FOD
from shd_bids.fod.inputs.averages import voxel_steps
from shd_bids.gradients.table import GradientTable
from shd_bids.response.forward import ForwardModel
from shd_bids.scan import Scan
from shd_bids.sphere.harmonics import degrees, n_coefficients, sh_basis, sh_inverse
from shd_bids.sphere.healpix import hemisphere

HALF_ANGLE = np.deg2rad(10)
"""Between the middle and each of two equal fibres whose elongation is 1."""

_ONE_LOBE = 0.85  # of the mass: least share of the largest second moment where fibres of one lobe are all there is
_LEAST_MASS = 0.1  # relative to pure white matter
_SCALES = ((3.0, 1.0), (3.5, 3.5), (5.0, 5.0))  # of averages: standard deviations along the fibre and across it, voxels
_REACH = 7  # voxels
_SAME_FIBRE = np.deg2rad(5)  # standard deviation of the directions that count as that of the same fibre
_UNSURE = 1.4  # typical standard error of one voxel below which the network has seen as much, and in its context
_SAMPLE = 2000  # voxels that decide on that
_ENOUGH = 0.18  # standard error at which no larger scale is tried
_LARGEST_ERROR = 0.25  # at which nothing is said
_SIGNIFICANT = 3.5  # standard errors
_RANGE = (0.5, 2.0)  # two fibres 14 and 28 degrees apart; wider crossings leave more than one lobe
_NEIGHBOURHOOD = 2.0  # standard deviation, voxels, of where other fibres are looked for
_MOST_AROUND = 0.6  # of it: elongation of all that lies around; a small share of that in the voxel would look the same
_RIDGE = 1e-6  # of the normal equations: fewer volumes than unknowns leave a large error
_VOXELS_PER_CHUNK = 4096


def measure_elongation(fod: FOD, scan: Scan, *, scale: float, noise: float) -> np.ndarray:
    r"""Give the direction and standard deviation by which one lobe is longer than wide, where the data are sure of it.

    Around the main axis u of a voxel, with :math:`s_e` the signal of two equal fibres 10 degrees to either side of it towards
    e, the signal is fitted with that of the axis, of what spreads evenly, of tilts, of the isotropic tissues, and

    .. math:: a\,\tfrac12(s_{e_2} - s_{e_3}) + b\,\tfrac12(s_{e_2 + e_3} - s_{e_2 - e_3}).

    The elongation :math:`E = a(e_2 e_2^T - e_3 e_3^T) + b(e_2 e_3^T + e_3 e_2^T)`, relative to the white matter of the fODF, is
    averaged over neighbours with the same direction, as few as leave a small enough error. Its largest eigenvalue A belongs to
    fibres of standard deviation :math:`\sin\sigma = \sqrt A \sin 10°`. It counts where A exceeds 3.5 standard errors and lies
    in a range, where the voxel has one lobe, and where A is well above that of all that lies around, a small share of
    which would look the same; and in no scan of which a typical voxel alone can tell.

    Parameters
    ----------
    fod : FOD
    scan : Scan
    scale : float
        White-matter signal at b=0.
    noise : float
        Relative to the scale.

    Returns
    -------
    ndarray, shape (n, 3)
        World axes; its length is the standard deviation in radians, zero where nothing counts.
    """
    wm = fod.wm
    spread = np.zeros((len(wm), 3))
    moments = _second_moments(wm)
    amount = np.trace(moments, axis1=1, axis2=2)
    values, vectors = np.linalg.eigh(moments)
    main = vectors[:, :, 2]
    lone = np.flatnonzero((values[:, 2] > _ONE_LOBE * amount) & (amount > _LEAST_MASS))
    if not len(lone):
        return spread
    fit = _Fit(scan.gradients, scan.forward(fod.l_max), scale)

    def elongated(here: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return fit(scan.voxels[here] / scale, main[here], amount[here])

    if noise / np.sqrt(np.median(elongated(lone[:: max(1, len(lone) // _SAMPLE)])[1])) < _UNSURE:
        return spread
    elongation, precision = np.zeros((len(wm), 3, 3), dtype=np.float32), np.zeros(len(wm), dtype=np.float32)
    for part in chunks(len(lone), _VOXELS_PER_CHUNK):
        here = lone[part]
        elongation[here], precision[here] = elongated(here)
    around = _around(moments, main, scan.mask)
    clear = lone[around[lone] < _MOST_AROUND * _RANGE[1]]
    neighbours = _Neighbours(scan.mask, scan.affine, main)
    for part in chunks(len(clear), _VOXELS_PER_CHUNK // 2):
        here = clear[part]
        mean, error = neighbours.average(here, elongation, precision / noise**2)
        size, direction = _largest_across(mean, main[here])
        sure = (error < _LARGEST_ERROR) & (size > _SIGNIFICANT * error) & (size > _RANGE[0]) & (size < _RANGE[1])
        sure &= around[here] < _MOST_AROUND * size
        angle = np.arcsin(np.sqrt(size[sure]) * np.sin(HALF_ANGLE))
        spread[here[sure]] = angle[:, None] * direction[sure]
    return spread


class _Fit:
    """Estimates the elongation of voxels, each around its own axis."""

    def __init__(self, gradients: GradientTable, model: ForwardModel, scale: float):
        matrix = model.matrix.double().numpy() / scale
        l_max = model.l_max
        n_wm = n_coefficients(l_max)
        directions = np.where(
            np.linalg.norm(gradients.directions, axis=1, keepdims=True) > 0, gradients.directions, [0, 0, 1]
        )
        # A row is zonal around its gradient: with its part of each degree the kernel is a polynomial of the squared cosine.
        parts = matrix[:, :n_wm] * sh_basis(directions, l_max)
        zonal = np.stack([parts[:, degrees(l_max) == degree].sum(axis=1) for degree in range(0, l_max + 1, 2)], axis=1)
        powers = np.zeros_like(zonal)
        for column, degree in enumerate(range(0, l_max + 1, 2)):
            powers[:, : column + 1] += zonal[:, column, None] * leg2poly(np.eye(degree + 1)[degree])[::2]
        used = 1 + int(np.abs(zonal).max(axis=0).nonzero()[0].max())  # responses end long before the fODF
        self._powers = torch.as_tensor(powers[:, :used], dtype=torch.float32)
        self._directions = torch.as_tensor(directions, dtype=torch.float32)
        self._isotropic = torch.as_tensor(matrix[:, n_wm:], dtype=torch.float32)

    def __call__(self, signal: np.ndarray, axes: np.ndarray, amount: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return elongations (n, 3, 3) of signals (n, N) around axes (n, 3), and their precision (n,) at unit noise.

        They are relative to an amount of white matter (n,): what the signal of one voxel says of it is noisy, and would make the
        averages too small.
        """
        u = torch.as_tensor(axes, dtype=torch.float32)
        helper = torch.nn.functional.one_hot(u.abs().argmin(dim=1), 3).to(u)
        second = torch.nn.functional.normalize(torch.linalg.cross(u, helper), dim=1)
        third = torch.linalg.cross(u, second)
        middle, towards, aside = (e @ self._directions.T for e in (u, second, third))
        diagonal = [(towards + sign * aside) / 2**0.5 for sign in (1, -1)]
        pairs = [self._pair(middle, side) for side in (towards, aside, *diagonal)]
        sums = [(one + other) / 2 for one, other in pairs]
        tilts = [(one - other) / 2 for one, other in pairs[:2]]
        alone = self._signal(middle)
        columns = [(sums[0] - sums[1]) / 2, (sums[2] - sums[3]) / 2, alone, (sums[0] + sums[1]) / 2 - alone, *tilts]
        isotropic = self._isotropic.expand(len(u), *self._isotropic.shape)
        design = torch.cat([torch.stack(columns, dim=2), isotropic], dim=2)
        gram = design.mT @ design + _RIDGE * torch.eye(design.shape[2])
        inverse = torch.linalg.inv(gram)
        found = (inverse @ (design.mT @ torch.as_tensor(signal, dtype=torch.float32)[:, :, None]))[:, :, 0]
        white = torch.as_tensor(amount, dtype=torch.float32)
        a, b = (found[:, i, None, None] / white[:, None, None] for i in (0, 1))
        one, other = second[:, :, None], third[:, :, None]
        matrices = a * (one @ one.mT - other @ other.mT) + b * (one @ other.mT + other @ one.mT)
        variance = (inverse[:, 0, 0] + inverse[:, 1, 1]) / 2 / white**2
        return matrices.numpy(), (1 / variance).numpy()

    def _signal(self, cosine: Tensor) -> Tensor:
        """Return the signal of a fibre at the cosine of its angle with each gradient, (n, N)."""
        square = cosine**2
        total = self._powers[:, -1].expand_as(square)
        for power in self._powers.T.flip(0)[1:]:
            total = total * square + power
        return total

    def _pair(self, middle: Tensor, side: Tensor) -> tuple[Tensor, Tensor]:
        along, across = np.cos(HALF_ANGLE) * middle, np.sin(HALF_ANGLE) * side
        return self._signal(along + across), self._signal(along - across)


class _Neighbours:
    """Averages over the voxels around one that lie along the same fibre.

    Parameters
    ----------
    mask : ndarray of bool, shape (X, Y, Z)
    affine : ndarray, shape (4, 4)
    main : ndarray, shape (n, 3)
        Direction of the fibre in each voxel of the mask.
    """

    def __init__(self, mask: np.ndarray, affine: np.ndarray, main: np.ndarray):
        self._main, self._places = main, np.argwhere(mask) + _REACH
        self._rows = row_numbers(mask, margin=_REACH)
        cube = product(range(-_REACH, _REACH + 1), repeat=3)
        self._shifts = np.array([shift for shift in cube if np.dot(shift, shift) <= _REACH**2])
        self._distances = self._shifts @ voxel_steps(affine).T

    def average(self, here: np.ndarray, elongation: np.ndarray, precision: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Average elongations (n, 3, 3) around some voxels at the first scale that will do; return also standard errors."""
        near = self._rows[tuple(np.moveaxis(self._places[here, None] + self._shifts, 2, 0))]  # (m, K)
        known = np.where(near >= 0, precision[near], 0)
        own = self._main[here]
        turned = 1 - np.einsum("mkc,mc->mk", self._main[near], own) ** 2
        same = np.exp(-turned.clip(0) / (2 * _SAME_FIBRE**2))
        along = (own @ self._distances.T) ** 2
        across = (self._distances**2).sum(axis=1) - along
        mean, error = np.zeros((len(here), 3, 3)), np.full(len(here), np.inf)
        for length, width in _SCALES:
            wanting = error > _ENOUGH
            weight = known * same * np.exp(-along / (2 * length**2) - across / (2 * width**2))
            share = (weight / np.maximum(weight.sum(axis=1, keepdims=True), 1e-12))[wanting]
            mean[wanting] = np.einsum("mk,mkij->mij", share, elongation[near[wanting]])
            error[wanting] = np.sqrt((share**2 / np.maximum(known[wanting], 1e-12)).sum(axis=1))
        return mean, error


def _second_moments(wm: np.ndarray) -> np.ndarray:
    r"""Integrate :math:`f(u)\,u u^T` over the sphere, (n, 3, 3), from SH coefficients."""
    grid = hemisphere(4)
    products = (grid[:, :, None] * grid[:, None, :]).reshape(-1, 9)
    weights = sh_inverse(grid, 2) @ products  # exact: degrees 0 and 2 are all there is
    return (wm[:, : len(weights)] @ weights).reshape(-1, 3, 3)


def _around(moments: np.ndarray, main: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the elongation, across the axis of each voxel, of all fibres in its neighbourhood, (n,)."""
    block = np.zeros((*mask.shape, 3, 3), dtype=np.float32)
    block[mask] = moments
    for axis in range(3):
        block = gaussian_filter1d(block, _NEIGHBOURHOOD, axis=axis, mode="constant", truncate=2.0)
    near = block[mask]
    amount = np.trace(near, axis1=1, axis2=2)[:, None, None]
    values = np.linalg.eigvalsh(_across(near / np.maximum(amount, 1e-9), main))
    return (values[:, 2] - values[:, 1]) / 2 / np.sin(HALF_ANGLE) ** 2


def _across(matrices: np.ndarray, axes: np.ndarray) -> np.ndarray:
    """Project symmetric matrices (n, 3, 3) on the planes across axes (n, 3)."""
    plane = np.eye(3) - axes[:, :, None] * axes[:, None, :]
    return plane @ matrices @ plane


def _largest_across(elongation: np.ndarray, main: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return size (n,) and direction (n, 3) of elongations (n, 3, 3) across the main axes."""
    values, vectors = np.linalg.eigh(_across(elongation, main))
    return (values[:, 2] - values[:, 0]) / 2, vectors[:, :, 2]
