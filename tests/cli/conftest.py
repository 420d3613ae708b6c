"""Data set, output folder and stand-in of the workflow for calls of the command line."""

import logging
import os

import pytest

from shd_bids.cli import console
from tests.bids_trees import raw_dataset, write_mask
from tests.cli.calls import Graph


@pytest.fixture
def surroundings(monkeypatch):
    """Give logging and environment back as they were."""
    logger = logging.getLogger("shd_bids")
    before = (list(logger.handlers), logger.propagate, logger.level)
    for name in ("HOME", "LOGNAME"):
        monkeypatch.setenv(name, os.environ.get(name, "/"))
    monkeypatch.setattr(os, "environ", os.environ.copy())
    monkeypatch.setattr(console, "SECONDS_TO_END", 600)  # its end would be that of the tests
    yield
    logger.handlers[:], logger.propagate = before[:2]
    logger.setLevel(before[2])


@pytest.fixture
def raw(tmp_path):
    root = raw_dataset(tmp_path / "raw", "sub-01_dwi", "sub-02_dwi")
    for subject in ("01", "02"):
        write_mask(root, f"sub-{subject}_desc-brain_mask")
    return root


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.fixture
def graph(monkeypatch):
    return Graph(monkeypatch)
