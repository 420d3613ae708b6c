"""Batch normalisation and ReLU in one step.

Only what a convolution puts out is kept for the backward pass. What goes into the next one, max(0, scale y + shift), is
cheap to make again from it: memory for training falls by half.
"""

import torch
from torch import Tensor, nn

from shd_bids.nn import distributed
from shd_bids.nn.backends import cpu
from shd_bids.nn.layers.checkpoint import remember


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

    def forward(self, y: Tensor, *, own: bool = False) -> Tensor:
        """Map (..., F) to the same shape; see :func:`normalise_and_rectify`."""
        if self.training:
            mean, variance = _moments(y)
            self._track(mean, variance, _count(y))
        else:
            mean, variance = self.running_mean, self.running_var
        return normalise_and_rectify(
            y, self.weight, self.bias, mean, variance, eps=self.eps, through=self.training, own=own
        )

    @torch.no_grad()
    def affine(self) -> tuple[Tensor, Tensor]:
        """Give the scale and shift of each channel that inference applies."""
        return _affine(self.weight, self.bias, self.running_mean, self.running_var, self.eps)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, count: int) -> None:
        unbiased = variance * (count / max(count - 1, 1))
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)
        self.num_batches_tracked += 1


def normalise_and_rectify(
    y: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, *, eps: float, through: bool, own: bool
) -> Tensor:
    r"""Compute :math:`\max(0, \gamma (y - \mu) / \sqrt{\sigma^2 + \epsilon} + \beta)`.

    ``through`` says that mean and variance are those of ``y`` itself, so that the gradient passes through them
    (Ioffe and Szegedy 2015, algorithm 1). ``own`` says that nothing else reads ``y``: on the way back, which can then be
    gone once only, its gradient may take its memory. The result carries what :func:`recomputed` needs.
    """
    result = _NormReLU.apply(y, weight, bias, mean, variance, eps, through, own)
    scale, shift = _affine(weight, bias, mean, variance, eps)
    kept = y.detach()
    remember(result, lambda: _rectify(kept, scale, shift))
    return result


class _NormReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y, weight, bias, mean, variance, eps, through, own):
        ctx.through, ctx.eps, ctx.own, ctx.spent = through, eps, own, False
        ctx.save_for_backward(y, weight, bias, mean, variance)
        return _rectify(y, *_affine(weight, bias, mean, variance, eps))

    @staticmethod
    def backward(ctx, gradient):
        if ctx.spent:
            raise RuntimeError("the gradient was taken before, and its memory was that of the activation")
        ctx.spent = ctx.own
        y, weight, bias, mean, variance = ctx.saved_tensors
        scale, shift = _affine(weight, bias, mean, variance, ctx.eps)
        gradient = gradient.contiguous()
        plain, weighted = _gradient_sums(gradient, y, scale, shift, mean.to(scale.dtype))
        precision = 1 / (variance.to(plain.dtype) + ctx.eps)
        slope, offset = torch.zeros_like(plain), torch.zeros_like(plain)
        if ctx.through:
            own_count = y.numel() // y.shape[-1]
            mean_plain, mean_weighted = distributed.mean(torch.stack([plain, weighted]) / own_count)
            slope = scale * precision * mean_weighted
            offset = scale * mean_plain - slope * mean
        out = y.detach() if ctx.own else torch.empty_like(y)
        _rectify_gradient(gradient, y, scale, shift, offset.to(scale.dtype), slope.to(scale.dtype), out=out)
        of_weight = (weighted * precision.sqrt()).to(weight.dtype)
        return out, of_weight, plain.to(bias.dtype), None, None, None, None, None


def _affine(weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Give scale and shift of each channel, at least in float32."""
    dtype = torch.promote_types(weight.dtype, torch.float32)
    scale = weight / (variance + eps).sqrt()
    return scale.to(dtype), (bias - scale * mean).to(dtype)


def _rows(y: Tensor) -> Tensor:
    return y.reshape(-1, y.shape[-1])


def _count(y: Tensor) -> int:
    """Count the rows over which channels are normalised; every process has as many."""
    return y.numel() // y.shape[-1] * distributed.n_processes()


def _moments(y: Tensor) -> tuple[Tensor, Tensor]:
    """Give mean and biased variance of each channel over the samples of all processes."""
    mean, variance = _own_moments(y)
    if distributed.n_processes() == 1:
        return mean, variance
    whole, square = distributed.mean(torch.stack([mean, variance + mean.double() ** 2]).double())
    return whole.to(mean.dtype), (square - whole**2).to(mean.dtype)


def _own_moments(y: Tensor) -> tuple[Tensor, Tensor]:
    if cpu.suits(y) and not torch.compiler.is_compiling():
        return cpu.moments(_rows(y.detach().contiguous()))
    dtype = torch.promote_types(y.dtype, torch.float32)
    variance, mean = torch.var_mean(_rows(y.detach()).to(dtype), 0, correction=0)
    return mean, variance


def _rectify(y: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    if cpu.suits(y, scale) and not torch.compiler.is_compiling():
        return cpu.rectify(_rows(y.contiguous()), scale.contiguous(), shift.contiguous()).view_as(y)
    return torch.addcmul(shift, y, scale).relu_().to(y.dtype)


def _gradient_sums(gradient: Tensor, y: Tensor, scale: Tensor, shift: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
    if cpu.suits(gradient, y, scale) and not torch.compiler.is_compiling():
        return cpu.gradient_sums(_rows(gradient), _rows(y.contiguous()), scale, shift, centre)
    on = _rows(torch.where(torch.addcmul(shift, y, scale) > 0, gradient, 0))
    dtype = scale.dtype
    return on.sum(0, dtype=dtype), (on * (_rows(y) - centre)).sum(0, dtype=dtype)


def _rectify_gradient(
    gradient: Tensor, y: Tensor, scale: Tensor, shift: Tensor, offset: Tensor, slope: Tensor, *, out: Tensor
) -> None:
    if cpu.suits(gradient, y, scale) and not torch.compiler.is_compiling():
        cpu.rectify_gradient(_rows(gradient), _rows(y), scale, shift, offset, slope, out=_rows(out))
    else:
        on = torch.where(torch.addcmul(shift, y, scale) > 0, gradient, 0)
        out.copy_(scale * on - offset - slope * y)
