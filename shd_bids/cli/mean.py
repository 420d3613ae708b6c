"""The group level: mean responses of each protocol, from those that the participant level estimated."""

import json
import logging
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import TYPE_CHECKING, Any

import numpy as np

from shd_bids.bids import provenance
from shd_bids.bids.dataset import write_dataset_files
from shd_bids.bids.names import OUTPUTS, group_path, output_path, sidecar_path
from shd_bids.bids.protocol import Protocol, by_protocol
from shd_bids.bids.response_sets import ResponseSet, label_protocols, read_sets, response_key
from shd_bids.bids.stages import facts_path
from shd_bids.cli.preflight import require_writable
from shd_bids.errors import InputError, NoInputError
from shd_bids.files import read_json_object, read_text, write_json, write_text
from shd_bids.response import TISSUES
from shd_bids.response.mean import MeanResponses, mean_responses
from shd_bids.response.mrtrix import format_response, parse_response
from shd_bids.response.response import Response, Responses
from shd_bids.settings import Settings

if TYPE_CHECKING:
    from shd_bids.bids.run import DWIRun

__all__ = ["run_mean_responses"]

logger = logging.getLogger("shd_bids")

METHOD = (
    "Median polish of the logarithms of mean signals, one gain per series over all tissues and shells; medians of zonal "
    "coefficients over the mean signal of their shell; without series that differ by over 3.5 robust standard deviations "
    "and over 0.1"
)
GAIN_TOLD = 1.25
"""Factor between the signal of a series and that of its protocol from which on it is told."""


@dataclass(frozen=True, eq=False)
class _NewSet:
    """Mean responses that are to be written, and of which series."""

    label: str
    protocol: Protocol
    names: tuple[str, ...]
    sources: tuple[str, ...]
    members: tuple[Responses, ...]
    mean: MeanResponses


def run_mean_responses(runs: Sequence["DWIRun"], settings: Settings, *, argv: Sequence[str]) -> int:
    """Write the mean responses of each protocol among the series and return the exit code: 1 where series have none.

    Sets of protocols that none of the series has stay as they are.

    Parameters
    ----------
    runs : sequence of DWIRun
        All that were chosen.
    settings : Settings
    argv : sequence of str
        Words of the call, for the record.

    Raises
    ------
    NoInputError
        None of the series has responses.
    """
    from shd_bids.cli.workplace import hold

    if settings.dry_run:
        sets, missing = _make_sets(runs, settings)
        print(json.dumps(_plan(sets, missing), indent=2) if settings.dry_run == "json" else _told(sets))
        for text in missing:
            logger.warning("%s", text)
        return 1 if missing else 0
    require_writable(settings, create=True)
    with hold(settings, {"responses": "responses of the group"}):
        sets, missing = _make_sets(runs, settings)
        write_dataset_files(settings.output_dir, runs, environment=os.environ)
        for item in sets:
            _write(item, settings, command=provenance.command_line(argv))
    for line in _told(sets).splitlines():
        logger.info("%s", line)
    for text in (*missing, *(text for item in sets for text in _doubts(item))):
        logger.warning("%s", text)
    return 1 if missing else 0


def _make_sets(runs: Sequence["DWIRun"], settings: Settings) -> tuple[list[_NewSet], list[str]]:
    """Return the mean responses of each protocol, and why series have none."""
    earlier = read_sets(settings.output_dir)
    found: dict[str, Responses] = {}
    missing = []
    for run in runs:
        try:
            found[run.key] = _estimate_of(run, settings, earlier)
        except InputError as error:
            missing += [f"{run.prefix}: {text}" for text in error.problems]
    members = by_protocol((run for run in runs if run.key in found), [item.protocol for item in earlier])
    if not members:
        raise NoInputError("\n".join(missing))
    labels = label_protocols(members, earlier)
    return [
        _new_set(labels[protocol], protocol, of_it, found, settings) for protocol, of_it in members.items()
    ], missing


def _new_set(
    label: str, protocol: Protocol, runs: Sequence["DWIRun"], found: Mapping[str, Responses], settings: Settings
) -> _NewSet:
    """Return the mean of the series of one protocol."""
    members = tuple(found[run.key] for run in runs)
    sources = (output_path(settings.output_dir, run, response_key("wm")) for run in runs)
    uris = tuple(f"bids::{path.relative_to(settings.output_dir).as_posix()}" for path in sources)
    return _NewSet(label, protocol, tuple(map(_name, runs)), uris, members, mean_responses(members))


def _name(run: "DWIRun") -> str:
    return f"{run.prefix}_space-{run.space}"


def _estimate_of(run: "DWIRun", settings: Settings, earlier: Sequence[ResponseSet]) -> Responses:
    """Return what was estimated from a series, also where the responses beside it are meanwhile those of the group.

    Raises
    ------
    InputError
        There is no estimate, or it is one of other shells.
    """
    paths = {tissue: output_path(settings.output_dir, run, response_key(tissue)) for tissue in TISSUES}
    if not paths["wm"].is_file():
        raise InputError(f"no responses in {settings.output_dir}; run participant --level response first")
    bvalues = [bvalue for bvalue, _ in run.shells]
    found = {
        tissue: parse_response(read_text(path), tissue, bvalues) for tissue, path in paths.items() if path.is_file()
    }
    means = [_rows(item, "wm", "ResponseFunction") for item in earlier]
    if found["wm"].coefficients.tolist() in means or _are_means(run, settings):
        return _kept_estimate(earlier, _name(run), found["wm"].bvalues)
    return Responses(**found)


def _are_means(run: "DWIRun", settings: Settings) -> bool:
    """Whether the participant level says that the responses of a series were those of the group, maybe as they once were."""
    try:
        given = read_json_object(facts_path(settings.output_dir, run, "response"))["given"]
    except (InputError, KeyError):
        return False
    return any(fnmatch(name, group_path(settings.output_dir, response_key("wm"), "*").name) for name in given)


def _kept_estimate(earlier: Sequence[ResponseSet], name: str, bvalues: np.ndarray) -> Responses:
    """Return what was estimated from a series when a set was made of it."""
    item = next((item for item in earlier if _rows(item, "wm", "Series", name)), None)
    if item is None:
        raise InputError(
            "its responses are means of the group level, which were made without it; run participant --level response "
            "without --responses"
        )
    found = {tissue: _rows(item, tissue, "Series", name) for tissue in item.sidecars}
    return Responses(**{
        tissue: Response(tissue, bvalues, np.array(rows)) for tissue, rows in found.items() if rows is not None
    })  # fmt: skip


def _rows(item: ResponseSet, tissue: str, *keys: str) -> Any:
    """Return the coefficients that a sidecar holds under some keys, None where it does not."""
    content: Any = item.sidecars[tissue]
    for key in (*keys, "Coefficients"):
        content = content.get(key) if isinstance(content, Mapping) else None
    return content


def _write(item: _NewSet, settings: Settings, *, command: str) -> None:
    """Write a set; a response comes after its sidecar, so that none is ever without."""
    present = {response.tissue: response for response in item.mean.responses.tissues}
    for tissue in TISSUES:
        path = group_path(settings.output_dir, response_key(tissue), item.label)
        if tissue in present:
            write_json(sidecar_path(path), _sidecar(item, present[tissue], command=command))
            write_text(path, format_response(present[tissue]))
        else:
            path.unlink(missing_ok=True)
            sidecar_path(path).unlink(missing_ok=True)


def _sidecar(item: _NewSet, response: Response, *, command: str) -> dict[str, Any]:
    """Return what is said of the mean response of a tissue: its protocol, members, and those left out."""
    written = parse_response(format_response(response), response.tissue)
    estimates = [{own.tissue: own for own in member.tissues}.get(response.tissue) for member in item.members]
    series = {
        name: {"Gain": gain, "Distance": distance, **({"Coefficients": own.coefficients.tolist()} if own else {})}
        for name, gain, distance, own in zip(
            item.names, item.mean.gain.tolist(), item.mean.distance.tolist(), estimates, strict=True
        )
    }
    left_out = [name for name, is_out in zip(item.names, item.mean.is_outlier, strict=True) if is_out]
    return {
        "Description": f"{OUTPUTS[response_key(response.tissue)]['description']}; mean of the series of one protocol",
        "Sources": list(item.sources),
        "Protocol": item.protocol.to_dict(),
        "ResponseFunction": {"Type": "zsh", "Coefficients": written.coefficients.tolist()},
        "Shells": response.bvalues.tolist(),
        "Method": METHOD,
        "Members": [name for name in item.names if name not in left_out],
        "LeftOut": left_out,
        "Series": series,
        "Command": command,
        "Software": provenance.software(),
    }


def _told(sets: Sequence[_NewSet]) -> str:
    """Return one line for each set."""
    return "\n".join(
        f"{item.label}: {item.protocol}: {', '.join(r.tissue for r in item.mean.responses.tissues)} of "
        f"{(~item.mean.is_outlier).sum()} series"
        for item in sets
    )


def _doubts(item: _NewSet) -> Iterable[str]:
    """Yield which series were left out of a set, and whose signal has another scale than that of the others."""
    usual = np.median(item.mean.distance)
    for name, gain, distance, is_out in zip(
        item.names, item.mean.gain, item.mean.distance, item.mean.is_outlier, strict=True
    ):
        if is_out:
            yield (
                f"{name}: left out of {item.label}: its responses differ by {distance:.0%} from those of the others "
                f"(usually {usual:.0%}); look at its report"
            )
        if abs(math.log(gain)) > math.log(GAIN_TOLD):
            yield (
                f"{name}: {gain:.2f} times the signal of the others of {item.label}; with --responses group its fODF is "
                "larger by as much, unless --normalise is given"
            )


def _plan(sets: Sequence[_NewSet], missing: Sequence[str]) -> dict[str, Any]:
    """Return what would be written, as JSON holds it."""
    described = [
        {
            "label": item.label,
            "protocol": item.protocol.to_dict(),
            "series": list(item.names),
            "left_out": [name for name, is_out in zip(item.names, item.mean.is_outlier, strict=True) if is_out],
        }
        for item in sets
    ]
    return {"sets": described, "missing": list(missing)}
