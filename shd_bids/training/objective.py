"""What a training minimises: every term of the loss, their weighting, and the crops that they are evaluated on.

Without a known truth it is the loss of Elaldi, Gerig and Dey 2024 (arXiv:2411.11819), "the paper" below.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from shd_bids.fod.network import read_output
from shd_bids.nn import distributed
from shd_bids.response.forward import ForwardModel
from shd_bids.sphere.harmonics import SQRT_4PI, sh_basis, sh_inverse
from shd_bids.sphere.healpix import hemisphere
from shd_bids.training import losses

_ISOTROPIC = ("gm", "csf")  # tissues of the output channels after the first
_LEAST_B0 = 1e-3  # of the predicted signal without weighting, relative to that of white matter


@dataclass(frozen=True)
class LossWeights:
    """Weight of each term: three against a known truth, then those of the paper, against the measured signal."""

    hellinger: float = 1.0
    fibre_density: float = 0.3
    fractions: float = 1.0
    reconstruction: float = 0.0
    negativity: float = 0.0
    sparsity: float = 0.0
    smoothness: float = 0.0

    @property
    def has_paper_terms(self) -> bool:
        """Whether any term needs the measured signal."""
        return bool(self.reconstruction or self.negativity or self.sparsity or self.smoothness)


@dataclass(frozen=True, eq=False)
class Truth:
    """The fODF on the hemisphere, (X, Y, Z, V), and the fractions of GM and CSF, (X, Y, Z, 2), of a simulated crop."""

    density: Tensor
    fractions: Tensor


@dataclass(frozen=True, eq=False)
class Case:
    """One crop of a simulated or measured scan.

    Attributes
    ----------
    channels : Tensor, shape (C, X, Y, Z, V)
        Input of the network.
    mask : Tensor of bool, shape (X, Y, Z)
        Voxels that count.
    signal : Tensor, shape (X, Y, Z, N)
        Relative to that of white matter at b=0.
    forward : ForwardModel
        Of this signal.
    b0 : ndarray of int
        Volumes without weighting.
    volumes : ndarray of int
        Volumes that the prediction is compared in.
    truth : Truth or None
        None for a measured crop.
    """

    channels: Tensor
    mask: Tensor
    signal: Tensor
    forward: ForwardModel
    b0: np.ndarray
    volumes: np.ndarray
    truth: Truth | None = None


class Objective:
    r"""The weighted loss of network outputs.

    The terms of the paper, with the amplitudes f on the next finer grid, of the fODF that predicts the mean signal without
    weighting,

    .. math:: \langle(\hat S - S)^2\rangle + 0.1\,\langle\min(f,0)^2\rangle
              + 5\cdot10^{-5}\,\langle 2\ln(1 + f^2/2\sigma)\rangle + \lambda_{TV}\,\mathrm{TV}(f),

    can be joined by, or give way to, those against the truth of simulated crops.

    Parameters
    ----------
    weights : LossWeights
        A term without a weight is not evaluated.
    tv_penalty : {"squared", "absolute"}
        Form of the smoothness term, see :func:`shd_bids.training.losses.smoothness`.
    isotropic : {"mean", "max"}
        How fractions are read from the output, see :func:`shd_bids.fod.network.read_output`.
    """

    def __init__(self, weights: LossWeights, *, tv_penalty: str = "squared", isotropic: str = "mean"):
        self.weights, self._squared, self._isotropic = weights, tv_penalty == "squared", isotropic

    def __call__(self, output: Tensor, cases: Sequence[Case]) -> dict[str, Tensor]:
        """Evaluate the terms of outputs (B, 3, X, Y, Z, V), one for each case, by the names of :class:`LossWeights`.

        Each is a mean over the voxels of this process, so weighted that its mean over processes is that over all voxels.
        """
        mask = torch.stack([case.mask for case in cases]).to(output.device).float()
        amplitudes, fractions = interpret(output, self._isotropic)
        terms = self._against_truth(amplitudes, fractions, cases, mask)
        if self.weights.has_paper_terms:
            predicted = [predict_signal(amplitudes[i], fractions[i], case) for i, case in enumerate(cases)]
            terms |= self._of_paper(amplitudes, predicted, cases, mask)
        counts = torch.stack([mask.sum(), losses.neighbour_count(mask)])
        voxels, pairs = counts / distributed.mean(counts).clamp_min(1)
        special = {"reconstruction": 1.0, "smoothness": pairs}  # the former is a mean over crops
        return {name: value * special.get(name, voxels) for name, value in terms.items()}

    def total(self, terms: Mapping[str, Tensor]) -> Tensor:
        """Return the weighted sum of the terms."""
        weights = asdict(self.weights)
        return sum(weights[name] * value for name, value in terms.items())

    def _against_truth(
        self, amplitudes: Tensor, fractions: Tensor, cases: Sequence[Case], mask: Tensor
    ) -> dict[str, Tensor]:
        terms, weights = {}, self.weights
        if weights.hellinger or weights.fibre_density:
            truth = torch.stack([case.truth.density for case in cases]).to(amplitudes)
            terms["hellinger"] = losses.hellinger(amplitudes, truth, mask)
            terms["fibre_density"] = losses.fibre_density_error(amplitudes, truth, mask)
        if weights.fractions:
            truth = torch.stack([case.truth.fractions for case in cases]).to(fractions)
            terms["fractions"] = losses.fraction_error(fractions, truth, mask)
        return terms

    def _of_paper(
        self, amplitudes: Tensor, predicted: Sequence[Prediction], cases: Sequence[Case], mask: Tensor
    ) -> dict[str, Tensor]:
        """Evaluate the misfit of the signal, and, on the grid with twice the resolution, the terms of the scaled fODF."""
        terms, weights = {}, self.weights
        if weights.reconstruction:
            errors = [_error(p.signal, case, mask[i]) for i, (p, case) in enumerate(zip(predicted, cases, strict=True))]
            terms["reconstruction"] = torch.stack(errors).mean()  # each crop has its own operator
        if not (weights.negativity or weights.sparsity or weights.smoothness):
            return terms
        amplitudes = amplitudes * torch.stack([p.scale for p in predicted])[..., None]
        operators = _operators(amplitudes.shape[-1], cases[0].forward.l_max)
        to_sh, to_fine = (operator.to(amplitudes) for operator in operators)
        fine = amplitudes @ to_sh.T @ to_fine.T
        if weights.negativity or weights.sparsity:
            terms["negativity"] = losses.negativity(fine, mask)
            terms["sparsity"] = losses.sparsity(fine, mask)
        if weights.smoothness:
            terms["smoothness"] = losses.smoothness(fine, mask, squared=self._squared)
        return terms


def interpret(output: Tensor, isotropic: str = "mean") -> tuple[Tensor, Tensor]:
    """Return the fODF on the hemisphere (B, X, Y, Z, V) and fractions (B, X, Y, Z, 2) of network output (B, 3, X, Y, Z, V)."""
    return read_output(output.transpose(0, 1), isotropic=isotropic)


class Prediction(NamedTuple):
    """The signal (X, Y, Z, N) that an fODF predicts, and the factor (X, Y, Z) by which it was scaled to match b=0."""

    signal: Tensor
    scale: Tensor


def predict_signal(amplitudes: Tensor, fractions: Tensor, case: Case) -> Prediction:
    """Predict the signal of a case from its fODF (X, Y, Z, V) and fractions (X, Y, Z, 2).

    The mean signal without weighting is set to the measured one, as in the output of the published network.
    """
    matrix, measured = case.forward.matrix.to(amplitudes), case.signal.to(amplitudes)
    to_sh = _operators(amplitudes.shape[-1], case.forward.l_max)[0].to(amplitudes)
    isotropic = [fractions[..., _ISOTROPIC.index(tissue), None] / SQRT_4PI for tissue in case.forward.tissues[1:]]
    predicted = torch.cat([amplitudes @ to_sh.T, *isotropic], dim=-1) @ matrix.T
    scale = measured[..., case.b0].mean(-1) / predicted[..., case.b0].mean(-1).clamp_min(_LEAST_B0)
    return Prediction(predicted * scale[..., None], scale)


def signal_error(amplitudes: Tensor, fractions: Tensor, case: Case, mask: Tensor) -> Tensor:
    """Return the mean squared error of the predicted signal of a case in its volumes and a mask (X, Y, Z)."""
    return _error(predict_signal(amplitudes, fractions, case).signal, case, mask)


def _error(signal: Tensor, case: Case, mask: Tensor) -> Tensor:
    """Average the squared error of a signal in the volumes of a case over a mask."""
    predicted = signal[..., case.volumes]
    return losses.reconstruction(predicted, case.signal.to(predicted)[..., case.volumes], mask)


@lru_cache
def _operators(n_vertices: int, l_max: int) -> tuple[Tensor, Tensor]:
    """Return the maps from hemisphere amplitudes (V) to SH coefficients (C, V) and on to the next finer grid (4 V, C)."""
    nside = round((n_vertices / 6) ** 0.5)
    to_sh, to_fine = sh_inverse(hemisphere(nside), l_max), sh_basis(hemisphere(2 * nside), l_max)
    return torch.as_tensor(to_sh), torch.as_tensor(to_fine)
