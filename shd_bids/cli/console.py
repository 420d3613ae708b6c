"""What the user sees on standard error, and the signals a batch system sends."""

import contextlib
import errno
import logging
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from shd_bids.errors import OutputError, ShdError

logger = logging.getLogger("shd_bids")

INTERRUPTED = {signal.SIGINT: 130, signal.SIGTERM: 143}
"""Exit code after a signal: 128 plus its number, as shells do."""

INTERNAL_ERROR = 70
"""EX_SOFTWARE of sysexits.h."""

_CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


class TerminatedError(SystemExit):
    """SIGTERM came; as a `SystemExit` it passes through code that catches exceptions."""

    def __init__(self) -> None:
        super().__init__(INTERRUPTED[signal.SIGTERM])


def code_of(error: BaseException) -> int:
    """Return the exit code of what ended a call: a signal, an error of ours or the user's, or a full or closed disk."""
    if isinstance(error, TerminatedError):
        return INTERRUPTED[signal.SIGTERM]
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED[signal.SIGINT]
    if isinstance(error, ShdError):
        return error.exit_code
    if isinstance(error, OSError) and error.errno in _CANNOT_WRITE:
        return OutputError.exit_code
    return INTERNAL_ERROR


def start_logging(verbose: int) -> None:
    """Tell the user on standard error: in colour at a terminal, one plain line per message elsewhere."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.logging import RichHandler

        handler: logging.Handler = RichHandler(console=Console(stderr=True), show_path=False, omit_repeated_times=False)
    else:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(_PlainFormatter("%(asctime)s %(levelname)s%(message)s", datefmt="%H:%M:%S"))
    logger.handlers[:] = [handler]
    logger.propagate = False
    logger.setLevel({-1: logging.WARNING, 0: logging.INFO}.get(max(verbose, -1), logging.DEBUG))


class _PlainFormatter(logging.Formatter):
    """Name the level only where it says something."""

    def format(self, record: logging.LogRecord) -> str:
        plain = logging.makeLogRecord(record.__dict__)
        plain.levelname = "" if record.levelno <= logging.INFO else f"{record.levelname}: "
        return super().format(plain)


@contextlib.contextmanager
def log_file(path: Path) -> Iterator[Path]:
    """Keep what is logged in a file too, until the records have their copies of it."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger.addHandler(handler)
    try:
        yield path
    finally:
        logger.removeHandler(handler)
        handler.close()
        path.unlink(missing_ok=True)
        shutil.rmtree(path.with_suffix(""), ignore_errors=True)
        for folder in (path.parent / "shd_bids_wf", path.parent):
            with contextlib.suppress(OSError):
                folder.rmdir()  # only if empty


@contextlib.contextmanager
def signals_as_exceptions() -> Iterator[None]:
    """Turn SIGTERM into an exception, so that children are stopped and records written."""

    def terminate(number: int, frame: FrameType | None) -> None:
        raise TerminatedError

    previous = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
