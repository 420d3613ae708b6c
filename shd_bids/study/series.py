"""What became of every series of a study: read from the records and quality tables of the participant level."""

import csv
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shd_bids.bids.names import figure_path, output_path, report_path, sidecar_path
from shd_bids.bids.records import records
from shd_bids.bids.run import DWIRun, Unusable
from shd_bids.errors import InputError
from shd_bids.files import read_json_object, read_text

__all__ = ["MISSING", "Series", "by_group", "read_participants", "read_series", "unusable_series"]

MISSING = "missing"
"""State of a series of which there is no record; others are those of the records."""

IDENTITY = ("subject", "session", "series")


@dataclass(frozen=True)
class Series:
    """One series as the group level sees it.

    Attributes
    ----------
    name, subject : str
        Source entities, and the label of the subject.
    status : str
        ``finished``, ``failed``, ``interrupted``, ``running`` or ``missing``.
    stage, reason : str
        Where and why it ended early; empty where it did not.
    group : str
        With whom it is compared.
    traits : mapping
        Columns of ``participants.tsv`` that were asked for.
    values : mapping
        Numbers, and texts, of the quality table; of a failed series those of the stages that it finished.
    report : str
        Page of the subject, relative to the root; empty where there is none.
    thumbnail : Path, optional
        Small picture.
    """

    name: str
    subject: str
    status: str
    stage: str = ""
    reason: str = ""
    group: str = ""
    traits: Mapping[str, str] = field(default_factory=dict)
    values: Mapping[str, float | str | None] = field(default_factory=dict)
    report: str = ""
    thumbnail: Path | None = None


def read_series(
    output_dir: Path,
    runs: Sequence[DWIRun],
    *,
    groups: Mapping[str, str],
    participants: Mapping[str, Mapping[str, str]],
) -> tuple[list[Series], dict[str, dict[str, Any]]]:
    """Return the state and the numbers of every series, and what the column dictionaries say.

    Parameters
    ----------
    output_dir : Path
        Root of the derivative data set.
    runs : sequence of DWIRun
        Series of the study.
    groups : mapping
        Key of a run -> name of its group.
    participants : mapping
        Label of a subject -> traits.
    """
    states = {subject: _states(output_dir, subject) for subject in {run.subject for run in runs}}
    dictionary: dict[str, dict[str, Any]] = {}
    found = []
    for run in runs:
        state = states[run.subject].get(run.prefix, {"status": MISSING})
        values, columns = _numbers(output_dir, run)
        dictionary = columns | dictionary
        picture = figure_path(output_dir, run, "thumbnail", extension=".webp")
        found.append(
            Series(
                name=run.prefix,
                subject=run.subject,
                status=str(state["status"]),
                stage=str(state.get("stage", "")),
                reason=" ".join(str(state.get("message", "")).split()),
                group=groups.get(run.key, ""),
                traits=participants.get(run.subject, {}),
                values=values,
                report=_report(output_dir, run.subject, run.session),
                thumbnail=picture if picture.is_file() else None,
            )
        )
    return found, dictionary


def unusable_series(
    output_dir: Path, unusable: Iterable[Unusable], participants: Mapping[str, Mapping[str, str]]
) -> list[Series]:
    """Return the series that cannot be processed; they have no numbers and are compared with none."""
    return [
        Series(
            name=item.prefix,
            subject=item.subject,
            status="failed",
            stage="input",
            reason="; ".join(item.problems),
            traits=participants.get(item.subject, {}),
            report=_report(output_dir, item.subject, item.session),
        )
        for item in unusable
    ]


def _report(output_dir: Path, subject: str, session: str | None) -> str:
    """Return the page of a subject or session, relative to the root, empty where there is none."""
    page = report_path(output_dir, subject, session)
    return page.name if page.is_file() else ""


def _states(output_dir: Path, subject: str) -> dict[str, dict[str, Any]]:
    """Return what the newest record of each series of a subject says of its end."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted((output_dir / f"sub-{subject}" / "log").glob("*/status.json"), reverse=True):
        try:
            series = read_json_object(path)["series"]
            found = {name: state for name, state in series.items() if "status" in state} | found
        except (InputError, KeyError, AttributeError, TypeError):
            continue
    return found


def _numbers(output_dir: Path, run: DWIRun) -> tuple[dict[str, float | str | None], dict[str, dict[str, Any]]]:
    """Return the numbers of a series and their descriptions: from its table, else from the stages it finished."""
    table = output_path(output_dir, run, "qc")
    try:
        (row,) = csv.DictReader(read_text(table).splitlines(), delimiter="\t")
        columns = read_json_object(sidecar_path(table))
    except (InputError, ValueError):
        columns = _columns_of_stages(output_dir, run)
        row = {name: column.pop("value", None) for name, column in columns.items()}
    values = {name: _value(text) for name, text in row.items() if name not in IDENTITY}
    return values, {name: column for name, column in columns.items() if name not in IDENTITY}


def _columns_of_stages(output_dir: Path, run: DWIRun) -> dict[str, dict[str, Any]]:
    """Return the quality numbers that a series left before it failed."""
    for _, record in records(output_dir, run.subject):
        try:
            stages = record["series"][run.key]["stages"]
            return {name: dict(column) for facts in stages.values() for name, column in facts.get("qc", {}).items()}
        except (ValueError, KeyError, AttributeError):
            continue
    return {}


def _value(text: Any) -> float | str | None:
    """Return a cell of a table as number, text, or None for ``n/a``."""
    if text in (None, "", "n/a"):
        return None
    try:
        return float(text)
    except ValueError:
        return str(text)


def read_participants(bids_dir: Path, columns: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return some columns of ``participants.tsv`` by the label of the subject.

    Raises
    ------
    InputError
        There is no such table or column.
    """
    if not columns:
        return {}
    path = bids_dir / "participants.tsv"
    rows = list(csv.DictReader(read_text(path).splitlines(), delimiter="\t"))
    if rows and "participant_id" not in rows[0]:
        raise InputError(f"{path}: no column participant_id, which tells whose the others are; add it")
    present = [name for name in (rows[0] if rows else ()) if name and name != "participant_id"]
    if missing := [name for name in columns if name not in present]:
        raise InputError(
            f"--group-by {' '.join(missing)}: {path} has no such column; it has {', '.join(present) or 'none'}"
        )
    return {
        re.sub("^sub-", "", row.get("participant_id") or ""): {name: row[name] or "n/a" for name in columns}
        for row in rows
    }


def by_group(series: Iterable[Series]) -> dict[str, list[str]]:
    """Return the names of the series of each group, without those of which no group is known."""
    found: dict[str, list[str]] = {}
    for item in series:
        if item.group:
            found.setdefault(item.group, []).append(item.name)
    return found
