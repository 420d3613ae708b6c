"""An experiment: units of work whose results are kept, its table and the claims of the paper that it checks."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from shd_bids.files import atomic_path

Values = Mapping[str, float]
"""Metric -> value."""


@dataclass(frozen=True)
class Settings:
    """How an experiment is run.

    Attributes
    ----------
    seeds : int
        Each draws the volumes, their noise and the first weights of the networks.
    scale : {"small", "full"}
        Of the volumes and trainings; ``full`` has the sizes of the paper.
    device : str
        Of the networks.
    cache : Path
        Folder in which results are kept.
    """

    seeds: int
    scale: str
    device: str
    cache: Path

    @property
    def is_small(self) -> bool:
        """Whether the sizes are those for a processor."""
        return self.scale == "small"


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a unit of work measured, and arrays that a figure is drawn from."""

    values: Values
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Unit:
    """One method on one row of the table with one seed.

    Attributes
    ----------
    row, method : str
    seed : int
    run : callable
        Returns the outcome.
    uses_weights : bool
        Whether the result changes with the shipped weights.
    """

    row: str
    method: str
    seed: int
    run: Callable[[], Outcome]
    uses_weights: bool = False

    @property
    def name(self) -> str:
        """Row, method and seed in characters for files."""
        return re.sub(r"[^\w.+-]+", "_", f"{self.row}-{self.method}-{self.seed}")


@dataclass(frozen=True, eq=False)
class Done:
    """A unit of work whose outcome is kept in a folder."""

    unit: Unit
    folder: Path

    @property
    def is_kept(self) -> bool:
        """Whether there is an outcome."""
        return self._values.exists()

    @property
    def values(self) -> dict[str, float]:
        """The kept values by metric."""
        return json.loads(self._values.read_text(encoding="utf-8"))

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """The kept arrays by name."""
        with np.load(self._arrays) as kept:
            return dict(kept)

    def keep(self, outcome: Outcome) -> None:
        """Write an outcome, its values last: they say that it is whole."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_path(self._arrays) as path, path.open("wb") as file:
            np.savez_compressed(file, **outcome.arrays)
        with atomic_path(self._values) as path:
            path.write_text(json.dumps({k: float(v) for k, v in outcome.values.items()}), encoding="utf-8")

    @property
    def _values(self) -> Path:
        return self.folder / f"{self.unit.name}.json"

    @property
    def _arrays(self) -> Path:
        return self.folder / f"{self.unit.name}.npz"


@dataclass(frozen=True)
class Claim:
    """An ordering that the paper states: one method better than another in a metric of some rows.

    Attributes
    ----------
    text : str
    metric, better, worse : str
        Metric and methods.
    rows : tuple of str
        All rows of the table where empty.
    margin : float
        By which the first may be worse and the claim still hold.
    """

    text: str
    metric: str
    better: str
    worse: str
    rows: tuple[str, ...] = ()
    margin: float = 0.0


@dataclass(frozen=True, eq=False)
class Experiment:
    """One experiment of the paper.

    Attributes
    ----------
    name : str
        Of its command, of its results ``paper_NAME.csv`` and of its figure.
    title : str
    units : callable
        Settings -> units of work, in the order in which they are done.
    metrics : tuple of str
        Columns of its table, keys of ``results.METRICS``.
    draw : callable or None
        Units with kept outcomes, file -> draws the figure.
    claims : tuple of Claim
    """

    name: str
    title: str
    units: Callable[[Settings], Iterator[Unit]]
    metrics: tuple[str, ...]
    draw: Callable[[Sequence[Done], Path], None] | None = None
    claims: tuple[Claim, ...] = ()

    @property
    def source(self) -> str:
        """Name of its results file."""
        return f"paper_{self.name}"

    def kept(self, settings: Settings) -> list[Done]:
        """Return the units of work with the places of their outcomes."""
        folder = settings.cache / self.name / settings.scale
        return [Done(unit, folder) for unit in self.units(settings)]
