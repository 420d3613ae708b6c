"""The one loop of all trainings: optimiser, learning rate, batch normalisation, checkpoints, and when to stop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from shd_bids.files import atomic_path
from shd_bids.nn import distributed
from shd_bids.nn.layers.norm import NormReLU
from shd_bids.nn.patches import on_hemisphere
from shd_bids.nn.unet import UNet
from shd_bids.training.objective import Case, Objective

Cases = Callable[[int], Iterator[Sequence[Case]]]
"""Yields the crops of each step, from a given step on."""

_CLIP = 1.0  # norm of the gradient beyond which it is shortened
_MOST_BAD_STEPS = 3  # in a row


@dataclass(frozen=True)
class Schedule:
    """How a training runs.

    Attributes
    ----------
    steps : int
    rate : callable
        Learning rate of a step, counted from 0.
    frozen_from : float
        Step from which batch normalisation uses its averages and no longer changes them, as inference does.
    averaged_from : float
        Step from which the states after each step are averaged; the mean is the network at the end (Izmailov et al. 2018).
    momentum : float or None
        Of the averages of batch normalisation; None keeps the network's own.
    precision : {"float32", "tf32", "bf16"}
        Of the network; parameters, their updates and the loss are always in float32.
    check_every : int
        Steps between checkpoints, at which the network is also watched.
    patience : float
        Checks without a better network after which to stop.
    keeps_best : bool
        Whether the best network is kept, by the watched errors; otherwise the last one is.
    minutes : float
        Time after which to stop with a checkpoint.
    """

    steps: int
    rate: Callable[[int], float]
    frozen_from: float = math.inf
    averaged_from: float = math.inf
    momentum: float | None = None
    precision: str = "float32"
    check_every: int = 50
    patience: float = math.inf
    keeps_best: bool = True
    minutes: float = math.inf


@dataclass
class State:
    """Where a training stands: its record, and the network to keep by the watched errors, one for each scan."""

    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    bad_steps: int = 0
    best: float = math.inf
    best_net: dict[str, Tensor] = field(default_factory=dict)
    first_errors: list[float] = field(default_factory=list)
    best_errors: list[float] = field(default_factory=list)
    stale: int = 0
    mean_net: dict[str, Tensor] = field(default_factory=dict)
    n_averaged: int = 0

    @property
    def diverged(self) -> bool:
        """Whether the loss was not finite for too long."""
        return self.bad_steps >= _MOST_BAD_STEPS

    def note(self, record: dict[str, float]) -> dict[str, float]:
        """Append a record of the present step to the history, whose terms count where they are finite, and return it."""
        finite = record.pop("finite") == 1
        self.bad_steps = 0 if finite else self.bad_steps + 1
        numbered = {"step": self.step} | record
        self.history.append(numbered if finite else {"step": self.step})
        return numbered

    @torch.no_grad()
    def average(self, net: UNet) -> None:
        """Take the present network into the mean of states."""
        self.n_averaged += 1
        for name, value in net.state_dict().items():
            if name in self.mean_net and value.is_floating_point():
                self.mean_net[name].lerp_(value, 1 / self.n_averaged)
            else:
                self.mean_net[name] = value.detach().clone()

    def watch(self, record: dict[str, float], errors: list[float], net: UNet, *, keeps_best: bool) -> None:
        """Note the watched errors of the present network in a record; their mean decides which network is best."""
        record["held_out"] = float(np.mean(errors))
        self.first_errors = self.first_errors or errors
        self.stale += 1
        if record["held_out"] < self.best or not keeps_best:
            self.best, self.best_errors, self.stale = record["held_out"], errors, 0
            self.best_net = {name: value.detach().clone() for name, value in net.state_dict().items()}


def run(
    net: UNet,
    cases: Cases,
    objective: Objective,
    schedule: Schedule,
    *,
    checkpoint: Path | None = None,
    watch: Callable[[UNet], list[float]] | None = None,
    report: Callable[[dict[str, float]], None] | None = None,
) -> State:
    """Train a network by Adam, from a checkpoint if there is one, and return where the training ended.

    Within a process group of :mod:`torch.distributed` gradients are averaged, and the first process writes.

    Parameters
    ----------
    net : UNet
        Changed in place, on its device.
    cases : callable
        Gives the crops of each step.
    objective : Objective
    schedule : Schedule
    checkpoint : Path, optional
    watch : callable, optional
        Errors of the network that decide which state of it is the best.
    report : callable, optional
        Called after each step with the number of steps done, the loss, its terms and the seconds so far.

    Returns
    -------
    State
    """
    optimiser = torch.optim.Adam(net.parameters(), lr=schedule.rate(0))
    state = _restore(checkpoint, net, optimiser)
    began = time.monotonic()
    norms = _norms(net, schedule.momentum)
    if watch is not None and not state.history:
        state.history.append({"step": 0})
        state.watch(state.history[0], watch(net), net, keeps_best=schedule.keeps_best)
    stream, late = cases(state.step), False
    while state.step < schedule.steps and state.stale < schedule.patience and not (late or state.diverged):
        _set_mode(net, norms, frozen=state.step >= schedule.frozen_from)
        optimiser.param_groups[0]["lr"] = schedule.rate(state.step)
        terms = _step(net, optimiser, objective, next(stream), schedule.precision)
        seconds = time.monotonic() - began
        record, late = _gather(terms, late=seconds > 60 * schedule.minutes)
        state.step += 1
        record = state.note(record)
        if state.step > schedule.averaged_from:
            state.average(net)
        if state.step % schedule.check_every == 0 or state.step == schedule.steps or late:
            if watch is not None:
                state.watch(state.history[-1], watch(net), net, keeps_best=schedule.keeps_best)
            _save(checkpoint, net, optimiser, state)
        if report is not None:
            report(record | {"seconds": round(seconds, 1)})
    if state.mean_net and state.step >= schedule.steps:
        net.load_state_dict(state.mean_net)
    return state


def _norms(net: UNet, momentum: float | None) -> list[NormReLU]:
    """Return the batch normalisations of a network, with this momentum of their averages unless it is None."""
    norms = [module for module in net.modules() if isinstance(module, NormReLU)]
    for module in norms:
        module.momentum = module.momentum if momentum is None else momentum
    return norms


def _set_mode(net: UNet, norms: Sequence[NormReLU], *, frozen: bool) -> None:
    net.train()
    for module in norms if frozen else ():
        module.eval()


def _step(
    net: UNet, optimiser: torch.optim.Optimizer, objective: Objective, cases: Sequence[Case], precision: str
) -> dict[str, Tensor]:
    """Take one step down the loss, unless it is not finite; return it with its terms."""
    device = net.head.bias.device
    inputs = torch.stack([case.channels for case in cases]).to(device).float()
    mask = torch.stack([case.mask for case in cases]).to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        output = on_hemisphere(net, inputs, mask)
    terms = objective(output.float(), cases)
    total = objective.total(terms)
    optimiser.zero_grad(set_to_none=True)
    total.backward()
    distributed.average_gradients(net.parameters())
    finite = torch.isfinite(torch.nn.utils.clip_grad_norm_(net.parameters(), _CLIP))
    if finite:
        optimiser.step()
    return {"finite": finite.to(total), "loss": total, **terms}


def _gather(terms: dict[str, Tensor], *, late: bool) -> tuple[dict[str, float], bool]:
    """Average the terms over the processes, and return whether any of them is late, in one exchange."""
    values = torch.stack([*terms.values(), terms["loss"].new_tensor(late)]).detach()
    *means, any_late = distributed.mean(values).tolist()
    return dict(zip(terms, means, strict=True)), any_late > 0


def _save(path: Path | None, net: UNet, optimiser: torch.optim.Optimizer, state: State) -> None:
    if path is not None and distributed.rank() == 0:
        with atomic_path(path) as scratch:
            torch.save({"net": net.state_dict(), "optimiser": optimiser.state_dict(), "state": vars(state)}, scratch)


def _restore(path: Path | None, net: UNet, optimiser: torch.optim.Optimizer) -> State:
    """Load the state of a training that was stopped, or return that of a new one."""
    if path is None or not path.exists():
        return State()
    saved = torch.load(path, map_location=net.head.bias.device, weights_only=True)
    net.load_state_dict(saved["net"])
    optimiser.load_state_dict(saved["optimiser"])
    return State(**saved["state"])
