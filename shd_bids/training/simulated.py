"""Crops of random subjects and protocols with known truth, and the order in which a training shows them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset

from shd_bids import simulation
from shd_bids.fod.inputs.inputs import make_inputs
from shd_bids.response.forward import ForwardModel
from shd_bids.response.response import Response, Responses
from shd_bids.scan import Scan
from shd_bids.simulation.dispersion import true_density
from shd_bids.simulation.microstructure import draw_subject, subject_responses
from shd_bids.simulation.signal import correlated_noise, misaligned, tissue_signal
from shd_bids.simulation.tissue import random_tissue
from shd_bids.training.config import TrainingConfig
from shd_bids.training.objective import Case, Truth

_MOST_BUNDLES = 8  # of a crop


def draw_case(seed: tuple[int, ...], config: TrainingConfig) -> Case:
    """Simulate one crop of a random subject and protocol; ``seed`` fixes it."""
    rng = np.random.default_rng(seed)
    subject = draw_subject(rng, _MOST_BUNDLES)
    tissue = random_tissue(rng, config.size, narrowest=subject.response_spread)
    gradients = config.gradients(rng)
    signal, sigma = _acquired(rng, tissue_signal(tissue, subject, gradients))
    responses = _estimated(rng, subject_responses(subject, gradients))
    assumed_sigma = sigma * np.exp(rng.normal() * 0.15)
    inside = _crop_mask(rng, tissue.gm.shape)
    mask = torch.as_tensor(inside)
    scan = Scan(signal[inside], inside, np.eye(4), gradients, responses, assumed_sigma)
    channels = make_inputs(scan, config.inputs, nside=config.nside)(torch.as_tensor(signal), mask)
    model = scan.forward(config.l_max)
    density = true_density(tissue, subject, nside=config.nside, l_max=config.l_max)
    fractions = np.stack([tissue.gm, tissue.csf], axis=-1)
    return Case(
        channels=channels.half().contiguous(),
        mask=mask,
        signal=torch.as_tensor(signal / scan.scale).half(),
        forward=ForwardModel(model.matrix / scan.scale, l_max=config.l_max, tissues=model.tissues),
        b0=gradients.b0_indices,
        volumes=np.arange(gradients.n_volumes),
        truth=Truth(torch.as_tensor(density).half(), torch.as_tensor(fractions, dtype=torch.float32)),
    )


def _acquired(rng: np.random.Generator, clean: np.ndarray) -> tuple[np.ndarray, float]:
    """Return a signal as a scanner gives it, with its noise level.

    At times with motion left between volumes, a bias field, or noise that neighbours share.
    """
    if rng.random() < 0.3:
        clean = misaligned(clean, rng, rng.uniform(0.03, 0.2))
    if rng.random() < 0.6:
        clean *= simulation.bias_field(rng, clean.shape[:3], rng.uniform(0.02, 0.3))[..., None].astype(np.float32)
    sigma = float(np.exp(rng.uniform(np.log(1 / 60), np.log(1 / 8))))
    width = float(rng.choice([0.0, 0.4, 0.6], p=[0.5, 0.3, 0.2]))
    return correlated_noise(clean, sigma, rng, width=width, n_coils=int(rng.choice([1, 1, 1, 4]))), sigma


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


def _crop_mask(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Cut a side of the crop off now and then, as the brain mask does."""
    mask = np.ones(shape, dtype=bool)
    if rng.random() < 0.3:
        normal = rng.normal(size=3)
        normal /= np.linalg.norm(normal)
        grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1) - np.array(shape) / 2
        mask = grid @ normal < rng.uniform(0.0, 0.5) * shape[0]
    return mask


@dataclass(frozen=True)
class _Order:
    """Which crops each step shows; this process of ``n_processes`` has an equal share of every step.

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

    def __init__(self, config: TrainingConfig, order: _Order):
        self.config, self.order = config, order

    def __iter__(self) -> Iterator[Case]:
        torch.set_num_threads(1)
        worker = torch.utils.data.get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for index in islice(self.order.indices(), first, None, step):
            yield draw_case((self.config.seed, index), self.config)


def batches(
    config: TrainingConfig, start: int, *, n_workers: int, rank: int = 0, n_processes: int = 1
) -> Iterator[list[Case]]:
    """Yield the crops of each step; every crop is shown ``reuse`` times, spread over the steps of a pool's length.

    Which crops a step gets depends on the configuration and the step alone, so a run that goes on sees what it would have
    seen, and processes that train together see between them what one would.
    """
    per_block = config.pool * config.reuse // config.batch
    block, skip = divmod(start, per_block)
    order = _Order(config, block, rank, n_processes)
    loader = DataLoader(
        _Cases(config, order),
        batch_size=None,
        num_workers=n_workers,
        prefetch_factor=-(-config.pool // n_workers) if n_workers else None,
        multiprocessing_context="forkserver" if n_workers else None,
    )
    source = iter(loader)
    while True:
        cases = {number: next(source) for number in order.needed(block)}
        for numbers in order.steps(block)[skip:]:
            yield [cases[number] for number in numbers]
        block, skip = block + 1, 0
