"""What a terminal shows, and how a signal ends a call."""

import contextlib
import io
import logging
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from rich.console import Console

from shd_bids.cli import console
from shd_bids.cli.live import LiveHandler
from shd_bids.logs import Shown, SocketRelay, is_line

SLOW_END = """
import os, signal, time
from shd_bids.cli import console
console.SECONDS_TO_END = 0.5
with console.signals_as_exceptions():
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    except console.StoppedError:
        print("records", flush=True)
        time.sleep(60)
"""


def test_what_takes_too_long_after_a_signal_is_left_undone():
    began = time.monotonic()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run(
        [sys.executable, "-c", SLOW_END], env=environment, capture_output=True, text=True, check=False
    )
    assert ended.stdout == "records\n"
    assert ended.returncode == 128 + signal.SIGTERM
    assert time.monotonic() - began < 40


def give_way(error=None):
    """Do as code that loses the exception of a signal: raise another, or go on."""
    with contextlib.suppress(console.StoppedError):
        signal.raise_signal(signal.SIGTERM)
    if error is not None:
        raise error


@pytest.mark.parametrize("error", [ImportError("numpy._core.multiarray failed to import"), None])
def test_a_signal_that_was_lost_ends_the_call_all_the_same(error):
    with console.signals_as_exceptions(), pytest.raises(console.StoppedError) as stop, console.signals_before_errors():
        give_way(error)
    assert (stop.value.number, stop.value.code) == (signal.SIGTERM, 143)
    assert stop.value.__cause__ is error


def test_errors_without_a_signal_pass():
    with console.signals_as_exceptions(), pytest.raises(console.StoppedError), console.signals_before_errors():
        give_way()
    with console.signals_as_exceptions(), pytest.raises(ImportError), console.signals_before_errors():
        raise ImportError("that of an earlier call is over")


@pytest.mark.parametrize("number", console.STOPPING)
def test_every_signal_is_told_by_its_own_code(number):
    previous = signal.getsignal(number)
    signal.signal(number, signal.SIG_DFL)
    try:
        with console.signals_as_exceptions(), pytest.raises(console.StoppedError) as stop:
            signal.raise_signal(number)
        assert signal.getsignal(number) == signal.SIG_DFL
    finally:
        signal.signal(number, previous)
    assert console.code_of(stop.value) == 128 + number


@pytest.fixture
def terminal():
    """A live handler on a screen of text, set as the package's only handler."""
    screen = io.StringIO()
    handler = LiveHandler(Console(file=screen, force_terminal=True, width=100, legacy_windows=False))
    logger = logging.getLogger("shd_bids")
    before = (list(logger.handlers), logger.propagate, logger.level)
    logger.handlers[:], logger.propagate = [handler], False
    logger.setLevel(logging.INFO)
    yield handler, screen
    logger.handlers[:], logger.propagate = before[:2]
    logger.setLevel(before[2])


def plain(screen):
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())


def show(text, *words, **more):
    logging.getLogger("shd_bids").info(text, extra={"shown": Shown(*words, **more)})


def lines(handler):
    return {task.fields["series"]: (task.description, task.completed) for task in handler._progress.tasks}


def test_each_series_at_work_has_one_line(terminal):
    handler, screen = terminal
    with handler.live():
        show("a: fod", "sub-01", "fod")
        show("b: fod", "sub-02", "fod")
        show("a: half", "sub-01", "fod", 0.5)
        assert lines(handler) == {"sub-01": ("fod", 0.5), "sub-02": ("fod", 0)}
        show("a: peaks", "sub-01", "peaks", 0.1)
        assert lines(handler)["sub-01"] == ("peaks", 0.1)
        show("a: peaks done", "sub-01", "peaks", 1.0, is_end=True)
        assert list(lines(handler)) == ["sub-02"]
        logging.getLogger("shd_bids").warning("a doubt")
    told = plain(screen)
    assert "a: peaks done" in told and "a doubt" in told and "WARNING" in told
    assert "a: half" not in told  # its line says it
    show("a: response", "sub-01", "response")
    assert "a: response" in plain(screen)  # where no line is live


def test_records_of_other_processes_are_shown_and_kept(terminal):
    handler, screen = terminal
    kept = []
    file = logging.Handler()
    file.emit = kept.append
    file.addFilter(is_line)
    logging.getLogger("shd_bids").addHandler(file)
    with handler.live():
        relay = SocketRelay(handler.address)
        for share, due in ((0.1, True), (0.2, False)):
            record = logging.makeLogRecord({"name": "shd_bids.x", "levelno": 20, "msg": "at %g", "args": (share,)})
            record.shown = Shown("sub-01", "fod", share, is_line=due)
            relay.handle(record)
        relay.handle(logging.makeLogRecord({"name": "shd_bids.x", "levelno": 30, "msg": "x" * 200_000}))  # is lost
        relay.handle(logging.makeLogRecord({"name": "shd_bids.x", "levelno": 30, "msg": "doubt"}))
    assert [record.getMessage() for record in kept] == ["at 0.1", "doubt"]
    assert "doubt" in plain(screen) and "at 0.2" not in plain(screen)
