"""A function called in a process of its own: its result, its errors, its death."""

import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from shd_bids.errors import InputError
from shd_bids.interfaces.isolation import LogSetup, StageKilledError, call_isolated
from tests.helpers import stage_processes, until
from tests.interfaces import stage_functions


@pytest.fixture(autouse=True)
def in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def call(function, value, tmp_path, n_threads=1):
    return call_isolated(function, {"value": value, "out_dir": tmp_path}, n_threads=n_threads)


def test_result_comes_from_another_process_with_its_own_threads(tmp_path):
    result = call(stage_functions.double, 2.5, tmp_path, n_threads=3)
    assert (tmp_path / "double.txt").read_text() == "5.0"
    assert result["facts"]["pid"] != os.getpid()
    assert result["facts"]["threads"] == ["3", 3]
    assert 10 < result["facts"]["peak_memory_mb"] < 1000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["double.txt"]  # nothing of the call is left


def test_own_errors_keep_type_code_and_problems(tmp_path):
    with pytest.raises(InputError) as caught:
        call(stage_functions.refuse, 1.0, tmp_path)
    assert caught.value.problems == ("value: found 1, expected another", "second problem")
    assert caught.value.exit_code == 65
    assert "in refuse" in "".join(caught.value.__notes__)  # where it was raised, for the crash file


def test_other_errors_keep_their_type(tmp_path):
    with pytest.raises(ZeroDivisionError, match="nothing left"):
        call(stage_functions.fail, 1.0, tmp_path)


def test_killed_process_is_an_error_that_names_memory(tmp_path):
    with pytest.raises(StageKilledError, match=r"SIGKILL.*memory"):
        call(stage_functions.die, 1.0, tmp_path)


def test_child_logs_where_the_parent_does(tmp_path):
    logger = logging.getLogger("shd_bids")
    handler = logging.FileHandler(tmp_path / "run.log")
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    level, propagate, handlers = logger.level, logger.propagate, logger.handlers[:]
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO)
    try:
        call(stage_functions.double, 1.0, tmp_path)
        assert (tmp_path / "run.log").read_text() == "INFO doubling 1\n"
        setup = LogSetup.of_this_process()
        assert setup.files == ((str(tmp_path / "run.log"), handler.formatter),)
    finally:
        handler.close()
        logger.handlers[:] = handlers
        logger.setLevel(level)
        logger.propagate = propagate


@pytest.mark.slow
@pytest.mark.parametrize(
    ("is_terminal", "expected"),
    [(True, r"\[\d\d/.*\d\d:\d\d:\d\d\].*INFO .*doubling"), (False, r"^\d\d:\d\d:\d\d doubling 1\s*$")],
)
def test_child_writes_time_and_level_as_the_program_does(tmp_path, is_terminal, expected):
    ours, theirs = os.openpty() if is_terminal else os.pipe()
    subprocess.run(
        [
            sys.executable,
            "-c",
            "import pathlib, tests.interfaces.stage_functions as s\n"
            "from shd_bids.cli.console import start_logging\n"
            "from shd_bids.interfaces.isolation import call_isolated\n"
            "start_logging(0)\n"
            f"call_isolated(s.double, dict(value=1.0, out_dir=pathlib.Path({str(tmp_path)!r})), n_threads=1)",
        ],
        env=os.environ | {"PYTHONPATH": str(Path(stage_functions.__file__).parents[2]), "TERM": "xterm"},
        stderr=theirs,
        check=True,
    )
    told = os.read(ours, 10_000).decode()
    os.close(ours)
    os.close(theirs)
    assert re.search(expected, re.sub(r"\x1b\[[\d;]*m", "", told))
    assert ("\x1b[" in told) == is_terminal  # colour


@pytest.mark.slow
@pytest.mark.parametrize("ready", [True, False])
def test_child_ends_with_its_parent(tmp_path, ready):
    """No orphan goes on computing when the worker that waits for it is killed, not even one that has just been forked."""
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import pathlib, tests.interfaces.stage_functions as s\n"
            "from shd_bids.interfaces.isolation import call_isolated\n"
            f"call_isolated(s.wait, dict(value=60.0, out_dir=pathlib.Path({str(tmp_path)!r})), n_threads=1)",
        ],
        env=os.environ | {"PYTHONPATH": str(Path(stage_functions.__file__).parents[2])},
    )
    try:
        (child,) = until(lambda: stage_processes(parent.pid), seconds=20)
        if ready:
            until(lambda: (tmp_path / "started").exists(), seconds=20)
    finally:
        parent.kill()
        parent.wait()
    until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, seconds=20)
    assert (tmp_path / "started").exists() == ready
