"""Tables, responses, weights and links that are damaged, or not what their names say."""

import contextlib
import json
import os
import shutil
import socket
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.integration.mutations.base import ANY, REFUSED, TOLD, WORDS, Change, Tree, mutated_json, one_of


def tables(tree: Tree, rng: np.random.Generator) -> Change:
    """Change b-values or directions."""
    extension = one_of(rng, ["bval", "bvec"])
    path = tree.table(extension)
    values = np.loadtxt(path, ndmin=2)
    n = values.shape[1]
    some = rng.permutation(n)[: int(rng.integers(1, n))]
    word = one_of(rng, WORDS)
    lines = [line.split() for line in path.read_text().splitlines()]
    row, column = int(rng.integers(len(lines))), int(rng.integers(n))

    def with_word() -> str:
        lines[row][column] = word
        return _text(lines)

    def exchanged() -> str:
        other = tree.table("bvec" if extension == "bval" else "bval")
        text = other.read_text()
        other.write_text(path.read_text())
        return text

    text, numbers = path.read_text(), values.tolist()
    kinds: dict[str, tuple[Callable[[], str | bytes], str]] = {
        f"{word!r} in row {row}": (with_word, REFUSED if word not in ("", "1e-320", "-5") else ANY),
        "a column less": (lambda: _text(np.delete(values, column, axis=1).tolist()), REFUSED),
        "a column more": (lambda: _text(np.insert(values, column, 0.5, axis=1).tolist()), REFUSED),
        "a ragged row": (lambda: text.rsplit(maxsplit=1)[0], REFUSED),
        "files exchanged": (exchanged, REFUSED),
        "times 1000": (lambda: _text((1000 * values).tolist()), TOLD),
        "divided by 1000": (lambda: _text((values / 1000).tolist()), TOLD),
        "zeros": (lambda: _text((0 * values).tolist()), REFUSED),
        "some zeros": (lambda: _text(np.where(np.isin(np.arange(n), some), 0, values).tolist()), TOLD),
        "some NaN": (lambda: _text(np.where(np.isin(np.arange(n), some), np.nan, values).tolist()), TOLD),
        "one direction for all": (lambda: _text(np.repeat(values[:, -1:], n, axis=1).tolist()), TOLD),
        "columns rolled": (lambda: _text(np.roll(values, 1 + column, axis=1).tolist()), ANY),
        "columns shuffled": (lambda: _text(values[:, rng.permutation(n)].tolist()), ANY),
        "transposed": (lambda: _text(values.T.tolist()), ANY),
        "CRLF and BOM": (lambda: ("\ufeff" + text.replace("\n", "\r\n")).encode(), ANY),
        "UTF-16": (lambda: text.encode("utf-16"), REFUSED),
        "decimal commas": (lambda: _text(numbers).replace(".", ","), REFUSED if "." in _text(numbers) else ANY),
        "tabs and blanks": (lambda: "\n\n  " + text.replace(" ", " \t "), ANY),
        "empty": (lambda: "", REFUSED),
        "noise": (lambda: rng.bytes(500), REFUSED),
        "zero bytes": (lambda: bytes(500), REFUSED),
        "many numbers": (lambda: "1 " * 300_000, REFUSED),
        "sum of tables": (lambda: text + text, REFUSED),
    }
    kind = one_of(rng, list(kinds))
    make, expect = kinds[kind]
    content = make()
    path.write_bytes(content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content)
    return Change(f"{extension}: {kind}", expect)


def responses(tree: Tree, rng: np.random.Generator) -> Change:
    """Give responses of another kind, or none."""
    path = tree.responses[int(rng.integers(3))]
    lines = path.read_text().splitlines()
    rows = [line.split() for line in lines if not line.startswith("#")]
    comments = [line for line in lines if line.startswith("#")]
    word = one_of(rng, WORDS)
    row = int(rng.integers(len(rows)))

    def with_word() -> str:
        rows[row][int(rng.integers(len(rows[row])))] = word
        return "\n".join([*comments, *(" ".join(r) for r in rows)])

    def scaled(factor: float) -> str:
        return "\n".join([*comments, *(" ".join(str(factor * float(v)) for v in r) for r in rows)])

    kinds: dict[str, tuple[Callable[[], str | bytes], str]] = {
        f"{word!r}": (with_word, ANY if word in ("", "1e-320", "-5") else REFUSED),
        "a row less": (lambda: "\n".join(lines[:-1]), REFUSED),
        "a row more": (lambda: "\n".join([*lines, lines[-1]]), REFUSED),
        "no shells": (lambda: "\n".join(line for line in lines if "Shells" not in line), REFUSED),
        "upside down": (lambda: "\n".join([*comments, *(" ".join(r) for r in rows[::-1])]), REFUSED),
        "negative": (lambda: scaled(-1), REFUSED),
        "zero": (lambda: scaled(0), REFUSED),
        "1e300": (lambda: scaled(1e300), REFUSED),
        "a hundredth": (lambda: scaled(0.01), ANY),
        "other shells": (lambda: "\n".join(["# Shells: 0,700,3000", *lines[len(comments) :]]), REFUSED),
        "empty": (lambda: "", REFUSED),
        "noise": (lambda: rng.bytes(400), REFUSED),
    }
    kind = one_of(rng, list(kinds))
    make, expect = kinds[kind]
    content = make()
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return Change(f"{path.name}: {kind}", expect, ("--responses", *map(str, tree.responses)))


def weights(tree: Tree, rng: np.random.Generator) -> Change:
    """Damage weights, or store a configuration that no network has."""
    content = bytearray(tree.weights.read_bytes())
    size = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + size])
    options = ("--weights", str(tree.weights))
    if rng.random() < 0.5:
        place = int(rng.integers(len(content)))
        kinds: dict[str, Callable[[], bytes]] = {
            "truncated": lambda: content[:place],
            "noise": lambda: rng.bytes(len(content)),
            "size of the header": lambda: rng.bytes(8) + content[8:],
            "bytes of the header": lambda: content[: 8 + place % size] + rng.bytes(3) + content[11 + place % size :],
            "NaN": lambda: content[: 8 + size] + b"\xff" * (len(content) - 8 - size),
            "empty": lambda: b"",
        }
        kind = one_of(rng, list(kinds))
        tree.weights.write_bytes(kinds[kind]())
        return Change(kind, ANY if kind == "bytes of the header" else REFUSED, options)
    metadata = header["__metadata__"]
    name = one_of(rng, list(metadata))
    try:
        value = json.loads(metadata[name])
    except ValueError:
        value = metadata[name]
    changed, what = mutated_json(value, rng)
    metadata[name] = json.dumps(changed)
    text = json.dumps(header).encode()
    tree.weights.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + size :])
    return Change(f"metadata {name}: {what}", ANY, options)


def links(tree: Tree, rng: np.random.Generator) -> Change:
    """Put something in the place of a file that is none."""
    places = (tree.dwi, tree.table("bval"), tree.table("bvec"), tree.table("json"), tree.mask)
    path = places[int(rng.integers(len(places)))]
    extra = tree.raw / "sub-01" / one_of(rng, ["dwi", "anat", "dwi/more"]) / "again"
    extra.parent.mkdir(exist_ok=True)
    kinds: dict[str, tuple[Callable[[], object], str]] = {
        "missing": (lambda: path.unlink(), REFUSED),
        "folder": (lambda: (path.unlink(), path.mkdir()), REFUSED),
        "link to itself": (lambda: (path.unlink(), path.symlink_to(path.name)), REFUSED),
        "dangling link": (
            lambda: (path.unlink(), path.symlink_to("../../.git/annex/objects/x/SHA256E-s1.nii")),
            REFUSED,
        ),
        "pipe": (lambda: (path.unlink(), os.mkfifo(path)), REFUSED),
        "socket": (lambda: (path.unlink(), _socket(path)), REFUSED),
        "/dev/zero": (lambda: (path.unlink(), path.symlink_to("/dev/zero")), REFUSED),
        "/dev/null": (lambda: (path.unlink(), path.symlink_to("/dev/null")), REFUSED),
        "link to the data set": (lambda: extra.symlink_to(tree.raw), ANY),
        "link to the root": (lambda: extra.symlink_to(tree.root), ANY),
        "linked file": (lambda: (shutil.move(path, tree.given / "moved"), path.symlink_to(tree.given / "moved")), ANY),
        "linked subject": (
            lambda: (
                shutil.move(tree.raw / "sub-01", tree.given),
                (tree.raw / "sub-01").symlink_to(tree.given / "sub-01"),
            ),
            ANY,
        ),
        "unreadable": (lambda: path.chmod(0), ANY),
    }
    kind = one_of(rng, list(kinds))
    make, expect = kinds[kind]
    make()
    is_needed = path != tree.table("json") or kind not in ("missing", "folder", "dangling link")
    return Change(f"{path.name}: {kind}", expect if is_needed else ANY)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server, contextlib.chdir(path.parent):  # the path of a socket is short
        server.bind(path.name)


def _text(rows: list[list]) -> str:
    return "\n".join(" ".join(value if isinstance(value, str) else f"{value:g}" for value in row) for row in rows)
