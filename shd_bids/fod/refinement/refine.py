"""Let the data of each voxel correct the answer of the network.

A network that was trained on simulations knows what fODFs look like; the signal knows what it is. Its answer is taken as masses
along many axes (:func:`axis_masses`), which undoes the width that lobes had in the training, and a long thin lobe of them, or one
that the data of many voxels say is long (:func:`~shd_bids.fod.refinement.elongation.measured_spread`), as two fibres
(:func:`~shd_bids.fod.refinement.crossings.separate`). The data then scale the tissues of the voxel (:func:`_calibrated`) and
move the masses towards the deconvolution of the voxel, as far as left-out volumes say. Masses stand for lobes of one shape, so
that a crossing that the network told apart does not melt on the way.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from shd_bids.boxes import chunks
from shd_bids.fod.fod import FOD
from shd_bids.fod.refinement.crossings import separate
from shd_bids.fod.refinement.elongation import measured_spread
from shd_bids.fod.weights import OUTPUT_KAPPA
from shd_bids.gradients.table import GradientTable
from shd_bids.response.forward import ForwardModel
from shd_bids.scan import Scan
from shd_bids.solvers import Updater, factors
from shd_bids.sphere.harmonics import SQRT_4PI, degrees, l_max_of, sh_basis, sh_inverse, zonal_means
from shd_bids.sphere.healpix import hemisphere
from shd_bids.sphere.lobes import lobes
from shd_bids.sphere.spiral import spiral

MODEL_ERROR = 0.03
"""Share of the b=0 signal by which responses miss the signal of a voxel, besides noise."""

UPDATES = (0, 1, 2, 4, 8, 16, 32, 48, 64, 96, 128)
"""Numbers of updates among which left-out volumes choose; 0 keeps the answer of the network."""

N_AXES = 768
"""Axes that can hold mass: four for each coefficient of degree 18. On 384 a fibre between them came out as two peaks."""

VOXELS_PER_CHUNK = 16384
"""Bounds the masses and the predicted signal: 16 384 voxels x (768 axes + 300 volumes) x 4 bytes = 70 MB."""

_SHARPENING = 20  # updates
_SINGLE_QUANTILE = 0.8  # of the concentrations in white matter: voxels with one fibre are the most concentrated
_WHITE_MATTER = 0.7  # of the largest amount in the scan
_PROBED_DEGREE = 8
_CONCENTRATIONS = np.arange(4.0, 91.0)  # that are told apart
_LEAST_CONCENTRATION = 20.0  # simulated volumes stay above; wider lobes predict left-out directions of real scans worse
_SMALL_LOBE = 0.05  # of the largest amplitude: what is below does not grow
_RIPPLE_MARGIN = 2.0  # times what keeps lobes from predicting less than nothing of one another
_LEAST_AMPLITUDE = 1e-6
_AMPLITUDE_SPREAD = 0.15  # typical error of the network's tissue fractions
_AMPLITUDE_RANGE = (0.1, 10.0)  # of the scale that the data give the fODF; within (0.5, 2) real scans got too little
_DESCENT_STEPS = 30
_TOLERANCE = 1.02  # the fewest updates win whose error is this close to the least
_SAMPLE = 2000  # voxels that decide on their number
_SPREAD_SHARE = 0.12  # of the mass of a voxel: laid evenly on all axes, so that every one can grow
_LEAST_ISOTROPIC = 1e-3  # for the same reason
_NSIDE = 8  # of the grid on which lobes are expanded in harmonics: two vertices for each coefficient of degree 18


def refine_fod(fod: FOD, scan: Scan, *, trained_kappa: float) -> tuple[FOD, int]:
    r"""Move the answer of the network towards the data as far as that predicts left-out volumes better.

    From its masses f along the axes and of the isotropic tissues, scaled to the data, go multiplicative updates

    .. math:: f \leftarrow f\,\frac{K^T y}{K^T K f},

    with the predicted signal K of unit masses, hastened by momentum. What the network found empty stays nearly so, and nothing
    becomes negative. One number of updates serves all voxels: the smallest of :data:`UPDATES` at which the error of a fifth of
    the directions, hidden from the updates, is within 2 % of the least. The b=0 signal is fitted as any other: matching it
    exactly would hand its noise on to all shells.

    Parameters
    ----------
    fod : FOD
        Answer of the network; its fODFs are overwritten by the result.
    scan : Scan
    trained_kappa : float
        Concentration of the lobe that stood for an axis in the training.

    Returns
    -------
    fod : FOD
    n_updates : int
        0 where the scaled answer of the network predicts best.
    """
    model = scan.forward(fod.l_max)
    axes = _Axes.build(model, scan.gradients)
    noise = max(scan.sigma / axes.scale, MODEL_ERROR)
    assumed = assumed_concentration(fod.wm, taught=trained_kappa)
    spread = measured_spread(fod.wm, scan, model=model, scale=axes.scale, noise=noise)

    def answer(part: slice) -> tuple[Tensor, np.ndarray]:
        signal = (scan.voxels[part] / axes.scale).astype(np.float32)
        masses = separate(axis_masses(fod.wm[part], concentration=assumed), spiral(N_AXES), spread[part])
        return _calibrated(masses, fod[part], signal, axes, noise), signal

    times = _best_times(axes, *answer(slice(None, None, max(1, len(fod) // _SAMPLE))), scan.gradients)
    update = Updater.build(factors(axes.kernel))
    isotropic = {tissue: np.zeros(len(fod), dtype=np.float32) for tissue in ("gm", "csf")}
    for part in chunks(len(fod), VOXELS_PER_CHUNK):
        masses, signal = answer(part)
        if times:
            masses = update(axes.everywhere(masses), torch.as_tensor(signal), times=times, momentum=True)
        fod.wm[part], amplitudes = axes.coefficients(masses)
        for tissue, values in zip(axes.tissues, amplitudes.T, strict=True):
            isotropic[tissue][part] = values
    return FOD(fod.wm, **isotropic), times


def assumed_concentration(wm: np.ndarray, *, taught: float) -> float:
    r"""Give the concentration of the lobes that the fODFs of a scan are to be taken apart into.

    The network learned a lobe :math:`e^{-\kappa\sin^2}` in place of each axis and gives a wider one where it is not certain, so
    the scan itself tells how wide: :math:`\hat\kappa` is that of voxels with one fibre, from the power of degree l,

    .. math:: \sqrt{\frac{\sum_m c_{lm}^2}{2l + 1}} \Big/ c_{00} =
              \frac{\int_0^1 P_l(z)\, e^{\kappa z^2} dz}{\int_0^1 e^{\kappa z^2} dz}.

    What crosses is less certain than what does not, by as much again: :math:`\hat\kappa^2 / \kappa`. Lobes too narrow would make
    two fibres of one that is uncertain, lobes too wide one of two that cross narrowly.

    Parameters
    ----------
    wm : ndarray, shape (n, C)
    taught : float
        Concentration kappa of the lobes in the training.

    Returns
    -------
    float
        A whole number; the one taught where there is no white matter.
    """
    amount = wm[:, 0]
    if not amount.any():
        return taught
    there = amount > _WHITE_MATTER * np.quantile(amount, 0.99)
    probed = wm[np.ix_(there, degrees(l_max_of(wm.shape[1])) == _PROBED_DEGREE)]
    power = (probed**2).sum(axis=1) / (2 * _PROBED_DEGREE + 1)
    found = np.quantile(np.sqrt(power) / amount[there], _SINGLE_QUANTILE)
    expected = zonal_means(_CONCENTRATIONS, _PROBED_DEGREE)[:, -1]
    single = float(np.interp(found, expected, _CONCENTRATIONS))
    return round(max(single**2 / taught, _LEAST_CONCENTRATION))


def axis_masses(wm: np.ndarray, *, concentration: float) -> np.ndarray:
    r"""Give masses along :data:`N_AXES` axes whose lobes add up to an fODF.

    Lobes that overlap show a narrow crossing as one lobe that is long. The masses f come from multiplicative updates

    .. math:: f \leftarrow f\,\frac{B^T W c}{B^T W B f},

    with the coefficients c of the fODF, those of the lobes, B, and weights W of the degrees, see :func:`_matching`.

    Parameters
    ----------
    wm : ndarray, shape (n, C)
    concentration : float
        Kappa of the lobes.

    Returns
    -------
    ndarray, shape (n, A), float32
        Their sum is the integral of the fODF.
    """
    coefficients = torch.as_tensor(wm, dtype=torch.float32)
    l_max = l_max_of(wm.shape[1])
    amplitudes = (coefficients @ _basis(l_max)).clamp_min_(_LEAST_AMPLITUDE)
    largest = amplitudes.amax(dim=1, keepdim=True)
    start = (amplitudes - _SMALL_LOBE * largest).clamp_min_(_LEAST_AMPLITUDE)
    weights, narrow = _matching(concentration, l_max)
    masses = narrow(start, weights * coefficients, times=_SHARPENING, momentum=True).numpy()
    return masses * (SQRT_4PI * wm[:, :1].clip(0) / np.maximum(masses.sum(axis=1, keepdims=True), _LEAST_AMPLITUDE))


@lru_cache
def _basis(l_max: int) -> Tensor:
    """Return what maps coefficients to amplitudes along the axes, (C, A)."""
    return torch.as_tensor(sh_basis(spiral(N_AXES), l_max).T, dtype=torch.float32).contiguous()


@lru_cache
def _lobes(sharpness: float, l_max: int) -> np.ndarray:
    """Return the coefficients of a unit mass along each axis, (A, C)."""
    grid = hemisphere(_NSIDE)
    lobe = lobes(grid, spiral(N_AXES), sharpness) @ sh_inverse(grid, l_max).T
    return lobe / (SQRT_4PI * lobe[:, :1])


@lru_cache
def _matching(sharpness: float, l_max: int) -> tuple[Tensor, Updater]:
    """Return what finds masses whose lobes match coefficients, and the weights (C,) of the coefficients in it.

    Multiplicative updates need lobes that do not predict less than nothing of one another. Cut at a degree they do, by their
    ripples, and mass would grow without bound where they do. So the coefficient of degree 0, the same for all lobes, weighs more.
    """
    kernel = _lobes(sharpness, l_max)
    lack = max(0.0, -float((kernel @ kernel.T).min()))
    weights = np.ones(kernel.shape[1])
    weights[0] = np.sqrt(1 + _RIPPLE_MARGIN * lack / kernel[0, 0] ** 2)
    return torch.as_tensor(weights, dtype=torch.float32), Updater.build(factors((weights * kernel).T))


@dataclass(frozen=True, eq=False)
class _Axes:
    """What masses along the axes, and of the isotropic tissues, predict, and the coefficients they stand for.

    Parameters
    ----------
    lobes : ndarray, shape (A, C)
        Coefficients of a unit mass along each axis.
    kernel : ndarray, shape (N, A + T - 1)
        Signal of unit masses; of the isotropic tissues, of unit coefficients.
    even : ndarray, shape (N,)
        Signal of an fODF that is the same everywhere, of unit coefficient.
    b0 : ndarray of int
        Volumes without weighting.
    tissues : tuple of str
        The isotropic ones.
    scale : float
        White-matter signal at b=0, by which the signal is divided.
    """

    lobes: np.ndarray
    kernel: np.ndarray
    even: np.ndarray
    b0: np.ndarray
    tissues: tuple[str, ...]
    scale: float

    @classmethod
    def build(cls, model: ForwardModel, gradients: GradientTable) -> _Axes:
        lobe = _lobes(OUTPUT_KAPPA, model.l_max)
        matrix = model.matrix.double().numpy()
        scale = float(matrix[gradients.b0_indices[0], 0]) / SQRT_4PI
        wm, isotropic = np.split(matrix / scale, [lobe.shape[1]], axis=1)
        kernel = np.concatenate([wm @ lobe.T, isotropic], axis=1)
        return cls(lobe.astype(np.float32), kernel, wm[:, 0], gradients.b0_indices, model.tissues[1:], scale)

    def everywhere(self, masses: Tensor) -> Tensor:
        """Lay a little mass on all axes."""
        along, isotropic = masses.split([len(self.lobes), len(self.tissues)], dim=1)
        even = _SPREAD_SHARE * along.mean(dim=1, keepdim=True) + _LEAST_AMPLITUDE
        return torch.cat([along + even, isotropic.clamp_min(_LEAST_ISOTROPIC)], dim=1)

    def coefficients(self, masses: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Expand masses in harmonics, so that both predict the same signal."""
        values = masses.numpy()
        return values[:, : len(self.lobes)] @ self.lobes, values[:, len(self.lobes) :]


def _calibrated(along: np.ndarray, fod: FOD, signal: np.ndarray, axes: _Axes, noise: float) -> Tensor:
    r"""Let the data of each voxel settle how much of each tissue there is; the network settles the shape of the fODF.

    The factor s of the network's masses and the amplitudes z of the isotropic tissues minimise

    .. math:: \frac{\|y - s\,K\hat f - Bz\|^2}{\sigma^2} + \frac{(s-1)^2}{\tau_s^2} + \frac{\|z-\hat z\|^2}{\tau^2},
              \qquad \tfrac1{10} \le s \le 10,\; z \ge 0,

    so that what the data cannot tell stays as the network said. Before and after, all amplitudes are scaled to match the
    measured b=0 exactly (method of the paper). Grey matter that is not fitted becomes an isotropic part of the fODF, as in any
    deconvolution with two tissues.

    Parameters
    ----------
    along : ndarray, shape (n, A)
        Masses along the axes.
    fod : FOD
        Answer of the network, for the isotropic tissues.
    signal : ndarray, shape (n, N)
        In units of the scale, as ``noise`` is.

    Returns
    -------
    Tensor, shape (n, A + T - 1)
        Masses along the axes and coefficients of the isotropic tissues.
    """
    kernel = axes.kernel.astype(np.float32)
    columns = list(kernel.T[len(axes.lobes) :])
    estimates = [getattr(fod, tissue) for tissue in axes.tissues]
    if "gm" not in axes.tissues:
        columns.append(axes.even.astype(np.float32))
        estimates.append(fod.gm)
    basis, prior = np.stack(columns, axis=1), np.stack(estimates, axis=1)  # (N, K), (n, K)
    shape = along @ kernel[:, : len(axes.lobes)].T  # (n, N)
    first = _b0_factor(signal, shape + prior @ basis.T, axes.b0)
    shape *= first
    mass = first * along.sum(axis=1, keepdims=True) / SQRT_4PI
    s, z = _solve(signal / noise, shape / noise, basis / noise, first * prior, mass=mass)
    second = _b0_factor(signal, s * shape + z @ basis.T, axes.b0)
    along, z = along * (first * s * second), z * second
    if "gm" not in axes.tissues:
        along, z = along + z[:, -1:] * (SQRT_4PI / len(axes.lobes)), z[:, :-1]
    return torch.as_tensor(np.concatenate([along, z], axis=1), dtype=torch.float32)


def _b0_factor(measured: np.ndarray, predicted: np.ndarray, b0: np.ndarray) -> np.ndarray:
    """Return what brings the predicted to the measured b=0 signal, (n, 1); zero where nothing is predicted."""
    found, wanted = predicted[:, b0].mean(axis=1, keepdims=True), measured[:, b0].mean(axis=1, keepdims=True)
    return np.where(found > 0, wanted / np.maximum(found, 1e-12), 0.0).astype(np.float32)


def _solve(
    measured: np.ndarray, shape: np.ndarray, basis: np.ndarray, prior: np.ndarray, *, mass: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Minimise the bounded quadratic of :func:`_calibrated` by coordinate descent; return s (n, 1) and z (n, K).

    All signals are in units of the noise; ``mass`` (n, 1) is the degree-0 coefficient of the fODF, which sets how far s may
    go: an fODF that hardly fills the voxel may change by more of itself.
    """
    spread = _AMPLITUDE_SPREAD / SQRT_4PI
    precision_s = (np.maximum(mass, spread) / spread) ** 2
    precision_z = 1 / spread**2
    shape_basis = shape @ basis  # (n, K)
    gram = basis.T @ basis
    curvature = (shape**2).sum(axis=1, keepdims=True) + precision_s
    right = (shape * measured).sum(axis=1, keepdims=True) + precision_s
    right_z = measured @ basis + precision_z * prior
    s, z = np.ones_like(mass), prior.copy()
    for _ in range(_DESCENT_STEPS):
        s = ((right - (shape_basis * z).sum(axis=1, keepdims=True)) / curvature).clip(*_AMPLITUDE_RANGE)
        for k in range(z.shape[1]):
            others = z @ gram[:, k] - z[:, k] * gram[k, k]
            rest = right_z[:, k] - s[:, 0] * shape_basis[:, k] - others
            z[:, k] = (rest / (gram[k, k] + precision_z)).clip(0)
    return s, z


def _best_times(axes: _Axes, masses: Tensor, signal: np.ndarray, gradients: GradientTable) -> int:
    """Return the smallest number of updates whose error on hidden directions is close to the least."""
    hidden = np.concatenate([shell.indices[2::5] for shell in gradients.shells[1:]])
    if not len(hidden) or not len(signal):
        return 0
    shown = np.setdiff1d(np.arange(gradients.n_volumes), hidden)
    update = Updater.build(factors(axes.kernel[shown]))
    known, wanted = (torch.as_tensor(signal[:, volumes], dtype=torch.float32) for volumes in (shown, hidden))
    predicting = torch.as_tensor(axes.kernel[hidden].T, dtype=torch.float32)
    errors = {0: float(((masses @ predicting - wanted) ** 2).mean())}
    steps = update.steps(axes.everywhere(masses), known, momentum=True)
    for times, updated in enumerate(islice(steps, UPDATES[-1] + 1)):
        if times in UPDATES[1:]:
            errors[times] = float(((updated @ predicting - wanted) ** 2).mean())
    return next(times for times, error in errors.items() if error <= _TOLERANCE * min(errors.values()))
