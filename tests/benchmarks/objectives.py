"""Train one network on the same simulated crops by the truth, by the losses of the paper, or by both, and compare the fibres.

    OMP_NUM_THREADS=1 python tests/benchmarks/objectives.py [--methods ...] [--steps 400] [--seed 1] [--size 16]
                                                            [--cache DIR] [--threads 1] [--save] [--compare]

Every training sees the same crops in the same order, for as many steps. The volumes are those of ``accuracy.py``, with
seeds that training never reaches; the fODFs of a network are scored as they are and refined by the data. ``--cache`` keeps
the trainings, so that the next call goes on where one was stopped.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from argparse import Namespace
from pathlib import Path

import peers
import results
import scenes
from found import find_maxima
from measured import scan_of
from results import METRICS
from scenes import Scene
from selection import select

from shd_bids.fod.fit import fit_fod
from shd_bids.fod.weights import Weights, load_weights
from shd_bids.options import Runtime
from shd_bids.simulation.scoring import PeakScore, score_peaks
from shd_bids.training.config import TrainingConfig
from shd_bids.training.objective import LossWeights
from shd_bids.training.train import train

OBJECTIVES = {
    "supervised": LossWeights(),
    "paper": LossWeights(0.0, 0.0, 0.0, reconstruction=1.0, negativity=0.1, sparsity=5e-5, smoothness=0.5),
    "both": LossWeights(reconstruction=1.0, negativity=0.1, sparsity=5e-5, smoothness=0.5),
}
"""What each training minimises."""

KINDS, PROTOCOLS, SNR = ("crossing", "curved"), ("ABCD", "b1000 x 30"), 30
_NAMES = ("pr_area", "angular_error", "f1")


def main() -> int:
    """Train by each objective, and print and record what its network finds."""
    options = _options()
    warnings.simplefilter("ignore")
    volumes = {(kind, protocol): _volume(kind, protocol, options.size) for kind in KINDS for protocol in PROTOCOLS}
    print(_line(["volumes", "method", *(METRICS[name].label for name in _NAMES)]), "|---" * 5 + "|", sep="\n")
    figures = []
    for name in options.methods:
        weights = trained(name, options)
        for (kind, protocol), volume in volumes.items():
            for refine in (False, True):
                row = f"{kind}, {protocol}, {SNR}, {options.size}^3, {options.steps} steps"
                method = f"{name}, refined" if refine else name
                values = {key: score(volume, weights, refine=refine).summary()[key] for key in _NAMES}
                print(_line([row, method, *(METRICS[key].form.format(values[key]) for key in _NAMES)]), flush=True)
                figures += peers.figures_of(row, {method: {"": values}}, weights, threads=options.threads)
    return results.finish("objectives", figures, options)


def trained(name: str, options: Namespace) -> Weights:
    """Train the small network by one objective."""
    config = TrainingConfig(
        channels=(16, 32, 32, 32),
        size=10,
        batch=1,
        steps=options.steps,
        pool=40,
        seed=options.seed,
        loss=OBJECTIVES[name],
    )
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(options.cache or scratch, f"{name}_{options.steps}_{options.seed}")
        return load_weights(train(config, folder, device="cpu", n_workers=0))


def score(volume: Scene, weights: Weights, *, refine: bool) -> PeakScore:
    """Score the peaks that a network finds in a volume."""
    scan = scan_of(volume, select(volume, to_border=True)[0])
    found = find_maxima(fit_fod(scan, weights, runtime=Runtime(device="cpu"), refine=refine).wm)
    return score_peaks(found.directions, found.amplitudes, volume.truth)


def _volume(kind: str, protocol: str, size: int) -> Scene:
    return next(scenes.scenes(kind, protocol, SNR, n_seeds=1, size=size, model="sticks", folder=None))


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _options() -> Namespace:
    parser = results.command(__doc__)
    parser.add_argument("--methods", nargs="+", default=list(OBJECTIVES), choices=list(OBJECTIVES))
    parser.add_argument("--steps", type=int, default=400, help="of each training")
    parser.add_argument("--seed", type=int, default=1, help="of the trainings")
    parser.add_argument("--size", type=int, default=16, help="of the volumes, voxels")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="folder that keeps the trainings")
    return results.parse(parser)


if __name__ == "__main__":
    sys.exit(main())
