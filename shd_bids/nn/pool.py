"""Pooling and unpooling over space and sphere.

Tensors are (vertex, batch, x, y, z, channel). Pooling averages space first, then the sphere; unpooling copies in the
opposite order.
"""

import torch
from torch import Tensor, nn

from shd_bids.sphere import healpix


class Pooling(nn.Module):
    """Average the four children of each coarse vertex and, if asked, two voxels along each axis.

    Parameters
    ----------
    nside : int
        Resolution of the finer grid.
    hemisphere : bool
    stride : int
        0 leaves space alone. 2 halves it (even sizes). 1 averages neighbouring pairs, P -> P - 1: the published rule for
        patches of odd size.
    """

    child_index: Tensor  # (V_coarse, 4)
    parent_index: Tensor  # (V,)

    def __init__(self, nside: int, *, hemisphere: bool, stride: int):
        super().__init__()
        self.stride = stride
        for name, table in (("child_index", healpix.children), ("parent_index", healpix.parents)):
            index = torch.tensor(table(nside, hemisphere_only=hemisphere))
            self.register_buffer(name, index, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Average (V, B, X, Y, Z, F) to (V / 4, B, X', Y', Z', F)."""
        for dim in (2, 3, 4) if self.stride else ():
            last = x.shape[dim] - 1
            if self.stride == 1:
                x = (x.narrow(dim, 0, last) + x.narrow(dim, 1, last)) / 2
            else:
                x = x.unflatten(dim, (-1, 2)).mean(dim + 1)
        return x[self.child_index.flatten()].unflatten(0, (-1, 4)).mean(1)

    def unpool(self, x: Tensor) -> Tensor:
        """Copy (V / 4, B, X', Y', Z', F) to (V, B, X, Y, Z, F): each vertex its parent, each voxel its source."""
        x = x[self.parent_index]
        for dim in (2, 3, 4) if self.stride else ():
            x = x.index_select(dim, self.sources(x.shape[dim], x.device))
        return x

    def sources(self, size: int, device: torch.device) -> Tensor:
        """Give for each voxel of the finer grid the coarse voxel it copies (nearest by size, as published)."""
        full = (size - 1) * self.stride + 2
        return torch.arange(full, device=device) * size // full
