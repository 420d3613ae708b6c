"""The experiments of the paper: units of work are done once, and their values become rows, means and verdicts."""

import numpy as np
import pytest

from tests.benchmarks.paper import record
from tests.benchmarks.paper.__main__ import work
from tests.benchmarks.paper.base import Claim, Done, Experiment, Outcome, Settings, Unit
from tests.benchmarks.paper.intervals import interval, verdict


def experiment(counted, *, seeds=3):
    """Two methods of which ``good`` has the larger F1; each run is noted in a list."""

    def run(method, seed):
        counted.append((method, seed))
        return Outcome({"f1": 0.5 + 0.2 * (method == "good") + 0.01 * seed}, {"x": np.arange(3)})

    def units(settings):
        for seed in range(settings.seeds):
            for method in ("good", "bad"):
                yield Unit("low, SNR 30", method, seed, lambda m=method, s=seed: run(m, s))

    return Experiment("toy", "Toy", units, ("f1",), claims=(Claim("good leads", "f1", "good", "bad"),))


@pytest.fixture
def settings(tmp_path):
    return Settings(3, "small", "cpu", tmp_path)


def test_units_are_done_once(settings):
    counted = []
    toy = experiment(counted)
    assert work(toy.kept(settings), np.inf) == 0
    assert work(toy.kept(settings), np.inf) == 0
    assert len(counted) == 6
    assert toy.kept(settings)[0].values == {"f1": 0.7}
    np.testing.assert_array_equal(toy.kept(settings)[0].arrays["x"], np.arange(3))


def test_time_that_is_over_leaves_units(settings):
    counted = []
    toy = experiment(counted)
    assert work(toy.kept(settings), -1) == 6
    assert not counted


def test_unit_that_fails_is_not_kept(settings):
    def run():
        raise RuntimeError("no")

    item = Done(Unit("a", "b", 0, run), settings.cache)
    with pytest.raises(RuntimeError):
        work([item], np.inf)
    assert not item.is_kept


def test_values_become_rows_means_and_verdicts(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(record.results, "FOLDER", tmp_path)
    toy = experiment([])
    work(toy.kept(settings), np.inf)
    figures = record.figures(toy.kept(settings), "small", threads=1)
    new = [record.Record("", "", "", "", f.threads, f.row, f.method, f.metric, f.value) for f in figures]
    record.results.save(toy.source, new)
    lines = record.table(toy, "small")
    assert lines[2] == "| low, SNR 30 | good | 0.710 ± 0.025 | 3 |"
    assert record.claims(toy, "small")[2].endswith("| +0.200 ± 0.000 | holds |")
    assert record.summary([toy], "small")[2:] == ["| toy | good leads | 1 |  |  |"]
    assert len(record.table(toy, "full")) == 2, "rows of another scale are shown"


def test_table_keeps_the_lines_of_a_row_together(monkeypatch):
    """Also where a method is recorded after all others."""
    rows = [("low", "good"), ("high", "good"), ("low", "late")]
    recorded = [record.Record("", "", "", "", 1, f"small, {row}, seed 0", name, "f1", 0.5) for row, name in rows]
    monkeypatch.setattr(record.results, "read", lambda name: recorded)
    lines = record.table(experiment([]), "small")[2:]
    assert [tuple(line.split(" | ")[:2]) for line in lines] == [
        ("| low", "good"),
        ("| low", "late"),
        ("| high", "good"),
    ]


@pytest.mark.parametrize(("values", "says"), [([1, 1.1, 0.9], "holds"), ([-1, -1.1, -0.9], "fails"), ([1, -1], "open")])
def test_verdict_follows_the_interval(values, says):
    assert verdict(interval(values)) == says


def test_margin_forgives_a_small_loss():
    loss = interval([-0.01, -0.011, -0.009])
    assert verdict(loss) == "fails"
    assert verdict(loss, margin=0.02) == "holds"


def test_one_seed_decides_nothing():
    assert verdict(interval([5.0])) == "open"


def test_interval_is_that_of_student():
    found = interval([1.0, 2.0, 3.0])
    assert found.mean == 2
    assert found.half == pytest.approx(4.302653 / np.sqrt(3), rel=1e-6)
