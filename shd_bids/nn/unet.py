"""The U-Net over space and sphere: the published network and its whole-volume form, from one configuration.

Elaldi, Gerig and Dey 2024 (arXiv:2411.11819), figure 3B: two convolutions with batch normalisation and ReLU at each of four
levels, features doubled as vertices are quartered, skips concatenated. The softplus after it belongs to whoever reads the output.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from shd_bids.nn.backends.cpu import SlabPlan, SlabwiseConv, bf16_level
from shd_bids.nn.layers.cheb import SphereBasis
from shd_bids.nn.layers.checkpoint import Activation, Recipe, restore, save
from shd_bids.nn.layers.conv import Input, SpatioSphericalConv
from shd_bids.nn.layers.norm import NormReLU
from shd_bids.nn.layers.pool import Pooling, Unpooled

_ORDER = 5  # published kernel size on the sphere: Chebyshev terms T_0 .. T_4


@dataclass(frozen=True)
class UNetConfig:
    """What network to build.

    Attributes
    ----------
    in_channels, out_channels : int
        Input features (published: one per shell), output tissues.
    nside : int
        HEALPix resolution of the finest level; each level below has half of it.
    channels : tuple of int
        Features of each level, finest first; the last is the bottom block. Published: (32, 64, 128, 256).
    convs_per_block : int
        Convolutions in each encoder and decoder block.
    order : int
        Chebyshev terms of each filter.
    hemisphere : bool
        False computes on the whole sphere (RT-ESD): the same function at twice the cost.
    form : {"volume", "patch"}
        ``volume`` takes any size, mixes space at the ``spatial_levels`` finest levels and halves it between them.
        ``patch`` is the published network on patches of ``patch_size`` with its odd-size pooling rule.
    spatial_levels : int
        Levels with the 3 x 3 x 3 kernel in the volume form; 0 treats each voxel alone (ESD).
    patch_size : int
        Voxels along each axis in the patch form; 1 treats each voxel alone (ESD as published).
    norm : {"batch", "none"}
        Batch normalisation after each convolution, or nothing.
    """

    in_channels: int
    out_channels: int
    nside: int = 8
    channels: tuple[int, ...] = (32, 64, 128, 256)
    convs_per_block: int = 2
    order: int = _ORDER
    hemisphere: bool = True
    form: str = "volume"
    spatial_levels: int = 2
    patch_size: int = 3
    norm: str = "batch"

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", tuple(self.channels))
        problems = list(self._problems())
        if problems:
            raise ValueError("; ".join(problems))

    def _problems(self) -> Iterator[str]:
        depth = len(self.channels)
        if self.nside < 1 or self.nside & (self.nside - 1):
            yield f"nside is {self.nside}, expected a power of two"
        if depth < 1 or self.nside >> (depth - 1) < 1:
            yield f"{depth} levels do not fit nside {self.nside}, expected at most {max(self.nside, 1).bit_length()}"
        if min(self.in_channels, self.out_channels, self.convs_per_block, self.order, *self.channels) < 1:
            yield "channels, convs_per_block and order must be at least 1"
        if self.form not in ("volume", "patch"):
            yield f"form is {self.form!r}, expected 'volume' or 'patch'"
        if not 0 <= self.spatial_levels <= depth:
            yield f"spatial_levels is {self.spatial_levels}, expected 0 to {depth}"
        if self.patch_size < 1:
            yield f"patch_size is {self.patch_size}, expected at least 1"
        if self.norm not in ("batch", "none"):
            yield f"norm is {self.norm!r}, expected 'batch' or 'none'"

    @property
    def nsides(self) -> tuple[int, ...]:
        """Resolution of each level, finest first."""
        return tuple(self.nside >> level for level in range(len(self.channels)))

    @property
    def spatial(self) -> tuple[bool, ...]:
        """Whether each level has the spatial kernel."""
        if self.form == "volume":
            return tuple(level < self.spatial_levels for level in range(len(self.channels)))
        return tuple(size > 1 for size in self._patch_sizes())

    @property
    def pool_strides(self) -> tuple[int, ...]:
        """Spatial stride of the pooling below each level but the last; 0 where space is left alone."""
        if self.form == "volume":
            return tuple(2 if level + 1 < self.spatial_levels else 0 for level in range(len(self.channels) - 1))
        return tuple(0 if size == 1 else 2 - size % 2 for size in self._patch_sizes()[:-1])

    @property
    def spatial_stride(self) -> int:
        """Voxels along each axis that the coarsest spatial level merges into one."""
        return 2 ** sum(stride == 2 for stride in self.pool_strides)

    @property
    def receptive_radius(self) -> int:
        """Voxels along each axis on which an output voxel may depend (volume form)."""
        scale, radius = 1, 0
        for level, spatial in enumerate(self.spatial):
            radius += scale * self.n_convs(level) * spatial
            scale *= 2 if level < len(self.pool_strides) and self.pool_strides[level] == 2 else 1
        return radius + self.spatial_stride - 1

    def n_convs(self, level: int) -> int:
        """Return the number of convolutions of a level: those of its encoder and decoder block, or of the bottom block."""
        return self.convs_per_block * (1 if level == len(self.channels) - 1 else 2)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-safe values."""
        return asdict(self) | {"channels": list(self.channels)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "UNetConfig":
        """Read what :meth:`to_dict` wrote; unknown names are an error, not a silent difference."""
        unknown = sorted(set(values) - {field.name for field in fields(cls)})
        if unknown:
            raise ValueError(f"unknown network settings {unknown}; this version knows {[f.name for f in fields(cls)]}")
        return cls(**values)

    def _patch_sizes(self) -> tuple[int, ...]:
        sizes = [self.patch_size]
        while len(sizes) < len(self.channels):
            size = sizes[-1]
            sizes.append(size if size == 1 else size - 1 if size % 2 else size // 2)
        return tuple(sizes)


class ConvNormReLU(nn.Module):
    """One convolution, batch normalisation over everything but channels, and ReLU."""

    def __init__(
        self, basis: SphereBasis, in_channels: tuple[int, ...], *, out_channels: int, spatial: bool, norm: str
    ):
        super().__init__()
        self.conv = SpatioSphericalConv(basis, in_channels, out_channels=out_channels, spatial=spatial)
        self.norm = NormReLU(out_channels) if norm == "batch" else None

    def forward(self, *inputs: Input) -> Tensor:
        """Map inputs of shape (V, B, X, Y, Z, I_j) to (V, B, X, Y, Z, O)."""
        return self.normalise(self.convolve(*inputs)).values

    def convolve(self, *inputs: Input, in_place: bool = False) -> Tensor:
        """Take the first step of :meth:`forward`; ``in_place`` says that nothing else reads the first input."""
        return self.conv(*inputs, relu=self.norm is None, in_place=in_place)

    def normalise(self, y: Tensor) -> Activation:
        """Take the second step, after which ``y`` is of no use to others."""
        return Activation(y) if self.norm is None else self.norm.normalise(y, in_place=True)

    def slabwise(self, plan: SlabPlan, *, pool: Pooling | None = None) -> SlabwiseConv:
        """Return what takes the first step a few planes at a time, see :meth:`SpatioSphericalConv.slabwise`."""
        return self.conv.slabwise(plan, pool=pool, relu=self.norm is None)


class UNet(nn.Module):
    """Map input features on R^3 x S^2 to tissue amplitudes before the final softplus.

    Encoder blocks keep their output for the decoder block of the same level, then pool; the bottom block and each decoder
    block end with the number of features of the next finer level.

    Parameters
    ----------
    config : UNetConfig
    """

    def __init__(self, config: UNetConfig):
        super().__init__()
        self.config = config
        self.bases = nn.ModuleList(
            SphereBasis(nside, hemisphere=config.hemisphere, order=config.order) for nside in config.nsides
        )
        self.pools = nn.ModuleList(
            Pooling(nside, hemisphere=config.hemisphere, stride=stride)
            for nside, stride in zip(config.nsides[:-1], config.pool_strides, strict=True)
        )
        widths = config.channels
        finer = (widths[0], *widths[:-1])  # features leaving a decoder block
        bottom = len(widths) - 1
        self.encoder = nn.ModuleList(
            self._block(level, (config.in_channels if level == 0 else widths[level - 1],), widths[level])
            for level in range(bottom)
        )
        self.bottom = self._block(bottom, (config.in_channels if bottom == 0 else widths[bottom - 1],), finer[bottom])
        self.decoder = nn.ModuleList(
            self._block(level, (widths[level], widths[level]), finer[level]) for level in reversed(range(bottom))
        )
        self.head = Head(finer[0], config.out_channels)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Map (B, C, X, Y, Z, V) to (B, O, X, Y, Z, V).

        With a mask the features of every level are zero outside it, as they are beyond the border of a volume: what lies
        there neither matters nor costs. A coarser level's mask holds the cells that touch that of the finer. The output
        outside the mask has no meaning.

        Parameters
        ----------
        x : Tensor
        mask : Tensor of bool, shape (B, X, Y, Z), optional
            Of a network in volume form.

        Raises
        ------
        ValueError
            If channels, vertices or the mask do not fit, or the size is not that of a patch.
        """
        self._check(x, mask)
        size = x.shape[2:5]
        lacking = [(-n) % self.config.spatial_stride for n in size] if self.config.form == "volume" else [0, 0, 0]
        if mask is not None and bool(mask.all()):
            mask = None  # the same, and nothing to multiply
        if any(lacking) and mask is None:
            mask = x.new_ones((len(x), *size), dtype=torch.bool)
        inputs = [x.permute(5, 0, 2, 3, 4, 1).contiguous()]  # (V, B, X, Y, Z, C)
        if mask is not None:
            x_end, y_end, z_end = lacking
            inputs = [functional.pad(inputs.pop() * mask[None, ..., None], (0, 0, 0, z_end, 0, y_end, 0, x_end))]
            mask = functional.pad(mask, (0, z_end, 0, y_end, 0, x_end)).to(x.dtype)
        x, recipe = self.descend(0, [Activation(inputs.pop())], mask)
        if any(lacking):
            x, recipe = x[:, :, : size[0], : size[1], : size[2]], None
        return self.head(x, recipe).permute(1, 5, 2, 3, 4, 0)  # (B, O, X, Y, Z, V)

    # The steps of the network, on tensors (vertex, batch, x, y, z, channel), for running it in pieces.

    def descend(self, level: int, inputs: list[Activation], mask: Tensor | None = None) -> Activation:
        """Run a level and everything coarser; ``mask`` (B, X, Y, Z) is one or zero. The list, of the one input, is used up."""
        if level == len(self.encoder):
            return _run(self.bottom, inputs, mask)
        pool = self.pools[level]
        maps: list[Any] = [_run(self.encoder[level], inputs, mask)]
        coarse = mask if mask is None or pool.stride == 0 else functional.max_pool3d(mask, pool.stride)
        maps.append(_unpool(pool, self.descend(level + 1, [Activation(pool(maps[0].values))], coarse)))
        return _run(self.decoder[len(self.decoder) - 1 - level], maps, mask)

    def folded(self) -> "UNet":
        """Return a copy for inference with batch normalisation folded into the convolutions (cast it as a whole if asked)."""
        copy = UNet(replace(self.config, norm="none")).to(self.head.bias)
        state = {name: value.detach().clone() for name, value in self.state_dict().items() if ".norm." not in name}
        for name, unit in self.named_modules():
            if isinstance(unit, ConvNormReLU) and unit.norm is not None:
                scale, shift = unit.norm.affine()
                state[f"{name}.conv.weightSph"] = unit.conv.weightSph.detach() * scale[:, None, None]
                state[f"{name}.conv.bias"] = unit.conv.bias.detach() * scale + shift
        copy.load_state_dict(state)
        return copy.eval().requires_grad_(False)

    def multiply_in_bf16(self) -> "UNet":
        """Let the compiled kernel multiply in bfloat16 where no gradients are wanted, and return this network.

        The processor must have the instructions, see :func:`shd_bids.nn.backends.cpu.bf16_level`. What is added up, and all
        that passes from layer to layer, stays in float32.
        """
        for unit in self.modules():
            if isinstance(unit, ConvNormReLU):
                unit.conv.level = bf16_level()
        return self

    def _block(self, level: int, inputs: tuple[int, ...], out_channels: int) -> nn.ModuleList:
        config = self.config
        units, width = [], config.channels[level]
        for index in range(config.convs_per_block):
            last = index == config.convs_per_block - 1
            units.append(
                ConvNormReLU(
                    self.bases[level],
                    inputs,
                    out_channels=out_channels if last else width,
                    spatial=config.spatial[level],
                    norm=config.norm,
                )
            )
            inputs = (width,)
        return nn.ModuleList(units)

    def _check(self, x: Tensor, mask: Tensor | None) -> None:
        config, vertices = self.config, self.bases[0].n_vertices
        if x.ndim != 6 or x.shape[1] != config.in_channels or x.shape[5] != vertices:
            raise ValueError(
                f"input has shape {tuple(x.shape)}, expected (batch, {config.in_channels}, x, y, z, {vertices})"
            )
        if config.form == "patch" and x.shape[2:5] != (config.patch_size,) * 3:
            raise ValueError(
                f"patch has size {tuple(x.shape[2:5])}, expected {config.patch_size} along each axis; "
                "build the network with form='volume' for other sizes"
            )
        if mask is not None and (config.form == "patch" or mask.shape != (len(x), *x.shape[2:5])):
            raise ValueError(
                f"found a mask of shape {tuple(mask.shape)} for a network in {config.form} form, expected one of "
                f"{(len(x), *x.shape[2:5])} for one in volume form"
            )


class Head(nn.Module):
    """Map features to tissues at each vertex and voxel; published as a layer of one Chebyshev term without neighbours."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.weightSph = nn.Parameter(torch.empty(out_channels, in_channels, 1))
        nn.init.normal_(self.weightSph, std=(2 / in_channels) ** 0.5)
        self.bias = nn.Parameter(torch.full((out_channels,), 0.01))

    def forward(self, x: Tensor, recipe: Recipe | None = None) -> Tensor:
        """Map (..., I) to (..., O); ``recipe`` makes ``x`` again on the way back."""
        return _Pointwise.apply(x, recipe, self.weightSph[..., 0].to(x.dtype), self.bias.to(x.dtype))


class _Pointwise(torch.autograd.Function):
    """A linear map of channels whose weight gradient is summed vertex by vertex: one long thin product is slow."""

    @staticmethod
    def forward(ctx, x: Tensor, recipe: Recipe | None, weight: Tensor, bias: Tensor) -> Tensor:
        save(ctx, [x], [recipe], weight)
        return functional.linear(x, weight, bias)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        (x,), _, (weight,) = restore(ctx)
        gradient = gradient.contiguous()
        by_vertex = gradient.flatten(1, -2).transpose(1, 2) @ x.flatten(1, -2)  # (V, O, I)
        del x  # which may have been made for this and is as large as its gradient
        return gradient @ weight, None, by_vertex.sum(0), gradient.flatten(0, -2).sum(0)


def _unpool(pool: Pooling, x: Activation) -> Activation | Unpooled:
    return x.then(pool.unpool) if torch.is_grad_enabled() else Unpooled(pool, x.values)


def _run(block: nn.ModuleList, inputs: list[Any], mask: Tensor | None) -> Activation:
    """Run a block; the list is used up, so that what nothing else holds is freed as soon as it was read."""
    for index, unit in enumerate(block):
        # What an encoder is given may be the caller's; what it keeps for its decoder is read there for the last time.
        inputs[:] = [unit.convolve(*inputs, in_place=index > 0 or len(inputs) > 1)]
        inputs[:] = [unit.normalise(*inputs)]
        if mask is not None:
            marks = mask[None, ..., None].to(inputs[0].values.dtype)
            inputs[:] = [inputs[0].then(lambda x, marks=marks: x * marks)]
    return inputs.pop()
