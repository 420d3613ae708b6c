"""Finding or compiling the kernel's library."""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from functools import lru_cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

_log = logging.getLogger(__name__)

_SOURCE = Path(__file__).with_name("spectral.cpp")
_FLAGS = ("-std=c++17", "-O3", "-fPIC", "-shared", "-pthread")

_P, _I, _L = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
_SIGNATURES = {
    "shd_forward": (_P, _P, _P, _P, _I, _P),
    "shd_analyse": (_P, _P, _I, _P, _L, _L),
    "shd_combine": (_P, _P, _L, _L, _L, _L, _P, _I, _P),
    "shd_backward": (_P, _P, _P, _P, _P, _P, _P),
    "shd_moments": (_L, _I, _P, _P, _P, _I, _I),
    "shd_rectify": (_L, _I, _P, _P, _P, _P, _I, _I),
    "shd_gradient_sums": (_L, _I, _P, _P, _P, _P, _P, _P, _P, _I, _I),
    "shd_rectify_gradient": (_L, _I, _P, _P, _P, _P, _P, _P, _P, _I, _I),
    "shd_box_sum": (_P, _P, _L, _L, _P, _P, _I, _I, _P, _P, ctypes.c_float, _I, _I),
}


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL | None:
    """Load the kernel, compiling it if need be and possible; None without one."""
    for path in (_SOURCE.with_name("_spectral" + suffix) for suffix in EXTENSION_SUFFIXES):
        if path.exists() and (loaded := _load(path)):
            return loaded
    compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    if compiler is None:
        _log.warning("no compiled kernel and no C++ compiler: convolutions run in plain PyTorch, about 4 times slower")
        return None
    try:
        return _load(_compile(compiler))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:  # RuntimeError: no home folder
        _log.warning("the kernel could not be compiled (%s): convolutions run in plain PyTorch", error)
        return None


def _load(path: Path) -> ctypes.CDLL | None:
    loaded = ctypes.CDLL(str(path))
    loaded.shd_source.restype = ctypes.c_char_p
    if loaded.shd_source().decode() != _digest():
        _log.info("%s was built from another source and is left out; reinstall the package to renew it", path)
        return None
    for name, arguments in _SIGNATURES.items():
        function = getattr(loaded, name)
        function.restype, function.argtypes = None, arguments
    return loaded


def _digest() -> str:
    return hashlib.sha256(_SOURCE.read_bytes()).hexdigest()[:16]


def _compile(compiler: str) -> Path:
    """Compile into the user's cache (or a private temporary folder) under a name that says what from."""
    name = f"spectral-{_digest()}-{platform.machine()}.so"
    for folder in (Path.home() / ".cache" / "shd_bids", Path(tempfile.gettempdir()) / f"shd_bids-{os.getuid()}"):
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Only a folder of this user's own: code is loaded from it.
            if folder.stat().st_uid == os.getuid():
                return _compiled(compiler, folder / name)
        except OSError as error:
            _log.debug("no kernel in %s: %s", folder, error)
    raise OSError("no writable folder for it")


def _compiled(compiler: str, target: Path) -> Path:
    if not target.exists():
        _log.info("compiling the CPU kernel once into %s", target)
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            fresh = Path(scratch) / "spectral.so"
            command = [compiler, *_FLAGS, f'-DSHD_SOURCE="{_digest()}"', str(_SOURCE), "-o", str(fresh)]
            subprocess.run(command, check=True, capture_output=True, timeout=600)
            fresh.replace(target)
    return target
