"""The pages of the sessions of a call."""

import logging
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from shd_bids.bids.provenance import software
from shd_bids.bids.records import FINISHED, INTERRUPTED
from shd_bids.bids.run import DWIRun
from shd_bids.cli.others import reports_of_others
from shd_bids.cli.record import Record
from shd_bids.cli.unusable import unusable_report
from shd_bids.settings import Settings

if TYPE_CHECKING:
    from shd_bids.report.html import RunReport

logger = logging.getLogger("shd_bids")


def write_reports(record: Record, earlier: Sequence[tuple[DWIRun, dict[str, Any]]]) -> bool:
    """Write one page for each session that has new series, with those of other calls, and tell whether that worked."""
    from shd_bids.report.html import Status, write_report

    sessions = dict.fromkeys((run.subject, run.session) for run in record.runs)
    all_series = [*earlier, *((run, record.series[run.key]) for run in record.runs)]
    status = Status(
        state={FINISHED: "ok", INTERRUPTED: "interrupted"}.get(record.status, "failed"),
        is_sloppy=record.settings.sloppy,
        command=record.command,
        started=record.started,
        versions=software(),
    )
    is_written = True
    for subject, session in sessions:
        series = [(run, item) for run, item in all_series if (run.subject, run.session) == (subject, session)]
        pages = [
            _run_report(run, item, record.settings) for run, item in sorted(series, key=lambda pair: pair[0].prefix)
        ]
        pages += [
            unusable_report(item, record.settings)
            for item in record.unusable
            if (item.subject, item.session) == (subject, session)
        ]
        pages += reports_of_others(record.settings.output_dir, subject, session, but=[page.prefix for page in pages])
        try:
            page = write_report(record.settings.output_dir, subject, session, pages, status)
            logger.info("report: %s", page)
        except Exception as error:  # results are worth more than their page
            is_written = False
            level = logging.ERROR if record.status == FINISHED else logging.WARNING  # else the cause is told
            logger.log(level, "sub-%s: no report (%s: %s)", subject, type(error).__name__, error)
            logger.debug("%s", traceback.format_exc())
    return is_written


def _run_report(run: DWIRun, series: Mapping[str, Any], settings: Settings) -> "RunReport":
    from shd_bids.report.html import Problem, RunReport

    problem = Problem(stage=series.get("stage", ""), message=series["message"]) if series.get("message") else None
    return RunReport(
        prefix=run.prefix,
        facts=series.get("stages", {}),
        settings=asdict(settings),
        problem=problem,
        warnings=run.notes,
    )
