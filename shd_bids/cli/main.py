"""From the words of a call to its exit code: collect, plan, run, check what was promised, report."""

import json
import logging
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Container, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from shd_bids import __version__
from shd_bids.cli.console import (
    INTERNAL_ERROR,
    FailureLog,
    StoppedError,
    code_of,
    ignore_signals,
    leave,
    live_lines,
    log_file,
    signals_as_exceptions,
    signals_before_errors,
    start_logging,
)
from shd_bids.cli.parser import parse_args
from shd_bids.settings import Settings

if TYPE_CHECKING:
    from shd_bids.bids.run import DWIRun, Unusable
    from shd_bids.bids.stages import StagePlan
    from shd_bids.cli.record import Record

logger = logging.getLogger("shd_bids")

MOST_OUTDATED = 5
"""Files that a warning names."""


def run() -> NoReturn:
    """Run the command ``shd_bids``."""
    leave(main(sys.argv[1:]))


def main(argv: Sequence[str]) -> int:
    """Do one call and return its exit code; what went wrong is told in one line per problem.

    Parameters
    ----------
    argv : sequence of str
        Words after the program's name.
    """
    settings = parse_args(argv)
    start_logging(settings.verbose)
    with signals_as_exceptions():
        return _told(settings, argv)


def _told(settings: Settings, argv: Sequence[str]) -> int:
    """Do the call, and tell why it ended early."""
    try:
        with signals_before_errors():
            return _run(settings, argv)
    except StoppedError as stop:
        ignore_signals()
        how = "interrupted" if stop.number == signal.SIGINT else "terminated"
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
    from shd_bids.bids.collect import collect_study
    from shd_bids.bids.response_sets import with_responses
    from shd_bids.cli.group import run_group
    from shd_bids.cli.plan import format_plan, make_plan
    from shd_bids.cli.preflight import (
        find_devices,
        require_arithmetic,
        require_names,
        require_tracker,
        require_weights,
        require_writable,
    )
    from shd_bids.cli.study import run_study
    from shd_bids.cli.unusable import note_unusable, tell_unusable
    from shd_bids.cli.workplace import hold_series

    require_writable(settings, create=False)
    devices = find_devices(settings.device)
    device = ", ".join(devices)
    require_arithmetic(settings, devices)
    require_weights(settings)
    require_tracker(settings)
    found, unusable = collect_study(settings)
    runs = with_responses(found, settings)
    require_names(runs, settings)
    if settings.analysis_level == "group" and settings.fit != "cohort":
        return run_study(runs, settings, argv=argv, unusable=unusable)
    tell_unusable(unusable, needs_all=settings.analysis_level == "group")
    if settings.analysis_level == "group":
        return run_group(runs, settings, argv=argv, device=device)
    inputs = {run.key: provenance.hash_inputs(run, settings) for run in runs}
    plans, done = _find_done(runs, settings, inputs)
    if settings.dry_run:
        plan = make_plan(runs, settings, device=device, plans=plans, done=done)
        print(json.dumps(plan, indent=2) if settings.dry_run == "json" else format_plan(plan))
        return _expected_code(runs, unusable)
    if unusable:
        require_writable(settings, create=True)
        note_unusable(unusable, runs, settings, command=provenance.command_line(argv))
    if len(done) == len(runs):
        return _nothing_left(runs, done, device) or int(bool(unusable))
    require_writable(settings, create=True)
    with hold_series(settings, [run for run in runs if run.key not in done]):
        plans, done = _find_done(runs, settings, inputs)  # also by a call that this one waited for
        code = _process(
            runs, settings, argv=argv, inputs=inputs, plans=plans, done=done, devices=devices, unusable=unusable
        )
    return code or int(bool(unusable))


def _expected_code(runs: Sequence["DWIRun"], unusable: Sequence["Unusable"]) -> int:
    """Return the exit code that bad input will give a call."""
    from shd_bids.bids.doubts import WILL_FAIL
    from shd_bids.errors import InputError

    failing = [run for run in runs if any(note.startswith(WILL_FAIL) for note in run.notes)]
    return InputError.exit_code if len(failing) == len(runs) else int(bool(failing or unusable))


def _find_done(
    runs: Sequence["DWIRun"], settings: Settings, inputs: Mapping[str, Mapping[str, str]]
) -> tuple[dict[str, "StagePlan"], dict[str, dict[str, Any]]]:
    """Return by the key of a series which stages are computed, and the records of those that earlier calls finished."""
    from shd_bids.bids import provenance
    from shd_bids.bids.stages import plan_stages

    plans = {run.key: plan_stages(run, settings, inputs[run.key]) for run in runs}
    if settings.overwrite:
        return plans, {}
    found = {
        run.key: provenance.find_done(settings.output_dir, run, plans[run.key].digests)
        for run in runs
        if not plans[run.key].is_replaced
    }
    return plans, {key: series for key, series in found.items() if series is not None}


def _process(
    runs: Sequence["DWIRun"],
    settings: Settings,
    *,
    argv: Sequence[str],
    inputs: Mapping[str, Mapping[str, str]],
    plans: Mapping[str, "StagePlan"],
    done: Mapping[str, dict[str, Any]],
    devices: Sequence[str],
    unusable: Sequence["Unusable"],
) -> int:
    """Process the series that are not done; leave records and reports however it ends.

    Parameters
    ----------
    runs : sequence of DWIRun
        All that were chosen.
    settings : Settings
    argv : sequence of str
        Words of the call, for the record.
    inputs : mapping
        Hashes of the inputs of each series, by its key.
    plans : mapping
        Which of its stages are computed.
    done : mapping
        Records of the series that earlier calls finished; they share reports with the new ones.
    devices : sequence of str
        Where networks will run.
    unusable : sequence of Unusable
        They share reports too.
    """
    from shd_bids.bids import provenance
    from shd_bids.cli.record import Record
    from shd_bids.cli.workplace import work_folder
    from shd_bids.workflows.base import run_name

    waiting = [run for run in runs if run.key not in done]
    if not waiting:
        return _nothing_left(runs, done, ", ".join(devices))
    record = Record(
        settings=settings,
        command=provenance.command_line(argv),
        runs=waiting,
        devices=devices,
        unusable=unusable,
    )
    for run in waiting:
        record.begin(run, plans[run.key], inputs[run.key])
    earlier = [(run, done[run.key]) for run in runs if run.key in done]
    with (
        work_folder(settings.work_dir, record.uuid, [run_name(run) for run in waiting]) as scratch,
        log_file(record.log),
    ):
        _introduce(runs, done, ", ".join(devices), plans)
        return _recorded(record, scratch, plans=plans, earlier=earlier)


def _nothing_left(runs: Sequence["DWIRun"], done: Container[str], device: str) -> int:
    """Tell that earlier calls did everything; return the exit code."""
    _introduce(runs, done, device)
    logger.info("%d of %d series done, all by earlier calls (--overwrite does them again)", len(runs), len(runs))
    return 0


def _introduce(
    runs: Sequence["DWIRun"], done: Container[str], device: str, plans: Mapping[str, "StagePlan"] | None = None
) -> None:
    """Tell what was found, before it takes long."""
    logger.info("shd_bids %s: %d series on %s", __version__, len(runs), device)
    for run in runs:
        shells = ", ".join(f"b={bvalue:.0f}: {count}" for bvalue, count in run.shells)
        kept = ", ".join(plans[run.key].kept) if plans else ""
        state = "; done by an earlier call, skipped" if run.key in done else f"; used again: {kept}" if kept else ""
        logger.info("%s: %s%s", run.prefix, shells, state)
        for note in () if run.key in done else run.notes:
            logger.warning("%s: %s", run.prefix, note)


def _recorded(
    record: "Record",
    scratch: Path,
    *,
    plans: Mapping[str, "StagePlan"],
    earlier: Sequence[tuple["DWIRun", dict[str, Any]]],
) -> int:
    """Run the graph; write the beginning and the end into the records, whatever the end is."""
    from shd_bids.bids.dataset import write_dataset_files
    from shd_bids.bids.records import FAILED, FINISHED, INTERRUPTED
    from shd_bids.cli.preflight import set_environment
    from shd_bids.cli.record import exit_code

    import_module("shd_bids.report.html")  # after a signal there is no time for that
    settings = record.settings
    set_environment(scratch)
    try:
        with signals_before_errors():
            write_dataset_files(settings.output_dir, record.runs, environment=os.environ)
            record.write_beginning()
            if not settings.skip_bids_validation:
                _tell_validation(settings.bids_dir, record.subjects)
            _run_graph(record, scratch, plans)
            code = exit_code(record.series, n_skipped=len(earlier))
            record.end(FAILED if code else FINISHED, code)
    except StoppedError as stop:
        record.end(INTERRUPTED, code_of(stop), f"stopped by {stop.number.name}")
        raise
    except Exception as error:
        logger.debug("%s", traceback.format_exc())
        record.end(FAILED, code_of(error), f"{type(error).__name__}: {error}")
        raise
    finally:
        ignore_signals()
        unwritten = _finish(record, scratch, earlier)
        logger.info("%s", record.summary(n_skipped=len(earlier)))
    if unwritten is not None:
        raise unwritten
    return record.exit_code


def _tell_validation(bids_dir: Path, subjects: Sequence[str]) -> None:
    from shd_bids.bids.validate import validate_dataset

    for line in validate_dataset(bids_dir, subjects):
        logger.warning("BIDS validator: %s", line)


def _run_graph(record: "Record", scratch: Path, plans: Mapping[str, "StagePlan"]) -> None:
    """Run the workflow and note what became of each series."""
    from shd_bids.interfaces.isolation import start_server

    start_server()  # it loads what stages need while this process loads Nipype
    from shd_bids.cli.record import read_facts, take_facts
    from shd_bids.workflows.base import init_shd_wf, run_folder
    from shd_bids.workflows.plugins import configure_nipype, read_failures, run_workflow

    settings, runs = record.settings, record.runs
    if settings.clean_workdir:
        for run in runs:
            shutil.rmtree(run_folder(settings.work_dir, run), ignore_errors=True)
    configure_nipype(crash_dir=scratch, verbose=settings.verbose, stop_on_first_crash=settings.stop_on_first_crash)
    workflow = init_shd_wf(runs, settings, plans)
    for run in runs:
        take_facts(run_folder(settings.work_dir, run), plans[run.key])
    log = FailureLog()
    is_stopped = False
    try:
        with live_lines(), signals_before_errors():
            run_workflow(
                workflow,
                call=record.uuid,
                n_procs=settings.nprocs,
                memory_gb=settings.mem,
                plugin_file=settings.use_plugin,
                on_failure=lambda failure: log.tell(failure.run, failure.message),
                n_gpus=len(record.devices),
            )
    except StoppedError:
        is_stopped = True
        raise
    finally:
        failures = read_failures(settings.work_dir, runs, record.uuid)
        for run in runs:
            record.series[run.key]["stages"] = read_facts(run_folder(settings.work_dir, run))
            failure = failures.get(run.key)
            if failure is None or (is_stopped and failure.error == "StageKilledError"):  # it was us who killed it
                continue
            record.fail(
                run, exit_code=failure.exit_code, error=failure.error, message=failure.message, stage=failure.node
            )
            log.tell(run.prefix, failure.message)
    for run in runs:
        if run.key not in failures:
            record.accept(run)
            if "message" in record.series[run.key]:
                logger.error("%s: %s", run.prefix, record.series[run.key]["message"])
            if outdated := record.series[run.key].get("outdated"):
                logger.warning("%s: %s", run.prefix, _tell_outdated(outdated))


def _tell_outdated(paths: Sequence[str]) -> str:
    """Return what the user should know of files that no longer belong to the others."""
    names = [Path(path).name for path in paths if not path.endswith(".json")]
    more = f" and {len(names) - MOST_OUTDATED} more" if len(names) > MOST_OUTDATED else ""
    return (
        f"{len(names)} files of earlier calls, which had other settings or inputs, lie beside the new ones: "
        f"{', '.join(names[:MOST_OUTDATED])}{more}; make them again with the options of those calls, or delete them with their "
        "sidecars"
    )


def _finish(record: "Record", scratch: Path, earlier: Sequence[tuple["DWIRun", dict[str, Any]]]) -> OSError | None:
    """Write records and reports, remove what a finished series no longer needs, and return why a record is not written."""
    from shd_bids.bids.records import FAILED, FINISHED
    from shd_bids.cli import pages
    from shd_bids.workflows.base import run_folder

    record.write_end(scratch)  # a report takes longer than a batch system may wait
    if not pages.write_reports(record, earlier) and record.status == FINISHED:
        record.end(FAILED, 1)
    unwritten = record.write_end(scratch)
    for run in record.runs:
        if record.series[run.key]["status"] == FINISHED and not record.settings.keep_work:
            shutil.rmtree(run_folder(record.settings.work_dir, run), ignore_errors=True)
    return unwritten
