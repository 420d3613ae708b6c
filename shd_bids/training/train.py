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
import time
import tomllib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from functools import lru_cache
from itertools import count, islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import softplus
from torch.utils.data import DataLoader, IterableDataset

from shd_bids import simulation
from shd_bids.errors import TrainingError
from shd_bids.files import atomic_path
from shd_bids.fod.inputs.estimates import CHANNELS, condition, shell_channels
from shd_bids.fod.weights import Weights, load_weights, save_weights
from shd_bids.gradients.table import GradientTable
from shd_bids.nn import distributed
from shd_bids.nn.backends.memory import keep_freed_memory
from shd_bids.nn.layers.norm import NormReLU
from shd_bids.nn.unet import UNet, UNetConfig
from shd_bids.response.forward import forward_model
from shd_bids.response.response import Response, Responses
from shd_bids.sphere.harmonics import sh_basis, sh_inverse
from shd_bids.sphere.healpix import hemisphere
from shd_bids.sphere.lobes import lobes
from shd_bids.training import losses

logger = logging.getLogger(__name__)

TISSUES = ("wm", "gm", "csf")
"""Output channels of the network."""

CHECKPOINT_EVERY = 50
"""Steps between checkpoints."""

_MOMENTUM = 0.02  # of the averages of batch normalisation: over about 50 steps, as few protocols meet in one


@dataclass(frozen=True)
class LossWeights:
    """Weight of each term: three of the supervised kind, then those of the paper on the measured signal."""

    hellinger: float = 1.0
    fibre_density: float = 0.3
    fractions: float = 1.0
    reconstruction: float = 0.0
    negativity: float = 0.0
    sparsity: float = 0.0
    smoothness: float = 0.0


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


@dataclass(frozen=True, eq=False)
class Case:
    """One simulated crop: input channels (C, X, Y, Z, V), truth, signal and the operator that predicts it."""

    channels: Tensor
    density: Tensor  # (X, Y, Z, V)
    fractions: Tensor  # (X, Y, Z, 2)
    mask: Tensor  # (X, Y, Z)
    signal: Tensor  # (X, Y, Z, N), scaled
    matrix: Tensor  # (N, C)


def draw_case(seed: tuple[int, ...], config: TrainingConfig) -> Case:
    """Simulate one crop of a random subject and protocol; ``seed`` fixes it."""
    rng = np.random.default_rng(seed)
    size = config.size
    phantom = simulation.random_phantom(
        rng,
        size,
        narrowness=config.narrowness,
        straight_share=config.straight_share,
        sparse_share=config.sparse_share,
    )
    micro = simulation.draw_microstructure(rng, len(phantom.bundles))
    gradients = config.gradients(rng)
    clean = simulation.noiseless_signal(phantom, micro, gradients)
    if rng.random() < 0.6:
        clean *= simulation.bias_field(rng, phantom.gm.shape, rng.uniform(0.02, 0.3))[..., None].astype(np.float32)
    sigma = float(np.exp(rng.uniform(np.log(1 / 60), np.log(1 / 8))))
    signal = simulation.add_noise(clean, sigma, rng, n_coils=int(rng.choice([1, 1, 1, 4])))
    responses = _estimated(rng, simulation.true_responses(micro, gradients))
    conditioner = condition(
        gradients,
        responses,
        affine=np.eye(4),
        sigma=sigma * np.exp(rng.normal() * 0.15),
        nside=config.nside,
        channels=config.input_channels,
    )
    mask = _crop_mask(rng, phantom)
    inside = torch.as_tensor(mask)
    channels = conditioner(torch.as_tensor(signal), inside)
    model = forward_model(gradients, responses, l_max=config.l_max)
    return Case(
        channels=channels.half().contiguous(),
        density=torch.as_tensor(true_density(phantom, nside=config.nside, sharpness=config.sharpness)).half(),
        fractions=torch.as_tensor(np.stack([phantom.gm, phantom.csf], axis=-1), dtype=torch.float32),
        mask=inside,
        signal=torch.as_tensor(signal / conditioner.scale).half(),
        matrix=model.matrix / conditioner.scale,
    )


def true_density(phantom: simulation.Phantom, *, nside: int, sharpness: float) -> np.ndarray:
    r"""Return the true fODF on the hemisphere, each fibre a lobe :math:`e^{-\kappa\sin^2}` of unit integral.

    Returns
    -------
    ndarray, shape (X, Y, Z, V), float32
    """
    density = np.zeros((*phantom.gm.shape, len(hemisphere(nside))), dtype=np.float32)
    for slot in range(simulation.MAX_FIBRES):
        there = phantom.fractions[..., slot] > 0
        lobe = lobes(hemisphere(nside), phantom.directions[there, slot], sharpness)
        density[there] += (phantom.fractions[there, slot, None] * lobe).astype(np.float32)
    return density


def _estimated(rng: np.random.Generator, true: Responses) -> Responses:
    """Return the responses as an estimate from data would give them: scaled and bent a little, one tissue at times absent."""

    def jitter(response: Response) -> Response:
        bent = response.coefficients * (1 + 0.03 * rng.normal(size=response.coefficients.shape))
        return Response(response.tissue, response.bvalues, bent)

    single_shell = len(true.wm.coefficients) == 2
    dropped = rng.choice(["", "gm", "csf"], p=[0.4, 0.4, 0.2] if single_shell else [0.9, 0.1, 0.0])
    return Responses(
        wm=jitter(true.wm),
        gm=None if dropped == "gm" else jitter(true.gm),
        csf=None if dropped == "csf" else jitter(true.csf),
    )


def _crop_mask(rng: np.random.Generator, phantom: simulation.Phantom) -> np.ndarray:
    """Cut a side of the crop off now and then, as the brain mask does."""
    shape = phantom.gm.shape
    mask = np.ones(shape, dtype=bool)
    if rng.random() < 0.3:
        normal = rng.normal(size=3)
        normal /= np.linalg.norm(normal)
        grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1) - np.array(shape) / 2
        mask = grid @ normal < rng.uniform(0.0, 0.5) * shape[0]
    return mask


@dataclass(frozen=True)
class _Plan:
    """Say which crops each step shows; this process of ``n_processes`` has an equal share of every step.

    Crops come in blocks of ``pool``; a block is shown in ``reuse`` rounds, each in another order.
    """

    config: TrainingConfig
    first_block: int
    rank: int
    n_processes: int

    def steps(self, block: int) -> np.ndarray:
        """Return the numbers within its block of this process's crops, (steps of a block, crops of a step)."""
        config = self.config
        rng = np.random.default_rng((config.seed, block, 7))
        order = np.concatenate([rng.permutation(config.pool) for _ in range(config.reuse)])
        return order.reshape(-1, self.n_processes, config.batch // self.n_processes)[:, self.rank]

    def needed(self, block: int) -> np.ndarray:
        """Return the numbers of the crops that this process shows at least once, ascending."""
        return np.unique(self.steps(block))

    def indices(self) -> Iterator[int]:
        """Yield the indices of all crops to simulate, block after block."""
        for block in count(self.first_block):
            yield from (block * self.config.pool + self.needed(block)).tolist()


class _Cases(IterableDataset):
    """The simulated crops of endless indices; worker w of n draws every n-th from w on."""

    def __init__(self, config: TrainingConfig, plan: _Plan):
        self.config, self.plan = config, plan

    def __iter__(self) -> Iterator[Case]:
        torch.set_num_threads(1)
        worker = torch.utils.data.get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for index in islice(self.plan.indices(), first, None, step):
            yield draw_case((self.config.seed, index), self.config)


def batches(
    config: TrainingConfig, *, start: int, n_workers: int, rank: int = 0, n_processes: int = 1
) -> Iterator[list[Case]]:
    """Yield the crops of each step; every crop is shown ``reuse`` times, spread over the steps of a pool's length.

    Which crops a step gets depends on the configuration and the step alone, so a run that goes on sees what it would have
    seen, and processes that train together see between them what one would.
    """
    per_block = config.pool * config.reuse // config.batch
    block, skip = divmod(start, per_block)
    plan = _Plan(config, block, rank, n_processes)
    loader = DataLoader(
        _Cases(config, plan),
        batch_size=None,
        num_workers=n_workers,
        prefetch_factor=-(-config.pool // n_workers) if n_workers else None,
        multiprocessing_context="forkserver" if n_workers else None,
    )
    source = iter(loader)
    while True:
        cases = {number: next(source) for number in plan.needed(block)}
        for numbers in plan.steps(block)[skip:]:
            yield [cases[number] for number in numbers]
        block, skip = block + 1, 0


def interpret(output: Tensor) -> tuple[Tensor, Tensor]:
    """Turn network output (B, 3, X, Y, Z, V) into the fODF on the hemisphere (B, X, Y, Z, V) and fractions (B, X, Y, Z, 2)."""
    positive = softplus(output)
    return positive[:, 0], positive[:, 1:].mean(dim=-1).permute(0, 2, 3, 4, 1)


def loss_terms(output: Tensor, mask: Tensor, cases: list[Case], config: TrainingConfig) -> dict[str, Tensor]:
    """Evaluate every term with a weight, in the masks (B, X, Y, Z) of the cases; the keys are those of :class:`LossWeights`."""
    weights, device, mask = config.loss, output.device, mask.float()
    amplitudes, fractions = interpret(output)
    terms = {}
    if weights.hellinger or weights.fibre_density:
        truth = torch.stack([c.density for c in cases]).to(device, torch.float32)
        terms["hellinger"] = losses.hellinger(amplitudes, truth, mask)
        terms["fibre_density"] = losses.fibre_density_error(amplitudes, truth, mask)
    if weights.fractions:
        truth = torch.stack([c.fractions for c in cases]).to(device)
        terms["fractions"] = losses.fraction_error(fractions, truth, mask)
    if weights.reconstruction:
        terms["reconstruction"] = _reconstruction(amplitudes, fractions, cases, mask, config)
    if weights.negativity or weights.sparsity:
        fine = _between(amplitudes, config)
        terms["negativity"] = losses.negativity(fine, mask)
        terms["sparsity"] = losses.sparsity(fine, mask)
    if weights.smoothness:
        terms["smoothness"] = losses.smoothness(amplitudes, mask)
    # Each term is a mean over its own crops. So weighted, its mean over processes is the mean over the crops of all.
    counts = torch.stack([mask.sum(), losses.neighbour_count(mask)])
    voxels, pairs = counts / distributed.mean(counts).clamp_min(1)
    special = {"reconstruction": 1.0, "smoothness": pairs}  # the former is a mean over crops
    return {name: value * special.get(name, voxels) for name, value in terms.items()}


def _between(amplitudes: Tensor, config: TrainingConfig) -> Tensor:
    """Evaluate the fODF of degree ``l_max`` on the next finer hemisphere grid, (B, X, Y, Z, 4 V)."""
    finer = _operators(config.nside, config.l_max)[1].to(amplitudes)
    return amplitudes @ finer.T


@lru_cache
def _operators(nside: int, l_max: int) -> tuple[Tensor, Tensor]:
    """Return the maps from hemisphere amplitudes to SH coefficients (C, V) and to the next finer grid (4 V, V)."""
    to_sh = sh_inverse(hemisphere(nside), l_max)
    return torch.as_tensor(to_sh), torch.as_tensor(sh_basis(hemisphere(2 * nside), l_max) @ to_sh)


def _reconstruction(
    amplitudes: Tensor, fractions: Tensor, cases: list[Case], mask: Tensor, config: TrainingConfig
) -> Tensor:
    """Evaluate the misfit of the signal, crop by crop, as each has its own operator; b=0 is matched as in the paper."""
    to_sh = _operators(config.nside, config.l_max)[0].to(amplitudes)
    total = amplitudes.new_zeros(())
    for i, case in enumerate(cases):
        matrix, measured = case.matrix.to(amplitudes), case.signal.to(amplitudes)
        n_iso = matrix.shape[1] - len(to_sh)
        iso = fractions[i][..., :n_iso] / (4 * torch.pi) ** 0.5
        predicted = torch.cat([amplitudes[i] @ to_sh.T, iso], dim=-1) @ matrix.T
        total = total + losses.reconstruction(predicted[None], measured[None], mask[i][None])
    return total / len(cases)


def learning_rate(step: int, config: TrainingConfig) -> float:
    """Return the rate of a step: linear rise over 3 % of the budget, then a half cosine to zero."""
    rise = max(1, round(0.03 * config.steps))
    if step < rise:
        return config.learning_rate * (step + 1) / rise
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, config.steps - rise)))


def train(
    config: TrainingConfig,
    output_dir: Path,
    *,
    device: str,
    start: Weights | None = None,
    n_workers: int = 1,
    minutes: float = np.inf,
) -> Path | None:
    """Train, writing ``checkpoint.pt``, ``log.jsonl`` and at the end ``weights.safetensors`` to ``output_dir``.

    Within a process group of :mod:`torch.distributed` the processes share the crops of each step; the first one writes, into a
    folder that all can read.

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
        The weights, or None when the time ended first.

    Raises
    ------
    TrainingError
        When the loss is not finite in three steps running, the processes cannot share the crops of a step evenly, or the
        weights to start from are of another network, or missing though they are to be part of the result.
    """
    n_processes, writes = distributed.n_processes(), distributed.rank() == 0
    if config.batch % n_processes:
        raise TrainingError(f"{n_processes} processes cannot share batches of {config.batch} evenly; change either")
    output_dir.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.seed)
    where = torch.device(device)
    net = _network(config, start).to(where)
    optimiser = torch.optim.Adam(net.parameters(), lr=config.learning_rate)
    checkpoint = output_dir / "checkpoint.pt"
    first = _restore(checkpoint, net, optimiser, where)
    norms = [module for module in net.modules() if isinstance(module, NormReLU)]
    for module in norms:
        module.momentum = _MOMENTUM
    weights = asdict(config.loss)
    began, bad = time.monotonic(), 0
    stream = batches(config, start=first, n_workers=n_workers, rank=distributed.rank(), n_processes=n_processes)
    with (output_dir / "log.jsonl" if writes else Path(os.devnull)).open("a") as log:
        for step in range(first, config.steps):
            cases = next(stream)
            net.train()
            if step >= (1 - config.frozen_share) * config.steps:
                for module in norms:  # use, and no longer change, the averages, as inference will
                    module.eval()
            rate = learning_rate(step, config)
            for group in optimiser.param_groups:
                group["lr"] = rate
            inputs = torch.stack([c.channels for c in cases]).to(where).float()
            mask = torch.stack([c.mask for c in cases]).to(where)
            with torch.autocast(where.type, torch.bfloat16, enabled=config.precision == "bf16"):
                output = net(inputs, mask)
            terms = loss_terms(output.float(), mask, cases, config)
            total = sum(weights[name] * value for name, value in terms.items())
            optimiser.zero_grad(set_to_none=True)
            total.backward()
            distributed.average_gradients(net.parameters())
            norm = torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            finite = bool(torch.isfinite(norm))
            bad = 0 if finite else bad + 1
            if bad == 3:
                raise TrainingError(f"the loss was not finite in three steps up to {step}; lower learning_rate")
            if finite:
                optimiser.step()
            seconds = time.monotonic() - began
            # One exchange for all that is told, and for whether any process is late.
            told = distributed.mean(
                torch.stack([total, *terms.values(), total.new_tensor(seconds > 60 * minutes)]).detach()
            )
            loss, *values, late = told.tolist()
            record = {"step": step, "lr": rate, "loss": loss} | dict(zip(terms, values, strict=True))
            log.write(json.dumps(record | {"seconds": round(seconds, 1)}) + "\n")
            log.flush()
            if writes and ((step + 1) % CHECKPOINT_EVERY == 0 or late):
                _save_checkpoint(checkpoint, net, optimiser, step + 1)
            if late:
                return None
    target = output_dir / "weights.safetensors"
    if start is not None and config.start_share:
        _blend(net, start.network(), config.start_share)
    if writes:
        save_weights(target, net, l_max=config.l_max, training=asdict(config), channels=config.input_channels)
    return target


def _network(config: TrainingConfig, start: Weights | None) -> UNet:
    if start is None:
        if config.start_share:
            raise TrainingError(
                f"start_share is {config.start_share:g}, but no weights were given to start from; give --start or leave it out"
            )
        return UNet(config.network())
    if start.config != config.network() or start.channels != config.input_channels:
        raise TrainingError(
            f"the weights to start from are of {start.config}, expected {config.network()}; change either"
        )
    return start.network()


@torch.no_grad()
def _blend(net: UNet, other: UNet, share: float) -> None:
    """Move the parameters and averages of a network towards those of another by a share of the way."""
    theirs = other.state_dict()
    for name, value in net.state_dict().items():  # which is the network's own memory
        if value.is_floating_point():
            value.lerp_(theirs[name].to(value), share)


def _restore(checkpoint: Path, net: UNet, optimiser: torch.optim.Optimizer, device: torch.device) -> int:
    """Load a checkpoint if there is one and return the step to go on with."""
    if not checkpoint.exists():
        return 0
    state = torch.load(checkpoint, map_location=device, weights_only=True)
    net.load_state_dict(state["net"])
    optimiser.load_state_dict(state["optimiser"])
    return int(state["step"])


def _save_checkpoint(path: Path, net: UNet, optimiser: torch.optim.Optimizer, step: int) -> None:
    with atomic_path(path) as scratch:
        torch.save({"net": net.state_dict(), "optimiser": optimiser.state_dict(), "step": step}, scratch)


def main(argv: list[str] | None = None) -> int:
    """Run the training command."""
    parser = argparse.ArgumentParser(prog="python -m shd_bids.training", description=__doc__)
    parser.add_argument("config", type=Path, help="TOML file with the fields of TrainingConfig")
    parser.add_argument("output_dir", type=Path)
    parser.add_argument(
        "--device", default="cpu", help="cpu or cuda; under torchrun each process takes a GPU of its own"
    )
    parser.add_argument("--start", type=Path, metavar="FILE", help="weights to go on from instead of random ones")
    parser.add_argument("--workers", type=int, default=1, help="processes that simulate")
    parser.add_argument("--threads", type=int, default=1, help="threads of the training process")
    parser.add_argument("--minutes", type=float, default=np.inf, help="stop with a checkpoint after this time")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    config = TrainingConfig.from_toml(options.config.read_text())
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
