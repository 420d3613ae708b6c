r"""Non-negative masses along fixed axes that explain the signals of many voxels at once.

.. math:: \hat f = \arg\min_{f \ge 0} \|y - Kf\|^2

None of the methods runs until it converges: what stops early follows less of the noise. A kernel made of responses has a low
rank r, so they work with its factors.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from itertools import count, islice
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import leaky_relu

from shd_bids.boxes import chunks

ROUNDS = 24
"""Rounds of alternating directions."""

VOXELS_IN_CACHE = 512
"""Voxels whose masses stay in the cache of a core while they are updated again and again; torch splits them among cores."""

_RELAXATION = 1.6
_LEAST_SINGULAR_VALUE = 1e-6  # of the largest; responses of degree 10 leave 68 of several hundred volumes
_LEAST_AHEAD = 0.2  # share of a mass that momentum leaves
_LEAST_BACK = 1e-6  # of predicted signal projected back, below which nothing is divided


class Factors(NamedTuple):
    """Singular value decomposition of a kernel (N, A), the signal of a unit mass along each axis: (N, r), (r,), (r, A)."""

    left: np.ndarray
    values: np.ndarray
    right: np.ndarray


def factors(kernel: np.ndarray) -> Factors:
    """Decompose a kernel (N, A) in float64, without what is zero up to rounding."""
    left, values, right = np.linalg.svd(kernel.astype(np.float64), full_matrices=False)
    rank = int((values > _LEAST_SINGULAR_VALUE * values[0]).sum())
    return Factors(left[:, :rank], values[:rank], right[:rank])


@dataclass(frozen=True, eq=False)
class Updater:
    r"""Moves masses that are known roughly towards the signal by multiplicative updates.

    .. math:: f \leftarrow f \, \frac{K^T y}{K^T K f}

    Mass that is zero stays zero, and the first updates change what is smooth over the axes.

    Parameters
    ----------
    back : tuple of Tensor
        Maps (N, r) and (r, A) whose product is the kernel.
    again : tuple of Tensor
        Maps whose product is :math:`K^T K`: (A, r) and (r, A), or (A, A) itself where that is less work.

    References
    ----------
    Daube-Witherspoon and Muehllehner (1986), IEEE Trans. Med. Imaging 5, equation 6.
    """

    back: tuple[Tensor, ...]
    again: tuple[Tensor, ...]

    @classmethod
    def build(cls, kernel: Factors, *, dtype: torch.dtype = torch.float32) -> Updater:
        """Prepare the maps."""
        factor = kernel.values[:, None] * kernel.right
        again = (factor.T, factor) if 2 * len(factor) < factor.shape[1] else (factor.T @ factor,)
        ways = ((kernel.left, factor), again)
        return cls(*(tuple(torch.as_tensor(m, dtype=dtype).contiguous() for m in way) for way in ways))

    def to(self, device: torch.device | str) -> Updater:
        """Return the same maps on another device."""
        return Updater(*(tuple(m.to(device) for m in way) for way in (self.back, self.again)))

    def __call__(self, masses: Tensor, signal: Tensor, *, times: int, momentum: bool = False) -> Tensor:
        """Update masses (n, A) a few times with signals (n, N); ``masses`` is overwritten and returned."""
        for part in pieces(masses):
            steps = self.steps(masses[part], signal[part], momentum=momentum)
            masses[part] = next(islice(steps, times, None))
        return masses

    def steps(self, masses: Tensor, signal: Tensor, *, momentum: bool = False) -> Iterator[Tensor]:
        r"""Yield masses (n, A) after 0, 1, 2 and more updates with signals (n, N).

        With ``momentum`` update k starts further along the way, at :math:`f + \frac{k-1}{k+2}(f - f_{before})`, but at no less
        than a fifth of f. On real scans a hundred such updates predict what 500 plain ones do.
        """
        wanted = _through(self.back, signal).clamp_min_(0)
        current = before = masses
        for k in count(1):
            yield current
            start = current
            if momentum and k > 1:
                ahead = torch.lerp(before, current, 1 + (k - 1) / (k + 2))
                start = torch.maximum(ahead, _LEAST_AHEAD * current, out=ahead)
            predicted = _through(self.again, start)
            quotient = torch.div(wanted, predicted.clamp_min_(_LEAST_BACK), out=predicted)
            before, current = current, quotient.mul_(start)


@dataclass(frozen=True, eq=False)
class Sharpener:
    r"""Masses by :data:`ROUNDS` rounds of over-relaxed alternating directions with penalty :math:`\rho`.

    With :math:`P = K^T(KK^T + \rho)^{-1}K`, :math:`t` the sum of the unconstrained solution and the scaled multipliers, and
    relaxation :math:`\alpha`, a round is

    .. math:: t \leftarrow t^+ + (1 - \alpha)\, t^- + \alpha\,(K^T(KK^T + \rho)^{-1} y - P |t|).

    A smaller penalty separates narrow crossings sooner and follows more of the noise.

    Parameters
    ----------
    first : Tensor, shape (N, A)
        Signal to :math:`\alpha K^T(KK^T + \rho)^{-1} y`.
    down, up : Tensor, shape (A, r) and (r, A)
        Factors of :math:`-\alpha P`.

    References
    ----------
    Boyd et al. (2011), Foundations and Trends in Machine Learning 3, sections 3.4.3 and 5.2.
    """

    first: Tensor
    down: Tensor
    up: Tensor

    @classmethod
    def build(cls, kernel: Factors, penalty: float, *, dtype: torch.dtype = torch.float32) -> Sharpener:
        """Prepare the maps."""
        left, values, right = kernel
        kept = values**2 / (values**2 + penalty)
        maps = (_RELAXATION * (left * (kept / values)) @ right, right.T * kept, -_RELAXATION * right)
        return cls(*(torch.as_tensor(m, dtype=dtype).contiguous() for m in maps))

    def to(self, device: torch.device | str) -> Sharpener:
        """Return the same maps on another device."""
        return Sharpener(self.first.to(device), self.down.to(device), self.up.to(device))

    def __call__(self, signal: Tensor) -> Tensor:
        """Map signals (n, N) to masses (n, A)."""
        masses = signal.new_empty(len(signal), self.up.shape[1])
        for part in pieces(masses):
            first = signal[part] @ self.first
            total = first.clone()
            for _ in range(ROUNDS - 1):
                size = total.abs() @ self.down
                total = leaky_relu(total, 1 - _RELAXATION).add_(first).addmm_(size, self.up)
            masses[part] = total.clamp_min_(0)
        return masses


def pieces(voxels: Tensor) -> list[slice]:
    """Cut voxels, along the first axis, into pieces that stay in the cache; a GPU takes all at once."""
    step = VOXELS_IN_CACHE * torch.get_num_threads() if voxels.device.type == "cpu" else max(len(voxels), 1)
    return chunks(len(voxels), step)


def _through(maps: tuple[Tensor, ...], values: Tensor) -> Tensor:
    """Multiply rows by one matrix after another."""
    return reduce(torch.matmul, maps, values)
