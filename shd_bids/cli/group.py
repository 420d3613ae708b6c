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
from shd_bids.cli.console import code_of, log_file
from shd_bids.cli.preflight import require_writable, set_environment
from shd_bids.cli.record import FAILED, FINISHED, INTERRUPTED, RUNNING, exit_code
from shd_bids.files import atomic_path, write_json, write_text
from shd_bids.settings import Settings

if TYPE_CHECKING:
    from shd_bids.bids.collect import DWIRun
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
    if not settings.overwrite and _is_done(target, digest):
        logger.info("%s is of the same inputs, settings and version; nothing to do (--overwrite does it again)", target)
        return 0
    require_writable(settings, create=True)
    uuid, started = provenance.new_run_uuid(), provenance.now()
    folder = group_log_dir(settings.output_dir, uuid)
    status: dict[str, Any] = {"status": RUNNING, "exit_code": None, "run": uuid, "started": started, "series": {}}
    with log_file(settings.work_dir / f"{uuid}.log") as log:
        try:
            set_environment(log.with_suffix(""))
            write_dataset_files(settings.output_dir, runs, environment=os.environ)
            write_text(folder / "shd_bids.toml", settings.to_toml())
            write_json(folder / "status.json", status)
            logger.info("adapting the weights to %d series on %s", len(runs), device)
            failures = _run_graph(runs, settings, crash_dir=log.with_suffix(""))
            if not failures:
                record = {"Command": provenance.command_line(argv), "Started": started, "Digest": digest}
                _keep(runs, settings, target, inputs=inputs, record=record)
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
            write_json(folder / "status.json", status | {"updated": provenance.now()})
            shutil.copy(log, folder / "shd_bids.log")
    return status["exit_code"]


def _is_done(target: Path, digest: str) -> bool:
    try:
        record = json.loads(sidecar_path(target).read_text("utf-8"))
        return record["Digest"] == digest and record["SHA256"] == provenance.sha256(target)
    except (OSError, ValueError, KeyError):
        return False


def _run_graph(runs: Sequence["DWIRun"], settings: Settings, *, crash_dir: Path) -> dict[str, "Failure"]:
    """Run the workflow and return what failed, by the name of the series, or ``cohort``."""
    from shd_bids.interfaces.base import read_failure
    from shd_bids.workflows.base import run_folder
    from shd_bids.workflows.group import COHORT, cohort_folder, init_group_wf
    from shd_bids.workflows.plugins import configure_nipype, read_failures, run_workflow

    folders = [cohort_folder(settings.work_dir), *(run_folder(settings.work_dir, run) for run in runs)]
    if settings.clean_workdir:
        _remove(folders)
    configure_nipype(crash_dir=crash_dir, verbose=settings.verbose, stop_on_first_crash=settings.stop_on_first_crash)
    run_workflow(
        init_group_wf(runs, settings),
        n_procs=settings.nprocs,
        memory_gb=settings.mem,
        plugin_file=settings.use_plugin,
    )
    by_key = {run.key: run.prefix for run in runs}
    failures = {by_key[key]: failure for key, failure in read_failures(settings.work_dir, runs).items()}
    n_failed = len(failures)
    if failure := read_failure(cohort_folder(settings.work_dir)):
        failures[COHORT] = failure
    for name, failure in failures.items():
        for line in failure.message.splitlines():
            logger.error("%s: %s", name, line)
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
        "TotalVariationWeight": facts["lambda_tv"],
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
