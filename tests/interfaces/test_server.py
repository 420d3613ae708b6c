"""The server that stages are forked from: what may not be in it, and what becomes of those who ask when it is killed."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from shd_bids.interfaces import server
from shd_bids.interfaces.isolation import StageKilledError, call_isolated
from tests.helpers import stage_processes, until
from tests.interfaces import stage_functions


@pytest.fixture(autouse=True)
def in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def call(tmp_path):
    return call_isolated(stage_functions.double, {"value": 1.0, "out_dir": tmp_path}, n_threads=1)["facts"]


@pytest.mark.slow
def test_what_it_imports_runs_no_threads_and_opens_no_cuda():
    code = (
        "import importlib, os, sys\n"
        f"for name in {server._MODULES}: importlib.import_module(name)\n"
        "print(len(os.listdir('/proc/self/task')), sys.modules['torch'].cuda.is_initialized())"
    )
    environment = os.environ | server.thread_environment(1)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "False"]


def test_what_one_call_leaves_in_memory_no_other_finds(tmp_path):
    assert [call(tmp_path)["calls"] for _ in range(2)] == [1, 1]


@pytest.mark.slow
def test_a_server_that_was_killed_is_replaced(tmp_path):
    call(tmp_path)
    (running,) = servers()
    running.kill()
    running.wait(10)
    call(tmp_path)
    assert [process.pid for process in servers()] != [running.pid]


@pytest.mark.slow
def test_a_stage_whose_server_is_killed_ends_and_is_told(tmp_path):
    call(tmp_path)
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(call_isolated, stage_functions.wait, {"value": 60.0, "out_dir": tmp_path}, n_threads=1)
        (stage,) = until(lambda: stage_processes(os.getpid()), seconds=20)
        servers()[0].kill()
        with pytest.raises(StageKilledError, match="together with the server"):
            waiting.result(20)
    until(lambda: not stage.is_running() or stage.status() == psutil.STATUS_ZOMBIE, seconds=20)


def servers():
    """Return the servers of this process that run."""
    children = (child for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE)
    return [child for child in children if server.__name__ in child.cmdline()]
