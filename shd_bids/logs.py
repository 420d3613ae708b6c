"""How messages look on standard error, the same from the program and from the processes of its stages."""

import logging
import sys

__all__ = ["stderr_handler"]


def stderr_handler() -> logging.Handler:
    """Return a handler for standard error: time, level and colour at a terminal, one plain line per message elsewhere."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.logging import RichHandler

        return RichHandler(console=Console(stderr=True), show_path=False, omit_repeated_times=False)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_PlainFormatter("%(asctime)s %(levelname)s%(message)s", datefmt="%H:%M:%S"))
    return handler


class _PlainFormatter(logging.Formatter):
    """Name the level only where it says something."""

    def format(self, record: logging.LogRecord) -> str:
        plain = logging.makeLogRecord(record.__dict__)
        plain.levelname = "" if record.levelno <= logging.INFO else f"{record.levelname}: "
        return super().format(plain)
