"""Tables of the documentation, made from the code that they describe whenever the pages are built."""

import argparse
import ast
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import results as recorded
import tables as measured

from shd_bids import errors
from shd_bids.bids.names import OUTPUTS
from shd_bids.cli.parser import build_parser
from shd_bids.cli.slurm import build_parser as build_slurm_parser
from shd_bids.fod.config import TrainedDomain
from shd_bids.report.expected import EXPECTED
from shd_bids.report.html import SECTIONS
from shd_bids.study.columns import column_of
from shd_bids.training.train import build_parser as build_training_parser
from tests.benchmarks.paper import record
from tests.benchmarks.paper.experiments import EXPERIMENTS

PACKAGE = Path(__file__).resolve().parents[1] / "shd_bids"

CONSTANTS = {"quality.most_misfit": f"{TrainedDomain().most_misfit:g}"}
"""Values in descriptions that do not depend on the data."""

ENDS = {
    0: "All series are done, or were already.",
    1: "Some series failed, the others finished; or all failed for different reasons.",
    2: "Wrong call: unknown option, bad value, missing folder, work folder inside `BIDS_DIR`.",
    70: "Internal error; `-v` shows where, and the log keeps it.",
    129: "Ended by SIGHUP; the same call goes on.",
    130: "Interrupted by SIGINT (Ctrl-C); the same call goes on.",
    143: "Ended by SIGTERM, as a batch system does at its time limit; the same call goes on.",
}
"""Exit codes that belong to no error class."""


def options(section: str) -> list[str]:
    """Return the options of one section of ``--help``."""
    return _options(build_parser(), section)


def training_options() -> list[str]:
    """Return the options of the training command."""
    return _options(build_training_parser(), "options")


def slurm_options() -> list[str]:
    """Return the options of the command that prints job scripts."""
    return _options(build_slurm_parser(), "options")


def exit_codes() -> list[str]:
    """Return the exit codes and what they mean, each of the class of errors that defines it."""
    classes = [kind for kind in vars(errors).values() if isinstance(kind, type) and "exit_code" in vars(kind)]
    meanings = {kind.exit_code: kind.__doc__.splitlines()[0] for kind in classes} | ENDS
    return _table(("code", "meaning"), [(str(code), meaning) for code, meaning in sorted(meanings.items())])


def outputs(stage: str) -> list[str]:
    """Return the files that a stage writes."""
    rows = [
        (f"`{_ending(row)}`", row["description"], row.get("units", ""))
        for row in OUTPUTS.values()
        if row["stage"] == stage
    ]
    return _table(("name after `sub-01_space-orig_`", "content", "unit"), rows)


def qc_columns() -> list[str]:
    """Return the columns of the quality table, and where a range is known, what to do outside of it."""
    columns = dict(_qc_calls())
    if unknown := [name for name in EXPECTED if not any(_matches(name, column) for column in columns)]:
        raise ValueError(f"expected ranges of columns that no stage writes: {', '.join(unknown)}")
    rows = []
    for column, meaning in columns.items():
        known = next((EXPECTED[name] for name in EXPECTED if _matches(name, column)), None)
        better = column_of(_example(column)).better
        rows.append(
            (
                f"`{column}`",
                meaning,
                known.range if known else "",
                better if better in ("higher", "lower") else "",
                known.advice if known else "",
            )
        )
    return _table(("column", "meaning", "expected", "better", "outside of that"), rows)


def report_sections() -> list[str]:
    """Return the pictures of a report and how to read them."""
    return _table(("picture", "right", "wrong"), [(s.title, s.right, s.wrong) for s in SECTIONS])


def recipes() -> list[str]:
    """Return the recipes of the package and what they say of themselves."""
    found = sorted((PACKAGE / "training" / "recipes").glob("*.toml"))
    first = {path.stem: path.read_text("utf-8").splitlines()[0].removeprefix("# ") for path in found}
    return _table(
        ("recipe", "what it trains"), [(f"`{name}`", text.partition(": python")[0]) for name, text in first.items()]
    )


def results(name: str) -> list[str]:
    """Return a table of measured figures, and when and where they were measured."""
    table = measured.TABLES[name]
    shown = {column.method for column in table.columns.values()}
    records = [record for record in recorded.read(table.source) if record.method in shown]
    dates = sorted({record.date for record in records})
    machines = "; ".join(sorted({record.machine for record in records}))
    threads = " or ".join(sorted({str(record.threads) for record in records}))
    when = " to ".join(dict.fromkeys((dates[0], dates[-1])))
    return [*table.lines(), "", f"`results/{table.source}.csv`: {when}; {machines}; threads: {threads}."]


def paper(words: str) -> list[str]:
    """Return the table of an experiment of the paper, or after its name ``claims`` those that it checks; ``summary`` for all."""
    name, *kind = words.split()
    if name == "summary":
        return record.summary(EXPERIMENTS.values(), "small")
    function = record.claims if kind == ["claims"] else record.table
    return function(EXPERIMENTS[name], "small")


TABLES: dict[str, Callable[..., list[str]]] = {
    function.__name__: function
    for function in (
        options,
        training_options,
        slurm_options,
        exit_codes,
        outputs,
        qc_columns,
        report_sections,
        recipes,
        results,
        paper,
    )
}
"""What the directive ``generated`` can insert."""


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return a table in Markdown."""
    lines = ["|" + "|".join(head) + "|", "|---" * len(head) + "|"]
    return lines + ["|" + "|".join(cell.replace("|", r"\|").replace("\n", " ") for cell in row) + "|" for row in rows]


def _options(parser: argparse.ArgumentParser, section: str) -> list[str]:
    """Return the options of one group of a parser, spelt and explained as its help does."""
    group = next((group for group in parser._action_groups if group.title == section), None)
    if group is None:
        raise ValueError(f"no section {section!r} in the help, found {[g.title for g in parser._action_groups]}")
    formatter = parser._get_formatter()
    rows = []
    for action in group._group_actions:
        value = formatter._format_args(action, formatter._get_default_metavar_for_optional(action))
        names = "<br>".join(f"`{name}`" for name in action.option_strings)
        rows.append((f"{names} `{value}`" if value else names, _escaped(formatter._expand_help(action))))
    return _table(("option", "meaning"), rows)


def _escaped(text: str) -> str:
    """Return text that Markdown leaves as it is."""
    return text.replace("*", r"\*").replace("_", r"\_").replace("<", r"\<")


def _ending(row: dict[str, Any]) -> str:
    """Return what the name of an output ends in."""
    entities = "_".join(f"{name}-{value}" for name, value in row["entities"].items())
    return f"{entities}_{row['suffix']}{row['extension']}"


def _qc_calls() -> Iterator[tuple[str, str]]:
    """Yield name and description of every column that a stage writes; braces stand for what depends on the data."""
    for path in sorted((PACKAGE / "interfaces").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            match node:
                case ast.Dict():
                    pairs = list(zip(node.keys, node.values, strict=True))
                case ast.DictComp():
                    pairs = [(node.key, node.value)]
                case ast.Assign(targets=[ast.Subscript() as target]):
                    pairs = [(target.slice, node.value)]
                case _:
                    continue
            for key, value in pairs:
                if isinstance(value, ast.Call) and getattr(value.func, "id", "") == "qc_column":
                    yield _text(key), _text(value.args[1])


def _text(node: ast.expr) -> str:
    """Return a text of the source, with the names of what is filled in, in braces."""
    if isinstance(node, ast.Constant):
        return node.value
    if not isinstance(node, ast.JoinedStr):
        raise ValueError(f"a column is named by {ast.unparse(node)}, expected a text")
    return "".join(part.value if isinstance(part, ast.Constant) else _filled(part.value) for part in node.values)


def _filled(node: ast.expr) -> str:
    """Return what stands for a value in a text: the value of a constant, else its name."""
    name = ast.unparse(node)
    return CONSTANTS.get(name, "{" + name.partition(".")[0] + "}")


def _example(column: str) -> str:
    """Return one of the names that a column with braces has."""
    examples = {"{bvalue}": "1000", "{tissue}": "wm", "{name}": "mean", "{axis}": "x"}
    for brace, word in examples.items():
        column = column.replace(brace, word)
    return column


def _matches(name: str, column: str) -> bool:
    """Whether a column's name, with its braces filled, can be this one."""
    first, brace, rest = column.partition("{")
    return name == column or (bool(brace) and name.startswith(first) and name.endswith(rest.partition("}")[2]))
