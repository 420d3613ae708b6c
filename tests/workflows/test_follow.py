"""What jobs elsewhere log reaches the program that submitted them."""

import logging
import os
import subprocess
import sys

import pytest

from shd_bids.interfaces.isolation import STAGE_LOG, join_log
from shd_bids.workflows.follow import followed

JOB = """
import logging
from shd_bids.interfaces.isolation import join_log
join_log()
join_log()  # once is enough
logging.getLogger("shd_bids.stage").info("sub-01: fod done in 3 s")
logging.getLogger("shd_bids.stage").warning("a\\tb")
logging.getLogger("shd_bids.stage").debug("not asked for")
"""


@pytest.fixture
def logger():
    """Give the package's logger a level and a handler for a test."""
    logger = logging.getLogger("shd_bids")
    before = (list(logger.handlers), logger.level)
    logger.setLevel(logging.INFO)
    yield logger
    logger.handlers[:], _ = before
    logger.setLevel(before[1])


def test_lines_of_jobs_are_told_here(tmp_path, logger, caplog):
    with followed(tmp_path / "call" / "stages.log"), caplog.at_level(logging.INFO, logger="shd_bids"):
        subprocess.run([sys.executable, "-c", JOB], check=True)
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("INFO", "sub-01: fod done in 3 s"),
        ("WARNING", "a\tb"),
    ]
    assert STAGE_LOG not in os.environ


def test_a_process_with_a_log_of_its_own_keeps_it(tmp_path, logger, monkeypatch):
    monkeypatch.setenv(STAGE_LOG, f"20\t{tmp_path / 'log'}")
    logger.handlers[:] = own = [logging.NullHandler()]
    join_log()
    assert logger.handlers == own and not (tmp_path / "log").exists()
