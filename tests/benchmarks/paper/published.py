"""The layer of RT-ESD and of SHD in the forms that the paper compares: equal functions at different cost.

Elaldi, Gerig and Dey 2023 (arXiv:2304.06103) and 2024 (arXiv:2411.11819, Fig. 4). RT-ESD filters the whole sphere by the
recursion of Chebyshev with a sparse Laplacian. The three steps to SHD are the hemisphere, a dense Laplacian, and all polynomials
as one dense matrix. The 3 x 3 x 3 part is the same ``conv3d`` in all.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from shd_bids.nn.layers.conv import SpatioSphericalConv
from shd_bids.sphere import graph
from tests.nn import oracle

FORMS = ("sparse", "dense", "polynomials")
"""How the Chebyshev terms are evaluated."""


def layer(x: Tensor, conv: SpatioSphericalConv, *, form: str) -> Tensor:
    """Map (B, I, V, X, Y, Z) to (B, O, V, X, Y, Z) on the grid and with the weights of a layer."""
    if form == "polynomials":
        return oracle.layer(x, conv)
    laplacian = _laplacian(*conv.basis.grid, x.dtype, x.device.type, form == "sparse")
    terms = [x.permute(2, 1, 0, 3, 4, 5).flatten(1)]  # (V, I B X Y Z)
    for _ in range(1, conv.weightSph.shape[2]):
        step = laplacian @ terms[-1]
        terms.append(step if len(terms) == 1 else 2 * step - terms[-2])
    stacked = torch.stack(terms)  # (K, V, I B X Y Z)
    return oracle.convolve(stacked.unflatten(2, (x.shape[1], len(x), *x.shape[3:])), conv)


@lru_cache
def _laplacian(nside: int, hemisphere: bool, dtype: torch.dtype, device: str, is_sparse: bool) -> Tensor:
    matrix = torch.tensor(graph.rescaled_laplacian(nside, hemisphere_only=hemisphere), dtype=dtype, device=device)
    matrix = torch.where(matrix.abs() > 1e-12, matrix, 0)
    return matrix.to_sparse_coo() if is_sparse else matrix
