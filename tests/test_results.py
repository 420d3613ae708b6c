"""The figures that the documents quote: how they are recorded, compared and printed."""

import argparse
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parent / "benchmarks"


@pytest.fixture
def results(monkeypatch, tmp_path):
    """The module that records figures, with an empty folder for them."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import results

    monkeypatch.setattr(results, "FOLDER", tmp_path)
    return results


@pytest.fixture
def tables(monkeypatch):
    """The module that prints the tables, on the recorded figures."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in ("results", "tables"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import tables

    return tables


def options(**given: bool) -> argparse.Namespace:
    return argparse.Namespace(**{"save": False, "compare": False} | given)


def test_saved_figure_replaces_the_one_before_and_keeps_the_others(results):
    first = [results.Figure("row", method, "pr_area", 0.9, threads=2) for method in ("ours", "theirs")]
    again = [results.Figure("row", "ours", "pr_area", 0.95, threads=1, weights_sha="abc")]
    results.finish("name", first, options(save=True))
    results.finish("name", again, options(save=True))
    found = {r.method: (r.value, r.threads, r.weights_sha) for r in results.read("name")}
    assert found == {"ours": (0.95, 1, "abc"), "theirs": (0.9, 2, "")}


def test_times_with_other_numbers_of_threads_are_kept_apart(results):
    for threads in (1, 2):
        results.finish("name", [results.Figure("row", "ours", "seconds", 10.0, threads)], options(save=True))
    assert [r.threads for r in results.read("name")] == [1, 2]


@pytest.mark.parametrize(
    ("metric", "recorded", "new", "worse"),
    [
        pytest.param("pr_area", 0.900, 0.885, 0, id="accuracy within 2 %"),
        pytest.param("pr_area", 0.900, 0.880, 1, id="accuracy lost"),
        pytest.param("pr_area", 0.900, 0.990, 0, id="accuracy gained"),
        pytest.param("narrow_missed", 0.100, 0.103, 1, id="more fibres missed"),
        pytest.param("gm", 0.000, 0.001, 0, id="last printed digit"),
        pytest.param("gm", 0.000, 0.010, 1, id="from nothing"),
        pytest.param("seconds", 100.0, 104.0, 0, id="time within 5 %"),
        pytest.param("seconds", 100.0, 106.5, 1, id="slower"),
        pytest.param("speedup", 20.0, 18.9, 1, id="less gained"),
    ],
)
def test_figures_that_are_worse_are_flagged(results, metric, recorded, new, worse):
    results.finish("name", [results.Figure("row", "ours", metric, recorded, 1)], options(save=True))
    assert results.finish("name", [results.Figure("row", "ours", metric, new, 1)], options(compare=True)) == worse


def test_times_of_another_machine_are_not_compared(results):
    results.finish("name", [results.Figure("row", "ours", "seconds", 1.0, 1)], options(save=True), on="another")
    assert results.finish("name", [results.Figure("row", "ours", "seconds", 9.0, 1)], options(compare=True)) == 0


def test_documents_show_the_recorded_figures(tables):
    """`python tests/benchmarks/tables.py --write` puts them there."""
    for name in {table.document for table in tables.TABLES.values() if table.document}:
        text = (tables.ROOT / name).read_text(encoding="utf-8")
        now = {key: table.lines() for key, table in tables.TABLES.items() if table.document == name}
        assert tables.with_tables(text, now) == text, f"{name} shows other figures than are recorded"


def test_recorded_figures_have_a_metric_and_a_source(tables):
    records = [record for file in tables.FOLDER.glob("*.csv") for record in tables.read(file.stem)]
    assert records
    for record in records:
        assert record.metric in tables.METRICS
        assert record.date and record.machine and record.threads > 0


def test_table_without_a_place_is_refused(tables):
    with pytest.raises(ValueError, match="no place for the table accuracy"):
        tables.with_tables("text\n", {"accuracy": ["| a |"]})


def test_figures_of_other_weights_are_listed_and_dropped(tables, monkeypatch, tmp_path):
    import results

    for module in (results, tables):
        monkeypatch.setattr(module, "FOLDER", tmp_path)
    shas = {"mine": results.shipped_weights(), "earlier": "0123456789ab", "without": ""}
    figures = [results.Figure("row", name, "pr_area", 0.9, 1, sha) for name, sha in shas.items()]
    results.finish("name", figures, options(save=True))
    (line,) = tables.stale(drop=True)
    assert "earlier" in line
    assert [record.method for record in tables.read("name")] == ["mine", "without"]
