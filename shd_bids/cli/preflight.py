"""What must hold before hours of work start: a device, folders that can be written, surroundings for libraries."""

import contextlib
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from shd_bids.bids.names import expected_outputs, promised
from shd_bids.bids.run import DWIRun
from shd_bids.data import shipped_weights
from shd_bids.errors import DeviceError, InputError, OutputError
from shd_bids.processes import die_with_parent
from shd_bids.settings import Settings
from shd_bids.tractography.native import tracking_library
from shd_bids.workflows.resources import may_use_gpu

LONGEST_NAME = 221
"""Bytes; file systems hold 255, and a file that is being written has 34 more."""

CUDA_QUESTION = """
import sys, torch
n = torch.cuda.device_count() if torch.cuda.is_available() else 0
print(*(torch.cuda.get_device_name(i) for i in range(n)), sep="\\n")
"""

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def find_devices(device: str) -> tuple[str, ...]:
    """Return where networks will run, with the names of GPUs: all that are there unless one is named.

    Torch is asked in a process of its own.

    Parameters
    ----------
    device : str
        ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Raises
    ------
    DeviceError
        A CUDA device was asked for and is absent.
    """
    if not may_use_gpu(device):
        return ("cpu",)
    command = [sys.executable, "-c", CUDA_QUESTION]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=die_with_parent)
    names = answer.stdout.split("\n")[:-1] if answer.returncode == 0 else []
    names = [name for name in names if name]
    found = [f"cuda:{number} ({name})" for number, name in enumerate(names)]
    wanted = device.partition(":")[2]
    chosen = found[int(wanted) : int(wanted) + 1] if wanted else found
    if chosen:
        return tuple(chosen)
    if device == "auto":
        return ("cpu",)
    raise DeviceError(
        f"--device {device}: found {len(names) or 'no'} CUDA device{'s' if len(names) > 1 else ''} "
        f"({', '.join(names) or 'no driver, or a torch without CUDA'}); use --device cpu, or give the job a GPU "
        "(docker run --gpus all, apptainer run --nv)"
    )


def require_arithmetic(settings: Settings, devices: Sequence[str]) -> None:
    """Refuse bfloat16 where the network will run on a processor without it.

    Raises
    ------
    DeviceError
        With what is missing and what to do.
    """
    if settings.precision == "bf16" and devices == ("cpu",):
        from shd_bids.nn.device import choose_compute  # with torch, which other calls need not load here

        choose_compute("cpu", settings.precision)


def require_weights(settings: Settings) -> None:
    """Refuse weights that are damaged or unsound, where the call will use any.

    Raises
    ------
    WeightsError
        With the file and the reason.
    """
    is_fitted = settings.fit == "cohort" if settings.analysis_level == "group" else settings.level != "response"
    if not is_fitted or settings.weights == "none":
        return
    if settings.weights == "packaged":
        shipped_weights()
        return
    from shd_bids.fod.weights import load_weights  # with torch, which other calls need not load here

    load_weights(Path(settings.weights))


def require_tracker(settings: Settings) -> None:
    """Refuse a call that would come to streamlines without the compiled tracker; it is compiled here where it must be.

    Raises
    ------
    DeviceError
        If it can neither be loaded nor compiled.
    """
    if settings.analysis_level == "participant" and settings.level == "full":
        tracking_library()


def require_names(runs: Sequence[DWIRun], settings: Settings) -> None:
    """Refuse series whose outputs could not be written under their names.

    Raises
    ------
    InputError
        With every series whose name is too long.
    """
    problems = []
    for run in runs:
        outputs = expected_outputs(settings.output_dir, run, **{**promised(settings), "level": "full"})
        longest = max(len(os.fsencode(path.name)) for path in outputs)
        if longest > LONGEST_NAME:
            problems.append(
                f"{run.dwi.name}: its outputs would have names of {longest} bytes, expected at most {LONGEST_NAME}; "
                "shorten the labels in its name"
            )
    if problems:
        raise InputError(problems)


def require_writable(settings: Settings, *, create: bool) -> None:
    """Refuse folders that cannot be written, or that would change the input.

    Raises
    ------
    OutputError
        With the folder and the reason.
    """
    bids_dir, output_dir = settings.bids_dir.resolve(), settings.output_dir.resolve()
    if output_dir.is_relative_to(bids_dir) and not output_dir.is_relative_to(bids_dir / "derivatives"):
        raise OutputError(
            f"OUTPUT_DIR {settings.output_dir} lies inside BIDS_DIR, which is never written to; choose "
            f"{settings.bids_dir / 'derivatives' / 'shd_bids'} or a folder outside"
        )
    require_private(settings.work_dir)
    for name, folder in (("OUTPUT_DIR", settings.output_dir), ("--work-dir", settings.work_dir)):
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        try:
            if create:
                folder.mkdir(mode=0o777 if folder == settings.output_dir else 0o700, parents=True, exist_ok=True)
                existing = folder
            if not existing.is_dir():
                raise NotADirectoryError(20, "not a folder")
            if create or os.access(existing, os.W_OK):
                with tempfile.TemporaryFile(dir=existing):
                    continue
            raise PermissionError(13, "permission denied")
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise OutputError(f"{name} {folder} cannot be written ({reason}); choose another folder") from None


def require_private(folder: Path) -> None:
    """Refuse a work folder in which another user could place files: Nipype keeps Python objects there, which are code.

    A mount point is the affair of who mounted it, as in containers, where neither its owner nor its mode need be those
    of the user inside. Root is trusted, and so is a folder like ``/tmp``, whose files only their owners can replace.

    Raises
    ------
    OutputError
        With the folder and what is wrong with it.
    """
    if not folder.exists() or os.path.ismount(folder):
        return
    found = folder.stat()
    if found.st_uid not in (os.geteuid(), 0):
        problem = f"belongs to another user (uid {found.st_uid})"
    elif found.st_mode & _OTHERS_WRITE and not found.st_mode & stat.S_ISVTX and _keeps_modes(folder):
        problem = f"can be written by others (mode {stat.S_IMODE(found.st_mode):03o})"
    else:
        return
    raise OutputError(
        f"work folder {folder} {problem}, who could place code in it; remove it, or choose one of your own by --work-dir"
    )


def make_private(folder: Path) -> None:
    """Create a work folder that is open to this user only; an existing one must be as `require_private` asks."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    require_private(folder)


def _keeps_modes(folder: Path) -> bool:
    """Whether the file system of a folder knows modes: some show 777 whatever is asked for."""
    mode = stat.S_IMODE(folder.stat().st_mode)
    try:
        folder.chmod(mode & ~_OTHERS_WRITE)
        return stat.S_IMODE(folder.stat().st_mode) != mode
    except OSError:
        return True
    finally:
        with contextlib.suppress(OSError):
            folder.chmod(mode)


def set_environment(scratch: Path) -> None:
    """Make libraries quiet and give their caches a place that can be written, whoever the user is."""
    os.environ["NO_ET"] = os.environ["NIPYPE_NO_ET"] = "1"
    os.environ.setdefault("MPLBACKEND", "agg")
    os.environ.setdefault("LOGNAME", "shd_bids")  # a user without a name has no getpass.getuser()
    home = os.environ.get("HOME", "")
    if not (home and os.access(home, os.W_OK)):
        cache = scratch / "cache"
        cache.mkdir(parents=True, exist_ok=True)
        os.environ["HOME"] = str(cache)
        for name in (
            "XDG_CACHE_HOME",
            "MPLCONFIGDIR",
            "NUMBA_CACHE_DIR",
            "TRITON_CACHE_DIR",
            "TORCHINDUCTOR_CACHE_DIR",
        ):
            os.environ.setdefault(name, str(cache / name.lower()))
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        os.environ["TMPDIR"] = "/dev/shm" if os.access("/dev/shm", os.W_OK) else str(scratch)
