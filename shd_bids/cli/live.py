"""A terminal: messages scroll above one line for each series at work, which is rewritten as it goes on."""

import contextlib
import logging
import pickle
import socket
import threading
from collections.abc import Iterator

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn

from shd_bids.logs import LARGEST_MESSAGE, Shown

__all__ = ["LiveHandler"]

BAR_WIDTH = 24
ROOM = 1000  # bytes of a datagram, beside a message


class LiveHandler(RichHandler):
    """Messages at a terminal, above one line for each series at work, which is rewritten as it goes on.

    Other processes send their records as datagrams: none is torn, and no writer that dies holds a lock.
    """

    def __init__(self, console: Console) -> None:
        super().__init__(console=console, show_path=False, omit_repeated_times=False)
        columns = (
            TextColumn("{task.fields[series]}"),
            TextColumn("{task.description}"),
            BarColumn(BAR_WIDTH),
            TaskProgressColumn(),
            TimeRemainingColumn(),
        )
        self._progress = Progress(*columns, console=console, transient=True)
        self._lines: dict[str, tuple[str, TaskID]] = {}
        self._is_live = False
        self.address: socket.socket | None = None

    @contextlib.contextmanager
    def live(self) -> Iterator[None]:
        """Show the lines of series, and take in what other processes send to ``address``."""
        ours, self.address = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        listener = threading.Thread(target=self._listen, args=(ours,), daemon=True)
        listener.start()
        self._is_live = True
        try:
            with self._progress:
                yield
        finally:
            self.address.send(b"")
            listener.join()
            self._is_live = False
            for end in (ours, self.address):
                end.close()
            self.address = None

    def emit(self, record: logging.LogRecord) -> None:
        """Rewrite the line of a series, or print a message above all of them."""
        shown: Shown | None = getattr(record, "shown", None)
        if shown is not None and self._is_live:
            self._show(shown)
        if shown is None or shown.is_end or (shown.is_line and not self._is_live):
            super().emit(record)

    def _show(self, shown: Shown) -> None:
        """Rewrite the line of a series; a new stage, which has a speed of its own, gets a new one."""
        stage, line = self._lines.pop(shown.series, (None, None))
        if line is not None and (shown.is_end or stage != shown.stage):
            self._progress.remove_task(line)
            line = None
        if shown.is_end:
            return
        if line is None:
            line = self._progress.add_task(shown.stage, series=shown.series, total=None)
        if shown.share is not None:
            self._progress.update(line, total=1.0, completed=shown.share)
        self._lines[shown.series] = (shown.stage, line)

    def _listen(self, ours: socket.socket) -> None:
        """Handle the records of other processes until an empty message."""
        while message := ours.recv(LARGEST_MESSAGE + ROOM):
            record = pickle.loads(message)
            logging.getLogger(record.name).handle(record)
