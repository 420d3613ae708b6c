"""Adapt the network to one subject, or to a cohort, by the self-supervised loss, watched on directions that it never sees."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import softplus

from shd_bids.boxes import row_numbers
from shd_bids.errors import TrainingError
from shd_bids.files import atomic_path
from shd_bids.fod.inputs.estimates import CHANNELS, Conditioner, ShellInput, condition, signal_block
from shd_bids.fod.weights import Weights
from shd_bids.gradients.table import GradientTable
from shd_bids.nn.unet import UNet, UNetConfig
from shd_bids.response.forward import forward_model
from shd_bids.response.response import Responses
from shd_bids.sphere.harmonics import sh_basis, sh_inverse
from shd_bids.sphere.healpix import hemisphere
from shd_bids.training import losses

CROP = 12
"""Side of a training crop, voxels; the network mixes space over about as many."""

NEGATIVITY, SPARSITY = 0.1, 5e-5
"""Weights of the terms beside reconstruction (weight 1) and smoothness; published configurations."""

_HELD_OUT = 0.12  # share of the directions of a shell kept for watching
_LEFT_OUT = 0.15  # share of the rest that a step hides from the network and asks it to predict
_VIEWS = 6  # different choices of hidden directions
_CHECK_EVERY, _PATIENCE = 10, 4
_RATE_FROM_WEIGHTS, _RATE_FROM_SCRATCH = 3e-4, 3e-3
_STEPS_FROM_WEIGHTS, _STEPS_FROM_SCRATCH = 60, 400
_MOST_STEPS = 2000
_WATCHED_CROPS = 4
_SCRATCH_CHANNELS = (16, 32, 32, 32)
_L_MAX_OF_NSIDE = {8: 18, 4: 8, 2: 4}  # about two vertices for each SH coefficient


@dataclass(frozen=True, eq=False)
class Scan:
    """One diffusion series to adapt to.

    Attributes
    ----------
    voxels : ndarray, shape (n, N)
        Signal, in the order of the true entries of the mask.
    mask : ndarray of bool, shape (X, Y, Z)
    affine : ndarray, shape (4, 4)
        From voxels to the world.
    gradients, responses : GradientTable and Responses
        Of the series; world axes.
    sigma : float
        Noise level, in the units of the signal.
    places : ndarray of int, shape (k, 3), or None
        Voxels around which crops are taken; None takes any of the mask.
    """

    voxels: np.ndarray
    mask: np.ndarray
    affine: np.ndarray
    gradients: GradientTable
    responses: Responses
    sigma: float
    places: np.ndarray | None = None

    def thinned(self, n_crops: int, *, seed: int) -> Scan:
        """Keep no more than the voxels of ``n_crops`` crops at random places, so that many subjects fit the memory."""
        inside = np.argwhere(self.mask)
        places = inside[np.random.default_rng(seed).choice(len(inside), size=min(n_crops, len(inside)), replace=False)]
        near = np.zeros_like(self.mask)
        for place in places:
            near[_crop(place, self.mask.shape)] = True
        kept = near & self.mask
        voxels = np.ascontiguousarray(self.voxels[kept[self.mask]])
        return replace(self, voxels=voxels, mask=kept, places=places)


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


@dataclass(frozen=True, eq=False)
class Adapted:
    """The network to use, whether it predicts held-out directions better than before, and the record of the fit."""

    network: UNet
    l_max: int
    improved: bool
    facts: dict[str, Any]


@dataclass(frozen=True, eq=False)
class _View:
    """What one choice of visible directions shows, and the volumes it must predict."""

    conditioner: Conditioner | ShellInput
    visible: np.ndarray
    targets: np.ndarray


@dataclass
class _State:
    """Where an adaptation stands: its record, and the best network so far by the watched error."""

    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    best: float = float("inf")
    best_net: dict[str, Tensor] = field(default_factory=dict)
    first_by_scan: list[float] = field(default_factory=list)
    best_by_scan: list[float] = field(default_factory=list)
    stale: int = 0

    def watch(self, record: dict[str, float], errors: list[float], net: UNet) -> None:
        """Note the watched errors of the present network, one for each scan; their mean decides."""
        record["held_out"] = float(np.mean(errors))
        self.first_by_scan = self.first_by_scan or errors
        self.stale += 1
        if record["held_out"] < self.best:
            self.best, self.best_by_scan, self.best_net, self.stale = record["held_out"], errors, _copy(net), 0


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

    .. math:: \langle(\hat S - S)^2\rangle + 0.1\,\langle\min(f,0)^2\rangle
              + 5\cdot10^{-5}\,\langle 2\ln(1 + f^2/2\sigma)\rangle + \lambda_{TV}\,\mathrm{TV}(f)

    Some directions of each shell are never shown and never asked for: their prediction error, before, during and after,
    decides when to stop and whether to keep the result. Each step hides some further directions from the input and asks
    for all, so that copying the noise does not pay.

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
    config = weights.config if weights else scratch_network()
    l_max = weights.l_max if weights else _L_MAX_OF_NSIDE[config.nside]
    net = (weights.network() if weights else UNet(config)).to(device)
    steps, rate = (_STEPS_FROM_WEIGHTS, _RATE_FROM_WEIGHTS) if weights else (_STEPS_FROM_SCRATCH, _RATE_FROM_SCRATCH)
    n_steps = min(steps * len(scans), _MOST_STEPS) if options.max_steps is None else options.max_steps
    optimiser = torch.optim.Adam(net.parameters(), lr=rate)
    channels = weights.channels if weights else CHANNELS
    cohort = [
        _Problem(scan, config.nside, l_max, channels=channels, options=options, number=number).to(device)
        for number, scan in enumerate(scans)
    ]
    state = _restore(checkpoint, net, optimiser, device)
    if not state.history:
        state.history.append({"step": 0})
        state.watch(state.history[0], _held_out_errors(cohort, net), net)
    while state.step < n_steps and state.stale < _PATIENCE:
        net.train(weights is None)
        for group in optimiser.param_groups:
            group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * state.step / n_steps))
        turn, number = divmod(state.step, len(cohort))
        record = _step(net, optimiser, cohort[number].losses(net, turn), options.lambda_tv)
        if record is None:
            if weights is None:
                raise TrainingError(f"the loss is not finite in step {state.step}; check the signal and the responses")
            break  # what was best so far, at worst the given weights, is kept
        state.step += 1
        state.history.append({"step": state.step} | record)
        if state.step % (_CHECK_EVERY * len(cohort)) == 0 or state.step == n_steps:
            state.watch(state.history[-1], _held_out_errors(cohort, net), net)
            if checkpoint is not None:
                _save(checkpoint, net, optimiser, state)
        progress("fit", state.step / n_steps)
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    net.load_state_dict(state.best_net)
    before = state.history[0]["held_out"] if weights else None
    improved = before is None or state.best < before
    facts = {
        "steps": state.step,
        "held_out_before": before,
        "held_out_after": state.best,
        "held_out_by_scan": [list(pair) for pair in zip(state.first_by_scan, state.best_by_scan, strict=True)],
        "kept": improved,
        "lambda_tv": options.lambda_tv,
        "tv_penalty": options.tv_penalty,
        "history": state.history,
    }
    return Adapted(network=net.eval(), l_max=l_max, improved=improved, facts=facts)


def _step(
    net: UNet, optimiser: torch.optim.Optimizer, terms: dict[str, Tensor], lambda_tv: float
) -> dict[str, float] | None:
    """Take one step down the loss and return its terms; None, and no step, where it is not finite."""
    total = (
        terms["reconstruction"]
        + NEGATIVITY * terms["negativity"]
        + SPARSITY * terms["sparsity"]
        + lambda_tv * terms["smoothness"]
    )
    optimiser.zero_grad(set_to_none=True)
    total.backward()
    if not torch.isfinite(torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)):
        return None
    optimiser.step()
    return {"loss": float(total.detach())} | {name: float(value.detach()) for name, value in terms.items()}


def scratch_network() -> UNetConfig:
    """Return the configuration of a network that is trained on one subject alone."""
    return UNetConfig(len(CHANNELS), 3, channels=_SCRATCH_CHANNELS)


def _held_out_errors(cohort: Sequence[_Problem], net: UNet) -> list[float]:
    return [problem.held_out_error(net) for problem in cohort]


class _Problem:
    """The crops, operators and directions of one series, ready on a device."""

    def __init__(
        self,
        scan: Scan,
        nside: int,
        l_max: int,
        *,
        channels: tuple[str, ...],
        options: AdaptationOptions,
        number: int,
    ):
        self.seed = (options.seed, number)
        rng = np.random.default_rng(self.seed)
        gradients, responses = scan.gradients, scan.responses
        self.voxels, self.tv_penalty = scan.voxels, options.tv_penalty
        self.row = row_numbers(scan.mask)
        self.places = np.argwhere(scan.mask) if scan.places is None else scan.places
        held = _draw(rng, gradients, np.arange(gradients.n_volumes), _HELD_OUT)
        seen = np.setdiff1d(np.arange(gradients.n_volumes), held)

        def view(visible: np.ndarray, targets: np.ndarray) -> _View:
            table = gradients.select(visible)
            maps = condition(table, responses, affine=scan.affine, sigma=scan.sigma, nside=nside, channels=channels)
            return _View(maps, visible, targets)

        self.watch = view(seen, held if len(held) else seen)
        hidden = [_draw(rng, gradients.select(seen), seen, _LEFT_OUT) for _ in range(_VIEWS)]
        self.views = [view(np.setdiff1d(seen, h), seen) for h in hidden]
        model = forward_model(gradients, responses, l_max=l_max)
        self.matrix = model.matrix / self.watch.conditioner.scale
        self.isotropic = [("gm", "csf").index(t) for t in model.tissues[1:]]
        self.b0 = gradients.b0_indices
        self.to_sh = torch.as_tensor(sh_inverse(hemisphere(nside), l_max), dtype=torch.float32)
        self.to_fine = torch.as_tensor(sh_basis(hemisphere(2 * nside), l_max), dtype=torch.float32)
        places = np.random.default_rng((*self.seed, 1)).choice(self.places, size=_WATCHED_CROPS)
        self.watched = [_crop(place, self.row.shape) for place in places]
        self.device = torch.device("cpu")

    def to(self, device: torch.device) -> _Problem:
        """Move the operators to a device."""
        self.device = device
        self.matrix, self.to_sh, self.to_fine = (t.to(device) for t in (self.matrix, self.to_sh, self.to_fine))
        return self

    def losses(self, net: UNet, step: int) -> dict[str, Tensor]:
        """Evaluate the terms of the loss on the crop of a step."""
        rng = np.random.default_rng((*self.seed, 2, step))
        view = self.views[step % len(self.views)]
        box = _crop(rng.choice(self.places), self.row.shape)
        amplitudes, predicted, measured, inside = self._forward(net, view, box)
        fine = amplitudes @ self.to_sh.T @ self.to_fine.T
        return {
            "reconstruction": losses.reconstruction(predicted[..., view.targets], measured[..., view.targets], inside),
            "negativity": losses.negativity(fine, inside),
            "sparsity": losses.sparsity(fine, inside),
            "smoothness": losses.smoothness(fine, inside, squared=self.tv_penalty == "squared"),
        }

    @torch.no_grad()
    def held_out_error(self, net: UNet) -> float:
        """Return the mean squared error of the signal in the directions kept for watching."""
        net.eval()
        total, count = 0.0, 0.0
        for box in self.watched:
            _, predicted, measured, inside = self._forward(net, self.watch, box)
            targets = self.watch.targets
            error = losses.reconstruction(predicted[..., targets], measured[..., targets], inside)
            total, count = total + float(error * inside.sum()), count + float(inside.sum())
        return total / max(count, 1.0)

    def _forward(self, net: UNet, view: _View, box: tuple[slice, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return amplitudes, predicted and measured signal of a crop with a leading axis of one, and its mask."""
        measured, mask = signal_block(self.voxels, self.row[box], self.device)
        channels = view.conditioner.to(self.device)(measured[..., view.visible], mask)
        positive = softplus(net(channels[None], mask[None]))[0]
        amplitudes, fractions = positive[0], positive[1:].mean(dim=-1)
        coefficients = torch.cat(
            [amplitudes @ self.to_sh.T] + [fractions[i][..., None] / (4 * np.pi) ** 0.5 for i in self.isotropic],
            dim=-1,
        )
        measured = measured / view.conditioner.scale
        predicted = coefficients @ self.matrix.T
        ratio = measured[..., self.b0].mean(-1) / predicted[..., self.b0].mean(-1).clamp_min(1e-3)
        predicted = predicted * ratio[..., None]  # the b=0 signal is matched, as in the output
        return amplitudes[None], predicted[None], measured[None], mask[None].float()


def _crop(place: np.ndarray, shape: tuple[int, ...]) -> tuple[slice, ...]:
    """Return a crop around a voxel, moved inside the volume, with an even side wherever the volume allows."""
    starts = [int(np.clip(p - CROP // 2, 0, max(n - CROP, 0))) for p, n in zip(place, shape, strict=True)]
    return tuple(slice(a, min(a + CROP, n)) for a, n in zip(starts, shape, strict=True))


def _draw(rng: np.random.Generator, gradients: GradientTable, volumes: np.ndarray, share: float) -> np.ndarray:
    """Choose ``share`` of the directions of each shell with at least ten, as indices taken from ``volumes``."""
    chosen = [
        rng.choice(shell.indices, size=max(1, round(share * len(shell.indices))), replace=False)
        for shell in gradients.shells[1:]
        if len(shell.indices) >= 10
    ]
    return np.sort(volumes[np.concatenate(chosen)]) if chosen else np.array([], dtype=int)


def _copy(net: UNet) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in net.state_dict().items()}


def _save(path: Path, net: UNet, optimiser: torch.optim.Optimizer, state: _State) -> None:
    with atomic_path(path) as scratch:
        torch.save({"net": net.state_dict(), "optimiser": optimiser.state_dict(), "state": vars(state)}, scratch)


def _restore(path: Path | None, net: UNet, optimiser: torch.optim.Optimizer, device: torch.device) -> _State:
    """Load the state of an interrupted fit, or return that of a new one."""
    if path is None or not path.exists():
        return _State()
    saved = torch.load(path, map_location=device, weights_only=True)
    net.load_state_dict(saved["net"])
    optimiser.load_state_dict(saved["optimiser"])
    return _State(**saved["state"])
