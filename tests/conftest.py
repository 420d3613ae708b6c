"""Fixtures that several test modules share."""

import os

# One thread a test process: the workers of pytest-xdist would otherwise take all cores each. Set before NumPy and
# torch are imported, as both read it only then.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import numpy as np
import pytest
import torch

torch.set_num_threads(1)

# Without a device Triton's kernels are interpreted. Triton reads this when it is imported, which torch does only on need.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_collection_modifyitems(items):
    """Skip what is marked ``gpu`` where no CUDA device is."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture
def rng() -> np.random.Generator:
    """A NumPy generator with a fixed seed."""
    return np.random.default_rng(20260101)


@pytest.fixture
def frame(rng) -> np.ndarray:
    """Three orthogonal unit vectors at random, in rows."""
    return np.linalg.qr(rng.normal(size=(3, 3)))[0]


@pytest.fixture
def generator() -> torch.Generator:
    """A torch generator with a fixed seed."""
    return torch.Generator().manual_seed(20260101)
