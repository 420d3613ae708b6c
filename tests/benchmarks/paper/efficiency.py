"""Time and memory of the layer and the U-Net in every form that the paper compares (Fig. 4), relative to RT-ESD.

RT-ESD filters the whole sphere with a sparse Laplacian. Added one after another: the hemisphere, a dense Laplacian, precomputed
polynomials (SHD). Then the engine of this package, and PONITA. A form and the baseline take turns in one process and the least
time counts; outputs of the forms that compute one function are compared. Memory is the peak of one evaluation above what weights,
input and constant matrices take: the growth of the resident size of a forked process, or what the GPU's allocator counted.
"""

from __future__ import annotations

import ctypes
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import TypeAlias

import numpy as np
import torch
from engine import difference, outside, take_turns
from engine_memory import growth
from matplotlib.figure import Figure
from torch import Tensor

from shd_bids.nn.layers.cheb import Grid, SphereBasis
from shd_bids.nn.layers.conv import SpatioSphericalConv
from shd_bids.nn.unet import UNet, UNetConfig
from shd_bids.sphere.healpix import hemisphere_indices, hemisphere_lookup
from tests.benchmarks.paper import published
from tests.benchmarks.paper.base import Claim, Done, Experiment, Outcome, Settings, Unit
from tests.benchmarks.paper.comparators import PonitaConv
from tests.benchmarks.paper.figures import WIDTH, colours, grouped, save
from tests.benchmarks.paper.plain_unet import ponita
from tests.nn import oracle

_BASE, _ENGINE, _PONITA = "RT-ESD", "shd_bids", "PONITA"
_HALF, _DENSE, _SHD = "+ hemisphere", "+ dense Laplacian", "+ polynomials (SHD)"
_FORMS = {_HALF: "sparse", _DENSE: "dense", _SHD: "polynomials"}
_METHODS = (_BASE, *_FORMS, _ENGINE, _PONITA)
_NETWORK = "U-Net, 768 vertices"
_SHARES = ("time_share", "memory_share")
_TURNS = 2
_MALLOPT, _OWN_PAGES = (
    (-1, -3),
    1 << 16,
)  # thresholds, of glibc's malloc.h, above which a block is given back and mapped
_MOST_PONITA = 768  # vertices: its kernels are as large as the square of their number

_Work: TypeAlias = Callable[[], Tensor]


@dataclass(frozen=True)
class Sizes:
    """Voxels along an edge, features into and out of the layer, features of the levels of the network."""

    edge: int
    layer: tuple[int, int]
    channels: tuple[int, ...]


_SIZES = {
    "small": Sizes(4, (16, 32), (8, 16, 32, 64)),
    "full": Sizes(8, (32, 64), (32, 64, 128, 256)),
}
_NSIDES, _NETWORK_NSIDE = (1, 2, 4, 8, 16), 8


def units(settings: Settings) -> Iterator[Unit]:
    """Yield each form of each layer and of the network; a seed is a repetition."""
    sizes = _SIZES[settings.scale]
    for seed in range(settings.seeds):
        for nside in (*_NSIDES, 0):
            row = _row(nside) if nside else _NETWORK
            for method in _METHODS:
                if method != _PONITA or 12 * nside**2 <= _MOST_PONITA:
                    run = partial(measure, method, nside, sizes, seed=seed, device=settings.device)
                    yield Unit(row, method, seed, run)


def _row(nside: int) -> str:
    return f"layer, {12 * nside**2} vertices"


def measure(method: str, nside: int, sizes: Sizes, *, seed: int, device: str) -> Outcome:
    """Return time and memory of a form as shares of those of the baseline; ``nside`` 0 is the network."""
    make = _network if nside == 0 else partial(_layer, nside)
    with torch.no_grad():
        base, work = (make(name, sizes, seed, device) for name in (_BASE, method))
        if method in (*_FORMS, _ENGINE):
            difference(work(), base()[:, :, torch.tensor(hemisphere_indices(nside or _NETWORK_NSIDE))])
        slow, fast = take_turns(_TURNS, base, work, wait=_wait(device))
        most, least = (_memory(w, device) for w in (base, work))
    return Outcome(
        {"time_share": fast / slow, "memory_share": least / most, "seconds": fast, "megabytes": least / 2**20}
    )


def _layer(nside: int, method: str, sizes: Sizes, seed: int, device: str) -> _Work:
    """Return one evaluation of the layer by a method, (B, O, V, X, Y, Z)."""
    torch.manual_seed(seed)
    features, out = sizes.layer
    half = method in (*_FORMS, _ENGINE)
    x = _input(nside, features, sizes.edge, half, seed, device)
    if method == _PONITA:
        net = PonitaConv(Grid(nside, False), features, out, spatial=True).to(device)
        return lambda: net(x)
    # The published forms need no eigenbasis, which takes minutes to find on the whole sphere of the finest grid.
    basis = _basis(nside) if method == _ENGINE else SimpleNamespace(grid=Grid(nside, half), order=5)
    conv = SpatioSphericalConv(basis, (features,), out_channels=out, spatial=True).to(device)
    if method == _ENGINE:
        inside = x.permute(2, 0, 3, 4, 5, 1).contiguous()
        return lambda: outside(conv(inside))
    return partial(published.layer, x, conv, form=_FORMS.get(method, "sparse"))


def _network(method: str, sizes: Sizes, seed: int, device: str) -> _Work:
    """Return one evaluation of the network by a method, (B, O, V, X, Y, Z)."""
    torch.manual_seed(seed)
    half = method in (*_FORMS, _ENGINE)
    config = UNetConfig(
        1, 1, channels=sizes.channels, form="patch", patch_size=sizes.edge, hemisphere=half, nside=_NETWORK_NSIDE
    )
    x = _input(config.nside, 1, sizes.edge, half, seed, device).permute(0, 1, 3, 4, 5, 2)
    if method == _PONITA:
        other = ponita(config).to(device).eval()
        return lambda: other(x)
    net = UNet(config).to(device).eval()
    if method == _ENGINE:
        folded = net.folded()
        return lambda: _vertices_third(folded(x))
    layer = partial(published.layer, form=_FORMS.get(method, "sparse"))
    return lambda: _vertices_third(oracle.unet(x, net, layer=layer))


def _vertices_third(y: Tensor) -> Tensor:
    return y.permute(0, 1, 5, 2, 3, 4)


def _input(nside: int, features: int, edge: int, half: bool, seed: int, device: str) -> Tensor:
    """Return an even signal on the hemisphere or the sphere, (1, F, V, X, Y, Z)."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(1, features, 6 * nside**2, edge, edge, edge, generator=generator)
    return (x if half else x[:, :, torch.tensor(hemisphere_lookup(nside))]).to(device)


@lru_cache
def _basis(nside: int) -> SphereBasis:
    return SphereBasis(nside, hemisphere=True, order=5)


def _wait(device: str) -> Callable[[], None]:
    return torch.cuda.synchronize if device == "cuda" else lambda: None


def _memory(work: _Work, device: str) -> float:
    """Return the bytes that one evaluation takes at its peak."""
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work()
        return torch.cuda.max_memory_allocated() - before
    with multiprocessing.get_context("fork").Pool(1, initializer=_remember, initargs=(work,)) as pool:
        return pool.apply(_grown)


_remembered: list[_Work] = []


def _remember(work: _Work) -> None:
    _remembered[:] = [work]


def _grown() -> float:
    """Return the growth when each block has pages of its own and none are left from before, in a process that ends then."""
    library = ctypes.CDLL(None)
    for parameter in _MALLOPT:
        library.mallopt(parameter, _OWN_PAGES)
    library.malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak counts from here
    with torch.no_grad():
        return growth(_remembered[0])


def draw(done: Sequence[Done], file: Path) -> None:
    """Draw shares of time and memory over vertices, the network apart on the right of each panel."""
    figure = Figure((WIDTH, 3.6), layout="constrained")
    axes = figure.subplots(1, 2)
    paint = colours(_METHODS)
    for ax, metric, label in zip(axes, _SHARES, ("time", "memory"), strict=True):
        values = grouped(done, metric)
        for method in _METHODS:
            means = np.array([100 * at[method].mean if method in at else np.nan for at in values.values()])
            ax.plot(range(len(means) - 1), means[:-1], "o-", color=paint[method], label=method, markersize=4)
            ax.plot(len(means) - 0.5, means[-1], "D", color=paint[method], markersize=5)
        ax.axhline(100, color="0.5", lw=0.8, ls="--")
        names = [row.removeprefix("layer, ").removesuffix(" vertices") for row in values]
        ax.set_xticks([*range(len(names) - 1), len(names) - 0.5], [*names[:-1], "U-Net"])
        ax.set(yscale="log", xlabel="vertices", ylabel=f"{label}, % of RT-ESD")
        ax.yaxis.set_major_formatter("{x:g}")
        ax.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, fontsize=8)
    save(figure, file)


EXPERIMENT = Experiment(
    "efficiency",
    "Efficiency (Fig. 4)",
    units,
    _SHARES,
    draw,
    tuple(
        Claim(text, metric, better, worse, rows)
        for text, better, worse, rows, metrics in (
            ("the hemisphere costs less than the sphere", _HALF, _BASE, (), _SHARES),
            ("a dense Laplacian costs less than a sparse one", _DENSE, _HALF, (), _SHARES[:1]),
            ("precomputed polynomials cost less than the recursion", _SHD, _DENSE, (), _SHARES),
            ("SHD costs less than PONITA on fine grids", _SHD, _PONITA, (_row(4), _row(8), _NETWORK), _SHARES),
            ("this package costs less than SHD as published", _ENGINE, _SHD, (), _SHARES),
        )
        for metric in metrics
    ),
)
