"""Crops of real scans, whose signal is their own truth: some directions are hidden from the network, others kept for watching."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from shd_bids.boxes import box_around
from shd_bids.fod.inputs.estimates import Conditioner, ShellInput, condition, signal_block
from shd_bids.fod.weights import Weights
from shd_bids.gradients.table import GradientTable
from shd_bids.nn.unet import UNet
from shd_bids.response.forward import ForwardModel
from shd_bids.scan import Scan
from shd_bids.training.objective import Case, interpret, signal_error

CROP = 12
"""Side of a training crop, voxels; the network mixes space over about as many."""

_HELD_OUT = 0.12  # share of the directions of a shell kept for watching
_LEFT_OUT = 0.15  # share of the rest that a step hides from the network and asks it to predict
_VIEWS = 6  # different choices of hidden directions
_WATCHED_CROPS = 4


@dataclass(frozen=True, eq=False)
class _View:
    """What one choice of visible directions shows, and the volumes it must predict."""

    conditioner: Conditioner | ShellInput
    visible: np.ndarray
    volumes: np.ndarray


class ScanCrops:
    """The crops of one scan as cases.

    A share of the directions of each shell is neither shown nor asked for, but kept for :meth:`held_out_error`. Each step
    hides some more from the input and asks for all, so that copying the noise does not pay.

    Parameters
    ----------
    scan : Scan
    weights : Weights
        For the input, the grid and the degree of the network.
    seed : tuple of int
    device : torch.device
        Where the cases lie.
    """

    def __init__(
        self,
        scan: Scan,
        weights: Weights,
        *,
        seed: tuple[int, ...],
        device: torch.device,
    ):
        self._scan, self._seed, self._device = scan, seed, device
        self._nside, self._channels = weights.config.nside, weights.channels
        rng = np.random.default_rng(seed)
        gradients = scan.gradients
        self._places = np.argwhere(scan.mask) if scan.places is None else scan.places
        held = _draw(rng, gradients, np.arange(gradients.n_volumes), _HELD_OUT)
        seen = np.setdiff1d(np.arange(gradients.n_volumes), held)
        self._watch = self._view(seen, held if len(held) else seen)
        hidden = [_draw(rng, gradients.select(seen), seen, _LEFT_OUT) for _ in range(_VIEWS)]
        self._views = [self._view(np.setdiff1d(seen, h), seen) for h in hidden]
        self._scale = self._watch.conditioner.scale
        model = scan.forward(weights.l_max)
        self._forward = ForwardModel(model.matrix / self._scale, l_max=model.l_max, tissues=model.tissues).to(device)
        places = np.random.default_rng((*seed, 1)).choice(self._places, size=_WATCHED_CROPS)
        self._watched = [box_around(place, CROP, scan.mask.shape) for place in places]

    def case(self, step: int) -> Case:
        """Return the crop of a step."""
        rng = np.random.default_rng((*self._seed, 2, step))
        box = box_around(rng.choice(self._places), CROP, self._scan.mask.shape)
        return self._case(self._views[step % len(self._views)], box)

    @torch.no_grad()
    def held_out_error(self, net: UNet) -> float:
        """Return the mean squared error of the signal in the directions kept for watching."""
        net.eval()
        total, count = 0.0, 0.0
        for box in self._watched:
            case = self._case(self._watch, box)
            amplitudes, fractions = interpret(net(case.channels[None], case.mask[None]))
            n = float(case.mask.sum())
            error = signal_error(amplitudes[0], fractions[0], case, case.mask.float())
            total, count = total + float(error * n), count + n
        return total / max(count, 1.0)

    def _view(self, visible: np.ndarray, volumes: np.ndarray) -> _View:
        scan = self._scan
        conditioner = condition(
            scan.gradients.select(visible),
            scan.responses,
            affine=scan.affine,
            sigma=scan.sigma,
            nside=self._nside,
            channels=self._channels,
        )
        return _View(conditioner, visible, volumes)

    def _case(self, view: _View, box: tuple[slice, ...]) -> Case:
        measured, mask = signal_block(self._scan.voxels, self._scan.rows[box], self._device)
        channels = view.conditioner.to(self._device)(measured[..., view.visible], mask)
        return Case(
            channels=channels,
            mask=mask,
            signal=measured / self._scale,
            forward=self._forward,
            b0=self._scan.gradients.b0_indices,
            volumes=view.volumes,
        )


def cases_of(scans: Sequence[ScanCrops], start: int) -> Iterator[list[Case]]:
    """Yield the one crop of each step from ``start`` on, of the scans in turn."""
    step = start
    while True:
        turn, number = divmod(step, len(scans))
        yield [scans[number].case(turn)]
        step += 1


def _draw(rng: np.random.Generator, gradients: GradientTable, volumes: np.ndarray, share: float) -> np.ndarray:
    """Choose ``share`` of the directions of each shell with at least ten, as indices taken from ``volumes``."""
    chosen = [
        rng.choice(shell.indices, size=max(1, round(share * len(shell.indices))), replace=False)
        for shell in gradients.shells[1:]
        if len(shell.indices) >= 10
    ]
    return np.sort(volumes[np.concatenate(chosen)]) if chosen else np.array([], dtype=int)
