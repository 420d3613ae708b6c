"""The mean response of several series of one protocol, whatever the gain of each and with some of them spoilt."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from shd_bids.errors import InputError
from shd_bids.response import TISSUES
from shd_bids.response.response import Response, Responses

__all__ = ["MeanResponses", "mean_responses"]

FEWEST = 4
"""Series of which one can be told from the others."""

DEVIATIONS = 3.5  # robust standard deviations: the limit of modified z-scores, Iglewicz and Hoaglin (1993)
LEAST_DISTANCE = 0.1  # of an outlier, so that none is made of the small differences of series that agree
SIGMA_OF_MAD = 1.4826  # standard deviation of a normal distribution in units of its median absolute deviation
POLISHES = 20


@dataclass(frozen=True, eq=False)
class MeanResponses:
    """Mean responses of N series, and how each series compares with them.

    Attributes
    ----------
    responses : Responses
        In the unit of a series of median gain.
    gain : array, shape (N,)
        Signal of each series over that of the mean, one number for all tissues and shells.
    distance : array, shape (N,)
        Root mean square of what a series differs by beside its gain: logarithms of mean signals and zonal coefficients
        over the mean signal of their shell.
    is_outlier : array of bool, shape (N,)
        Which series are left out of the mean.
    """

    responses: Responses
    gain: np.ndarray
    distance: np.ndarray
    is_outlier: np.ndarray


def mean_responses(members: Sequence[Responses]) -> MeanResponses:
    r"""Return the robust mean of responses to the same shells.

    Mean signals are averaged in the log domain with one gain for each series, as global intensities multiply all
    tissues and shells alike; medians replace means, by median polish,

    .. math:: \log r^{(n)}_{t,s,0} \approx g_n + m_{t,s},

    and the shape of each shell is the median of :math:`r_{l}/r_{0}`, which has no gain. Series whose distance lies over
    3.5 robust standard deviations above the median, and over 0.1, are left out, where there are at least four. A tissue
    is kept that over half of the others have.

    Parameters
    ----------
    members : sequence of Responses
        Of N series, with equal numbers of shells.

    Raises
    ------
    InputError
        There is no series, or they have different numbers of shells.

    References
    ----------
    Raffelt et al. (2017), NeuroImage 144:58 (one response for a study); Dhollander et al. (2021), NeuroImage 241:118417
    (global intensities of all tissues in the log domain); Tukey (1977), Exploratory data analysis (median polish).
    """
    if len({len(member.wm.bvalues) for member in members}) != 1:
        raise InputError("mean response: expected at least one series, all with the same shells")
    log_signal, shape = _stacked(members)
    is_outlier = _are_outliers(_distances(log_signal, shape, np.ones(len(members), bool)))
    used = ~is_outlier
    gain, level = _polished(log_signal, used)
    bvalues = np.median([member.wm.bvalues for member in members], axis=0)
    centre = _nanmedian(shape[used])  # (T, S, L)
    found: dict[str, Response] = {}
    for number, tissue in enumerate(TISSUES):
        if np.isfinite(log_signal[used, number, 0]).mean() > 0.5:
            rows = np.exp(level[number])[:, None] * (centre[number] if tissue == "wm" else np.ones((len(bvalues), 1)))
            found[tissue] = Response(tissue, bvalues, rows)
    return MeanResponses(Responses(**found), np.exp(gain), _distances(log_signal, shape, used), is_outlier)


def _stacked(members: Sequence[Responses]) -> tuple[np.ndarray, np.ndarray]:
    """Return log r_0 (N, T, S) and r_l / r_0 (N, T, S, L), NaN where a series lacks a tissue."""
    n_shells = len(members[0].wm.bvalues)
    n_degrees = max(member.wm.coefficients.shape[1] for member in members)
    log_signal = np.full((len(members), len(TISSUES), n_shells), np.nan)
    shape = np.full((*log_signal.shape, n_degrees), np.nan)
    for number, member in enumerate(members):
        for response in member.tissues:
            place = number, TISSUES.index(response.tissue)
            first = response.coefficients[:, :1]
            log_signal[place] = np.log(first[:, 0])
            shape[place] = 0.0
            shape[place][:, : response.coefficients.shape[1]] = response.coefficients / first
    return log_signal, shape


def _polished(log_signal: np.ndarray, used: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the log gains (N,), whose median over the series used is 0, and the levels (T, S), by median polish."""
    gain = np.zeros(len(log_signal))
    level = np.zeros(log_signal.shape[1:])
    for _ in range(POLISHES):
        level = _nanmedian(log_signal[used] - gain[used, None, None])
        gain = _nanmedian(np.moveaxis(log_signal - level, 0, -1).reshape(-1, len(gain)))
    centre = np.median(gain[used])
    return gain - centre, level + centre


def _distances(log_signal: np.ndarray, shape: np.ndarray, used: np.ndarray) -> np.ndarray:
    """Return the distance of each series (N,) from the centre of those used, beside its gain."""
    gain, level = _polished(log_signal, used)
    signal = log_signal - level - gain[:, None, None]
    residual = np.concatenate([signal[..., None], (shape - _nanmedian(shape[used]))[..., 1:]], axis=-1)
    return np.sqrt(np.nanmean(residual.reshape(len(residual), -1) ** 2, axis=1))


def _are_outliers(distance: np.ndarray) -> np.ndarray:
    """Return which distances (N,) are too large for their distribution."""
    if len(distance) < FEWEST:
        return np.zeros(len(distance), dtype=bool)
    centre = np.median(distance)
    spread = SIGMA_OF_MAD * np.median(np.abs(distance - centre))
    return distance > np.maximum(centre + DEVIATIONS * spread, LEAST_DISTANCE)


def _nanmedian(values: np.ndarray) -> np.ndarray:
    """Return the median along the first axis of what is known, NaN where nothing is."""
    masked = np.ma.median(np.ma.masked_invalid(values), axis=0)
    return np.ma.filled(masked, np.nan)
