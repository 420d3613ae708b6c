r"""Chebyshev filters on the sphere, in the eigenbasis of the Laplacian.

A filter of the graph (Defferrard, Bresson and Vandergheynst 2016, NIPS, section 2.1) on the hemisphere (Elaldi, Gerig and Dey
2024, arXiv:2411.11819, figure 3A) is

.. math:: y(v) = b + \sum_{k=0}^{K-1} w_k \, (T_k(\tilde L) x)(v), \quad T_k(\tilde L) = 2 \tilde L T_{k-1} - T_{k-2}

with :math:`\tilde L` rescaled to [-1, 1] and K = 5. It is diagonal in the eigenbasis: its value at the eigenvalue
:math:`\lambda` is :math:`\sum_k w_k T_k(\lambda)`. The basis is fixed, so it is no part of a checkpoint.
"""

import warnings
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from shd_bids.sphere import healpix, symmetry


class Grid(NamedTuple):
    """A HEALPix grid: its resolution, and whether it covers the hemisphere (V = 6 nside^2) or the sphere (12 nside^2)."""

    nside: int
    hemisphere: bool


def chebyshev(values: np.ndarray, order: int) -> np.ndarray:
    """Evaluate T_0 .. T_{order-1} at ``values`` of shape (U,), all within [-1, 1]; return (U, order)."""
    return np.cos(np.arange(order) * np.arccos(np.clip(values, -1, 1))[:, None])


def _sparse(matrix: np.ndarray) -> tuple[Tensor, Tensor, np.ndarray]:
    """Return row starts, columns and values of the non-zeros of a matrix."""
    rows, columns = np.nonzero(np.abs(matrix) > 1e-12)
    start = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=len(matrix)))])
    return torch.tensor(start), torch.tensor(columns), matrix[rows, columns]


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
    rotations: Tensor  # the block matrices Q of shd_bids.sphere.symmetry, one after another
    adapted: Tensor  # non-zeros of S by rows, then of its transpose: (2, N)
    terms: Tensor  # (U, K): T_k at the distinct eigenvalues

    def __init__(self, nside: int, *, hemisphere: bool, order: int):
        super().__init__()
        if order < 1:
            raise ValueError(f"order is {order}, expected at least 1 coefficient per filter")
        self.grid, self.order = Grid(nside, hemisphere), order
        self.n_vertices = len(healpix.grid(nside, hemisphere_only=hemisphere))
        self.copies = [(len(rotation), copies) for rotation, copies in self._exact().blocks]
        adapted = self._exact().adapted
        self.tables = [_sparse(matrix)[:2] for matrix in (adapted, adapted.T)]
        self._fill(torch.empty(0))

    def _exact(self) -> symmetry.Eigenbasis:
        return symmetry.eigenbasis(self.grid.nside, hemisphere_only=self.grid.hemisphere)

    def _fill(self, like: Tensor) -> None:
        exact = self._exact()
        for name, values in (
            ("vectors", exact.vectors.T),
            ("terms", chebyshev(exact.eigenvalues, self.order)),
            ("rotations", np.concatenate([rotation.ravel() for rotation, _ in exact.blocks])),
            ("adapted", np.stack([values for _, _, values in (_sparse(exact.adapted), _sparse(exact.adapted.T))])),
        ):
            self.register_buffer(name, torch.tensor(values, dtype=like.dtype, device=like.device), persistent=False)

    def to_modes(self, x: Tensor) -> Tensor:
        """Expand (V, ...) in eigenvectors: (V modes, ...)."""
        flat = x.reshape(self.n_vertices, -1)
        if not self._factored(flat):
            return (self.vectors.to(x.dtype) @ flat).view_as(x)
        adapted = self._sparse(1) @ flat
        return self._blocks(adapted, transposed=True).view_as(x)

    def to_vertices(self, x: Tensor) -> Tensor:
        """Sum eigenvectors: (V modes, ...) to (V, ...), the inverse and transpose of :meth:`to_modes`."""
        flat = x.reshape(self.n_vertices, -1)
        if not self._factored(flat):
            return (self.vectors.to(x.dtype).T @ flat).view_as(x)
        return (self._sparse(0) @ self._blocks(flat, transposed=False)).view_as(x)

    def _factored(self, flat: Tensor) -> bool:
        """Whether the factored basis pays: on the CPU in full precision, where a sparse product is fast."""
        full = flat.dtype == self.vectors.dtype and flat.dtype in (torch.float32, torch.float64)
        return full and flat.device.type == "cpu" and self.n_vertices > 96 and not torch.compiler.is_compiling()

    def _sparse(self, which: int) -> Tensor:
        """Return S or its transpose as a sparse matrix."""
        start, column = self.tables[which]
        with warnings.catch_warnings():  # torch announces its sparse layout as beta
            warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
            return torch.sparse_csr_tensor(
                start, column, self.adapted[which], size=self.vectors.shape, check_invariants=False
            )

    def _blocks(self, x: Tensor, *, transposed: bool) -> Tensor:
        """Multiply each block of rows by its Q (or the transpose); rows of one representation share it."""
        result, row, at = torch.empty_like(x), 0, 0
        for size, copies in self.copies:
            rotation = self.rotations[at : at + size * size].view(size, size)
            rows = slice(row, row + size * copies)
            torch.mm(rotation.T if transposed else rotation, x[rows].view(size, -1), out=result[rows].view(size, -1))
            row, at = rows.stop, at + size * size
        return result

    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)
        if self.vectors.device.type != "meta":
            self._fill(self.vectors)
        return self

    def extra_repr(self) -> str:
        """Name the grid."""
        return f"nside={self.grid.nside}, hemisphere={self.grid.hemisphere}, order={self.order}"
