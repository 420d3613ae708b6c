"""Calls that are killed or terminated at random moments: nothing lives on, and the same call finishes what they began."""

import json
import signal
import time

import numpy as np
import pytest

from tests.helpers import until
from tests.integration.processes import Program, results, strays
from tests.phantoms import head, write_head

pytestmark = pytest.mark.slow

LEVEL = ("--level", "fod")
N_TRIALS = 10
LATEST = 8.0  # seconds; a whole call takes about twice as long
SECONDS_TO_END = 5.0


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    root = tmp_path_factory.mktemp("killed")
    write_head(root / "raw", *head(np.random.default_rng(8), size=12)[:2])
    return root / "raw"


@pytest.fixture(scope="module")
def undisturbed(raw):
    """Results of a call that nothing stopped."""
    with Program(raw, raw.parent / "undisturbed", *LEVEL) as call:
        assert call.ended() == 0
    return results(raw.parent / "undisturbed")


def stop_at_random(raw, out, rng, number):
    """Start a call, send it a signal, and return the exit code and the seconds until none of its processes was left."""
    with Program(raw, out, *LEVEL) as call:
        time.sleep(rng.uniform(0.5, LATEST))
        began = time.monotonic()
        call.process.send_signal(number)
        until(lambda: call.process.poll() is not None and not call.left(), seconds=60)
        seconds = time.monotonic() - began
        return call.process.returncode, seconds


def statuses(out):
    return [json.loads(path.read_text()) for path in sorted(out.glob("sub-*/log/*/status.json"))]


@pytest.mark.parametrize(("number", "codes"), [(signal.SIGKILL, {-9}), (signal.SIGTERM, {143, -15})])
def test_calls_stopped_at_random_moments(raw, undisturbed, tmp_path, number, codes):
    rng, out = np.random.default_rng(number), tmp_path / "out"
    trials = [stop_at_random(raw, out, rng, number) for _ in range(N_TRIALS)]
    print(*(f"{code} {seconds:.1f} s" for code, seconds in trials), sep=", ")
    assert {code for code, _ in trials} <= codes | {0}  # 0 where all was done before the signal
    assert max(seconds for _, seconds in trials) < SECONDS_TO_END
    with Program(raw, out, *LEVEL) as call:
        assert call.ended() == 0 and not call.problems()
    assert results(out) == undisturbed
    assert not strays(out)
    *stopped, last = statuses(out)
    assert last["status"] == "finished"
    assert {status["status"] for status in stopped} <= {"interrupted", "finished"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_that_come_again_leave_a_whole_record(raw, tmp_path, number):
    out = tmp_path / "out"
    with Program(raw, out, *LEVEL) as call:
        until(lambda: len(call.left()) > 4, seconds=120)  # a stage is at work
        while call.process.poll() is None:
            call.process.send_signal(number)
            time.sleep(0.2)
        until(lambda: not call.left(), seconds=SECONDS_TO_END)
        assert call.process.returncode == 128 + number
    (status,) = statuses(out)
    assert (status["status"], status["exit_code"]) == ("interrupted", 128 + number)
    assert status["series"]["sub-01"]["status"] == "interrupted"
