"""A server that stages are forked from: a process that has imported what they need, runs no threads and opens no CUDA.

Whoever holds its socket asks for a process by sending one end of a connection. The server imports while no one asks, so that
the first stage need not wait for what later ones use, and ends with the process that started it.
"""

import atexit
import contextlib
import gc
import importlib
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import shd_bids
from shd_bids.processes import die_with_parent, thread_environment

__all__ = ["ask", "start"]

_MODULES = (
    "shd_bids.gradients.orientation",
    "torch",
    "shd_bids.response.estimate",
    "shd_bids.training.adapt",
    "shd_bids.peaks.fibres",
)
"""In the order in which stages use them. What fails here fails again, and is told, in the stage that needs it."""


def start() -> socket.socket:
    """Start a server and return the socket by which it is asked."""
    ours, theirs = socket.socketpair()
    process = subprocess.Popen(
        [sys.executable, "-m", __name__, str(theirs.fileno()), str(os.getpid())],
        env=os.environ | thread_environment(1) | {"PYTHONPATH": _python_path()},
        stdin=subprocess.DEVNULL,
        pass_fds=[theirs.fileno()],
    )
    theirs.close()
    atexit.register(_end, process, ours)
    return ours


def _end(process: subprocess.Popen, requests: socket.socket) -> None:
    """End a server before this process ends, as the kernel does where this process is killed."""
    requests.close()
    process.kill()
    process.wait()


def ask(server: socket.socket, connection: Connection) -> None:
    """Let a new process answer at the other end of a connection; `OSError` where the server is gone."""
    socket.send_fds(server, [b"?"], [connection.fileno()])


def _python_path() -> str:
    """Return PYTHONPATH with the folder of the package first: the server must run the same code, installed or not."""
    return os.pathsep.join([str(Path(shd_bids.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])


def _serve(requests: socket.socket, answer: Callable[[Connection], None]) -> None:
    """Fork a process for each request until no one can ask any more, and import while no one does."""
    modules, all_there = iter(_MODULES), False
    while True:
        if not all_there and not select.select([requests], [], [], 0)[0]:
            all_there = not _import_next(modules)
            continue
        asked, descriptors, _, _ = socket.recv_fds(requests, 1, 1)
        if not asked:
            return
        _reap()
        if os.fork():
            os.close(descriptors[0])
            continue
        try:
            requests.close()
            answer(Connection(descriptors[0]))
        finally:
            os._exit(0)


def _import_next(modules: Iterator[str]) -> bool:
    """Import one module and return whether any may be left."""
    name = next(modules, None)
    if name is None:
        gc.freeze()  # a collection in a forked process would copy the memory of all that is here
        return False
    with contextlib.suppress(Exception):
        importlib.import_module(name)
    return True


def _reap() -> None:
    """Let processes that have ended go."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _main(descriptor: str, parent: str) -> None:
    """Serve whoever started this process."""
    die_with_parent()
    if os.getppid() != int(parent):  # it ended before the kernel was asked
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    from shd_bids.interfaces.isolation import answer

    _serve(socket.socket(fileno=int(descriptor)), answer)


if __name__ == "__main__":
    _main(*sys.argv[1:])
