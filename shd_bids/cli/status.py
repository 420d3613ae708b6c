"""What became of each series of a study, from what the calls left in its folder; the input is not looked at."""

import argparse
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from shd_bids.bids.records import FAILED, FINISHED, RUNNING, is_whole
from shd_bids.errors import InputError
from shd_bids.files import read_json_object
from shd_bids.locks import try_lock

__all__ = ["main", "run", "study_status"]

DESCRIPTION = "Tell which series of a study are complete, incomplete, running or failed, and why."

COMPLETE, INCOMPLETE = "complete", "incomplete"

LOST = {"state": INCOMPLETE, "message": "files that it had are missing or have another size"}

STATES = (COMPLETE, INCOMPLETE, RUNNING, FAILED)


def run() -> NoReturn:
    """Run the command ``shd_bids-status``."""
    sys.exit(main(sys.argv[1:]))


def main(argv: Sequence[str]) -> int:
    """Print the state of a study; return 0 where all is complete, 1 where not, 2 for a wrong call.

    Parameters
    ----------
    argv : sequence of str
        Words after the program's name.
    """
    parser = argparse.ArgumentParser(prog="shd_bids-status", description=DESCRIPTION)
    parser.add_argument("output_dir", type=Path, metavar="OUTPUT_DIR", help="derivative data set of shd_bids")
    parser.add_argument("--bids-dir", type=Path, metavar="BIDS_DIR", help="also name participants without any record")
    parser.add_argument("--json", action="store_true", help="for programs")
    asked = parser.parse_args(argv)
    for folder in filter(None, (asked.output_dir, asked.bids_dir)):
        if not folder.is_dir():
            parser.error(f"no such folder: {folder}")
    status = study_status(asked.output_dir, _participants(asked.bids_dir) if asked.bids_dir else ())
    print(json.dumps(status, indent=2) if asked.json else _text(status))
    return int(status["counts"][COMPLETE] < len(status["series"]))


def study_status(output_dir: Path, participants: Iterable[str] = ()) -> dict[str, Any]:
    """Return the state of each series, as JSON holds it.

    Parameters
    ----------
    output_dir : Path
        Derivative data set.
    participants : iterable of str
        Labels of those that should have a record.
    """
    series: dict[str, dict[str, Any]] = {}
    seen = set()
    for path in sorted(output_dir.glob("sub-*/log/*/status.json"), key=lambda path: path.parent.name):
        seen.add(path.parts[-4].removeprefix("sub-"))
        series |= _of_call(path, output_dir)
    for label in sorted(set(participants) - seen):
        series[f"sub-{label}"] = {"state": INCOMPLETE, "message": "no call has begun it"}
    counts = {state: sum(item["state"] == state for item in series.values()) for state in STATES}
    return {"output_dir": str(output_dir), "counts": counts, "series": dict(sorted(series.items()))}


def _of_call(path: Path, output_dir: Path) -> dict[str, dict[str, Any]]:
    """Return the state in which a call left its series; a damaged record tells nothing."""
    try:
        status = read_json_object(path)
        found = {name: _state(item, name, output_dir) for name, item in status["series"].items()}
        found |= {name: LOST for name in _lost(path, output_dir) if found[name]["state"] == COMPLETE}
        shared = {"run": status["run"], "updated": status["updated"]}
    except (InputError, KeyError, TypeError, AttributeError):
        return {}
    return {name: item | shared for name, item in found.items()}


def _state(item: Mapping[str, Any], name: str, output_dir: Path) -> dict[str, Any]:
    told = {key: item[key] for key in ("exit_code", "stage", "error", "message") if item.get(key) not in (None, "")}
    match item["status"]:
        case status if status == FINISHED:
            return {"state": COMPLETE}
        case status if status == FAILED:
            return {"state": FAILED, **told}
        case status if status == RUNNING and _is_held(name, output_dir):
            return {"state": RUNNING}
        case status if status == RUNNING:
            return {"state": INCOMPLETE, "message": "killed before it could end, or on another machine without locks"}
    return {"state": INCOMPLETE, **told}


def _lost(path: Path, output_dir: Path) -> Iterator[str]:
    """Yield the series of which files are gone or have another size than was recorded."""
    if not (record := path.with_name("provenance.json")).is_file():
        return
    for series in read_json_object(record)["series"].values():
        sizes = {name: output["bytes"] for name, output in series.get("outputs", {}).items()}
        if not is_whole(output_dir, sizes):
            yield series["series"]


def _is_held(name: str, output_dir: Path) -> bool:
    """Whether a call holds the series."""
    key = re.escape(re.sub(r"\W", "_", name))
    pattern = re.compile(rf"\.{key}(_space_\w+)?\.lock")
    for path in output_dir.glob(".sub_*.lock"):
        if pattern.fullmatch(path.name):
            try:
                lock = try_lock(path)
            except OSError:  # of another user
                return True
            if lock is None:
                return True
            lock.release()
    return False


def _participants(bids_dir: Path) -> Iterator[str]:
    return (path.name.removeprefix("sub-") for path in bids_dir.glob("sub-*") if path.is_dir())


def _text(status: Mapping[str, Any]) -> str:
    """Return one line for each series that is not complete, and the numbers."""
    lines = [
        f"{name}: {item['state']}" + "".join(f": {line}" for line in item.get("message", "").splitlines()[:1])
        for name, item in status["series"].items()
        if item["state"] != COMPLETE
    ]
    return "\n".join([*lines, ", ".join(f"{number} {state}" for state, number in status["counts"].items())])


if __name__ == "__main__":
    run()
