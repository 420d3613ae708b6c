"""Build the CPU kernel with the package where a C++ compiler is found; the package installs and works without one."""

import hashlib
import os
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.sdist import sdist

SOURCE = "shd_bids/nn/backends/cpu/spectral.cpp"
DIGEST = hashlib.sha256(Path(SOURCE).read_bytes()).hexdigest()[:16]
LINK = "shd_bids/workflows"


class LinkedSdist(sdist):
    """Source distribution that keeps the link to ``workflows/`` where setuptools would copy the folder."""

    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        """Lay out the files and the link."""
        super().make_release_tree(base_dir, [file for file in files if not file.startswith(f"{LINK}/")])
        os.symlink(os.readlink(LINK), Path(base_dir, LINK))


setup(
    cmdclass={"sdist": LinkedSdist},
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
