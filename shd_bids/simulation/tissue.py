"""White matter as tissue: bundles that disperse, fan and bend within a voxel, between grey matter and CSF.

Each fibre population of a voxel has a main direction and a covariance across it, which adds what the bundle disperses
microscopically to what its geometry spreads within the voxel.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.ndimage import gaussian_filter1d
from scipy.spatial.transform import Rotation

from shd_bids.simulation.phantoms import MAX_FIBRES, Bundle, depth_in_ellipsoid, membership, random_bundles

_SUBDIVISION = 2  # of a voxel along each axis, for what its borders and bends do within it
_LEAST_SHARE = 0.02  # of a voxel; less is counted as grey matter
_BORDER = 0.15  # width of a bundle's border, voxels


@dataclass(frozen=True, eq=False)
class Dispersion:
    """How far the fibres of a bundle spread around its tangent, microscopically.

    Attributes
    ----------
    across : ndarray, shape (P,)
        Standard deviation at each point of the centre curve, radians.
    along : ndarray, shape (P,)
        The same in the plane of ``fan``, at least ``across``.
    fan : ndarray, shape (3,)
        Direction towards which the bundle fans; only its part across the tangent counts.
    tails : float
        The m of its density, see :mod:`shd_bids.simulation.dispersion`; that of a Bingham density if not given.
    """

    across: np.ndarray
    along: np.ndarray
    fan: np.ndarray
    tails: float = 0.0


@dataclass(frozen=True, eq=False)
class Tissue:
    """Truth of a simulated volume; populations are sorted by fraction and zero where unused.

    Attributes
    ----------
    directions : ndarray, shape (X, Y, Z, 4, 3)
        Unit main directions in world axes.
    covariance : ndarray, shape (X, Y, Z, 4, 3, 3)
        Covariance of the directions in the tangent plane, radians squared.
    fractions : ndarray, shape (X, Y, Z, 4)
        Volume fraction of each population.
    bundle : ndarray of int, shape (X, Y, Z, 4)
        Bundle of each population; -1 where unused.
    gm, csf : ndarray, shape (X, Y, Z)
        All fractions of a voxel sum to one.
    tails : ndarray, shape (B,)
        The m of the density of each bundle, see :mod:`shd_bids.simulation.dispersion`.
    """

    directions: np.ndarray
    covariance: np.ndarray
    fractions: np.ndarray
    bundle: np.ndarray
    gm: np.ndarray
    csf: np.ndarray
    tails: np.ndarray


def draw_dispersion(rng: np.random.Generator, bundle: Bundle, narrowest: float) -> Dispersion:
    """Draw the dispersion of a bundle, which varies along it; ``narrowest`` is that of the response voxels, radians."""
    if rng.random() < 0.35:
        base = narrowest * rng.uniform(0.75, 1.15)
    else:
        base = np.hypot(narrowest * rng.uniform(0.75, 1.0), np.deg2rad(rng.uniform(0.0, 27.0)))
    extra = np.deg2rad(rng.uniform(4.0, 28.0)) if rng.random() < 0.45 else 0.0
    if extra and rng.random() < 0.6:
        base = narrowest * rng.uniform(0.75, 1.15)  # a sheet that fans is thin across
    s = np.arange(len(bundle.curve)) / 4.0
    wave = np.exp(0.3 * rng.uniform(0, 1) * np.sin(2 * np.pi * (s / rng.uniform(10.0, 40.0) + rng.random())))
    across = np.minimum(base * wave, np.deg2rad(32.0))
    along = np.minimum(np.hypot(across, extra * wave[::-1]), np.deg2rad(36.0))
    return Dispersion(across, along, rng.normal(size=3), tails=rng.uniform(0.0, 1.0))


def random_tissue(rng: np.random.Generator, size: int, *, narrowest: float) -> Tissue:
    """Draw a cube of ``size`` voxels of white matter with bundles that disperse, grey matter, CSF and sometimes oedema.

    Parameters
    ----------
    rng : numpy.random.Generator
    size : int
    narrowest : float
        Dispersion of the response voxels, radians.
    """
    bundles = _draw_bundles(rng, size)
    shape = (size,) * 3
    csf = _blob(rng, shape) if rng.random() < 0.6 else np.zeros(shape)
    if rng.random() < 0.15:  # a cistern or fissure
        csf = np.maximum(csf, _sheet(rng, shape))
    oedema = _blob(rng, shape) * rng.uniform(0.2, 0.7) if rng.random() < 0.15 else np.zeros(shape)
    tissue = build_tissue(
        bundles,
        [draw_dispersion(rng, b, narrowest) for b in bundles],
        csf=csf,
        oedema=oedema,
        background_csf=float(rng.choice([0.0, 0.1, 1.0], p=[0.6, 0.25, 0.15])),
        purity=rng.uniform(0.92, 1.0),
    )
    if rng.random() < 0.6:
        return tissue
    length = rng.uniform(0.4, 1.5)
    if rng.random() < 0.5:
        angle = np.deg2rad(np.exp(rng.uniform(np.log(1.5), np.log(10.0))))
        tissue = winding(tissue, rng, angle=angle, length=length)
    return thinned(tissue, rng, length=length)


def winding(tissue: Tissue, rng: np.random.Generator, *, angle: float, length: float) -> Tissue:
    """Turn the fibres of each voxel by a smooth random rotation, as they wind on a scale of few voxels.

    Parameters
    ----------
    tissue : Tissue
    rng : numpy.random.Generator
    angle : float
        Standard deviation of the rotation about each axis, radians.
    length : float
        Standard deviation of the Gaussian kernel that smooths the rotations, voxels.
    """
    field = np.stack([_smooth_field(rng, tissue.gm.shape, length) for _ in range(3)], axis=-1)
    turn = Rotation.from_rotvec((angle * field).reshape(-1, 3)).as_matrix().reshape(*tissue.gm.shape, 1, 3, 3)
    return replace(
        tissue,
        directions=(turn @ tissue.directions[..., None])[..., 0],
        covariance=turn @ tissue.covariance @ np.swapaxes(turn, -1, -2),
    )


def thinned(tissue: Tissue, rng: np.random.Generator, *, length: float) -> Tissue:
    """Let white matter give way to grey matter here and there, and its dispersion vary, on a scale of few voxels.

    Parameters
    ----------
    tissue : Tissue
    rng : numpy.random.Generator
    length : float
        Standard deviation of the Gaussian kernel that smooths both, voxels.
    """
    loss = rng.uniform(0.0, 0.5) / (1 + np.exp(2 - 2 * _smooth_field(rng, tissue.gm.shape, length)))
    wider = np.exp(rng.uniform(0.0, 0.4) * _smooth_field(rng, tissue.gm.shape, length)).clip(0.5, 2.0)
    fractions = tissue.fractions * (1 - loss)[..., None]
    return replace(
        tissue,
        covariance=tissue.covariance * wider[..., None, None, None],
        fractions=fractions,
        gm=tissue.gm + (tissue.fractions - fractions).sum(axis=-1),
    )


def _smooth_field(rng: np.random.Generator, shape: tuple[int, ...], length: float) -> np.ndarray:
    """Return Gaussian noise of unit variance that a Gaussian kernel of a standard deviation, voxels, has smoothed."""
    field = rng.normal(size=shape)
    for axis in range(3):
        field = gaussian_filter1d(field, length, axis=axis, mode="reflect")
    return field / field.std()


def _draw_bundles(rng: np.random.Generator, size: int) -> tuple[Bundle, ...]:
    """Draw bundles of which one or two often fill the volume, as white matter does deep in the brain."""
    sparse = rng.random() < 0.35
    bending = float(rng.choice([0.0, 1.0, 2.0], p=[0.5, 0.37, 0.13]))
    bundles = list(random_bundles(rng, size, narrowness=1.3, bending=bending, sparse=sparse))
    if rng.random() < (0.75 if sparse else 0.4):
        i = int(rng.integers(len(bundles)))
        bundles[i] = _filling(bundles[i], size, bundles[i].density * rng.uniform(0.5, 1.0))
        if sparse and len(bundles) > 1 and rng.random() < 0.6:
            bundles[1 - i] = _filling(bundles[1 - i], size, bundles[1 - i].density)
    return tuple(bundles)


def _filling(bundle: Bundle, size: int, density: float) -> Bundle:
    """Return a round bundle on the same curve that is wider than the volume."""
    return Bundle(bundle.curve, np.full(len(bundle.curve), 2.0 * size), density)


def build_tissue(
    bundles: tuple[Bundle, ...],
    dispersion: list[Dispersion],
    *,
    csf: np.ndarray,
    oedema: np.ndarray | None = None,
    background_csf: float = 0.0,
    purity: float = 1.0,
) -> Tissue:
    """Fill a volume with bundles, by parts of voxels; what they leave free is grey matter, or CSF.

    Parameters
    ----------
    bundles : tuple of Bundle
    dispersion : list of Dispersion
        Of each bundle.
    csf : ndarray, shape (X, Y, Z)
        Share of each voxel taken by CSF before anything else.
    oedema : ndarray, shape (X, Y, Z), optional
        Share of the white matter replaced by free water.
    background_csf : float
        Share of CSF in what the bundles leave free.
    purity : float
        Largest white-matter fraction of a voxel.
    """
    shape = csf.shape
    members, tensors, micro = _spread_of_bundles(bundles, dispersion, shape)
    shares, union = _shares(members, np.array([b.density for b in bundles]), purity)
    water = csf.reshape(-1)
    swelling = np.zeros(water.size) if oedema is None else oedema.reshape(-1)
    free = water + (1 - water) * (swelling * union + background_csf * (1 - union))
    kept, order = _largest(shares * ((1 - water) * (1 - swelling))[:, None])
    rows = np.arange(water.size)[:, None]
    direction, covariance = _populations(tensors[rows, order], micro[rows, order], kept > 0)
    return Tissue(
        directions=direction.reshape(*shape, MAX_FIBRES, 3),
        covariance=covariance.reshape(*shape, MAX_FIBRES, 3, 3),
        fractions=kept.reshape(*shape, MAX_FIBRES),
        bundle=np.where(kept > 0, order, -1).reshape(*shape, MAX_FIBRES),
        gm=(1 - kept.sum(axis=1) - free).clip(0).reshape(shape),
        csf=free.reshape(shape),
        tails=np.array([spread.tails for spread in dispersion]),
    )


def _spread_of_bundles(
    bundles: tuple[Bundle, ...], dispersion: list[Dispersion], shape: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return how much of each part of a voxel lies in each bundle, and the spread of directions within a voxel.

    Returns
    -------
    members : ndarray, shape (n, parts, B)
    tensors : ndarray, shape (n, B, 3, 3)
        Mean of :math:`u u^T` over the directions of a bundle in a voxel.
    micro : ndarray, shape (n, B, 3, 3)
        Covariance of its microscopic dispersion, not only across the direction.
    """
    points = _points(shape)  # (n, parts, 3)
    n, n_parts, _ = points.shape
    members = np.zeros((n, n_parts, len(bundles)))
    tensors, micro = np.zeros((2, n, len(bundles), 3, 3))
    for i, (bundle, spread) in enumerate(zip(bundles, dispersion, strict=True)):
        flat, direction, near = membership(bundle, points.reshape(-1, 3), border=_BORDER)
        weight = members[:, :, i] = flat.reshape(n, n_parts)
        total = np.maximum(weight.sum(1), 1e-9)[:, None, None]
        direction = direction.reshape(n, n_parts, 3)
        tensors[:, i] = np.einsum("np,npi,npj->nij", weight, direction, direction) / total
        fan = spread.fan / np.linalg.norm(spread.fan)
        across, along = (v[near].reshape(n, n_parts) ** 2 for v in (spread.across, spread.along))
        micro[:, i] = (np.einsum("np,np->n", weight, across)[:, None, None] / total) * np.eye(3)
        micro[:, i] += np.einsum("np,np->n", weight, along - across)[:, None, None] / total * np.outer(fan, fan)
    return members, tensors, micro


def _points(shape: tuple[int, ...]) -> np.ndarray:
    """Return the middles of the parts of all voxels, (n, 8, 3), in voxels."""
    voxels = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1).reshape(-1, 1, 3).astype(float)
    step = (np.arange(_SUBDIVISION) + 0.5) / _SUBDIVISION - 0.5
    return voxels + np.stack(np.meshgrid(step, step, step, indexing="ij"), axis=-1).reshape(1, -1, 3)


def _shares(members: np.ndarray, density: np.ndarray, purity: float) -> tuple[np.ndarray, np.ndarray]:
    """Divide the voxels among bundles (n, parts, B) by their density; return shares (n, B) and their sum (n,)."""
    union = purity * (1 - np.prod(1 - members, axis=2))
    shares = members * density
    shares = shares * (union / np.maximum(shares.sum(axis=2), 1e-9))[..., None]
    return shares.mean(1), union.mean(1)


def _largest(shares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the largest shares of each voxel, (n, 4), and whose they are; small ones are zero."""
    order = np.argsort(-shares, axis=1)[:, :MAX_FIBRES]
    kept = np.take_along_axis(shares, order, axis=1)
    kept[kept < _LEAST_SHARE] = 0.0
    pad = [(0, 0), (0, MAX_FIBRES - kept.shape[1])]
    return np.pad(kept, pad), np.pad(order, pad)


def _populations(tensors: np.ndarray, micro: np.ndarray, there: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return main directions (n, P, 3) and covariances across them (n, P, 3, 3), zero where nothing is."""
    values, axes = np.linalg.eigh(tensors)
    main = axes[..., 2]
    geometric = np.einsum("npk,npik,npjk->npij", values[..., :2], axes[..., :2], axes[..., :2])
    tangent = np.eye(3) - main[..., :, None] * main[..., None, :]
    covariance = geometric + tangent @ micro @ tangent
    return main * there[..., None], covariance * there[..., None, None]


def _blob(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Return a random ellipsoid, 1 inside and 0 outside, with partial volumes at its border."""
    depth = depth_in_ellipsoid(rng, shape)
    return 1 / (1 + np.exp(-depth / rng.uniform(0.2, 0.5)))


def _sheet(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Return a plane sheet one to three voxels thick."""
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1).astype(float)
    normal = rng.normal(size=3)
    height = (grid - rng.uniform(0.1, 0.9, size=3) * np.array(shape)) @ (normal / np.linalg.norm(normal))
    return 1 / (1 + np.exp((np.abs(height) - rng.uniform(0.4, 1.5)) / 0.2))
