"""Results into the derivative data set: each file whole or absent, with its sidecar."""

import contextlib
import csv
import io
import os
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from nipype.interfaces.base import File, Str, traits

from shd_bids.bids.names import OUTPUTS, figure_path, output_path, sidecar, sidecar_path, stage_folder
from shd_bids.bids.relmat import nodes_sidecar, relmat_sidecar
from shd_bids.bids.stages import drop_stage, facts_path, keep_stage
from shd_bids.errors import OutputError
from shd_bids.files import atomic_path, write_json, write_text
from shd_bids.interfaces.base import StageInputSpec, StageInterface, StageOutputSpec, read_json

__all__ = ["FIGURES", "SaveConnectomes", "SaveDerivatives", "SaveFigures", "SaveQC"]

FIGURES = (
    "gradients",
    "orientation",
    "mask",
    "response",
    "fodf",
    "thumbnail",
    "training",
    "tissue",
    "residual",
    "peaks",
    "tractogram",
    "tdi",
    "connectome",
    "fodview",
    "peaksview",
    "tracksview",
)
"""``desc`` labels of figures with their tables, in the order of the report, and of the pieces of its view."""

OUTPUT_NAMES = {"tractogram": "tractogram_files", "responses": "response_files"}
"""Outputs of stages that are not called by their key of the table and ``_file``."""

KEPT = ("gradients", "b0", "responses", "fodrest", "precision", "tracks", "streamline_weights")
"""Files that only later stages need; they lie in a hidden folder."""


def save_derivatives(
    *,
    run: Any,
    output_dir: str,
    files: Mapping[str, Path | list[Path]],
    facts_files: Sequence[Path],
    method: str | None,
    sloppy: bool,
    kept_as: tuple[str, str] | None,
    out_dir: Path,
) -> dict[str, Any]:
    """Put the files of a stage in their places in the derivative data set and write their sidecars.

    Parameters
    ----------
    run : DWIRun
        Source.
    output_dir : str
        Root of the data set.
    files : mapping
        Key of the table of outputs, or one of `KEPT` -> file, or files in several formats.
    facts_files : sequence of Path
        Facts of the stages so far, the last those of this one; the sidecars take what they need from their ``sidecar``
        entries.
    method : str, optional
        Tracking algorithm.
    sloppy : bool
        Stamp the sidecars as made by a test run.
    kept_as : (str, str), optional
        Name and digest of the stage, under which later calls use its files again.
    out_dir : Path
        Not used: all is written to its final place.

    Raises
    ------
    OutputError
        A file cannot be written.
    """
    root = Path(output_dir)
    facts = {name: value for path in facts_files for name, value in read_json(path)["sidecar"].items()}
    facts["sloppy"] = sloppy
    if kept_as:
        drop_stage(root, run, kept_as[0])
        _remove_others(root, run, kept_as[0], made=files)
    placed: dict[str, Any] = {}
    for key, given in files.items():
        sources = given if isinstance(given, list) else [given]
        write = partial(_keep, root, run, key) if key in KEPT else partial(_derive, root, run, key, facts, method)
        targets = [write(source) for source in sources]
        placed[key] = targets if isinstance(given, list) else targets[0]
    if kept_as:
        stage, digest = kept_as
        with _told(facts_path(root, run, stage)):
            place(facts_files[-1], facts_path(root, run, stage))
            outputs = {OUTPUT_NAMES.get(key, f"{key}_file"): value for key, value in placed.items()}
            keep_stage(root, run, stage, digest=digest, outputs=outputs)
    every = [str(path) for value in placed.values() for path in (value if isinstance(value, list) else [value])]
    return {"out_files": every, "facts": {"n_files": len(every)}}


def _remove_others(root: Path, run: Any, stage: str, *, made: Mapping[str, Any]) -> None:
    """Remove what an earlier call, with other settings, left of tissues that a stage does not have this time."""
    for key, row in OUTPUTS.items():
        if "tissue" in row and row["stage"] == stage and key not in made:
            target = output_path(root, run, key)
            for path in (target, sidecar_path(target)):
                path.unlink(missing_ok=True)


def _derive(root: Path, run: Any, key: str, facts: Mapping[str, Any], method: str | None, source: Path) -> Path:
    """Place one file of the table of outputs, with its sidecar."""
    form = source.name.partition(".")[2]
    target = output_path(root, run, key, method=method, format=form)
    with _told(target):
        place(source, target)
        if OUTPUTS[key]["extension"] != ".txt":
            write_json(sidecar_path(target), sidecar(run, key, facts, method=method, format=form))
    return target


def _keep(root: Path, run: Any, key: str, source: Path) -> Path:
    """Place one file for later calls."""
    target = stage_folder(root, run) / source.name
    with _told(target):
        place(source, target)
    return target


def save_connectomes(
    *,
    run: Any,
    output_dir: str,
    table_files: Sequence[Path],
    facts_files: Sequence[Path],
    method: str,
    format: str,
    sloppy: bool,
    out_dir: Path,
) -> dict[str, Any]:
    """Put the tables of all parcellations in their places, with their sidecars.

    Parameters
    ----------
    run : DWIRun
        Source, with its parcellations.
    output_dir : str
        Root of the data set.
    table_files : sequence of Path
        ``<label>.<measure>.tsv`` and ``<label>.nodes.tsv``.
    facts_files : sequence of Path
        Of the weights, where there are some, and of the connectomes.
    method, format : str
        Of the tractogram.
    sloppy : bool
        Stamp the sidecars as made by a test run.
    out_dir : Path
        Not used: all is written to its final place.

    Raises
    ------
    OutputError
        A file cannot be written.
    """
    by_label = {parcellation.label: parcellation for parcellation in run.parcellations}
    facts = {name: value for path in facts_files for name, value in read_json(path)["sidecar"].items()}
    facts["sloppy"] = sloppy
    placed = []
    for source in table_files:
        label, measure, _ = source.name.split(".")
        parcellation = by_label[label]
        if measure == "nodes":
            target, content = output_path(Path(output_dir), run, "nodeindices", parcellation=parcellation), None
        else:
            target = output_path(Path(output_dir), run, "relmat", parcellation=parcellation, measure=measure)
            content = relmat_sidecar(run, parcellation, measure, facts, method=method, format=format)
        with _told(target):
            place(source, target)
            write_json(sidecar_path(target), content or nodes_sidecar(parcellation))
        placed.append(str(target))
    return {"out_files": placed, "facts": {"n_files": len(placed)}}


def save_figures(*, run: Any, output_dir: str, files: Mapping[str, Path], out_dir: Path) -> dict[str, Any]:
    """Put figures, by their ``desc`` label, in their places in the derivative data set."""
    placed = []
    for desc, source in files.items():
        target = figure_path(Path(output_dir), run, desc, extension=source.suffix)
        with _told(target):
            place(source, target)
        placed.append(str(target))
    return {"out_files": placed, "facts": {"n_files": len(placed)}}


def save_qc(*, run: Any, output_dir: str, facts_files: Sequence[Path], out_dir: Path) -> dict[str, Any]:
    """Write the table of quality numbers of one series, one row, with its column dictionary."""
    stages = [read_json(path) for path in facts_files]
    columns: dict[str, Any] = {
        "subject": {"value": run.subject, "Description": "Subject label"},
        "session": {"value": run.session, "Description": "Session label"},
        "series": {"value": run.prefix, "Description": "Source entities of the series"},
    }
    for facts in stages:
        columns |= facts["qc"]
        columns[f"runtime_s_{facts['stage']}"] = {
            "value": facts["seconds"],
            "Description": f"Time of the stage {facts['stage']}",
            "Units": "s",
        }
    columns["peak_rss_mb"] = {
        "value": max(facts["peak_memory_mb"] for facts in stages),
        "Description": "Largest resident memory of a stage",
        "Units": "MB",
    }
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t", lineterminator="\n")
    writer.writerows([columns, [_cell(column["value"]) for column in columns.values()]])
    dictionary = {
        name: {key: value for key, value in column.items() if key != "value"} for name, column in columns.items()
    }
    target = output_path(Path(output_dir), run, "qc")
    with _told(target):
        write_text(target, text.getvalue())
        write_json(sidecar_path(target), sidecar(run, "qc", {"columns": dictionary}))
    return {"out_files": [str(target)], "facts": {"n_files": 1}}


def place(source: Path, target: Path) -> None:
    """Give a file its final name, whole or not at all: by a hard link on one file system, else by a copy."""
    if target.exists() and target.samefile(source):
        return
    with atomic_path(target) as temporary:
        try:
            os.link(source, temporary)
        except OSError:  # another file system, or one without links
            shutil.copyfile(source, temporary)


@contextlib.contextmanager
def _told(target: Path) -> Any:
    """Tell the user which file could not be written."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"{target}: cannot be written ({error.strerror or error})") from error


def _cell(value: Any) -> str:
    """Write a value as BIDS wants it in a table."""
    if value is None:
        return "n/a"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


class _SinkInputSpec(StageInputSpec):
    run = traits.Any(mandatory=True, desc="DWIRun: names and sources")
    output_dir = Str(mandatory=True, hash_files=False, desc="root of the derivative data set")


class _SinkOutputSpec(StageOutputSpec):
    out_files = traits.List(Str, desc="what was written")


def _spec(name: str, keys: Sequence[str], **fields: Any) -> type[_SinkInputSpec]:
    """Return an input spec with one input per key: a file, or files in several formats; a stage may leave some out."""
    return type(name, (_SinkInputSpec,), {key: traits.Any() for key in keys} | fields | {"__module__": __name__})


SAVED = (*(key for key, row in OUTPUTS.items() if key != "qc" and not row.get("parcellated")), *KEPT)
"""Outputs that are one file, or one in each format, and what later stages need."""

_SaveDerivativesInputSpec = _spec(
    "_SaveDerivativesInputSpec",
    SAVED,
    facts_files=traits.List(File(exists=True), mandatory=True, desc="facts of the stages so far"),
    method=traits.Str(desc="tracking algorithm"),
    sloppy=traits.Bool(False, usedefault=True, desc="whether the settings were those of a quick test"),
    kept_as=traits.Tuple(traits.Str, traits.Str, desc="name and digest of the stage"),
)
_SaveConnectomesInputSpec = _spec(
    "_SaveConnectomesInputSpec",
    (),
    table_files=traits.List(File(exists=True), mandatory=True, desc="matrices and regions"),
    facts_files=traits.List(File(exists=True), mandatory=True, desc="facts of weights and connectomes"),
    method=traits.Str(mandatory=True, desc="tracking algorithm"),
    format=traits.Str(mandatory=True, desc="of the tractogram"),
    sloppy=traits.Bool(False, usedefault=True, desc="whether the settings were those of a quick test"),
)
_SaveFiguresInputSpec = _spec("_SaveFiguresInputSpec", FIGURES)
_SaveQCInputSpec = _spec(
    "_SaveQCInputSpec", (), facts_files=traits.List(File(exists=True), mandatory=True, desc="facts of all stages")
)


class _Sink(StageInterface):
    """Base of the sinks: always run, because the cache does not know what was deleted from the data set."""

    output_spec = _SinkOutputSpec
    _always_run = True
    is_isolated = False  # links and small texts
    is_reported = False
    keys: Sequence[str] = ()

    def _arguments(self) -> dict[str, Any]:
        arguments = super()._arguments()
        if not self.keys:
            return arguments
        files = {key: arguments.pop(key) for key in self.keys}
        return arguments | {"files": {key: _paths(value) for key, value in files.items() if value}}


class SaveDerivatives(_Sink):
    """Images, responses and tractograms with their sidecars."""

    input_spec = _SaveDerivativesInputSpec
    function = staticmethod(save_derivatives)
    keys = SAVED


class SaveConnectomes(_Sink):
    """Connectomes with their sidecars."""

    input_spec = _SaveConnectomesInputSpec
    function = staticmethod(save_connectomes)


class SaveFigures(_Sink):
    """Pieces of the report."""

    input_spec = _SaveFiguresInputSpec
    function = staticmethod(save_figures)
    keys = FIGURES


class SaveQC(_Sink):
    """The table of quality numbers of one series."""

    input_spec = _SaveQCInputSpec
    function = staticmethod(save_qc)


def _paths(value: str | list[str]) -> Path | list[Path]:
    return [Path(item) for item in value] if isinstance(value, list) else Path(value)
