"""Train the network on simulated volumes: any protocol, responses of the simulated subject, known truth.

Run as ``python -m shd_bids.training CONFIG.toml OUTPUT_DIR``; the same configuration and seed give the same cases in the
same order, and a run that was stopped goes on from its last checkpoint. Several processes share the crops of each step when
started as ``torchrun --nproc-per-node N -m shd_bids.training ...``, and reach what one process would, to rounding.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TextIO

import torch

from shd_bids.errors import TrainingError
from shd_bids.fod.weights import Weights, load_weights, save_weights
from shd_bids.nn import distributed
from shd_bids.nn.backends.memory import keep_freed_memory
from shd_bids.nn.unet import UNet
from shd_bids.processes import thread_environment
from shd_bids.training.config import TrainingConfig, learning_rate
from shd_bids.training.loop import Schedule, run
from shd_bids.training.objective import Objective
from shd_bids.training.simulated import batches

logger = logging.getLogger(__name__)

CHECKPOINT_EVERY = 50
"""Steps between checkpoints."""

_MOMENTUM = 0.02  # of the averages of batch normalisation: over about 50 steps, as few protocols meet in one


def train(
    config: TrainingConfig,
    output_dir: Path,
    *,
    device: str,
    start: Weights | None = None,
    n_workers: int = 1,
    minutes: float = math.inf,
) -> Path | None:
    """Train, writing ``checkpoint.pt``, ``log.jsonl`` and at the end ``weights.safetensors`` to ``output_dir``.

    Processes of a group of :mod:`torch.distributed` share the crops of each step; the first writes, where all can read.

    Parameters
    ----------
    config : TrainingConfig
    output_dir : Path
        A checkpoint found there is continued.
    device : str
    start : Weights or None
        Weights to go on from, of the same network; None draws them at random.
    n_workers : int
        Processes that simulate, for each that trains.
    minutes : float
        Stop after this time with a checkpoint; the next call goes on.

    Returns
    -------
    Path or None
        None when the time ended first.

    Raises
    ------
    TrainingError
        When the loss is not finite in three steps running, the processes cannot share the crops of a step evenly, or the
        weights to start from are of another network.
    """
    n_processes, writes = distributed.n_processes(), distributed.rank() == 0
    if config.batch % n_processes:
        raise TrainingError(f"{n_processes} processes cannot share batches of {config.batch} evenly; change either")
    output_dir.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.seed)
    net = _network(config, start).to(device)
    schedule = schedule_of(config, minutes=minutes)
    cases = partial(batches, config, n_workers=n_workers, rank=distributed.rank(), n_processes=n_processes)
    with (output_dir / "log.jsonl" if writes else Path(os.devnull)).open("a") as log:
        report, checkpoint = _logger(log, schedule), output_dir / "checkpoint.pt"
        state = run(net, cases, Objective(config.loss), schedule, checkpoint=checkpoint, report=report)
    if state.diverged:
        raise TrainingError(f"the loss was not finite in three steps up to {state.step}; lower learning_rate")
    if state.step < config.steps:
        return None
    target = output_dir / "weights.safetensors"
    if writes:
        save_weights(target, Weights.of(net, l_max=config.l_max, training=asdict(config), inputs=config.inputs))
    return target


def schedule_of(config: TrainingConfig, *, minutes: float = math.inf) -> Schedule:
    """Return how long and with which learning rates a configuration trains."""
    return Schedule(
        steps=config.steps,
        rate=partial(learning_rate, config=config),
        frozen_from=(1 - config.frozen_share) * config.steps,
        averaged_from=(1 - config.averaged_share) * config.steps if config.averaged_share else math.inf,
        momentum=_MOMENTUM,
        precision=config.precision,
        check_every=CHECKPOINT_EVERY,
        minutes=minutes,
    )


def _logger(log: TextIO, schedule: Schedule) -> Callable[[dict[str, float]], None]:
    """Return what writes a line of JSON for each step."""

    def write(record: dict[str, float]) -> None:
        log.write(json.dumps(record | {"lr": schedule.rate(int(record["step"]) - 1)}) + "\n")
        log.flush()

    return write


def _network(config: TrainingConfig, start: Weights | None) -> UNet:
    if start is None:
        return UNet(config.network())
    if start.config != config.network() or start.channels != config.inputs.channels:
        raise TrainingError(
            f"the weights to start from are of {start.config}, expected {config.network()}; change either"
        )
    return start.network()


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the training command."""
    parser = argparse.ArgumentParser(prog="python -m shd_bids.training", description=__doc__)
    parser.add_argument("config", type=Path, help="TOML file with the fields of TrainingConfig")
    parser.add_argument("output_dir", type=Path)
    parser.add_argument(
        "--device", default="cpu", help="cpu or cuda; under torchrun each process takes a GPU of its own"
    )
    parser.add_argument("--start", type=Path, metavar="FILE", help="weights to go on from instead of random ones")
    parser.add_argument("--workers", type=int, default=1, help="processes that simulate")
    parser.add_argument("--threads", type=int, default=1, help="threads of the training process")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop with a checkpoint after this time")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the training command."""
    parser = build_parser()
    options = parser.parse_args(argv)
    config = TrainingConfig.from_toml(options.config.read_text())
    if config.precision == "bf16" and options.device == "cpu":
        parser.error(
            "precision bf16 trains on a GPU, found --device cpu; set precision to float32, or give --device cuda"
        )
    torch.set_num_threads(options.threads)
    os.environ.update(thread_environment(1))  # the processes that simulate inherit it before they import numpy
    keep_freed_memory()
    device = options.device
    if "LOCAL_RANK" in os.environ:  # started by torchrun
        torch.distributed.init_process_group("nccl" if device == "cuda" else "gloo")
        if device == "cuda":
            device = f"cuda:{os.environ['LOCAL_RANK']}"
            torch.cuda.set_device(device)
    start = load_weights(options.start) if options.start else None
    train(config, options.output_dir, device=device, start=start, n_workers=options.workers, minutes=options.minutes)
    if "LOCAL_RANK" in os.environ:
        torch.distributed.destroy_process_group()
    return 0
