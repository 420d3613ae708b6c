"""Train the networks of the comparison on one volume, by the losses of the paper or by the truth."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from found import Found, find_maxima
from peers import MRTRIX_CUTOFF
from torch import nn

from shd_bids.boxes import row_numbers
from shd_bids.fod.fit import fit_fod
from shd_bids.fod.fod import FOD
from shd_bids.fod.inputs.blocks import to_block
from shd_bids.fod.inputs.inputs import make_inputs
from shd_bids.fod.inputs.volumes import InputVolumes
from shd_bids.fod.weights import Weights
from shd_bids.nn.unet import UNet, UNetConfig
from shd_bids.options import Runtime
from shd_bids.scan import Scan
from shd_bids.simulation import Phantom
from shd_bids.sphere.healpix import hemisphere
from shd_bids.training.adapt import AdaptationOptions, adapt, untrained
from shd_bids.training.config import NetworkRecipe, load_network_recipe
from shd_bids.training.loop import Schedule, run
from shd_bids.training.measured import ScanCrops, cases_of
from shd_bids.training.objective import Case, LossWeights, Objective, Truth
from tests.benchmarks.paper.nets import Ponita, SphericalCNN

LONGER = ("shd, longer", "shd_tv, longer")
"""SHD and SHD-TV with five times the steps of a small effort."""

RECIPES = {"shd_tv": "published", "shd": "shd", "rt_esd": "rt_esd", "esd": "esd"} | dict(
    zip(LONGER, ("shd", "published"), strict=True)
)
"""Published networks that the package trains."""

PEERS: dict[str, type[nn.Module]] = {"cnn": SphericalCNN, "cnn_supervised": SphericalCNN, "ponita": Ponita}
"""Other networks of the comparison."""

_PACE = {"esd": 4, "cnn": 4, "cnn_supervised": 4} | dict.fromkeys(LONGER, 5)  # steps in the place of one of SHD
_LOBE = 25.0  # concentration of a true fibre's lobe: a standard deviation of 8 degrees, the spacing of the grid
_SUPERVISED = LossWeights()


@dataclass(frozen=True)
class Effort:
    """How large networks are and how long they are trained.

    Attributes
    ----------
    nside : int
        Of the finest grid.
    channels : tuple of int
        Features of each level.
    l_max : int
        Degree of the fODF.
    steps : int or None
        Of SHD and of those that see as much at a time; None takes those of the published recipes for all.
    batch : int
        Patches of a step.
    """

    nside: int
    channels: tuple[int, ...]
    l_max: int
    steps: int | None
    batch: int

    def steps_of(self, name: str) -> int | None:
        """Return the steps of a network; one that sees less at a time takes more."""
        return None if self.steps is None else self.steps * _PACE.get(name, 1)


SMALL = Effort(4, (12, 24, 48), 8, 200, 8)
FULL = Effort(8, (32, 64, 128, 256), 18, None, 16)


@dataclass(frozen=True, eq=False)
class PeerWeights(Weights):
    """Weights of a network that the package does not have."""

    build: Callable[[UNetConfig], nn.Module] = UNet

    def network(self) -> nn.Module:
        """Build the network with these parameters, in evaluation mode."""
        net = self.build(self.config)
        net.load_state_dict(self.state)
        return net.eval()


def recipe_of(name: str, effort: Effort, few: InputVolumes | None) -> NetworkRecipe:
    """Return the recipe of a network; with ``few`` it is shown those volumes alone and asked for all (super-resolved)."""
    recipe = load_network_recipe(RECIPES.get(name, "shd"))
    return replace(
        recipe,
        network=recipe.network | {"nside": effort.nside, "channels": effort.channels},
        training=replace(recipe.training, batch=effort.batch),
        input_volumes=few,
        l_max=effort.l_max,
    )


def train(
    name: str, scan: Scan, phantom: Phantom | None, *, effort: Effort, few: InputVolumes | None, seed: int, device: str
) -> Weights:
    """Train a network on a scan; only ``cnn_supervised`` needs the truth."""
    recipe, where = recipe_of(name, effort, few), torch.device(device)
    if name in RECIPES:
        options = AdaptationOptions(max_steps=effort.steps_of(name), seed=seed)
        kept = adapt(
            [scan], weights=None, device=where, options=options, checkpoint=None, progress=_silent, recipe=recipe
        )
        return kept.weights
    torch.manual_seed(seed)
    start = _untrained_peer(name, recipe, scan)
    net = start.network().to(where)
    steps = effort.steps_of(name) or recipe.training.n_steps([len(scan.voxels)])
    schedule = Schedule(steps=steps, rate=partial(recipe.training.rate, n_steps=steps), keeps_best=False)
    if name == "cnn_supervised":
        cases = partial(supervised_cases, scan, phantom, start, batch=effort.batch, seed=seed)
        run(net, cases, Objective(_SUPERVISED, isotropic=recipe.isotropic), schedule)
    else:
        crops = ScanCrops(scan, start, recipe.training, seed=(seed, 0), device=where)
        run(net, partial(cases_of, [crops]), Objective(recipe.loss, isotropic=recipe.isotropic), schedule)
    return replace(start, state={key: value.cpu() for key, value in net.state_dict().items()})


def supervised_cases(
    scan: Scan, phantom: Phantom, weights: Weights, start: int, *, batch: int, seed: int
) -> Iterator[list[Case]]:
    """Yield patches of a scan with the true fODF, a lobe for each fibre, and the true fractions of the other tissues."""
    shown = scan if weights.input_volumes is None else scan.select(weights.input_volumes.choose(scan.gradients))
    size, rng = weights.config.patch_size, np.random.default_rng((seed, 3, start))
    rows = row_numbers(scan.mask, margin=size // 2)
    maps = make_inputs(shown, weights.inputs, nside=weights.config.nside).to(torch.device("cpu"))
    density = torch.as_tensor(true_density(phantom, weights.config.nside)[scan.mask])
    fractions = torch.as_tensor(np.stack([phantom.gm, phantom.csf], axis=-1)[scan.mask], dtype=torch.float32)
    places, forward = np.argwhere(scan.mask), scan.forward(weights.l_max)
    while True:
        cases = []
        for place in rng.choice(places, batch):
            here = rows[tuple(slice(n, n + size) for n in place)]
            signal, mask = to_block(shown.voxels, here, torch.device("cpu"))
            truth = Truth(density[here], fractions[here])
            b0 = shown.gradients.b0_indices
            cases.append(Case(maps(signal, mask), mask, signal / scan.scale, forward, b0, b0, truth))
        yield cases


def true_density(phantom: Phantom, nside: int) -> np.ndarray:
    r"""Return the fODF of a phantom on the hemisphere, (X, Y, Z, V) float32: a lobe :math:`e^{\kappa (u \cdot v)^2}` a fibre."""
    vertices = hemisphere(nside)
    lobes = np.exp(_LOBE * ((phantom.directions @ vertices.T) ** 2 - 1))
    lobes *= (phantom.fractions > 0)[..., None]
    lobes /= np.maximum(4 * np.pi * lobes.mean(axis=-1, keepdims=True), 1e-9)
    return np.einsum("xyzfv,xyzf->xyzv", lobes, phantom.fractions).astype(np.float32)


def fit(weights: Weights, scan: Scan, device: str) -> FOD:
    """Return the answer of a network as published: scaled to the signal at b=0, not refined."""
    return fit_fod(scan, weights, runtime=Runtime(device=device), refine=False)


def maxima(weights: Weights, scan: Scan, device: str, *, cutoff: float = MRTRIX_CUTOFF) -> Found:
    """Return the peaks of the answer of a network, whose scale is that of MRtrix3."""
    return find_maxima(fit(weights, scan, device).wm, cutoff)


def _untrained_peer(name: str, recipe: NetworkRecipe, scan: Scan) -> PeerWeights:
    made = untrained(recipe, scan)
    net = PEERS[name](made.config)
    state = {key: value.detach().clone() for key, value in net.state_dict().items()}
    return PeerWeights(**vars(made) | {"state": state}, build=PEERS[name])


def _silent(stage: str, share: float) -> None:
    """Tell nothing."""
