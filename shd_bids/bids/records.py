"""What earlier calls recorded of a series beside its outputs."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

__all__ = [
    "FAILED",
    "FINISHED",
    "INTERRUPTED",
    "RUNNING",
    "finished",
    "is_whole",
    "last_finished",
    "records",
    "signature",
]

RUNNING, FINISHED, FAILED, INTERRUPTED = "running", "finished", "failed", "interrupted"
"""States of a call and of a series in its record."""


def records(output_dir: Path, subject: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield the records of a subject, newest first, and their files; those that cannot be read are left out."""
    for path in sorted((output_dir / f"sub-{subject}" / "log").glob("*/provenance.json"), reverse=True):
        try:
            record = json.loads(path.read_text("utf-8"))
        except (ValueError, OSError):
            continue
        if isinstance(record, dict):
            yield path, record


def finished(output_dir: Path, subject: str, key: str) -> Iterator[dict[str, Any]]:
    """Yield the records of a series that say it is finished, newest first."""
    for _, record in records(output_dir, subject):
        try:
            series = record["series"][key]
            if series["status"] == FINISHED:
                yield series
        except (KeyError, TypeError):
            continue


def last_finished(output_dir: Path, subject: str, key: str) -> dict[str, Any] | None:
    """Return the newest record of a series that says it is finished; ``None`` where there is none."""
    return next(finished(output_dir, subject, key), None)


def is_whole(root: Path, sizes: Mapping[str, int]) -> bool:
    """Whether all files, by their path below a folder, are there with the size that was recorded."""
    try:
        return all((root / name).stat().st_size == size for name, size in sizes.items())
    except OSError:
        return False


def signature(paths: Iterable[Path]) -> dict[str, list[int]]:
    """Return size and time of change of files by path: equal ones are taken for unchanged without reading them."""
    found = {str(path): path.stat() for path in paths}
    return {path: [stat.st_size, stat.st_mtime_ns] for path, stat in found.items()}
