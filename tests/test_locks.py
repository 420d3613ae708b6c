"""Locks between processes: one holder at a time, others wait, nothing is left, and a killed holder holds nothing."""

import errno
import fcntl
import subprocess
import sys

import pytest
from filelock import Timeout

from shd_bids.locks import locked, try_lock
from tests.helpers import until

HOLDER = """
import sys, time
from pathlib import Path
from shd_bids.locks import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


@pytest.fixture
def holder(tmp_path):
    """Return a function that starts another process, which holds the lock for some seconds."""
    started = []

    def start(path, seconds):
        process = subprocess.Popen([sys.executable, "-c", HOLDER, str(path), str(seconds)], stdout=subprocess.PIPE)
        started.append(process)
        assert process.stdout.readline() == b"held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def test_the_file_is_there_only_while_it_is_held(tmp_path):
    path = tmp_path / "new" / "x.lock"
    with locked(path):
        assert path.exists() and path.parent.stat().st_mode & 0o777 == 0o700
    assert not path.exists()


def test_another_process_is_waited_for_and_the_wait_is_told_once(tmp_path, holder):
    path, told = tmp_path / "x.lock", []
    process = holder(path, 1.0)
    with locked(path, on_wait=lambda: told.append(process.poll())):
        assert process.wait(5) == 0
    assert told == [None]
    assert not path.exists()


def test_waiting_has_an_end_if_asked(tmp_path, holder):
    holder(tmp_path / "x.lock", 60)
    assert try_lock(tmp_path / "x.lock") is None
    with pytest.raises(Timeout), locked(tmp_path / "x.lock", seconds=0.3):
        pass


def test_a_killed_process_holds_nothing(tmp_path, holder):
    process = holder(tmp_path / "x.lock", 60)
    process.kill()
    process.wait()
    with locked(tmp_path / "x.lock", seconds=5):
        pass


def test_the_existence_of_a_file_is_the_lock_where_there_are_no_others(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    path = tmp_path / "x.lock"
    with locked(path):
        assert try_lock(path) is None
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_removed_while_one_waits_is_made_again(tmp_path, holder):
    path = tmp_path / "work" / "x.lock"
    process = holder(path, 0.5)

    def remove():
        process.wait()
        path.parent.rmdir()

    with locked(path, on_wait=remove):
        until(path.exists, seconds=1)
