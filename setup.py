"""Build the CPU kernel of the network with the package where a compiler is; the package works without it."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "shd_bids.nn.native._spectral",
            ["shd_bids/nn/native/spectral.cpp"],
            language="c++",
            extra_compile_args=["-std=c++17", "-O3", "-pthread"],
            extra_link_args=["-pthread"],
            optional=True,  # loaded by ctypes: no Python in it, and plain PyTorch computes the same
        )
    ]
)
