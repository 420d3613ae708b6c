"""What decides the trained weights: the network, the simulated crops, the schedule and the loss."""

from __future__ import annotations

import math
import tomllib
from dataclasses import dataclass, field, fields

import numpy as np

from shd_bids import simulation
from shd_bids.errors import TrainingError
from shd_bids.fod.inputs.estimates import CHANNELS, shell_channels
from shd_bids.gradients.table import GradientTable
from shd_bids.nn.unet import UNetConfig
from shd_bids.training.objective import LossWeights

TISSUES = ("wm", "gm", "csf")
"""Output channels of the network."""


@dataclass(frozen=True)
class TrainingConfig:
    """Everything that decides the trained weights.

    Attributes
    ----------
    nside, channels, l_max : network resolution, features of each level, and degree of its fODF
    size : int
        Side of a training crop, voxels.
    batch : int
        Crops of a step, each of another subject and protocol; processes that train together share them evenly.
    steps : int
    start_share : float
        Of the weights started from, in those that are written: a mean of both has less of the noise of the last crops.
    learning_rate : float
        Highest of a schedule with a short linear rise and a cosine fall to zero.
    frozen_share : float
        Last part of the training in which batch normalisation keeps its averages.
    sharpness : float
        Concentration kappa of the lobe ``exp(-kappa sin^2)`` that stands for a fibre in the truth.
    narrowness, straight_share, sparse_share : float
        Of the crossings that are drawn, see :func:`shd_bids.simulation.phantoms.random_phantom`.
    pool, reuse : int
        Crops held in memory at a time, and how often each is shown; ``batch`` must divide ``pool``.
    seed : int
    precision : {"float32", "bf16"}
        Of the network; parameters, their updates and the loss are always in float32.
    input : {"estimates", "shells"}
        What the network is fed with: estimates that serve any protocol, or, as published, the shells of one.
    protocol : dict
        b-value -> directions of the only protocol to draw, the keys as text; empty draws protocols of all kinds.
    """

    nside: int = 8
    channels: tuple[int, ...] = (16, 32, 32, 32)
    l_max: int = 18
    size: int = 12
    batch: int = 2
    steps: int = 3000
    start_share: float = 0.0
    learning_rate: float = 4e-3
    frozen_share: float = 0.15
    sharpness: float = 45.0
    narrowness: float = 1.0
    straight_share: float = 0.0
    sparse_share: float = 0.0
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
        unknown = sorted(set(values) - {f.name for f in fields(cls)})
        if unknown:
            raise TrainingError(f"unknown training settings {unknown}; known: {[f.name for f in fields(cls)]}")
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
    def input_channels(self) -> tuple[str, ...]:
        """Name the input channels of the network."""
        return CHANNELS if self.input == "estimates" else shell_channels([0.0, *sorted(map(float, self.protocol))])

    def gradients(self, rng: np.random.Generator) -> GradientTable:
        """Draw the gradient table of a case."""
        if not self.protocol:
            return simulation.random_gradients(rng)
        shells = {float(b): n for b, n in self.protocol.items()}
        return simulation.make_gradients(rng, dict(sorted(shells.items())), n_b0=int(rng.integers(1, 10)))

    def network(self) -> UNetConfig:
        """Return the configuration of the network."""
        return UNetConfig(
            in_channels=len(self.input_channels), out_channels=len(TISSUES), nside=self.nside, channels=self.channels
        )


def learning_rate(step: int, config: TrainingConfig) -> float:
    """Return the rate of a step: linear rise over 3 % of the budget, then a half cosine to zero."""
    rise = max(1, round(0.03 * config.steps))
    if step < rise:
        return config.learning_rate * (step + 1) / rise
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, config.steps - rise)))
