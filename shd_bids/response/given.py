"""Responses that a user gives as files: the tissue of each, and whether its numbers can be a response."""

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from shd_bids.errors import InputError
from shd_bids.files import read_text
from shd_bids.response import TISSUES
from shd_bids.response.mrtrix import parse_response
from shd_bids.response.response import Response, Responses

LARGEST = 1e10  # of a mean signal, and one over the smallest: scanners and their scale factors stay far within
RISE = 1.05  # of the mean signal from one b-value to the next, over which noise does not explain it
POSITIVE = 1e-3  # share of degree 0 that rounding may leave in degree 2


def read_given(files: Sequence[Path], bvalues: ArrayLike | None = None) -> Responses:
    """Read responses, whose names tell the tissues.

    Parameters
    ----------
    files : sequence of Path
        MRtrix3's text form with its line ``# Shells``; names with wm, gm, csf.
    bvalues : array, shape (S,), optional
        Shells of the image they are for, s/mm2; without them the files are checked by themselves.

    Raises
    ------
    InputError
        With the problems of all files: the tissue is not clear, WM is missing, the numbers cannot be a response, or
        they are of other shells.
    """
    parsed: dict[str, Response] = {}
    problems: list[str] = []
    for tissue, path in _by_tissue(files).items():
        try:
            parsed[tissue] = parse_response(read_text(path), tissue, bvalues)
            problems += [f"{path}: {text}" for text in _impossible(parsed[tissue])]
        except InputError as error:
            problems += [text if str(path) in text else f"{path}: {text}" for text in error.problems]
    if problems:
        raise InputError(problems)
    return Responses(wm=parsed["wm"], gm=parsed.get("gm"), csf=parsed.get("csf"))


def _by_tissue(files: Sequence[Path]) -> dict[str, Path]:
    """Return tissue -> file from the words in the names: ``sub-01_param-wm_response.txt``, ``group_CSF.txt``."""
    found: dict[str, Path] = {}
    problems = []
    for path in files:
        words = {word for word in re.split(r"[^a-z]+", path.name.lower()) if word in TISSUES}
        if len(words) != 1 or (tissue := words.pop()) in found:
            problems.append(f"{path}: expected a name with one of wm, gm, csf, each once")
        else:
            found[tissue] = path
    if not problems and "wm" not in found:
        problems.append(f"--responses: found {', '.join(found)}, expected at least wm")
    if problems:
        raise InputError(problems)
    return found


def _impossible(response: Response) -> Iterator[str]:
    r"""Yield what no signal can be: without bounds, rising with b, stronger along the fibre than across it.

    A signal that is nowhere negative has :math:`|r_l| \le \sqrt{2l + 1}\, r_0`.
    """
    name, mean = f"{response.tissue} response", response.coefficients[:, 0]
    if mean.max() > LARGEST or mean.min() < 1 / LARGEST:
        yield f"{name}: mean signals from {mean.min():.3g} to {mean.max():.3g}, expected those of an image; correct them"
        return
    bounds = np.sqrt(2 * np.arange(0, response.l_max + 1, 2) + 1) * mean[:, None]
    if (np.abs(response.coefficients) > 1.05 * bounds).any():
        yield f"{name}: coefficients too large for a signal that is nowhere negative; estimate it again"
    order = np.argsort(response.bvalues)
    for before, after in pairwise(order):
        if mean[after] > RISE * mean[before]:
            yield (
                f"{name}: rises from {mean[before]:.4g} at b = {response.bvalues[before]:.0f} to {mean[after]:.4g} at "
                f"b = {response.bvalues[after]:.0f} s/mm², expected a decay; check the order of its rows"
            )
    is_wrong = (response.bvalues > 0) & (response.coefficients[:, 1:2] > POSITIVE * mean[:, None]).any(axis=1)
    if is_wrong.any():
        shells = ", ".join(f"{bvalue:.0f}" for bvalue in response.bvalues[is_wrong])
        yield (
            f"{name}: the second number is above 0 at b = {shells} s/mm², which says more signal along the fibre than "
            "across it; expected it below 0, check the signs"
        )
