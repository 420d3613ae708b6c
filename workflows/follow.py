"""Lines of stages that run elsewhere, as jobs of a cluster do, on the console of the program that submitted them."""

import contextlib
import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from shd_bids.interfaces.isolation import SEPARATOR, STAGE_LOG

__all__ = ["followed"]

SECONDS = 1.0
"""Between two looks at the file; file systems of clusters take their time anyway."""

logger = logging.getLogger("shd_bids")


@contextlib.contextmanager
def followed(path: Path) -> Iterator[None]:
    """Log what stages in processes that are not ours write into a file, and its last lines when the block ends.

    Parameters
    ----------
    path : Path
        In a folder that all machines share.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    os.environ[STAGE_LOG] = f"{logger.getEffectiveLevel()}{SEPARATOR}{path}"
    ended = threading.Event()
    with path.open(encoding="utf-8") as file:
        thread = threading.Thread(target=_follow, args=(file, ended), daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            del os.environ[STAGE_LOG]


def _follow(file: IO[str], ended: threading.Event) -> None:
    unfinished = ""
    while True:
        is_last = ended.wait(SECONDS)
        *lines, unfinished = (unfinished + file.read()).split("\n")
        for line in lines:
            level, _, message = line.partition(SEPARATOR)
            if level.isdecimal():
                logger.log(int(level), "%s", message)
        if is_last:
            return
