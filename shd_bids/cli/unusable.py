"""Records and pages of series that cannot be processed, so that a study tells of them as of any that failed."""

import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from shd_bids.bids import provenance
from shd_bids.bids.names import log_dir
from shd_bids.bids.records import FAILED
from shd_bids.bids.run import DWIRun, Unusable
from shd_bids.cli.others import reports_of_others
from shd_bids.errors import InputError
from shd_bids.files import write_json, write_text
from shd_bids.settings import Settings

if TYPE_CHECKING:
    from shd_bids.report.facts import RunReport

__all__ = ["STAGE", "note_unusable", "tell_unusable", "unusable_report"]

logger = logging.getLogger("shd_bids")

STAGE = "input"
"""Where such a series ends, in the records."""


def tell_unusable(unusable: Sequence[Unusable], *, needs_all: bool) -> None:
    """Tell why series cannot be processed; the others are, unless all are needed."""
    problems = [problem for item in unusable for problem in item.problems]
    if problems and needs_all:
        raise InputError(problems)
    for problem in problems:
        logger.error("%s", problem)


def note_unusable(unusable: Sequence[Unusable], runs: Sequence[DWIRun], settings: Settings, *, command: str) -> None:
    """Write why series cannot be processed into the records, and the pages of sessions that have no other series.

    Parameters
    ----------
    unusable : sequence of Unusable
    runs : sequence of DWIRun
        The others of the call.
    settings : Settings
    command : str
        As typed, for the page.
    """
    from shd_bids.report.html import Status, write_report

    call, started = provenance.new_run_uuid(), provenance.now()
    for subject in dict.fromkeys(item.subject for item in unusable):
        of_subject = [item for item in unusable if item.subject == subject]
        _write_record(log_dir(settings.output_dir, subject, call), of_subject, settings, call=call, started=started)
    others = {(run.subject, run.session) for run in runs}
    status = Status(state="failed", command=command, started=started, versions=provenance.software())
    for subject, session in dict.fromkeys((item.subject, item.session) for item in unusable):
        if (subject, session) not in others:
            pages = [
                unusable_report(item, settings)
                for item in unusable
                if (item.subject, item.session) == (subject, session)
            ]
            pages += reports_of_others(settings.output_dir, subject, session, but=[page.prefix for page in pages])
            write_report(settings.output_dir, subject, session, pages, status)


def unusable_report(item: Unusable, settings: Settings) -> "RunReport":
    """Return what the page of a session says of it."""
    from shd_bids.report.facts import Problem, RunReport

    return RunReport(item.prefix, {}, asdict(settings), Problem("", "\n".join(item.problems)))


def _write_record(folder: Path, unusable: Sequence[Unusable], settings: Settings, *, call: str, started: str) -> None:
    """Write ``status.json`` and the settings of one subject."""
    end = {"status": FAILED, "exit_code": InputError.exit_code}
    content = {
        **end,
        "run": call,
        "started": started,
        "updated": started,
        "series": {
            item.prefix: end | {"stage": STAGE, "error": "InputError", "message": "; ".join(item.problems)}
            for item in unusable
        },
    }
    write_text(folder / "shd_bids.toml", settings.to_toml())
    write_json(folder / "status.json", content)
