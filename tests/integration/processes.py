"""Calls of the app as programs of their own, with all the processes they start."""

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import psutil


class Program:
    """A call of ``shd_bids`` in the background; what it starts is known by a mark in its environment."""

    def __init__(
        self, raw: Path, out: Path, *options: str, work: Path | None = None, errors: Path | None = None
    ) -> None:
        self.mark = uuid.uuid4().hex
        words = [str(raw), str(out), "participant", "--skip-bids-validation", "--nprocs", "1", "--mem", "4GB"]
        words += ["--device", "cpu", *options, *(["-w", str(work)] if work else [])]
        self.errors = errors or out.parent / f"{self.mark}.err"
        with self.errors.open("w") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "shd_bids", *words],
                env=os.environ | {"TEST_MARK": self.mark},
                stderr=stderr,
                preexec_fn=_heed_signals,
            )

    def __enter__(self) -> "Program":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.left():
            with contextlib.suppress(psutil.Error):
                process.kill()
        self.process.wait()

    def left(self) -> list[psutil.Process]:
        """Return the processes of the call that run."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):  # gone before it could be asked
                if process.status() != psutil.STATUS_ZOMBIE and process.environ().get("TEST_MARK") == self.mark:
                    found.append(process)
        return found

    def ended(self, seconds: float = 600) -> int:
        """Return the exit code, after waiting."""
        return self.process.wait(seconds)

    def problems(self) -> list[str]:
        """Return what it told as errors, and every sign of an unforeseen one."""
        lines = self.errors.read_text().splitlines()
        return [line for line in lines if "ERROR" in line or "Traceback" in line]


def _heed_signals() -> None:
    """Undo what started the tests: nohup ignores SIGHUP, a shell SIGINT for what it puts in the background."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def results(out: Path) -> dict[str, str]:
    """Return the SHA-256 of every image and response by its name; the other files hold times."""
    paths = [path for pattern in ("*.nii.gz", "*.txt") for path in out.glob(f"sub-*/dwi/{pattern}")]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def strays(out: Path) -> list[str]:
    """Return hidden files and folders in a data set that no call should leave; what stages keep for later calls is meant."""
    return [str(path.relative_to(out)) for path in out.rglob(".*") if path.name not in (".bidsignore", ".stages")]
