"""Crops of real scans, whose signal is their own truth: some directions are hidden from the network, others kept for watching."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np
import torch

from shd_bids.boxes import box_around, chunks, row_numbers
from shd_bids.fod.inputs.blocks import to_block
from shd_bids.fod.inputs.inputs import Inputs, make_inputs
from shd_bids.fod.weights import Weights
from shd_bids.gradients.table import GradientTable
from shd_bids.nn import distributed
from shd_bids.nn.patches import on_hemisphere
from shd_bids.nn.unet import UNet
from shd_bids.response.forward import ForwardModel
from shd_bids.scan import Scan
from shd_bids.training.config import ScanTraining
from shd_bids.training.objective import Case, interpret, signal_error

CROP = 12
"""Side of a training crop, voxels; the network mixes space over about as many."""

_WATCHED_CROPS, _WATCHED_PATCHES = 4, 64


@dataclass(frozen=True, eq=False)
class _View:
    """What one choice of visible directions shows, and the volumes it must predict."""

    inputs: Inputs
    visible: np.ndarray
    volumes: np.ndarray


class ScanCrops:
    """The crops of one scan as cases: of :data:`CROP` voxels, or the patches of a network in patch form.

    A share of the directions of each shell is neither shown nor asked for, but kept for :meth:`held_out_error`. Each step
    hides some more from the input and asks for all, so that copying the noise does not pay. Either share can be zero.

    Parameters
    ----------
    scan : Scan
    weights : Weights
        Of the network, whose input and size they decide.
    training : ScanTraining
        Crops of a step, and what is held out and hidden.
    seed : tuple of int
    device : torch.device
        Where the cases lie.
    """

    def __init__(
        self, scan: Scan, weights: Weights, training: ScanTraining, *, seed: tuple[int, ...], device: torch.device
    ):
        self._scan, self._weights, self._seed, self._device = scan, weights, seed, device
        self._bare = scan.within(np.zeros_like(scan.mask))  # maps need no voxels
        self._batch = training.batch
        self._patch = weights.config.patch_size if weights.config.form == "patch" else 0
        rng = np.random.default_rng(seed)
        gradients = scan.gradients
        self._row = row_numbers(scan.mask, margin=self._patch // 2)
        self._places = _places_in(scan, self._patch)
        held = _draw(rng, gradients, np.arange(gradients.n_volumes), training.held_out)
        seen = np.setdiff1d(np.arange(gradients.n_volumes), held)
        self._watch = self._view(seen, held if len(held) else seen)
        n_views = training.views if training.hidden else 1
        hidden = [_draw(rng, gradients.select(seen), seen, training.hidden) for _ in range(n_views)]
        self._views = [self._view(np.setdiff1d(seen, h), seen) for h in hidden]
        self._scale = scan.scale
        model = scan.forward(weights.l_max)
        self._forward = ForwardModel(model.matrix / self._scale, l_max=model.l_max, tissues=model.tissues).to(device)
        n_watched = _WATCHED_PATCHES if self._patch else _WATCHED_CROPS
        self._watched = np.random.default_rng((*seed, 1)).choice(self._places, size=n_watched)

    def cases(self, step: int) -> list[Case]:
        """Return this process's crops of a step."""
        places = self._places_of(step)[distributed.rank() :: distributed.n_processes()]
        return self._cases(self._views[step % len(self._views)], places)

    @torch.no_grad()
    def held_out_error(self, net: UNet) -> float:
        """Return the mean squared error of the signal in the directions kept for watching, or in all where none are."""
        net.eval()
        total, count = 0.0, 0.0
        for part in chunks(len(self._watched), self._batch):
            cases = self._cases(self._watch, self._watched[part])
            channels, masks = (torch.stack([getattr(case, name) for case in cases]) for name in ("channels", "mask"))
            amplitudes, fractions = interpret(on_hemisphere(net, channels, masks), self._weights.isotropic)
            for i, case in enumerate(cases):
                n = float(case.mask.sum())
                error = signal_error(amplitudes[i], fractions[i], case, case.mask.float())
                total, count = total + float(error * n), count + n
        return total / max(count, 1.0)

    def _places_of(self, step: int) -> np.ndarray:
        """Return the voxels around which the crops of a step lie; batches go through all voxels in random order."""
        if self._batch == 1:
            return np.random.default_rng((*self._seed, 2, step)).choice(self._places)[None]
        epoch, number = divmod(step, -(-len(self._places) // self._batch))
        order = np.random.default_rng((*self._seed, 2, epoch)).permutation(len(self._places))
        return self._places[order.take(np.arange(number * self._batch, (number + 1) * self._batch), mode="wrap")]

    def _view(self, visible: np.ndarray, volumes: np.ndarray) -> _View:
        scan, weights = self._scan, self._weights
        if weights.input_volumes is not None:
            visible = visible[weights.input_volumes.choose(scan.gradients.select(visible))]
        inputs = make_inputs(self._bare.select(visible), weights.inputs, nside=weights.config.nside)
        return _View(inputs, visible, volumes)

    def _cases(self, view: _View, places: np.ndarray) -> list[Case]:
        """Return the crops around some places, (k, 3)."""
        maps, cases = view.inputs.to(self._device), []
        for place in places:
            measured, mask = to_block(self._scan.voxels, self._row[self._box(place)], self._device)
            channels, signal = maps(measured[..., view.visible], mask), measured / self._scale
            b0 = self._scan.gradients.b0_indices
            cases.append(Case(channels, mask, signal, self._forward, b0, view.volumes))
        return cases

    def _box(self, place: np.ndarray) -> tuple[slice, ...]:
        """Return where the crop around a place lies in the row numbers."""
        if self._patch:  # their margin begins half a patch before the volume
            return tuple(slice(int(n), int(n) + self._patch) for n in place)
        return box_around(place, CROP, self._row.shape)


def cases_of(scans: Sequence[ScanCrops], start: int) -> Iterator[list[Case]]:
    """Yield the crops of each step from ``start`` on, of the scans in turn."""
    for step in count(start):
        turn, number = divmod(step, len(scans))
        yield scans[number].cases(turn)


def _places_in(scan: Scan, patch: int) -> np.ndarray:
    """Return the voxels of a scan around which crops, or patches of so many voxels, are whole, (k, 3)."""
    if scan.places is None or not patch:
        return np.argwhere(scan.mask) if scan.places is None else scan.places
    whole = np.zeros_like(scan.mask)
    for place in scan.places:
        whole[box_around(place, CROP - 2 * (patch // 2), scan.mask.shape)] = True
    return np.argwhere(scan.mask & whole)


def _draw(rng: np.random.Generator, gradients: GradientTable, volumes: np.ndarray, share: float) -> np.ndarray:
    """Choose ``share`` of the directions of each shell with at least ten, as indices taken from ``volumes``; none for zero."""
    chosen = [
        rng.choice(shell.indices, size=max(1, round(share * len(shell.indices))), replace=False)
        for shell in gradients.shells[1:]
        if share and len(shell.indices) >= 10
    ]
    return np.sort(volumes[np.concatenate(chosen)]) if chosen else np.array([], dtype=int)
