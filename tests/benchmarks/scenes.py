"""Simulated volumes with known truth for the comparisons: straight crossings, curved bundles, published geometries."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
from scipy.interpolate import make_interp_spline

from shd_bids import simulation
from shd_bids.gradients.table import GradientTable

FIRST_SEED = 1_000_000
"""Training draws its volumes with seeds far below."""

PROTOCOLS = {
    "4 shells x 90": ({1000.0: 90, 2000.0: 90, 3000.0: 90, 4000.0: 90}, 4),
    "HCP 3 x 90": ({1000.0: 90, 2000.0: 90, 3000.0: 90}, 18),
    "ABCD": ({500.0: 6, 1000.0: 15, 2000.0: 15, 3000.0: 60}, 7),
    "b1000 x 30": ({1000.0: 30}, 3),
}
"""Name -> shells (b-value -> directions) and number of b=0 volumes."""

ROWS = (
    ("4 shells x 90", 30),
    ("HCP 3 x 90", 30),
    ("ABCD", 30),
    ("b1000 x 30", 30),
    ("4 shells x 90", 12),
    ("ABCD", 12),
    ("b1000 x 30", 12),
)
"""Protocol and signal-to-noise ratio (of white matter at b=0) of each row of the table."""

GEOMETRIES = (
    "crossing/crossing_2bundles/20crossing.txt",
    "crossing/crossing_2bundles/30crossing.txt",
    "crossing/crossing_2bundles/40crossing.txt",
    "crossing/crossing_2bundles/60crossing.txt",
    "crossing/crossing_2bundles/90crossing.txt",
    "crossing/crossing_3bundles/40crossing.txt",
    "kissing/60kissing_3bundles.txt",
    "fanning/3Dfanning_9bundles.txt",
)
"""Files of the published geometries that are simulated, one volume each."""

_CROSSING_ANGLES = (20, 30, 40, 55, 75, 90)  # three for each straight volume
_PUBLISHED_RADIUS = 3.0  # voxels: the published bundles are thinner than voxels when the whole scene is shown


@dataclass(frozen=True, eq=False)
class Scene:
    """One simulated volume, with its truth in the order of the mask (all voxels).

    Attributes
    ----------
    signal : ndarray, shape (X, Y, Z, N), float32
    gradients : GradientTable
    mask : ndarray of bool, shape (X, Y, Z)
    phantom : Phantom
    affine : ndarray, shape (4, 4)
    """

    signal: np.ndarray
    gradients: GradientTable
    mask: np.ndarray
    phantom: simulation.Phantom
    affine: np.ndarray = field(default_factory=partial(np.eye, 4))

    @property
    def truth(self) -> np.ndarray:
        """Directions of the fibres that fill a tenth of the voxel or more, (n, 4, 3), others zero."""
        return self.phantom.true_directions()[self.mask]

    @property
    def fractions(self) -> np.ndarray:
        """Volume fraction of each fibre population, (n, 4)."""
        return self.phantom.fractions[self.mask]

    def without_fibres(self, tissue: str) -> np.ndarray:
        """Return which voxels, (n,), hold no fibre at all and more than half ``gm`` or ``csf``."""
        return (self.fractions.sum(axis=1) == 0) & (getattr(self.phantom, tissue)[self.mask] > 0.5)


def scenes(
    kind: str, protocol: str, snr: float, *, n_seeds: int, size: int, model: str, folder: Path | None
) -> Iterator[Scene]:
    """Yield the volumes of one row of a table.

    Parameters
    ----------
    kind : {"crossing", "curved", "published"}
        Straight bundles in layers; bundles of the training generator with seeds it never reaches; the geometries of
        ``folder``.
    protocol : str
        Key of `PROTOCOLS`.
    snr : float
    n_seeds : int
        Volumes of the first two kinds; of the last, there is one for each of the first ``4 n_seeds`` files.
    size : int
        Side of the cubes, voxels.
    model : {"sticks", "tensors"}
        Dispersed sticks and zeppelins as in training, or one tensor for each fibre.
    folder : Path or None
        Holds `GEOMETRIES`.
    """
    shells, n_b0 = PROTOCOLS[protocol]
    files = GEOMETRIES[: 4 * n_seeds] if kind == "published" else (None,) * n_seeds
    for seed, file in enumerate(files):
        rng = np.random.default_rng(FIRST_SEED + seed)
        if kind == "published":
            phantom = published_phantom(rng, folder / file, size=size)
        elif kind == "crossing":
            angles = tuple(float(a) for a in rng.permutation(_CROSSING_ANGLES)[:3])
            phantom = simulation.crossing_phantom(rng, size=size, angles=angles)
        else:
            phantom = simulation.random_phantom(rng, size)
        yield observe(rng, phantom, shells, n_b0=n_b0, snr=snr, model=model)


def observe(
    rng: np.random.Generator,
    phantom: simulation.Phantom,
    shells: dict[float, int],
    *,
    n_b0: int,
    snr: float,
    model: str = "sticks",
) -> Scene:
    """Measure a phantom: microstructure of one subject, directions and Rician noise."""
    micro = simulation.draw_microstructure(rng, len(phantom.bundles))
    if model == "tensors":
        ones = np.ones(len(phantom.bundles))
        micro = replace(micro, axonal=0 * ones, axial=1.7e-3 * ones, radial=0.3e-3 * ones, kappa=500 * ones)
    gradients = simulation.make_gradients(rng, shells, n_b0=n_b0)
    signal = 1000 * simulation.add_noise(simulation.noiseless_signal(phantom, micro, gradients), 1 / snr, rng)
    return Scene(signal, gradients, np.ones(phantom.gm.shape, dtype=bool), phantom)


def published_phantom(rng: np.random.Generator, file: Path, *, size: int) -> simulation.Phantom:
    """Fill a cube with the bundles of a file of control points, turned at random; CSF fills one side.

    The middle of the scene is shown, so enlarged that a bundle has a radius of three voxels.
    """
    geometries = json.loads(file.read_text(encoding="utf-8"))["fiber_geometries"]
    radius = np.mean([g["radius"] for g in geometries.values()])
    bundles = bundles_from_control_points(
        geometries,
        shape=(size, size, size),
        extent=size * radius / _PUBLISHED_RADIUS,
        turn=np.linalg.qr(rng.normal(size=(3, 3)))[0],
    )
    return simulation.build_phantom(bundles, (size, size, size), csf=simulation.csf_side(rng, size))


def bundles_from_control_points(
    geometries: dict,
    *,
    shape: tuple[int, int, int],
    extent: float,
    weights: float = 1.0,
    turn: np.ndarray | None = None,
) -> tuple[simulation.Bundle, ...]:
    """Turn bundles given by control points and a radius into tubes in voxel units.

    Parameters
    ----------
    geometries : dict
        Name -> ``{"control_points": [x, y, z, ...], "radius": r}``, in any length unit, centred on the origin.
    shape : tuple of int
        Voxels of the volume.
    extent : float
        Side of the cube around the origin that fills the volume, in the unit of the control points.
    weights : float
        Density of every bundle.
    turn : ndarray, shape (3, 3), optional
        Rotation about the origin.
    """
    scale = min(shape) / extent
    middle = (np.array(shape) - 1) / 2
    rotation = np.eye(3) if turn is None else turn
    bundles = []
    for geometry in geometries.values():
        points = np.asarray(geometry["control_points"], dtype=float).reshape(-1, 3) @ rotation * scale + middle
        curve = _smooth_curve(points)
        bundles.append(simulation.Bundle(curve, np.full(len(curve), geometry["radius"] * scale), density=weights))
    return tuple(bundles)


def _smooth_curve(points: np.ndarray) -> np.ndarray:
    """Interpolate control points by a chord-length cubic spline, every quarter voxel."""
    chord = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])
    spline = make_interp_spline(chord, points, k=min(3, len(points) - 1))
    return spline(np.arange(0.0, chord[-1], 0.25))
