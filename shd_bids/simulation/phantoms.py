"""Geometry with known truth: which fibre populations cross each voxel, and where grey matter and CSF lie."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from scipy.spatial import cKDTree

MAX_FIBRES = 4
"""Fibre populations kept per voxel, the largest first."""


_BORDER = 0.22  # width of a bundle's border, voxels


@dataclass(frozen=True, eq=False)
class Bundle:
    """A tube of fibres around a centre curve.

    Parameters
    ----------
    curve : ndarray, shape (P, 3)
        Points of the centre line, in voxel units, closely spaced.
    radius : ndarray, shape (P,)
        Half width at each point, in voxels; fibres fan out where it grows.
    density : float
        Share of the common space the bundle takes where it overlaps others.
    flattening : float
        Ratio of the two half widths of the cross-section; 1 is a round tube, larger is a sheet.
    normal : ndarray, shape (3,)
        Direction in which a flattened bundle is thin.
    """

    curve: np.ndarray
    radius: np.ndarray
    density: float = 1.0
    flattening: float = 1.0
    normal: np.ndarray = field(default_factory=lambda: np.array([0.0, 0.0, 1.0]))


@dataclass(frozen=True, eq=False)
class Phantom:
    """Truth of a simulated volume; fibre slots are sorted by fraction and zero where unused.

    Parameters
    ----------
    directions : ndarray, shape (X, Y, Z, 4, 3)
        Unit fibre directions in world axes.
    fractions : ndarray, shape (X, Y, Z, 4)
        Volume fraction of each fibre population.
    bundle : ndarray of int, shape (X, Y, Z, 4)
        Index of the bundle each population belongs to; -1 where unused.
    gm, csf : ndarray, shape (X, Y, Z)
        Volume fractions of grey matter and CSF; all fractions of a voxel sum to one.
    bundles : tuple of Bundle
    """

    directions: np.ndarray
    fractions: np.ndarray
    bundle: np.ndarray
    gm: np.ndarray
    csf: np.ndarray
    bundles: tuple[Bundle, ...]

    @property
    def wm(self) -> np.ndarray:
        """White-matter volume fraction, shape (X, Y, Z)."""
        return self.fractions.sum(axis=-1)

    def true_directions(self, threshold: float = 0.1) -> np.ndarray:
        """Return the directions of the populations that fill at least ``threshold`` of the voxel, others zero."""
        return self.directions * (self.fractions >= threshold)[..., None]


def random_bundles(
    rng: np.random.Generator, size: int, *, narrowness: float = 1.0, bending: float = 1.0, sparse: bool = False
) -> tuple[Bundle, ...]:
    """Draw bundles that cross, kiss, bend and fan in a cube.

    Parameters
    ----------
    rng : numpy.random.Generator
    size : int
        Side of the cube, voxels.
    narrowness : float
        Bundles that cross do so at 12 to 90 degrees, evenly spread for 1 and mostly narrow above.
    bending : float
        How much they bend, relative to the usual.
    sparse : bool
        Whether there are one or two instead of three to six.
    """
    bundles: list[Bundle] = []
    for _ in range(rng.integers(1, 3) if sparse else rng.integers(3, 7)):
        centre = rng.uniform(0.1, 0.9, size=3) * size
        direction = _unit(rng.normal(size=3))
        bend = bending * rng.normal(size=3) * rng.choice([0.0, 0.02, 0.06]) * 16 / max(size, 16)
        if bundles and rng.random() < 0.75:
            other = bundles[rng.integers(len(bundles))]
            near = rng.integers(len(other.curve) // 3, 2 * len(other.curve) // 3)
            tangent = _unit(other.curve[near + 1] - other.curve[near])
            side = _unit(np.cross(tangent, rng.normal(size=3)))
            if rng.random() < 0.2:  # kissing: touch, run along, bend away
                centre = other.curve[near] + side * other.radius[near] * 1.8
                direction, bend = tangent, bending * side * rng.uniform(0.02, 0.08)
            else:
                angle = np.deg2rad(12.0 + 78.0 * rng.random() ** narrowness)
                centre = other.curve[near] + side * rng.uniform(-0.7, 0.7) * other.radius[near]
                direction = np.cos(angle) * tangent + np.sin(angle) * _unit(
                    np.cross(tangent, side + rng.normal(size=3))
                )
        bundles.append(_cubic_bundle(rng, size, centre.clip(0, size), direction, bend, bending))
    return tuple(bundles)


def _cubic_bundle(
    rng: np.random.Generator, size: int, centre: np.ndarray, direction: np.ndarray, bend: np.ndarray, bending: float
) -> Bundle:
    """Return a tube around the curve ``c + s d + s^2 bend / 2 + s^3 twist / 6``."""
    s = np.arange(-1.2 * size, 1.2 * size, 0.25)
    twist = bending * rng.normal(size=3) * rng.choice([0.0, 0.003]) * 16 / max(size, 16)
    curve = centre + s[:, None] * direction + s[:, None] ** 2 / 2 * bend + s[:, None] ** 3 / 6 * twist
    outside = np.flatnonzero(np.any((curve < -8) | (curve > size + 8), axis=1))
    middle = len(s) // 2  # the centre itself: keep the stretch of the curve around it
    keep = slice(outside[outside < middle].max(initial=-1) + 1, outside[outside > middle].min(initial=len(s)))
    widest = rng.choice([2.0, 3.5, 6.0], p=[0.35, 0.35, 0.3])
    growth = rng.normal() * rng.choice([0.0, 0.035])
    radius = rng.uniform(0.6, 1.0) * widest * np.exp(np.clip(growth * s, -1.2, 1.2))
    return Bundle(
        curve=curve[keep],
        radius=radius[keep],
        density=rng.uniform(0.35, 1.0),
        flattening=float(rng.choice([1.0, 2.5], p=[0.7, 0.3])),
        normal=_unit(np.cross(direction, rng.normal(size=3))),
    )


def build_phantom(
    bundles: tuple[Bundle, ...],
    shape: tuple[int, int, int],
    *,
    csf: np.ndarray | None = None,
    oedema: np.ndarray | None = None,
    background_csf: float = 0.0,
    purity: float = 1.0,
) -> Phantom:
    """Fill a volume with bundles; what they leave free is grey matter, or CSF where ``csf`` says so.

    Parameters
    ----------
    bundles : tuple of Bundle
    shape : tuple of int
    csf : ndarray, shape (X, Y, Z), optional
        Share of each voxel taken by CSF before anything else.
    oedema : ndarray, shape (X, Y, Z), optional
        Share of the white matter of each voxel replaced by free water.
    background_csf : float
        Share of CSF in what the bundles leave free.
    purity : float
        Largest white-matter fraction of a voxel.
    """
    voxels = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1).reshape(-1, 3).astype(float)
    members = np.zeros((len(voxels), len(bundles)))
    directions = np.zeros((len(voxels), len(bundles), 3))
    for i, bundle in enumerate(bundles):
        members[:, i], directions[:, i], _ = membership(bundle, voxels, border=_BORDER)
    union = purity * (1 - np.prod(1 - members, axis=1))
    shares = members * np.array([b.density for b in bundles])
    shares *= (union / np.maximum(shares.sum(axis=1), 1e-9))[:, None]
    water = np.zeros(len(voxels)) if csf is None else csf.reshape(-1)
    swelling = np.zeros(len(voxels)) if oedema is None else oedema.reshape(-1)
    rest = 1 - union
    free = water + (1 - water) * (swelling * union + background_csf * rest)
    shares *= ((1 - water) * (1 - swelling))[:, None]
    order = np.argsort(-shares, axis=1)[:, :MAX_FIBRES]
    kept = np.take_along_axis(shares, order, axis=1)
    kept[kept < 0.02] = 0.0  # below any use: counted as grey matter
    pad = [(0, 0), (0, MAX_FIBRES - kept.shape[1])]
    kept, order = np.pad(kept, pad), np.pad(order, pad)
    found = np.take_along_axis(np.concatenate([directions, np.zeros((len(voxels), 1, 3))], 1), order[..., None], axis=1)
    return Phantom(
        directions=(found * (kept > 0)[..., None]).reshape(*shape, MAX_FIBRES, 3),
        fractions=kept.reshape(*shape, MAX_FIBRES),
        bundle=np.where(kept > 0, order, -1).reshape(*shape, MAX_FIBRES),
        gm=(1 - kept.sum(axis=1) - free).clip(0).reshape(shape),
        csf=free.reshape(shape),
        bundles=bundles,
    )


def membership(bundle: Bundle, points: np.ndarray, *, border: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find which points lie in a tube.

    Parameters
    ----------
    bundle : Bundle
    points : ndarray, shape (n, 3)
        In voxels.
    border : float
        Width of the tube's border, voxels.

    Returns
    -------
    member : ndarray, shape (n,)
        1 well inside, 0 well outside.
    direction : ndarray, shape (n, 3)
        Of the fibres at points that are not far outside; unit length.
    nearest : ndarray of int, shape (n,)
        Point of the centre curve; 0 far outside.
    """
    reach = bundle.radius.max() * bundle.flattening + 2
    distance, nearest = cKDTree(bundle.curve).query(points, distance_upper_bound=reach)
    inside = np.isfinite(distance)
    member, direction = np.zeros(len(points)), np.zeros((len(points), 3))
    near = nearest[inside]
    tangent = np.gradient(bundle.curve, axis=0)
    step = np.linalg.norm(tangent, axis=1)
    tangent /= step[:, None]
    growth = np.gradient(np.log(bundle.radius)) / step
    offset = points[inside] - bundle.curve[near]
    thin = offset @ bundle.normal
    wide = np.sqrt(np.maximum((offset**2).sum(1) - thin**2, 0))
    radius = bundle.radius[near]
    effective = np.hypot(thin, wide / bundle.flattening)
    past_end = ((near == 0) | (near == len(bundle.curve) - 1)) & (np.abs((offset * tangent[near]).sum(1)) > 0.6)
    member[inside] = np.where(past_end, 0.0, 1 / (1 + np.exp((effective - radius) / border)))
    member[member < 0.02] = 0.0
    direction[inside] = _unit(tangent[near] + growth[near][:, None] * offset)
    return member, direction, np.where(inside, nearest, 0)


def random_phantom(rng: np.random.Generator, size: int) -> Phantom:
    """Draw a cube of ``size`` voxels with bundles, grey matter, CSF and sometimes an oedema-like region."""
    shape = (size, size, size)
    csf = _blob(rng, shape) if rng.random() < 0.5 else None
    oedema = _blob(rng, shape) * rng.uniform(0.2, 0.7) if rng.random() < 0.2 else None
    return build_phantom(
        random_bundles(rng, size),
        shape,
        csf=csf,
        oedema=oedema,
        background_csf=float(rng.choice([0.0, 0.1, 1.0], p=[0.5, 0.3, 0.2])),
        purity=rng.uniform(0.85, 1.0),
    )


def crossing_phantom(
    rng: np.random.Generator, *, size: int = 24, angles: tuple[float, ...] = (30.0, 60.0, 90.0), radius: float = 3.0
) -> Phantom:
    """Stack straight crossings of known angle in layers, turned as a whole at random; CSF fills one side.

    The geometry differs from that of :func:`random_phantom`, so it can score what was trained on the other.

    Parameters
    ----------
    size : int
        Side of the cube, voxels.
    angles : tuple of float
        Crossing angle of each layer, degrees; every second layer gets a third bundle that halves the wider angle.
    radius : float
        Of the bundles, voxels.
    """
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    middle = (size - 1) / 2
    s = np.arange(-size, size, 0.25)
    bundles = []
    for layer, angle in enumerate(angles):
        height = (layer - (len(angles) - 1) / 2) * 2.3 * radius
        azimuths = [0.0, angle] + ([90.0 + angle / 2] if layer % 2 else [])
        for azimuth in np.deg2rad(azimuths):
            line = s[:, None] * np.array([np.cos(azimuth), np.sin(azimuth), 0.0]) + np.array([0.0, 0.0, height])
            bundles.append(Bundle(line @ turn + middle, np.full(len(s), radius), density=rng.uniform(0.6, 1.0)))
    return build_phantom(tuple(bundles), (size, size, size), csf=csf_side(rng, size))


def csf_side(rng: np.random.Generator, size: int) -> np.ndarray:
    """Return the share of CSF in each voxel of a cube that has it on one side, drawn at random."""
    grid = np.stack(np.meshgrid(*[np.arange(size) - (size - 1) / 2] * 3, indexing="ij"), axis=-1)
    return 1 / (1 + np.exp((0.42 * size - grid @ _unit(rng.normal(size=3))) / 0.4))


def _blob(rng: np.random.Generator, shape: tuple[int, int, int]) -> np.ndarray:
    """Return a smooth-edged random ellipsoid, 1 inside and 0 outside."""
    return 1 / (1 + np.exp(-depth_in_ellipsoid(rng, shape) / 0.35))


def depth_in_ellipsoid(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Draw an ellipsoid and return about how deep in it each voxel lies, negative outside, voxels."""
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1).astype(float)
    centre = rng.uniform(-0.1, 1.1, size=3) * np.array(shape)
    axes = rng.uniform(0.12, 0.4, size=3) * max(shape)
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    distance = np.linalg.norm(((grid - centre) @ turn) / axes, axis=-1)
    return (1 - distance) * axes.mean()


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
