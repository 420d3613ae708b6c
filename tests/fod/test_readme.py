"""The method beside the paper: every function that the document names exists."""

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "shd_bids" / "fod" / "README.md").read_text(encoding="utf-8")
NAMES = sorted(set(re.findall(r"`(shd_bids(?:\.\w+)+)`", TEXT)))


def resolve(name: str) -> object:
    """Import a module or the attribute of one."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        module, _, attribute = name.rpartition(".")
        return getattr(importlib.import_module(module), attribute)


@pytest.mark.parametrize("name", NAMES)
def test_named_function_exists(name):
    assert resolve(name) is not None


def test_equations_of_the_paper_have_a_function():
    rows = [line for line in TEXT.splitlines() if line.startswith("|") and "| here |" not in line]
    assert len(rows) > 15
    assert len(NAMES) > 12


def test_unknown_function_is_noticed():
    with pytest.raises(AttributeError):
        resolve("shd_bids.sphere.graph.nothing")
