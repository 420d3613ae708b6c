"""Strands around a lesion with known truth: it displaces them, infiltrates them, and has a rim of oedema."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scenes import Scene

from shd_bids.gradients.table import GradientTable
from tests.benchmarks.paper.strands import Strands, draw_strands, observe_strands, outside, strand_phantom

REGIONS = ("core", "infiltrated", "oedema", "displaced")
"""No strands; strands between cells of the lesion; strands in free water; strands pushed aside around all that."""

_INFILTRATION = 0.55  # share of a strand that cells without direction replace
_WATER = 0.5  # share of a strand that free water replaces in the rim
_WIDTHS = (0.6, 0.6, 0.8)  # of the regions around the core, of its radius
_EDGE = 0.3  # width of their borders, voxels


@dataclass(frozen=True, eq=False)
class Lesion:
    r"""A ball that grew at one point and pushed aside what was there, volumes kept: :math:`\rho^3 = r^3 + R^3`.

    Attributes
    ----------
    centre : ndarray, shape (3,)
    radius : float
        R, voxels.
    """

    centre: np.ndarray
    radius: float

    def displace(self, strands: Strands) -> Strands:
        """Return strands where the lesion has pushed them, thinned where it infiltrates them or free water swells them.

        Their tangents are stretched across the radius by rho / r and pressed along it by its inverse square.
        """
        offset = strands.points - self.centre
        r = np.maximum(np.linalg.norm(offset, axis=1, keepdims=True), 1e-6)
        outwards, rho = offset / r, np.cbrt(r**3 + self.radius**3)
        along = (strands.tangents * outwards).sum(axis=1, keepdims=True) * outwards
        tangents = (strands.tangents - along) * (rho / r) + along * (r / rho) ** 2
        tangents /= np.linalg.norm(tangents, axis=1, keepdims=True)
        moved = self.centre + outwards * rho
        infiltrated, swollen = (self.within(name, moved) for name in ("infiltrated", "oedema"))
        volumes = strands.volumes * (1 - _INFILTRATION * infiltrated) * (1 - _WATER * swollen)
        return replace(strands, points=moved, tangents=tangents, volumes=volumes)

    def within(self, region: str, points: np.ndarray) -> np.ndarray:
        """Return how far points (n, 3) lie within a region, 0 to 1."""
        depth = np.linalg.norm(points - self.centre, axis=1) - self.radius
        low, high = self._borders(region)
        return _rise(depth - low) * _rise(high - depth)

    def _borders(self, region: str) -> tuple[float, float]:
        """Return the depths between which a region lies, counted from the border of the core, voxels."""
        number = REGIONS.index(region)
        borders = self.radius * np.cumsum((0.0, *_WIDTHS))
        return (-np.inf if number == 0 else borders[number - 1]), borders[number]


def lesion_scene(
    rng: np.random.Generator,
    *,
    size: int,
    n_bundles: int,
    radius: float,
    lesion_radius: float,
    gradients: GradientTable,
    snr: float,
) -> tuple[Scene, dict[str, np.ndarray]]:
    """Measure strands with a lesion near the centre of the volume, and return the voxels of its regions too."""
    lesion = Lesion((size - 1) / 2 + rng.uniform(-1, 1, 3), lesion_radius)
    strands = lesion.displace(draw_strands(rng, size, n_bundles=n_bundles, radius=radius))
    grid = np.indices((size, size, size)).reshape(3, -1).T
    inside = {name: lesion.within(name, grid) for name in REGIONS}
    fluid = np.maximum(outside(size), inside["oedema"])
    scene = observe_strands(rng, strands, *strand_phantom(strands, size, fluid=fluid), gradients=gradients, snr=snr)
    return scene, {name: (share > 0.5).reshape(scene.mask.shape) for name, share in inside.items()}


def _rise(depth: np.ndarray) -> np.ndarray:
    """Return a smooth step from 0 to 1 at depth 0."""
    return 1 / (1 + np.exp(-np.clip(depth / _EDGE, -50, 50)))
