"""Adapt the network to one subject, or to a cohort, by the loss of the paper, watched on directions that it never sees."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from shd_bids.errors import TrainingError
from shd_bids.fod.inputs.estimates import CHANNELS
from shd_bids.fod.weights import Weights
from shd_bids.nn.unet import UNet, UNetConfig
from shd_bids.scan import Scan
from shd_bids.training.loop import Schedule, State, run
from shd_bids.training.measured import ScanCrops, cases_of
from shd_bids.training.objective import LossWeights, Objective

NEGATIVITY, SPARSITY = 0.1, 5e-5
"""Weights of the terms beside reconstruction (weight 1) and smoothness; published configurations."""

_CHECK_EVERY, _PATIENCE = 10, 4
_RATE_FROM_WEIGHTS, _RATE_FROM_SCRATCH = 3e-4, 3e-3
_STEPS_FROM_WEIGHTS, _STEPS_FROM_SCRATCH = 60, 400
_MOST_STEPS = 2000
_SCRATCH_CHANNELS = (16, 32, 32, 32)
_L_MAX_OF_NSIDE = {8: 18, 4: 8, 2: 4}  # about two vertices for each SH coefficient


@dataclass(frozen=True)
class AdaptationOptions:
    """How to adapt a network.

    Attributes
    ----------
    lambda_tv : float
        Weight of the smoothness term.
    tv_penalty : {"squared", "absolute"}
        Its form, see :func:`shd_bids.training.losses.smoothness`.
    max_steps : int or None
        None takes fewer from given weights than from nothing, and more for several subjects.
    seed : int
    """

    lambda_tv: float = 0.5
    tv_penalty: str = "squared"
    max_steps: int | None = None
    seed: int = 0

    def objective(self) -> Objective:
        """Return the loss of the paper."""
        weights = LossWeights(0.0, 0.0, 0.0, 1.0, NEGATIVITY, SPARSITY, self.lambda_tv)
        return Objective(weights, tv_penalty=self.tv_penalty)


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
) -> Adapted:
    r"""Minimise the loss of the paper on crops of one series, or of several in turn.

    Some directions of each shell are never shown and never asked for: their prediction error, before, during and after,
    decides when to stop and whether to keep the result.

    Parameters
    ----------
    scans : sequence of Scan
    weights : Weights or None
        To start from; None trains a network of the default configuration from nothing.
    device : torch.device
    options : AdaptationOptions
    checkpoint : Path or None
        Where the state is kept; an interrupted adaptation goes on from there.
    progress : callable
        Called with ``"fit"`` and the share done.

    Raises
    ------
    TrainingError
        When training from nothing does not stay finite.
    """
    torch.manual_seed(options.seed)
    start = weights or scratch_weights()
    net = start.network().to(device)
    crops = [ScanCrops(scan, start, seed=(options.seed, number), device=device) for number, scan in enumerate(scans)]
    schedule = _schedule(len(scans), options.max_steps, from_scratch=weights is None)
    state = run(
        net,
        partial(cases_of, crops),
        options.objective(),
        schedule,
        checkpoint=checkpoint,
        watch=lambda net: [scan.held_out_error(net) for scan in crops],
        report=lambda record: progress("fit", record["step"] / schedule.steps),
    )
    if state.diverged and weights is None:
        raise TrainingError(f"the loss is not finite in step {state.step}; check the signal and the responses")
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    facts = _facts(state, options, from_scratch=weights is None)
    best = {name: value.cpu() for name, value in state.best_net.items()}
    return Adapted(replace(start, state=best), improved=facts["kept"], facts=facts)


def _schedule(n_scans: int, max_steps: int | None, *, from_scratch: bool) -> Schedule:
    """Return fewer and smaller steps from given weights, whose batch statistics stay as they are."""
    each = _STEPS_FROM_SCRATCH if from_scratch else _STEPS_FROM_WEIGHTS
    highest = _RATE_FROM_SCRATCH if from_scratch else _RATE_FROM_WEIGHTS
    steps = min(each * n_scans, _MOST_STEPS) if max_steps is None else max_steps
    return Schedule(
        steps=steps,
        rate=lambda step: highest * 0.5 * (1 + math.cos(math.pi * step / steps)),
        frozen_from=math.inf if from_scratch else 0,
        check_every=_CHECK_EVERY * n_scans,
        patience=_PATIENCE,
    )


def _facts(state: State, options: AdaptationOptions, *, from_scratch: bool) -> dict[str, Any]:
    """Return the record of a fit, JSON-safe."""
    before = None if from_scratch else state.history[0]["held_out"]
    return {
        "steps": state.step,
        "held_out_before": before,
        "held_out_after": state.best,
        "held_out_by_scan": [list(pair) for pair in zip(state.first_errors, state.best_errors, strict=True)],
        "kept": before is None or state.best < before,
        "lambda_tv": options.lambda_tv,
        "tv_penalty": options.tv_penalty,
        "history": state.history,
    }


def scratch_weights() -> Weights:
    """Return random weights, of no file and no training."""
    config = scratch_network()
    state = UNet(config).state_dict()
    return Weights(config, state, l_max=_L_MAX_OF_NSIDE[config.nside], sha256=None, name="none", training={})


def scratch_network() -> UNetConfig:
    """Return the configuration of a network that is trained on one subject alone."""
    return UNetConfig(len(CHANNELS), 3, channels=_SCRATCH_CHANNELS)
