"""The record of one execution: what went in, what came out, with what, how long; kept beside the outputs."""

import datetime
import hashlib
import json
import platform
import re
import shlex
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.resources import files
from pathlib import Path
from typing import Any

from shd_bids import __version__
from shd_bids.bids.names import report_path
from shd_bids.bids.records import is_whole, last_finished, signature
from shd_bids.bids.run import DWIRun
from shd_bids.options import FodOptions, GradientOptions, PeakOptions, TrackingOptions, TractogramOptions
from shd_bids.settings import OPTIONS, Settings

IN_DIGEST = (
    *("level", "precision", "random_seed", "sloppy", "cohort_processes"),
    *(
        item.name
        for group in (GradientOptions, FodOptions, PeakOptions, TrackingOptions, TractogramOptions)
        for item in fields(group)
    ),
)
"""Settings that change the result by themselves."""

RESPONSES, WEIGHTS, NETWORK, TISSUES = "responses/", "weights/", "network/", "tissues/"
PARCELLATIONS = "parcellations/"
"""Begin the names of inputs that are no files of the series."""


def new_run_uuid() -> str:
    """Return a name for this execution: sorts by time, never repeats."""
    return f"{datetime.datetime.now(datetime.UTC):%Y%m%d-%H%M%S_%f}{uuid.uuid4().hex[:8]}"


def now() -> str:
    """Return the time as ISO 8601 in UTC."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def software() -> dict[str, str]:
    """Return the versions of Python, of the app and of each of its dependencies; nothing is imported."""
    found = {"python": platform.python_version(), "shd_bids": __version__}
    for requirement in requires("shd_bids") or ():
        if "extra ==" in requirement:
            continue
        name = re.match(r"[\w.-]+", requirement)[0]
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


def weights_file(weights: str) -> Path | None:
    """Return the file of the weights: ``none``, ``packaged`` or a path."""
    if weights == "none":
        return None
    if weights != "packaged":
        return Path(weights)
    packaged = sorted(Path(str(files("shd_bids"))).glob("data/*.safetensors"))
    return packaged[0] if packaged else None


def hash_inputs(run: DWIRun, settings: Settings) -> dict[str, str]:
    """Return the SHA-256 of everything that decides about the result, by BIDS URI or file name."""
    hashes = {input_name(run, path): run.hashes.get(str(path)) or sha256(path) for path in run.files}
    hashes |= {
        f"{PARCELLATIONS}{one.label}/{path.name}": sha256(path) for one in run.parcellations for path in one.files
    }
    hashes |= {f"{RESPONSES}{path.name}": _sha256_once(path) for path in run.responses}
    for uri, path in zip(run.anatomy_uris, run.anatomy.files if run.anatomy else (), strict=True):
        hashes[f"{TISSUES}{uri}"] = run.hashes.get(str(path)) or sha256(path)
    if path := weights_file(settings.weights):
        hashes[f"{WEIGHTS}{path.name}"] = _sha256_once(path)
    if settings.network not in OPTIONS["network"].words:
        hashes[f"{NETWORK}{Path(settings.network).name}"] = _sha256_once(Path(settings.network))
    return hashes


def input_name(run: DWIRun, path: Path) -> str:
    """Return the BIDS URI of an input, or its name where it lies in no data set."""
    homes = [name for name, root in run.links.items() if path.is_relative_to(root)]
    name = max(homes, key=lambda name: len(run.links[name].parts), default=None)  # a data set may lie in another
    return f"bids:{name}:{path.relative_to(run.links[name]).as_posix()}" if name else path.name


def _sha256_once(path: Path) -> str:
    """Return the SHA-256 of a file of many series, which is read once as long as it does not change."""
    return _sha256_of(path, *signature([path])[str(path)])


@lru_cache(maxsize=64)
def _sha256_of(path: Path, size: int, changed: int) -> str:
    return sha256(path)


def digest(settings: Settings, inputs: Mapping[str, str]) -> str:
    """Return one hash of inputs, settings and version: equal digests give equal outputs."""
    content = json.dumps([__version__, chosen(settings, IN_DIGEST), sorted(inputs.values())])
    return hashlib.sha256(content.encode()).hexdigest()


def chosen(settings: Settings, names: Iterable[str]) -> dict[str, Any]:
    """Return settings by name; of a file the content counts, which is an input, and not its path."""
    return {name: _without_path(name, getattr(settings, name)) for name in names}


def _without_path(name: str, value: Any) -> Any:
    """Return a value unless it is the path of a file, whose content counts instead; of a parcellation the name counts too."""
    if name == "parcellation":
        return [Path(text).name for text in value]
    return None if OPTIONS[name].is_file and value not in OPTIONS[name].words else value


def outputs_record(output_dir: Path, paths: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """Return size and SHA-256 of every output, by its path in the data set."""
    return {
        path.relative_to(output_dir).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256(path)}
        for path in paths
    }


def find_done(output_dir: Path, run: DWIRun, digests: Mapping[str, str]) -> dict[str, Any] | None:
    """Return the record of a series that an earlier call finished with the same digests of all stages, files and page whole.

    Only sizes are compared, so that asking is cheap. ``None`` where there is none.
    """
    series = last_finished(output_dir, run.subject, run.key)
    if series is None or not digests.items() <= series.get("digests", {}).items():
        return None
    sizes = {name: record["bytes"] for name, record in series["outputs"].items()}
    has_page = report_path(output_dir, run.subject, run.session).is_file()
    return series if has_page and is_whole(output_dir, sizes) else None


def command_line(argv: Sequence[str]) -> str:
    """Return the command as typed, quoted for a shell."""
    return shlex.join(["shd_bids", *argv])
