"""A sample of damaged and hostile input, and whether what must not happen would be seen."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.integration.fuzz import MOST_GB, MOST_SECONDS, MUTATIONS, Outcome, findings_of, make_template, state_of

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("outcome", "finding"),
    [
        (Outcome(0, ("WARNING: few voxels",), 1.0, 0.5), None),
        (Outcome(65, ("ERROR: a.bval: empty",), 1.0, 0.5), None),
        (Outcome(1, ("Traceback (most recent call last):",), 1.0, 0.5), "traceback"),
        (Outcome(70, ("ERROR: internal error",), 1.0, 0.5), "internal error"),
        (Outcome(65, ("ERROR: ValueError: x",), 1.0, 0.5), "name of an exception as message"),
        (Outcome(-9, ("started",), MOST_SECONDS + 1, 0.5), f"more than {MOST_SECONDS:.0f} s"),
        (Outcome(-9, ("started",), 1.0, MOST_GB + 0.5), f"{MOST_GB + 0.5:.1f} GB"),
        (Outcome(-11, ("started",), 1.0, 0.5), "ended by signal 11"),
        (Outcome(1, (), 1.0, 0.5), "no message"),
    ],
)
def test_what_must_not_happen_is_a_finding(outcome, finding):
    assert list(findings_of(outcome)) == ([finding] if finding else [])


def test_the_state_of_a_folder_shows_changes(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_text("1")
    before = state_of(tmp_path, without=("b",))
    (tmp_path / "b").mkdir()
    assert state_of(tmp_path, without=("b",)) == before
    (tmp_path / "a" / "x").write_text("2")
    assert state_of(tmp_path, without=("b",)) != before


@pytest.mark.slow
def test_mutations_are_the_same_for_the_same_seed(tmp_path):
    trees = [make_template(tmp_path / name) for name in ("a", "b")]
    for kind in ("tables", "volumes", "sidecars"):
        first, second = (MUTATIONS[kind](tree, np.random.default_rng(1)).what for tree in trees)
        assert first == second
    assert trees[0].table("bval").read_bytes() == trees[1].table("bval").read_bytes()


@pytest.mark.slow
def test_a_sample_has_no_findings(tmp_path):
    words = [sys.executable, "-m", "tests.integration.fuzz", "--n", "65", "--seed", "7", "--folder", str(tmp_path)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
