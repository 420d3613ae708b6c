"""The forward operator: tissue response convolved with the fODF, giving the diffusion signal."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from shd_bids.gradients.table import GradientTable
from shd_bids.response.response import Response, Responses
from shd_bids.sphere.harmonics import Y00, degrees, n_coefficients, sh_basis, zonal_factors


class ForwardModel(nn.Module):
    r"""Predict the signal of a voxel from the coefficients of its tissues.

    .. math:: \hat S(g) = \sum_t \sum_{l,m} \sqrt{\tfrac{4\pi}{2l+1}} \, r_{t,s,l} \, c_{t,lm} \, Y_{lm}(g)

    The coefficients of all tissues stand in one axis: first those of white matter (degree 0 to ``l_max``), then one
    coefficient of degree 0 for each isotropic tissue.

    Parameters
    ----------
    matrix : Tensor, shape (N, C)
        Signal of each volume for each unit coefficient.
    l_max : int
        Degree of the white-matter part.
    tissues : tuple of str
        ``"wm"`` first, then the isotropic tissues in order.

    References
    ----------
    Jeurissen et al. (2014), NeuroImage 103, equation 4 (several tissues); Tournier et al. (2007), equation 3 (zonal
    convolution).
    """

    matrix: Tensor

    def __init__(self, matrix: Tensor, *, l_max: int, tissues: tuple[str, ...]):
        super().__init__()
        expected = n_coefficients(l_max) + len(tissues) - 1
        if matrix.ndim != 2 or matrix.shape[1] != expected:
            raise ValueError(f"matrix has shape {tuple(matrix.shape)}, expected (N, {expected}) for {tissues}")
        self.l_max, self.tissues = l_max, tissues
        self.register_buffer("matrix", matrix, persistent=False)

    def forward(self, coefficients: Tensor) -> Tensor:
        """Return the signal (..., N) of coefficients (..., C)."""
        return coefficients @ self.matrix.T


def forward_model(
    gradients: GradientTable, responses: Responses, *, l_max: int, dtype: torch.dtype = torch.float32
) -> ForwardModel:
    """Return the forward operator of a gradient table and its tissue responses.

    Degrees above those of the response are not seen by the signal: their columns are zero.

    Parameters
    ----------
    gradients : GradientTable
        N volumes in world axes.
    responses : Responses
        One row of zonal coefficients for each shell of the table, in its order.
    l_max : int
        Degree of the fODF.
    dtype : torch.dtype

    Raises
    ------
    ValueError
        When a response does not have one row for each shell.
    """
    columns = [_anisotropic_columns(gradients, responses.wm, l_max)]
    for tissue in responses.tissues[1:]:
        columns.append(_zonal_rows(gradients, tissue, 0)[:, :1])
    matrix = torch.as_tensor(np.concatenate(columns, axis=1), dtype=dtype)
    return ForwardModel(matrix, l_max=l_max, tissues=tuple(t.tissue for t in responses.tissues))


def _anisotropic_columns(gradients: GradientTable, response: Response, l_max: int) -> np.ndarray:
    """Return sqrt(4 pi / (2l+1)) r_l Y_lm(g) for each volume and coefficient, shape (N, C)."""
    zonal = _zonal_rows(gradients, response, l_max)[:, degrees(l_max) // 2] * zonal_factors(l_max)
    weighted = np.linalg.norm(gradients.directions, axis=1) > 0
    basis = np.zeros((gradients.n_volumes, n_coefficients(l_max)))
    basis[:, 0] = Y00
    basis[weighted] = sh_basis(gradients.directions[weighted], l_max)
    return zonal * basis


def _zonal_rows(gradients: GradientTable, response: Response, l_max: int) -> np.ndarray:
    """Return the zonal coefficients of each volume's shell, zero-padded to ``l_max``, shape (N, l_max/2 + 1)."""
    n_shells = len(gradients.shells)
    if len(response.coefficients) != n_shells:
        raise ValueError(
            f"the {response.tissue} response has {len(response.coefficients)} rows, "
            f"expected one for each of the {n_shells} shells of the gradient table"
        )
    zonal = np.zeros((n_shells, max(l_max // 2 + 1, response.coefficients.shape[1])))
    zonal[:, : response.coefficients.shape[1]] = response.coefficients
    return zonal[gradients.shell_index, : l_max // 2 + 1]
