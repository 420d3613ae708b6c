"""A phantom of packed strands after DiSCo: bundles of thin strands between regions on a sphere, with the truth of each voxel.

The signal is the sum over pieces of strands, each a stick and a zeppelin along its own tangent, so that dispersion within a voxel
is that of the geometry. The networks of the package are trained on another generator and another signal model.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scenes import Scene
from scipy.sparse import csr_matrix

from shd_bids import simulation
from shd_bids.gradients.table import GradientTable
from shd_bids.simulation.phantoms import MAX_FIBRES

RADIUS = 0.35
"""Of a strand, voxels."""

_PACKING = 0.75  # share of a bundle's cross-section that strands fill
_MOST = 0.95  # of a voxel that strands fill
_LEAST = 0.02  # of a voxel; less is no fibre population
_GOLDEN = np.pi * (3 - 5**0.5)  # angle between neighbours in a spiral that fills a disc evenly
_STEP = 0.1  # between points of a strand, voxels
_INTRA, _AXIAL, _RADIAL = 0.6, 1.7e-3, 0.4e-3  # share of sticks; diffusivities of sticks and zeppelins, mm2/s
_TISSUE, _FLUID = (1.0, 0.9e-3), (2.0, 3.0e-3)  # signal at b=0 and diffusivity of what strands leave free, and of fluid


@dataclass(frozen=True, eq=False)
class Strands:
    """Pieces of strands.

    Attributes
    ----------
    points, tangents : ndarray, shape (P, 3)
        Of each piece; voxels, unit length.
    bundle : ndarray of int, shape (P,)
    curves : tuple of ndarray, shape (Q, 3)
        Centre lines of the bundles.
    volumes : ndarray, shape (P,)
        Of each piece, voxels.
    """

    points: np.ndarray
    tangents: np.ndarray
    bundle: np.ndarray
    curves: tuple[np.ndarray, ...]
    volumes: np.ndarray


def draw_strands(rng: np.random.Generator, size: int, *, n_bundles: int, radius: float) -> Strands:
    """Draw bundles between points on a sphere that fills a cube of ``size`` voxels, their radii about ``radius``."""
    curves, points, tangents, owners = [], [], [], []
    for number in range(n_bundles):
        curve = _trunk(rng, size)
        curves.append(curve)
        for offset in _cross_section(rng, radius * rng.uniform(0.8, 1.2)):
            strand = _strand(rng, curve, offset)
            points.append(strand)
            tangents.append(_unit(np.gradient(strand, axis=0)))
            owners.append(np.full(len(strand), number))
    volumes = np.full(sum(map(len, points)), np.pi * RADIUS**2 * _STEP)
    return Strands(np.concatenate(points), np.concatenate(tangents), np.concatenate(owners), tuple(curves), volumes)


def strand_phantom(
    strands: Strands, size: int, *, fluid: np.ndarray | None = None
) -> tuple[simulation.Phantom, csr_matrix]:
    """Return the truth of each voxel, and how much each piece fills of it, (voxels, P).

    Where strands fill more than a voxel, all are thinned alike. What they leave free is a medium without direction, which counts
    as grey matter, or fluid: a share ``fluid`` (voxels,) of it, that of the voxel which lies outside the sphere if left out.
    """
    shape = (size, size, size)
    weight = _piece_weights(strands, size)
    shares, directions = _populations(strands, weight)
    order = np.argsort(-shares, axis=1)[:, :MAX_FIBRES]
    kept = np.take_along_axis(shares, order, axis=1)
    kept[kept < _LEAST] = 0.0
    pad = [(0, 0), (0, MAX_FIBRES - kept.shape[1])]
    kept, order = np.pad(kept, pad), np.pad(order, pad)
    found = np.take_along_axis(directions, order[..., None], axis=1) * (kept > 0)[..., None]
    free = 1 - np.asarray(weight.sum(axis=1)).ravel()
    csf = free * (outside(size) if fluid is None else fluid)
    phantom = simulation.Phantom(
        directions=found.reshape(*shape, MAX_FIBRES, 3),
        fractions=kept.reshape(*shape, MAX_FIBRES),
        bundle=np.where(kept > 0, order, -1).reshape(*shape, MAX_FIBRES),
        gm=(free - csf).reshape(shape),
        csf=csf.reshape(shape),
        bundles=tuple(simulation.Bundle(curve, np.ones(len(curve))) for curve in strands.curves),
    )
    return phantom, weight


def strand_signal(
    strands: Strands, phantom: simulation.Phantom, weight: csr_matrix, gradients: GradientTable
) -> np.ndarray:
    r"""Return the signal of each voxel and volume without noise, (X, Y, Z, N), float32.

    .. math:: S(g) = \sum_p w_p \left[f e^{-b d_\parallel (t_p \cdot g)^2} + (1 - f) e^{-b (d_\perp
              + (d_\parallel - d_\perp) (t_p \cdot g)^2)}\right] + \text{isotropic}
    """
    b = gradients.bvals
    signal = np.empty((weight.shape[0], len(b)), dtype=np.float32)
    for n, (bvalue, direction) in enumerate(zip(b, gradients.directions, strict=True)):
        squared = (strands.tangents @ direction) ** 2
        stick = _INTRA * np.exp(-bvalue * _AXIAL * squared)
        zeppelin = (1 - _INTRA) * np.exp(-bvalue * (_RADIAL + (_AXIAL - _RADIAL) * squared))
        signal[:, n] = weight @ (stick + zeppelin)
    for share, (s0, diffusivity) in ((phantom.gm, _TISSUE), (phantom.csf, _FLUID)):
        signal += share.reshape(-1, 1) * (s0 * np.exp(-b * diffusivity))
    return signal.reshape(*phantom.gm.shape, -1)


def strand_scene(
    rng: np.random.Generator,
    *,
    size: int,
    n_bundles: int,
    radius: float,
    gradients: GradientTable,
    snr: float,
) -> Scene:
    """Draw a phantom and measure it with Rician noise; ``snr`` is that of strands without diffusion weighting."""
    strands = draw_strands(rng, size, n_bundles=n_bundles, radius=radius)
    return observe_strands(rng, strands, *strand_phantom(strands, size), gradients=gradients, snr=snr)


def observe_strands(
    rng: np.random.Generator,
    strands: Strands,
    phantom: simulation.Phantom,
    weight: csr_matrix,
    *,
    gradients: GradientTable,
    snr: float,
) -> Scene:
    """Measure a phantom with Rician noise."""
    signal = simulation.add_noise(strand_signal(strands, phantom, weight, gradients), 1 / snr, rng)
    return Scene(1000 * signal, gradients, np.ones(phantom.gm.shape, dtype=bool), phantom)


def outside(size: int) -> np.ndarray:
    """Return the share of each voxel that lies outside the sphere of the phantom, (voxels,)."""
    grid = np.indices((size, size, size)).reshape(3, -1).T - (size - 1) / 2
    return 1 / (1 + np.exp((size / 2 - np.linalg.norm(grid, axis=1)) / 0.3))


def _piece_weights(strands: Strands, size: int) -> csr_matrix:
    """Return how much of each voxel each piece fills, (voxels, P), at most `_MOST` together."""
    place = np.rint(strands.points).astype(int)
    rows = np.flatnonzero(((place >= 0) & (place < size)).all(axis=1))
    voxel = np.ravel_multi_index(tuple(place[rows].T), (size, size, size))
    weight = csr_matrix((strands.volumes[rows], (voxel, rows)), (size**3, len(place)))
    total = np.asarray(weight.sum(axis=1)).ravel()
    thin = np.minimum(1.0, _MOST / np.maximum(total, 1e-9))
    return weight.multiply(thin[:, None]).tocsr()


def _populations(strands: Strands, weight: csr_matrix) -> tuple[np.ndarray, np.ndarray]:
    """Return how much each bundle fills of each voxel, (voxels, B), and its mean direction there, (voxels, B, 3)."""
    n = len(strands.curves)
    shares, directions = np.zeros((weight.shape[0], n)), np.zeros((weight.shape[0], n, 3))
    for number in range(n):
        own = strands.bundle == number
        shares[:, number] = np.asarray(weight[:, own].sum(axis=1)).ravel()
        directions[:, number] = _unit(weight[:, own] @ strands.tangents[own])
    return shares, directions


def _trunk(rng: np.random.Generator, size: int) -> np.ndarray:
    """Return a curve between two points of the sphere that are at least 80 degrees apart, bent towards a point inside."""
    radius, middle = size / 2, (size - 1) / 2
    first, last = _unit(rng.normal(size=(2, 3)))
    while first @ last > np.cos(np.radians(80)):
        first, last = _unit(rng.normal(size=(2, 3)))
    bend = 0.5 * radius * _unit(rng.normal(size=3)) * rng.uniform(0, 1)
    t = np.linspace(0, 1, 400)[:, None]
    fine = radius * ((1 - t) ** 2 * first + t**2 * last) + 2 * t * (1 - t) * bend + middle
    along = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(fine, axis=0), axis=1))])
    places = np.arange(0, along[-1], _STEP)
    return np.stack([np.interp(places, along, axis) for axis in fine.T], axis=1)


def _cross_section(rng: np.random.Generator, radius: float) -> np.ndarray:
    """Return evenly spread places of strands in a disc, (n, 2), as many as fill it to `_PACKING`."""
    n = max(1, round(_PACKING * (radius / RADIUS) ** 2))
    number = np.arange(n)
    angle, distance = number * _GOLDEN + rng.uniform(0, 2 * np.pi), radius * np.sqrt((number + 0.5) / n)
    return np.stack([distance * np.cos(angle), distance * np.sin(angle)], axis=1)


def _strand(rng: np.random.Generator, curve: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """Return a strand beside a curve, which undulates about its place in the cross-section."""
    tangent = _unit(np.gradient(curve, axis=0))
    normal = _unit(np.cross(tangent, np.linalg.eigh(tangent.T @ tangent)[1][:, 0]))  # what the curve runs least along
    binormal = np.cross(tangent, normal)
    phase = 2 * np.pi * (np.arange(len(curve)) * _STEP / rng.uniform(4, 8) + rng.uniform())
    wave = 0.12 * np.sin(phase)[:, None]
    return curve + (offset[0] + wave) * normal + (offset[1] + wave) * binormal


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
