"""Batch normalisation and ReLU in one step.

Only what a convolution puts out is kept for the backward pass. What goes into the next one, max(0, scale y + shift), is
cheap to make again from it: memory for training falls by half.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from shd_bids.nn import distributed
from shd_bids.nn.backends import backend_for
from shd_bids.nn.layers.checkpoint import Activation


class NormReLU(nn.Module):
    """Normalise each channel over all vertices, voxels and samples, then rectify; parameters as in ``nn.BatchNorm``.

    Processes that train together normalise by what all their samples have in common, as one process would.

    Parameters
    ----------
    channels : int
    momentum : float
        Weight of the newest batch in the running statistics.
    eps : float
        Added to the variance.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, channels: int, *, momentum: float = 0.1, eps: float = 1e-5):
        super().__init__()
        self.momentum, self.eps = momentum, eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, y: Tensor) -> Tensor:
        r"""Compute :math:`\max(0, \gamma (y - \mu) / \sqrt{\sigma^2 + \epsilon} + \beta)` for y (..., F).

        While training, mean and variance are those of ``y``, and the gradient passes through them (Ioffe and Szegedy 2015,
        algorithm 1); else they are the running ones.
        """
        return self.normalise(y).values

    def normalise(self, y: Tensor, *, in_place: bool = False) -> Activation:
        """Compute the same, with what makes it again from ``y``.

        ``in_place`` says that nothing else reads ``y``: on the way back, which can then be gone once only, its gradient takes
        its memory.
        """
        y = y.contiguous()
        if self.training:
            mean, variance = _moments(y)
            self._track(mean, variance, _count(y))
        else:
            mean, variance = self.running_mean, self.running_var
        how = _How(self.eps, self.training, in_place)
        result = _NormReLU.apply(y, self.weight, self.bias, mean, variance, how)
        if not result.requires_grad:
            return Activation(result)
        with torch.no_grad():
            scale, shift = _affine(self.weight, self.bias, mean, variance, self.eps)
        kept = y.detach()
        return Activation(result, lambda: _rectify(kept, scale, shift))

    @torch.no_grad()
    def affine(self) -> tuple[Tensor, Tensor]:
        """Return the scale and shift of each channel that inference applies."""
        return _affine(self.weight, self.bias, self.running_mean, self.running_var, self.eps)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, count: int) -> None:
        unbiased = variance * (count / max(count - 1, 1))
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)
        self.num_batches_tracked += 1


class _How(NamedTuple):
    """How to normalise: what is added to the variance, whether moments are those of the input, and who else reads that."""

    eps: float
    own_moments: bool
    in_place: bool


class _NormReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, how: _How) -> Tensor:
        ctx.how, ctx.spent = how, False
        ctx.save_for_backward(y, weight, bias, mean, variance)
        return _rectify(y, *_affine(weight, bias, mean, variance, how.eps))

    @staticmethod
    def backward(ctx, gradient: Tensor):
        if ctx.spent:
            raise RuntimeError("the gradient was taken before, and its memory was that of the activation")
        ctx.spent = ctx.how.in_place
        y, weight, bias, mean, variance = ctx.saved_tensors
        scale, shift = _affine(weight, bias, mean, variance, ctx.how.eps)
        rows, of_rows = _rows(y), _rows(gradient.contiguous())
        backend = backend_for(of_rows, rows, scale)
        plain, weighted = backend.gradient_sums(of_rows, rows, scale, shift, mean.to(scale.dtype))
        precision = 1 / (variance.to(plain.dtype) + ctx.how.eps)
        slope, offset = torch.zeros_like(plain), torch.zeros_like(plain)
        if ctx.how.own_moments:
            mean_plain, mean_weighted = distributed.mean(torch.stack([plain, weighted]) / len(rows))
            slope = scale * precision * mean_weighted
            offset = scale * mean_plain - slope * mean
        out = y.detach() if ctx.how.in_place else torch.empty_like(y)
        terms = offset.to(scale.dtype), slope.to(scale.dtype)
        backend.rectify_gradient(of_rows, rows, scale, shift, *terms, out=_rows(out))
        of_weight = (weighted * precision.sqrt()).to(weight.dtype)
        return out, of_weight, plain.to(bias.dtype), None, None, None


def _affine(weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return scale and shift of each channel, at least in float32."""
    dtype = torch.promote_types(weight.dtype, torch.float32)
    scale = weight / (variance + eps).sqrt()
    return scale.to(dtype), (bias - scale * mean).to(dtype)


def _rows(y: Tensor) -> Tensor:
    return y.reshape(-1, y.shape[-1])


def _count(y: Tensor) -> int:
    """Return the number of rows over which channels are normalised; every process has as many."""
    return y.numel() // y.shape[-1] * distributed.n_processes()


def _moments(y: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance of each channel over the samples of all processes."""
    rows = _rows(y.detach())
    mean, variance = backend_for(rows).moments(rows)
    if distributed.n_processes() == 1:
        return mean, variance
    whole, square = distributed.mean(torch.stack([mean, variance + mean.double() ** 2]).double())
    return whole.to(mean.dtype), (square - whole**2).to(mean.dtype)


def _rectify(y: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return backend_for(y, scale).rectify(_rows(y), scale, shift).view_as(y)
