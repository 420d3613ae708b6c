"""How messages look on standard error and in files, the same from the program and from the processes of its stages."""

import contextlib
import logging
import pickle
import sys
from dataclasses import dataclass
from logging.handlers import QueueHandler
from typing import Any

__all__ = ["LARGEST_MESSAGE", "Shown", "SocketRelay", "is_line", "stderr_handler"]

LARGEST_MESSAGE = 60_000  # bytes, of a datagram


@dataclass(frozen=True, slots=True)
class Shown:
    """What the live line of a series says; a log record carries it as ``shown``.

    Attributes
    ----------
    series, stage : str
        Whose line, and what is done.
    share : float, optional
        Of the stage, in [0, 1]; unknown at its beginning.
    is_line : bool
        Whether the record is also a line in files, and without a terminal.
    is_end : bool
        Whether the stage is done; at a terminal too that is a line.
    """

    series: str
    stage: str
    share: float | None = None
    is_line: bool = True
    is_end: bool = False


def stderr_handler() -> logging.Handler:
    """Return a handler for standard error: time, level and colour at a terminal, one plain line per message elsewhere."""
    handler: logging.Handler
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.logging import RichHandler

        handler = RichHandler(console=Console(stderr=True), show_path=False, omit_repeated_times=False)
    else:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(_PlainFormatter("%(asctime)s %(levelname)s%(message)s", datefmt="%H:%M:%S"))
    handler.addFilter(is_line)
    return handler


def is_line(record: logging.LogRecord) -> bool:
    """Whether a record is a line where nothing can be rewritten."""
    shown: Shown | None = getattr(record, "shown", None)
    return shown is None or shown.is_line


class SocketRelay(QueueHandler):
    """Send records to the process that shows them; one that is too long, or comes too late, is lost."""

    def __init__(self, address: Any) -> None:
        super().__init__(address)
        self.address = address

    def enqueue(self, record: logging.LogRecord) -> None:
        """Send one record."""
        message = pickle.dumps(record)
        if len(message) <= LARGEST_MESSAGE:
            with contextlib.suppress(OSError):
                self.address.send(message)


class _PlainFormatter(logging.Formatter):
    """Name the level only where it says something."""

    def format(self, record: logging.LogRecord) -> str:
        plain = logging.makeLogRecord(record.__dict__)
        plain.levelname = "" if record.levelno <= logging.INFO else f"{record.levelname}: "
        return super().format(plain)
