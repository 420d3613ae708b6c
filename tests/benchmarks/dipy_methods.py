"""dipy's CSD, RUMBA-SD and FORCE. They get directions in world axes, and their results are in world axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from found import LEAST_SHELL, MAX_PEAKS, MOST_FIBRES, Found, best_shell, find_maxima
from measured import Measured
from selection import select

from shd_bids.gradients.table import GradientTable
from shd_bids.sphere.harmonics import sh_inverse

FORCE_LIBRARY = 100_000
"""Simulated voxels that FORCE matches, the default of dipy's generator; ``FORCEModel`` itself asks for five times as many. They
are made once for each gradient table and kept in ``$DIPY_HOME``."""

_RUMBA_DEGREE = 12  # of the harmonics in which its fODF is given beside the peaks, which are found without them


def csd(scan: Measured, *, where: np.ndarray | None = None, to_border: bool) -> Found:
    """Run dipy's constrained spherical deconvolution (degree 8) on the highest shell."""
    from dipy.data import get_sphere
    from dipy.reconst.csdeconv import ConstrainedSphericalDeconvModel

    number = best_shell(scan.gradients)
    part = _with_b0(scan.gradients, [number])
    tensor, s0 = _tensor_responses(scan, [number], to_border=to_border)
    model = ConstrainedSphericalDeconvModel(_dipy_table(scan.gradients, part), (tensor[0], s0), sh_order_max=8)
    sphere = get_sphere(name="repulsion724")
    fitted = scan.mask if where is None else where
    odf = model.fit(scan.signal[fitted][:, part].astype(np.float64)).odf(sphere)
    return find_maxima(odf @ sh_inverse(sphere.vertices, 8).T)


def rumba(scan: Measured, *, where: np.ndarray | None = None, tv: bool, to_border: bool) -> Found:
    """Run dipy's RUMBA-SD on all shells with its defaults (600 iterations), with or without total variation.

    The global fit serves both: without the prior it does for all voxels at once what the voxelwise fit does one by one.
    Only one of each pair of opposite vertices is passed; the kernel is even, so the other would be its copy.
    """
    from dipy.core.sphere import Sphere
    from dipy.data import get_sphere
    from dipy.reconst.rumba import RumbaSDModel

    shells = list(range(1, len(scan.gradients.shells)))
    tensors, _ = _tensor_responses(scan, shells, to_border=to_border)
    sphere = get_sphere(name="repulsion724")
    half = sphere.vertices[sphere.vertices[:, 2] > 0]
    model = RumbaSDModel(
        _dipy_table(scan.gradients, np.arange(scan.gradients.n_volumes)),
        wm_response=tensors if len(shells) > 1 else tensors[0],
        voxelwise=False,
        use_tv=tv,
        sphere=Sphere(xyz=half),
    )
    fitted = scan.mask if tv or where is None else where  # total variation looks at neighbours
    odf = model.fit(scan.signal.astype(np.float64), mask=fitted).odf()[scan.mask if where is None else where]
    return replace(_vertex_maxima(odf, half), coefficients=odf @ sh_inverse(half, _RUMBA_DEGREE).T)


def force(scan: Measured, *, where: np.ndarray | None = None) -> Found:
    """Run dipy's FORCE with its defaults: each voxel takes the axes of the simulated voxel that is most like it.

    The amplitude of an axis is that of the simulated ODF there.
    """
    from dipy.data import default_sphere
    from dipy.reconst.force import FORCEModel

    model = FORCEModel(_dipy_table(scan.gradients, np.arange(scan.gradients.n_volumes)))
    fitted = scan.mask if where is None else where
    fit = model.generate(num_simulations=FORCE_LIBRARY).fit(scan.signal[fitted].astype(np.float32))
    height = np.where(np.asarray(fit.label) == 1, np.asarray(fit.odf), 0.0)  # (n, V)
    order = np.argsort(-height, axis=1)[:, :MOST_FIBRES]
    return Found(default_sphere.vertices[order], np.take_along_axis(height, order, axis=1))


def _vertex_maxima(odf: np.ndarray, vertices: np.ndarray) -> Found:
    """Take the vertices above all others within 11 degrees (their first ring), moved to the mean of that ring.

    Harmonics through such sharp functions ring, and vertices alone are 8 degrees apart: measured, this has the larger
    precision-recall area of the first and a smaller angular error than the second.
    """
    cosine = vertices @ vertices.T
    is_near = np.abs(cosine) > np.cos(np.radians(11.0))
    ring = is_near * np.sign(cosine)  # opposite vertices are one axis
    peak = np.zeros(odf.shape, dtype=bool)
    for vertex, near in enumerate(is_near):
        others = near & (np.arange(len(vertices)) != vertex)
        peak[:, vertex] = (odf[:, vertex] > 0) & (odf[:, vertex] >= odf[:, others].max(axis=1))
    height = np.where(peak, odf, 0.0)
    order = np.argsort(-height, axis=1)[:, :MAX_PEAKS]
    amplitudes = np.take_along_axis(height, order, axis=1)
    directions = np.zeros((*order.shape, 3))
    for rank, vertex in enumerate(order.T):
        centroid = (odf * ring[vertex]) @ vertices
        directions[:, rank] = centroid / np.maximum(np.linalg.norm(centroid, axis=1, keepdims=True), 1e-12)
    return Found(directions, amplitudes)


def _with_b0(gradients: GradientTable, shells: Sequence[int]) -> np.ndarray:
    """Return the volumes of the given shells and of b=0, in order."""
    return np.flatnonzero(np.isin(gradients.shell_index, [0, *shells]))


def _dipy_table(gradients: GradientTable, volumes: np.ndarray):
    """Build dipy's table; the phantoms have world axes for voxel axes. Each volume has the mean b of its shell."""
    from dipy.core.gradients import gradient_table

    bvals = gradients.shell_bvalues[gradients.shell_index][volumes]
    return gradient_table(bvals, bvecs=gradients.directions[volumes], b0_threshold=50)


def _tensor_responses(scan: Measured, shells: Sequence[int], *, to_border: bool) -> tuple[np.ndarray, float]:
    """Return the mean eigenvalues in single fibres for each shell with b=0, (S, 3), and their b=0 signal.

    A shell with fewer directions than a tensor has parameters is fitted together with the next.
    """
    from dipy.reconst.csdeconv import response_from_mask_ssst

    _, single = select(scan, to_border=to_border)
    counts = [len(scan.gradients.shells[s].indices) for s in shells]
    eigenvalues = []
    for k, number in enumerate(shells):
        together = [number] if counts[k] >= LEAST_SHELL else [number, shells[min(k + 1, len(shells) - 1)]]
        part = _with_b0(scan.gradients, together)
        data = scan.signal[..., part].astype(np.float64)
        response, _ = response_from_mask_ssst(_dipy_table(scan.gradients, part), data, single)
        eigenvalues.append(response[0])
    return np.array(eigenvalues), float(response[1])
