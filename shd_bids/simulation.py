"""Simulate diffusion volumes with spatially coherent bundles and known truth.

A :class:`Phantom` is geometry: which fibre populations cross each voxel, how much of the voxel each fills, and where
grey matter and CSF lie. A :class:`Microstructure` says how each bundle and tissue attenuates the signal (dispersed
sticks and zeppelins, never a deconvolution response). :func:`simulate_signal` joins both with a gradient table and
noise. Everything is drawn from one :class:`numpy.random.Generator`, so a seed fixes the result.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from scipy.integrate import simpson
from scipy.interpolate import make_interp_spline
from scipy.spatial import cKDTree
from scipy.special import erf, eval_legendre

from shd_bids.gradients import GradientTable, gradient_table
from shd_bids.response import Response, Responses

MAX_FIBRES = 4
"""Fibre populations kept per voxel, the largest first."""

_TABLE_SIZE = 513  # |cos| grid of the attenuation tables: linear interpolation error below 1e-4 at b = 13 000 s/mm2
_STEP = 1 / (_TABLE_SIZE - 1)
_QUADRATURE = 96  # Gauss-Legendre nodes on [0, 1]
_TABLE_DEGREE = 30  # exp(-13 000 * 2e-3 * c^2) is represented to 1e-5


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


@dataclass(frozen=True, eq=False)
class Microstructure:
    """Diffusion properties of one simulated subject.

    Parameters
    ----------
    axonal, axial, radial, kappa : ndarray, shape (n_bundles,)
        Intra-axonal signal fraction, axial diffusivity and extra-axonal radial diffusivity (mm2/s), and Watson
        concentration of the dispersion of each bundle.
    gm_neurite, gm_diffusivity : float
        Share of isotropically oriented sticks in grey matter, and diffusivity of the rest (mm2/s).
    csf_diffusivity : float
    s0 : tuple of float
        Signal of pure WM, GM and CSF without diffusion weighting.
    """

    axonal: np.ndarray
    axial: np.ndarray
    radial: np.ndarray
    kappa: np.ndarray
    gm_neurite: float = 0.3
    gm_diffusivity: float = 0.9e-3
    csf_diffusivity: float = 3.0e-3
    s0: tuple[float, float, float] = (1.0, 1.2, 2.5)


def draw_microstructure(rng: np.random.Generator, n_bundles: int) -> Microstructure:
    """Draw the diffusion properties of a subject: common values with a spread between bundles."""
    common = rng.uniform([0.45, 1.5e-3, 0.25, 12.0], [0.75, 2.3e-3, 0.5, 60.0])
    spread = rng.normal(0.0, 0.07, size=(4, n_bundles))
    axonal = np.clip(common[0] * (1 + spread[0]), 0.3, 0.85)
    axial = np.clip(common[1] * (1 + spread[1]), 1.2e-3, 2.6e-3)
    radial = axial * np.clip(common[2] * (1 + spread[2]), 0.15, 0.6)
    kappa = np.clip(common[3] * np.exp(4 * spread[3]), 8.0, 90.0)
    return Microstructure(
        axonal=axonal,
        axial=axial,
        radial=radial,
        kappa=kappa,
        gm_neurite=rng.uniform(0.1, 0.45),
        gm_diffusivity=rng.uniform(0.7e-3, 1.1e-3),
        csf_diffusivity=rng.uniform(2.8e-3, 3.1e-3),
        s0=(1.0, rng.uniform(0.95, 1.45), rng.uniform(1.6, 3.6)),
    )


def random_bundles(
    rng: np.random.Generator, size: int, *, narrowness: float = 1.0, bending: float = 1.0, sparse: bool = False
) -> tuple[Bundle, ...]:
    """Draw bundles that cross, kiss, bend (``bending`` times as much as usual) and fan in a cube; see :func:`random_phantom`.

    They are three to six, or, where they are ``sparse``, one or two.
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


def _cubic_bundle(rng, size, centre, direction, bend, bending) -> Bundle:
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


def bundles_from_control_points(
    geometries: dict,
    *,
    shape: tuple[int, int, int],
    extent: float,
    weights: float = 1.0,
    turn: np.ndarray | None = None,
) -> tuple[Bundle, ...]:
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
        bundles.append(Bundle(curve, np.full(len(curve), geometry["radius"] * scale), density=weights))
    return tuple(bundles)


def _smooth_curve(points: np.ndarray) -> np.ndarray:
    """Interpolate control points by a chord-length cubic spline, every quarter voxel."""
    chord = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])
    spline = make_interp_spline(chord, points, k=min(3, len(points) - 1))
    return spline(np.arange(0.0, chord[-1], 0.25))


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
        members[:, i], directions[:, i] = _membership(bundle, voxels)
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


def _membership(bundle: Bundle, voxels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return how much of each voxel lies in the tube, and the fibre direction there."""
    reach = bundle.radius.max() * bundle.flattening + 2
    distance, nearest = cKDTree(bundle.curve).query(voxels, distance_upper_bound=reach)
    inside = np.isfinite(distance)
    member, direction = np.zeros(len(voxels)), np.zeros((len(voxels), 3))
    near = nearest[inside]
    tangent = np.gradient(bundle.curve, axis=0)
    step = np.linalg.norm(tangent, axis=1)
    tangent /= step[:, None]
    growth = np.gradient(np.log(bundle.radius)) / step
    offset = voxels[inside] - bundle.curve[near]
    thin = offset @ bundle.normal
    wide = np.sqrt(np.maximum((offset**2).sum(1) - thin**2, 0))
    radius = bundle.radius[near]
    effective = np.hypot(thin, wide / bundle.flattening)
    past_end = ((near == 0) | (near == len(bundle.curve) - 1)) & (np.abs((offset * tangent[near]).sum(1)) > 0.6)
    member[inside] = np.where(past_end, 0.0, 1 / (1 + np.exp((effective - radius) / 0.22)))
    member[member < 0.02] = 0.0
    direction[inside] = _unit(tangent[near] + growth[near][:, None] * offset)
    return member, direction


def random_phantom(
    rng: np.random.Generator,
    size: int,
    *,
    narrowness: float = 1.0,
    straight_share: float = 0.0,
    sparse_share: float = 0.0,
) -> Phantom:
    """Draw a cube of ``size`` voxels with bundles, grey matter, CSF and sometimes an oedema-like region.

    Bundles that cross do so at 12 to 90 degrees, evenly spread with a ``narrowness`` of 1 and mostly narrow above. In a
    ``straight_share`` of the cubes none of them bends, and in a ``sparse_share`` there are but one or two.
    """
    shape = (size, size, size)
    # No number is drawn without a share, so that a seed gives the phantom it always gave.
    bending = 0.0 if straight_share and rng.random() < straight_share else 1.0
    sparse = bool(sparse_share) and rng.random() < sparse_share
    csf = _blob(rng, shape) if rng.random() < 0.5 else None
    oedema = _blob(rng, shape) * rng.uniform(0.2, 0.7) if rng.random() < 0.2 else None
    return build_phantom(
        random_bundles(rng, size, narrowness=narrowness, bending=bending, sparse=sparse),
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


def _blob(rng, shape) -> np.ndarray:
    """Return a smooth-edged random ellipsoid, 1 inside and 0 outside."""
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1).astype(float)
    centre = rng.uniform(-0.1, 1.1, size=3) * np.array(shape)
    axes = rng.uniform(0.12, 0.4, size=3) * max(shape)
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    distance = np.linalg.norm(((grid - centre) @ turn) / axes, axis=-1)
    return 1 / (1 + np.exp((distance - 1) * axes.mean() / 0.35))


def attenuation_tables(micro: Microstructure, bvalues: np.ndarray) -> np.ndarray:
    r"""Tabulate the signal of each bundle against the angle to the gradient.

    .. math:: E(c) = W_\kappa * \left[f e^{-b d_\parallel c^2}
              + (1 - f) e^{-b (d_\perp + (d_\parallel - d_\perp) c^2)}\right]

    Returns
    -------
    ndarray, shape (n_bundles, n_bvalues, 513)
        Signal relative to no diffusion weighting, on an even grid of ``|cos|`` from 0 to 1.
    """
    nodes, weights = np.polynomial.legendre.leggauss(_QUADRATURE)
    nodes, weights = (nodes + 1) / 2, weights / 2
    degrees = np.arange(0, _TABLE_DEGREE + 1, 2)
    legendre = eval_legendre(degrees[:, None], nodes)  # (L, Q)
    squared = nodes**2
    b = np.asarray(bvalues, dtype=float)[None, :, None]
    f, axial, radial = (x[:, None, None] for x in (micro.axonal, micro.axial, micro.radial))
    kernel = f * np.exp(-b * axial * squared) + (1 - f) * np.exp(-b * (radial + (axial - radial) * squared))
    moments = np.einsum("nbq,lq,q->nbl", kernel, legendre, weights) * (2 * degrees + 1)
    watson = np.exp(micro.kappa[:, None] * (squared - 1))  # (n, Q)
    dispersion = np.einsum("nq,lq,q->nl", watson, legendre, weights) / np.einsum("nq,q->n", watson, weights)[:, None]
    grid = eval_legendre(degrees[:, None], np.linspace(0, 1, _TABLE_SIZE))
    return np.einsum("nbl,nl,lt->nbt", moments, dispersion, grid).clip(0, 1)


def isotropic_attenuation(micro: Microstructure, bvalues: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the attenuation of grey matter and CSF at each b-value, each of shape (n_bvalues,)."""
    b = np.asarray(bvalues, dtype=float)
    reach = np.sqrt(np.maximum(b * 2e-3, 1e-12))
    sticks = np.sqrt(np.pi) / 2 * erf(reach) / reach  # powder average of sticks with 2e-3 mm2/s
    gm = micro.gm_neurite * sticks + (1 - micro.gm_neurite) * np.exp(-b * micro.gm_diffusivity)
    return gm, np.exp(-b * micro.csf_diffusivity)


def true_responses(micro: Microstructure, gradients: GradientTable, *, l_max: int = 10) -> Responses:
    """Return the responses that noise-free voxels of a single tissue would give, averaged over the bundles.

    Parameters
    ----------
    micro : Microstructure
    gradients : GradientTable
        Its shells give the rows.
    l_max : int
        Highest zonal degree of white matter.
    """
    bvalues = np.array([shell.bvalue for shell in gradients.shells])
    bvalues[0] = 0.0
    table = attenuation_tables(micro, bvalues).mean(axis=0) * micro.s0[0]  # (S, T)
    degrees = np.arange(0, l_max + 1, 2)
    moments = simpson(table[:, None] * eval_legendre(degrees[:, None], np.linspace(0, 1, _TABLE_SIZE)), dx=_STEP)
    zonal = moments * (2 * degrees + 1) * np.sqrt(4 * np.pi / (2 * degrees + 1))
    zonal[0, 1:] = 0.0
    gm, csf = (
        np.sqrt(4 * np.pi) * s0 * e for s0, e in zip(micro.s0[1:], isotropic_attenuation(micro, bvalues), strict=True)
    )
    return Responses(
        wm=Response("wm", bvalues, zonal),
        gm=Response("gm", bvalues, gm[:, None]),
        csf=Response("csf", bvalues, csf[:, None]),
    )


def noiseless_signal(phantom: Phantom, micro: Microstructure, gradients: GradientTable) -> np.ndarray:
    """Return the signal of each voxel and volume before noise, shape (X, Y, Z, N), float32."""
    bvalues, volume_b = np.unique(gradients.bvals, return_inverse=True)
    tables = (attenuation_tables(micro, bvalues) * micro.s0[0]).astype(np.float32)
    gm, csf = isotropic_attenuation(micro, bvalues)
    iso = phantom.gm[..., None] * (micro.s0[1] * gm)[volume_b] + phantom.csf[..., None] * (micro.s0[2] * csf)[volume_b]
    signal = iso.reshape(-1, gradients.n_volumes).astype(np.float32)
    directions = phantom.directions.reshape(-1, MAX_FIBRES, 3).astype(np.float32)
    fractions = phantom.fractions.reshape(-1, MAX_FIBRES).astype(np.float32)
    owner = phantom.bundle.reshape(-1, MAX_FIBRES)
    volumes = gradients.directions.astype(np.float32)
    for slot in range(MAX_FIBRES):
        for bundle in np.unique(owner[:, slot][owner[:, slot] >= 0]):
            rows = np.flatnonzero(owner[:, slot] == bundle)
            position = np.abs(directions[rows, slot] @ volumes.T) * (_TABLE_SIZE - 1)  # (n, N)
            left = np.minimum(position.astype(np.int32), _TABLE_SIZE - 2)
            table = tables[bundle][volume_b]  # (N, T)
            low = table[np.arange(len(volume_b)), left]
            high = table[np.arange(len(volume_b)), left + 1]
            signal[rows] += fractions[rows, slot, None] * (low + (position - left) * (high - low))
    return signal.reshape(*phantom.gm.shape, -1)


def add_noise(signal: np.ndarray, sigma: float, rng: np.random.Generator, *, n_coils: int = 1) -> np.ndarray:
    """Return the magnitude of the signal with complex Gaussian noise: Rician, or noncentral chi for several coils."""
    noisy = (signal + rng.normal(0, sigma, signal.shape)) ** 2 + rng.normal(0, sigma, signal.shape) ** 2
    for _ in range(n_coils - 1):
        noisy += rng.normal(0, sigma, signal.shape) ** 2 + rng.normal(0, sigma, signal.shape) ** 2
    return np.sqrt(noisy).astype(np.float32)


def bias_field(rng: np.random.Generator, shape: tuple[int, int, int], strength: float) -> np.ndarray:
    """Return a smooth multiplicative field with mean one and log-amplitude ``strength``."""
    axes = [np.linspace(-1, 1, n) for n in shape]
    x, y, z = np.meshgrid(*axes, indexing="ij")
    terms = np.stack([x, y, z, x * y, x * z, y * z, x**2, y**2, z**2])
    log_field = np.tensordot(rng.normal(size=len(terms)), terms, axes=1)
    log_field = strength * (log_field - log_field.mean()) / max(float(log_field.std()), 1e-9)
    return np.exp(log_field)


def uniform_directions(rng: np.random.Generator, n: int, *, n_steps: int = 60) -> np.ndarray:
    """Spread ``n`` axes over the sphere by electrostatic repulsion from a random start, shape (n, 3)."""
    points = _unit(rng.normal(size=(n, 3)))
    step = 0.3 / np.sqrt(n)
    for _ in range(n_steps):
        cosine = points @ points.T
        towards = np.maximum(2 - 2 * cosine, 1e-9) ** -1.5
        away = np.maximum(2 + 2 * cosine, 1e-9) ** -1.5
        np.fill_diagonal(towards, 0.0)
        np.fill_diagonal(away, 0.0)
        force = (away - towards) @ points  # the radial parts of p_i -+ p_j do not move a point on the sphere
        force -= (force * points).sum(1, keepdims=True) * points
        points = _unit(points + step * _unit(force))
        step *= 0.96
    return points


def make_gradients(rng: np.random.Generator, shells: dict[float, int], *, n_b0: int) -> GradientTable:
    """Make a table with ``n_b0`` unweighted volumes and ``shells`` as b-value -> number of directions."""
    bvals = [np.zeros(n_b0)] + [np.full(n, b) for b, n in shells.items()]
    directions = [np.zeros((n_b0, 3))] + [uniform_directions(rng, n) for n in shells.values()]
    return gradient_table(np.concatenate(bvals), np.concatenate(directions))


def random_gradients(rng: np.random.Generator) -> GradientTable:
    """Draw a protocol: one to five shells between b = 500 and 13 000 s/mm2, six to 120 directions each.

    A third are single shells of clinical and research use, a third rich multi-shell series, the rest anything between; one
    shell always has 12 directions.
    """
    kind = rng.random()
    if kind < 0.35:
        shells = {rng.choice([700.0, 1000.0, 1200.0, 1500.0, 2000.0, 3000.0]): _direction_count(rng, 12, 100)}
    elif kind < 0.75:
        start = rng.choice([500.0, 700.0, 1000.0])
        step = rng.choice([500.0, 1000.0, 1500.0])
        least = 45 if kind < 0.55 else 12  # as many in each shell as large projects measure, or fewer
        shells = {start + i * step: _direction_count(rng, least, 120) for i in range(rng.integers(2, 5))}
    else:
        values = np.sort(rng.uniform(500.0, 6000.0, size=rng.integers(1, 5)).round(-2))
        shells = {float(b): _direction_count(rng, 12, 90) for b in values}
        if rng.random() < 0.3:
            shells[float(rng.uniform(6000.0, 13000.0).__round__(-2))] = _direction_count(rng, 30, 90)
        shells = _separate(shells)
    if rng.random() < 0.25 and len(shells) > 1:
        shells[min(shells)] = int(rng.integers(6, 16))
    return make_gradients(rng, shells, n_b0=int(rng.integers(1, 10)))


def _direction_count(rng: np.random.Generator, least: int, most: int) -> int:
    """Draw a number of directions, even in its logarithm."""
    return round(float(np.exp(rng.uniform(np.log(least), np.log(most)))))


def _separate(shells: dict[float, int]) -> dict[float, int]:
    """Drop shells closer than 250 s/mm2 to a lower one; make sure the highest has 20 directions."""
    kept: dict[float, int] = {}
    for b in sorted(shells):
        if not kept or b - max(kept) >= 250:
            kept[b] = shells[b]
    kept[max(kept)] = max(kept[max(kept)], 20)
    return kept


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
