"""Balls and discs of white-matter bundles that end in a rim of grey matter, with the regions in which each of them ends."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scenes import FIRST_SEED, PROTOCOLS, Scene, bundles_from_control_points, observe
from scipy.spatial.transform import Rotation

from shd_bids import simulation
from shd_bids.simulation.phantoms import membership

SIDE = 44
"""Of the ball's volume, voxels."""

VOXEL = 2.0
"""Edge, mm."""

WHITE, GREY, FLUID = 17.0, 18.6, 20.0
"""Radii in voxels at which white matter, grey matter and fluid end."""


@dataclass(frozen=True)
class Ball:
    """Of a scene: the side of its volume, and the radii at which white matter, grey matter and fluid end, voxels."""

    side: int = SIDE
    white: float = WHITE
    grey: float = GREY
    fluid: float = FLUID


BALL = Ball()

GEOMETRIES = (
    "crossing/crossing_2bundles/40crossing.txt",
    "crossing/60crossing_3bundles.txt",
    "crossing/45crossing_4bundles.txt",
    "kissing/60kissing_3bundles.txt",
)
"""Published files whose bundles lie in a plane and end apart on a sphere around the origin."""

_PUBLISHED_RADIUS = 50.0  # of that sphere, in the unit of the files
_THICKNESS = 8  # voxels, of the disc that holds them

_DEPTH, _MARGIN = 2.5, 1.0  # of an end region: along the bundle, and beyond its border
_APART = 1.5  # voxels between the ends of two bundles
_ATTEMPTS = 20_000


@dataclass(frozen=True, eq=False)
class TractScene:
    """One simulated ball and what a tractogram of it is compared with.

    Attributes
    ----------
    scene : Scene
    inside : ndarray of bool, shape (bundles, X, Y, Z)
        Voxels of each bundle.
    ends : ndarray of int, shape (X, Y, Z)
        Twice the number of a bundle, plus one at its far end, in the regions where bundles end; -1 elsewhere.
    """

    scene: Scene
    inside: np.ndarray
    ends: np.ndarray

    @property
    def affine(self) -> np.ndarray:
        """Voxel to world mm, (4, 4)."""
        return self.scene.affine


def make_scene(protocol: str, snr: float, *, seed: int, n_bundles: int = 20, ball: Ball = BALL) -> TractScene:
    """Draw a ball of bundles and measure it with a protocol of `scenes.PROTOCOLS`."""
    rng = np.random.default_rng(FIRST_SEED + 500 + seed)
    return _measured(rng, _bundles(rng, n_bundles, ball), (ball.side,) * 3, protocol=protocol, snr=snr, ball=ball)


def published_scene(file: Path, protocol: str, snr: float, *, seed: int) -> TractScene:
    """Measure a disc with the bundles of a file of control points, turned in its plane at random."""
    rng = np.random.default_rng(FIRST_SEED + 700 + seed)
    shape = (SIDE, SIDE, _THICKNESS)
    bundles = bundles_from_control_points(
        json.loads(file.read_text(encoding="utf-8"))["fiber_geometries"],
        shape=(SIDE,) * 3,
        extent=SIDE * _PUBLISHED_RADIUS / WHITE,
        turn=Rotation.from_euler("z", rng.uniform(0, 2 * np.pi)).as_matrix(),
    )
    for bundle in bundles:
        bundle.curve[:, 2] += (_THICKNESS - SIDE) / 2
    return _measured(rng, bundles, shape, protocol=protocol, snr=snr)


def _measured(
    rng: np.random.Generator,
    bundles: tuple[simulation.Bundle, ...],
    shape: tuple[int, ...],
    *,
    protocol: str,
    snr: float,
    ball: Ball = BALL,
) -> TractScene:
    """Put grey matter and fluid around bundles that end where white matter does, and measure them."""
    voxels = np.indices(shape).reshape(3, -1).T.astype(float)
    middle = (np.array(shape) - 1) / 2
    distance = np.linalg.norm(voxels - middle, axis=1).reshape(shape)
    phantom = simulation.build_phantom(bundles, shape, csf=1 / (1 + np.exp((ball.grey - distance) / 0.3)))
    shells, n_b0 = PROTOCOLS[protocol]
    scene = observe(rng, phantom, shells, n_b0=n_b0, snr=snr)
    affine = np.diag([VOXEL, VOXEL, VOXEL, 1.0])
    affine[:3, 3] = -VOXEL * middle
    scene = Scene(scene.signal, scene.gradients, distance < ball.fluid, phantom, affine)
    inside = np.stack([membership(bundle, voxels, border=0.22)[0].reshape(shape) > 0.5 for bundle in bundles])
    return TractScene(scene, inside, _end_regions(bundles, voxels).reshape(shape))


def _bundles(rng: np.random.Generator, n: int, ball: Ball) -> tuple[simulation.Bundle, ...]:
    """Draw bundles whose ends lie on a sphere, apart from one another."""
    ends: list[tuple[np.ndarray, float]] = []
    bundles: list[simulation.Bundle] = []
    for _ in range(_ATTEMPTS):
        if len(bundles) == n:
            break
        radius = rng.uniform(1.4, 2.8)
        first, last = _on_sphere(rng), _on_sphere(rng)
        if np.degrees(np.arccos(first @ last)) < 50:
            continue
        new = [(ball.white * first, radius), (ball.white * last, radius)]
        if any(np.linalg.norm(p - q) < r + s + 2 * _MARGIN + _APART for p, r in new for q, s in ends):
            continue
        ends += new
        curve = _curve(ball.white * first, ball.white * last, rng.uniform(0.35, 0.8, 2)) + (ball.side - 1) / 2
        bundles.append(simulation.Bundle(curve, np.full(len(curve), radius), density=rng.uniform(0.6, 1.0)))
    return tuple(bundles)


def _curve(first: np.ndarray, last: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """Return a cubic Bezier curve that leaves the sphere's surface at right angles, a point each quarter voxel."""
    t = np.linspace(0, 1, 2000)[:, None]
    a, b = first * (1 - depth[0]), last * (1 - depth[1])
    fine = (1 - t) ** 3 * first + 3 * t * (1 - t) ** 2 * a + 3 * t**2 * (1 - t) * b + t**3 * last
    along = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(fine, axis=0), axis=1))])
    places = np.linspace(0, along[-1], int(4 * along[-1]))
    return np.stack([np.interp(places, along, axis) for axis in fine.T], axis=1)


def _end_regions(bundles: tuple[simulation.Bundle, ...], voxels: np.ndarray) -> np.ndarray:
    regions = np.full(len(voxels), -1)
    for number, bundle in enumerate(bundles):
        for side, (end, before) in enumerate(((0, 1), (-1, -2))):
            tangent = bundle.curve[end] - bundle.curve[before]
            offset = voxels - bundle.curve[end]
            along = offset @ (tangent / np.linalg.norm(tangent))
            across = np.sqrt(np.maximum((offset**2).sum(axis=1) - along**2, 0))
            regions[(np.abs(along) < _DEPTH) & (across < bundle.radius[end] + _MARGIN)] = 2 * number + side
    return regions


def _on_sphere(rng: np.random.Generator) -> np.ndarray:
    point = rng.normal(size=3)
    return point / np.linalg.norm(point)
