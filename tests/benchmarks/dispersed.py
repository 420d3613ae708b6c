"""Simulated volumes of cubes, each filled by one bundle that disperses, fans or bends, or by two that cross and disperse.

Nothing is shared with the simulation that the network is trained on: sticks are drawn one by one, their offsets from the
main axis Gaussian in its tangent plane (a Bingham distribution), with microstructure and directions of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product

import numpy as np
from dipy.core.sphere import HemiSphere, disperse_charges
from scipy.spatial.transform import Rotation

from shd_bids.gradients.table import GradientTable, gradient_table

PROTOCOLS = {
    "ABCD": ({500.0: 6, 1000.0: 15, 2000.0: 15, 3000.0: 60}, 7),
    "HCP": ({1000.0: 90, 2000.0: 90, 3000.0: 90}, 18),
    "b1000": ({1000.0: 32}, 4),
}
"""Name -> shells (b-value in s/mm2 -> directions) and number of b=0 volumes."""

ROWS = tuple(product(PROTOCOLS, (30, 15)))
"""Protocol and signal-to-noise ratio (of white matter at b=0) of each volume."""

RESPONSE_SPREAD = (8.0, 8.0)
"""Standard deviations of the bundles that the responses come from, degrees."""

LAYERS = 4  # of the slab that holds the bundles of the responses, grey matter and CSF
N_ACROSS, N_ALONG = 7, 4  # cubes
_N_STICKS = 2000
_N_PARTS = 3  # of a voxel along each axis where directions change within it
_SHARE_STILL = 0.02  # of the signal of white matter, from water that does not move


@dataclass(frozen=True)
class Configuration:
    """What fills a cube.

    Attributes
    ----------
    name : str
    spreads : tuple of (float, float)
        Standard deviations of each bundle about its axis, degrees: in the plane of crossing, bending or fanning, and across.
    angle : float
        Between two bundles, degrees.
    shares : tuple of float
        Of the bundles.
    radius : float
        Of curvature, voxels.
    """

    name: str
    spreads: tuple[tuple[float, float], ...]
    angle: float = 0.0
    shares: tuple[float, ...] = (1.0,)
    radius: float = np.inf

    @property
    def tilts(self) -> np.ndarray:
        """Angles of the axes of the bundles from the middle axis, radians."""
        return np.radians([0.0] if len(self.spreads) == 1 else [self.angle / 2, -self.angle / 2])


SINGLE = (
    *(Configuration(f"dispersed {a}x{a}", ((a, a),)) for a in (12, 18, 20, 24)),
    *(Configuration(f"fanned {a}x{b}", ((a, b),)) for a, b in ((12, 6), (16, 6), (20, 8), (26, 8))),
    *(Configuration(f"bent, radius {radius}", (RESPONSE_SPREAD,), radius=radius) for radius in (10, 6)),
)
CROSSING = tuple(
    Configuration(f"crossing {angle}, {a}x{a}, {share}/{100 - share}", ((a, a),) * 2, angle, (share / 100, 1 - share / 100))
    for angle, a, share in product((40, 60, 90), (8, 15, 20), (50, 60))
)  # fmt: skip
CONFIGURATIONS = (*SINGLE, *CROSSING)


@dataclass(frozen=True)
class Microstructure:
    """Diffusion in a bundle: share of axons and diffusivities along axons, along and across the rest, mm2/s."""

    axonal: float
    along_axons: float
    along: float
    across: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Microstructure:
        """Draw the values of one bundle."""
        return cls(*rng.uniform([0.5, 2.0e-3, 1.4e-3, 0.5e-3], [0.6, 2.4e-3, 1.8e-3, 0.7e-3]))

    def signal(self, sticks: np.ndarray, gradients: GradientTable) -> np.ndarray:
        """Return the mean signal, (N,), of axons along ``sticks``, (n, 3), and of what surrounds them."""
        return self.signals(sticks, gradients).mean(axis=0)

    def signals(self, sticks: np.ndarray, gradients: GradientTable) -> np.ndarray:
        r"""Return the signal, (n, N), of axons along each of ``sticks``, (n, 3), and of what surrounds them.

        .. math:: E = f e^{-b d_a c^2} + (1 - f) e^{-b (d_\perp + (d_\parallel - d_\perp) c^2)},
                  \qquad c = \langle u, g\rangle,

        beside a little water that does not move.
        """
        squared = (sticks @ gradients.directions.T) ** 2  # (n, N)
        axons = np.exp(-gradients.bvals * self.along_axons * squared)
        rest = np.exp(-gradients.bvals * (self.across + (self.along - self.across) * squared))
        moving = self.axonal * axons + (1 - self.axonal) * rest
        return _SHARE_STILL + (1 - _SHARE_STILL) * moving


@dataclass(frozen=True, eq=False)
class Region:
    """Voxels of one kind: their numbers in the flat volume, (n,), and their true axes, (n, F, 3)."""

    name: str
    voxels: np.ndarray
    axes: np.ndarray


@dataclass(frozen=True, eq=False)
class Volume:
    """One simulated volume: signal (X, Y, Z, N), mask of all voxels, gradients, and the regions that are scored."""

    signal: np.ndarray
    mask: np.ndarray
    gradients: GradientTable
    regions: tuple[Region, ...]
    affine: np.ndarray = field(default_factory=partial(np.eye, 4))

    @property
    def scored(self) -> np.ndarray:
        """Which voxels belong to a region, (X, Y, Z)."""
        scored = np.zeros_like(self.mask)
        scored.ravel()[np.concatenate([region.voxels for region in self.regions])] = True
        return scored

    def rows(self, region: Region) -> np.ndarray:
        """Return where the voxels of a region stand among those that are scored, (n,)."""
        return np.searchsorted(np.flatnonzero(self.scored), region.voxels)


def make_volume(
    protocol: str, snr: float, *, seed: int, side: int, configurations: Sequence[Configuration] = CONFIGURATIONS
) -> Volume:
    """Simulate one volume with Rician noise.

    Parameters
    ----------
    protocol : str
        Key of `PROTOCOLS`.
    snr : float
        Of white matter at b=0.
    seed : int
        Of axes, microstructure and noise; the directions of a protocol are always the same.
    side : int
        Of a cube, voxels; those at its surface are not scored.
    configurations : sequence of Configuration
        At most one for each cube.
    """
    rng = np.random.default_rng([seed, 20_261])
    gradients = make_gradients(protocol)
    pitch = side + 1
    shape = (N_ACROSS * pitch, N_ALONG * pitch, pitch + LAYERS)
    clean = np.empty((*shape, gradients.n_volumes))
    clean[:] = grey_matter(gradients)
    regions = [_fill_cube(rng, clean, k, c, side, gradients) for k, c in enumerate(configurations)]
    regions += _fill_slab(rng, clean, pitch, gradients)
    noisy = np.hypot(clean + rng.normal(0, 1 / snr, clean.shape), rng.normal(0, 1 / snr, clean.shape))
    return Volume((1000 * noisy).astype(np.float32), np.ones(shape, dtype=bool), gradients, tuple(regions))


def make_gradients(protocol: str) -> GradientTable:
    """Spread the directions of each shell by electrostatic repulsion (dipy)."""
    shells, n_b0 = PROTOCOLS[protocol]
    rng = np.random.default_rng(7)
    bvals, directions = [np.zeros(n_b0)], [np.zeros((n_b0, 3))]
    for bvalue, n in shells.items():
        start = HemiSphere(theta=np.arccos(rng.uniform(0, 1, n)), phi=rng.uniform(0, 2 * np.pi, n))
        bvals.append(np.full(n, bvalue))
        directions.append(disperse_charges(start, 2000)[0].vertices)
    return gradient_table(np.concatenate(bvals), np.concatenate(directions))


def draw_sticks(rng: np.random.Generator, spread: tuple[float, float], n: int) -> np.ndarray:
    """Draw ``n`` axes about z, (n, 3), whose offsets have standard deviations ``spread`` along x and y, degrees.

    Each comes with its mirror image about z, so that z is their mean axis exactly.
    """
    offsets = rng.normal(size=(n // 2, 2)) * np.radians(spread)
    offsets = np.concatenate([offsets, -offsets])
    length = np.linalg.norm(offsets, axis=1, keepdims=True)
    return np.concatenate([offsets * np.sinc(length / np.pi), np.cos(length)], axis=1)


def grey_matter(gradients: GradientTable) -> np.ndarray:
    """Return the signal of grey matter, (N,), relative to white matter at b=0: cells, neurites all ways, and the rest."""
    b = gradients.bvals
    cosine = np.linspace(0.0025, 0.9975, 200)
    neurites = np.exp(-b[:, None] * 2.0e-3 * cosine**2).mean(axis=1)
    return 1.3 * (0.1 * np.exp(-0.15e-3 * b) + 0.25 * neurites + 0.65 * np.exp(-1.2e-3 * b))


def csf(gradients: GradientTable) -> np.ndarray:
    """Return the signal of CSF, (N,), relative to white matter at b=0."""
    return 2.9 * np.exp(-3.0e-3 * gradients.bvals)


def tangents(positions: np.ndarray, radius: float) -> np.ndarray:
    """Return the unit tangents, (n, 3), at positions (n, 3) of a bundle that bends in the x-z plane about x = -radius.

    At the origin it runs along z.
    """
    if np.isinf(radius):
        return np.broadcast_to([0.0, 0.0, 1.0], positions.shape)
    angle = np.arctan2(positions[:, 2], radius + positions[:, 0])
    return np.stack([-np.sin(angle), 0 * angle, np.cos(angle)], axis=1)


def _fill_cube(
    rng: np.random.Generator, clean: np.ndarray, number: int, what: Configuration, side: int, gradients: GradientTable
) -> Region:
    """Write the signal of one cube and return the voxels below its surface."""
    corner = np.array([number % N_ACROSS, number // N_ACROSS, 0]) * (side + 1)
    window = tuple(slice(start, start + side) for start in corner)
    frame = Rotation.random(rng=rng).as_matrix()  # columns: axes of the configuration in the world
    micros = [Microstructure.draw(rng) for _ in what.spreads]
    places = np.stack(np.meshgrid(*[np.arange(side) - (side - 1) / 2] * 3, indexing="ij"), axis=-1)  # voxels
    if np.isfinite(what.radius):
        signal, middle = _bent(rng, what, places.reshape(-1, 3) @ frame, frame, micros[0], gradients)
        clean[window] = signal.reshape(*places.shape[:3], -1)
        axes = middle.reshape(*places.shape[:3], 1, 3)
    else:
        bundles = [_straight(rng, s, tilt, frame) for s, tilt in zip(what.spreads, what.tilts, strict=True)]
        signals = [m.signal(sticks, gradients) for m, (sticks, _) in zip(micros, bundles, strict=True)]
        clean[window] = np.tensordot(what.shares, signals, axes=1)
        axes = np.broadcast_to([axis for _, axis in bundles], (*places.shape[:3], len(bundles), 3))
    inner = (slice(1, -1),) * 3
    rows = np.arange(clean[..., 0].size).reshape(clean.shape[:3])[window][inner]
    return Region(what.name, rows.ravel(), axes[inner].reshape(rows.size, -1, 3))


def _straight(
    rng: np.random.Generator, spread: tuple[float, float], tilt: float, frame: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return sticks (n, 3) and axis (3,) of a bundle tilted from the z to the x axis of the frame."""
    turn = frame @ Rotation.from_euler("y", tilt).as_matrix()
    return draw_sticks(rng, spread, _N_STICKS) @ turn.T, turn[:, 2]


def _bent(
    rng: np.random.Generator,
    what: Configuration,
    places: np.ndarray,
    frame: np.ndarray,
    micro: Microstructure,
    gradients: GradientTable,
) -> tuple[np.ndarray, np.ndarray]:
    """Return signal (n, N) and axes in the world (n, 3) of the voxels at ``places`` (n, 3), axes of the frame."""
    offsets = (np.arange(_N_PARTS) + 0.5) / _N_PARTS - 0.5
    parts = np.array(list(product(offsets, repeat=3))) @ frame
    sticks = draw_sticks(rng, what.spreads[0], 60)
    signal = np.empty((len(places), gradients.n_volumes))
    for number, place in enumerate(places):
        along = tangents(place + parts, what.radius)  # (27, 3)
        across = np.cross([0.0, 1.0, 0.0], along)
        local = np.stack([across, np.broadcast_to([0.0, 1.0, 0.0], along.shape), along], axis=1)  # (27, 3 axes, 3)
        signal[number] = micro.signal(np.einsum("sa,pai->psi", sticks, local).reshape(-1, 3) @ frame.T, gradients)
    return signal, tangents(places, what.radius) @ frame.T


def _fill_slab(rng: np.random.Generator, clean: np.ndarray, pitch: int, gradients: GradientTable) -> list[Region]:
    """Fill the slab beside the cubes with bundles for the responses, grey matter and CSF; grey matter is there already."""
    rows = np.arange(clean[..., 0].size).reshape(clean.shape[:3])
    n_blocks = N_ACROSS // 2 + 1
    bundles = []
    for i, j in product(range(n_blocks), range(N_ALONG)):
        window = (slice(i * pitch, (i + 1) * pitch), slice(j * pitch, (j + 1) * pitch), slice(pitch, None))
        sticks, axis = _straight(rng, RESPONSE_SPREAD, 0.0, Rotation.random(rng=rng).as_matrix())
        clean[window] = Microstructure.draw(rng).signal(sticks, gradients)
        inner = rows[window][1:-1, 1:-1, 1:-1].ravel()
        bundles.append(Region("single 8x8", inner, np.broadcast_to(axis, (len(inner), 1, 3))))
    grey, fluid = n_blocks * pitch, (clean.shape[0] + n_blocks * pitch) // 2
    clean[fluid:, :, pitch:] = csf(gradients)
    both = {"grey matter": rows[grey + 1 : fluid - 1], "CSF": rows[fluid + 1 : -1]}
    parts = {name: part[:, 1:-1, pitch + 1 : -1].ravel() for name, part in both.items()}
    single = Region(
        "single 8x8", np.concatenate([b.voxels for b in bundles]), np.concatenate([b.axes for b in bundles])
    )
    return [single, *(Region(name, part, np.zeros((len(part), 0, 3))) for name, part in parts.items())]
