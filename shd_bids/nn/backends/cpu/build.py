"""Finding or compiling the kernel's library.

Only the standard library is imported, so that ``setup.py`` can ask for :func:`sources` and :func:`digest` before the
package is installed.
"""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import struct
import subprocess
import tempfile
from functools import lru_cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

_log = logging.getLogger(__name__)

_FOLDER = Path(__file__).parent
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


def sources(*endings: str) -> list[Path]:
    """Return the source files with these endings, such as ``.cpp``, in the order of their names."""
    return sorted(path for path in (_FOLDER / "spectral").iterdir() if path.suffix in endings)


def digest() -> str:
    """Return what names the source: 16 hexadecimal digits over the names and contents of all its files."""
    total = hashlib.sha256()
    for path in sources(".cpp", ".h"):
        total.update(f"{path.name}\n".encode() + path.read_bytes())
    return total.hexdigest()[:16]


class _OtherSourceError(OSError):
    """A library that was built from another source than the one beside it."""


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL | None:
    """Load the kernel that came with the package, else compile it; None, with one warning, where neither can be done."""
    problems = []
    for path in (_FOLDER / f"_spectral{suffix}" for suffix in EXTENSION_SUFFIXES):
        try:
            if path.exists():
                return _load(path)
        except _OtherSourceError as error:
            _log.info("%s; reinstall the package to renew it", error)
        except OSError as error:
            problems.append(str(error))
    try:
        compiled = _compiled()
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:  # RuntimeError: no home folder
        problems.append(f"the kernel could not be compiled: {error}")
        _log.warning("convolutions run in plain PyTorch, about 4 times slower (%s)", "; ".join(problems))
        return None
    if problems:
        _log.warning("the kernel was compiled as the package's own cannot be loaded (%s)", "; ".join(problems))
    return compiled


def _load(path: Path) -> ctypes.CDLL:
    """Load a library; an OSError if it is damaged, of another system or of another source."""
    if _is_cut_short(path):
        raise OSError(f"{path} is cut short")
    loaded = ctypes.CDLL(str(path))
    try:
        loaded.shd_source.restype = ctypes.c_char_p
        if loaded.shd_source().decode() != digest():
            raise _OtherSourceError(f"{path} was built from another source")
        for name, arguments in _SIGNATURES.items():
            function = getattr(loaded, name)
            function.restype, function.argtypes = None, arguments
    except AttributeError as error:
        raise OSError(f"{path} is not the kernel: {error}") from error
    return loaded


def _is_cut_short(path: Path) -> bool:
    """Whether a 64-bit ELF file lacks its end, where its table of sections is: to load it would kill the process."""
    with path.open("rb") as file:
        header = file.read(64)
    if len(header) < 64 or not header.startswith(b"\x7fELF\x02\x01"):
        return False  # the loader itself refuses what is shorter or of another kind
    (start,), (size, count) = struct.unpack_from("<Q", header, 40), struct.unpack_from("<HH", header, 58)
    return path.stat().st_size < start + size * count


def _compiled() -> ctypes.CDLL:
    """Load the kernel from the user's cache, or a private temporary folder, and compile it there if need be."""
    compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    if compiler is None:
        raise OSError("no C++ compiler found")
    name = f"spectral-{digest()}-{platform.machine()}.so"
    for folder in (Path.home() / ".cache" / "shd_bids", Path(tempfile.gettempdir()) / f"shd_bids-{os.getuid()}"):
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Only a folder of this user's own: code is loaded from it.
            if folder.stat().st_uid == os.getuid():
                return _cached(compiler, folder / name)
        except OSError as error:
            _log.debug("no kernel in %s: %s", folder, error)
    raise OSError("no folder for it that can be written to and loaded from")


def _cached(compiler: str, target: Path) -> ctypes.CDLL:
    if target.exists():
        try:
            return _load(target)
        except OSError as error:
            _log.info("%s; compiling it again", error)
    _log.info("compiling the CPU kernel once into %s", target)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        fresh = Path(scratch) / target.name
        command = [compiler, *_FLAGS, f'-DSHD_SOURCE="{digest()}"', *map(str, sources(".cpp")), "-o", str(fresh)]
        subprocess.run(command, check=True, capture_output=True, timeout=600)
        fresh.replace(target)
    return _load(target)
