"""Everything the user chose, as one frozen value: built once at the edge, written as TOML beside the outputs."""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_type_hints

import tomli_w

from shd_bids import __version__

CHOICES: dict[str, tuple[str, ...]] = {
    "analysis_level": ("participant", "group"),
    "input_type": ("auto", "bids", "qsiprep", "raw"),
    "precision": ("float32", "tf32", "bf16"),
    "level": ("response", "fod", "peaks", "full"),
    "fit": ("amortised", "subject", "cohort"),
    "gradient_check": ("error", "warn", "fix", "off"),
    "tv_penalty": ("squared", "absolute"),
    "tracking_algorithm": ("det", "prob", "ptt"),
    "tractogram_format": ("trx", "tck", "trk"),
    "dry_run": ("text", "json"),
}
"""Values allowed where there is a closed list."""

BOUNDS: dict[str, tuple[float, float]] = {
    "nprocs": (1, 4096),
    "omp_nthreads": (1, 4096),
    "mem": (1, 1e5),
    "fod_lmax": (2, 18),
    "lambda_tv": (0, 1e6),
    "max_steps": (1, 1e7),
    "b0_threshold": (0, 500),
    "shell_tolerance": (1, 500),
    "peak_max": (1, 20),
    "peak_relative_threshold": (0, 1),
    "peak_absolute_threshold": (0, 1e3),
    "peak_separation": (1, 90),
    "seeds": (1, 10_000),
    "select": (0, 1e9),
    "step_size": (0.01, 10),
    "max_angle": (1, 90),
    "min_length": (0, 1000),
    "max_length": (1, 10_000),
    "random_seed": (0, 2**31 - 1),
}
"""Least and greatest value of each number."""

SLOPPY: dict[str, Any] = {"fod_lmax": 8, "max_steps": 20, "peak_max": 3, "seeds": 1, "select": 2000}
"""What ``--sloppy`` changes, unless the same option is given too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Hold every option of the command line; a field is the long option's name with underscores.

    ``None`` means that the app decides from the data (``auto`` on the command line). Lengths are in mm, angles in
    degrees, b-values in s/mm2, ``mem`` in GB.

    Raises
    ------
    ValueError
        A value is outside its list or bounds, or two values contradict each other; all are named.
    """

    bids_dir: Path
    output_dir: Path
    analysis_level: str = "participant"

    participant_label: tuple[str, ...] = ()
    session_label: tuple[str, ...] = ()
    bids_filter_file: Path | None = None
    bids_database_dir: Path | None = None
    derivatives: Mapping[str, Path] = field(default_factory=dict)
    mask: Path | None = None
    input_type: str = "auto"
    skip_bids_validation: bool = False

    work_dir: Path | None = None
    keep_work: bool = False
    clean_workdir: bool = False
    nprocs: int = 1
    omp_nthreads: int = 1
    mem: float = 8.0
    device: str = "auto"
    precision: str = "float32"
    use_plugin: Path | None = None
    stop_on_first_crash: bool = False

    level: str = "full"
    gradient_check: str = "error"
    b0_threshold: float = 50.0
    shell_tolerance: float = 80.0
    responses: tuple[Path, ...] = ()
    fit: str = "amortised"
    weights: str = "packaged"
    fod_lmax: int = 12
    lambda_tv: float = 0.5
    tv_penalty: str = "squared"
    max_steps: int | None = None

    peak_max: int = 5
    peak_relative_threshold: float = 0.1
    peak_absolute_threshold: float | None = None
    peak_separation: float = 15.0

    tracking_algorithm: str = "prob"
    seeds: int = 2
    select: int = 0
    step_size: float | None = None
    max_angle: float = 45.0
    min_length: float = 20.0
    max_length: float = 250.0
    tractogram_format: tuple[str, ...] = ("trx",)

    random_seed: int = 0
    sloppy: bool = False
    overwrite: bool = False
    dry_run: str | None = None
    verbose: int = 0

    def __post_init__(self) -> None:
        problems = [*_outside_choices(self), *_outside_bounds(self), *_contradictions(self)]
        if problems:
            raise ValueError("; ".join(problems))

    def to_toml(self) -> str:
        """Return all values as TOML; a value of ``None`` is left out, as TOML has none."""
        content = {f.name: _plain(getattr(self, f.name)) for f in fields(self) if getattr(self, f.name) is not None}
        return f"# shd_bids {__version__}: shd_bids --config-file FILE runs this again\n" + tomli_w.dumps(content)

    @classmethod
    def from_toml(cls, text: str) -> "Settings":
        """Build settings from TOML as `to_toml` writes it.

        Raises
        ------
        ValueError
            Not TOML, an unknown name, a value of the wrong type or outside its bounds.
        """
        return cls(**values_from_toml(text))


def values_from_toml(text: str) -> dict[str, Any]:
    """Read some or all fields of `Settings` from TOML, with their right types.

    Names may be spelt with hyphens, as on the command line.

    Raises
    ------
    ValueError
        Not TOML, an unknown name, or a value of the wrong type.
    """
    content = {name.replace("-", "_"): value for name, value in tomllib.loads(text).items()}
    types = get_type_hints(Settings)
    if unknown := sorted(set(content) - set(types)):
        raise ValueError(f"unknown setting {', '.join(unknown)}; the names are those of the long options")
    return {name: _typed(name, value, types[name]) for name, value in content.items()}


def _typed(name: str, value: Any, annotation: Any) -> Any:
    """Turn a TOML value into the type of its field."""
    wrong = ValueError(f"{name}: found {value!r} ({type(value).__name__}), expected {_described(annotation)}")
    match annotation:
        case _ if annotation == Mapping[str, Path]:
            if not isinstance(value, dict) or not all(isinstance(path, str) for path in value.values()):
                raise wrong
            return {key: Path(path) for key, path in value.items()}
        case _ if annotation in (tuple[str, ...], tuple[Path, ...]):
            if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
                raise wrong
            return tuple(Path(item) if annotation == tuple[Path, ...] else item for item in value)
    kinds: tuple[tuple[Any, Any], ...] = ((Path, str), (str, str), (bool, bool), (int, int), (float, (int, float)))
    for kind, accepted in kinds:
        if annotation in (kind, kind | None):
            if not isinstance(value, accepted) or (kind is not bool and isinstance(value, bool)):
                raise wrong
            return kind(value)
    raise wrong


def _described(annotation: Any) -> str:
    return {
        Mapping[str, Path]: "a table of name = path",
        tuple[str, ...]: "a list of text",
        tuple[Path, ...]: "a list of paths",
    }.get(annotation, str(getattr(annotation, "__name__", annotation)).replace("pathlib.Path", "path"))


def _plain(value: Any) -> Any:
    """Return a value TOML can hold."""
    match value:
        case Path():
            return str(value)
        case tuple():
            return [_plain(item) for item in value]
        case Mapping():
            return {key: _plain(item) for key, item in value.items()}
    return value


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _outside_choices(settings: Settings) -> list[str]:
    problems = []
    for name, allowed in CHOICES.items():
        value = getattr(settings, name)
        chosen = value if isinstance(value, tuple) else (value,)
        problems += [
            f"{_option(name)}: found {item!r}, expected one of {', '.join(allowed)}"
            for item in chosen
            if item is not None and item not in allowed
        ]
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", settings.device):
        problems.append(f"--device: found {settings.device!r}, expected auto, cpu, cuda or cuda:N")
    return problems


def _outside_bounds(settings: Settings) -> list[str]:
    return [
        f"{_option(name)}: found {value:g}, expected {low:g} to {high:g}"
        for name, (low, high) in BOUNDS.items()
        if (value := getattr(settings, name)) is not None and not low <= value <= high
    ]


def _contradictions(settings: Settings) -> list[str]:
    problems = []
    if settings.fod_lmax % 2:
        problems.append(f"--fod-lmax: found {settings.fod_lmax}, expected an even degree")
    if settings.analysis_level == "participant" and settings.fit != "subject" and settings.weights == "none":
        problems.append(f"--fit {settings.fit} needs weights; use --fit subject with --weights none")
    if settings.min_length >= settings.max_length:
        problems.append(
            f"--min-length {settings.min_length:g} is not below --max-length {settings.max_length:g}; "
            "no streamline could pass"
        )
    if not settings.tractogram_format:
        problems.append("--tractogram-format: found none, expected at least one")
    return problems
