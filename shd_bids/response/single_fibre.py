"""Find the white-matter voxels most like one fibre (Dhollander et al., Proc. ISMRM 2019, 555)."""

import numpy as np
from scipy.optimize import nnls

from shd_bids.boxes import chunks
from shd_bids.gradients.table import GradientTable
from shd_bids.peaks.search import find_peaks
from shd_bids.response.response import Response
from shd_bids.sphere.harmonics import Y00, degrees, sh_basis, zonal_factors
from shd_bids.sphere.healpix import hemisphere

RIDGE = 1e-10  # of the largest diagonal entry: decides between solutions of equal residual


def top_voxels(voxels: np.ndarray, values: np.ndarray, number: int) -> np.ndarray:
    """Return the ``number`` voxels of largest value; ``values`` covers all voxels."""
    return voxels[np.argsort(-values[voxels], kind="stable")[:number]]


def single_fibre_voxels(
    rows: np.ndarray, wm: np.ndarray, gradients: GradientTable, csf: Response | None, *, number: int
) -> np.ndarray:
    """Return the WM voxels most like one fibre without CSF (Dhollander et al. 2019).

    With a deliberately sharp WM response (zonal coefficients 1, -1, 1, -1) and the CSF response, the metric is the
    largest amplitude of the fODF over the total of WM and CSF: first of degree 2, then of degree 6 among the best.
    """
    level = np.median(rows[wm].mean(axis=1, dtype=np.float64)) / Y00
    sharp = np.where(np.arange(len(gradients.shells))[:, None] == 0, [level, 0, 0, 0], level * np.array([1, -1, 1, -1]))
    candidates = wm
    for degree, kept in ((2, 2 * number), (6, number)):
        metric = np.full(len(rows), -np.inf)
        metric[candidates] = _single_fibre_metric(rows[candidates], gradients, sharp[:, : degree // 2 + 1], csf)
        candidates = top_voxels(candidates, metric, kept)
    return candidates


def _single_fibre_metric(
    rows: np.ndarray, gradients: GradientTable, sharp: np.ndarray, csf: Response | None
) -> np.ndarray:
    """Return the largest amplitude of the fODF over the total of WM and CSF, (n,); -inf where that is not positive."""
    degree = 2 * (sharp.shape[1] - 1)
    wm_design = _wm_design(gradients, sharp)  # (N, C)
    designs = [wm_design]
    if csf is not None:
        designs.append(csf.coefficients[gradients.shell_index, :1])
    design = np.concatenate(designs, axis=1)
    constraints = np.zeros((385, design.shape[1]))
    constraints[:384, : wm_design.shape[1]] = sh_basis(hemisphere(8), degree)
    constraints[384, -1] = 1 if csf is not None else 0
    solution = constrained_fit(rows, design, constraints)
    fod = solution[:, : wm_design.shape[1]]
    total = solution[:, 0] + (solution[:, -1] if csf is not None else 0)
    peak = find_peaks(fod, max_peaks=1, relative_threshold=0.0).afd_max
    return np.where(total > 0, peak / np.where(total > 0, total, 1), -np.inf)


def _wm_design(gradients: GradientTable, zonal: np.ndarray) -> np.ndarray:
    """Return the map from fODF coefficients to the signal of all volumes, shape (N, C)."""
    degree = 2 * (zonal.shape[1] - 1)
    kernel = (zonal[:, degrees(degree) // 2] * zonal_factors(degree))[gradients.shell_index]  # (N, C)
    is_weighted = gradients.shell_index > 0
    basis = np.full_like(kernel, Y00)  # of degree 0; at b=0 the kernel has nothing above
    basis[is_weighted] = sh_basis(gradients.directions[is_weighted], degree)
    return kernel * basis


def constrained_fit(rows: np.ndarray, design: np.ndarray, constraints: np.ndarray) -> np.ndarray:
    r"""Return the solution of :math:`\min_x |A x - y|^2` under :math:`C x \ge 0` for each row y.

    Where the free minimum violates nothing it is the answer. Otherwise, with :math:`A^T A = L L^T`, the multipliers
    solve the non-negative problem :math:`\min_{\lambda \ge 0} |L^{-1}(A^T y + C^T \lambda)|^2` (least distance
    programming; Lawson and Hanson, Solving Least Squares Problems, chapter 23).

    Parameters
    ----------
    rows : array, shape (n, N)
    design : array, shape (N, p)
    constraints : array, shape (k, p)

    Returns
    -------
    array, shape (n, p)
    """
    scale = np.sqrt(np.mean(np.square(design)))
    design, constraints = design / scale, constraints / np.abs(constraints).max()
    normal = design.T @ design
    normal += RIDGE * normal.diagonal().max() * np.eye(len(normal))
    lower = np.linalg.cholesky(normal)
    inverse = np.linalg.inv(lower)
    whitened = design @ inverse.T
    blocks = [rows[part].astype(np.float64) @ whitened for part in chunks(len(rows))]
    target = np.concatenate([np.empty((0, len(lower))), *blocks])  # (n, p), L^-1 A^T y
    normals = inverse @ constraints.T  # (p, k)
    size = np.abs(target).max(axis=1)
    for row in np.flatnonzero((target @ normals).min(axis=1) < -1e-12 * size):
        multipliers, _ = nnls(normals, -target[row] / size[row])
        target[row] += normals @ multipliers * size[row]
    return target @ inverse / scale
