"""What readers of the reports thought of each series: tables saved from the pages, joined, with their contradictions."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from shd_bids.errors import InputError
from shd_bids.files import read_text

__all__ = ["CONFLICT", "RATINGS", "Opinion", "Verdict", "find_ratings", "read_ratings", "verdicts"]

RATINGS = ("pass", "doubt", "fail")
CONFLICT = "conflict"
"""Verdict on a series that readers rate differently."""

COLUMNS = ("series", "rating", "comment", "rater", "rated")
PATTERN = "*_ratings.tsv"


@dataclass(frozen=True)
class Opinion:
    """One reader's rating of one series; ``rated`` is the time, ISO 8601."""

    series: str
    rating: str
    comment: str
    rater: str
    rated: str

    def __str__(self) -> str:
        words = f"{self.rating} ({self.rater})" if self.rater else self.rating
        return f"{words}: {self.comment}" if self.comment else words


@dataclass(frozen=True)
class Verdict:
    """What all readers of a series say together: one of `RATINGS`, `CONFLICT`, or empty."""

    rating: str = ""
    opinions: tuple[Opinion, ...] = ()


def find_ratings(output_dir: Path, given: Sequence[Path]) -> list[Path]:
    """Return the tables of ratings: those at the root of the data set, and those given."""
    return list(dict.fromkeys([*sorted(output_dir.glob(PATTERN)), *given]))


def read_ratings(paths: Iterable[Path]) -> list[Opinion]:
    """Return the newest opinion of each reader on each series.

    Raises
    ------
    InputError
        A file is no table of ratings, or holds a word that is none; all such files are named.
    """
    newest: dict[tuple[str, str], Opinion] = {}
    problems: list[str] = []
    for path in paths:
        try:
            for opinion in _read(path):
                key = (opinion.series, opinion.rater)
                if key not in newest or opinion.rated >= newest[key].rated:
                    newest[key] = opinion
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError(problems)
    return list(newest.values())


def _read(path: Path) -> list[Opinion]:
    rows = csv.DictReader(read_text(path).splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE)
    if missing := [name for name in COLUMNS[:2] if name not in (rows.fieldnames or ())]:
        raise InputError(
            f"{path}: no column {' and '.join(missing)}, expected {', '.join(COLUMNS)}; save it from a report"
        )
    found = []
    for number, row in enumerate(rows, start=2):
        cells = {name: (row.get(name) or "").strip() for name in COLUMNS}
        cells = {name: "" if text == "n/a" else text for name, text in cells.items()}
        if cells["rating"] not in RATINGS:
            raise InputError(
                f"{path}, line {number}: found {cells['rating']!r}, expected {', '.join(RATINGS)}; correct the line"
            )
        found.append(Opinion(**cells))
    return found


def verdicts(opinions: Iterable[Opinion], names: Iterable[str]) -> tuple[dict[str, Verdict], list[str]]:
    """Return the verdict on each series, and what the user is told: contradictions, and ratings of other series."""
    known: dict[str, list[Opinion]] = {name: [] for name in names}
    strangers = []
    for opinion in opinions:
        if opinion.series in known:
            known[opinion.series].append(opinion)
        else:
            strangers.append(opinion.series)
    found = {name: _verdict(those) for name, those in known.items()}
    notes = [
        f"{name}: readers differ: {'; '.join(map(str, verdict.opinions))}"
        for name, verdict in found.items()
        if verdict.rating == CONFLICT
    ]
    if strangers:
        notes.append(f"{len(strangers)} ratings are of series that are not in the study, such as {strangers[0]}")
    return found, notes


def _verdict(opinions: Sequence[Opinion]) -> Verdict:
    said = {opinion.rating for opinion in opinions}
    return Verdict(CONFLICT if len(said) > 1 else next(iter(said), ""), tuple(opinions))


def counted(found: Mapping[str, Verdict]) -> dict[str, int]:
    """Return how many series have each verdict."""
    words = (*RATINGS, CONFLICT, "")
    return {word: sum(verdict.rating == word for verdict in found.values()) for word in words}
