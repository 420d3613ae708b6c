"""The quality of a study: every series with its numbers, doubts and ratings, as a table with its dictionary."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shd_bids.files import write_json, write_text
from shd_bids.study.columns import column_of, key_columns
from shd_bids.study.outliers import FEWEST, Flag, find_outliers, out_of_range
from shd_bids.study.ratings import CONFLICT, RATINGS, Opinion, Verdict, verdicts
from shd_bids.study.series import Series, by_group

__all__ = ["Study", "assess", "table_path", "write_table"]


@dataclass(frozen=True)
class Study:
    """All series of a study with what is thought of them.

    Attributes
    ----------
    series : sequence of Series
    columns : mapping
        Column -> description and unit, in the order of importance.
    flags : mapping
        Name of a series -> doubts about its numbers.
    verdicts : mapping
        Name of a series -> what readers say of it.
    groups : mapping
        Name of a group -> names of its series.
    small_groups : sequence of str
        Groups with too few series to compare.
    notes : sequence of str
        Contradictions of readers, and what else the user is told.
    """

    series: Sequence[Series]
    columns: Mapping[str, Mapping[str, Any]]
    flags: Mapping[str, Sequence[Flag]]
    verdicts: Mapping[str, Verdict]
    groups: Mapping[str, Sequence[str]] = field(default_factory=dict)
    small_groups: Sequence[str] = ()
    notes: Sequence[str] = ()

    @property
    def failed(self) -> list[Series]:
        """Series that did not finish."""
        return [item for item in self.series if item.status != "finished"]

    def outliers(self, name: str) -> list[Flag]:
        """Return in what a series stands out among its like."""
        return [flag for flag in self.flags[name] if flag.kind == "outlier"]


def assess(series: Sequence[Series], dictionary: Mapping[str, Mapping[str, Any]], opinions: Sequence[Opinion]) -> Study:
    """Return the study with the doubts about each series and what readers say."""
    values = {item.name: item.values for item in series}
    groups = by_group(series)
    flags, small = find_outliers(values, groups)
    for item in series:
        flags[item.name] += out_of_range(item.values)
    found, notes = verdicts(opinions, values)
    return Study(
        series=series,
        columns={name: dictionary[name] for name in key_columns(list(dictionary))},
        flags=flags,
        verdicts=found,
        groups=groups,
        small_groups=small,
        notes=notes,
    )


def table_path(output_dir: Path, extension: str = ".tsv") -> Path:
    """Return the path of the quality table of the group; its page and dictionary differ by the extension."""
    return output_dir / f"group_desc-shdtv_qc{extension}"


def write_table(study: Study, output_dir: Path) -> Path:
    """Write the table with its column dictionary."""
    traits = list(dict.fromkeys(name for item in study.series for name in item.traits))
    rows = [_row(item, study, traits) for item in study.series]
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t", lineterminator="\n")
    described = _described(study, traits)
    writer.writerows([list(described), *([_cell(row[name]) for name in described] for row in rows)])
    path = table_path(output_dir)
    write_json(table_path(output_dir, ".json"), described)
    write_text(path, text.getvalue())
    return path


def _row(item: Series, study: Study, traits: Sequence[str]) -> dict[str, Any]:
    """Return the cells of a series."""
    verdict = study.verdicts[item.name]
    by_kind = {
        kind: [str(flag) for flag in study.flags[item.name] if flag.kind == kind] for kind in ("outlier", "range")
    }
    return {
        "series": item.name,
        "subject": item.subject,
        "status": item.status,
        "stage": item.stage,
        "reason": item.reason,
        "group": item.group,
        **{name: item.traits.get(name) for name in traits},
        "outlier_in": " ".join(by_kind["outlier"]),
        "out_of_range": " ".join(by_kind["range"]),
        "rating": verdict.rating,
        "raters": "; ".join(map(str, verdict.opinions)),
        **{name: item.values.get(name) for name in study.columns},
    }


def _described(study: Study, traits: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the column dictionary."""
    return {
        "series": {"Description": "Source entities of the series"},
        "subject": {"Description": "Label of the subject"},
        "status": {"Description": "finished, failed, interrupted, running, or missing where there is no record"},
        "stage": {"Description": "Stage at which a series that did not finish ended"},
        "reason": {"Description": "Why it ended there"},
        "group": {
            "Description": f"Series of one protocol and of the columns asked for; compared where there are {FEWEST} or more"
        },
        **{name: {"Description": f"{name} of participants.tsv"} for name in traits},
        "outlier_in": {
            "Description": "Columns in which the series stands out among its group, and on which side: more than "
            "4.2 (1 + 8 / n) robust standard deviations (median absolute deviation) from the median of n series"
        },
        "out_of_range": {"Description": "Columns outside of the range that is expected, and on which side"},
        "rating": {
            "Description": "What readers of the reports think",
            "Levels": {word: f"rated {word}" for word in RATINGS} | {CONFLICT: "readers differ"},
        },
        "raters": {"Description": "Rating, reader and comment of each reader"},
        **{name: dict(content) | column_of(name).to_dict() for name, content in study.columns.items()},
    }


def _cell(value: Any) -> str:
    """Write a value as BIDS wants it in a table, on one line."""
    if value is None or value == "":
        return "n/a"
    return f"{value:.6g}" if isinstance(value, float) else " ".join(str(value).split())
