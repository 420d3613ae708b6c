"""From the words of a call to its exit code: collect, plan, run, check what was promised, report."""

import json
import logging
import os
import shutil
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from shd_bids import __version__
from shd_bids.cli.console import (
    INTERNAL_ERROR,
    TerminatedError,
    code_of,
    log_file,
    signals_as_exceptions,
    start_logging,
)
from shd_bids.cli.parser import parse_args
from shd_bids.settings import Settings

if TYPE_CHECKING:
    from shd_bids.bids.collect import DWIRun
    from shd_bids.cli.record import Record
    from shd_bids.report.html import RunReport

logger = logging.getLogger("shd_bids")


def run() -> NoReturn:
    """Run the command ``shd_bids``."""
    sys.exit(main(sys.argv[1:]))


def main(argv: Sequence[str]) -> int:
    """Do one call and return its exit code; what went wrong is told in one line per problem.

    Parameters
    ----------
    argv : sequence of str
        Words after the program's name.
    """
    settings = parse_args(argv)
    start_logging(settings.verbose)
    try:
        with signals_as_exceptions():
            return _run(settings, argv)
    except (KeyboardInterrupt, TerminatedError) as stop:
        how = "terminated" if isinstance(stop, TerminatedError) else "interrupted"
        logger.error("%s; the same call goes on where this one stopped", how)
        return code_of(stop)
    except Exception as error:
        code = code_of(error)
        if code == INTERNAL_ERROR:
            logger.error("internal error, please report it: %s: %s (-v shows where)", type(error).__name__, error)
            logger.debug("%s", traceback.format_exc())
        for line in str(error).splitlines() if code != INTERNAL_ERROR else ():
            logger.error("%s", line)
        return code


def _run(settings: Settings, argv: Sequence[str]) -> int:
    # imported here so that --help and --version answer at once
    from shd_bids.bids import provenance
    from shd_bids.bids.collect import collect_runs
    from shd_bids.cli.group import run_group
    from shd_bids.cli.plan import format_plan, make_plan
    from shd_bids.cli.preflight import describe_device, require_weights, require_writable
    from shd_bids.cli.record import Record

    require_writable(settings, create=False)
    device = describe_device(settings.device)
    require_weights(settings)
    runs = collect_runs(settings)
    if settings.analysis_level == "group":
        return run_group(runs, settings, argv=argv, device=device)
    inputs = {run.key: provenance.hash_inputs(run, settings) for run in runs}
    digests = {key: provenance.digest(settings, hashes) for key, hashes in inputs.items()}
    done = {
        run.key: None if settings.overwrite else provenance.find_done(settings.output_dir, run, digests[run.key])
        for run in runs
    }
    is_done = {key: series is not None for key, series in done.items()}
    if settings.dry_run:
        plan = make_plan(runs, settings, device=device, is_done=is_done)
        print(json.dumps(plan, indent=2) if settings.dry_run == "json" else format_plan(plan))
        return 0
    waiting = [run for run in runs if not is_done[run.key]]
    if not waiting:
        _introduce(runs, is_done, device)
        return 0
    require_writable(settings, create=True)
    record = Record(settings=settings, command=provenance.command_line(argv), runs=waiting)
    earlier = [(run, done[run.key]) for run in runs if is_done[run.key]]
    for run in waiting:
        record.series[run.key] = {
            "status": record.status,
            "source": run.source_uri,
            "digest": digests[run.key],
            "inputs": inputs[run.key],
        }
    with log_file(settings.work_dir / f"{record.uuid}.log") as path:
        _introduce(runs, is_done, device)
        return _process(record, path, earlier=earlier)


def _introduce(runs: Sequence["DWIRun"], is_done: Mapping[str, bool], device: str) -> None:
    """Tell what was found, before it takes long."""
    logger.info("shd_bids %s: %d series on %s", __version__, len(runs), device)
    for run in runs:
        shells = ", ".join(f"b={bvalue:.0f}: {count}" for bvalue, count in run.shells)
        logger.info("%s: %s%s", run.prefix, shells, "; done by an earlier call, skipped" if is_done[run.key] else "")
        for note in () if is_done[run.key] else run.notes:
            logger.warning("%s: %s", run.prefix, note)


def _process(record: "Record", path: Path, *, earlier: Sequence[tuple["DWIRun", dict[str, Any]]]) -> int:
    """Process the series that wait; leave records and reports however it ends.

    Parameters
    ----------
    record : Record
        With the series that wait.
    path : Path
        Log file, open.
    earlier : sequence of (DWIRun, dict)
        Series that an earlier call had done, with their records; they share reports with the new ones.
    """
    from shd_bids.bids.dataset import write_dataset_files
    from shd_bids.cli.preflight import set_environment
    from shd_bids.cli.record import FAILED, FINISHED, INTERRUPTED, exit_code

    settings, crash_dir = record.settings, path.with_suffix("")
    set_environment(crash_dir)
    try:
        write_dataset_files(settings.output_dir, record.runs, environment=os.environ)
        record.write_settings()
        record.write_status()
        if not settings.skip_bids_validation:
            _tell_validation(settings.bids_dir, record.subjects)
        _run_graph(record, crash_dir)
        code = exit_code(record.series, n_skipped=len(earlier))
        record.end(FAILED if code else FINISHED, code)
    except (KeyboardInterrupt, TerminatedError) as stop:
        name = "SIGTERM" if isinstance(stop, TerminatedError) else "SIGINT"
        record.end(INTERRUPTED, code_of(stop), f"stopped by {name}")
        raise
    except Exception as error:
        logger.debug("%s", traceback.format_exc())
        record.end(FAILED, code_of(error), f"{type(error).__name__}: {error}")
        raise
    finally:
        _finish(record, path, crash_dir, earlier)
    return record.exit_code


def _tell_validation(bids_dir: Path, subjects: Sequence[str]) -> None:
    from shd_bids.bids.validate import validate_dataset

    for line in validate_dataset(bids_dir, subjects):
        logger.warning("BIDS validator: %s", line)


def _run_graph(record: "Record", crash_dir: Path) -> None:
    """Run the workflow and note what became of each series."""
    from shd_bids.cli.record import read_facts
    from shd_bids.workflows.base import init_shd_wf, run_folder
    from shd_bids.workflows.plugins import configure_nipype, read_failures, run_workflow

    settings, runs = record.settings, record.runs
    if settings.clean_workdir:
        for run in runs:
            shutil.rmtree(run_folder(settings.work_dir, run), ignore_errors=True)
    configure_nipype(crash_dir=crash_dir, verbose=settings.verbose, stop_on_first_crash=settings.stop_on_first_crash)
    workflow = init_shd_wf(runs, settings)
    is_stopped = False
    try:
        run_workflow(workflow, n_procs=settings.nprocs, memory_gb=settings.mem, plugin_file=settings.use_plugin)
    except (KeyboardInterrupt, SystemExit):
        is_stopped = True
        raise
    finally:
        failures = read_failures(settings.work_dir, runs)
        for run in runs:
            record.series[run.key]["stages"] = read_facts(run_folder(settings.work_dir, run))
            failure = failures.get(run.key)
            if failure is None or (is_stopped and failure.error == "StageKilledError"):  # it was us who killed it
                continue
            record.fail(
                run, exit_code=failure.exit_code, error=failure.error, message=failure.message, stage=failure.node
            )
            for line in failure.message.splitlines():
                logger.error("%s: %s", run.prefix, line)
    for run in runs:
        if run.key not in failures:
            record.accept(run)
            if "message" in record.series[run.key]:
                logger.error("%s: %s", run.prefix, record.series[run.key]["message"])


def _finish(record: "Record", path: Path, crash_dir: Path, earlier: Sequence[tuple["DWIRun", dict[str, Any]]]) -> None:
    """Write reports and records and remove what a finished series no longer needs."""
    from shd_bids.cli.record import FAILED, FINISHED
    from shd_bids.workflows.base import run_folder

    if not _write_reports(record, earlier) and record.status == FINISHED:
        record.end(FAILED, 1)
    record.write_status()
    record.write_provenance()
    record.keep_logs(path, crash_dir)
    for run in record.runs:
        if record.series[run.key]["status"] == FINISHED and not record.settings.keep_work:
            shutil.rmtree(run_folder(record.settings.work_dir, run), ignore_errors=True)


def _write_reports(record: "Record", earlier: Sequence[tuple["DWIRun", dict[str, Any]]]) -> bool:
    """Write one page for each session that has new series, and tell whether that worked."""
    from shd_bids.bids.provenance import software
    from shd_bids.cli.record import FINISHED, INTERRUPTED
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
        try:
            page = write_report(record.settings.output_dir, subject, session, pages, status)
            logger.info("report: %s", page)
        except Exception as error:  # results are worth more than their page
            is_written = False
            logger.error("sub-%s: no report (%s: %s)", subject, type(error).__name__, error)
            logger.debug("%s", traceback.format_exc())
    return is_written


def _run_report(run: "DWIRun", series: Mapping[str, Any], settings: Settings) -> "RunReport":
    from shd_bids.report.html import Problem, RunReport

    problem = Problem(stage=series.get("stage", ""), message=series["message"]) if series.get("message") else None
    return RunReport(
        prefix=run.prefix,
        facts=series.get("stages", {}),
        settings=asdict(settings),
        problem=problem,
        warnings=run.notes,
    )
