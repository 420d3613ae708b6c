"""Tissue response functions: their estimate from the data without supervision, and MRtrix3's text form of them.

The voxels of each tissue are found as Dhollander et al. describe (ISMRM Workshop on Breaking the Barriers of Diffusion
MRI 2016, 5), single-fibre white matter by their improved metric (Proc. ISMRM 2019, 555). Written from these papers.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike
from scipy.ndimage import binary_erosion
from scipy.optimize import nnls
from scipy.special import eval_legendre

from shd_bids.chunks import chunks
from shd_bids.exceptions import InputError
from shd_bids.gradients import GradientTable
from shd_bids.peaks import find_peaks
from shd_bids.sphere.harmonics import degrees, sh_basis, zonal_factors, zonal_means
from shd_bids.sphere.healpix import hemisphere
from shd_bids.tensor import fit_tensor, fractional_anisotropy

Y00 = np.sqrt(1 / (4 * np.pi))
L_MAX = (
    10  # of a white-matter response; pooled over many fibre directions it does not depend on the directions per shell
)
MIN_VOXELS = {"wm": 10, "gm": 5, "csf": 5}  # fewer are not averaged but topped up from the next best
MAX_FRACTION_ERROR = 0.25  # of a tissue fraction; see `separable_tissues`
ASSUMED_SNR = 20.0  # of one b=0 volume in white matter
FREE_DIFFUSIVITY = 3.0e-3  # mm2/s, of water at body temperature: nothing in tissue diffuses faster
_VOXELS_PER_CHUNK = 32768  # bounds the memory beside the result
RIDGE = 1e-10  # of the largest diagonal entry: decides between solutions the data cannot tell apart


@dataclass(frozen=True, eq=False)
class Response:
    r"""Signal of one unit of a tissue, symmetric about its fibre: :math:`S(\theta) = \sum_l r_l Y_{l0}(\theta)`.

    Attributes
    ----------
    tissue : {"wm", "gm", "csf"}
    bvalues : array, shape (S,)
        Mean b of each shell in s/mm2, ascending, 0 for b=0.
    coefficients : array, shape (S, L)
        Zonal coefficients of degrees 0, 2, 4, ... in signal units, normalised as in MRtrix3; an isotropic signal s has
        :math:`r_0 = \sqrt{4\pi} s`. One column for isotropic tissues.
    """

    tissue: str
    bvalues: np.ndarray
    coefficients: np.ndarray

    @property
    def l_max(self) -> int:
        return 2 * (self.coefficients.shape[1] - 1)

    def amplitude(self, cosine: ArrayLike) -> np.ndarray:
        """Evaluate the signal at the cosine of the angle to the fibre, shape (..., S)."""
        return _zonal_basis(np.asarray(cosine, dtype=np.float64), self.l_max) @ self.coefficients.T

    def scaled(self, factor: float) -> "Response":
        """Return the response in other units of signal."""
        return replace(self, coefficients=self.coefficients * factor)


@dataclass(frozen=True, eq=False)
class Responses:
    """The responses of the tissues to be fitted; white matter is always there."""

    wm: Response
    gm: Response | None = None
    csf: Response | None = None

    @property
    def tissues(self) -> tuple[Response, ...]:
        """White matter first, then the others that are present."""
        return tuple(response for response in (self.wm, self.gm, self.csf) if response is not None)

    def only(self, tissues: Sequence[str]) -> "Responses":
        """Return the responses of the named tissues."""
        return Responses(**{response.tissue: response for response in self.tissues if response.tissue in tissues})


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
        Which tissues the signal can tell apart and why, and how far the selection had to depart from the usual one.
    """

    responses: Responses
    voxels: dict[str, np.ndarray]
    separable_tissues: tuple[str, ...]
    message: str


def estimate_responses(
    signal: np.ndarray,
    mask: np.ndarray,
    gradients: GradientTable,
    *,
    n_erosions: int = 3,
    fa_threshold: float = 0.2,
    wm_percent: float = 0.5,
    gm_percent: float = 2.0,
    csf_percent: float = 10.0,
    l_max: int = L_MAX,
) -> ResponseEstimate:
    r"""Estimate the responses of white matter, grey matter and CSF from one shell or more.

    The signal decay metric (SDM) :math:`\sum_s n_s \ln(\bar S_0 / \bar S_s) / \sum_s n_s` and FA part the voxels into
    the three tissues; outliers go; the CSF of highest, the GM of median SDM and the WM most like one fibre give the
    responses.

    Parameters
    ----------
    signal : array, shape (x, y, z, N)
        Not normalised.
    mask : array, shape (x, y, z), bool
    gradients : GradientTable
    n_erosions : int
        Passes of erosion of the mask (6 neighbours); fewer where that would leave less than a quarter of it.
    fa_threshold : float
        Between WM and the rest.
    wm_percent, gm_percent, csf_percent : float
        Share of each refined tissue that is used.
    l_max : int
        Degree of the WM response.

    Returns
    -------
    ResponseEstimate

    Raises
    ------
    InputError
        When fewer than 20 voxels of the mask have a signal that decays with b.
    """
    if signal.shape[:3] != mask.shape or signal.shape[3] != gradients.n_volumes:
        raise InputError(f"signal of shape {signal.shape}, expected {(*mask.shape, gradients.n_volumes)}")
    notes: list[str] = []
    eroded = _erode(mask, n_erosions, notes)
    inside, rows, sdm = _safe_voxels(signal, eroded, gradients)
    if len(rows) < 20 and eroded.sum() < mask.sum():
        inside, rows, sdm = _safe_voxels(signal, mask, gradients)
    if len(rows) < 20:
        raise InputError(
            f"only {len(rows)} voxels of the mask have a signal that decays with b, expected at least 20; "
            "check mask and gradients"
        )
    tensors = fit_tensor(rows, gradients)
    fa = fractional_anisotropy(tensors)
    wm, gm, csf = _refined_tissues(sdm, fa, fa_threshold=fa_threshold, notes=notes)

    chosen = {
        "csf": _top(csf, sdm, _number(csf, csf_percent, "csf", notes)),
        "gm": _top(gm, -np.abs(sdm - _median(sdm[gm])), _number(gm, gm_percent, "gm", notes)),
    }
    estimates = {
        tissue: Response(tissue, gradients.shell_bvalues, _isotropic(rows[voxels], gradients))
        for tissue, voxels in chosen.items()
        if len(voxels)
    }
    n_wm = _number(wm, wm_percent, "wm", notes)
    chosen["wm"] = _single_fibre_voxels(rows, wm, gradients, estimates.get("csf"), number=n_wm)
    fibres = np.linalg.eigh(tensors[chosen["wm"]])[1][..., 2]  # (n, 3)
    coefficients = _anisotropic(rows[chosen["wm"]], fibres, gradients, l_max=l_max)
    found = Responses(wm=Response("wm", gradients.shell_bvalues, coefficients), **estimates)
    notes += _doubts(found)

    tissues, reason = separable_tissues(found, gradients)
    voxels = {tissue: _volume(inside[chosen[tissue]], mask.shape) for tissue in ("wm", "gm", "csf")}
    return ResponseEstimate(found, voxels, tissues, "; ".join([reason, *notes]))


def separable_tissues(responses: Responses, gradients: GradientTable) -> tuple[tuple[str, ...], str]:
    r"""Decide from the numbers which tissues the shells can tell apart.

    The mean signals of the tissues, one column each, shells weighted by their volumes, are a small linear model
    :math:`M`. Its solution has the covariance :math:`\sigma^2 (M^T M)^{-1}`. A set of tissues will do when no
    fraction (of the signal at b=0) has a standard error above 0.25 at SNR 20. Tried are WM + GM + CSF, WM + CSF,
    WM + GM, in this order: with one shell CSF explains more than GM, which differs little from WM there.

    Returns
    -------
    tissues : tuple of str
        White matter first.
    reason : str
        One sentence.
    """
    present = [response.tissue for response in responses.tissues]
    weights = np.sqrt([len(shell.indices) for shell in gradients.shells])
    n_shells = len(gradients.shells)
    for tissues in (("wm", "gm", "csf"), ("wm", "csf"), ("wm", "gm")):
        if not set(tissues) <= set(present):
            continue
        columns = np.stack([r.coefficients[:, 0] for r in responses.only(tissues).tissues], axis=1) * Y00
        model = weights[:, None] * columns / np.where(columns[0] > 0, columns[0], 1)  # unit: share of its own b=0
        error = _fraction_error(model, responses)
        if error <= MAX_FRACTION_ERROR:
            names = " + ".join(tissue.upper() for tissue in tissues)
            why = f"standard error of a fraction {error:.2f} at SNR {ASSUMED_SNR:.0f}"
            left_out = [t.upper() for t in present if t not in tissues]
            if left_out:
                shells = "one shell and b=0" if n_shells == 2 else f"{n_shells} shells with b=0"
                return (
                    tissues,
                    f"{names} are told apart by the signal ({why}); {shells} cannot tell {' and '.join(left_out)} from "
                    "them: its amount rests on what the network learnt",
                )
            return tissues, f"{names} are told apart by the signal ({why})"
    why = "no other tissue can be told apart from it in these data" if len(present) > 1 else "no other tissue was found"
    return ("wm",), f"the signal tells no tissue from WM: {why}"


def format_response(response: Response) -> str:
    """Write a response as MRtrix3 text: the shells in a comment, one row of zonal coefficients per shell."""
    lines = ["# Shells: " + ",".join(f"{bvalue:.0f}" for bvalue in response.bvalues)]
    lines += [" ".join(f"{value:.15g}" for value in row) for row in response.coefficients]
    return "\n".join(lines) + "\n"


def parse_response(
    text: str, tissue: str, bvalues: ArrayLike | None = None, *, shell_tolerance: float = 80.0
) -> Response:
    """Read a response from MRtrix3 text.

    Parameters
    ----------
    text : str
    tissue : {"wm", "gm", "csf"}
    bvalues : array, shape (S,), optional
        Shells of the image it is for; without them those of the header are taken.
    shell_tolerance : float
        Largest difference between the shells of header and image, s/mm2.

    Raises
    ------
    InputError
        When the text is not a response, or is one for other shells.
    """
    header = None
    rows: list[list[float]] = []
    for line in text.splitlines():
        comment = line.partition("#")[2].strip()
        if comment.lower().startswith("shells:"):
            header = _numbers(comment.partition(":")[2].replace(",", " "), tissue)
        values = _numbers(line.partition("#")[0].replace(",", " "), tissue)
        if values:
            rows.append(values)
    if not rows or len({len(row) for row in rows}) > 1:
        raise InputError(
            f"{tissue} response: found {len(rows)} rows of numbers, expected one per shell, of equal length"
        )
    coefficients = np.array(rows)
    if not np.isfinite(coefficients).all() or np.any(coefficients[:, 0] <= 0):
        raise InputError(f"{tissue} response: the first number of each row is a mean signal, expected all above 0")
    if bvalues is None and header is None:
        raise InputError(f"{tissue} response: no line '# Shells: ...' and no shells given; add the b-value of each row")
    expected = np.asarray(header if bvalues is None else bvalues, dtype=np.float64)
    if len(coefficients) != len(expected):
        raise InputError(
            f"{tissue} response: {len(coefficients)} rows, expected {len(expected)}, one for each shell "
            f"({_shell_list(expected)} s/mm²)"
        )
    if header is not None and (
        len(header) != len(expected) or np.abs(np.array(header) - expected).max() > shell_tolerance
    ):
        raise InputError(
            f"{tissue} response: made for the shells {_shell_list(header)} s/mm², the image has "
            f"{_shell_list(expected)}; give responses of the same acquisition"
        )
    if tissue != "wm":
        coefficients = coefficients[:, :1]
    return Response(tissue, expected, coefficients)


def _erode(mask: np.ndarray, n_erosions: int, notes: list[str]) -> np.ndarray:
    """Erode by up to ``n_erosions`` passes, voxels beyond the image counted as outside.

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
    voxels = signal.reshape(-1, signal.shape[3])
    n_safe = 0
    for part in chunks(len(flat), _VOXELS_PER_CHUNK):
        block = flat[part]
        values = voxels[block]
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


def _refined_tissues(
    sdm: np.ndarray, fa: np.ndarray, *, fa_threshold: float, notes: list[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Part voxels into refined WM, GM and CSF; returns three arrays of indices (Dhollander et al. 2016)."""
    is_wm = fa > fa_threshold
    if is_wm.sum() < MIN_VOXELS["wm"]:
        is_wm = fa >= np.sort(fa)[-min(max(len(fa) // 4, MIN_VOXELS["wm"]), len(fa))]
        notes.append(
            f"few voxels have an FA above {fa_threshold:g}: white matter is taken from the quarter of highest FA"
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
    """Find the threshold whose binary image correlates best with the values (Ridgway et al., NeuroImage 44, 2009)."""
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
    """Count the voxels to use: a share of the refined tissue, but a minimum where there are so few."""
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


def _top(voxels: np.ndarray, values: np.ndarray, number: int) -> np.ndarray:
    """Return the ``number`` voxels of largest value; ``values`` covers all voxels."""
    return voxels[np.argsort(-values[voxels], kind="stable")[:number]]


def _single_fibre_voxels(
    rows: np.ndarray, wm: np.ndarray, gradients: GradientTable, csf: Response | None, *, number: int
) -> np.ndarray:
    """Select the WM voxels most like one fibre without CSF (Dhollander et al. 2019).

    With a deliberately sharp WM response (zonal coefficients 1, -1, 1, -1) and the CSF response, the metric is the
    largest amplitude of the fODF over the total of WM and CSF: first of degree 2, then of degree 6 among the best.
    """
    level = np.median(rows[wm].mean(axis=1, dtype=np.float64)) / Y00
    sharp = np.where(np.arange(len(gradients.shells))[:, None] == 0, [level, 0, 0, 0], level * np.array([1, -1, 1, -1]))
    candidates = wm
    for degree, kept in ((2, 2 * number), (6, number)):
        metric = np.full(len(rows), -np.inf)
        metric[candidates] = _single_fibre_metric(rows[candidates], gradients, sharp[:, : degree // 2 + 1], csf)
        candidates = _top(candidates, metric, kept)
    return candidates


def _single_fibre_metric(
    rows: np.ndarray, gradients: GradientTable, sharp: np.ndarray, csf: Response | None
) -> np.ndarray:
    degree = 2 * (sharp.shape[1] - 1)
    wm_design = _wm_design(gradients, sharp)  # (N, C)
    designs = [wm_design]
    if csf is not None:
        designs.append(csf.coefficients[gradients.shell_index, :1])
    design = np.concatenate(designs, axis=1)
    constraints = np.zeros((385, design.shape[1]))
    constraints[:384, : wm_design.shape[1]] = sh_basis(hemisphere(8), degree)
    constraints[384, -1] = 1 if csf is not None else 0
    solution = _constrained_fit(rows, design, constraints)
    fod = solution[:, : wm_design.shape[1]]
    total = solution[:, 0] + (solution[:, -1] if csf is not None else 0)
    peak = find_peaks(fod, max_peaks=1, relative_threshold=0.0).afd_max
    return np.where(total > 0, peak / np.where(total > 0, total, 1), -np.inf)


def _wm_design(gradients: GradientTable, zonal: np.ndarray) -> np.ndarray:
    """Build the map from fODF coefficients to the signal of all volumes, shape (N, C)."""
    degree = 2 * (zonal.shape[1] - 1)
    kernel = (zonal[:, degrees(degree) // 2] * zonal_factors(degree))[gradients.shell_index]  # (N, C)
    is_weighted = gradients.shell_index > 0
    basis = np.full_like(kernel, Y00)  # of degree 0; at b=0 the kernel has nothing above
    basis[is_weighted] = sh_basis(gradients.directions[is_weighted], degree)
    return kernel * basis


def _constrained_fit(rows: np.ndarray, design: np.ndarray, constraints: np.ndarray) -> np.ndarray:
    r"""Solve :math:`\min_x |A x - y|^2` under :math:`C x \ge 0` for each row y.

    Where the free minimum violates nothing it is the answer. Otherwise, with :math:`A^T A = L L^T`, the multipliers
    solve the non-negative problem :math:`\min_{\lambda \ge 0} |L^{-1}(A^T y + C^T \lambda)|^2` (least distance
    programming; Lawson and Hanson, Solving Least Squares Problems, chapter 23).

    Parameters
    ----------
    rows : array, shape (n, N)
    design : array, shape (N, p)
    constraints : array, shape (k, p)

    Returns
    -------
    array, shape (n, p)
    """
    scale = np.sqrt(np.mean(np.square(design)))
    design, constraints = design / scale, constraints / np.abs(constraints).max()
    normal = design.T @ design
    normal += RIDGE * normal.diagonal().max() * np.eye(len(normal))
    lower = np.linalg.cholesky(normal)
    inverse = np.linalg.inv(lower)
    whitened = design @ inverse.T
    blocks = [rows[part].astype(np.float64) @ whitened for part in chunks(len(rows), _VOXELS_PER_CHUNK)]
    target = np.concatenate([np.empty((0, len(lower))), *blocks])  # (n, p), L^-1 A^T y
    normals = inverse @ constraints.T  # (p, k)
    size = np.abs(target).max(axis=1)
    for row in np.flatnonzero((target @ normals).min(axis=1) < -1e-12 * size):
        multipliers, _ = nnls(normals, -target[row] / size[row])
        target[row] += normals @ multipliers * size[row]
    return target @ inverse / scale


def _isotropic(rows: np.ndarray, gradients: GradientTable) -> np.ndarray:
    """Average the signal of each shell over voxels and volumes, as coefficients of degree 0, shape (S, 1)."""
    means = [rows[:, shell.indices].mean(dtype=np.float64) for shell in gradients.shells]
    return np.array(means)[:, None] / Y00


def _anisotropic(rows: np.ndarray, fibres: np.ndarray, gradients: GradientTable, *, l_max: int) -> np.ndarray:
    r"""Fit the zonal coefficients of each shell to all voxels at once, shape (S, l_max/2 + 1).

    The signal must be non-negative and must not fall from along the fibre to across it, at every degree of the angle
    (Smith, Tournier, Calamante and Connelly, Proc. ISMRM 2018, "amp2response"). Nor may it be sharper than any mixture of
    Gaussian compartments could make it: with the coefficients g of a stick in which water diffuses freely,

    .. math:: 0 \le (-1)^{l/2 + 1}\, r_{l+2} \le \left|\frac{g_{l+2}}{g_l}\right| (-1)^{l/2}\, r_l,
              \qquad g_l \propto \sqrt{2l + 1} \int_0^1 P_l(z)\, e^{-b D z^2} dz.

    A shell of six directions tells nothing of degree 4 and above where all fibres of the voxels point into a few directions;
    without the bound it would be made up there.
    """
    coefficients = np.zeros((len(gradients.shells), l_max // 2 + 1))
    coefficients[0, 0] = rows[:, gradients.b0_indices].mean(dtype=np.float64) / Y00
    angles = np.deg2rad(np.arange(91))
    amplitude = _zonal_basis(np.cos(angles), l_max)  # (91, L)
    rise = np.diff(amplitude, axis=0)
    rise /= np.abs(rise).max(axis=1, keepdims=True)
    for number, shell in enumerate(gradients.shells[1:], start=1):
        cosine = fibres @ gradients.directions[shell.indices].T  # (n, N_s)
        design = _zonal_basis(cosine.ravel(), l_max)
        values = rows[:, shell.indices].reshape(1, -1)
        constraints = np.concatenate([amplitude, rise, _as_gaussians(shell.bvalue, l_max)])
        coefficients[number] = _constrained_fit(values, design, constraints)[0]
    return coefficients


def _as_gaussians(bvalue: float, l_max: int) -> np.ndarray:
    """Return what of the zonal coefficients must not be negative for a mixture of Gaussian compartments, (l_max, L)."""
    stick = zonal_means(-bvalue * FREE_DIFFUSIVITY, l_max) * np.sqrt(2 * np.arange(0, l_max + 1, 2) + 1)
    signed = np.diag((-1.0) ** np.arange(len(stick)))
    bounded = np.abs(stick[1:] / stick[:-1])[:, None] * signed[:-1] - signed[1:]
    return np.concatenate([signed[1:], bounded])


def _zonal_basis(cosine: np.ndarray, l_max: int) -> np.ndarray:
    """Evaluate Y_l0 for even l, shape (..., l_max/2 + 1)."""
    degree = np.arange(0, l_max + 1, 2)
    return np.sqrt((2 * degree + 1) / (4 * np.pi)) * eval_legendre(degree, np.clip(cosine, -1, 1)[..., None])


def _fraction_error(model: np.ndarray, responses: Responses) -> float:
    """Return the largest standard error of a tissue's share of the WM b=0 signal, at the assumed SNR."""
    values = np.linalg.svd(model, compute_uv=False)
    if len(model) < model.shape[1] or values[-1] < 1e-9 * values[0]:
        return np.inf
    return float(np.sqrt(np.linalg.inv(model.T @ model).diagonal().max()) / ASSUMED_SNR)


def _doubts(responses: Responses) -> list[str]:
    """Say where a response does not look like its tissue."""
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


def _numbers(text: str, tissue: str) -> list[float]:
    try:
        return [float(word) for word in text.split()]
    except ValueError:
        raise InputError(f"{tissue} response: found {text.strip()[:40]!r}, expected rows of numbers") from None


def _shell_list(bvalues: ArrayLike) -> str:
    return ", ".join(f"{bvalue:.0f}" for bvalue in np.asarray(bvalues))
