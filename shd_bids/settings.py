"""Everything the user chose, as one frozen value: built once at the edge, written as TOML beside the outputs."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import tomli_w

from shd_bids import __version__
from shd_bids.group_options import GroupOptions
from shd_bids.option import Option, Options, option_of
from shd_bids.options import (
    ExecutionOptions,
    FodOptions,
    GradientOptions,
    InputOptions,
    PeakOptions,
    Runtime,
    TrackingOptions,
    TractogramOptions,
)

G = TypeVar("G", bound=Options)


@dataclass(frozen=True, kw_only=True)
class Settings(
    GroupOptions,
    ExecutionOptions,
    TractogramOptions,
    TrackingOptions,
    PeakOptions,
    FodOptions,
    GradientOptions,
    InputOptions,
):
    """Hold every option of the command line; a field is the long option's name with underscores.

    ``None`` means that the app decides from the data (``auto`` on the command line). Lengths are in mm, angles in
    degrees, b-values in s/mm2, ``mem`` in GB.

    Raises
    ------
    ValueError
        A value is outside its list or bounds, or two values contradict each other; all are named.
    """

    @property
    def gradients(self) -> GradientOptions:
        """Return how gradients are read and tested."""
        return self._group(GradientOptions)

    @property
    def fod(self) -> FodOptions:
        """Return how fODFs are fitted."""
        return self._group(FodOptions)

    @property
    def peaks(self) -> PeakOptions:
        """Return which maxima count as fibre directions."""
        return self._group(PeakOptions)

    @property
    def tracking(self) -> TrackingOptions:
        """Return how streamlines are tracked."""
        return self._group(TrackingOptions)

    @property
    def tractogram(self) -> TractogramOptions:
        """Return what is made of the streamlines."""
        return self._group(TractogramOptions)

    @property
    def runtime(self) -> Runtime:
        """Return where and with what stages compute."""
        return Runtime(device=self.device, precision=self.precision, memory_gb=self.mem, seed=self.random_seed)

    def problems(self) -> list[str]:
        found = super().problems()
        if self.analysis_level == "participant" and self.fit != "subject" and self.weights == "none":
            found.append(f"--fit {self.fit} needs weights; use --fit subject with --weights none")
        if self.analysis_level == "group" and self.fit != "cohort" and self.responses:
            found.append("--responses: the group level makes the means of those estimated; leave the option out")
        if self.analysis_level == "participant" and (self.group_by or self.ratings):
            found.append("--group-by and --ratings are of the group level; leave them out")
        if self.parcellation and self.level != "full":
            found.append(
                f"--parcellation: connectomes are made of streamlines; found --level {self.level}, expected full"
            )
        return found

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

    def _group(self, kind: type[G]) -> G:
        return kind(**{item.name: getattr(self, item.name) for item in fields(kind)})


OPTIONS: dict[str, Option] = {item.name: option_of(item) for item in fields(Settings)}
"""What is known of each field."""

SLOPPY: dict[str, Any] = {name: known.sloppy for name, known in OPTIONS.items() if known.sloppy is not None}
"""What ``--sloppy`` changes, unless the same option is given too."""


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
