"""Train the published networks from nothing on one small simulated scan, and compare the fibres that they find.

    OMP_NUM_THREADS=1 python tests/benchmarks/networks.py [--methods ...] [--steps 100] [--size 9] [--seed 0]
                                                          [--cache DIR] [--weights FILE] [--threads 1] [--save] [--compare]

SHD-TV (``published``), SHD, RT-ESD and ESD of Elaldi et al. and the network of any protocol (``conditioned``) see nothing
but the scan. Each takes ``--steps`` steps, far fewer than the published fifty epochs of a whole brain, with the published
fall of the learning rate within them. The trained weights of the package and ``msmt_csd`` of MRtrix3 get the same files.
Time is that of the processor, of training and fit together. Of the trained networks the mean squared error of the signal
is printed, averaged over tenths of the training. ``--cache`` keeps a training that was stopped, for the next call to go on
with; its time is not recorded.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import peers
import results
import scenes
import torch
from found import Found, find_maxima
from measured import scan_of
from results import METRICS
from scenes import Scene
from selection import select

from shd_bids import simulation
from shd_bids.fod.fit import fit_fod
from shd_bids.fod.weights import load_weights
from shd_bids.options import Runtime
from shd_bids.simulation.scoring import score_peaks
from shd_bids.training.adapt import AdaptationOptions, adapt
from shd_bids.training.config import load_network_recipe

RECIPES = ("published", "shd", "rt_esd", "esd", "conditioned")
"""Networks that are trained on the scan."""

_SHELLS, _N_B0, _SNR = {1000.0: 30, 2500.0: 60}, 6, 30
_ANGLES, _RADIUS = (60.0, 90.0), 2.0  # of the layers, degrees; of the bundles, voxels
_NAMES = ("pr_area", "angular_error", "f1", "seconds")


def main() -> int:
    """Run every method on the scan, and print and record what was found."""
    options = _options()
    warnings.simplefilter("ignore")
    weights = load_weights(options.weights)
    others = [name for name in options.methods if name not in RECIPES]
    checkpoints = {name: checkpoint_of(name, options) for name in RECIPES}
    train = {
        name: partial(trained, name, steps=options.steps, seed=options.seed, checkpoint=checkpoint)
        for name, checkpoint in checkpoints.items()
    }
    methods = train | peers.methods(others, weights, to_border=True)
    scan = scene(options.size)
    row = f"b1000 x 30 and b2500 x 60, {_SNR}, {options.size}^3, {options.steps} steps"
    print(f"{row}\n", _line(["method", *(METRICS[name].label for name in _NAMES)]), "|---" * 5 + "|", sep="\n")
    figures = []
    for name in (name for name in options.methods if name in methods):
        checkpoint = checkpoints.get(name)
        shown = [key for key in _NAMES if key != "seconds" or checkpoint is None or not checkpoint.exists()]
        values = measure(methods[name], scan)
        print(_line([name, *(METRICS[key].form.format(values[key]) for key in shown)]), flush=True)
        recorded = {name: {"": {key: values[key] for key in shown}}}
        figures += peers.figures_of(row, recorded, weights, threads=options.threads)
    return results.finish("networks", figures, options)


def checkpoint_of(name: str, options: argparse.Namespace) -> Path | None:
    """Return where a training of a recipe is kept while it is not at its end, if anywhere."""
    if options.cache is None:
        return None
    return options.cache / f"{name}_{options.size}_{options.steps}_{options.seed}.pt"


def scene(size: int) -> Scene:
    """Simulate two layers of crossing bundles between grey matter and CSF."""
    rng = np.random.default_rng(scenes.FIRST_SEED)
    phantom = simulation.crossing_phantom(rng, size=size, angles=_ANGLES, radius=_RADIUS)
    return scenes.observe(rng, phantom, _SHELLS, n_b0=_N_B0, snr=_SNR)


def measure(method: peers.Method, scan: Scene) -> dict[str, float]:
    """Score the peaks that a method finds, and return the figures with its processor time in seconds."""
    began = _processor_time()
    found = method(scan)
    seconds = _processor_time() - began
    return score_peaks(found.directions, found.amplitudes, scan.truth).summary() | {"seconds": seconds}


def trained(name: str, volume: Scene, *, steps: int, seed: int, checkpoint: Path | None = None) -> Found:
    """Train the network of a recipe on the scan, and find the peaks of its fODF, refined by the data where the recipe says so."""
    scan = scan_of(volume, select(volume, to_border=True)[0])
    adapted = adapt(
        [scan],
        weights=None,
        device=torch.device("cpu"),
        options=AdaptationOptions(max_steps=steps, seed=seed),
        checkpoint=checkpoint,
        progress=lambda stage, share: None,
        recipe=load_network_recipe(name),
    )
    errors = _errors_by_tenth(adapted.facts["history"])
    print(f"{name}, error of the signal: {' '.join(f'{error:.2e}' for error in errors)}", file=sys.stderr, flush=True)
    weights = adapted.weights
    return find_maxima(fit_fod(scan, weights, runtime=Runtime(device="cpu"), refine=weights.is_refined).wm)


def _errors_by_tenth(history: Sequence[dict[str, Any]]) -> list[float]:
    errors = [record["reconstruction"] for record in history if "reconstruction" in record]
    return [float(part.mean()) for part in np.array_split(errors, min(10, len(errors)))]


def _processor_time() -> float:
    """Return the processor time of this process and of the programs that it ran, seconds."""
    return sum(os.times()[:4])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _options() -> argparse.Namespace:
    parser = results.command(__doc__)
    parser.add_argument("--methods", nargs="+", default=[*RECIPES, "amortised", "msmt_csd"])
    parser.add_argument("--steps", type=int, default=100, help="of each training")
    parser.add_argument("--size", type=int, default=9, help="of the cube, voxels")
    parser.add_argument("--seed", type=int, default=0, help="of the trainings")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="folder that keeps trainings that were stopped")
    return results.parse(parser)


if __name__ == "__main__":
    sys.exit(main())
