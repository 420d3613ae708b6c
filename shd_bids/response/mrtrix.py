"""Responses in the text form of MRtrix3."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from shd_bids.errors import InputError
from shd_bids.files import number_of
from shd_bids.response.response import Response, Responses


def format_response(response: Response) -> str:
    """Return a response as MRtrix3 text: the shells in a comment, one row of zonal coefficients per shell."""
    lines = ["# Shells: " + ",".join(f"{bvalue:.0f}" for bvalue in response.bvalues)]
    lines += [" ".join(f"{value:.15g}" for value in row) for row in response.coefficients]
    return "\n".join(lines) + "\n"


def parse_response(
    text: str, tissue: str, bvalues: ArrayLike | None = None, *, shell_tolerance: float = 80.0
) -> Response:
    """Return the response that MRtrix3 text holds.

    Parameters
    ----------
    text : str
    tissue : {"wm", "gm", "csf"}
    bvalues : array, shape (S,), optional
        Shells of the image it is for; without them those of the line ``# Shells`` are taken.
    shell_tolerance : float
        Largest difference between the shells of that line and of the image, s/mm2.

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
    if not np.isfinite(coefficients).all():
        raise InputError(f"{tissue} response: holds NaN or infinity, expected finite numbers")
    if np.any(coefficients[:, 0] <= 0):
        raise InputError(f"{tissue} response: the first number of each row is a mean signal, expected all above 0")
    if header is None:
        raise InputError(
            f"{tissue} response: no line '# Shells: ...' with the b-values of its {len(rows)} rows; add it, for example "
            "'# Shells: 0,1000', as in the file that the program first wrote"
        )
    expected = np.asarray(header if bvalues is None else bvalues, dtype=np.float64)
    if len(coefficients) != len(expected):
        raise InputError(
            f"{tissue} response: {len(coefficients)} rows, expected {len(expected)}, one for each shell "
            f"({_shell_list(expected)} s/mm²)"
        )
    if len(header) != len(expected) or np.abs(np.array(header) - expected).max() > shell_tolerance:
        raise InputError(
            f"{tissue} response: made for the shells {_shell_list(header)} s/mm², the image has "
            f"{_shell_list(expected)}; give responses of the same acquisition"
        )
    if tissue != "wm":
        coefficients = coefficients[:, :1]
    return Response(tissue, expected, coefficients)


def read_responses(files: Sequence[Path], bvalues: ArrayLike) -> Responses:
    """Read the responses of a series with shells (S,), s/mm2, from ``<tissue>.txt``; a tissue without a file is not fitted."""
    return Responses(**{path.stem: parse_response(path.read_text("utf-8"), path.stem, bvalues) for path in files})


def _numbers(text: str, tissue: str) -> list[float]:
    try:
        return [number_of(word) for word in text.split()]
    except ValueError:
        raise InputError(f"{tissue} response: found {text.strip()[:40]!r}, expected rows of numbers") from None


def _shell_list(bvalues: ArrayLike) -> str:
    return ", ".join(f"{bvalue:.0f}" for bvalue in np.asarray(bvalues))
