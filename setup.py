"""Build the CPU kernel with the package where a C++ compiler is found; the package installs and works without one."""

import hashlib
from pathlib import Path

from setuptools import Extension, setup

SOURCE = "shd_bids/nn/backends/cpu/spectral.cpp"
DIGEST = hashlib.sha256(Path(SOURCE).read_bytes()).hexdigest()[:16]

setup(
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
    ]
)
