"""Diffusion tensors: the quick model behind the orientation check and the choice of single-fibre voxels."""

import numpy as np

from shd_bids.boxes import chunks
from shd_bids.gradients.table import GradientTable


def fit_tensor(signal: np.ndarray, table: GradientTable, *, n_iterations: int = 2) -> np.ndarray:
    r"""Return diffusion tensors fitted by iteratively reweighted linear least squares.

    .. math:: \min_{D, S_0} \sum_i w_i^2 (\ln S_i - \ln S_0 + b_i u_i^T D u_i)^2

    where w starts as the signal and is then the predicted signal.

    Parameters
    ----------
    signal : array, shape (n, N)
        One row per voxel; values below a millionth of the row's maximum are raised to it.
    table : GradientTable
    n_iterations : int
        Number of reweightings.

    Returns
    -------
    array, shape (n, 3, 3)
        Tensors in world axes, mm2/s; zero for rows without signal.

    Source: Veraart et al., NeuroImage 81 (2013) 335, equations 5-7.
    """
    design = _tensor_design(table)  # (N, 7)
    upper = np.triu_indices(7)
    products = design[:, upper[0]] * design[:, upper[1]]  # (N, 28)
    square = np.empty((7, 7), dtype=int)
    square[upper] = square[upper[::-1]] = np.arange(28)
    tensors = np.zeros((len(signal), 3, 3))
    for part in chunks(len(signal)):
        block = np.asarray(signal[part], dtype=np.float64)
        top = block.max(axis=1, initial=0)
        has_signal = np.flatnonzero(top > 0)
        block = np.maximum(block[has_signal], 1e-6 * top[has_signal, None])
        block /= top[has_signal, None]
        log_signal = np.log(block)
        weight = block**2
        for _ in range(n_iterations + 1):
            normal = (weight @ products)[:, square]  # (n, 7, 7)
            normal += 1e-10 * np.trace(normal, axis1=1, axis2=2)[:, None, None] * np.eye(7)
            solution = np.linalg.solve(normal, ((weight * log_signal) @ design)[..., None])[..., 0]
            weight = np.exp(np.clip(2 * solution @ design.T, -60, 10))
        tensors[part.start + has_signal] = solution[:, [[0, 3, 4], [3, 1, 5], [4, 5, 2]]] * 1e-3
    return tensors


def fractional_anisotropy(tensors: np.ndarray) -> np.ndarray:
    """Return the FA of tensors, shape (n, 3, 3), negative eigenvalues taken as they are; 0 for a zero tensor."""
    mean = np.trace(tensors, axis1=-2, axis2=-1) / 3
    norm = np.square(tensors).sum(axis=(-2, -1))
    deviation = norm - 3 * mean**2
    return np.sqrt(1.5 * np.clip(deviation, 0, None) / np.where(norm > 0, norm, 1))


def _tensor_design(table: GradientTable) -> np.ndarray:
    """Return the design matrix of ln S for D in um2/ms: xx yy zz xy xz yz and ln S0, shape (N, 7)."""
    x, y, z = table.directions.T
    terms = [x * x, y * y, z * z, 2 * x * y, 2 * x * z, 2 * y * z]
    return np.column_stack([-table.bvals * 1e-3 * term for term in terms] + [np.ones(table.n_volumes)])
