"""What decides the trained weights: of the network that is trained on simulated crops, and of those trained on scans alone."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from shd_bids import simulation
from shd_bids.errors import TrainingError
from shd_bids.fod.config import CHANNELS, InputConfig
from shd_bids.fod.inputs.shells import shell_channels
from shd_bids.fod.inputs.volumes import InputVolumes
from shd_bids.gradients.table import GradientTable
from shd_bids.nn.unet import UNetConfig
from shd_bids.response import TISSUES
from shd_bids.training.objective import LossWeights

_SPATIAL_LEVELS = 2  # at most, of a network that is trained on simulated crops
_MILESTONES = (0.6, 0.8, 0.9)  # epochs 30, 40 and 45 of the 50 published
_NO_TRUTH = {"hellinger": 0.0, "fibre_density": 0.0, "fractions": 0.0}


@dataclass(frozen=True)
class TrainingConfig:
    """Everything that decides the trained weights.

    Attributes
    ----------
    nside, channels, l_max : network resolution, features of each level, and degree of its fODF
    convs_per_block : int
        Convolutions in each encoder, bottom and decoder block.
    size : int
        Side of a training crop, voxels.
    batch : int
        Crops of a step, each of another subject and protocol; processes that train together share them evenly.
    steps : int
    learning_rate : float
        Highest of a schedule with a short linear rise and a cosine fall to zero.
    frozen_share : float
        Last part of the training in which batch normalisation keeps its averages.
    averaged_share : float
        Last part of the training whose states are averaged into the weights that are written: they have less of the noise of
        single crops.
    pool, reuse : int
        Crops held in memory at a time, and how often each is shown; ``batch`` must divide ``pool``.
    seed : int
    precision : {"float32", "bf16"}
        Of the network; parameters, their updates and the loss are always in float32. The command trains in bf16 on a GPU alone.
    input : {"estimates", "shells"}
        What the network is fed with: estimates that serve any protocol, or, as published, the shells of one.
    protocol : dict
        b-value -> directions of the only protocol to draw, the keys as text; empty draws protocols of all kinds.
    """

    nside: int = 8
    channels: tuple[int, ...] = (16, 32, 32, 32)
    convs_per_block: int = 2
    l_max: int = 18
    size: int = 12
    batch: int = 2
    steps: int = 3000
    learning_rate: float = 4e-3
    frozen_share: float = 0.15
    averaged_share: float = 0.0
    reuse: int = 2
    pool: int = 48
    seed: int = 1
    precision: str = "float32"
    input: str = "estimates"
    protocol: dict[str, int] = field(default_factory=dict)
    loss: LossWeights = field(default_factory=LossWeights)

    @classmethod
    def from_toml(cls, text: str) -> TrainingConfig:
        """Read a configuration; unknown names are errors."""
        values = tomllib.loads(text)
        _refuse_unknown(cls, values)
        loss = LossWeights(**values.pop("loss", {}))
        if "channels" in values:
            values["channels"] = tuple(values["channels"])
        return cls(**values, loss=loss)

    def __post_init__(self) -> None:
        if self.pool % self.batch:
            raise TrainingError(f"pool is {self.pool}, expected a multiple of batch, {self.batch}")
        if self.precision not in ("float32", "bf16"):
            raise TrainingError(f"precision is {self.precision!r}, expected 'float32' or 'bf16'")
        if self.input not in ("estimates", "shells"):
            raise TrainingError(f"input is {self.input!r}, expected 'estimates' or 'shells'")
        if self.input == "shells" and not self.protocol:
            raise TrainingError(
                "a network fed with shells serves one protocol; give it as [protocol], b-value = directions"
            )

    @property
    def inputs(self) -> InputConfig:
        """Input of the network."""
        if self.input == "estimates":
            return InputConfig()
        return InputConfig(channels=shell_channels([0.0, *sorted(map(float, self.protocol))]))

    def gradients(self, rng: np.random.Generator) -> GradientTable:
        """Draw the gradient table of a case."""
        if not self.protocol:
            return simulation.random_gradients(rng)
        shells = {float(b): n for b, n in self.protocol.items()}
        return simulation.make_gradients(rng, dict(sorted(shells.items())), n_b0=int(rng.integers(1, 10)))

    def network(self) -> UNetConfig:
        """Return the configuration of the network."""
        return UNetConfig(
            in_channels=len(self.inputs.channels),
            out_channels=len(TISSUES),
            nside=self.nside,
            channels=self.channels,
            convs_per_block=self.convs_per_block,
            spatial_levels=min(_SPATIAL_LEVELS, len(self.channels)),
        )


@dataclass(frozen=True)
class ScanTraining:
    """How a network is trained on scans.

    Attributes
    ----------
    steps : int
        For each scan, where no ``epochs`` are given.
    epochs : int
        Times that every voxel of a scan is the centre of a crop; 0 goes by ``steps``.
    most_steps : int
        For all scans together.
    batch : int
        Crops of a step, all of one scan; processes that train together share them evenly.
    learning_rate : float
        At the start.
    decay : {"cosine", "stepwise"}
        Half a cosine to zero, or, as published, a tenth after 60, 80 and 90 % of the steps each.
    held_out : float
        Share of the directions of each shell that are neither shown nor asked for; their error decides when to stop, and which
        state of the network is kept. With 0 the last one is, as published.
    hidden : float
        Share of the other directions that a step hides from the network and asks for all the same; 0 as published.
    views : int
        Choices of hidden directions, which steps take in turn.
    check_every : int
        Steps for each scan between two looks at the held-out directions.
    patience : int
        Looks without a smaller error after which the training ends.
    """

    steps: int = 400
    epochs: int = 0
    most_steps: int = 2000
    batch: int = 1
    learning_rate: float = 3e-3
    decay: str = "cosine"
    held_out: float = 0.12
    hidden: float = 0.15
    views: int = 6
    check_every: int = 10
    patience: int = 4

    def __post_init__(self) -> None:
        if self.decay not in ("cosine", "stepwise"):
            raise TrainingError(f"decay is {self.decay!r}, expected 'cosine' or 'stepwise'")

    def n_steps(self, n_voxels: Sequence[int]) -> int:
        """Return the number of steps for scans of so many voxels."""
        each = [self.epochs * -(-n // self.batch) if self.epochs else self.steps for n in n_voxels]
        return min(sum(each), self.most_steps)

    def rate(self, step: int, *, n_steps: int) -> float:
        """Return the learning rate of a step."""
        if self.decay == "stepwise":
            return self.learning_rate * 0.1 ** sum(step >= share * n_steps for share in _MILESTONES)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * step / n_steps))


@dataclass(frozen=True)
class NetworkRecipe:
    """A network to train on scans without a truth: what it is, what it sees, its loss, and how it is used.

    Attributes
    ----------
    method : str
        Its name in records.
    network : dict
        Fields of :class:`~shd_bids.nn.unet.UNetConfig` but the numbers of channels.
    training : ScanTraining
    loss : LossWeights
    input : {"estimates", "shells"}
        Estimates that serve any protocol, or, as published, the shells of one.
    input_volumes : InputVolumes or None
        None shows the network all volumes.
    isotropic : {"mean", "max"}
        What of the vertices the fraction of GM or CSF is; published: the maximum.
    l_max : int
        Degree of its fODF.
    refinement : bool
        Whether its results are refined by the data, unless the user decides.
    """

    method: str
    network: Mapping[str, Any]
    training: ScanTraining
    loss: LossWeights
    input: str = "estimates"
    input_volumes: InputVolumes | None = None
    isotropic: str = "mean"
    l_max: int = 18
    refinement: bool = True

    @classmethod
    def from_toml(cls, text: str) -> NetworkRecipe:
        """Read a recipe; unknown names are errors."""
        values = tomllib.loads(text)
        _refuse_unknown(cls, values)
        parts = {"training": ScanTraining, "loss": LossWeights, "input_volumes": InputVolumes}
        missing = sorted({"method", "network", "training", "loss"} - set(values))
        if missing:
            raise TrainingError(f"the recipe of a network lacks {missing}")
        for name in set(parts) & set(values):
            _refuse_unknown(parts[name], values[name])
            values[name] = parts[name](**_NO_TRUTH | values[name] if name == "loss" else values[name])
        return cls(**values)

    def __post_init__(self) -> None:
        if self.input not in ("estimates", "shells"):
            raise TrainingError(f"input is {self.input!r}, expected 'estimates' or 'shells'")
        if self.isotropic not in ("mean", "max"):
            raise TrainingError(f"isotropic is {self.isotropic!r}, expected 'mean' or 'max'")
        if self.input_volumes and self.input != "shells":
            raise TrainingError("input_volumes are those of a network that is fed with shells; give input = 'shells'")
        if self.loss.hellinger or self.loss.fibre_density or self.loss.fractions:
            raise TrainingError("scans have no truth: hellinger, fibre_density and fractions must be 0")
        try:
            self.unet(1)
        except (TypeError, ValueError) as error:
            raise TrainingError(f"[network] describes no network: {error}") from error

    def unet(self, in_channels: int) -> UNetConfig:
        """Return the configuration of the network for so many input channels."""
        return UNetConfig(in_channels, len(TISSUES), **self.network)

    def channels(self, gradients: GradientTable) -> tuple[str, ...]:
        """Name the input channels for the protocol of a scan."""
        if self.input == "estimates":
            return CHANNELS
        if self.input_volumes:
            gradients = gradients.select(self.input_volumes.choose(gradients))
        return shell_channels(shell.bvalue for shell in gradients.shells)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-safe values."""
        return asdict(self) | {"network": dict(self.network)}


def load_network_recipe(name_or_path: str | Path) -> NetworkRecipe:
    """Read a recipe of the package by its name, or one from a TOML file.

    Raises
    ------
    TrainingError
        When there is none, or it has settings that are not known or do not fit.
    """
    shipped = files("shd_bids.training") / "recipes" / f"{name_or_path}.toml"
    path = shipped if shipped.is_file() else Path(name_or_path)
    if not path.is_file():
        raise TrainingError(f"no recipe of a network at {name_or_path}; give conditioned, published or a TOML file")
    try:
        return NetworkRecipe.from_toml(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise TrainingError(f"{name_or_path} is no TOML file: {error}") from error


def _refuse_unknown(kind: type, values: Mapping[str, Any]) -> None:
    known = [f.name for f in fields(kind)]
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise TrainingError(f"unknown training settings {unknown}; known: {known}")


def learning_rate(step: int, config: TrainingConfig) -> float:
    """Return the rate of a step: linear rise over 3 % of the budget, then a half cosine to zero."""
    rise = max(1, round(0.03 * config.steps))
    if step < rise:
        return config.learning_rate * (step + 1) / rise
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, config.steps - rise)))
