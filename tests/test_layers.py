"""The link to the workflows, and what importing costs; who may import whom is checked by import-linter."""

import subprocess
import sys
from pathlib import Path

import pytest

import shd_bids

ROOT = Path(__file__).resolve().parents[1]


def test_workflows_import_under_one_name_only():
    """``workflows/`` is ``shd_bids.workflows``: one folder, reached through a committed link."""
    link = ROOT / "shd_bids" / "workflows"
    assert link.is_symlink()
    assert link.resolve() == ROOT / "workflows"


@pytest.mark.parametrize("module", ["shd_bids", "shd_bids.cli.main", "shd_bids.workflows"])
def test_parent_process_loads_no_torch(module):
    """The process that parses, collects and schedules never loads torch: a fork after that would hang."""
    code = f"import sys, {module}; sys.exit('torch was loaded' if 'torch' in sys.modules else 0)"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_version_is_that_of_the_distribution():
    from importlib.metadata import version

    assert version("shd_bids") == shd_bids.__version__
