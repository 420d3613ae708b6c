"""Segment digits on the sphere in a volume (Fig. 11 of the paper), with and without rotations in training and test.

Training volumes are drawn anew in every step; test volumes hold images that no training shows. Loss as published for RT-ESD: half
the Dice loss, half the cross-entropy, both with equal weight of all classes where half of the voxels are background. Dice is the
mean over digits, of all voxels of the test volumes together.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional

from shd_bids.nn.unet import UNet, UNetConfig
from tests.benchmarks.paper import digits
from tests.benchmarks.paper.base import Claim, Done, Experiment, Outcome, Settings, Unit
from tests.benchmarks.paper.digits import ROTATIONS, Digits
from tests.benchmarks.paper.equivariance import CONCATENATED, HARMONIC, MIXED
from tests.benchmarks.paper.figures import WIDTH, bars, grouped, save
from tests.benchmarks.paper.plain_unet import HarmonicUNet, concatenated

_TRAININGS = {"none": "trained without rotations", "independent": "trained with rotations"}
_FINE = f"{MIXED}, 384 vertices"
"""The same on the sphere of the full scale: what the coarse one of the small scale costs."""

_SH_DEGREE = 6  # as published for RT-ESD
_RATES = {MIXED: 5e-3, _FINE: 5e-3, HARMONIC: 5e-3, CONCATENATED: 1e-3}
"""Learning rates; with that of the others, the one of 15 times as many weights stays with the background."""


@dataclass(frozen=True)
class Sizes:
    """Volumes, networks and training of one scale.

    Attributes
    ----------
    volume : digits.Sizes
    channels, wide : tuple of int
        Features of the levels, and of those of the network on harmonics, whose features have no vertices.
    steps, batch, n_test : int
    """

    volume: digits.Sizes
    channels: tuple[int, ...]
    wide: tuple[int, ...]
    steps: int
    batch: int
    n_test: int


_SIZES = {
    "small": Sizes(digits.Sizes(6, 3, 2, 4, nside=4), (8, 16), (48, 96), steps=450, batch=1, n_test=10),
    "full": Sizes(digits.Sizes(16, 9, 4, 10, nside=8), (16, 32, 64), (128, 256, 512), steps=5000, batch=4, n_test=100),
}


def units(settings: Settings) -> Iterator[Unit]:
    """Yield the trainings of each seed."""
    sizes = _SIZES[settings.scale]
    for seed in range(settings.seeds):
        for rotation, row in _TRAININGS.items():
            for method in (MIXED, CONCATENATED, HARMONIC, *(_FINE,) * (settings.is_small and rotation == "none")):
                yield Unit(
                    row, method, seed, partial(measure, method, rotation, sizes, seed=seed, device=settings.device)
                )


def measure(method: str, rotation: str, sizes: Sizes, *, seed: int, device: str) -> Outcome:
    """Train a network on volumes of one kind, and return its Dice on volumes of every kind."""
    torch.manual_seed(seed)
    if method == _FINE:
        sizes = replace(sizes, volume=replace(sizes.volume, nside=8))
    net = network(method, sizes).to(device)
    train(net, sizes, rotation, rate=_RATES[method], seed=seed, device=device)
    data = Digits.load(n_digits=sizes.volume.n_digits, test=True)
    return Outcome(
        {f"dice_{kind}": test(net.eval(), data, sizes, kind, seed=seed, device=device) for kind in ROTATIONS}
    )


def network(method: str, sizes: Sizes) -> nn.Module:
    """Return an untrained network of one kind of convolution, (B, 1, X, Y, Z, V) to (B, classes, X, Y, Z, V)."""
    levels = UNetConfig(1, sizes.volume.n_digits + 1, nside=sizes.volume.nside, channels=sizes.channels)
    if method in (MIXED, _FINE):
        return UNet(levels)
    if method == CONCATENATED:
        return concatenated(levels)
    wide = UNetConfig(1, levels.out_channels, nside=levels.nside, channels=sizes.wide)
    return HarmonicUNet(wide, degree=_SH_DEGREE, out_degree=0)


def train(net: nn.Module, sizes: Sizes, rotation: str, *, rate: float, seed: int, device: str) -> None:
    """Take Adam's steps with a learning rate that falls by half a cosine."""
    data, rng = Digits.load(n_digits=sizes.volume.n_digits, test=False), np.random.default_rng((seed, 0))
    optimiser = torch.optim.Adam(net.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda n: 0.5 * (1 + math.cos(math.pi * n / sizes.steps)))
    for _ in range(sizes.steps):
        x, labels = batch(rng, data, sizes, rotation, device=device)
        optimiser.zero_grad()
        loss(net(x).mean(-1), labels).backward()
        optimiser.step()
        schedule.step()


def batch(rng: np.random.Generator, data: Digits, sizes: Sizes, rotation: str, *, device: str) -> tuple[Tensor, Tensor]:
    """Draw volumes (B, 1, X, Y, Z, V) and their labels (B, X, Y, Z)."""
    drawn = [digits.volume(rng, data, sizes.volume, rotation) for _ in range(sizes.batch)]
    signals, labels = (torch.tensor(np.stack(part), device=device) for part in zip(*drawn, strict=True))
    return signals[:, None], labels


def loss(scores: Tensor, labels: Tensor) -> Tensor:
    """Return half the weighted Dice loss and half the weighted cross-entropy of scores (B, C, X, Y, Z)."""
    classes = scores.shape[1]
    weight = torch.full((classes,), (classes - 1) / classes, device=scores.device)
    weight[-1] = 1 / classes
    truth = functional.one_hot(labels, classes).movedim(-1, 1)
    share, dims = scores.softmax(1), (0, 2, 3, 4)
    common, whole = ((weight * part.sum(dims)).sum() for part in (share * truth, share + truth))
    return 0.5 * (1 - 2 * common / whole) + 0.5 * functional.cross_entropy(scores, labels, weight)


def test(net: nn.Module, data: Digits, sizes: Sizes, rotation: str, *, seed: int, device: str) -> float:
    """Return the mean Dice over digits in new volumes."""
    rng = np.random.default_rng((seed, 1))
    pairs = []
    with torch.inference_mode():
        for _ in range(sizes.n_test):
            x, labels = batch(rng, data, sizes, rotation, device=device)
            pairs.append((net(x).mean(-1).argmax(1).flatten(), labels.flatten()))
    found, true = (torch.cat(parts).cpu().numpy() for parts in zip(*pairs, strict=True))
    return dice(found, true, sizes.volume.n_digits)


def dice(found: np.ndarray, true: np.ndarray, n_digits: int) -> float:
    """Return the mean over the digits that occur of twice the common voxels over the sum of both."""
    names = [n for n in range(n_digits) if n in true]
    return float(
        np.mean([2 * np.sum((found == n) & (true == n)) / (np.sum(found == n) + np.sum(true == n)) for n in names])
    )


def draw(done: Sequence[Done], file: Path) -> None:
    """Draw Dice for each rotation of the test, one panel for each training."""
    figure = Figure((WIDTH, 3.2), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for ax, row in zip(axes, _TRAININGS.values(), strict=True):
        here = [item for item in done if item.unit.row == row]
        by_kind = {kind: grouped(here, f"dice_{kind}").get(row, {}) for kind in ROTATIONS}
        bars(ax, by_kind, label="Dice" if row == _TRAININGS["none"] else "")
        ax.set(title=row, ylim=(0, 1), xlabel="rotated in the test")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    save(figure, file)


_NONE, _ROTATED = ((row,) for row in _TRAININGS.values())
EXPERIMENT = Experiment(
    "mnist",
    "R3 x S2 MNIST (Fig. 11)",
    units,
    tuple(f"dice_{kind}" for kind in ROTATIONS),
    draw,
    (
        Claim("E(3)xSO(3) generalises to unseen rotations of voxels", "dice_voxel", MIXED, HARMONIC, _NONE),
        Claim("the same on a finer sphere", "dice_voxel", _FINE, HARMONIC, _NONE),
        Claim("E(3)xSO(3) generalises better on a finer sphere", "dice_voxel", _FINE, MIXED, _NONE),
        Claim("E(3)xSO(3) generalises to unseen rotations of both", "dice_independent", MIXED, CONCATENATED, _NONE),
        Claim("E(3)xSO(3) generalises to unseen rotations of both", "dice_independent", MIXED, HARMONIC, _NONE),
        Claim("the same on a finer sphere", "dice_independent", _FINE, HARMONIC, _NONE),
        Claim("E(3)xSO(3) is the best with rotations in training", "dice_independent", MIXED, HARMONIC, _ROTATED),
        Claim("E(3)xSO(3) is the best with rotations in training", "dice_independent", MIXED, CONCATENATED, _ROTATED),
    ),
)
