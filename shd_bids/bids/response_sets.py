"""The sets of mean responses that the group level wrote, one for each protocol, and which of them serves a series."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from shd_bids.bids.names import group_path, sidecar_path
from shd_bids.bids.protocol import Protocol
from shd_bids.bids.run import DWIRun
from shd_bids.errors import InputError
from shd_bids.files import read_json_object
from shd_bids.response import TISSUES
from shd_bids.settings import Settings

__all__ = ["ResponseSet", "label_protocols", "read_sets", "response_key", "with_responses"]


@dataclass(frozen=True, eq=False)
class ResponseSet:
    """Mean responses of one protocol.

    Attributes
    ----------
    label : str
        ``acq`` in the names of its files.
    protocol : Protocol
    files : tuple of Path
        Responses, white matter first.
    sidecars : mapping
        Tissue -> content of the JSON beside its file.
    """

    label: str
    protocol: Protocol
    files: tuple[Path, ...]
    sidecars: Mapping[str, Mapping[str, Any]]


def response_key(tissue: str) -> str:
    """Return the key of a response in the table of outputs."""
    return f"{tissue}_response"


def read_sets(output_dir: Path) -> list[ResponseSet]:
    """Return the sets that a derivative data set holds, by label.

    Raises
    ------
    InputError
        A sidecar is damaged or not of the group level.
    """
    pattern = group_path(output_dir, response_key("wm"), "*").name
    labels = sorted(_label(path) for path in output_dir.glob(pattern))
    return [_read_set(output_dir, label) for label in sorted(labels, key=lambda label: (len(label), label))]


def _label(path: Path) -> str:
    return path.name.partition("_acq-")[2].partition("_")[0]


def _read_set(output_dir: Path, label: str) -> ResponseSet:
    paths = {tissue: group_path(output_dir, response_key(tissue), label) for tissue in TISSUES}
    paths = {tissue: path for tissue, path in paths.items() if path.is_file()}
    sidecars = {tissue: read_json_object(sidecar_path(path)) for tissue, path in paths.items()}
    try:
        protocol = Protocol.from_dict(sidecars["wm"]["Protocol"])
    except (KeyError, TypeError, ValueError):
        path = sidecar_path(paths["wm"])
        raise InputError(f"{path}: no protocol as the group level writes it; remove the set, or restore it") from None
    return ResponseSet(label, protocol, tuple(paths.values()), sidecars)


def label_protocols(protocols: Iterable[Protocol], sets: Sequence[ResponseSet]) -> dict[Protocol, str]:
    """Return a label for each protocol, that of its set where there is one."""
    labels = {item.protocol: item.label for item in sets}
    number = 1
    for protocol in protocols:
        while protocol not in labels and f"protocol{number}" in labels.values():
            number += 1
        labels.setdefault(protocol, f"protocol{number}")
    return labels


def with_responses(runs: Sequence[DWIRun], settings: Settings) -> tuple[DWIRun, ...]:
    """Return the series with the responses given to each: none, the same files to all, or the set of its protocol.

    Raises
    ------
    InputError
        The group level wrote no set of the protocol of a series; all such series are named.
    """
    if not settings.has_group_responses:
        return tuple(replace(run, responses=settings.responses) for run in runs)
    sets = read_sets(settings.output_dir)
    served = [(run, _set_of(run, sets)) for run in runs]
    if problems := [_unserved(run, sets) for run, found in served if found is None]:
        raise InputError(problems)
    return tuple(replace(run, responses=found.files) for run, found in served)


def _set_of(run: DWIRun, sets: Sequence[ResponseSet]) -> ResponseSet | None:
    own = Protocol.of(run)
    return next((item for item in sets if item.protocol.agrees_with(own)), None)


def _unserved(run: DWIRun, sets: Sequence[ResponseSet]) -> str:
    there = "; ".join(f"{item.label} ({item.protocol})" for item in sets) or "none"
    return (
        f"{run.prefix}: --responses group: no set for its protocol ({Protocol.of(run)}), found {there}; run participant "
        "--level response and then group with this series"
    )
