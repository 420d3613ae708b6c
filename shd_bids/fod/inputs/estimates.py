"""Bring any acquisition to one domain: what the network sees instead of raw shells.

The forward operator of the subject (gradient table and responses) turns the signal of a voxel into estimates of its fODF
on the hemisphere, and these, not the shells, are the channels of the network. Their number is fixed, rotating the
gradients and the signal rotates them, and so the same weights serve every protocol.

The network turns space and sphere apart, so it cannot know that a fibre goes on in its own direction. Some channels tell it:
estimates that are averaged with those of the voxels before and behind, seen along each axis.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import conv3d, pad

from shd_bids.boxes import Box, box_of, grown, overlap, shifted, within
from shd_bids.errors import WeightsError
from shd_bids.gradients.noise import fitting_degree
from shd_bids.gradients.table import GradientTable
from shd_bids.response.forward import ForwardModel, forward_model
from shd_bids.response.response import Responses
from shd_bids.solvers import Sharpener, Updater, factors, pieces
from shd_bids.sphere.harmonics import degrees, n_coefficients, sh_basis
from shd_bids.sphere.healpix import hemisphere
from shd_bids.sphere.lobes import lobes

L_MAX_INPUT = 12
"""Degree of the linear estimates; the prior damps what the data cannot support."""

CHANNELS = (
    *("wiener", "wiener_smooth", "wiener_smoother", "nonnegative", "gm", "csf", "b0", "noise", "resolution"),
    *("sharp", "sharp_3", "sharp_5", "sharp_along", "sharp_3_along", "sharp_5_along"),
)
"""What each input channel holds, in order."""

REACH = 4
"""Voxels around one that its input depends on, along each axis."""

_SHELL_TOLERANCE = 100.0  # s/mm2 between a shell and the one that a network of raw shells was trained with
_PRIOR_WIDTH = 60.0  # angular concentration of the expected lobes: power falls as exp(-l(l+1)/(2*60))
_FRACTION_RANGE = (-1.0, 3.0)  # real scans stay within; a tissue without a response would make others unbounded
_N_MULTIPLICATIVE = 12  # updates of the non-negative estimate; more fit noise, measured in tests/benchmarks
_SHARP = ((0, 300.0), (1, 20.0), (2, 10.0))  # voxels around that join the mean, and penalty over noise variance
_ALONG_REACH = 2  # voxels around that estimates are averaged over, each along its axis
_ALONG_LENGTH, _ALONG_WIDTH = 2.0, 0.5  # of that average, in voxels: standard deviations along the axis and across
_LEAST_SHARP_NOISE = 0.01  # relative to the white-matter signal; responses are no better than that
_LEAST_WEIGHT = 1e-6  # a voxel of the mask has its own
_SHARP_LOBE = 45.0  # concentration of the lobe that stands for an axis, that of the truth in training


@dataclass(eq=False)
class Recent:
    """Sharp estimates around the last block of a volume: the next one has most of its neighbours in common with it.

    Attributes
    ----------
    corner : tuple of int
        Where the block to come starts in the volume; whoever reads the blocks sets it.
    """

    corner: tuple[int, int, int] = (0, 0, 0)
    _box: Box | None = None
    _values: Tensor | None = None

    def recall(self, box: Box, values: Tensor, wanted: Tensor) -> None:
        """Fill in values (C, V, x, y, z) of a box of the block as far as they are known, and mark what is no longer wanted."""
        place = shifted(box, self.corner)
        if self._box is None or self._values is None or (shared := overlap(self._box, place)) is None:
            return
        here = within(shared, place)
        values[:, :, *here] = self._values[:, :, *within(shared, self._box)]
        wanted[here] = False

    def keep(self, box: Box, values: Tensor) -> None:
        """Keep the values of a box of the block, and no others."""
        self._box, self._values = shifted(box, self.corner), values


@dataclass(frozen=True, eq=False)
class Conditioner:
    """Maps the scaled signal of voxels to the input channels of the network.

    Parameters
    ----------
    estimate : Tensor, shape (3 V + 2, N)
        Linear estimates on the hemisphere at three levels of regularisation, then GM and CSF fractions.
    updater : Updater
        For masses at V vertices, then of GM and CSF.
    sharpeners : tuple of Sharpener
        For the signal of the voxel alone, and for its mean over 3 x 3 x 3 and 5 x 5 x 5 voxels.
    lobes : Tensor, shape (V, V)
        Density on the hemisphere of a unit mass along each axis.
    along : Tensor, shape (V, 1, 5, 5, 5)
        Weights of the voxels around one in averages along each axis.
    noise, resolution : Tensor, shape (V,)
        Standard deviation of the first estimate, and its height at a unit fibre.
    b0 : Tensor, shape (N,)
        Weights that average the b=0 volumes.
    scale : float
        White-matter signal at b=0; the signal is divided by it first.
    sigma : float
        Noise level relative to that scale.
    """

    estimate: Tensor
    updater: Updater
    sharpeners: tuple[Sharpener, ...]
    lobes: Tensor
    along: Tensor
    noise: Tensor
    resolution: Tensor
    b0: Tensor
    scale: float
    sigma: float

    def to(self, device: torch.device | str) -> Conditioner:
        """Return the same maps on another device."""
        tensors: dict[str, Any] = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)}
        sharpeners = tuple(s.to(device) for s in self.sharpeners)
        return replace(self, **tensors, updater=self.updater.to(device), sharpeners=sharpeners)

    def __call__(
        self, signal: Tensor, inside: Tensor | None = None, box: Box | None = None, recent: Recent | None = None
    ) -> Tensor:
        """Map the signal of a block of voxels to input channels.

        Parameters
        ----------
        signal : Tensor, shape (X, Y, Z, N)
            In input units.
        inside : Tensor of bool, shape (X, Y, Z), optional
            Voxels of the mask; the means over neighbours leave others out. Without it, all.
        box : tuple of slice, optional
            Which voxels to map; the others serve as neighbours. Without it, all.
        recent : Recent, optional
            What is kept from one block of a volume for the next, which has :data:`REACH` voxels around its box if the volume has.

        Returns
        -------
        Tensor, shape (15, x, y, z, V)
            Of the box; zero outside the mask. Vertices come first in memory and channels last, as the network wants them.
        """
        inside, box = _defaults(signal, inside, box)
        power = (signal / self.scale) ** 2 - 2 * self.sigma**2  # without the bias that Rician noise adds to the square
        block = signal.new_zeros(len(self.noise), *inside[box].shape, len(CHANNELS))
        near = grown(box, _ALONG_REACH, inside.shape)
        sharp = self._sharp_in(near, power, inside, recent)
        middle, n_sharp = within(box, near), len(self.sharpeners)
        _by_pieces(self._estimates, [_signed_root(power[box])], inside[box], block[..., : -2 * n_sharp])
        block[..., -2 * n_sharp : -n_sharp] = sharp[:, :, *middle].permute(1, 2, 3, 4, 0)
        block[..., -n_sharp:] = self._averages(sharp, inside[near], middle)
        return block.permute(4, 1, 2, 3, 0)

    def _sharp_in(self, box: Box, power: Tensor, inside: Tensor, recent: Recent | None) -> Tensor:
        """Give the sharp estimates in a box, (3, V, x, y, z), from powers (X, Y, Z, N); what is known is not made again."""
        wanted = inside[box].clone()
        sharp = power.new_zeros(len(self.sharpeners), len(self.noise), *wanted.shape)
        if recent is not None:
            recent.recall(box, sharp, wanted)
        if wanted.any():
            new = box_of(wanted.numpy(force=True))
            place = shifted(new, [side.start for side in box])
            means = _means_around(power, inside, place, [reach for reach, _ in _SHARP])
            made = power.new_zeros(len(self.noise), *wanted[new].shape, len(self.sharpeners))
            _by_pieces(self._sharp, [_signed_root(mean) for mean in means], wanted[new], made)
            sharp[:, :, *new] += made.permute(4, 0, 1, 2, 3)  # zero where it was known
        if recent is not None:
            recent.keep(box, sharp)
        return sharp

    def _estimates(self, scaled: Tensor) -> Tensor:
        """Map scaled signals (n, N) of voxels to the channels of each voxel alone, (V, n, 9)."""
        vertices = len(self.noise)
        linear = self.estimate @ scaled.T  # (3V+2, n)
        maps = [
            *linear[: 3 * vertices].view(3, vertices, -1),
            self._nonnegative(scaled, linear),
            *linear[-2:].clamp(*_FRACTION_RANGE),
            scaled @ self.b0,
            self.noise[:, None],
            self.resolution[:, None],
        ]
        return torch.stack([values.expand_as(maps[0]) for values in maps], dim=-1)

    def _sharp(self, *means: Tensor) -> Tensor:
        """Map scaled signals (n, N) of voxels and of the means around them to sharp estimates, (V, n, 3)."""
        vertices = len(self.noise)
        maps = [
            self.lobes @ sharpen(mean)[:, :vertices].T for sharpen, mean in zip(self.sharpeners, means, strict=True)
        ]
        return torch.stack(maps, dim=-1)

    def _averages(self, values: Tensor, inside: Tensor, box: Box) -> Tensor:
        """Average values (C, V, X, Y, Z) of voxels of a mask over those around, along the axis of each vertex, in a box."""
        missing = [(_ALONG_REACH - b.start, _ALONG_REACH - n + b.stop) for b, n in zip(box, inside.shape, strict=True)]
        zeros = [min(ends) for ends in missing]  # as many on both sides cost no copy
        more = [n - both for ends, both in zip(reversed(missing), reversed(zeros), strict=True) for n in ends]
        weight = conv3d(pad(inside.to(values.dtype)[None, None], more), self.along, padding=zeros)
        around = pad(values, more) if any(more) else values
        total = conv3d(around, self.along, padding=zeros, groups=len(self.along))
        result = total.div_(weight.clamp_min_(_LEAST_WEIGHT)).mul_(inside[box])
        return result.permute(1, 2, 3, 4, 0)

    def _nonnegative(self, scaled: Tensor, linear: Tensor) -> Tensor:
        """Sharpen the second linear estimate (of :attr:`estimate`, (3 V + 2, n)) under non-negativity, (V, n)."""
        vertices = len(self.noise)
        start = linear[vertices : 2 * vertices].clamp_min(0) + 0.02
        masses = torch.cat([start * (4 * np.pi / vertices), linear[-2:].clamp_min(0.02)]).T.contiguous()
        self.updater(masses, scaled.clamp_min(0), times=_N_MULTIPLICATIVE)
        return masses[:, :vertices].T * (vertices / (4 * np.pi))  # mass of an axis -> density on the sphere


@dataclass(frozen=True, eq=False)
class ShellInput:
    """Maps the signal of voxels to its shells on the hemisphere, the published input: one network for one protocol.

    Parameters
    ----------
    estimate : Tensor, shape (S V, N)
        Least-squares resampling of each shell, b=0 included.
    scale : float
        White-matter signal at b=0; the signal is divided by it first.
    n_shells : int
    """

    estimate: Tensor
    scale: float
    n_shells: int

    def to(self, device: torch.device | str) -> ShellInput:
        """Return the same maps on another device."""
        return ShellInput(self.estimate.to(device), self.scale, self.n_shells)

    def __call__(
        self, signal: Tensor, inside: Tensor | None = None, box: Box | None = None, recent: Recent | None = None
    ) -> Tensor:
        """Map the signal of a block (X, Y, Z, N), in input units, to channels (S, x, y, z, V), as :class:`Conditioner` does.

        Nothing of a block serves the next, so ``recent`` stays as it is.
        """
        inside, box = _defaults(signal, inside, box)
        block = signal.new_zeros(len(self.estimate) // self.n_shells, *inside[box].shape, self.n_shells)
        _by_pieces(self._channels, [signal[box] / self.scale], inside[box], block)
        return block.permute(4, 1, 2, 3, 0)

    def _channels(self, scaled: Tensor) -> Tensor:
        return (self.estimate @ scaled.T).unflatten(0, (self.n_shells, -1)).permute(1, 2, 0)


def condition(
    gradients: GradientTable,
    responses: Responses,
    *,
    affine: np.ndarray,
    sigma: float,
    nside: int,
    channels: tuple[str, ...] = CHANNELS,
    dtype: torch.dtype = torch.float32,
) -> Conditioner | ShellInput:
    r"""Build the input maps of a subject.

    The linear estimate is the Wiener solution for a rotation-invariant prior,

    .. math:: \hat c = P A^T (A P A^T + \sigma^2 I)^{-1} y, \qquad
              P_{lm} = \frac{m^2}{4\pi} e^{-l(l+1)/(2\kappa)},

    at :math:`\sigma`, :math:`3\sigma` (smooth) and :math:`9\sigma` (smoother).

    Parameters
    ----------
    gradients, responses
        Of the subject.
    affine : ndarray, shape (4, 4)
        From voxels to the world, whose axes are those of the gradients.
    sigma : float
        Standard deviation of the noise, in the units of the signal.
    nside : int
        Resolution of the hemisphere grid.
    channels : tuple of str
        What the network was trained with: :data:`CHANNELS`, or the shells of one protocol as :func:`shell_channels` names
        them, which are then passed on as they are.

    Raises
    ------
    WeightsError
        When the network wants shells that the gradient table does not have.
    """
    scale = float(responses.wm.coefficients[0, 0]) / np.sqrt(4 * np.pi)
    if channels != CHANNELS:
        estimate = _resampled_shells(gradients, channels, nside)
        return ShellInput(torch.as_tensor(estimate, dtype=dtype), scale, len(channels))
    model = forward_model(gradients, responses, l_max=L_MAX_INPUT, dtype=torch.float64)
    matrix = model.matrix.numpy() / scale
    matrix, n_iso = _with_both_isotropic(matrix, model)
    basis = sh_basis(hemisphere(nside), L_MAX_INPUT)
    relative = max(sigma / scale, 1e-3)
    prior = np.concatenate([0.35 / (4 * np.pi) * _lobe_power(L_MAX_INPUT), n_iso])
    n_wm = n_coefficients(L_MAX_INPUT)
    solutions = [_wiener(matrix, prior, relative * factor) for factor in (1.0, 3.0, 9.0)]
    first = basis @ solutions[0][:n_wm]  # (V, N)
    kernel = np.concatenate([matrix[:, :n_wm] @ basis.T, matrix[:, n_wm:] / np.sqrt(4 * np.pi)], axis=1)
    b0 = np.zeros(gradients.n_volumes)
    b0[gradients.b0_indices] = 1 / len(gradients.b0_indices)
    isotropic = solutions[0][n_wm:] * np.sqrt(4 * np.pi)
    tensors = {
        "estimate": np.concatenate([basis @ s[:n_wm] for s in solutions] + [isotropic]),
        "lobes": lobes(hemisphere(nside), hemisphere(nside), _SHARP_LOBE),
        "along": _along(hemisphere(nside), affine)[:, None],
        "noise": np.sqrt((first**2).sum(1)) * relative,
        "resolution": (first * kernel[:, : len(basis)].T).sum(1),
        "b0": b0,
    }
    parts, floor = factors(kernel), max(relative, _LEAST_SHARP_NOISE) ** 2
    return Conditioner(
        **{k: torch.as_tensor(v, dtype=dtype) for k, v in tensors.items()},
        updater=Updater.build(parts, dtype=dtype),
        sharpeners=tuple(Sharpener.build(parts, penalty * floor, dtype=dtype) for _, penalty in _SHARP),
        scale=scale,
        sigma=relative,
    )


def signal_block(voxels: np.ndarray, rows: np.ndarray, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Put signals (n, N) where they lie in a block, and say where there are any.

    Parameters
    ----------
    voxels : ndarray, shape (n, N)
    rows : ndarray of int, shape (X, Y, Z)
        Row of each voxel of the block, negative outside the mask.
    device
        Of the result.

    Returns
    -------
    signal : Tensor, shape (X, Y, Z, N)
        Zero outside the mask.
    inside : Tensor of bool, shape (X, Y, Z)
    """
    there = rows >= 0
    inside = torch.as_tensor(there, device=device)
    signal = torch.zeros(*rows.shape, voxels.shape[1], device=device)
    signal[inside] = torch.as_tensor(voxels[rows[there]], device=device)
    return signal, inside


def shell_channels(bvalues: Iterable[float]) -> tuple[str, ...]:
    """Name the input channels of a network that is fed with raw shells: ``b0``, ``b1000``, ..."""
    return tuple(f"b{b:.0f}" for b in bvalues)


def is_shell_channel(name: str) -> bool:
    """Say whether a channel is a raw shell."""
    return name[:1] == "b" and name[1:].isdecimal()


def _resampled_shells(gradients: GradientTable, channels: tuple[str, ...], nside: int) -> np.ndarray:
    """Fit each shell with harmonics of at most degree 8, as published, and evaluate them on the hemisphere, (S V, N)."""
    wanted = np.array([float(name.removeprefix("b")) for name in channels])
    found = np.array([shell.bvalue for shell in gradients.shells])
    if len(found) != len(wanted) or np.abs(found - wanted).max() > _SHELL_TOLERANCE:
        raise WeightsError(
            f"the network is fed with the shells {wanted.astype(int).tolist()} s/mm2, found {found.round().tolist()}; use the "
            "shipped weights, which serve any protocol"
        )
    vertices = hemisphere(nside)
    estimate = np.zeros((len(channels), len(vertices), gradients.n_volumes))
    for row, shell in zip(estimate, gradients.shells, strict=True):
        if shell.bvalue == 0:
            row[:, shell.indices] = 1 / len(shell.indices)
        else:
            l_max = fitting_degree(len(shell.indices))
            fit = np.linalg.pinv(sh_basis(gradients.directions[shell.indices], l_max))
            row[:, shell.indices] = sh_basis(vertices, l_max) @ fit
    return estimate.reshape(-1, gradients.n_volumes)


def _lobe_power(l_max: int) -> np.ndarray:
    r"""Return how the power of expected lobes falls, :math:`e^{-l(l+1)/(2\kappa)}`, for each coefficient, (C,)."""
    degree = degrees(l_max)
    return np.exp(-degree * (degree + 1) / (2 * _PRIOR_WIDTH))


def _signed_root(power: Tensor) -> Tensor:
    r"""Turn powers back to signals, :math:`\operatorname{sign}(p)\sqrt{|p|}`."""
    return power.sign() * power.abs().sqrt()


def _defaults(signal: Tensor, inside: Tensor | None, box: Box | None) -> tuple[Tensor, Box]:
    """Give the mask and the box that stand for all of a block where there is none."""
    x, y, z = signal.shape[:3]
    whole = (slice(0, x), slice(0, y), slice(0, z))
    return signal.new_ones(x, y, z, dtype=torch.bool) if inside is None else inside, whole if box is None else box


def _means_around(values: Tensor, inside: Tensor, box: Box, reaches: Iterable[int]) -> list[Tensor]:
    """Average (X, Y, Z, N) over the cube of ``2 reach + 1`` voxels around each voxel of a box, as far as they lie inside."""
    weight = inside[..., None].to(values.dtype)
    weighted = values * weight
    return [_sum_around(weighted, box, reach) / _sum_around(weight, box, reach).clamp_min(1) for reach in reaches]


def _sum_around(values: Tensor, box: Box, reach: int) -> Tensor:
    """Add up the values within ``reach`` of each voxel of a box along each axis, (x, y, z, N)."""
    for axis, side in enumerate(box):
        total = values.narrow(axis, side.start, side.stop - side.start).clone()
        for shift in (s for s in range(-reach, reach + 1) if s):
            first, last = max(side.start + shift, 0), min(side.stop + shift, values.shape[axis])
            if first < last:
                part = values.narrow(axis, first, last - first)
                total.narrow(axis, first - shift - side.start, last - first).add_(part)
        values = total
    return values


def _by_pieces(channels: Callable[..., Tensor], signals: list[Tensor], inside: Tensor, block: Tensor) -> None:
    """Map the voxels of a mask (x, y, z) into a block (V, x, y, z, C), so many at a time that all fits the cache.

    ``channels`` maps the values of voxels, (n, N) from each of ``signals`` (x, y, z, N), to (V, n, C).
    """
    rows = [signal[inside] for signal in signals]
    index = inside.flatten().nonzero()[:, 0]
    flat = block.view(len(block), inside.numel(), -1)
    for part in pieces(index):
        flat[:, index[part]] = channels(*(values[part] for values in rows))


def voxel_steps(affine: np.ndarray) -> np.ndarray:
    """Return the steps between voxels in the world, in columns, (3, 3), in units of their mean size."""
    return affine[:3, :3] / np.cbrt(np.abs(np.linalg.det(affine[:3, :3])))


def _along(axes: np.ndarray, affine: np.ndarray) -> np.ndarray:
    r"""Return the weights of the voxels around one in averages along axes, (V, 5, 5, 5), each of sum 1.

    A voxel at d, in units of the mean size of voxels, weighs :math:`e^{-(d \cdot u)^2/2l^2 - |d - (d \cdot u) u|^2/2w^2}`.
    """
    shift = np.arange(-_ALONG_REACH, _ALONG_REACH + 1)
    around = np.stack(np.meshgrid(shift, shift, shift, indexing="ij"), axis=-1) @ voxel_steps(affine).T
    along = (around @ axes.T) ** 2
    across = (around**2).sum(axis=-1, keepdims=True) - along
    weights = np.exp(-along / (2 * _ALONG_LENGTH**2) - across / (2 * _ALONG_WIDTH**2))
    return np.moveaxis(weights / weights.sum(axis=(0, 1, 2)), -1, 0)


def _with_both_isotropic(matrix: np.ndarray, model: ForwardModel) -> tuple[np.ndarray, np.ndarray]:
    """Give the matrix a GM and a CSF column, zero with no prior variance where the tissue is not fitted."""
    n_wm = matrix.shape[1] - len(model.tissues) + 1
    columns, variance = [], []
    for tissue in ("gm", "csf"):
        fitted = tissue in model.tissues
        columns.append(matrix[:, n_wm - 1 + model.tissues.index(tissue)] if fitted else np.zeros(len(matrix)))
        variance.append(0.5 / (4 * np.pi) if fitted else 0.0)
    return np.concatenate([matrix[:, :n_wm], np.stack(columns, axis=1)], axis=1), np.array(variance)


def _wiener(matrix: np.ndarray, prior: np.ndarray, sigma: float) -> np.ndarray:
    """Return ``P A^T (A P A^T + sigma^2 I)^-1``, shape (C, N)."""
    weighted = prior[:, None] * matrix.T
    return np.linalg.solve(matrix @ weighted + sigma**2 * np.eye(len(matrix)), weighted.T).T
