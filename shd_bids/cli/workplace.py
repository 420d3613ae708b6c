"""Where a call works: on series that no other call processes meanwhile, without what dead calls left of them."""

import contextlib
import logging
import re
import resource
import shutil
import signal
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from shd_bids.bids.names import figure_path, stage_folder
from shd_bids.bids.records import INTERRUPTED, RUNNING
from shd_bids.bids.run import DWIRun
from shd_bids.cli.preflight import make_private
from shd_bids.cli.record import RESERVE
from shd_bids.errors import InputError
from shd_bids.files import read_json_object, remove_unfinished, write_json
from shd_bids.locks import locked, try_lock
from shd_bids.settings import Settings
from shd_bids.workflows.base import WORKFLOW_NAME

__all__ = ["end_dead_records", "hold", "hold_series", "work_folder"]

logger = logging.getLogger("shd_bids")

KILLED = 128 + signal.SIGKILL
"""Exit code in the record of a call that could not write it."""

CALL_LOCK = ".shd_bids_call.lock"
SPARE_FILES = 256


@contextlib.contextmanager
def hold_series(settings: Settings, runs: Sequence[DWIRun]) -> Iterator[None]:
    """Hold the outputs and work folders of series; wait where another call has them.

    What a call that was killed left unfinished of them is removed, and its record ended.
    """
    with hold(settings, {run.key: run.prefix for run in runs}):
        prefixes = {run.prefix for run in runs}
        for run in runs:
            for folder in (settings.output_dir / run.folder, figure_path(settings.output_dir, run, "x").parent):
                remove_unfinished(folder, rf"{re.escape(run.prefix)}_(space|desc)-")
            remove_unfinished(stage_folder(settings.output_dir, run), "")
        for subject in {run.subject for run in runs}:
            end_dead_records(settings.output_dir / f"sub-{subject}" / "log", prefixes)
        yield


@contextlib.contextmanager
def hold(settings: Settings, names: Mapping[str, str]) -> Iterator[None]:
    """Hold what a call processes, given as the name of its lock -> its name in messages.

    All calls take the outputs before the work folders, and each of them in the order of the names, so that no two wait
    for each other. A work folder inside the output is not shared with another output and needs no lock.
    """
    output_dir, work_dir = settings.output_dir, settings.work_dir
    folders = [output_dir] if work_dir.resolve().is_relative_to(output_dir.resolve()) else [output_dir, work_dir]
    _allow_files(len(folders) * len(names) + SPARE_FILES)
    with contextlib.ExitStack() as stack:
        for path, name in [(folder / f".{key}.lock", names[key]) for folder in folders for key in sorted(names)]:
            stack.enter_context(locked(path, on_wait=partial(_tell_waiting, name, path)))
        yield


def _tell_waiting(name: str, path: Path) -> None:
    logger.warning("%s: another call works on it; this one waits until that ends (it holds %s)", name, path)


def end_dead_records(log_dir: Path, held: set[str]) -> None:
    """End the records that say ``running`` of none but series that this call holds: the processes are gone."""
    for path in log_dir.glob("*/status.json"):
        try:
            status = read_json_object(path)
        except InputError:
            continue
        if status.get("status") == RUNNING and set(status.get("series", ())) <= held:
            write_json(path, _killed(status))
            (path.parent / RESERVE).unlink(missing_ok=True)


def _killed(status: dict[str, Any]) -> dict[str, Any]:
    end = {"status": INTERRUPTED, "exit_code": KILLED, "message": "killed before it could end"}
    series = {name: item | end if item["status"] == RUNNING else item for name, item in status["series"].items()}
    return status | {"status": INTERRUPTED, "exit_code": KILLED, "series": series}


@contextlib.contextmanager
def work_folder(work_dir: Path, name: str, runs: Sequence[str]) -> Iterator[Path]:
    """Make the folders that a call works in and yield one for its odds and ends, which is removed afterwards.

    Those of dead calls are removed before, and those that are empty afterwards.

    Parameters
    ----------
    work_dir : Path
        Work folder.
    name : str
        Name of the call.
    runs : sequence of str
        Names of the sub-workflows.
    """
    _remove_dead(work_dir)
    graph_dir, scratch = work_dir / WORKFLOW_NAME, work_dir / name
    try:
        with locked(scratch / CALL_LOCK):
            _make_folders(work_dir, [graph_dir / run for run in runs])
            yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        for folder in (*(graph_dir / run for run in runs), graph_dir, work_dir):
            with contextlib.suppress(OSError):
                folder.rmdir()  # only if empty


def _remove_dead(work_dir: Path) -> None:
    """Remove the folders of calls that hold them no more."""
    for path in work_dir.glob(f"????????-??????_*/{CALL_LOCK}"):
        if lock := try_lock(path):
            shutil.rmtree(path.parent, ignore_errors=True)
            lock.release()


def _make_folders(work_dir: Path, folders: Sequence[Path]) -> None:
    """Make the folders of the series; another call may remove the one they lie in while it is empty."""
    while True:
        make_private(work_dir / WORKFLOW_NAME)
        try:
            for folder in folders:
                folder.mkdir(exist_ok=True)
        except FileNotFoundError:
            continue
        return


def _allow_files(number: int) -> None:
    """Let this process hold so many open files, as far as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < number:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(number, hard) if hard >= 0 else number, hard))
