"""The stages of a series, what each depends on, and what earlier calls left of them in the data set.

Each stage has a digest over the version, the options and inputs that it reads, and the stages before it. What it left
with the same digest is used again, also without a work folder: its files in the data set, and in a hidden folder
those that only later stages need.
"""

import contextlib
import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from shd_bids import __version__
from shd_bids.bids.names import sidecar_path, stage_folder
from shd_bids.bids.provenance import NETWORK, PARCELLATIONS, RESPONSES, TISSUES, WEIGHTS, chosen
from shd_bids.bids.records import finished, is_whole
from shd_bids.bids.run import DWIRun
from shd_bids.files import write_json
from shd_bids.options import LEVELS, FodOptions, GradientOptions, Options, PeakOptions, TrackingOptions
from shd_bids.settings import Settings

__all__ = [
    "STAGES",
    "Kept",
    "StagePlan",
    "asked_stages",
    "drop_stage",
    "facts_path",
    "keep_stage",
    "outdated_files",
    "plan_stages",
    "reader",
    "stages_of",
]

Outputs = Mapping[str, str | Sequence[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """What a stage depends on.

    Attributes
    ----------
    name : str
    level : str
        Least ``--level`` that has it.
    after : tuple of str
        Stages whose results it reads.
    settings : tuple of str
        Names of settings that it reads.
    adapting : tuple of str
        Names of those that it reads where weights are adapted to the series.
    """

    name: str
    level: str
    after: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    adapting: tuple[str, ...] = ()


def _names(group: type[Options], *without: str) -> tuple[str, ...]:
    return tuple(item.name for item in fields(group) if item.name not in without)


_ADAPTING = ("network", "lambda_tv", "tv_penalty", "max_steps")

STAGES = (
    Stage(name="gradients", level="response", settings=("sloppy", *_names(GradientOptions))),
    Stage(name="response", level="response", after=("gradients",)),
    Stage(
        name="fod",
        level="fod",
        after=("response",),
        settings=("precision", *_names(FodOptions, *_ADAPTING)),
        adapting=("random_seed", *_ADAPTING),
    ),
    Stage(name="peaks", level="peaks", after=("fod",), settings=_names(PeakOptions)),
    Stage(name="tractography", level="full", after=("fod",), settings=("random_seed", *_names(TrackingOptions))),
    Stage(name="weights", level="full", after=("peaks", "tractography"), settings=("streamline_weights",)),
    Stage(name="conversion", level="full", after=("tractography", "weights"), settings=("tractogram_format",)),
    Stage(
        name="connectome",
        level="full",
        after=("fod", "peaks", "tractography", "weights"),
        settings=("parcellation", "connectome_map", "connectome_radius"),
    ),
)
"""All stages, each after those that it reads."""


@dataclass(frozen=True)
class Kept:
    """What an earlier call left of a stage.

    Attributes
    ----------
    outputs : mapping
        Output of the stage -> absolute path, or paths.
    facts_file : Path
    """

    outputs: Outputs
    facts_file: Path


@dataclass(frozen=True)
class StagePlan:
    """Which stages of a series are computed.

    Attributes
    ----------
    digests : mapping
        Stage -> digest, of all stages that the call asks for, in order.
    kept : mapping
        Stage -> what is used again; the others are computed.
    is_replaced : bool
        Whether another call, with other settings, put files of its own in place of some, as far as it came.
    """

    digests: Mapping[str, str]
    kept: Mapping[str, Kept] = field(default_factory=dict)
    is_replaced: bool = False

    @property
    def computed(self) -> tuple[str, ...]:
        """Stages that are computed, in order."""
        return tuple(name for name in self.digests if name not in self.kept)


def stages_of(level: str) -> tuple[Stage, ...]:
    """Return the stages that a level has, in order."""
    return tuple(stage for stage in STAGES if LEVELS.index(stage.level) <= LEVELS.index(level))


def asked_stages(run: DWIRun, settings: Settings) -> tuple[Stage, ...]:
    """Return the stages of a series that a call wants, in order."""
    wanted = {"weights": settings.streamline_weights == "on", "connectome": bool(run.parcellations)}
    return tuple(stage for stage in stages_of(settings.level) if wanted.get(stage.name, True))


def plan_stages(run: DWIRun, settings: Settings, inputs: Mapping[str, str]) -> StagePlan:
    """Return the digests of the stages of a series, and which of them need not be computed.

    Parameters
    ----------
    run : DWIRun
    settings : Settings
    inputs : mapping
        Hashes of its inputs, from `shd_bids.bids.provenance.hash_inputs`.
    """
    digests: dict[str, str] = {}
    for stage in asked_stages(run, settings):
        before = [digests[name] for name in stage.after if name in digests]
        digests[stage.name] = _digest(stage, run, settings, inputs, before)
    if settings.overwrite:
        return StagePlan(digests)
    records = {name: _read(settings.output_dir, run, name) for name in digests}
    found = {
        name: _kept(settings.output_dir, run, name, records[name])
        for name, digest in digests.items()
        if records[name].get("digest") == digest
    }
    is_replaced = any(record and record.get("digest") != digests[name] for name, record in records.items())
    return StagePlan(digests, {name: kept for name, kept in found.items() if kept is not None}, is_replaced)


def _digest(stage: Stage, run: DWIRun, settings: Settings, inputs: Mapping[str, str], before: Sequence[str]) -> str:
    names = stage.settings + (stage.adapting if settings.fit == "subject" else ())
    # in order, as each input has a part of its own
    read = [value for name, value in inputs.items() if reader(name) == stage.name]
    found = {"gradients": run.mask_origin, "tractography": run.anatomy and run.anatomy.to_dict()["parts"]}
    content = json.dumps([__version__, stage.name, chosen(settings, names), read, found.get(stage.name), list(before)])
    return hashlib.sha256(content.encode()).hexdigest()


def reader(name: str) -> str:
    """Return the stage that reads an input first."""
    readers = {
        PARCELLATIONS: "connectome",
        RESPONSES: "response",
        WEIGHTS: "fod",
        NETWORK: "fod",
        TISSUES: "tractography",
    }
    return next((stage for start, stage in readers.items() if name.startswith(start)), "gradients")


def drop_stage(output_dir: Path, run: DWIRun, stage: str) -> None:
    """Note that the files of a stage are being replaced."""
    write_json(_record(output_dir, run, stage), {"digest": None})


def keep_stage(output_dir: Path, run: DWIRun, stage: str, *, digest: str, outputs: Mapping[str, Any]) -> None:
    """Note a stage as one that later calls can use again.

    Parameters
    ----------
    output_dir : Path
        Root of the data set, in which all files of the stage lie.
    run : DWIRun
    stage : str
        Its facts lie where `facts_path` says.
    digest : str
    outputs : mapping
        Output of the stage -> path, or paths; their sidecars count too.
    """
    relative = {name: _relative(value, output_dir) for name, value in outputs.items()}
    paths = [path for value in relative.values() for path in ([value] if isinstance(value, str) else value)]
    paths.append(_relative(facts_path(output_dir, run, stage), output_dir))
    beside = [sidecar_path(output_dir / path) for path in paths]
    paths += [_relative(path, output_dir) for path in beside if path.is_file()]
    sizes = {path: (output_dir / path).stat().st_size for path in paths}
    write_json(_record(output_dir, run, stage), {"digest": digest, "outputs": relative, "bytes": sizes})


def outdated_files(output_dir: Path, run: DWIRun, digests: Mapping[str, str], *, made: Collection[str]) -> list[str]:
    """Return what earlier calls left of a series, although a stage that others read had other settings or inputs then.

    Parameters
    ----------
    output_dir : Path
        Root of the data set.
    run : DWIRun
    digests : mapping
        Stage -> digest, of this call.
    made : collection of str
        Files of this call, by their path in the data set.
    """
    read = {name: digests[name] for stage in STAGES for name in stage.after if name in digests}
    found = dict.fromkeys(made, False)
    for series in finished(output_dir, run.subject, run.key):
        before = series.get("digests", {})
        is_outdated = any(before.get(name, digest) != digest for name, digest in read.items())
        found = dict.fromkeys(series.get("outputs", ()), is_outdated) | found  # the newest record of a file counts
    return sorted(name for name, is_outdated in found.items() if is_outdated and (output_dir / name).is_file())


def facts_path(output_dir: Path, run: DWIRun, stage: str) -> Path:
    """Return where the facts of a stage are kept."""
    return stage_folder(output_dir, run) / f"{stage}_facts.json"


def _record(output_dir: Path, run: DWIRun, stage: str) -> Path:
    return stage_folder(output_dir, run) / f"{stage}_stage.json"


def _relative(value: Any, root: Path) -> Any:
    return [_relative(item, root) for item in value] if isinstance(value, list) else value.relative_to(root).as_posix()


def _read(output_dir: Path, run: DWIRun, stage: str) -> dict[str, Any]:
    """Return the record of a stage, empty where there is none that can be read."""
    with contextlib.suppress(OSError, ValueError):
        record = json.loads(_record(output_dir, run, stage).read_text("utf-8"))
        return record if isinstance(record, dict) else {}
    return {}


def _kept(output_dir: Path, run: DWIRun, stage: str, record: Mapping[str, Any]) -> Kept | None:
    """Return what is kept of a stage, ``None`` where it is not whole."""
    with contextlib.suppress(OSError, KeyError, TypeError, AttributeError):
        if is_whole(output_dir, record["bytes"]):
            outputs = {name: _absolute(value, output_dir) for name, value in record["outputs"].items()}
            return Kept(outputs, facts_path(output_dir, run, stage))
    return None


def _absolute(value: Any, root: Path) -> Any:
    return [_absolute(item, root) for item in value] if isinstance(value, list) else str(root / value)
