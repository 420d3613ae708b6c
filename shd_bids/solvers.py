r"""Non-negative least squares for the signals of many voxels at once: weights of atoms whose signals are the columns of a kernel.

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
import scipy.linalg
import torch
from torch import Tensor
from torch.nn.functional import leaky_relu_

from shd_bids.boxes import chunks

ROUNDS = 24
"""Rounds of alternating directions."""

VOXELS_IN_CACHE = 512
"""Voxels whose weights stay in the cache of a core while they are updated."""

_RELAXATION = 1.6
_LEAST_SINGULAR_VALUE = 1e-6  # of the largest; responses of degree 10 leave 68 of several hundred volumes
_LEAST_AHEAD = 0.2  # share of a weight that momentum leaves
_LEAST_BACK = 1e-6  # of predicted signal projected back, below which nothing is divided


class LowRank(NamedTuple):
    """Singular value decomposition of a kernel (N, A), the signal of each atom: (N, r), (r,), (r, A)."""

    left: np.ndarray
    values: np.ndarray
    right: np.ndarray


def low_rank(kernel: np.ndarray) -> LowRank:
    """Decompose a kernel (N, A) in float64, without what is zero up to rounding."""
    kernel = kernel.astype(np.float64)
    try:
        left, values, right = np.linalg.svd(kernel, full_matrices=False)
    except np.linalg.LinAlgError:  # divide and conquer fails on a few kernels, most of whose singular values are zero
        left, values, right = scipy.linalg.svd(kernel, full_matrices=False, lapack_driver="gesvd")
    rank = int((values > _LEAST_SINGULAR_VALUE * values[0]).sum())
    return LowRank(left[:, :rank], values[:rank], right[:rank])


@dataclass(frozen=True, eq=False)
class ISRA:
    r"""The image space reconstruction algorithm: multiplicative updates from a first estimate.

    .. math:: f \leftarrow f \, \frac{K^T y}{K^T K f}

    A weight that is zero stays zero, and the first updates change what is smooth over the atoms.

    Parameters
    ----------
    adjoint : tuple of Tensor
        Maps (N, r) and (r, A) whose product is the kernel.
    gram : tuple of Tensor
        Maps whose product is :math:`K^T K`: (A, r) and (r, A), or (A, A) itself where that is less work.

    References
    ----------
    Daube-Witherspoon and Muehllehner (1986), IEEE Trans. Med. Imaging 5, equation 6.
    """

    adjoint: tuple[Tensor, ...]
    gram: tuple[Tensor, ...]

    @classmethod
    def build(cls, kernel: LowRank, *, dtype: torch.dtype = torch.float32) -> ISRA:
        """Prepare the maps; products are computed in their arithmetic, all else in that of the signals."""
        factor = kernel.values[:, None] * kernel.right
        again = (factor.T, factor) if 2 * len(factor) < factor.shape[1] else (factor.T @ factor,)
        ways = ((kernel.left, factor), again)
        return cls(*(tuple(torch.as_tensor(m, dtype=dtype).contiguous() for m in way) for way in ways))

    def to(self, device: torch.device | str) -> ISRA:
        """Return the same maps on another device."""
        return ISRA(*(tuple(m.to(device) for m in way) for way in (self.adjoint, self.gram)))

    def __call__(self, weights: Tensor, signal: Tensor, *, n_updates: int, momentum: bool = False) -> Tensor:
        """Update weights (n, A) ``n_updates`` times with signals (n, N); ``weights`` is overwritten and returned."""
        for part in cache_chunks(weights):
            steps = self.steps(weights[part], signal[part], momentum=momentum)
            weights[part] = next(islice(steps, n_updates, None))
        return weights

    def steps(self, weights: Tensor, signal: Tensor, *, momentum: bool = False) -> Iterator[Tensor]:
        r"""Yield weights (n, A) after 0, 1, 2 and more updates with signals (n, N).

        With ``momentum`` update k starts further along the way, at :math:`f + \frac{k-1}{k+2}(f - f_{before})`, but at no less
        than a fifth of f. On real scans a hundred such updates predict what 500 plain ones do.
        """
        wanted = _through(self.adjoint, signal).clamp_min_(0)
        current = before = weights
        for k in count(1):
            yield current
            start = current
            if momentum and k > 1:
                ahead = torch.lerp(before, current, 1 + (k - 1) / (k + 2))
                start = torch.maximum(ahead, _LEAST_AHEAD * current, out=ahead)
            predicted = _through(self.gram, start)
            quotient = torch.div(wanted, predicted.clamp_min_(_LEAST_BACK), out=predicted)
            before, current = current, quotient.mul_(start)


@dataclass(frozen=True, eq=False)
class ADMM:
    r"""Over-relaxed ADMM: :data:`ROUNDS` rounds of alternating directions with penalty :math:`\rho`.

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
    def build(cls, kernel: LowRank, penalty: float, *, dtype: torch.dtype = torch.float32) -> ADMM:
        """Prepare the maps."""
        left, values, right = kernel
        kept = values**2 / (values**2 + penalty)
        maps = (_RELAXATION * (left * (kept / values)) @ right, right.T * kept, -_RELAXATION * right)
        return cls(*(torch.as_tensor(m, dtype=dtype).contiguous() for m in maps))

    def to(self, device: torch.device | str) -> ADMM:
        """Return the same maps on another device."""
        return ADMM(self.first.to(device), self.down.to(device), self.up.to(device))

    def __call__(self, signal: Tensor) -> Tensor:
        """Map signals (n, N) to weights (n, A)."""
        weights = signal.new_empty(len(signal), self.up.shape[1])
        for part in cache_chunks(weights):
            first = signal[part] @ self.first
            total = first.clone()
            for _ in range(ROUNDS - 1):
                size = total.abs() @ self.down
                total = leaky_relu_(total, 1 - _RELAXATION).add_(first).addmm_(size, self.up)
            weights[part] = total.clamp_min_(0)
        return weights


def cache_chunks(voxels: Tensor) -> list[slice]:
    """Return slices of voxels, along the first axis, that stay in the cache; a GPU takes all at once."""
    return chunks(len(voxels), VOXELS_IN_CACHE if voxels.device.type == "cpu" else max(len(voxels), 1))


def _through(maps: tuple[Tensor, ...], values: Tensor) -> Tensor:
    """Multiply rows by one matrix after another, in the arithmetic of the matrices; the result is of the type of the rows."""
    return reduce(torch.matmul, maps, values.to(maps[0].dtype)).to(values.dtype)
