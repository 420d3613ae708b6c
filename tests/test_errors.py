import pickle

import pytest

from shd_bids import errors

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]


@pytest.mark.parametrize("kind", KINDS)
def test_errors_survive_the_way_between_processes(kind):
    error = pickle.loads(pickle.dumps(kind("found a, expected b")))
    assert type(error) is kind
    assert str(error) == "found a, expected b"
    assert 0 < error.exit_code < 126


def test_input_problems_are_told_one_per_line():
    error = pickle.loads(pickle.dumps(errors.GradientError(["one", "two"])))
    assert error.problems == ("one", "two")
    assert str(error) == "one\ntwo"
