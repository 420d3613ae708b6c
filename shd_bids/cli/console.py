"""What the user sees on standard error, and the signals a batch system sends."""

import contextlib
import errno
import logging
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import NoReturn

from shd_bids.errors import OutputError, ShdError
from shd_bids.logs import Shown, is_line, stderr_handler
from shd_bids.processes import end_all

logger = logging.getLogger("shd_bids")

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that end a call in order."""

SECONDS_TO_END = 4.0
"""From the first signal on, for records and report; batch systems and users kill what takes longer."""

STOPPED = 128
"""Exit codes above are those of signals."""

INTERNAL_ERROR = 70
"""EX_SOFTWARE of sysexits.h."""

_CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


class StoppedError(SystemExit):
    """A signal came that ends the call; as a `SystemExit` it passes through code that catches exceptions.

    Attributes
    ----------
    number : signal.Signals
        Which signal.
    """

    def __init__(self, number: int) -> None:
        self.number = signal.Signals(number)
        super().__init__(_code_of_signal(number))


def code_of(error: BaseException) -> int:
    """Return the exit code of what ended a call: a signal, an error of ours or the user's, or a full or closed disk."""
    if isinstance(error, StoppedError):
        return _code_of_signal(error.number)
    if isinstance(error, ShdError):
        return error.exit_code
    if isinstance(error, OSError) and error.errno in _CANNOT_WRITE:
        return OutputError.exit_code
    return INTERNAL_ERROR


def _code_of_signal(number: int) -> int:
    """Return 128 plus the number, as shells do."""
    return STOPPED + number


def start_logging(verbose: int) -> None:
    """Tell the user on standard error: in colour at a terminal, one plain line per message elsewhere."""
    logger.handlers[:] = [_terminal() if sys.stderr.isatty() else stderr_handler()]
    logger.propagate = False
    logging.raiseExceptions = False  # a line that a full disk or a closed pipe does not take is lost, nothing else
    logger.setLevel({-1: logging.WARNING, 0: logging.INFO}.get(max(verbose, -1), logging.DEBUG))


def _terminal() -> logging.Handler:
    """Return a handler with live lines, where the terminal can rewrite any."""
    from rich.console import Console  # what is no terminal needs none of it

    from shd_bids.cli.live import LiveHandler

    console = Console(stderr=True)
    return stderr_handler() if console.is_dumb_terminal else LiveHandler(console)


def live_lines() -> contextlib.AbstractContextManager[None]:
    """Show one live line for each series at a terminal; nothing elsewhere."""
    shows = (handler.live for handler in logger.handlers if hasattr(handler, "live"))
    return next(shows, contextlib.nullcontext)()


class FailureLog:
    """Tell why a series failed, once, whoever knows it first."""

    def __init__(self) -> None:
        self._told: set[tuple[str, str]] = set()

    def tell(self, name: str, message: str) -> None:
        """Log a failure, one line for each of its problems."""
        if (name, message) in self._told:
            return
        self._told.add((name, message))
        for line in message.splitlines():
            logger.error("%s: %s", name, line, extra={"shown": Shown(name, "failed", is_end=True)})


@contextlib.contextmanager
def log_file(path: Path) -> Iterator[None]:
    """Keep what is logged in a file too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    handler.addFilter(is_line)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()


_came: list[int] = []
"""Signals of `STOPPING` that came."""


@contextlib.contextmanager
def signals_as_exceptions() -> Iterator[None]:
    """Turn SIGINT, SIGTERM and SIGHUP into a `StoppedError`, so that children are stopped and records written.

    A signal that is ignored stays so: ``nohup`` ignores SIGHUP, a shell SIGINT for what it puts in the background. Whatever
    is not done a few seconds after the signal is left undone.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        _came.append(number)
        signal.signal(signal.SIGALRM, lambda *_: end_all(_code_of_signal(number)))
        signal.setitimer(signal.ITIMER_REAL, SECONDS_TO_END)
        raise StoppedError(number)

    previous = {number: signal.getsignal(number) for number in (*STOPPING, signal.SIGALRM)}
    for number in STOPPING:
        if previous[number] is not signal.SIG_IGN:
            signal.signal(number, stop)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in previous.items():
            signal.signal(number, handler)
        _came.clear()


@contextlib.contextmanager
def signals_before_errors() -> Iterator[None]:
    """Raise `StoppedError` where a signal came, whatever became of the first one.

    A compiled module whose import a signal stops raises an error of its own, and code that catches everything goes on.
    """
    try:
        yield
    except Exception as error:
        if not _came:
            raise
        raise StoppedError(_came[0]) from error
    if _came:
        raise StoppedError(_came[0])


def ignore_signals() -> None:
    """Let no further signal cut short what remains to be written."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)


def leave(code: int) -> NoReturn:
    """End the program with a code, which is all that batch systems know; after a signal without what libraries still do."""
    ignore_signals()
    if code > STOPPED:
        sys.stdout.flush()
        os._exit(code)
    sys.exit(code)
