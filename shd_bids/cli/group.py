"""The group level: weights adapted to all series of a data set, which ``--fit cohort`` then applies."""

import json
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shd_bids.bids import provenance
from shd_bids.bids.dataset import write_dataset_files
from shd_bids.bids.names import cohort_path, group_log_dir, sidecar_path
from shd_bids.bids.records import FAILED, FINISHED, INTERRUPTED, RUNNING
from shd_bids.cli.console import FailureLog, code_of, ignore_signals, log_file, signals_before_errors
from shd_bids.cli.preflight import require_writable, set_environment
from shd_bids.cli.record import exit_code
from shd_bids.files import atomic_path, write_json, write_text
from shd_bids.settings import Settings

if TYPE_CHECKING:
    from shd_bids.bids.run import DWIRun
    from shd_bids.interfaces.base import Failure

__all__ = ["run_group"]

logger = logging.getLogger("shd_bids")

DESCRIPTION = "Network weights adapted to a cohort by the self-supervised loss; used by --fit cohort"


def run_group(runs: Sequence["DWIRun"], settings: Settings, *, argv: Sequence[str], device: str) -> int:
    """Adapt the weights to all series together, write them and return the exit code.

    Parameters
    ----------
    runs : sequence of DWIRun
        All that were chosen.
    settings : Settings
    argv : sequence of str
        Words of the call, for the record.
    device : str
        Where networks will run, as text.
    """
    target = cohort_path(settings.output_dir)
    inputs = {name: value for run in runs for name, value in provenance.hash_inputs(run, settings).items()}
    digest = provenance.digest(settings, inputs)
    if settings.dry_run:
        plan = {"output": str(target), "device": device, "series": [run.prefix for run in runs]}
        text = "\n".join([f"adapt the weights to {len(runs)} series on {device}:", *plan["series"], f"into {target}"])
        print(json.dumps(plan, indent=2) if settings.dry_run == "json" else text)
        return 0
    if _is_done(settings, target, digest):
        return 0
    from shd_bids.cli.workplace import end_dead_records, hold
    from shd_bids.workflows.group import COHORT

    require_writable(settings, create=True)
    with hold(settings, {run.key: run.prefix for run in runs} | {COHORT: COHORT}):
        end_dead_records(settings.output_dir / "log", {run.prefix for run in runs})
        if _is_done(settings, target, digest):  # by a call that this one waited for
            return 0
        record = {"Command": provenance.command_line(argv), "Started": provenance.now(), "Digest": digest}
        return _recorded(runs, settings, device=device, inputs=inputs, record=record)


def _recorded(
    runs: Sequence["DWIRun"],
    settings: Settings,
    *,
    device: str,
    inputs: Mapping[str, str],
    record: Mapping[str, str],
) -> int:
    """Run the graph, keep its weights, and write the beginning and the end into the record, whatever the end is."""
    from shd_bids.cli.workplace import work_folder
    from shd_bids.workflows.base import run_name
    from shd_bids.workflows.group import cohort_folder

    uuid = provenance.new_run_uuid()
    folder = group_log_dir(settings.output_dir, uuid)
    status: dict[str, Any] = {
        "status": RUNNING,
        "exit_code": None,
        "run": uuid,
        "started": record["Started"],
        "series": {},
    }
    names = [cohort_folder(settings.work_dir).name, *map(run_name, runs)]
    with work_folder(settings.work_dir, uuid, names) as scratch, log_file(folder / "shd_bids.log"):
        try:
            with signals_before_errors():
                set_environment(scratch)
                write_dataset_files(settings.output_dir, runs, environment=os.environ)
                write_text(folder / "shd_bids.toml", settings.to_toml())
                write_json(folder / "status.json", status)
                logger.info("adapting the weights to %d series on %s", len(runs), device)
                failures = _run_graph(runs, settings, call=uuid, crash_dir=scratch)
                if not failures:
                    _keep(runs, settings, cohort_path(settings.output_dir), inputs=inputs, record=record)
                status["series"] = {
                    name: {"status": FAILED, "exit_code": f.exit_code, "error": f.error, "message": f.message}
                    for name, f in failures.items()
                }
                status |= {"status": FAILED if failures else FINISHED, "exit_code": exit_code(status["series"])}
        except BaseException as error:
            ended = FAILED if isinstance(error, Exception) else INTERRUPTED
            status |= {"status": ended, "exit_code": code_of(error), "error": str(error)}
            raise
        finally:
            ignore_signals()
            write_json(folder / "status.json", status | {"updated": provenance.now()})
    return status["exit_code"]


def _is_done(settings: Settings, target: Path, digest: str) -> bool:
    """Whether the weights are there and need not be made again; it says so."""
    try:
        record = json.loads(sidecar_path(target).read_text("utf-8"))
        is_done = record["Digest"] == digest and record["SHA256"] == provenance.sha256(target)
    except (OSError, ValueError, KeyError):
        return False
    if is_done and not settings.overwrite:
        logger.info("%s is of the same inputs, settings and version; nothing to do (--overwrite does it again)", target)
    return is_done and not settings.overwrite


def _run_graph(runs: Sequence["DWIRun"], settings: Settings, *, call: str, crash_dir: Path) -> dict[str, "Failure"]:
    """Run the workflow and return what failed, by the name of the series, or ``cohort``."""
    from shd_bids.interfaces.base import read_failure
    from shd_bids.workflows.base import run_folder
    from shd_bids.workflows.group import COHORT, cohort_folder, init_group_wf
    from shd_bids.workflows.plugins import configure_nipype, read_failures, run_workflow

    folders = [cohort_folder(settings.work_dir), *(run_folder(settings.work_dir, run) for run in runs)]
    if settings.clean_workdir:
        _remove(folders)
    configure_nipype(crash_dir=crash_dir, verbose=settings.verbose, stop_on_first_crash=settings.stop_on_first_crash)
    log = FailureLog()
    run_workflow(
        init_group_wf(runs, settings),
        call=call,
        n_procs=settings.nprocs,
        memory_gb=settings.mem,
        plugin_file=settings.use_plugin,
        on_failure=lambda failure: log.tell(failure.run, failure.message),
    )
    by_key = {run.key: run.prefix for run in runs}
    failures = {by_key[key]: failure for key, failure in read_failures(settings.work_dir, runs, call).items()}
    n_failed = len(failures)
    if failure := read_failure(cohort_folder(settings.work_dir), call):
        failures[COHORT] = failure
    for name, failure in failures.items():
        log.tell(name, failure.message)
    if n_failed:
        logger.error(
            "the weights were not adapted, because %d of %d series failed; correct them, or choose others by "
            "--participant-label",
            n_failed,
            len(runs),
        )
    return failures


def _keep(
    runs: Sequence["DWIRun"],
    settings: Settings,
    target: Path,
    *,
    inputs: Mapping[str, str],
    record: Mapping[str, Any],
) -> None:
    """Move the weights into the data set, with a record of how they were made."""
    from shd_bids.workflows.base import run_folder
    from shd_bids.workflows.group import COHORT, cohort_folder

    folder = cohort_folder(settings.work_dir)
    facts = json.loads((folder / "facts" / f"{COHORT}.json").read_text("utf-8"))
    with atomic_path(target) as scratch:
        shutil.copy(folder / COHORT / "weights.safetensors", scratch)
    errors = dict(zip(facts["series"], facts["held_out_by_scan"], strict=True))
    content = {
        "Description": DESCRIPTION,
        "Sources": [run.source_uri for run in runs],
        "SHA256": provenance.sha256(target),
        "Method": facts["method"],
        "StartWeights": facts["start"],
        "StartWeightsSHA256": facts["start_sha256"] or "n/a",
        "IsBetterThanStart": facts["kept"],
        "Steps": facts["steps"],
        "TotalVariationWeight": facts["tv_weight"],
        "TotalVariationPenalty": facts["tv_penalty"],
        "HeldOutError": {name: {"before": before, "after": after} for name, (before, after) in errors.items()},
        "RandomSeed": settings.random_seed,
        "Inputs": dict(inputs),
        "Software": provenance.software(),
        **record,
    }
    write_json(sidecar_path(target), content)
    before, after = facts["held_out_before"], facts["held_out_after"]
    if not facts["kept"]:
        logger.warning("no step predicted the held-out directions better: the weights are those given")
    elif before is None:
        logger.info("error of held-out directions, relative to b=0: %.3g", after)
    else:
        logger.info("error of held-out directions, relative to b=0: %.3g before, %.3g after", before, after)
    logger.info("weights: %s; apply them by participant --fit cohort", target)
    if not settings.keep_work:
        _remove([folder, *(run_folder(settings.work_dir, run) for run in runs)])


def _remove(folders: Sequence[Path]) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
