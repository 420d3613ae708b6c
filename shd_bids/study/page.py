"""The page of a study: one file that opens offline, with a table to sort and filter, distributions, pictures and ratings."""

import base64
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from shd_bids import __version__
from shd_bids.bids.provenance import now
from shd_bids.files import write_text
from shd_bids.report.facts import STAGES
from shd_bids.report.pages import render_page
from shd_bids.study.columns import column_of
from shd_bids.study.outliers import FEWEST, Flag
from shd_bids.study.plots import Distribution, draw_distribution, short
from shd_bids.study.ratings import CONFLICT, RATINGS, counted
from shd_bids.study.series import Series
from shd_bids.study.study import Study, table_path

__all__ = ["write_page"]

NO_GROUP = "no group"


def write_page(study: Study, output_dir: Path, *, title: str) -> Path:
    """Write the page of a study beside its table.

    Parameters
    ----------
    study : Study
    output_dir : Path
        Root of the derivative data set; links lead from there.
    title : str
        Name of the data set.
    """
    text = render_page(
        "group.html",
        styles=["group.css"],
        scripts=["ratings.js", "group.js"],
        title=title,
        version=__version__,
        made=now().replace("T", " ")[:16],
        study=study,
        failed=[(item, STAGES.get(item.stage, (item.stage, ""))[0]) for item in study.failed],
        rows=[_row(number, item, study) for number, item in enumerate(study.series)],
        columns=[(name, column_of(name), _unit(study, name)) for name in _numeric(study)],
        plots=list(_plots(study)),
        counts=_counts(study),
        ratings=RATINGS,
        conflict=CONFLICT,
        fewest=FEWEST,
        table=table_path(output_dir).name,
    )
    path = table_path(output_dir, ".html")
    write_text(path, text)
    return path


def _counts(study: Study) -> dict[str, int]:
    """Return the numbers at the top of the page."""
    n_failed = len(study.failed)
    return {
        "series": len(study.series),
        "finished": len(study.series) - n_failed,
        "failed": n_failed,
        "outliers": sum(bool(study.outliers(item.name)) for item in study.series),
        "flagged": sum(bool(study.flags[item.name]) for item in study.series),
        **{f"rated_{word or 'not'}": count for word, count in counted(study.verdicts).items()},
    }


def _numeric(study: Study) -> list[str]:
    """Return the columns that hold a number for any series."""
    return [name for name in study.columns if any(isinstance(item.values.get(name), float) for item in study.series)]


def _unit(study: Study, name: str) -> str:
    unit = str(study.columns[name].get("Units", ""))
    return "" if unit in ("1", "arbitrary") else unit


def _row(number: int, item: Series, study: Study) -> dict[str, Any]:
    """Return what the table shows of a series."""
    flags = {flag.column: flag for flag in sorted(study.flags[item.name], key=lambda flag: flag.kind, reverse=True)}
    return {
        "number": number,
        "series": item,
        "picture": _picture(item.thumbnail),
        "flags": [_in_words(flag) for flag in study.flags[item.name]],
        "verdict": study.verdicts[item.name],
        "cells": [_cell(item.values.get(name), flags.get(name)) for name in _numeric(study)],
    }


def _cell(value: Any, flag: Flag | None) -> dict[str, Any]:
    """Return a number as text with its doubt."""
    is_number = isinstance(value, float)
    text = short(value) if is_number else "–"
    return {
        "value": f"{value:.6g}" if is_number else "",
        "text": text,
        "flag": flag,
        "words": _in_words(flag) if flag else "",
    }


def _in_words(flag: Flag) -> str:
    """Return a doubt as a reader understands it."""
    label = column_of(flag.column).label
    if flag.kind == "range":
        return f"{label} {'not as expected' if flag.side == 'wrong' else f'{flag.side}er than expected'}"
    return f"{label} {flag.side}, {abs(flag.deviation):.0f} SD from its group"


def _picture(path: Path | None) -> str:
    """Return a small picture as data of the page, nothing where there is none."""
    return f"data:image/webp;base64,{base64.b64encode(path.read_bytes()).decode()}" if path else ""


def _plots(study: Study) -> Iterator[Mapping[str, Any]]:
    """Yield the distribution of each column that is compared."""
    for name in _numeric(study):
        column = column_of(name)
        if not column.is_compared:
            continue
        groups: dict[str, dict[int, float]] = {}
        for number, item in enumerate(study.series):
            value = item.values.get(name)
            if isinstance(value, float):
                groups.setdefault(item.group or NO_GROUP, {})[number] = value
        outliers = frozenset(
            number
            for number, item in enumerate(study.series)
            if any(f.column == name for f in study.outliers(item.name))
        )
        unit = _unit(study, name)
        yield {
            "name": name,
            "column": column,
            "unit": unit,
            "description": study.columns[name].get("Description", ""),
            "picture": draw_distribution(Distribution(column, groups, outliers, unit)),
        }
