"""What must hold before hours of work start: a device, folders that can be written, surroundings for libraries."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from shd_bids.data import shipped_weights
from shd_bids.errors import DeviceError, OutputError
from shd_bids.settings import Settings
from shd_bids.workflows.resources import may_use_gpu

CUDA_QUESTION = """
import sys, torch
n = torch.cuda.device_count() if torch.cuda.is_available() else 0
print(*(torch.cuda.get_device_name(i) for i in range(n)), sep="\\n")
"""


def describe_device(device: str) -> str:
    """Return where networks will run, with the name of a GPU; torch is asked in a process of its own.

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
        return "cpu"
    answer = subprocess.run([sys.executable, "-c", CUDA_QUESTION], capture_output=True, text=True, check=False)
    names = answer.stdout.split("\n")[:-1] if answer.returncode == 0 else []
    names = [name for name in names if name]
    number = int(device.partition(":")[2] or 0)
    if number < len(names):
        return f"cuda:{number} ({names[number]})"
    if device == "auto":
        return "cpu"
    raise DeviceError(
        f"--device {device}: found {len(names) or 'no'} CUDA device{'s' if len(names) > 1 else ''} "
        f"({', '.join(names) or 'no driver, or a torch without CUDA'}); use --device cpu, or give the job a GPU "
        "(docker run --gpus all, apptainer run --nv)"
    )


def require_weights(settings: Settings) -> None:
    """Refuse weights that are damaged or unsound, where the call will use any.

    Raises
    ------
    WeightsError
        With the file and the reason.
    """
    is_fitted = settings.analysis_level == "group" or settings.level != "response"
    if not is_fitted or settings.weights == "none":
        return
    if settings.weights == "packaged":
        shipped_weights()
        return
    from shd_bids.fod.weights import load_weights  # with torch, which other calls need not load here

    load_weights(Path(settings.weights))


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
    for name, folder in (("OUTPUT_DIR", settings.output_dir), ("--work-dir", settings.work_dir)):
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        try:
            if create:
                folder.mkdir(parents=True, exist_ok=True)
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
