"""How each bundle and tissue attenuates the signal: dispersed sticks and zeppelins, never a deconvolution response."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.integrate import simpson
from scipy.special import erf, eval_legendre

from shd_bids.gradients.table import GradientTable
from shd_bids.response.response import Response, Responses
from shd_bids.sphere.harmonics import SQRT_4PI, zonal_means

TABLE_SIZE = 513  # |cos| grid of the attenuation tables: linear interpolation error below 1e-4 at b = 13 000 s/mm2
L_MAX_SIGNAL = 20  # of simulated densities; a lobe of five degrees has 2 % of its amplitude left there
_STEP = 1 / (TABLE_SIZE - 1)
_QUADRATURE = 96  # Gauss-Legendre nodes on [0, 1]
_TABLE_DEGREE = 30  # exp(-13 000 * 2e-3 * c^2) is represented to 1e-5


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
    grid = eval_legendre(degrees[:, None], np.linspace(0, 1, TABLE_SIZE))
    return np.einsum("nbl,nl,lt->nbt", moments, dispersion, grid).clip(0, 1)


def isotropic_attenuation(micro: Microstructure | Subject, bvalues: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
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
    moments = simpson(table[:, None] * eval_legendre(degrees[:, None], np.linspace(0, 1, TABLE_SIZE)), dx=_STEP)
    return _responses(micro, bvalues, moments * (2 * degrees + 1) * np.sqrt(4 * np.pi / (2 * degrees + 1)))


def _responses(micro: Microstructure | Subject, bvalues: np.ndarray, zonal: np.ndarray) -> Responses:
    """Return the responses with the zonal coefficients (S, L) of white matter, without anisotropy at b=0."""
    zonal[0, 1:] = 0.0
    gm, csf = (SQRT_4PI * s0 * e for s0, e in zip(micro.s0[1:], isotropic_attenuation(micro, bvalues), strict=True))
    return Responses(
        wm=Response("wm", bvalues, zonal),
        gm=Response("gm", bvalues, gm[:, None]),
        csf=Response("csf", bvalues, csf[:, None]),
    )


@dataclass(frozen=True, eq=False)
class Subject:
    """Diffusion properties of one simulated subject whose bundles say how far they disperse.

    Attributes
    ----------
    axonal, axial, radial : ndarray, shape (n_bundles,)
        As in :class:`Microstructure`.
    intensity : ndarray, shape (n_bundles,)
        Signal of each bundle at b=0, relative to that of the voxels that the white-matter response comes from.
    response_spread : float
        Standard deviation of the directions in the voxels that the white-matter response comes from, radians.
    gm_neurite, gm_diffusivity, csf_diffusivity, s0
        As in :class:`Microstructure`.
    """

    axonal: np.ndarray
    axial: np.ndarray
    radial: np.ndarray
    intensity: np.ndarray
    response_spread: float
    gm_neurite: float = 0.3
    gm_diffusivity: float = 0.9e-3
    csf_diffusivity: float = 3.0e-3
    s0: tuple[float, float, float] = (1.0, 1.2, 2.5)


def draw_subject(rng: np.random.Generator, n_bundles: int) -> Subject:
    """Draw the properties of a subject: common values with a spread between bundles, at the contrast of real scans."""
    common = rng.uniform([0.45, 1.5e-3, 0.25], [0.75, 2.3e-3, 0.5])
    spread = rng.normal(0.0, 0.1, size=(3, n_bundles))
    axial = np.clip(common[1] * (1 + spread[1]), 1.2e-3, 2.6e-3)
    return Subject(
        axonal=np.clip(common[0] * (1 + spread[0]), 0.3, 0.85),
        axial=axial,
        radial=axial * np.clip(common[2] * (1 + spread[2]), 0.15, 0.6),
        intensity=np.exp(rng.uniform(np.log(0.9), np.log(1.5), size=n_bundles)),
        response_spread=np.deg2rad(rng.uniform(4.0, 12.0)),
        gm_neurite=rng.uniform(0.1, 0.45),
        gm_diffusivity=rng.uniform(0.7e-3, 1.1e-3),
        csf_diffusivity=rng.uniform(2.8e-3, 3.1e-3),
        s0=(1.0, float(np.exp(rng.uniform(np.log(0.95), np.log(3.0)))), float(rng.uniform(2.0, 6.0))),
    )


def kernel_moments(subject: Subject, bvalues: np.ndarray) -> np.ndarray:
    r"""Return Legendre coefficients :math:`k_l` of the signal of undispersed fibres, (n_bundles, n_bvalues, L).

    .. math:: E(c) = f e^{-b d_\parallel c^2} + (1 - f) e^{-b (d_\perp + (d_\parallel - d_\perp) c^2)}
              = \sum_l k_l P_l(c)
    """
    b = np.asarray(bvalues, dtype=float)[None, :]
    f, axial, radial = (x[:, None] for x in (subject.axonal, subject.axial, subject.radial))
    sticks = _exponential_moments(b * axial)
    zeppelins = np.exp(-b * radial)[..., None] * _exponential_moments(b * (axial - radial))
    return (f[..., None] * sticks + (1 - f[..., None]) * zeppelins) * (2 * np.arange(0, L_MAX_SIGNAL + 1, 2) + 1)


def _exponential_moments(attenuation: np.ndarray) -> np.ndarray:
    r"""Return :math:`\int_0^1 e^{-a c^2} P_l(c)\,dc` for even l, (..., L)."""
    nodes, weights, legendre = _quadrature()
    return np.exp(-attenuation[..., None] * nodes**2) @ (weights[:, None] * legendre)


@lru_cache
def _quadrature() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return nodes and weights on [0, 1], and the even Legendre polynomials there, (Q, L)."""
    nodes, weights = np.polynomial.legendre.leggauss(_QUADRATURE)
    nodes = (nodes + 1) / 2
    return nodes, weights / 2, eval_legendre(np.arange(0, L_MAX_SIGNAL + 1, 2), nodes[:, None])


def subject_responses(subject: Subject, gradients: GradientTable, *, l_max: int = 10) -> Responses:
    """Return the responses that noise-free voxels of a single tissue would give, white matter at its sharpest.

    Parameters
    ----------
    subject : Subject
    gradients : GradientTable
        Its shells give the rows.
    l_max : int
        Highest zonal degree of white matter.
    """
    bvalues = np.array([shell.bvalue for shell in gradients.shells])
    bvalues[0] = 0.0
    watson = zonal_means(1 / (2 * subject.response_spread**2), l_max)
    n_l = np.arange(0, l_max + 1, 2)
    moments = kernel_moments(subject, bvalues).mean(axis=0)[:, : len(n_l)] * subject.s0[0]
    return _responses(subject, bvalues, moments * watson * np.sqrt(4 * np.pi / (2 * n_l + 1)))
