"""Inputs that serve any protocol: estimates of the fODF of a voxel on the hemisphere in place of its shells.

The forward operator of the scan (gradient table and responses) turns the signal into a fixed number of estimates. Rotating the
gradients and the signal rotates them, so that the same weights serve every protocol.

The network filters space and sphere apart, so it cannot tell along which fibre a neighbour lies. Some channels tell it:
estimates that are averaged with those of the voxels before and behind, seen along each axis.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shd_bids.boxes import Box, box_of, grown, shifted, within
from shd_bids.fod.config import InputConfig
from shd_bids.fod.inputs.averages import along_weights, average_along, means_around
from shd_bids.fod.inputs.blocks import SlabCache, map_voxels, whole_block
from shd_bids.response.forward import ForwardModel
from shd_bids.scan import Scan
from shd_bids.solvers import ADMM, ISRA, low_rank
from shd_bids.sphere.harmonics import SQRT_4PI, degrees, n_coefficients, sh_basis
from shd_bids.sphere.healpix import hemisphere
from shd_bids.sphere.lobes import lobes


@dataclass(frozen=True, eq=False)
class Estimates:
    """Maps the scaled signal of voxels to the input channels of the network.

    Parameters
    ----------
    estimate : Tensor, shape (3 V + 2, N)
        Linear estimates on the hemisphere at three levels of regularisation, then GM and CSF fractions.
    isra : ISRA
        For lobe weights at V vertices, then of GM and CSF.
    admm : tuple of ADMM
        For the mean signal over each cube of voxels.
    lobes : Tensor, shape (V, V)
        Density on the hemisphere of a unit lobe along each axis.
    along : Tensor, shape (V, 1, n, n, n)
        Weights of the voxels around one in averages along each axis.
    noise, resolution : Tensor, shape (V,)
        Standard deviation of the first estimate, and its height at a unit fibre.
    b0 : Tensor, shape (N,)
        Weights that average the b=0 volumes.
    scale : float
        White-matter signal at b=0; the signal is divided by it first.
    sigma : float
        Noise level relative to that scale.
    config : InputConfig
    """

    estimate: Tensor
    isra: ISRA
    admm: tuple[ADMM, ...]
    lobes: Tensor
    along: Tensor
    noise: Tensor
    resolution: Tensor
    b0: Tensor
    scale: float
    sigma: float
    config: InputConfig

    @classmethod
    def of(cls, scan: Scan, config: InputConfig, *, nside: int, dtype: torch.dtype = torch.float32) -> Estimates:
        r"""Build the maps of a scan.

        The linear estimate is the Wiener solution for a rotation-invariant prior,

        .. math:: \hat c = P A^T (A P A^T + \sigma^2 I)^{-1} y, \qquad
                  P_{lm} = \frac{m^2}{4\pi} e^{-l(l+1)/(2\kappa)},

        at :math:`\sigma`, :math:`3\sigma` (smooth) and :math:`9\sigma` (smoother).

        Parameters
        ----------
        scan : Scan
            Only its gradients, responses, affine and noise level are used.
        config : InputConfig
        nside : int
            Resolution of the hemisphere grid.
        """
        model = scan.forward(config.l_max, dtype=torch.float64)
        matrix, isotropic_prior = _with_both_isotropic(model.matrix.numpy() / scan.scale, model, config)
        vertices = hemisphere(nside)
        basis = sh_basis(vertices, config.l_max)
        relative = max(scan.sigma / scan.scale, config.least_noise)
        prior = np.concatenate([config.prior_wm / (4 * np.pi) * _lobe_power(config), isotropic_prior])
        n_wm = n_coefficients(config.l_max)
        solutions = [_wiener(matrix, prior, relative * factor) for factor in config.wiener_noise]
        first = basis @ solutions[0][:n_wm]  # (V, N)
        kernel = np.concatenate([matrix[:, :n_wm] @ basis.T, matrix[:, n_wm:] / SQRT_4PI], axis=1)
        b0 = np.zeros(len(matrix))
        b0[scan.gradients.b0_indices] = 1 / len(scan.gradients.b0_indices)
        isotropic = solutions[0][n_wm:] * SQRT_4PI
        tensors: dict[str, Any] = {
            "estimate": np.concatenate([basis @ s[:n_wm] for s in solutions] + [isotropic]),
            "lobes": lobes(vertices, vertices, config.lobe_kappa),
            "along": _along(vertices, scan.affine, config)[:, None],
            "noise": np.sqrt((first**2).sum(1)) * relative,
            "resolution": (first * kernel[:, : len(basis)].T).sum(1),
            "b0": b0,
        }
        factors, variance = low_rank(kernel), max(relative, config.least_admm_noise) ** 2
        return cls(
            **{k: torch.as_tensor(v, dtype=dtype) for k, v in tensors.items()},
            isra=ISRA.build(factors, dtype=dtype),
            admm=tuple(ADMM.build(factors, penalty * variance, dtype=dtype) for penalty in config.admm_penalty),
            scale=scan.scale,
            sigma=relative,
            config=config,
        )

    @property
    def reach(self) -> int:
        """Voxels around one, along each axis, that its input depends on."""
        return self.config.along_reach + max(self.config.admm_reach)

    def to(self, device: torch.device | str) -> Estimates:
        """Return the same maps on another device."""
        tensors: dict[str, Any] = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)}
        admm = tuple(solver.to(device) for solver in self.admm)
        return replace(self, **tensors, isra=self.isra.to(device), admm=admm)

    def __call__(
        self, signal: Tensor, inside: Tensor | None = None, box: Box | None = None, cache: SlabCache | None = None
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
        cache : SlabCache, optional
            What is kept from one block of a volume for the next, which has :attr:`reach` voxels around its box if the volume has.

        Returns
        -------
        Tensor, shape (15, x, y, z, V)
            Of the box; zero outside the mask. Vertices come first in memory and channels last, as the network wants them.
        """
        inside, box = whole_block(signal, inside, box)
        power = (signal / self.scale) ** 2 - 2 * self.sigma**2  # without the bias that Rician noise adds to the square
        block = signal.new_zeros(len(self.noise), *inside[box].shape, len(self.config.channels))
        near = grown(box, self.config.along_reach, inside.shape)
        admm = self._admm_in(near, power, inside, cache)
        middle, n_admm = within(box, near), len(self.admm)
        map_voxels(self._estimates, [_signed_root(power[box])], inside[box], block[..., : -2 * n_admm])
        block[..., -2 * n_admm : -n_admm] = admm[:, :, *middle].permute(1, 2, 3, 4, 0)
        block[..., -n_admm:] = average_along(admm, inside[near], middle, self.along)
        return block.permute(4, 1, 2, 3, 0)

    def _admm_in(self, box: Box, power: Tensor, inside: Tensor, cache: SlabCache | None) -> Tensor:
        """Return the ADMM estimates in a box, (3, V, x, y, z), from powers (X, Y, Z, N); what is known is not made again."""
        wanted = inside[box].clone()
        admm = power.new_zeros(len(self.admm), len(self.noise), *wanted.shape)
        if cache is not None:
            cache.recall(box, admm, wanted)
        if wanted.any():
            new = box_of(wanted.numpy(force=True))
            place = shifted(new, [side.start for side in box])
            means = means_around(power, inside, place, self.config.admm_reach)
            made = power.new_zeros(len(self.noise), *wanted[new].shape, len(self.admm))
            map_voxels(self._admm_estimates, [_signed_root(mean) for mean in means], wanted[new], made)
            admm[:, :, *new] += made.permute(4, 0, 1, 2, 3)  # zero where it was known
        if cache is not None:
            cache.keep(box, admm)
        return admm

    def _estimates(self, scaled: Tensor) -> Tensor:
        """Map scaled signals (n, N) of voxels to the channels of each voxel alone, (V, n, 9)."""
        vertices = len(self.noise)
        linear = self.estimate @ scaled.T  # (3V+2, n)
        maps = [
            *linear[: 3 * vertices].view(3, vertices, -1),
            self._nonnegative(scaled, linear),
            *linear[-2:].clamp(*self.config.fraction_range),
            scaled @ self.b0,
            self.noise[:, None],
            self.resolution[:, None],
        ]
        return torch.stack([values.expand_as(maps[0]) for values in maps], dim=-1)

    def _admm_estimates(self, *means: Tensor) -> Tensor:
        """Map scaled signals (n, N) of voxels and of the means around them to ADMM estimates, (V, n, 3)."""
        vertices = len(self.noise)
        maps = [self.lobes @ solve(mean)[:, :vertices].T for solve, mean in zip(self.admm, means, strict=True)]
        return torch.stack(maps, dim=-1)

    def _nonnegative(self, scaled: Tensor, linear: Tensor) -> Tensor:
        """Return the ISRA estimate, (V, n), from the second linear one (of :attr:`estimate`, (3 V + 2, n))."""
        vertices = len(self.noise)
        start = linear[vertices : 2 * vertices].clamp_min(0) + self.config.isra_start
        weights = torch.cat(
            [start * (4 * np.pi / vertices), linear[-2:].clamp_min(self.config.isra_start)]
        ).T.contiguous()
        self.isra(weights, scaled.clamp_min(0), n_updates=self.config.isra_updates)
        return weights[:, :vertices].T * (vertices / (4 * np.pi))  # integral over a vertex -> density on the sphere


def _lobe_power(config: InputConfig) -> np.ndarray:
    r"""Return how the power of expected lobes falls, :math:`e^{-l(l+1)/(2\kappa)}`, for each coefficient, (C,)."""
    degree = degrees(config.l_max)
    return np.exp(-degree * (degree + 1) / (2 * config.prior_kappa))


def _along(axes: np.ndarray, affine: np.ndarray, config: InputConfig) -> np.ndarray:
    """Return the weights of the voxels around one in averages along axes, (V, n, n, n)."""
    return along_weights(axes, affine, reach=config.along_reach, length=config.along_length, width=config.along_width)


def _signed_root(power: Tensor) -> Tensor:
    r"""Turn powers back to signals, :math:`\operatorname{sign}(p)\sqrt{|p|}`."""
    return power.sign() * power.abs().sqrt()


def _with_both_isotropic(matrix: np.ndarray, model: ForwardModel, config: InputConfig) -> tuple[np.ndarray, np.ndarray]:
    """Return the matrix with a GM and a CSF column, zero where the tissue is not fitted, and the prior variance of both."""
    n_wm = matrix.shape[1] - len(model.tissues) + 1
    columns, variance = [], []
    for tissue in ("gm", "csf"):
        fitted = tissue in model.tissues
        columns.append(matrix[:, n_wm - 1 + model.tissues.index(tissue)] if fitted else np.zeros(len(matrix)))
        variance.append(config.prior_isotropic / (4 * np.pi) if fitted else 0.0)
    return np.concatenate([matrix[:, :n_wm], np.stack(columns, axis=1)], axis=1), np.array(variance)


def _wiener(matrix: np.ndarray, prior: np.ndarray, sigma: float) -> np.ndarray:
    """Return ``P A^T (A P A^T + sigma^2 I)^-1``, shape (C, N)."""
    weighted = prior[:, None] * matrix.T
    return np.linalg.solve(matrix @ weighted + sigma**2 * np.eye(len(matrix)), weighted.T).T
