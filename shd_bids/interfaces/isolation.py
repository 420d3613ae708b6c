"""Run one function in a fresh Python process, so that what dies there dies alone.

A pool worker that is killed for its memory takes the whole pool with it, a process that once opened CUDA can never be
forked, and the number of threads of BLAS is fixed at its first import. A fresh interpreter per heavy stage has none of
these problems: its environment is set before anything is imported, its memory is gone when it ends, and its death is an
exit status.
"""

import contextlib
import ctypes
import logging
import os
import pickle
import resource
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import shd_bids
from shd_bids.errors import ShdError

__all__ = ["LogSetup", "StageKilledError", "call_isolated", "die_with_parent", "thread_environment"]

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class StageKilledError(ShdError):
    """The process of a stage was ended from outside, most often for its memory."""


@dataclass(frozen=True)
class LogSetup:
    """Where the package's logger of this process writes, to be set up the same way in another process.

    Attributes
    ----------
    level : int
        Of the logger.
    formatter : logging.Formatter or None
        For standard error.
    files : tuple of (path, formatter)
        Log files; all processes append whole lines.
    """

    level: int
    formatter: logging.Formatter | None
    files: tuple[tuple[str, logging.Formatter | None], ...]

    @classmethod
    def of_this_process(cls) -> "LogSetup":
        """Describe the logger as it is."""
        handlers = logging.getLogger("shd_bids").handlers
        files = [handler for handler in handlers if isinstance(handler, logging.FileHandler)]
        others = [handler.formatter for handler in handlers if handler not in files]
        return cls(
            level=logging.getLogger("shd_bids").getEffectiveLevel(),
            formatter=others[0] if others else None,
            files=tuple((handler.baseFilename, handler.formatter) for handler in files),
        )

    def apply(self) -> None:
        """Set the logger up in this process."""
        logger = logging.getLogger("shd_bids")
        handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
        handlers[0].setFormatter(self.formatter)
        for path, formatter in self.files:
            handlers.append(logging.FileHandler(path, encoding="utf-8"))
            handlers[-1].setFormatter(formatter)
        logger.handlers[:] = handlers
        logger.propagate = False
        logger.setLevel(self.level)


def call_isolated(
    function: Callable[..., dict[str, Any]], arguments: dict[str, Any], *, n_threads: int
) -> dict[str, Any]:
    """Call ``function(**arguments)`` in a new Python process and return its result; it logs where this process does.

    Parameters
    ----------
    function : callable
        Defined at the top level of an importable module; returns a dict with an entry ``"facts"``.
    arguments : dict
        Picklable keyword arguments.
    n_threads : int
        Threads of BLAS, OpenMP and torch in that process.

    Returns
    -------
    dict
        What the function returned, with ``peak_memory_mb`` (largest resident memory of the process) and ``cpu_seconds``
        (processor time of all its threads) added to its facts.

    Raises
    ------
    StageKilledError
        The process ended by a signal or without an answer.
    Exception
        Whatever the function raised.
    """
    with tempfile.TemporaryDirectory(prefix="call_", dir=Path.cwd()) as folder:
        call_file, answer_file = Path(folder) / "call.pkl", Path(folder) / "answer.pkl"
        call_file.write_bytes(pickle.dumps((function, arguments, LogSetup.of_this_process())))
        process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(call_file), str(answer_file), str(os.getpid())],
            env=os.environ | thread_environment(n_threads) | {"PYTHONPATH": _python_path()},
            stdin=subprocess.DEVNULL,
        )
        try:
            status = process.wait()
        finally:  # after an interrupt nothing may live on
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.wait()
        if not answer_file.exists():
            raise StageKilledError(_death_notice(status))
        result, error = pickle.loads(answer_file.read_bytes())
    if error is not None:
        raise error
    return result


def thread_environment(n_threads: int) -> dict[str, str]:
    """Return the environment variables that hold numerical libraries to ``n_threads`` threads."""
    return dict.fromkeys(_THREAD_VARIABLES, str(n_threads))


def die_with_parent() -> None:
    """Ask the kernel to end this process when its parent ends (Linux; elsewhere nothing happens)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _python_path() -> str:
    """Return PYTHONPATH with the folder of the package first: the child must run the same code, installed or not."""
    return os.pathsep.join([str(Path(shd_bids.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])


def _death_notice(status: int) -> str:
    if status >= 0:
        return f"its process ended with status {status} and left no result"
    name = signal.Signals(-status).name
    if name != "SIGKILL":
        return f"its process was ended by {name}"
    return (
        "its process was killed (SIGKILL), as the system does when memory runs out; "
        "give the job more memory, or lower --nprocs so that fewer stages run at once"
    )


def _answer(call_file: str, answer_file: str, parent: str) -> None:
    """Do in the child what the call file says and write what came of it."""
    die_with_parent()
    if os.getppid() != int(parent):  # it ended before the kernel was asked
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    result, error = None, None
    try:
        function, arguments, log_setup = pickle.loads(Path(call_file).read_bytes())
        log_setup.apply()
        result = function(**arguments)
        used = resource.getrusage(resource.RUSAGE_SELF)
        result["facts"]["peak_memory_mb"] = round(used.ru_maxrss / 1024)
        result["facts"]["cpu_seconds"] = round(used.ru_utime + used.ru_stime, 1)
    except Exception as exception:
        error = _portable(exception)
    partial = Path(answer_file).with_suffix(".part")
    partial.write_bytes(pickle.dumps((result, error)))
    partial.replace(answer_file)  # an answer that exists is whole


def _portable(exception: Exception) -> Exception:
    """Return the exception, with its traceback as a note, or one of our own where it does not survive pickling."""
    trace = "".join(traceback.format_exception(exception))
    exception.add_note(trace)
    try:
        copy = pickle.loads(pickle.dumps(exception))
    except Exception:
        copy = None
    if copy is not None and str(copy) == str(exception):
        return exception
    return RuntimeError(f"{type(exception).__name__}: {exception}\n{trace}")


if __name__ == "__main__":
    _answer(*sys.argv[1:])
