"""Published SHD-TV trained on the scan it serves, on another one, or on a cohort, and applied to scans it has not seen.

The trainings are those of ``shd_bids_training`` from nothing, without any truth; responses are each scan's own.
``small`` has the network of the other experiments and cubes of 7 voxels, ``full`` the published network and steps.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from found import find_maxima
from matplotlib.figure import Figure
from measured import scan_of
from scenes import FIRST_SEED, Scene, observe
from selection import select

from shd_bids import simulation
from shd_bids.fod.fit import fit_fod
from shd_bids.fod.weights import Weights, load_weights
from shd_bids.options import Runtime
from shd_bids.scan import Scan
from shd_bids.simulation.scoring import PeakScore, pooled, score_peaks
from shd_bids.training.adapt import AdaptationOptions, adapt
from tests.benchmarks.paper.base import Claim, Done, Experiment, Outcome, Settings, Unit
from tests.benchmarks.paper.figures import WIDTH, bars, grouped, save
from tests.benchmarks.paper.learned import FULL, SMALL, Effort, recipe_of

_SHELLS, _N_B0, _SNR = {1000.0: 30, 2500.0: 60}, 6, 30
_ANGLES, _RADIUS = (60.0, 90.0), 2.0  # of the layers, degrees; of the bundles, voxels
_ROW = "b1000 x 30 and b2500 x 60, SNR 30"
_OWN, _OTHER, _COHORT, _DEFAULT = "own scan", "another scan", "cohort", "shd_bids"


@dataclass(frozen=True)
class Sizes:
    """Edge of the cubes, scans of the cohort and new ones, and how long each network is trained."""

    edge: int
    cohort: int
    new: int
    effort: Effort


_SIZES = {
    "small": Sizes(7, cohort=3, new=1, effort=SMALL),
    "full": Sizes(40, cohort=20, new=5, effort=FULL),
}


def units(settings: Settings) -> Iterator[Unit]:
    """Yield the trainings of each seed, each with what it scores on the new scans."""
    sizes = _SIZES[settings.scale]
    for seed in range(settings.seeds):
        for method in (_OWN, _OTHER, _COHORT, _DEFAULT):
            run = partial(measure, method, sizes, seed=seed, device=settings.device)
            yield Unit(_ROW, method, seed, run, uses_weights=method == _DEFAULT)


def measure(method: str, sizes: Sizes, *, seed: int, device: str) -> Outcome:
    """Train as a method says, fit the new scans, and score their peaks; times, of the CPU or by the clock, are for one scan."""
    new = [subject((seed, 0, n), sizes.edge) for n in range(sizes.new)]
    scores, training, fitting = [], 0.0, 0.0
    clock = time.process_time if device == "cpu" else time.perf_counter
    weights = None if method == _OWN else _weights(method, sizes, seed=seed, device=device)
    for scene in new:
        began = clock()
        scan = _scan(scene)
        weights_here = weights or train([scan], sizes.effort, seed=seed, device=device)
        trained = clock()
        scores.append(_score(scene, scan, weights_here, device))
        training += (trained - began) if weights is None else 0.0
        fitting += clock() - trained
    summary = pooled(scores).summary()
    found = {name: summary[name] for name in ("pr_area", "f1", "angular_error")}
    return Outcome(found | {"training_seconds": training / sizes.new, "seconds": fitting / sizes.new})


def subject(seed: tuple[int, ...], edge: int) -> Scene:
    """Simulate one scan of two layers of crossing bundles, with microstructure, directions and noise of its own."""
    rng = np.random.default_rng((FIRST_SEED, *seed))
    phantom = simulation.crossing_phantom(rng, size=edge, angles=_ANGLES, radius=_RADIUS)
    return observe(rng, phantom, _SHELLS, n_b0=_N_B0, snr=_SNR)


def train(scans: Sequence[Scan], effort: Effort, *, seed: int, device: str) -> Weights:
    """Train SHD-TV from nothing on scans in turn, as many steps for each."""
    steps = effort.steps and len(scans) * effort.steps
    return adapt(
        scans,
        weights=None,
        device=torch.device(device),
        options=AdaptationOptions(max_steps=steps, seed=seed),
        checkpoint=None,
        progress=lambda stage, share: None,
        recipe=recipe_of("shd_tv", effort, None),
    ).weights


def _weights(method: str, sizes: Sizes, *, seed: int, device: str) -> Weights:
    """Return weights that have not seen the new scans; the first of the cohort is the one other scan."""
    if method == _DEFAULT:
        return load_weights()
    count = 1 if method == _OTHER else sizes.cohort
    scans = [_scan(subject((seed, 1, n), sizes.edge)) for n in range(count)]
    return train(scans, sizes.effort, seed=seed, device=device)


def _scan(scene: Scene) -> Scan:
    return scan_of(scene, select(scene, to_border=True)[0])


def _score(scene: Scene, scan: Scan, weights: Weights, device: str) -> PeakScore:
    fod = fit_fod(scan, weights, runtime=Runtime(device=device), refine=weights.is_refined)
    found = find_maxima(fod.wm)
    return score_peaks(found.directions, found.amplitudes, scene.truth)


def draw(done: Sequence[Done], file: Path) -> None:
    """Draw accuracy beside the processor time that a new scan costs."""
    figure = Figure((WIDTH, 3), layout="constrained")
    axes = figure.subplots(1, 3)
    labels = {"pr_area": "area under precision and recall", "angular_error": "angular error (°)"}
    for ax, (metric, label) in zip(axes, labels.items(), strict=False):
        bars(ax, grouped(done, metric), label=label)
        ax.set_xticks([])
    parts = [grouped(done, metric)[_ROW] for metric in ("training_seconds", "seconds")]
    costs = {method: sum(part[method].mean for part in parts) for method in parts[0]}
    axes[2].barh(list(costs), list(costs.values()), color="0.5")
    axes[2].set(xscale="log", xlim=(0.1, None), xlabel="processor time for a new scan (s)")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    save(figure, file)


EXPERIMENT = Experiment(
    "amortised",
    "Trained on the scan itself, on another one or on a cohort",
    units,
    ("pr_area", "f1", "angular_error", "training_seconds", "seconds"),
    draw,
    (
        Claim("a cohort serves new scans as well as a training on each", "pr_area", _COHORT, _OWN, margin=0.02),
        Claim("a cohort serves new scans better than one scan does", "pr_area", _COHORT, _OTHER),
        Claim("applying costs less than training", "training_seconds", _COHORT, _OWN),
        Claim("the default of the app finds more than a training on the scan", "pr_area", _DEFAULT, _OWN),
    ),
)
