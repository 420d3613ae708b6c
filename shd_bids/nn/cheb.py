r"""Chebyshev filters on the sphere, in the eigenbasis of the Laplacian.

A filter :math:`\sum_k w_k T_k(\tilde L)` is diagonal in that basis: its value at the eigenvalue :math:`\lambda` is
:math:`\sum_k w_k T_k(\lambda)`. The basis is fixed, so it is no part of a checkpoint.
"""

import numpy as np
import torch
from torch import Tensor, nn

from shd_bids.sphere import healpix, symmetry


def chebyshev(values: np.ndarray, order: int) -> np.ndarray:
    """Evaluate T_0 .. T_{order-1} at ``values`` of shape (U,), all within [-1, 1]; return (U, order)."""
    return np.cos(np.arange(order) * np.arccos(np.clip(values, -1, 1))[:, None])


class SphereBasis(nn.Module):
    """Hold the Laplacian's eigenbasis of one grid as non-persistent buffers.

    Casting or moving the module rebuilds the buffers from float64, so that ``.double()`` is exact and no precision is lost
    by a detour through half.

    Parameters
    ----------
    nside : int
        HEALPix resolution.
    hemisphere : bool
        Sample the hemisphere (V = 6 nside^2) or the sphere (V = 12 nside^2).
    order : int
        Number K of Chebyshev terms of each filter.
    """

    vectors: Tensor  # (V modes, V vertices): rows are eigenvectors
    terms: Tensor  # (U, K): T_k at the distinct eigenvalues

    def __init__(self, nside: int, *, hemisphere: bool, order: int):
        super().__init__()
        if order < 1:
            raise ValueError(f"order is {order}, expected at least 1 coefficient per filter")
        self.nside, self.hemisphere, self.order = nside, hemisphere, order
        self.n_vertices = len(healpix.grid(nside, hemisphere_only=hemisphere))
        self.copies = [(len(rotation), copies) for rotation, copies in self._exact().blocks]
        self._fill(torch.empty(0))

    def _exact(self) -> symmetry.Eigenbasis:
        return symmetry.eigenbasis(self.nside, hemisphere_only=self.hemisphere)

    def _fill(self, like: Tensor) -> None:
        exact = self._exact()
        for name, values in (
            ("vectors", exact.vectors.T),
            ("terms", chebyshev(exact.eigenvalues, self.order)),
        ):
            self.register_buffer(name, torch.tensor(values, dtype=like.dtype, device=like.device), persistent=False)

    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)
        if self.vectors.device.type != "meta":
            self._fill(self.vectors)
        return self

    def extra_repr(self) -> str:
        """Name the grid."""
        return f"nside={self.nside}, hemisphere={self.hemisphere}, order={self.order}"
