"""Finding or compiling the libraries of the project's own C++ kernels.

A kernel is a folder of sources without dependencies. A library built with the package is used if it is there; else the source is
compiled at first use, once per user, if a C++ compiler is found. Only the standard library is imported, so that ``setup.py`` can
ask for sources and digest before the package is installed.
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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

_log = logging.getLogger(__name__)

_FLAGS = ("-std=c++17", "-O3", "-fPIC", "-shared", "-pthread")


class OtherSourceError(OSError):
    """A library that was built from another source than the one beside it."""


@dataclass(frozen=True, eq=False)
class Kernel:
    """One library and where it comes from.

    Attributes
    ----------
    folder : Path
        Holds the sources and gives the name; a library that came with the package lies beside it, with ``_`` before its name.
    signatures : mapping
        Name of each function -> types of its arguments.
    results : mapping
        Name of a function -> type of its result; the others have none.
    without : str
        What happens without the library, for the warning.
    """

    folder: Path
    signatures: Mapping[str, tuple]
    without: str
    results: Mapping[str, Any] = field(default_factory=dict)

    def sources(self, *endings: str) -> list[Path]:
        """Return the source files with these endings, such as ``.cpp``, in the order of their names."""
        return sorted(path for path in self.folder.iterdir() if path.suffix in endings)

    def digest(self) -> str:
        """Return what names the source: 16 hexadecimal digits over the names and contents of all its files."""
        total = hashlib.sha256()
        for path in self.sources(".cpp", ".h"):
            total.update(f"{path.name}\n".encode() + path.read_bytes())
        return total.hexdigest()[:16]

    def find(self) -> ctypes.CDLL | None:
        """Load the library that came with the package, else compile it; None, with one warning, where neither can be done."""
        problems = []
        for path in (self.folder.parent / f"_{self.folder.name}{suffix}" for suffix in EXTENSION_SUFFIXES):
            try:
                if path.exists():
                    return self._load(path)
            except OtherSourceError as error:
                _log.info("%s; reinstall the package to renew it", error)
            except OSError as error:
                problems.append(str(error))
        try:
            compiled = self._compiled()
        except (OSError, RuntimeError, subprocess.SubprocessError) as error:  # RuntimeError: no home folder
            problems.append(f"the kernel could not be compiled: {error}")
            _log.warning("%s (%s)", self.without, "; ".join(problems))
            return None
        if problems:
            _log.warning("the kernel was compiled as the package's own cannot be loaded (%s)", "; ".join(problems))
        return compiled

    def _load(self, path: Path) -> ctypes.CDLL:
        """Load a library; an OSError if it is damaged, of another system or of another source."""
        if _is_cut_short(path):
            raise OSError(f"{path} is cut short")
        loaded = ctypes.CDLL(str(path))
        try:
            loaded.shd_source.restype = ctypes.c_char_p
            if loaded.shd_source().decode() != self.digest():
                raise OtherSourceError(f"{path} was built from another source")
            for name, arguments in self.signatures.items():
                function = getattr(loaded, name)
                function.restype, function.argtypes = self.results.get(name), arguments
        except AttributeError as error:
            raise OSError(f"{path} is not the kernel: {error}") from error
        return loaded

    def _compiled(self) -> ctypes.CDLL:
        """Load the kernel from the user's cache, or a private temporary folder, and compile it there if need be."""
        compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
        if compiler is None:
            raise OSError("no C++ compiler found")
        name = f"{self.folder.name}-{self.digest()}-{platform.machine()}.so"
        for folder in _cache_folders():
            try:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                # Only a folder of this user's own: code is loaded from it.
                if folder.stat().st_uid == os.getuid():
                    return self._cached(compiler, folder / name)
            except OSError as error:
                _log.debug("no kernel in %s: %s", folder, error)
        raise OSError("no folder for it that can be written to and loaded from")

    def _cached(self, compiler: str, target: Path) -> ctypes.CDLL:
        if target.exists():
            try:
                return self._load(target)
            except OSError as error:
                _log.info("%s; compiling it again", error)
        _log.info("compiling a CPU kernel once into %s", target)
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            fresh = Path(scratch) / target.name
            source = (f'-DSHD_SOURCE="{self.digest()}"', *map(str, self.sources(".cpp")))
            command = [compiler, *_FLAGS, *source, "-o", str(fresh)]
            subprocess.run(command, check=True, capture_output=True, timeout=600)
            fresh.replace(target)
        return self._load(target)


@lru_cache
def library(kernel: Kernel) -> ctypes.CDLL | None:
    """Return the library of a kernel, which is looked for once."""
    return kernel.find()


def _cache_folders() -> Iterator[Path]:
    yield Path.home() / ".cache" / "shd_bids"
    yield Path(tempfile.gettempdir()) / f"shd_bids-{os.getuid()}"


def _is_cut_short(path: Path) -> bool:
    """Whether a 64-bit ELF file lacks its end, where its table of sections is: to load it would kill the process."""
    with path.open("rb") as file:
        header = file.read(64)
    if len(header) < 64 or not header.startswith(b"\x7fELF\x02\x01"):
        return False  # the loader itself refuses what is shorter or of another kind
    (start,), (size, count) = struct.unpack_from("<Q", header, 40), struct.unpack_from("<HH", header, 58)
    return path.stat().st_size < start + size * count
