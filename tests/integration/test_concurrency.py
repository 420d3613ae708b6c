"""Several calls at once: on other participants of one data set, and on the same participant."""

import json
import time

import numpy as np
import pytest

from tests.helpers import until
from tests.integration.processes import Program, results, strays
from tests.phantoms import head, write_head

pytestmark = pytest.mark.slow

LEVEL = ("--level", "response")
SUBJECTS = ("01", "02", "03", "04")


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    root = tmp_path_factory.mktemp("many") / "raw"
    for seed, subject in enumerate(SUBJECTS):
        write_head(root, *head(np.random.default_rng(seed), size=12)[:2], subject=subject)
    return root


def starts(call):
    return "series on" in call.errors.read_text()


def test_four_calls_write_into_one_data_set(raw, tmp_path):
    out = tmp_path / "out"
    calls = [Program(raw, out, *LEVEL, "--participant-label", subject) for subject in SUBJECTS]
    try:
        assert [call.ended() for call in calls] == [0] * 4
        assert not [line for call in calls for line in call.problems()]
    finally:
        for call in calls:
            call.__exit__()
    for subject in SUBJECTS:
        (record,) = out.glob(f"sub-{subject}/log/*/status.json")
        assert json.loads(record.read_text())["status"] == "finished"
        assert (out / f"sub-{subject}.html").is_file()
    assert len(results(out)) == 4 * 4
    assert not strays(out)


@pytest.mark.parametrize("work", ["shared", "own"])
def test_two_calls_on_one_participant(raw, tmp_path, work):
    """The second waits, finds all done, and both end well."""
    out = tmp_path / "out"
    words = (*LEVEL, "--participant-label", "01")
    works = [None, None] if work == "shared" else [tmp_path / "a", tmp_path / "b"]
    with Program(raw, out, *words, work=works[0]) as first:
        until(lambda: starts(first), seconds=120)
        time.sleep(1)
        with Program(raw, out, *words, work=works[1]) as second:
            assert (first.ended(), second.ended()) == (0, 0)
            assert not first.problems() and not second.problems()
            told = second.errors.read_text()
    assert "sub-01: another call works on it" in told and "done by an earlier call" in told
    assert len(list(out.glob("sub-01/log/*/status.json"))) == 1
    assert len(results(out)) == 4
    assert not strays(out)


def test_a_call_goes_on_after_one_that_was_killed_while_it_waited(raw, tmp_path):
    out = tmp_path / "out"
    words = (*LEVEL, "--participant-label", "01")
    with Program(raw, out, *words) as first:
        until(lambda: len(first.left()) > 4, seconds=120)  # a stage is at work
        with Program(raw, out, *words) as second:
            until(lambda: "another call" in second.errors.read_text(), seconds=120)
            first.process.kill()
            assert second.ended() == 0 and not second.problems()
    assert len(results(out)) == 4
    assert not strays(out)
