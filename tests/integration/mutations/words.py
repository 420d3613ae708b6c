"""JSON, TOML, names and words of the call that nobody expects."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import numpy as np

from shd_bids.option import flag
from shd_bids.settings import OPTIONS, Settings
from tests.integration.mutations.base import ANY, REFUSED, Change, Tree, mutated_json, odd_json, one_of

TEXTS = (
    "",
    " ",
    "-1",
    "0",
    "1e999",
    "nan",
    "inf",
    "auto",
    "none",
    "../..",
    "/",
    "~",
    "a" * 300,
    "\u202e",
    "é",
    "*",
    "'",
)
NAMES = ("01", "1" * 200, "ä", "a b", "a\nb", "<b>x", "a_b", "", "-", "01-02", "\udcff", "$(id)", "a'b", "*", "..")


def sidecars(tree: Tree, rng: np.random.Generator) -> Change:
    """Change the metadata of the image or the description of the data set."""
    path = tree.raw / "dataset_description.json" if rng.random() < 0.5 else tree.table("json")
    if not path.exists():
        path.write_text(json.dumps({"EchoTime": 0.08, "SpatialReference": "orig", "RepetitionTime": 3.0}))
    content = json.loads(path.read_text())
    content |= {"GeneratedBy": [{"Name": "dcm2niix"}], "DatasetType": "raw", "Authors": ["A"]}
    changed, what = mutated_json(content, rng)
    text = json.dumps(changed)
    kinds: dict[str, tuple[Callable[[], bytes], str]] = {
        what: (text.encode, ANY),
        "deep": (lambda: b"[" * 100_000 + b"]" * 100_000, REFUSED),
        "deep object": (lambda: b'{"a":' * 900 + b"1" + b"}" * 900, ANY),
        "truncated": (lambda: text[: int(rng.integers(len(text)))].encode(), ANY),
        "UTF-16": (lambda: text.encode("utf-16"), REFUSED),
        "Latin 1": (lambda: json.dumps({**content, "Name": "é"}, ensure_ascii=False).encode("latin-1"), REFUSED),
        "not JSON": (lambda: b"{'Name': 'x'}", REFUSED),
        "twice": (lambda: b'{"Name": "a", "Name": ["b"], "BIDSVersion": NaN}', ANY),
        "empty": (lambda: b"", REFUSED),
        "another value": (lambda: json.dumps(odd_json(rng)).encode(), ANY),
    }
    kind = what if rng.random() < 0.6 else one_of(rng, list(kinds))
    make, expect = kinds[kind]
    path.write_bytes(make())
    return Change(f"{path.name}: {kind}", expect)


def filters(tree: Tree, rng: np.random.Generator) -> Change:
    """Give a filter file with odd queries."""
    path = tree.given / "filter.json"
    content = {"dwi": {"acquisition": None, "run": [1, 2], "suffix": "dwi"}, "mask": {"desc": "brain"}, "bold": {}}
    changed, what = mutated_json(content, rng)
    if rng.random() < 0.3:
        entity = one_of(
            rng, ["acq", "run", "space", "extension", "part", "x", "subject", "scope", "return_type", "target"]
        )
        changed = {"dwi": {entity: odd_json(rng)}}
        what = json.dumps(changed)[:60]
    path.write_text(json.dumps(changed))
    if rng.random() < 0.1:
        path.write_bytes(rng.bytes(100))
        what = "noise"
    return Change(what, ANY, ("--bids-filter-file", str(path)))


def configurations(tree: Tree, rng: np.random.Generator) -> Change:
    """Give options in a file, some of them odd."""
    path = tree.given / "config.toml"
    names = [item.name for item in fields(Settings)]
    values = (
        "-1",
        "0",
        "1e999",
        "nan",
        "true",
        '"x"',
        "[]",
        '["a", 1]',
        "{}",
        "2020-01-01",
        "99999999999999999999",
        '""',
    )
    chosen = [names[int(rng.integers(len(names)))] for _ in range(int(rng.integers(1, 4)))]
    lines = [f"{name} = {one_of(rng, values)}" for name in dict.fromkeys(chosen)]
    kinds: dict[str, Callable[[], bytes]] = {
        "; ".join(lines): lambda: "\n".join(lines).encode(),
        "deep": lambda: b"fit = " + b"[" * 50_000,
        "unknown": lambda: b"answer = 42",
        "noise": lambda: rng.bytes(200),
        "empty": lambda: b"",
        "dotted": lambda: b"a.b.c.d = 1\n[fit]\nx = 1",
        "Latin 1": lambda: "weights = 'é'".encode("latin-1"),
    }
    kind = next(iter(kinds)) if rng.random() < 0.7 else one_of(rng, list(kinds))
    path.write_bytes(kinds[kind]())
    is_wrong = kind in ("deep", "unknown", "noise", "dotted", "Latin 1")
    return Change(kind, REFUSED if is_wrong else ANY, ("--config-file", str(path)))


def names(tree: Tree, rng: np.random.Generator) -> Change:
    """Rename files and folders."""
    label = one_of(rng, NAMES)
    kinds: dict[str, Callable[[], object]] = {
        "subject": lambda: _rename_subject(tree, label),
        "acquisition": lambda: _rename_series(tree, f"sub-01_acq-{label}_dwi"),
        "entity twice": lambda: _rename_series(tree, "sub-01_run-1_run-2_dwi"),
        "other subject": lambda: _rename_series(tree, "sub-02_dwi"),
        "no suffix": lambda: _rename_series(tree, "sub-01"),
        "suffix only": lambda: _rename_series(tree, "dwi"),
        "odd entity": lambda: _rename_series(tree, f"sub-01_{label}-1_dwi"),
        "both forms": lambda: shutil.copy(tree.dwi, f"{tree.stem}.nii"),
        "capitals": lambda: tree.dwi.rename(f"{tree.stem}.NII.GZ"),
        "odd neighbour": lambda: _touch(tree.dwi.parent / f"{label or 'x'}.txt"),
        "odd series": lambda: shutil.copy(tree.dwi, tree.dwi.parent / f"sub-01_acq-{label}_dwi.nii.gz"),
        "session": lambda: shutil.copytree(tree.dwi.parent, tree.raw / "sub-01" / f"ses-{label}" / "dwi"),
        "long": lambda: _rename_series(tree, f"sub-01_acq-{'a' * 225}_dwi"),
        "deep": lambda: (tree.dwi.parent / "/".join(["d" * 100] * 20)).mkdir(parents=True),
    }
    kind = one_of(rng, list(kinds))
    try:
        kinds[kind]()
    except (OSError, shutil.Error):
        kind += " (not possible here)"
    return Change(f"{kind}: {label!a:.20}")


def arguments(tree: Tree, rng: np.random.Generator) -> Change:
    """Give options values that they may not have, or words that are not UTF-8."""
    known = [
        name for name, option in OPTIONS.items() if not option.is_positional and name not in ("work_dir", "dry_run")
    ]
    name = one_of(rng, known)
    places = (tree.raw, tree.dwi, tree.root / "absent", "/dev/zero", os.fsdecode(b"\xff\xfe"), "/dev/stdin")
    value = one_of(rng, [*TEXTS, *map(str, places)])
    words = [(flag(name), value), (flag(name),), (flag(name), value, value)][int(rng.choice(3, p=[0.8, 0.1, 0.1]))]
    return Change(ascii(" ".join(words))[:80], ANY, words)


def _rename_subject(tree: Tree, label: str) -> None:
    for path in sorted(tree.dwi.parent.iterdir()):
        path.rename(path.with_name(path.name.replace("sub-01", f"sub-{label}")))
    (tree.raw / "sub-01").rename(tree.raw / f"sub-{label}")


def _rename_series(tree: Tree, name: str) -> None:
    for path in sorted(tree.dwi.parent.iterdir()):
        path.rename(path.with_name(name + "." + path.name.partition(".")[2]))


def _touch(path: Path) -> None:
    path.write_text("x")
