"""Train a network on one scan, or on a cohort: from trained weights, or any recipe from nothing.

The loss is that of Elaldi, Gerig and Dey 2024 (arXiv:2411.11819), "the paper" below.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from shd_bids.errors import TrainingError
from shd_bids.fod.config import InputConfig
from shd_bids.fod.weights import Weights
from shd_bids.nn import distributed
from shd_bids.nn.device import Compute, choose_precision, set_precision
from shd_bids.nn.unet import UNet
from shd_bids.scan import Scan
from shd_bids.training.config import NetworkRecipe, ScanTraining, load_network_recipe
from shd_bids.training.loop import Schedule, State, run
from shd_bids.training.measured import ScanCrops, cases_of
from shd_bids.training.objective import LossWeights, Objective

_FROM_WEIGHTS = ScanTraining(steps=60, learning_rate=3e-4)
_LOSS = LossWeights(0.0, 0.0, 0.0, 1.0, 0.1, 5e-5, 0.5)  # published configurations
_PATCHES = 16  # of a step, published; one crop of a network for volumes holds more voxels
_CHECKS = 50  # of a training that runs to its last step
_MOST_RECORDS = 2000


@dataclass(frozen=True)
class AdaptationOptions:
    """How to train on scans, where the user decides.

    Attributes
    ----------
    lambda_tv : float or None
        Weight of the smoothness term; None leaves that of the network, 0.5 of most.
    tv_penalty : {"squared", "absolute"}
        Its form, see :func:`shd_bids.training.losses.smoothness`.
    max_steps : int or None
        None takes fewer from given weights than from nothing, and more for several scans; the learning rate falls as it would
        in all of them.
    seed : int
    precision : {"auto", "float32", "tf32", "bf16"}
        Of the network on a GPU; parameters, their updates and the loss are always in float32, and on the CPU all is.
    """

    lambda_tv: float | None = None
    tv_penalty: str = "squared"
    max_steps: int | None = None
    seed: int = 0
    precision: str = "float32"


@dataclass(frozen=True, eq=False)
class Adapted:
    """The weights to use, whether they predict held-out directions better than before, and the record of the fit."""

    weights: Weights
    improved: bool
    facts: dict[str, Any]


def adapt(
    scans: Sequence[Scan],
    *,
    weights: Weights | None,
    device: torch.device,
    options: AdaptationOptions,
    checkpoint: Path | None,
    progress: Callable[[str, float], None],
    recipe: NetworkRecipe | None = None,
) -> Adapted:
    """Minimise the loss of the paper on crops of one scan, or of several in turn; processes can share those of a step.

    Unless a recipe says otherwise, some directions of each shell are never shown and never asked for: their prediction error
    decides when to stop and whether to keep the result.

    Parameters
    ----------
    scans : sequence of Scan
        Thinned ones give crops around their places.
    weights : Weights or None
        To start from; None trains the network of a recipe from nothing.
    device : torch.device
    options : AdaptationOptions
    checkpoint : Path or None
        Where the state is kept; an interrupted training goes on from there.
    progress : callable
    recipe : NetworkRecipe, optional
        Of the network without given weights; None takes the one of any protocol.

    Raises
    ------
    TrainingError
        When training from nothing does not stay finite, or processes cannot share the crops of a step.
    """
    torch.manual_seed(options.seed)
    options = replace(options, precision=_arithmetic(options.precision, device))
    set_precision(Compute(device, options.precision))
    start, training, loss = _start(weights, recipe, scans[0])
    training = _shared(training)
    if options.lambda_tv is not None:
        loss = replace(loss, smoothness=options.lambda_tv)
    crops = [ScanCrops(scan, start, training, seed=(options.seed, n), device=device) for n, scan in enumerate(scans)]
    schedule = _schedule(training, scans, options, frozen=weights is not None)
    state = run(
        start.network().to(device),
        partial(cases_of, crops),
        Objective(loss, tv_penalty=options.tv_penalty, isotropic=start.isotropic),
        schedule,
        checkpoint=checkpoint,
        watch=lambda net: [scan.held_out_error(net) for scan in crops],
        report=lambda record: progress("fit", record["step"] / schedule.steps),
    )
    if state.diverged and weights is None:
        raise TrainingError(f"the loss is not finite in step {state.step}; check the signal and the responses")
    if checkpoint is not None and distributed.rank() == 0:
        checkpoint.unlink(missing_ok=True)
    facts = _facts(state, start, loss, options.tv_penalty, is_new=weights is None)
    found = {name: value.cpu() for name, value in state.best_net.items()}
    return Adapted(replace(start, state=found), facts["kept"], facts)


def _arithmetic(precision: str, device: torch.device) -> str:
    """Return the arithmetic of the network in training: on the CPU, whose kernel rounds in the forward pass alone, float32."""
    return "float32" if device.type == "cpu" else choose_precision(precision, device)


def _start(
    weights: Weights | None, recipe: NetworkRecipe | None, scan: Scan
) -> tuple[Weights, ScanTraining, LossWeights]:
    """Return the weights to start from, and how and by which loss they are trained."""
    if weights is not None:
        return weights, _training_from(weights), _LOSS
    recipe = recipe or load_network_recipe("conditioned")
    return untrained(recipe, scan), recipe.training, recipe.loss


def _training_from(weights: Weights) -> ScanTraining:
    """Return how given weights are adapted: in fewer and smaller steps than from nothing."""
    return replace(_FROM_WEIGHTS, batch=_PATCHES if weights.config.form == "patch" else 1)


def _shared(training: ScanTraining) -> ScanTraining:
    """Return the training of processes that share each step; a step of one crop becomes one for each process."""
    n = distributed.n_processes()
    if training.batch == 1:
        return replace(training, batch=n)
    if training.batch % n:
        raise TrainingError(f"{n} processes cannot share batches of {training.batch} evenly; change either")
    return training


def untrained(recipe: NetworkRecipe, scan: Scan) -> Weights:
    """Return random weights of a recipe for the protocol of a scan, of no file and no training."""
    channels = recipe.channels(scan.gradients)
    config = recipe.unet(len(channels))
    inputs = InputConfig(channels=channels)
    return Weights.of(UNet(config), l_max=recipe.l_max, training=recipe.to_dict(), inputs=inputs)


def _schedule(training: ScanTraining, scans: Sequence[Scan], options: AdaptationOptions, *, frozen: bool) -> Schedule:
    """Return the schedule for some scans; ``frozen`` keeps the batch statistics of given weights as they are."""
    steps = options.max_steps
    if steps is None:
        steps = training.n_steps([len(scan.voxels) for scan in scans])
    waits = bool(training.held_out)
    return Schedule(
        steps=steps,
        rate=partial(training.rate, n_steps=steps),
        frozen_from=0 if frozen else math.inf,
        precision=options.precision,
        check_every=training.check_every * len(scans) if waits else max(training.check_every, steps // _CHECKS),
        patience=training.patience if waits else math.inf,
        keeps_best=waits,
    )


def _facts(state: State, start: Weights, loss: LossWeights, tv_penalty: str, *, is_new: bool) -> dict[str, Any]:
    """Return the record of a training, JSON-safe."""
    before = None if is_new else state.history[0]["held_out"]
    return {
        "method": start.method,
        "steps": state.step,
        "held_out_before": before,
        "held_out_after": state.best,
        "held_out_by_scan": [list(pair) for pair in zip(state.first_errors, state.best_errors, strict=True)],
        "kept": before is None or state.best < before,
        "tv_weight": loss.smoothness,
        "tv_penalty": tv_penalty,
        "history": _thinned(state.history),
    }


def _thinned(history: Sequence[dict[str, float]]) -> list[dict[str, float]]:
    """Return an even choice of the records of the steps, with all that were watched."""
    every = -(-len(history) // _MOST_RECORDS)
    return [record for record in history if "held_out" in record or record["step"] % every == 0]
