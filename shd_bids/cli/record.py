"""The record of one call: kept beside the outputs from the first minute, so that a killed call tells of itself too."""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shd_bids import __version__
from shd_bids.bids import provenance
from shd_bids.bids.names import expected_outputs, log_dir, promised
from shd_bids.bids.prov import describe_call, write_prov
from shd_bids.bids.recall import remembered
from shd_bids.bids.records import FAILED, FINISHED, RUNNING
from shd_bids.bids.run import DWIRun, Unusable
from shd_bids.bids.stages import StagePlan, outdated_files
from shd_bids.files import write_json, write_text
from shd_bids.settings import Settings

MOST_NAMES = 10
"""Series that the summary names."""

RESERVE = ".reserve"
RESERVED_BYTES = 100_000
"""For the records of one subject."""


@dataclass
class Record:
    """What one call knows of itself.

    Attributes
    ----------
    settings, command : Settings and str
        As given.
    runs : sequence of DWIRun
        The series that this call processes.
    devices : sequence of str
        Where networks run; several GPUs are shared out among the series.
    uuid, started : str
        Name and time of the call.
    status : str
        ``running``, ``finished``, ``failed`` or ``interrupted``.
    exit_code : int, optional
        Of the whole call, once it is known.
    series : dict
        Key of a run -> what happened to it: ``status``, ``digests`` of its stages, those ``reused``, ``inputs``, what was
        ``seen`` of them, ``outputs``, what is ``outdated`` beside them, ``stages``, and ``exit_code``, ``stage``, ``error``,
        ``message`` where it failed.
    unusable : sequence of Unusable
        Series that this call cannot process; they have records of their own.
    """

    settings: Settings
    command: str
    runs: Sequence[DWIRun]
    devices: Sequence[str] = ("cpu",)
    uuid: str = field(default_factory=provenance.new_run_uuid)
    started: str = field(default_factory=provenance.now)
    status: str = RUNNING
    exit_code: int | None = None
    series: dict[str, dict[str, Any]] = field(default_factory=dict)
    unusable: Sequence[Unusable] = ()

    @property
    def subjects(self) -> tuple[str, ...]:
        return tuple(sorted({run.subject for run in self.runs}))

    def folder(self, subject: str) -> Path:
        return log_dir(self.settings.output_dir, subject, self.uuid)

    def begin(self, run: DWIRun, plan: StagePlan, inputs: Mapping[str, str]) -> None:
        """Note a series with the hashes of its inputs and what of its stages is used again."""
        hashes = {path: inputs[provenance.input_name(run, path)] for path in run.files}
        self.series[run.key] = {
            "status": self.status,
            "series": run.prefix,
            "source": run.source_uri,
            "digests": plan.digests,
            "reused": list(plan.kept),
            "inputs": inputs,
            "seen": remembered(run, self.settings, hashes),
        }

    def fail(self, run: DWIRun, *, exit_code: int, error: str, message: str, stage: str | None = None) -> None:
        """Note why a series failed."""
        self.series[run.key] |= {"status": FAILED, "exit_code": exit_code, "error": error, "message": message}
        if stage:
            self.series[run.key]["stage"] = stage

    def accept(self, run: DWIRun) -> None:
        """Note a series as finished if every file it promised is there and not empty, as failed otherwise."""
        settings, series = self.settings, self.series[run.key]
        paths = expected_outputs(
            settings.output_dir,
            run,
            **promised(settings),
            tissues=_fitted_tissues(series),
        )
        missing = [path.name for path in paths if not path.is_file() or not path.stat().st_size]
        if missing:
            message = f"{len(missing)} of {len(paths)} promised files are missing or empty: {', '.join(missing[:5])}"
            self.fail(run, exit_code=1, error="OutputError", message=message)
        else:
            outputs = provenance.outputs_record(settings.output_dir, paths)
            outdated = outdated_files(settings.output_dir, run, series["digests"], made=outputs)
            series |= {"status": FINISHED, "outputs": outputs, "outdated": outdated}

    def end(self, status: str, exit_code: int, message: str = "") -> None:
        """Note how the call ended; series still running share its end."""
        self.status, self.exit_code = status, exit_code
        for series in self.series.values():
            if series["status"] == RUNNING:
                series |= {
                    "status": FAILED if status == FINISHED else status,
                    "exit_code": exit_code,
                    "message": message,
                }

    def summary(self, *, n_skipped: int) -> str:
        """Return how many series are done, with those that earlier calls did, and which are not."""
        ended = {run.prefix: self.series[run.key]["status"] for run in self.runs}
        ended |= {item.prefix: FAILED for item in self.unusable}
        n_done = n_skipped + sum(status == FINISHED for status in ended.values())
        parts = [f"{n_done} of {n_skipped + len(ended)} series done"]
        for wanted in dict.fromkeys(status for status in ended.values() if status != FINISHED):
            names = [name for name, status in ended.items() if status == wanted]
            more = ", ..." if len(names) > MOST_NAMES else ""
            parts.append(f"{len(names)} {wanted} ({', '.join(names[:MOST_NAMES])}{more})")
        return ", ".join(parts)

    def write_status(self) -> None:
        """Write ``status.json`` of every subject: short, for schedulers, and kept up to date."""
        told = ("status", "exit_code", "stage", "error", "message")
        for subject in self.subjects:
            series = {run.prefix: self.series[run.key] for run in self.runs if run.subject == subject}
            content = {
                "status": self.status,
                "exit_code": self.exit_code,
                "run": self.uuid,
                "started": self.started,
                "updated": provenance.now(),
                "series": {name: {key: item[key] for key in told if key in item} for name, item in series.items()},
            }
            write_json(self.folder(subject) / "status.json", content)

    def write_beginning(self) -> None:
        """Write what holds from the first minute, and keep some room for the end on a disk that runs full."""
        for subject in self.subjects:
            write_text(self.folder(subject) / "shd_bids.toml", self.settings.to_toml())
        self.write_status()
        self._reserve.write_bytes(os.urandom(RESERVED_BYTES * len(self.subjects)))

    def write_end(self, crash_dir: Path) -> OSError | None:
        """Write all records as far as they fit, the shortest first, and return the error of what does not."""
        errors: list[OSError] = []
        self._reserve.unlink(missing_ok=True)
        for write in (
            self.write_status,
            self.write_provenance,
            self.write_prov,
            self.copy_log,
            lambda: self.keep_crashes(crash_dir),
        ):
            try:
                write()
            except OSError as error:
                errors.append(error)
        return next(iter(errors), None)

    @property
    def log(self) -> Path:
        """Log of the call; the other subjects get a copy."""
        return self.folder(self.subjects[0]) / "shd_bids.log"

    @property
    def _reserve(self) -> Path:
        return self.folder(self.subjects[0]) / RESERVE

    def write_provenance(self) -> None:
        """Write ``provenance.json`` of every subject: how each file was made."""
        for subject in self.subjects:
            series = {run.key: self.series[run.key] for run in self.runs if run.subject == subject}
            stages = [stage for item in series.values() for stage in item.get("stages", {}).values()]
            content = {
                "run": self.uuid,
                "command": self.command,
                "status": self.status,
                "exit_code": self.exit_code,
                "started": self.started,
                "ended": provenance.now(),
                "version": __version__,
                "software": provenance.software(),
                "random_seed": self.settings.random_seed,
                "peak_memory_mb": max((stage.get("peak_memory_mb", 0) for stage in stages), default=None),
                "series": series,
            }
            write_json(self.folder(subject) / "provenance.json", content)

    def write_prov(self) -> None:
        """Write the same for every subject in the terms of BIDS-Prov."""
        for subject in self.subjects:
            series = [(run, self.series[run.key]) for run in self.runs if run.subject == subject]
            content = describe_call(self.uuid, self.command, provenance.software(), series)
            write_prov(self.settings.output_dir, f"sub{subject}x{self.uuid}", content)

    def copy_log(self) -> None:
        """Give every subject a copy of the log."""
        for subject in self.subjects[1:]:
            shutil.copy(self.log, self.folder(subject) / self.log.name)

    def keep_crashes(self, crash_dir: Path) -> None:
        """Copy to every subject the crash files that name one of its series."""
        for crash in crash_dir.glob("crash*"):
            text = crash.read_text("utf-8", errors="replace")
            named = {run.subject for run in self.runs if f".{run.key}_wf." in text}
            for subject in named:
                shutil.copy(crash, self.folder(subject) / crash.name)


def exit_code(series: Mapping[str, Mapping[str, Any]], *, n_skipped: int = 0) -> int:
    """Return the code of a call: 0 all done, 1 some done, else the one code of all failures, or 1 if they differ.

    Parameters
    ----------
    series : mapping
        Name -> record with ``status`` and, where it failed, ``exit_code``.
    n_skipped : int
        Series that an earlier call had done.
    """
    codes = {record.get("exit_code", 1) for record in series.values() if record["status"] != FINISHED}
    n_done = n_skipped + sum(record["status"] == FINISHED for record in series.values())
    if not codes:
        return 0
    return codes.pop() if not n_done and len(codes) == 1 else 1


def _fitted_tissues(series: Mapping[str, Any]) -> Sequence[str]:
    """Return the tissues that the data could tell apart, as the response stage noted them; at least white matter."""
    return tuple(series.get("stages", {}).get("response", {}).get("sidecar", {}).get("response", {})) or ("wm",)


def read_facts(folder: Path) -> dict[str, Any]:
    """Return what each stage of a series told of itself; a half-run series has some of them."""
    return {path.stem: json.loads(path.read_text("utf-8")) for path in sorted((folder / "facts").glob("*.json"))}


def take_facts(folder: Path, plan: StagePlan) -> None:
    """Leave in the work folder of a series what the stages of a plan told of themselves, of its digests alone.

    What the stages that are used again told is added.
    """
    for path in (folder / "facts").glob("*.json"):
        wanted = plan.digests.get(path.stem)
        if wanted is None or json.loads(path.read_text("utf-8")).get("digest") != wanted:
            path.unlink()
    for stage, kept in plan.kept.items():
        write_text(folder / "facts" / f"{stage}.json", kept.facts_file.read_text("utf-8"))
