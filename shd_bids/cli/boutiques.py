"""The command line as a Boutiques descriptor, schema 0.5: ``python -m shd_bids.cli.boutiques`` prints it."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import Field, fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

from shd_bids import __version__
from shd_bids.cli.parser import DESCRIPTION
from shd_bids.option import flag, option_of
from shd_bids.settings import Settings

__all__ = ["descriptor"]

IMAGE = "shd_bids"

EXIT_CODES = {
    1: "some series failed, the others finished",
    2: "wrong call",
    65: "input data are bad",
    66: "nothing matched",
    69: "the device asked for, or a compiled part of the package, is absent",
    70: "internal error",
    73: "an output cannot be written",
    78: "network weights are damaged or do not fit",
    129: "ended by SIGHUP",
    130: "ended by SIGINT",
    143: "ended by SIGTERM",
}

OUTPUTS = (
    ("description", "Description of the derivative data set", "[OUTPUT_DIR]/dataset_description.json", False),
    ("reports", "One page for each subject or session", "[OUTPUT_DIR]/sub-*.html", True),
    ("maps", "Harmonics, peaks and measures", "[OUTPUT_DIR]/sub-*/dwi/*_dwimap.nii.gz", True),
    ("tractograms", "Streamlines", "[OUTPUT_DIR]/sub-*/dwi/*_tractogram.*", True),
)

AS_TEXT = ("mem", "device", "weights", "network")
"""Options whose values are words, numbers with units, or paths."""


def descriptor() -> dict[str, Any]:
    """Return the descriptor."""
    inputs = [_input(item, kind) for item, kind in _options()]
    given = sorted(inputs, key=lambda entry: "command-line-flag" in entry)  # what is given by its place comes first
    return {
        "name": "shd_bids",
        "description": " ".join(DESCRIPTION.split()),
        "tool-version": __version__,
        "schema-version": "0.5",
        "command-line": " ".join(["shd_bids", *(entry["value-key"] for entry in given)]),
        "container-image": {"type": "docker", "image": f"{IMAGE}:{__version__}"},
        "inputs": inputs,
        "output-files": [
            {"id": key, "name": name, "path-template": path, "optional": True} | ({"list": True} if is_list else {})
            for key, name, path, is_list in OUTPUTS
        ],
        "error-codes": [{"code": code, "description": text} for code, text in EXIT_CODES.items()],
        "suggested-resources": {"cpu-cores": 4, "ram": 8, "walltime-estimate": 3600},
        "tags": {"domain": ["neuroimaging", "diffusion MRI"], "type": "BIDS App"},
    }


def _options() -> Iterator[tuple[Field, Any]]:
    types = get_type_hints(Settings)
    everything = {item.name: item for item in fields(Settings)}
    places = ("bids_dir", "output_dir", "analysis_level")
    for name in (*places, *(name for name in everything if name not in places)):
        yield everything[name], types[name]


def _input(item: Field, annotation: Any) -> dict[str, Any]:
    """Return the entry of one option."""
    known = option_of(item)
    entry = {
        "id": item.name,
        "name": item.name.replace("_", " "),
        "description": known.help,
        "value-key": f"[{item.name.upper()}]",
        "optional": not known.is_positional,
        **_type(item, annotation),
    }
    if not known.is_positional:
        entry["command-line-flag"] = flag(item.name)
        if item.name == "dry_run":  # a word behind it would be taken for its value
            entry["command-line-flag-separator"] = "="
    if known.choices:
        entry["value-choices"] = list(known.choices)
    return entry


def _type(item: Field, annotation: Any) -> dict[str, Any]:
    """Return the type of an option in the terms of Boutiques."""
    known = option_of(item)
    is_list = getattr(annotation, "__origin__", None) is tuple or annotation == Mapping[str, Path]
    kind = get_args(annotation)[0] if get_args(annotation) else annotation
    if kind is bool or item.name == "verbose":
        return {"type": "Flag"}
    if kind in (int, float) and item.name not in AS_TEXT:
        low, high = known.bounds or (None, None)
        limits = {"minimum": low, "maximum": high} if known.bounds else {}
        return {"type": "Number", "integer": kind is int, **limits}
    is_file = known.is_file and not known.words
    return {"type": "File" if is_file else "String"} | ({"list": True} if is_list else {})


if __name__ == "__main__":
    print(json.dumps(descriptor(), indent=2))
