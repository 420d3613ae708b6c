"""Locks between calls, on one machine or on several that share a file system."""

import contextlib
import errno
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

__all__ = ["locked", "try_lock"]

_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
"""What file systems answer that know no locks."""

_MODE = 0o664
"""A data set may be written by all of a group."""


@contextlib.contextmanager
def locked(path: Path, *, seconds: float = -1, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold a lock file, which is removed afterwards; its end is that of the process, however that dies.

    Where the file system has no locks, the existence of a second file is the lock.

    Parameters
    ----------
    path : Path
        Lock file; its folder is created, for this user only.
    seconds : float
        How long to wait for another holder; negative for as long as it takes.
    on_wait : callable
        Called once before waiting.

    Raises
    ------
    filelock.Timeout
        Another process holds it for too long.
    """
    lock = try_lock(path)
    if lock is None:
        on_wait()
        lock = _acquired(path, seconds)
    try:
        yield
    finally:
        _release(lock, path)


def try_lock(path: Path) -> BaseFileLock | None:
    """Return the lock, held, or ``None`` where another process holds it."""
    try:
        return _acquired(path, 0)
    except Timeout:
        return None


def _acquired(path: Path, seconds: float) -> BaseFileLock:
    lock: BaseFileLock = FileLock(path, mode=_MODE, fallback_to_soft=False)
    while True:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=seconds, poll_interval=0.2)
        except FileNotFoundError:  # the folder was removed, as the last user of a work folder does
            continue
        except OSError as error:
            if isinstance(lock, SoftFileLock) or error.errno not in _NO_LOCKS:
                raise
            lock = SoftFileLock(f"{path}.soft", mode=_MODE)
        else:
            return lock


def _release(lock: BaseFileLock, path: Path) -> None:
    """Remove the file while it is held: who waits for it then finds it gone and makes another."""
    path.unlink(missing_ok=True)
    lock.release()
