"""Print the tables of the documents from the recorded figures.

    python tests/benchmarks/tables.py            # print them
    python tests/benchmarks/tables.py --write    # put them in their places in the documents
    python tests/benchmarks/tables.py --stale    # list the figures of other weights than the shipped ones
    python tests/benchmarks/tables.py --drop     # delete them

A table stands between the comments ``<!-- NAME -->`` and ``<!-- end -->`` of its document.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from results import FOLDER, METRICS, ROOT, read, shipped_weights, write


@dataclass(frozen=True)
class Column:
    """What a cell shows: those metrics of a method that the row has, with this number of threads or any."""

    method: str
    metrics: tuple[str, ...]
    threads: int | None = None


@dataclass(frozen=True)
class Table:
    """One table of a document.

    Attributes
    ----------
    document : str
        Path from the root of the repository; empty for a table that is only printed.
    source : str
        Results file without its ending.
    head : tuple of str
        Headings of the cells that name a row: the parts of the row's name between commas.
    columns : dict of Column
        By heading.
    rows : tuple of str
        Rows to show, in this order; all that fill a column where empty.
    """

    document: str
    source: str
    head: tuple[str, ...]
    columns: dict[str, Column]
    rows: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """Return the table in Markdown."""
        columns = [self._cells(column) for column in self.columns.values()]
        rows = self.rows or tuple(
            r for r in dict.fromkeys(x.row for x in read(self.source)) if any(r in c for c in columns)
        )
        lines = [_line([*self.head, *self.columns]), "|---" * (len(self.head) + len(self.columns)) + "|"]
        names = (row.split(", ", len(self.head) - 1) for row in rows)
        return lines + [
            _line([*name, *(column.get(row, "") for column in columns)]) for name, row in zip(names, rows, strict=True)
        ]

    def _cells(self, column: Column) -> dict[str, str]:
        """Return the cells of a column by row."""
        cells: dict[str, list[str]] = {}
        records = [r for r in read(self.source) if r.method == column.method and column.threads in (None, r.threads)]
        for metric in column.metrics:
            for record in (r for r in records if r.metric == metric):
                cells.setdefault(record.row, []).append(METRICS[metric].form.format(record.value))
        return {row: ", ".join(values) for row, values in cells.items()}


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


_PEAKS = ("pr_area", "angular_error")
_CARD = ("pr_area", "angular_error", "narrow_f1")
_COSTS = ("speedup", "saving", "time_share", "memory_share", "difference", "seconds")
_TRACTS = ("valid", "invalid", "overlap", "overreach", "lines_per_second")
_NORMALISED = ("off", "global", "bias")
_ROUNDED = ("peak_change", "count_change", "voxels_changed", "pr_area_change", "time_share")
_BROAD = ("amortised", "msmt_csd", "rumba", "force")
_PROTOCOLS = ("HCP, 30", "ABCD, 30", "ABCD, 15", "b1000, 30", "b1000, 15")
_SINGLE = ("single 8x8", "dispersed 18x18", "dispersed 24x24", "fanned 20x8", "fanned 26x8", "bent, radius 6")
_VOLUMES = ("volumes", "protocol", "SNR", "number, size")
_DEVELOPMENT = (
    "dispersed 23x23",
    "fanned 20x8",
    "fanned 25x8",
    "crossing 41, 9x9, 60/40",
    "crossing 41, 14x14, 50/50",
    "crossing 60, 19x19, 60/40",
)

TABLES = {
    "accuracy": Table(
        "README.md",
        "accuracy",
        _VOLUMES,
        {
            "shd_bids": Column("amortised", _PEAKS),
            "RUMBA-SD with TV": Column("rumba_tv", _PEAKS),
            "MRtrix3 `msmt_csd`": Column("msmt_csd", _PEAKS),
            "dipy CSD": Column("dipy_csd", _PEAKS),
        },
        rows=(
            "crossing, 4 shells x 90, 30, 2 x 20^3",
            "crossing, ABCD, 30, 2 x 20^3",
            "crossing, b1000 x 30, 30, 2 x 20^3",
        ),
    ),
    "card": Table(
        "shd_bids/data/MODEL_CARD.md",
        "accuracy",
        _VOLUMES,
        {
            "these weights": Column("amortised", _CARD),
            "RUMBA-SD with TV": Column("rumba_tv", _CARD),
            "MRtrix3 `msmt_csd`": Column("msmt_csd", _CARD),
            "truth at degree 18": Column("truth", _CARD),
        },
    ),
    "trained": Table(
        "shd_bids/data/MODEL_CARD.md",
        "trained",
        ("protocol", "SNR", "bundles"),
        {
            name: Column(method, ("one_peak", "both_found", "first_error"))
            for name, method in (
                ("these weights", "shipped"),
                ("recipe, seed 41", "recipe_41"),
                ("recipe, seed 42", "recipe_42"),
            )
        },
        rows=tuple(f"{volume}, {name}" for volume in ("ABCD, 30", "b1000, 30", "b1000, 15") for name in _DEVELOPMENT),
    ),
    "heldout": Table(
        "shd_bids/data/MODEL_CARD.md",
        "heldout",
        ("scan", "b (s/mm²)", "folds"),
        {name: Column(name, ("rmse", "rmse_median")) for name in ("amortised", "msmt_csd")},
    ),
    "hallucination": Table(
        "",
        "hallucination",
        ("directions", "SNR"),
        {
            f"{label}: `{name}`": Column(name, (metric,))
            for metric, label in (("gm", "GM"), ("csf", "CSF"), ("single", "one fibre"))
            for name in ("amortised", "msmt_csd")
        },
    ),
    "networks": Table(
        "",
        "networks",
        ("protocol", "SNR", "size", "training"),
        {
            name: Column(name, ("pr_area", "angular_error", "f1"))
            for name in ("published", "shd", "rt_esd", "esd", "conditioned", "amortised", "msmt_csd")
        },
    ),
    "objectives": Table(
        "",
        "objectives",
        ("volumes", "protocol", "SNR", "size, training"),
        {
            f"{label}{', refined' if tail else ''}": Column(name + tail, ("pr_area", "angular_error"))
            for name, label in (("supervised", "the truth"), ("paper", "the losses of the paper"))
            for tail in ("", ", refined")
        },
    ),
    "tracts": Table(
        "",
        "tracts",
        ("protocol", "SNR", "volumes x streamlines"),
        {
            "shd_bids `prob`": Column("prob", _TRACTS),
            "MRtrix3 iFOD2": Column("iFOD2", _TRACTS),
            "shd_bids `det`": Column("det", _TRACTS),
            "MRtrix3 SD_STREAM": Column("SD_STREAM", _TRACTS),
        },
    ),
    "connectomes": Table(
        "",
        "connectomes",
        ("protocol", "SNR", "volumes x streamlines"),
        {
            label: Column(name, ("correlation", "true_correlation", "false_share"))
            for label, name in (
                ("shd_bids, weighted", "weighted"),
                ("shd_bids, counted", "counted"),
                ("`tcksift2`, same streamlines", "SIFT2"),
                ("`tcksift2`, iFOD2", "iFOD2 SIFT2"),
            )
        },
    ),
    "whole_tracts": Table(
        "",
        "whole_tracts",
        ("scan", "part", "streamlines"),
        {
            "`prob`: streamlines a second, memory": Column("prob", ("lines_per_second", "peak_gb")),
            "iFOD2": Column("iFOD2", ("lines_per_second",)),
            "weights": Column("weights", ("seconds", "peak_gb")),
            "ten connectomes": Column("connectomes", ("seconds", "peak_gb")),
        },
    ),
    "anatomy": Table(
        "",
        "whole_tracts",
        ("scan", "part", "streamlines"),
        {METRICS[metric].label: Column("prob", (metric,)) for metric in ("through_fluid", "ends_in_white", "symmetry")}
        | {"through fluid without anatomy (%)": Column("prob, no anatomy", ("through_fluid",))},
    ),
    "tissue": Table(
        "",
        "tissue",
        ("protocol", "SNR", "bundle, standard deviations in degrees"),
        {name: Column(name, ("one_peak", "first_error")) for name in _BROAD},
        rows=tuple(f"{protocol}, {bundle}" for protocol in _PROTOCOLS for bundle in _SINGLE),
    ),
    "crossings": Table(
        "",
        "tissue",
        ("protocol", "SNR", "angle in degrees, width of each, shares"),
        {name: Column(name, ("both_found",)) for name in _BROAD},
        rows=tuple(
            f"{protocol}, crossing {angle}, {width}, 50/50"
            for protocol in _PROTOCOLS
            for angle in (40, 60, 90)
            for width in ("8x8", "20x20")
        ),
    ),
    "limits": Table(
        "",
        "limits",
        ("protocol", "SNR", "angle in degrees, width of each"),
        {"nearest single bundle (degrees)": Column("Gaussian", ("nearest_along", "nearest_across"))}
        | {
            f"{seen}, {form}": Column(form, (metric,))
            for form in ("Gaussian", "any flatness")
            for metric, seen in (("found_1", "one voxel"), ("found_27", "27 voxels"))
        },
        rows=tuple(
            f"{protocol}, crossing {crossing}"
            for protocol in _PROTOCOLS
            for crossing in ("20, 8x8", "30, 8x8", "40, 8x8")
        ),
    ),
    "invivo": Table(
        "",
        "invivo",
        ("scan", "voxels"),
        {
            f"{METRICS[metric].label}: `{name}`": Column(name, (metric,))
            for metric in ("one_peak", "first_error", "three_peaks", "with_peak")
            for name in ("amortised", "msmt_csd")
        },
    ),
    "intervals": Table(
        "",
        "uncertainty",
        ("protocol", "SNR", "voxels of"),
        {METRICS[metric].label: Column("amortised", (metric,)) for metric in ("coverage", "interval", "dispersion")},
    ),
    "normalisation": Table(
        "",
        "normalisation",
        ("second site",),
        {f"`--normalise {mode}`": Column(mode, ("density_difference", "density_spread")) for mode in _NORMALISED},
    ),
    "precision": Table(
        "",
        "precision",
        ("data",),
        {
            f"{name}: {METRICS[metric].label}": Column(name, (metric,))
            for name in ("mixed", "bf16")
            for metric in _ROUNDED
        },
    ),
    "threads": Table("", "threads", ("work",), {"times faster": Column("one thread each", ("speedup",))}),
    "whole_brain": Table(
        "",
        "whole_brain",
        ("voxels", "directions"),
        {
            "shd_bids, one thread": Column("amortised", ("seconds", "peak_gb"), threads=1),
            "shd_bids, two threads": Column("amortised", ("seconds", "peak_gb"), threads=2),
            "MRtrix3, two threads": Column("msmt_csd", ("seconds",), threads=2),
        },
    ),
    "engine": Table(
        "",
        "engine",
        ("quantity",),
        {
            "one thread": Column("shd_bids", _COSTS, threads=1),
            "two threads": Column("shd_bids", _COSTS, threads=2),
            "PyTorch alone": Column("pytorch", _COSTS, threads=1),
        },
    ),
}


def stale(*, drop: bool = False) -> list[str]:
    """Describe the recorded figures of other weights than the shipped ones, and delete them if asked."""
    now = shipped_weights()
    found = []
    for name in sorted(file.stem for file in FOLDER.glob("*.csv")):
        records = read(name)
        old = [record for record in records if record.weights_sha not in ("", now)]
        found += [f"{name}: {r.row}, {r.method}, {r.metric} ({r.weights_sha}, {r.date})" for r in old]
        if drop and old:
            write(name, [record for record in records if record not in old])
    return found


def write_tables() -> list[str]:
    """Put every table into its document and return the documents that changed."""
    changed = []
    for name in dict.fromkeys(table.document for table in TABLES.values() if table.document):
        path = ROOT / name
        text = path.read_text(encoding="utf-8")
        new = with_tables(text, {k: t.lines() for k, t in TABLES.items() if t.document == name})
        if new != text:
            path.write_text(new, encoding="utf-8")
            changed.append(name)
    return changed


def with_tables(text: str, tables: dict[str, list[str]]) -> str:
    """Return a document with its tables replaced; ``ValueError`` where the place of one is missing."""
    for name, lines in tables.items():
        begin, end = f"<!-- {name} -->\n", "<!-- end -->"
        before, found, rest = text.partition(begin)
        if not found or end not in rest:
            raise ValueError(f"no place for the table {name}: expected {begin.strip()} and {end}")
        text = before + begin + "\n".join(lines) + "\n" + end + rest.partition(end)[2]
    return text


def main() -> int:
    """Print or write the tables, or list stale figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--stale", action="store_true")
    parser.add_argument("--drop", action="store_true")
    options = parser.parse_args()
    if options.stale or options.drop:
        print(*stale(drop=options.drop), sep="\n")
    elif options.write:
        print(*write_tables(), sep="\n")
    else:
        for name, table in TABLES.items():
            print(f"\n{name} {table.document}\n", *table.lines(), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
