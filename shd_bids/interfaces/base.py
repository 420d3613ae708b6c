"""What all interfaces share: one plain function each, the version in the hash, a record of failures and of facts."""

import contextlib
import datetime
import hashlib
import json
import logging
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nipype.interfaces.base import BaseInterfaceInputSpec, File, SimpleInterface, TraitedSpec, isdefined, traits

from shd_bids import __version__
from shd_bids.errors import OutputError, ShdError
from shd_bids.files import lacks_space, write_json
from shd_bids.interfaces.isolation import call_isolated, join_log
from shd_bids.logs import Shown
from shd_bids.option import Options
from shd_bids.options import Runtime

if TYPE_CHECKING:
    import numpy as np

    from shd_bids.images import Volume

__all__ = [
    "FACTS_DIR",
    "FAILURE_FILE",
    "Failure",
    "OptionsInputSpec",
    "RuntimeInputSpec",
    "StageInputSpec",
    "StageInterface",
    "StageOutputSpec",
    "failure_of",
    "log_progress",
    "options_input",
    "qc_column",
    "read_failure",
    "read_json",
    "runtime_inputs",
    "save_maps",
    "write_failure",
]

FAILURE_FILE = "failure.json"
FACTS_DIR = "facts"
PROGRESS_INTERVAL = 10.0  # seconds between two lines of one stage
LIVE_INTERVAL = 0.5  # seconds between two states of its live line
BAR_WIDTH = 20

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why one run stopped: what the user reads and what the program returns.

    Attributes
    ----------
    run, node, error, message : str
        Series, stage, type of the error, and what the user reads.
    exit_code : int
        Of the program.
    call : str
        Which call failed; what another one left in the same folder counts for nothing.
    """

    run: str
    node: str
    error: str
    exit_code: int
    message: str
    call: str = ""


_noted: dict[Path, Failure] = {}
"""Failures of this process by the run's folder, as the disk may be full."""


def write_failure(run_dir: Path, failure: Failure) -> None:
    """Write the failure into the run's folder unless one of the same call lies there: the first is the cause."""
    if read_failure(run_dir, failure.call):
        return
    _noted[run_dir] = failure
    with contextlib.suppress(OSError):
        write_json(run_dir / FAILURE_FILE, asdict(failure))


def read_failure(run_dir: Path, call: str) -> Failure | None:
    """Return the failure of a run in this call, ``None`` where it has none."""
    try:
        failure = Failure(**read_json(run_dir / FAILURE_FILE))
    except (OSError, ValueError, TypeError):  # absent, or of another version
        failure = None
    found = (failure, _noted.get(run_dir))
    return next((one for one in found if one is not None and one.call == call), None)


def failure_of(inputs: "StageInputSpec", error: Exception, folder: Path) -> Failure:
    """Return an error of a stage as the failure of its series; ``folder`` is where the stage writes."""
    exit_code, message = ShdError.exit_code, f"{type(error).__name__}: {str(error) or 'no message'}"
    if isinstance(error, ShdError):
        exit_code, message = error.exit_code, str(error)
    if exit_code == ShdError.exit_code and lacks_space("".join(traceback.format_exception(error)), folder):
        exit_code, message = OutputError.exit_code, f"the disk is full; free some space ({message.splitlines()[-1]})"
    return Failure(
        run=inputs.series,
        node=inputs.stage,
        error=type(error).__name__,
        exit_code=exit_code,
        message=message,
        call=inputs.call,
    )


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def qc_column(value: float | int | str | None, description: str, units: str | None = None) -> dict[str, Any]:
    """Return one entry of a stage's ``"qc"`` facts: a number for the table and its line in the column dictionary."""
    return {"value": value, "Description": description} | ({"Units": units} if units else {})


def save_maps(
    maps: Mapping[str, "np.ndarray"], mask: "np.ndarray", reference: "Volume", out_dir: Path
) -> dict[str, str]:
    """Write values in the order of a mask, (n,) or (n, k), as ``<name>.nii.gz`` on its grid; return them as outputs."""
    from shd_bids.images import save_volume, scatter

    outputs = {}
    for name, values in maps.items():
        path = out_dir / f"{name}.nii.gz"
        dtype = values.dtype if values.dtype.kind == "u" else "float32"
        save_volume(path, scatter(values, mask), reference.affine, reference_header=reference.header, dtype=dtype)
        outputs[f"{name}_file"] = str(path)
    return outputs


def log_progress(label: str, *, until: float = 1.0) -> Callable[[str, float], None]:
    """Return a callback ``(what, share in [0, 1])`` that logs a bar when ``what`` changes, and every few seconds.

    Stages run side by side in processes of their own, and often into a log file: each bar is a line. At a terminal a live
    line shows what is between them.

    Parameters
    ----------
    label : str
        Series and stage.
    until : float
        Share of the stage's time that what is reported takes; its results are written after that.
    """
    state: dict[str, Any] = {"what": None, "told": 0.0, "shown": 0.0, "first": (0.0, 0.0)}
    series, _, stage = label.partition(" ")

    def progress(what: str, share: float) -> None:
        now = time.monotonic()
        share *= until
        is_new = what != state["what"]
        if is_new:
            state.update(what=what, first=(now, share))
        is_due = is_new or now - state["told"] >= PROGRESS_INTERVAL or share >= 1
        if not is_due and now - state["shown"] < LIVE_INTERVAL:
            return
        state.update(shown=now, told=now if is_due else state["told"])
        shown = Shown(series, stage, share, is_line=is_due)
        started, first = state["first"]
        left = ""
        if first < share < 1:
            left = f", {_duration((now - started) * (1 - share) / (share - first))} left"
        bar = "#" * int(BAR_WIDTH * share)
        text = f"[{bar.ljust(BAR_WIDTH, '.')}] {int(100 * share):3d} %{left}"  # 100 when done
        logger.info("%s: %s %s", label, what, text, extra={"shown": shown})

    return progress


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


class StageInputSpec(BaseInterfaceInputSpec):
    """Inputs every interface has besides the arguments of its function."""

    app_version = traits.Str(__version__, usedefault=True, desc="a new version must not find old results in the cache")
    digest = traits.Str(desc="of everything that the result depends on; decides alone about the cache where it is set")
    series = traits.Str("series", usedefault=True, nohash=True, desc="names the series in messages")
    run_dir = traits.Str(desc="the run's work folder, where a failure is recorded", nohash=True, hash_files=False)
    call = traits.Str("", usedefault=True, nohash=True, desc="which call of the program this is")
    stage = traits.Str("stage", usedefault=True, nohash=True, desc="names the stage in messages")
    num_threads = traits.Int(1, usedefault=True, nohash=True, desc="set by the node from its n_procs")
    use_gpu = traits.Bool(False, usedefault=True, nohash=True, desc="whether the scheduler counts it as a GPU node")

    def get_hashval(self, hash_method: str | None = None) -> tuple[list[tuple[str, Any]], str]:
        """Return what Nipype's cache compares: files that lie elsewhere than in an earlier call are still the same."""
        if not isdefined(self.digest):
            return super().get_hashval(hash_method)
        return [("digest", self.digest)], hashlib.md5(self.digest.encode(), usedforsecurity=False).hexdigest()


_COMMON_INPUTS = frozenset(StageInputSpec.class_trait_names())


class OptionsInputSpec(StageInputSpec):
    """Inputs of an interface whose function takes ``options``; see `options_input`."""

    options = traits.Dict(mandatory=True, desc="option group of the stage, by name")


class RuntimeInputSpec(OptionsInputSpec):
    """Inputs of an interface whose function takes ``options`` and ``runtime``; see `runtime_inputs`."""

    runtime = traits.Dict(mandatory=True, desc="device, precision and seed")
    memory_gb = traits.Float(8.0, usedefault=True, nohash=True, desc="of the network; no result depends on it")


def options_input(options: Options) -> dict[str, Any]:
    """Return the input that hands an option group to an interface; `StageInterface.options_type` reads it back."""
    return {"options": asdict(options)}


def runtime_inputs(runtime: Runtime) -> dict[str, Any]:
    """Return the inputs that hand device, precision, seed and memory to an interface."""
    values = asdict(runtime)
    return {"memory_gb": values.pop("memory_gb"), "runtime": values}


class StageOutputSpec(TraitedSpec):
    """Output every stage has: what it found, for sidecars, QC table, provenance and report.

    The JSON holds ``stage``, ``started``, ``n_threads``, ``seconds``, ``cpu_seconds``, ``peak_memory_mb``, the ``digest`` of all
    that the result depends on, where there is one, the facts that sidecars need under ``sidecar``, numbers for the QC table under
    ``qc``, doubts of which the user is warned under ``notes``, and what else the stage has to tell.
    """

    facts_file = File(exists=True, desc="JSON")


class StageInterface(SimpleInterface):
    """Call one plain function: the inputs are its arguments, what it returns are the outputs.

    The function takes paths and plain values as keyword arguments (``None`` for an input that is not set), writes into
    the folder ``out_dir`` and returns a dict of outputs with an entry ``"facts"``.
    """

    function: Callable[..., Any]
    """The function, as a static method."""

    is_isolated = True
    """Whether the function gets a process of its own (`call_isolated`); torch and dipy are imported only there."""

    is_reported = True
    """Whether the facts are also kept in the run's folder, for provenance and report."""

    options_type: type[Options] = Options
    """Type of the function's argument ``options``, where it has one."""

    files_type: type | None = None
    """Dataclass of the function's argument ``files``, where it has one: its fields are inputs."""

    wants: tuple[str, ...] = ()
    """Which of ``n_threads`` (int) and ``label`` (str, for progress lines) the function takes too."""

    def _run_interface(self, runtime: Any) -> Any:
        inputs, out_dir = self.inputs, Path(runtime.cwd)
        join_log()
        began, started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), time.perf_counter()
        if self.is_reported:
            shown = Shown(inputs.series, inputs.stage)
            logger.info("%s: %s", inputs.series, inputs.stage, extra={"shown": shown})
        try:
            results = self._call(self._arguments() | {"out_dir": out_dir})
        except Exception as exception:
            if isdefined(inputs.run_dir):  # where the command line finds it
                write_failure(Path(inputs.run_dir), failure_of(inputs, exception, out_dir))
            raise
        facts = {"stage": inputs.stage, "started": began, "n_threads": inputs.num_threads} | results.pop("facts")
        for note in facts.get("notes", ()):
            logger.warning("%s: %s", inputs.series, note)
        facts["seconds"] = round(time.perf_counter() - started, 3)
        if isdefined(inputs.digest):
            facts["digest"] = inputs.digest
        write_json(out_dir / "facts.json", facts)
        if self.is_reported:
            shown = Shown(inputs.series, inputs.stage, 1.0, is_end=True)
            logger.info("%s: %s done in %.0f s", inputs.series, inputs.stage, facts["seconds"], extra={"shown": shown})
            if isdefined(inputs.run_dir):
                write_json(Path(inputs.run_dir, FACTS_DIR, f"{inputs.stage}.json"), facts)
        self._results |= results | {"facts_file": str(out_dir / "facts.json")}
        return runtime

    def _arguments(self) -> dict[str, Any]:
        inputs = self.inputs
        offered = {"n_threads": inputs.num_threads, "label": f"{inputs.series} {inputs.stage}"}
        names = [name for name in inputs.copyable_trait_names() if name not in _COMMON_INPUTS]
        own = {name: _plain(getattr(inputs, name), inputs.trait(name)) for name in names}
        files = type(self).files_type
        if files is not None:
            own["files"] = files(**{field.name: own.pop(field.name) for field in fields(files)})
        if "options" in own:
            own["options"] = type(self).options_type(**own["options"])
        if "runtime" in own:
            own["runtime"] = Runtime(**own["runtime"], memory_gb=own.pop("memory_gb"))
        return own | {name: offered[name] for name in self.wants}

    def _call(self, arguments: dict[str, Any]) -> dict[str, Any]:
        function = type(self).function
        if not self.is_isolated:
            return function(**arguments)
        return call_isolated(function, arguments, n_threads=self.inputs.num_threads)


def _plain(value: Any, trait: Any) -> Any:
    """Return a trait's value as plain Python: a path where it is a file, ``None`` where it is not defined."""
    if not isdefined(value):
        return None
    if isinstance(value, list) and trait.inner_traits:
        return [_plain(item, trait.inner_traits[0]) for item in value]
    return Path(value) if trait.is_trait_type(File) else value
