"""Build the CPU kernel with the package where a C++ compiler is found; the package installs and works without one."""

import hashlib
import os
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.sdist import sdist

SOURCE = "shd_bids/nn/backends/cpu/spectral.cpp"
DIGEST = hashlib.sha256(Path(SOURCE).read_bytes()).hexdigest()[:16]
LINK = "shd_bids/workflows"
FOLDERS = (".ci", ".github", "shd_bids", "tests", "workflows")
FILES = (".dockerignore", ".gitignore", "CITATION.cff", "Dockerfile", "Makefile", "constraints.txt", "singularity.def")


class CompleteSdist(sdist):
    """Source distribution that installs, tests and builds its images like a clone: all files, and the link as a link."""

    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        """Lay out the files and the link to ``workflows/``, which setuptools would copy."""
        found = (path for folder in FOLDERS for path in Path(folder).rglob("*") if path.is_file())
        tracked = {path.as_posix() for path in found if path.suffix not in (".pyc", ".so")}
        complete = {file for file in {*files, *FILES, *tracked} if not file.startswith(f"{LINK}/")}
        super().make_release_tree(base_dir, sorted(complete))
        os.symlink(os.readlink(LINK), Path(base_dir, LINK))


setup(
    cmdclass={"sdist": CompleteSdist},
    ext_modules=[
        Extension(
            "shd_bids.nn.backends.cpu._spectral",  # loaded by ctypes: it is no Python module
            [SOURCE],
            language="c++",
            define_macros=[("SHD_SOURCE", f'"{DIGEST}"')],
            extra_compile_args=["-std=c++17", "-O3", "-pthread"],
            extra_link_args=["-pthread"],
            optional=True,
        )
    ],
)
