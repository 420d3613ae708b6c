"""From an option group to arguments of argparse: spellings, types and help follow from each field."""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

from shd_bids.option import Options, flag, option_of
from shd_bids.options import is_label_file

__all__ = ["TYPES", "absolute", "add_options", "add_positionals"]

METAVARS = {int: "N", float: "X", Path: "FILE"}
UNITS = {"K": 1e-6, "M": 1e-3, "G": 1.0, "T": 1e3}


def add_options(group: Any, options: type[Options]) -> None:
    """Add the long options of an option group to a group of arguments."""
    types = get_type_hints(options)
    for item in fields(options):
        described = option_of(item)
        if not described.is_positional:
            spellings = sorted((flag(item.name), *described.flags), key=lambda text: text.startswith("--"))
            group.add_argument(*spellings, dest=item.name, **_attributes(item, types[item.name]))


def add_positionals(parser: argparse.ArgumentParser, options: type[Options]) -> None:
    """Add the arguments of an option group that are given by their place."""
    types = get_type_hints(options)
    for item in fields(options):
        if option_of(item).is_positional:
            parser.add_argument(item.name, **_attributes(item, types[item.name], with_default=False))


def absolute(text: str) -> Path:
    """Return the absolute path of a word of the command line, ``~`` being the home folder."""
    return Path(text).expanduser().absolute() if text.startswith("~/") else Path(text).absolute()


def _attributes(item: Field, annotation: Any, *, with_default: bool = True) -> dict[str, Any]:
    """Return how argparse is to read one option: from its type, with the few that are read in their own way."""
    described = option_of(item)
    attributes = {"help": _help(item) if with_default else described.help}
    if annotation is bool:
        return attributes | {"action": "store_true"}
    if item.name == "verbose":
        return attributes | {"action": "count"}
    if annotation == Mapping[str, Path]:
        return attributes | {"action": _AddDatasets, "nargs": "+", "metavar": described.metavar}
    is_list = getattr(annotation, "__origin__", None) is tuple
    kind = get_args(annotation)[0] if get_args(annotation) else annotation
    if is_list:
        attributes |= {"nargs": "+"} if described.choices else {"nargs": "+", "action": "extend"}
    if described.choices:
        return attributes | {"choices": described.choices}
    metavar = described.metavar or METAVARS.get(kind, "")
    if described.words:
        return attributes | {
            "type": _word_or_path(described.words, kind),
            "metavar": _braces(*described.words, described.metavar or "PATH"),
        }
    if kind in (int, float) and kind is not annotation:
        return attributes | {"type": _number_or_auto(kind), "metavar": _braces("auto", metavar)}
    return attributes | {"type": TYPES.get(item.name, absolute if kind is Path else kind), "metavar": metavar}


def _help(item: Field) -> str:
    """Return the help of an option with its default, unless it tells that itself or has none worth telling."""
    text = option_of(item).help.replace("%", "%%")
    default = "auto" if item.default is None and item.type in (int | None, float | None) else item.default
    if "(default" in text or default is None or default is False or default in (MISSING, ()) or item.name == "verbose":
        return text
    if isinstance(default, tuple):
        default = " ".join(default)
    return f"{text} (default: {default:g})" if isinstance(default, float) else f"{text} (default: {default})"


def _braces(*words: str) -> str:
    return "{" + ",".join(words) + "}"


class _AddDatasets(argparse.Action):
    """Collect ``NAME=PATH`` words of one or several occurrences; a bare path is named after its folder."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        collected = dict(getattr(namespace, self.dest, {}))
        for word in values:
            name, _, path = word.rpartition("=")
            collected[name or Path(path).absolute().name] = absolute(path)
        setattr(namespace, self.dest, collected)


def _label(prefix: str) -> Callable[[str], str]:
    def label(text: str) -> str:
        """Strip the prefix; what is left must be a BIDS label."""
        value = text.removeprefix(prefix)
        if not value.replace("+", "").isalnum():
            raise argparse.ArgumentTypeError(f"{text!r} is not a BIDS label (letters and digits)")
        return value

    return label


def _number_or_auto(kind: type) -> Callable[[str], Any]:
    def number(text: str) -> Any:
        try:
            return None if text == "auto" else kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"found {text!r}, expected auto or a number") from None

    return number


def _word_or_path(words: tuple[str, ...], kind: Callable[[Any], Any]) -> Callable[[str], Any]:
    return lambda text: kind(text if text in words else absolute(text))


def _gigabytes(text: str) -> float:
    """Return GB; a number without unit is MB, as in other BIDS apps."""
    digits = text.upper().removesuffix("IB").removesuffix("B")
    unit = digits[-1:] if digits[-1:] in UNITS else "M"
    try:
        return float(digits.rstrip("KMGT")) * UNITS[unit]
    except ValueError:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a size like 8G or 8000M") from None


def _file_or_label(text: str) -> str:
    """Return the absolute path of a label image, else the name of a parcellation."""
    return str(absolute(text)) if is_label_file(text) else _label("")(text)


TYPES: dict[str, Callable[[str], Any]] = {
    "participant_label": _label("sub-"),
    "session_label": _label("ses-"),
    "mem": _gigabytes,
    "parcellation": _file_or_label,
}
"""Options read in a way of their own."""
