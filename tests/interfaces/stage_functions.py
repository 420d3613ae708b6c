"""Functions that tests call in processes of their own, where only what can be imported exists."""

import errno
import logging
import os
import signal
import time
from pathlib import Path

import torch
from nipype.interfaces.base import File, traits

from shd_bids.errors import InputError
from shd_bids.interfaces.base import StageInputSpec, StageInterface, StageOutputSpec

n_calls = 0


def double(*, value: float, out_dir: Path) -> dict:
    """Return twice the value, and write which process did it and that it was done."""
    global n_calls
    n_calls += 1
    logging.getLogger("shd_bids.test").info("doubling %g", value)
    with (out_dir / "double.txt").open("w") as file:
        file.write(f"{2 * value}")
    return {
        "out_file": str(out_dir / "double.txt"),
        "facts": {
            "pid": os.getpid(),
            "calls": n_calls,
            "threads": [os.environ["OMP_NUM_THREADS"], torch.get_num_threads()],
            "gpu": os.environ.get("CUDA_VISIBLE_DEVICES"),
            "sidecar": {},
            "qc": {},
        },
    }


def refuse(*, value: float, out_dir: Path) -> dict:
    """Raise an error that the user can act on."""
    raise InputError([f"value: found {value:g}, expected another", "second problem"])


def fail(*, value: float, out_dir: Path) -> dict:
    """Raise an error that no one foresaw."""
    raise ZeroDivisionError("nothing left")


def fill(*, value: float, out_dir: Path) -> dict:
    """Raise what a library makes of a full disk."""
    try:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as error:
        raise RuntimeError("cannot save") from error


def die(*, value: float, out_dir: Path) -> dict:
    """End as the kernel ends a process that took too much memory."""
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def wait(*, value: float, out_dir: Path) -> dict:
    """Do nothing for ``value`` seconds, and tell when."""
    (out_dir / "started").touch()
    began = time.time()
    time.sleep(value)
    result = double(value=value, out_dir=out_dir)
    result["facts"] |= {"began": began, "ended": time.time()}
    return result


class _InputSpec(StageInputSpec):
    value = traits.Float(mandatory=True)
    before = File(exists=True)


class _OutputSpec(StageOutputSpec):
    out_file = File(exists=True)


class Stage(StageInterface):
    """A stage around one of the functions above."""

    input_spec = _InputSpec
    output_spec = _OutputSpec
    function = staticmethod(double)
    is_isolated = False  # saves a second each; how a process of its own is used has tests of its own

    def _arguments(self) -> dict:
        return {"value": self.inputs.value}


class Double(Stage):
    """Doubles."""


class Refuse(Stage):
    """Refuses its input."""

    function = staticmethod(refuse)


class Fail(Stage):
    """Breaks."""

    function = staticmethod(fail)


class Fill(Stage):
    """Fills the disk."""

    function = staticmethod(fill)


class Die(Stage):
    """Is killed in its own process."""

    function = staticmethod(die)
    is_isolated = True


class KillWorker(Stage):
    """Is killed together with the worker that runs it."""

    function = staticmethod(die)


class Wait(Stage):
    """Takes its time."""

    function = staticmethod(wait)
    is_isolated = True
