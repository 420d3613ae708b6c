"""Run one function in a process of its own, so that what dies there dies alone.

A pool worker that is killed for its memory takes the whole pool with it, and a process that once opened CUDA can never be
forked. Each heavy stage gets a process that is forked from a server which has only imported (`shd_bids.interfaces.server`):
its memory is gone when it ends, and its death is an exit status.
"""

import contextlib
import logging
import os
import pickle
import resource
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from logging.handlers import QueueHandler
from multiprocessing import Pipe, parent_process
from multiprocessing.connection import Connection
from typing import Any

from shd_bids.errors import ShdError
from shd_bids.interfaces import server
from shd_bids.logs import SocketRelay, is_line, stderr_handler
from shd_bids.processes import die_with_parent, end_after, peak_memory_mb, thread_environment

__all__ = [
    "SEPARATOR",
    "STAGE_LOG",
    "LogSetup",
    "StageKilledError",
    "answer",
    "call_isolated",
    "join_log",
    "start_server",
    "start_worker",
]

STAGE_LOG = "SHD_BIDS_STAGE_LOG"
"""Environment variable: level and file of the log that a submitting program follows."""

SEPARATOR = "\t"


class StageKilledError(ShdError):
    """The process of a stage was ended from outside, most often for its memory."""


@dataclass(frozen=True)
class LogSetup:
    """Where the package's logger of this process writes, beside standard error, to be set up the same way in another.

    Attributes
    ----------
    level : int
        Of the logger.
    files : tuple of (path, formatter)
        Log files; all processes append whole lines.
    address : socket, optional
        Of the program that shows live lines: it gets all records, and nothing is written here.
    """

    level: int
    files: tuple[tuple[str, logging.Formatter | None], ...]
    address: socket.socket | None = None

    @classmethod
    def of_this_process(cls) -> "LogSetup":
        """Describe the logger as it is."""
        handlers = logging.getLogger("shd_bids").handlers
        for handler in handlers:
            if isinstance(handler, _ToParent):
                return handler.setup
        files = [handler for handler in handlers if isinstance(handler, logging.FileHandler)]
        return cls(
            level=logging.getLogger("shd_bids").getEffectiveLevel(),
            files=tuple((handler.baseFilename, handler.formatter) for handler in files),
            address=next((address for handler in handlers if (address := getattr(handler, "address", None))), None),
        )

    def apply(self) -> None:
        """Set the logger up in this process."""
        self.hand_to([SocketRelay(self.address)] if self.address else self._handlers())

    def _handlers(self) -> list[logging.Handler]:
        handlers = [stderr_handler()]
        for path, formatter in self.files:
            handlers.append(logging.FileHandler(path, encoding="utf-8"))
            handlers[-1].setFormatter(formatter)
            handlers[-1].addFilter(is_line)
        return handlers

    def hand_to(self, handlers: Sequence[logging.Handler]) -> None:
        """Let the logger of this process hand its records to the handlers alone."""
        logger = logging.getLogger("shd_bids")
        logger.handlers[:] = handlers
        logger.propagate = False
        logger.setLevel(self.level)
        logging.raiseExceptions = False  # a line that a full disk does not take is lost, nothing else


class _ToParent(QueueHandler):
    """Hand records to the process that waits for the answer, which knows where they belong."""

    def __init__(self, connection: Any, setup: LogSetup) -> None:
        super().__init__(connection)
        self.connection, self.setup = connection, setup

    def enqueue(self, record: logging.LogRecord) -> None:
        """Send one record; the handler's lock keeps the answer and the records of other threads apart."""
        self.connection.send(record)


def call_isolated(
    function: Callable[..., dict[str, Any]], arguments: dict[str, Any], *, n_threads: int
) -> dict[str, Any]:
    """Call ``function(**arguments)`` in a new process and return its result; it logs where this process does.

    Parameters
    ----------
    function : callable
        Defined at the top level of an importable module; returns a dict with an entry ``"facts"``.
    arguments : dict
        Picklable keyword arguments.
    n_threads : int
        Threads of torch in that process; numpy and scipy have one.

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
    call = _Call(
        function, arguments, n_threads, replace(LogSetup.of_this_process(), address=None), dict(os.environ), os.getcwd()
    )
    ours, theirs = Pipe()
    with ours:
        with theirs:
            _ask(theirs)
        found, status = _exchange(ours, call)
    if found is None:
        raise StageKilledError(_death_notice(status))
    result, error = found
    if error is not None:
        raise error
    return result


@dataclass(frozen=True)
class _Call:
    """What a stage's process does, and where."""

    function: Callable[..., dict[str, Any]]
    arguments: dict[str, Any]
    n_threads: int
    log_setup: LogSetup
    environment: dict[str, str]
    folder: str


_server: socket.socket | None = None


def start_server() -> socket.socket:
    """Return the server of this process's stages, which is started unless there is one; it imports what they need."""
    global _server
    if _server is None:
        _server = server.start()
    return _server


def _ask(connection: Connection) -> None:
    """Let a new process answer at the other end of a connection."""
    global _server
    try:
        server.ask(start_server(), connection)
    except OSError:  # the server is gone
        _server = None
        server.ask(start_server(), connection)


def _exchange(connection: Connection, call: _Call) -> tuple[tuple[dict[str, Any], Exception | None] | None, int | None]:
    """Send a call, log what its process logs, and return its answer, ``None`` where there is none, and its exit status.

    The other end tells first the number of the process and last its status, ``None`` where it is gone before that; after an
    interrupt the process does not live on.
    """
    pid, found = None, None
    try:
        pid = connection.recv()
        connection.send(call)
        while not isinstance(told := connection.recv(), int):
            if isinstance(told, logging.LogRecord):
                logging.getLogger(told.name).handle(told)
            else:
                found = told
        return found, told
    except (EOFError, ConnectionError):  # the server ended, and all that it had forked with it
        return found, None
    except BaseException:
        if pid is not None:
            _kill(pid, connection)
        raise


def _kill(pid: int, connection: Connection) -> None:
    """End the process of a call, and wait until the other end tells its status."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(EOFError, ConnectionError):
        while not isinstance(connection.recv(), int):
            pass


def start_worker(cwd: str, log_setup: LogSetup, nipype_levels: dict[str, str], stages: socket.socket) -> None:
    """Prepare a pool worker: it ends with the program, talks as loudly as it, and asks its server for stages."""
    global _server
    die_with_parent()
    end_after(parent_process().join)
    _server = stages
    os.chdir(cwd)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    from nipype import config, logging

    config.update_config({"logging": nipype_levels})
    logging.update_logging(config)
    log_setup.apply()


def join_log() -> None:
    """Log to the file that the program which submitted this process follows, where nothing else is set up."""
    level, _, path = os.environ.get(STAGE_LOG, "").partition(SEPARATOR)
    logger = logging.getLogger("shd_bids")
    if not path or logger.handlers:
        return
    LogSetup(int(level), ((path, logging.Formatter(f"%(levelno)s{SEPARATOR}%(message)s")),)).apply()


def _death_notice(status: int | None) -> str:
    if status is None:
        return (
            "its process ended together with the server that stages are forked from, as happens when memory runs out; "
            "give the job more memory or lower --nprocs, and start it again: it goes on where it stopped"
        )
    if status >= 0:
        return f"its process ended with status {status} and left no result"
    name = signal.Signals(-status).name
    if name != "SIGKILL":
        return f"its process was ended by {name}"
    return (
        "its process was killed (SIGKILL), as the system does when memory runs out; "
        "give the job more memory, or lower --nprocs so that fewer stages run at once"
    )


def answer(connection: Connection) -> None:
    """Fork the process of a call and tell whoever asked its number, and in the end its exit status.

    Between the two that process is alone with the connection.
    """
    die_with_parent()
    pid = os.fork()
    if not pid:
        status = 1
        try:
            _compute(connection)
            status = 0
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    with contextlib.suppress(OSError):  # no one listens any more
        connection.send(pid)
    _, status = os.waitpid(pid, 0)
    with contextlib.suppress(OSError):
        connection.send(os.waitstatus_to_exitcode(status))


def _compute(connection: Connection) -> None:
    """Do what the other end of a connection asks for and send back what came of it."""
    die_with_parent()
    result, error = None, None
    try:
        call: _Call = connection.recv()
        end_after(lambda: connection.poll(None))  # nothing more is sent: it can only be the end of who asked
        os.chdir(call.folder)
        os.environ.update(call.environment | thread_environment(call.n_threads))
        if "torch" in sys.modules:  # it read the environment when it was imported
            sys.modules["torch"].set_num_threads(call.n_threads)
        call.log_setup.hand_to([_ToParent(connection, call.log_setup)])
        result = call.function(**call.arguments)
        used = resource.getrusage(resource.RUSAGE_SELF)
        result["facts"]["peak_memory_mb"] = peak_memory_mb()
        result["facts"]["cpu_seconds"] = round(used.ru_utime + used.ru_stime, 1)
    except Exception as exception:
        error = _portable(exception)
    connection.send((result, error))


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
