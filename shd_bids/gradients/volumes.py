"""Whether the volumes of an image fit each other and their gradient table: empty, outlying and exchanged ones."""

import itertools
from dataclasses import dataclass

import numpy as np

from shd_bids.boxes import chunks
from shd_bids.errors import GradientError
from shd_bids.gradients.order import check_order
from shd_bids.gradients.table import MIN_DIRECTIONS, GradientTable

SAMPLE = 20_000  # voxels of the mask that are compared
MAX_BAD = 0.20  # share of the weighted volumes, and of the b=0 volumes, that may be dropped
EMPTY_SHARE = 0.05  # of the mask, that may be zero in one volume beyond what is zero in its shell
EMPTY_LEVEL = 0.2  # of the shell's level, below which a volume holds no signal
CLEAR_RATIO = 1.25  # of two levels that directions, motion and noise do not explain
CLEAR_SPREADS = 6.0  # robust standard deviations of the levels within a shell
MIN_LIKENESS = 0.3  # usual correlation within a shell that lets one volume be judged by it
UNLIKE = 0.25  # of that correlation
NOISE_LIKENESS = 0.1
BRIGHTER = 1.05  # ratio of a shell to b=0 that noise does not explain
HARDLY_DARKER = 0.95
SLOWEST = 0.05e-3  # mm2/s, mean diffusivity that no tissue falls short of, fixed or not
SLOWEST_LIVING = 0.15e-3  # mm2/s, likewise of living tissue, at b = 10000 s/mm2 as well
SPIKE = 10.0  # times the brightest signal at b=0; vessels and eyes are less than twice as bright as fluid
BRIGHT_PERCENT = 99.5  # of the b=0 signal, taken for the brightest
FREE_WATER = 3.5e-3  # mm2/s, diffusivity that no tissue exceeds, at 37 degrees and with noise
CLEAR_B = 500.0  # s/mm2, from which tissue is clearly darker than at b=0


@dataclass(frozen=True, eq=False)
class _Volumes:
    """Level (mean in the mask), share of zeros, and likeness to its shell of each volume, shape (N,)."""

    level: np.ndarray
    zeros: np.ndarray
    likeness: np.ndarray


def check_volumes(signal: np.ndarray, mask: np.ndarray, table: GradientTable) -> GradientTable:
    """Compare each volume with its shell and the shells with b=0; return the table without those that do not fit.

    Parameters
    ----------
    signal : array, shape (x, y, z, N)
        Volumes of ``table``.
    mask : array, shape (x, y, z), bool
    table : GradientTable

    Returns
    -------
    GradientTable
        Its notes name every volume that was dropped, counted from 0, and what else does not fit.

    Raises
    ------
    GradientError
        More than 20 % of the weighted or of the b=0 volumes do not fit, a shell is brighter than b=0, or its volumes
        fit the directions of another order.
    """
    values = _sample(signal, mask)
    measured = _measure(values, table)
    reasons = _reasons(measured, table)
    _require(_too_many(reasons, table))
    fitting = np.setdiff1d(np.arange(table.n_volumes), list(reasons))
    swapped, problems, order_doubts = check_order(values[:, fitting].astype(np.float64), table.without(list(reasons)))
    reasons |= {int(fitting[row]): reason for row, reason in swapped.items()}
    _require(problems + _too_many(reasons, table))
    rows = sorted(reasons)
    names = "; ".join(f"volume {table.source_volumes[row]} {reasons[row]}" for row in rows)
    notes = [f"{len(rows)} of {table.n_volumes} volumes dropped: {names}"] if rows else []
    if all(any(reason.startswith(f"is as {kind}") for reason in reasons.values()) for kind in ("dark", "bright")):
        notes.append("volumes with and without weighting look exchanged; check their order in image and table")
    kept = table.without(rows)
    index = np.setdiff1d(np.arange(table.n_volumes), rows)
    remaining = _Volumes(measured.level[index], measured.zeros[index], measured.likeness[index])
    problems, doubts = _compare_shells(remaining, kept)
    _require(problems)
    return kept.noted(*notes, *_spikes(signal, mask, table), *doubts, *order_doubts)


def _require(problems: list[str]) -> None:
    if problems:
        raise GradientError(problems)


def _sample(signal: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return some voxels of the mask, shape (n, N)."""
    inside = np.flatnonzero(mask)
    return signal.reshape(-1, signal.shape[-1])[inside[:: max(1, len(inside) // SAMPLE)]]


def _spikes(signal: np.ndarray, mask: np.ndarray, table: GradientTable) -> list[str]:
    """Return a note where values inside the mask are far above all that b=0 holds, as flipped bits make them."""
    voxels, inside = signal.reshape(-1, signal.shape[-1]), np.flatnonzero(mask)
    b0 = _sample(signal, mask)[:, table.b0_indices]
    bound = SPIKE * float(np.percentile(b0, BRIGHT_PERCENT))
    count = sum(int((voxels[inside[part]] > bound).sum()) for part in chunks(len(inside))) if bound > 0 else 0
    if not count:
        return []
    return [
        f"{count} value{'s' if count > 1 else ''} inside the mask above {bound:.4g}, {SPIKE:g} times the brightest signal "
        "at b=0: the file may be damaged"
    ]


def _measure(values: np.ndarray, table: GradientTable) -> _Volumes:
    likeness = np.ones(table.n_volumes)
    for shell in table.shells:
        if len(shell.indices) > 2:
            likeness[shell.indices] = _likeness(values[:, shell.indices].astype(np.float64))
    return _Volumes(values.mean(axis=0, dtype=np.float64), (values <= 0).mean(axis=0), likeness)


def _likeness(values: np.ndarray) -> np.ndarray:
    """Return the correlation over voxels of each column with the column most like it, 1 where nothing varies.

    Not with the mean of the others: in few bundles the volume along them differs from most, but not from its neighbours.
    """
    centred = values - values.mean(axis=0)
    norm = np.linalg.norm(centred, axis=0)
    correlation = centred.T @ centred / np.maximum(np.outer(norm, norm), 1e-12)
    np.fill_diagonal(correlation, -1)
    return np.where(norm > 0, correlation.max(axis=0), 1.0)


def _reasons(volumes: _Volumes, table: GradientTable) -> dict[int, str]:
    """Return why each row that does not fit its shell does not."""
    reasons: dict[int, str] = {}
    for shell in table.shells:
        reasons |= _empty(volumes, shell.indices)
    b0 = np.setdiff1d(table.b0_indices, list(reasons))
    for shell in table.shells[1:]:
        rows = np.setdiff1d(shell.indices, list(reasons))
        if len(b0) and len(rows):
            reasons |= _exchanged(volumes.level, b0, rows, bvalue=shell.bvalue)
    for shell in table.shells:
        rows = np.setdiff1d(shell.indices, list(reasons))
        reasons |= _outlying(volumes, rows, is_weighted=shell.bvalue > 0)
    return reasons


def _empty(volumes: _Volumes, rows: np.ndarray) -> dict[int, str]:
    usual = np.percentile(volumes.zeros[rows], 25, method="lower")
    level = np.percentile(volumes.level[rows], 75, method="higher")
    reasons = {}
    for row in rows.tolist():
        if volumes.zeros[row] >= 1 or (len(rows) > 1 and volumes.level[row] < EMPTY_LEVEL * level):
            reasons[row] = "is empty"
        elif volumes.zeros[row] > usual + EMPTY_SHARE:
            reasons[row] = f"is empty in {volumes.zeros[row]:.0%} of the mask"
    return reasons


def _exchanged(level: np.ndarray, b0: np.ndarray, rows: np.ndarray, *, bvalue: float) -> dict[int, str]:
    """Return the b=0 volumes with the level of a shell, and those of the shell with the level of b=0."""
    bright = float(np.percentile(level[b0], 75, method="higher"))
    dark = float(np.median(level[rows]))
    if dark <= 0 or bright < CLEAR_RATIO * dark:
        return {}
    middle = np.sqrt(bright * dark)
    swapped = {int(row): f"is as dark as b = {bvalue:.0f} but labelled b=0" for row in b0 if level[row] < middle}
    if len(swapped) >= len(b0) or not (level[rows] > middle).any():
        swapped = {}  # two levels of b=0 are no exchange unless a weighted volume is bright
    return swapped | {
        int(row): f"is as bright as b=0 but labelled b = {bvalue:.0f}" for row in rows if level[row] > middle
    }


def _outlying(volumes: _Volumes, rows: np.ndarray, *, is_weighted: bool) -> dict[int, str]:
    """Return the volumes far from the median level of their shell, or unlike its other volumes."""
    if len(rows) < MIN_DIRECTIONS:
        return {}
    ratio = volumes.level[rows] / np.median(volumes.level[rows])
    deviation = np.abs(np.log(np.maximum(ratio, 1e-6)))
    is_far = deviation > max(np.log(CLEAR_RATIO), CLEAR_SPREADS * 1.4826 * float(np.median(deviation)))
    is_far &= is_weighted and bool(is_far.mean() <= MAX_BAD)  # more are a second level, which is told
    likeness = volumes.likeness[rows]
    usual = float(np.median(likeness))
    reasons = {}
    for row, own, far, alike in zip(rows.tolist(), ratio, is_far, likeness, strict=True):
        if far:
            reasons[row] = f"has {own:.2f} times the level of its shell"
        elif usual > MIN_LIKENESS and alike < UNLIKE * usual:
            reasons[row] = f"does not resemble its shell (correlation {alike:.2f}, usually {usual:.2f})"
    return reasons


def _too_many(reasons: dict[int, str], table: GradientTable) -> list[str]:
    problems = []
    is_bad = np.isin(np.arange(table.n_volumes), list(reasons))
    is_b0 = table.shell_index == 0
    for kind, rows in (("b=0", np.flatnonzero(is_b0)), ("weighted", np.flatnonzero(~is_b0))):
        bad = rows[is_bad[rows]]
        n_left, n_needed = len(rows) - len(bad), 1 if kind == "b=0" else MIN_DIRECTIONS
        allowed = max(MAX_BAD * len(rows), 1)
        if len(bad) and (len(bad) > allowed or n_left < n_needed):
            names = "; ".join(f"volume {table.source_volumes[row]} {reasons[row]}" for row in bad[:8])
            problems.append(
                f"{len(bad)} of {len(rows)} {kind} volumes do not fit their shell ({names}{'; ...' if len(bad) > 8 else ''}), "
                f"expected at most {MAX_BAD:.0%}; check whether scan and copy are complete and the table is of this image"
            )
    return problems


def _compare_shells(volumes: _Volumes, table: GradientTable) -> tuple[list[str], list[str]]:
    """Return what makes the shells impossible beside b=0, and what is doubtful about them."""
    level = volumes.level
    b0 = float(np.median(level[table.b0_indices]))
    problems, doubts = [], _two_levels(level, table)
    for shell in table.shells[1:]:
        ratio = float(np.median(level[shell.indices])) / b0 if b0 > 0 else 0.0
        ratio = max(ratio, 1e-12)
        if ratio > BRIGHTER:
            problems.append(
                f"the volumes of b = {shell.bvalue:.0f} s/mm² are {ratio:.2f} times as bright as those of b=0, expected "
                "them darker; the order of image and table differs, or the table is of another image"
            )
        elif ratio > HARDLY_DARKER and shell.bvalue >= CLEAR_B:
            doubts.append(
                f"the volumes of b = {shell.bvalue:.0f} s/mm² are hardly darker than those of b=0 (ratio {ratio:.2f}): "
                "the mask may lie over air, the b-values may be in another unit, or labels be exchanged"
            )
        elif shell.bvalue >= CLEAR_B and -np.log(ratio) / shell.bvalue < SLOWEST_LIVING:
            keeps = "tissue keeps" if -np.log(ratio) / shell.bvalue < SLOWEST else "living tissue keeps"
            doubts.append(
                f"the signal at b = {shell.bvalue:.0f} s/mm² is {ratio:.2g} of that at b=0, more than {keeps}: the "
                "b-values may be in another unit"
            )
        elif -np.log(ratio) / shell.bvalue > FREE_WATER:
            doubts.append(
                f"the signal at b = {shell.bvalue:.0f} s/mm² is {ratio:.2g} of that at b=0, less than free water keeps: "
                "the b-values may be in another unit"
            )
        if len(shell.indices) >= MIN_DIRECTIONS and np.median(volumes.likeness[shell.indices]) < NOISE_LIKENESS:
            doubts.append(f"the volumes of b = {shell.bvalue:.0f} s/mm² resemble each other no more than noise does")
    return problems + _exchanged_shells(level, table), doubts


def _exchanged_shells(level: np.ndarray, table: GradientTable) -> list[str]:
    """Return the pairs of neighbouring shells of which that of the higher b is the brighter one."""
    problems = []
    for low, high in itertools.pairwise(table.shells[1:]):
        ratio = float(np.median(level[high.indices])) / max(float(np.median(level[low.indices])), 1e-12)
        if ratio > BRIGHTER:
            problems.append(
                f"the volumes of b = {high.bvalue:.0f} s/mm² are {ratio:.2f} times as bright as those of b = "
                f"{low.bvalue:.0f}, expected them darker; the labels of shells may be exchanged, or their runs differ in gain"
            )
    return problems


def _two_levels(level: np.ndarray, table: GradientTable) -> list[str]:
    """Return a note for each shell whose volumes have two clearly different levels."""
    notes = []
    for shell in table.shells:
        rows = shell.indices[np.argsort(level[shell.indices], kind="stable")]
        ratios = level[rows[1:]] / np.maximum(level[rows[:-1]], 1e-12)
        if not len(ratios) or ratios.max() < CLEAR_RATIO:
            continue
        parts = np.split(rows, [int(np.argmax(ratios)) + 1])
        told = " and ".join(f"{level[part].mean():.4g} (volume {_names(part, table)})" for part in parts)
        notes.append(
            f"the volumes of b = {shell.bvalue:.0f} s/mm² have two levels, {told}: runs of different gain may have been "
            "joined; bring them to one level"
        )
    return notes


def _names(rows: np.ndarray, table: GradientTable) -> str:
    names = [str(volume) for volume in np.sort(table.source_volumes[rows])]
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
