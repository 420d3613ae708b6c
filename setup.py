"""Build the CPU kernel with the package where a C++ compiler is found; the package installs and works without one."""

import os
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.sdist import sdist

CPU = Path("shd_bids/nn/backends/cpu")
LINK = "shd_bids/workflows"
FOLDERS = (".ci", ".github", "shd_bids", "tests", "workflows")
FILES = (".dockerignore", ".gitignore", "CITATION.cff", "Dockerfile", "Makefile", "constraints.txt", "singularity.def")

spec = spec_from_file_location("build", CPU / "build.py")  # by its path: the package needs what is not installed yet
build = module_from_spec(spec)
spec.loader.exec_module(build)


class CompleteSdist(sdist):
    """Source distribution that installs, tests and builds its images like a clone: all files, and the link as a link."""

    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        """Lay out the files and the link to ``workflows/``, which setuptools would copy."""
        found = (path for folder in FOLDERS for path in Path(folder).rglob("*") if path.is_file())
        tracked = {path.as_posix() for path in found if path.suffix not in (".pyc", ".so")}
        complete = {file for file in {*files, *FILES, *tracked} if not file.startswith(f"{LINK}/")}
        super().make_release_tree(base_dir, sorted(complete))
        os.symlink(os.readlink(LINK), Path(base_dir, LINK))


def sources(ending: str) -> list[str]:
    """Return the kernel's files with an ending as setuptools wants them, relative to this folder."""
    return [str(CPU / "spectral" / path.name) for path in build.sources(ending)]


setup(
    cmdclass={"sdist": CompleteSdist},
    ext_modules=[
        Extension(
            "shd_bids.nn.backends.cpu._spectral",  # loaded by ctypes: it is no Python module
            sources(".cpp"),
            depends=sources(".h"),
            language="c++",
            define_macros=[("SHD_SOURCE", f'"{build.digest()}"')],
            extra_compile_args=["-std=c++17", "-O3", "-pthread"],
            extra_link_args=["-pthread"],
            optional=True,
        )
    ],
)
