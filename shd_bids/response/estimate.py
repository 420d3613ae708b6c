"""Estimate the tissue responses of an image from its signal, without supervision.

The voxels of each tissue are found as Dhollander et al. describe (ISMRM Workshop on Breaking the Barriers of Diffusion
MRI 2016, 5), single-fibre white matter by their improved metric (Proc. ISMRM 2019, 555). Written from these papers.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import binary_erosion

from shd_bids.boxes import chunks
from shd_bids.errors import InputError
from shd_bids.gradients.dti import fit_tensor, fractional_anisotropy
from shd_bids.gradients.table import GradientTable
from shd_bids.response import TISSUES
from shd_bids.response.response import Response, Responses, zonal_basis
from shd_bids.response.separable import separable_tissues
from shd_bids.response.single_fibre import constrained_fit, single_fibre_voxels, top_voxels
from shd_bids.sphere.harmonics import Y00, zonal_means
from shd_bids.threads import on_one_blas_thread

L_MAX = 10  # of a white-matter response; pooled over many directions it does not depend on the directions of a shell
MIN_VOXELS = {"wm": 10, "gm": 5, "csf": 5}  # fewer are not averaged but topped up from the next best
PERCENT = {"wm": 0.5, "gm": 2.0, "csf": 10.0}  # of each refined tissue that is averaged
LEAST_VOXELS = 20  # with a signal that decays with b
N_EROSIONS = 3  # passes of erosion of the mask (6 neighbours); fewer where that would leave less than a quarter of it
FA_THRESHOLD = 0.2  # between WM and the rest
FREE_DIFFUSIVITY = 3.0e-3  # mm2/s, of water at body temperature: nothing in tissue diffuses faster


@dataclass(frozen=True, eq=False)
class ResponseEstimate:
    """Responses of an image, the voxels they come from, and what the user should know.

    Attributes
    ----------
    responses : Responses
        Of all tissues found.
    voxels : dict of array, shape (x, y, z), bool
        Voxels each response comes from.
    separable_tissues : tuple of str
        Those that the signal alone can tell apart; how much there is of another rests on what the network learnt.
    message : str
        Which tissues the signal can tell apart and why.
    notes : tuple of str
        How far the selection had to depart from the usual one, and which response does not look like its tissue.
    """

    responses: Responses
    voxels: dict[str, np.ndarray]
    separable_tissues: tuple[str, ...]
    message: str
    notes: tuple[str, ...]


@on_one_blas_thread
def estimate_responses(
    signal: np.ndarray, mask: np.ndarray, gradients: GradientTable, *, percent: Mapping[str, float] = PERCENT
) -> ResponseEstimate:
    r"""Estimate the responses of white matter, grey matter and CSF from one shell or more.

    The signal decay metric (SDM) :math:`\sum_s n_s \ln({\bar S}_0 / {\bar S}_s) / \sum_s n_s` and FA part voxels into tissues;
    outliers go; the CSF of highest, the GM of median SDM and the WM most like one fibre give the responses.

    Parameters
    ----------
    signal : array, shape (x, y, z, N)
        Not normalised.
    mask : array, shape (x, y, z), bool
    gradients : GradientTable
    percent : mapping tissue -> float
        Share of each refined tissue that is averaged.

    Returns
    -------
    ResponseEstimate

    Raises
    ------
    InputError
        When the shapes do not fit, or fewer than 20 voxels of the mask have a signal that decays with b.

    Examples
    --------
    >>> import numpy as np
    >>> from shd_bids import estimate_responses, simulation
    >>> rng = np.random.default_rng(0)
    >>> phantom = simulation.crossing_phantom(rng, size=8, angles=(70.0,))
    >>> gradients = simulation.make_gradients(rng, {1000.0: 12, 2500.0: 30}, n_b0=2)
    >>> micro = simulation.draw_microstructure(rng, len(phantom.bundles))
    >>> signal = simulation.noiseless_signal(phantom, micro, gradients)
    >>> estimate = estimate_responses(signal, np.ones(signal.shape[:3], bool), gradients)
    >>> estimate.responses.wm.coefficients.shape  # shells, degrees 0 to 10
    (3, 6)
    """
    gradients.check_shapes(signal, mask)
    notes: list[str] = []
    inside, rows, sdm = _decaying_voxels(signal, mask, gradients, notes)
    tensors = fit_tensor(rows, gradients)
    wm, gm, csf = _refined_tissues(sdm, fractional_anisotropy(tensors), notes)
    chosen = {
        "csf": top_voxels(csf, sdm, _number(csf, percent["csf"], "csf", notes)),
        "gm": top_voxels(gm, -np.abs(sdm - _median(sdm[gm])), _number(gm, percent["gm"], "gm", notes)),
    }
    bvalues = gradients.shell_bvalues
    isotropic = {
        tissue: Response(tissue, bvalues, _isotropic(rows[n], gradients)) for tissue, n in chosen.items() if len(n)
    }
    n_wm = _number(wm, percent["wm"], "wm", notes)
    chosen["wm"] = single_fibre_voxels(rows, wm, gradients, isotropic.get("csf"), number=n_wm)
    fibres = np.linalg.eigh(tensors[chosen["wm"]])[1][..., 2]  # (n, 3)
    coefficients = _anisotropic(rows[chosen["wm"]], fibres, gradients, l_max=L_MAX)
    found = Responses(wm=Response("wm", bvalues, coefficients), **isotropic)
    tissues, reason = separable_tissues(found, gradients)
    voxels = {tissue: _volume(inside[chosen[tissue]], mask.shape) for tissue in TISSUES}
    return ResponseEstimate(found, voxels, tissues, reason, (*notes, *_doubts(found)))


def _decaying_voxels(
    signal: np.ndarray, mask: np.ndarray, gradients: GradientTable, notes: list[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return what `_safe_voxels` finds in the eroded mask, or in the whole mask where that is too little."""
    eroded = _erode(mask, N_EROSIONS, notes)
    inside, rows, sdm = _safe_voxels(signal, eroded, gradients)
    if len(rows) < LEAST_VOXELS and eroded.sum() < mask.sum():
        inside, rows, sdm = _safe_voxels(signal, mask, gradients)
    if len(rows) < LEAST_VOXELS:
        raise InputError(
            f"only {len(rows)} voxels of the mask have a signal that decays with b, expected at least {LEAST_VOXELS}; "
            "check mask and gradients"
        )
    return inside, rows, sdm


def _erode(mask: np.ndarray, n_erosions: int, notes: list[str]) -> np.ndarray:
    """Return the mask eroded by up to ``n_erosions`` passes, voxels beyond the image counted as outside.

    Axes with too few slices for that are left alone.
    """
    cross = np.zeros((3, 3, 3), dtype=bool)
    cross[1, 1, 1] = True
    for axis in range(3):
        if mask.shape[axis] > 2 * n_erosions:
            for step in (0, 2):
                cross[tuple(step if other == axis else 1 for other in range(3))] = True
    for passes in range(n_erosions, 0, -1):
        eroded = binary_erosion(mask, cross, iterations=passes)
        if eroded.sum() >= max(0.25 * mask.sum(), 200):
            break
    else:
        passes, eroded = 0, mask
    if passes < n_erosions:
        notes.append(f"the mask is small: eroded by {passes} instead of {n_erosions} passes before the responses")
    return eroded


def _safe_voxels(
    signal: np.ndarray, mask: np.ndarray, gradients: GradientTable
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return flat indices, signal (n, N) and SDM (n,) of the voxels with a positive mean in each shell and a decay."""
    flat = np.flatnonzero(mask)
    rows = np.empty((len(flat), signal.shape[3]), dtype=signal.dtype)
    inside, sdm = np.empty(len(flat), dtype=int), np.empty(len(flat))
    n_volumes = np.array([len(shell.indices) for shell in gradients.shells[1:]])
    weights = n_volumes / n_volumes.sum()
    n_safe = 0
    for part in chunks(len(flat)):
        block = flat[part]
        values = signal[np.unravel_index(block, mask.shape)]
        means = np.stack(
            [np.maximum(values[:, s.indices], 0).mean(axis=1, dtype=np.float64) for s in gradients.shells], axis=1
        )
        with np.errstate(divide="ignore", invalid="ignore"):
            decay = np.log(means[:, :1] / means[:, 1:]) @ weights
        is_safe = np.isfinite(values).all(axis=1) & (means > 0).all(axis=1) & np.isfinite(decay) & (decay > 0)
        end = n_safe + is_safe.sum()
        inside[n_safe:end], rows[n_safe:end], sdm[n_safe:end] = block[is_safe], values[is_safe], decay[is_safe]
        n_safe = end
    return inside[:n_safe], rows[:n_safe], np.minimum(sdm[:n_safe], 10)


def _refined_tissues(sdm: np.ndarray, fa: np.ndarray, notes: list[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Part voxels into refined WM, GM and CSF; return three arrays of indices (Dhollander et al. 2016)."""
    is_wm = fa > FA_THRESHOLD
    if is_wm.sum() < MIN_VOXELS["wm"]:
        is_wm = fa >= np.sort(fa)[-min(max(len(fa) // 4, MIN_VOXELS["wm"]), len(fa))]
        notes.append(
            f"few voxels have an FA above {FA_THRESHOLD:g}: white matter is taken from the quarter of highest FA"
        )
    wm, other = np.flatnonzero(is_wm), np.flatnonzero(~is_wm)
    is_csf = sdm[other] >= _split(sdm[other])
    crude_gm, crude_csf = other[~is_csf], other[is_csf]

    middle = _median(sdm[wm])
    spread = 1.4826 * _median(np.abs(sdm[wm] - middle))  # a standard deviation, were it Gaussian
    is_outlier = sdm[wm] > middle + 2 * spread
    outliers, refined_wm = wm[is_outlier], wm[~is_outlier]

    middle = _median(sdm[crude_gm])
    high, low = crude_gm[sdm[crude_gm] > middle], crude_gm[sdm[crude_gm] <= middle]
    refined_gm = np.concatenate([high[sdm[high] < _split(sdm[high])], low[-sdm[low] < _split(-sdm[low])]])

    lost = outliers[sdm[outliers] > sdm[crude_csf].min(initial=np.inf)]
    fluid = np.concatenate([crude_csf, lost])
    refined_csf = fluid[sdm[fluid] >= _split(sdm[fluid])]
    return refined_wm, refined_gm if len(refined_gm) else crude_gm, refined_csf


def _split(values: np.ndarray) -> float:
    """Return the threshold whose binary image correlates best with the values (Ridgway et al., NeuroImage 44, 2009)."""
    if len(values) < 2:
        return -np.inf
    ordered = np.sort(values.astype(np.float64))
    n_below = np.arange(1, len(ordered))  # the cut lies before each of these
    n_above = len(ordered) - n_below
    mean_above = (ordered.sum() - np.cumsum(ordered)[:-1]) / n_above
    # correlation with a binary image, without the constant standard deviation of the values
    correlation = (mean_above - ordered.mean()) * np.sqrt(n_above / n_below)
    return float(ordered[1 + int(np.argmax(correlation))])


def _number(voxels: np.ndarray, percent: float, tissue: str, notes: list[str]) -> int:
    """Return the number of voxels to use: a share of the refined tissue, but a minimum where there are so few."""
    number = round(len(voxels) * percent / 100)
    if number >= MIN_VOXELS[tissue]:
        return number
    number = min(len(voxels), MIN_VOXELS[tissue])
    name = tissue.upper()
    if number:
        notes.append(f"few voxels of {name}: {number} of {len(voxels)} are averaged, its response is uncertain")
    else:
        notes.append(f"no voxels of {name} were found")
    return number


def _isotropic(rows: np.ndarray, gradients: GradientTable) -> np.ndarray:
    """Return the mean signal of each shell over voxels and volumes, as coefficients of degree 0, shape (S, 1)."""
    means = [rows[:, shell.indices].mean(dtype=np.float64) for shell in gradients.shells]
    return np.array(means)[:, None] / Y00


def _anisotropic(rows: np.ndarray, fibres: np.ndarray, gradients: GradientTable, *, l_max: int) -> np.ndarray:
    r"""Fit the zonal coefficients of each shell to all voxels at once, shape (S, l_max/2 + 1).

    The signal must be non-negative and must not fall from along the fibre to across it, at every degree of the angle
    (Smith, Tournier, Calamante and Connelly, Proc. ISMRM 2018, "amp2response"). Nor may it be sharper than any mixture of
    Gaussian compartments could make it: with the coefficients g of a stick in which water diffuses freely,

    .. math:: 0 \le (-1)^{l/2 + 1}\, r_{l+2} \le \left|\frac{g_{l+2}}{g_l}\right| (-1)^{l/2}\, r_l,
              \qquad g_l \propto \sqrt{2l + 1} \int_0^1 P_l(z)\, e^{-b D z^2} dz.

    A shell of six directions holds nothing of degree 4 and above where all fibres of the voxels point into a few directions;
    without the bound it would be made up there.
    """
    coefficients = np.zeros((len(gradients.shells), l_max // 2 + 1))
    coefficients[0, 0] = rows[:, gradients.b0_indices].mean(dtype=np.float64) / Y00
    angles = np.deg2rad(np.arange(91))
    amplitude = zonal_basis(np.cos(angles), l_max)  # (91, L)
    rise = np.diff(amplitude, axis=0)
    rise /= np.abs(rise).max(axis=1, keepdims=True)
    for number, shell in enumerate(gradients.shells[1:], start=1):
        cosine = fibres @ gradients.directions[shell.indices].T  # (n, N_s)
        design = zonal_basis(cosine.ravel(), l_max)
        values = rows[:, shell.indices].reshape(1, -1)
        constraints = np.concatenate([amplitude, rise, _as_gaussians(shell.bvalue, l_max)])
        coefficients[number] = constrained_fit(values, design, constraints)[0]
    return coefficients


def _as_gaussians(bvalue: float, l_max: int) -> np.ndarray:
    """Return what of the zonal coefficients must not be negative for a mixture of Gaussian compartments, (l_max, L)."""
    stick = zonal_means(-bvalue * FREE_DIFFUSIVITY, l_max) * np.sqrt(2 * np.arange(0, l_max + 1, 2) + 1)
    signed = np.diag((-1.0) ** np.arange(len(stick)))
    bounded = np.abs(stick[1:] / stick[:-1])[:, None] * signed[:-1] - signed[1:]
    return np.concatenate([signed[1:], bounded])


def _doubts(responses: Responses) -> list[str]:
    """Return a sentence for each response that does not look like its tissue."""
    doubts = []
    top = responses.wm.coefficients[-1]
    if top[1] > -0.1 * top[0]:  # -0.28 at b = 1000, -0.56 at b = 2000 in healthy brains
        doubts.append("the WM response is nearly isotropic: few or no single-fibre voxels; check mask and gradients")
    if responses.csf is not None:
        first, second = responses.csf.coefficients[:2, 0]
        diffusivity = np.log(first / second) / responses.csf.bvalues[1] * 1e3
        if diffusivity < 2.0:  # free water at 37 degrees: 3.0
            doubts.append(
                f"no voxel is pure CSF: the response of the most fluid ones has a diffusivity of {diffusivity:.1f} "
                "µm²/ms, free water has 3.0"
            )
    return doubts


def _median(values: np.ndarray) -> float:
    return float(np.median(values)) if len(values) else 0.0


def _volume(flat: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    volume = np.zeros(shape, dtype=bool)
    volume.ravel()[flat] = True
    return volume
