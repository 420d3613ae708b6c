"""Build the CPU kernels with the package where a C++ compiler is found; the package installs without one."""

import os
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.sdist import sdist

KERNELS = tuple(
    Path("shd_bids", *parts)
    for parts in (("nn", "backends", "cpu", "spectral"), ("tractography", "kernel"), ("tractography", "traversal"))
)
LINK = "shd_bids/workflows"
FOLDERS = (".ci", ".github", "deploy", "docs", "shd_bids", "tests", "workflows")
FILES = (".dockerignore", ".gitignore", "CITATION.cff", "Dockerfile", "Makefile", "constraints.txt", "singularity.def")

# By its path: the package needs what is not installed yet.
spec = spec_from_file_location("compiled", "shd_bids/compiled.py")
compiled = module_from_spec(spec)
spec.loader.exec_module(compiled)


class CompleteSdist(sdist):
    """Source distribution that installs, tests and builds its images like a clone: all files, and the link as a link."""

    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        """Lay out the files and the link to ``workflows/``, which setuptools would copy."""
        found = (path for folder in FOLDERS for path in Path(folder).rglob("*") if path.is_file())
        tracked = {path.as_posix() for path in found if path.suffix not in (".pyc", ".so")}
        complete = {file for file in {*files, *FILES, *tracked} if not file.startswith(f"{LINK}/")}
        super().make_release_tree(base_dir, sorted(complete))
        os.symlink(os.readlink(LINK), Path(base_dir, LINK))


def extension(folder: Path) -> Extension:
    """Return how the kernel in a folder is built; it is loaded by ctypes: it is no Python module."""
    kernel = compiled.Kernel(folder, signatures={}, without="")
    return Extension(
        ".".join([*folder.parent.parts, f"_{folder.name}"]),
        [path.as_posix() for path in kernel.sources(".cpp")],
        depends=[path.as_posix() for path in kernel.sources(".h")],
        language="c++",
        define_macros=[("SHD_SOURCE", f'"{kernel.digest()}"')],
        extra_compile_args=["-std=c++17", "-O3", "-pthread"],
        extra_link_args=["-pthread"],
        optional=True,
    )


setup(cmdclass={"sdist": CompleteSdist}, ext_modules=[extension(folder) for folder in KERNELS])
