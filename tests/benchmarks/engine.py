"""Measure the network against the published evaluation, in one run, with equal outputs; exit 1 where a figure falls short.

    python tests/benchmarks/engine.py [--json FILE] [--device cuda] [--quick] [--save] [--compare]

The baseline is ``tests/nn/oracle.py``, a plain re-implementation of the published evaluation: a dense (K V) x V projector,
``conv3d`` on the expanded kernel, one 3 x 3 x 3 patch for each voxel. Variants take turns and the least time of several
turns counts, so that other work on the machine falls on both alike. Memory is the growth of the peak resident size in a
fresh process, the least of five.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from itertools import product
from pathlib import Path

import numpy as np
import results
import torch
from engine_memory import grown, layer
from results import METRICS, Figure

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # to share the oracle with the tests

from shd_bids.fod.weights import load_weights
from shd_bids.nn.backends import cpu, memory
from shd_bids.nn.layers.cheb import SphereBasis
from shd_bids.nn.layers.conv import SpatioSphericalConv
from shd_bids.nn.streaming.tiles import apply_in_tiles
from shd_bids.nn.unet import UNet, UNetConfig
from shd_bids.sphere import healpix
from tests.nn import oracle

GROUPS = ("layer", "network", "bf16", "hemisphere", "memory", "volume", "brain")
AMX = 4  # the level of the kernel
REPLAYED = 10  # evaluations in one CUDA graph
SIZES = (
    (8, (16,), 16),
    (8, (16, 16), 16),
    (8, (32,), 32),
    (4, (16,), 96),
    (4, (96,), 96),
    (4, (96, 96), 96),
    (2, (128,), 128),
)
"""n_side, channels of the inputs and of the result of layers that are timed in bfloat16."""

SHAPES = ((16, 3), (1, 8))  # (batch, edge): sixteen 3^3 patches and one 8^3 volume


@dataclass
class Row:
    """One figure: what was reached, what is asked, and from which times or bytes it comes."""

    quantity: str
    reached: float
    required: float
    metric: str = "speedup"
    method: str = "shd_bids"
    detail: str = ""
    threads: int = field(default_factory=torch.get_num_threads)
    weights_sha: str = ""

    @property
    def at_most(self) -> bool:
        """Whether smaller is better."""
        return not METRICS[self.metric].larger_is_better

    @property
    def ok(self) -> bool:
        """Whether the figure is good enough."""
        return self.reached <= self.required if self.at_most else self.reached >= self.required

    def __str__(self) -> str:
        sign = "<=" if self.at_most else ">="
        value = f"{self.reached:.2g}" if self.reached < 0.01 else f"{self.reached:.2f}"
        verdict = "ok" if self.ok else "SHORT"
        name = f"{self.quantity}, {self.method}, {self.threads} threads"
        return f"{name:<76} {METRICS[self.metric].label:<19} {value:>9} {sign} {self.required:<5g} {verdict:<6} {self.detail}"


def main() -> int:
    """Run the table of a device and say how it went."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="save the figures here")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--quick", action="store_true", help="fewer turns and no second thread count")
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=GROUPS, help="measure these groups of rows")
    results.add_options(parser)
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device here: nothing measured")
        return 1
    torch.manual_seed(0)
    rows = []
    for row in (
        cuda_table()
        if options.device == "cuda"
        else cpu_table(turns=2 if options.quick else 5, quick=options.quick, only=options.only)
    ):
        print(row, flush=True)
        rows.append(row)
    short = [row.quantity for row in rows if not row.ok]
    if options.json:
        facts = {"date": date.today().isoformat(), "torch": torch.__version__, "machine": machine(options.device)}
        facts["command"] = " ".join(["python", *sys.argv])
        options.json.write_text(
            json.dumps({**facts, "rows": [{**asdict(r), "ok": r.ok} for r in rows]}, indent=1) + "\n"
        )
    print(
        f"engine: {len(rows) - len(short)} of {len(rows)} figures reached"
        + (f"; short: {'; '.join(short)}" if short else "")
    )
    figures = [Figure(row.quantity, row.method, row.metric, row.reached, row.threads, row.weights_sha) for row in rows]
    return max(results.finish("engine", figures, options, on=machine(options.device)), 1 if short else 0)


def machine(device: str) -> str:
    """Return the name of the processor or the graphics card."""
    return torch.cuda.get_device_name() if device == "cuda" else results.machine()


def cpu_table(*, turns: int, quick: bool, only: list[str]):
    """Yield the figures on the CPU, with one thread and with two."""
    counts = (1,) if quick else (1, 2)
    for threads in counts:
        torch.set_num_threads(threads)
        for channels, (batch, edge) in product((32, 64), SHAPES) if "layer" in only else ():
            yield from layer_rows(turns, channels, batch, edge)
        if "network" in only:
            yield from network_rows(turns)
    if "bf16" in only and cpu.bf16_level() is not None:
        torch.set_num_threads(1)
        yield from bf16_rows(turns)
    if "hemisphere" in only:
        yield from hemisphere_rows(turns)
    if "memory" in only:
        yield from memory_rows()
    memory.keep_freed_memory()  # as training and inference do; from here on for both sides
    for threads in counts:
        torch.set_num_threads(threads)
        if "volume" in only:
            yield volume_row(turns)
    if "brain" in only:
        torch.set_num_threads(2)
        yield brain_row(UNet(UNetConfig(2, 2)), "published widths")
        yield replace(brain_row(load_weights().network(), "shipped weights"), weights_sha=results.shipped_weights())


def layer_rows(turns: int, channels: int, batch: int, edge: int):
    """Time one layer: forward, without the compiled kernel, and forward and backward."""
    conv = layer(channels, 32)
    x = torch.randn(384, batch, edge, edge, edge, channels)
    published = outside(x)
    name = f"{channels}->32, {batch} x {edge}^3"
    with torch.no_grad():
        error = difference(outside(conv(x)), oracle.layer(published, conv))
        slow, fast, plain = take_turns(
            turns, lambda: oracle.layer(published, conv), lambda: conv(x), lambda: without_kernel(lambda: conv(x))
        )
    yield Row(f"layer forward {name}", slow / fast, 20, detail=f"{ms(slow)} / {ms(fast)}, difference {error:.0e}")
    if torch.get_num_threads() == 1:
        yield Row(f"layer forward {name}", slow / plain, 4.5, method="pytorch", detail=f"{ms(slow)} / {ms(plain)}")
    gradient = torch.randn(384, batch, edge, edge, edge, 32)
    backwards = outside(gradient)
    x.requires_grad_()
    published.requires_grad_()
    slow, fast = take_turns(
        max(2, turns - 2),
        lambda: oracle.layer(published, conv).backward(backwards),
        lambda: conv(x).backward(gradient),
    )
    yield Row(f"layer forward + backward {name}", slow / fast, 18, detail=f"{ms(slow)} / {ms(fast)}")


def network_rows(turns: int):
    """Time the published network on its patches, forward and in training."""
    turns = max(2, turns - 2)
    net = UNet(UNetConfig(2, 2, form="patch")).eval()
    folded, x = net.folded(), torch.randn(16, 2, 3, 3, 3, 384)
    with torch.no_grad():
        error = difference(folded(x), oracle.unet(x, net))
        slow, fast = take_turns(turns, lambda: oracle.unet(x, net), lambda: folded(x))
    yield Row("U-Net forward, 16 x 3^3", slow / fast, 15, detail=f"{ms(slow)} / {ms(fast)}, difference {error:.0e}")
    net.train()

    def step(evaluate: Callable[[], torch.Tensor]) -> None:
        net.zero_grad()
        torch.nn.functional.softplus(evaluate()).square().mean().backward()

    slow, fast = take_turns(2, lambda: step(lambda: oracle.unet(x, net)), lambda: step(lambda: net(x)))
    yield Row("training step, 16 x 3^3", slow / fast, 12, detail=f"{ms(slow)} / {ms(fast)}")


def bf16_rows(turns: int):
    """Time layers of the shipped and the published network, and the shipped network, in bfloat16 against float32."""
    required = 3 if cpu.bf16_level() == AMX else 1
    for nside, ins, out in SIZES:
        slow, fast = rounded_layer(nside, ins, out, turns)
        name = f"layer forward in bf16 against float32, n_side {nside}, {'+'.join(map(str, ins))}->{out}, 12^3"
        yield Row(name, slow / fast, required, detail=f"{ms(slow)} / {ms(fast)}")
    single, half = (load_weights().network().eval().folded() for _ in range(2))
    half.multiply_in_bf16()
    x = torch.randn(1, single.config.in_channels, 12, 12, 12, 384)
    with torch.no_grad():
        slow, fast = take_turns(turns, lambda: single(x), lambda: half(x))
    row = Row("shipped network in bf16 against float32, 12^3", slow / fast, 1, detail=f"{ms(slow)} / {ms(fast)}")
    yield replace(row, weights_sha=results.shipped_weights())


def rounded_layer(nside: int, ins: tuple[int, ...], out: int, turns: int) -> list[float]:
    """Return the least seconds of one layer in float32 and in bfloat16."""
    basis = SphereBasis(nside, hemisphere=True, order=5)
    single, half = (SpatioSphericalConv(basis, ins, out_channels=out, spatial=nside > 2) for _ in range(2))
    half.level = cpu.bf16_level()
    inputs = [torch.randn(basis.n_vertices, 1, 12, 12, 12, channels) for channels in ins]
    with torch.no_grad():
        return take_turns(turns, lambda: single(*inputs, relu=True), lambda: half(*inputs, relu=True))


def volume_row(turns: int) -> Row:
    """Time the whole-volume form, a voxel of a 16^3 volume, against one published patch for each voxel."""
    net = UNet(UNetConfig(2, 2, form="patch")).eval()
    volume = UNet(UNetConfig(2, 2)).eval().folded()
    x, whole = torch.randn(16, 2, 3, 3, 3, 384), torch.randn(1, 2, 16, 16, 16, 384)
    with torch.no_grad():
        slow, fast = take_turns(max(2, turns - 2), lambda: oracle.unet(x, net), lambda: volume(whole))
    each, voxel = slow / 16, fast / 16**3
    detail = f"{ms(each)} / {ms(voxel)} a voxel"
    return Row("whole volume against patch per voxel", each / voxel, 600, detail=detail)


def hemisphere_rows(turns: int):
    """Compare hemisphere and sphere at equal weights."""
    torch.set_num_threads(1)
    half, whole = (UNet(UNetConfig(2, 2, channels=(16, 32, 64), hemisphere=h)).eval() for h in (True, False))
    whole.load_state_dict(half.state_dict())
    lookup = torch.tensor(healpix.hemisphere_lookup(8))
    x = torch.randn(1, 2, 8, 8, 8, 384)
    full = x[..., lookup].contiguous()
    with torch.no_grad():
        exact, exact_full = half.double()(x.double()), whole.double()(full.double())
        error = (exact[..., lookup] - exact_full).abs().max().item()
        half.float(), whole.float()
        fast, slow = take_turns(turns, lambda: half(x), lambda: whole(full))
    yield Row("hemisphere against sphere: difference (float64)", error, 1e-9, metric="difference")
    yield Row(
        "hemisphere against sphere: time", fast / slow, 0.5, metric="time_share", detail=f"{ms(fast)} / {ms(slow)}"
    )
    # All that lives doubles, to the byte but for parameters: gaps that the C library leaves between blocks would decide.
    small, large = (grown("network", variant, gaps=False) for variant in ("half", "full"))
    detail = f"{small / 2**20:.1f} / {large / 2**20:.1f} MB"
    yield Row("hemisphere against sphere: memory", small / large, 0.5, metric="memory_share", detail=detail)


def memory_rows():
    """Compare peak memory of the layer at inference and of training."""
    ours, theirs = grown("layer", "ours"), grown("layer", "published")
    detail = f"{theirs / 2**20:.0f} / {ours / 2**20:.0f} MB"
    yield Row("peak memory, layer inference 32->64, 8^3", theirs / ours, 5, metric="saving", detail=detail, threads=1)
    ours, theirs = grown("training", "ours") / 16**3, grown("training", "published") / (16 * 27)
    yield Row(
        "peak memory, training per voxel",
        theirs / ours,
        8,
        metric="saving",
        detail=f"{theirs / 2**20:.2f} / {ours / 2**20:.2f} MB",
        threads=1,
    )


def brain_row(net: UNet, name: str) -> Row:
    """Time a network in whole-volume form on an ellipsoid of 200 thousand voxels."""
    axes = np.ogrid[-36:36, -44:44, -34:34]
    mask = sum((axis / radius) ** 2 for axis, radius in zip(axes, (33.5, 43.5, 32.8), strict=True)) < 1
    net = net.eval().folded()

    def read(box):
        x, y, z = (s.stop - s.start for s in box)
        # Laid out as the package's own inputs are: vertices first, channels last.
        return torch.zeros(384, 1, x, y, z, net.config.in_channels).permute(1, 5, 2, 3, 4, 0)

    def brain():
        apply_in_tiles(net, mask, read=read, write=lambda box, values: None, memory_bytes=10 << 30)

    (seconds,) = take_turns(2, brain)
    return Row(f"2 mm brain, {mask.sum()} voxels, {name}, network", seconds, 60, metric="seconds")


def cuda_table():
    """Yield the figures on a GPU."""
    device = torch.device("cuda")
    torch.backends.cudnn.allow_tf32 = False  # the outputs that are compared, before the times, are float32
    for channels in (32, 64):
        yield cuda_layer_row(channels, device)
    axes = np.ogrid[-72:73, -87:87, -72:73]
    mask = sum((axis / radius) ** 2 for axis, radius in zip(axes, (54, 70, 57), strict=True)) < 1
    net = UNet(UNetConfig(2, 2)).to(device).eval().folded().bfloat16()

    def read(box):
        return torch.zeros(1, 2, *(s.stop - s.start for s in box), 384, device=device, dtype=torch.bfloat16)

    def brain():
        apply_in_tiles(net, mask, read=read, write=lambda box, values: None, memory_bytes=bound)

    bound = int(0.6 * torch.cuda.mem_get_info()[0])
    (seconds,) = take_turns(3, brain, wait=torch.cuda.synchronize)
    yield Row(f"1.25 mm brain, {mask.sum()} voxels, network", seconds, 0.5, metric="seconds")


def cuda_layer_row(channels: int, device: torch.device) -> Row:
    """Time one layer against the published one under autocast, both in bfloat16 and replayed as graphs.

    The work of a layer on so few voxels takes less time than starting it kernel by kernel from Python.
    """
    conv = layer(channels, 32).to(device)
    x = torch.randn(384, 16, 3, 3, 3, channels, device=device)
    published, half = outside(x), x.bfloat16()
    with torch.no_grad():
        error = difference(outside(conv(x)), oracle.layer(published, conv))
        with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
            variants = recorded(lambda: oracle.layer(published, conv)), recorded(lambda: conv(half))
            slow, fast = take_turns(20, *variants, wait=torch.cuda.synchronize)
    detail = f"{ms(slow / REPLAYED)} / {ms(fast / REPLAYED)}, difference {error:.0e} in float32"
    return Row(f"layer forward against bf16 autocast, {channels}->32, 16 x 3^3", slow / fast, 15, detail=detail)


def recorded(work: Callable[[], object]) -> Callable[[], None]:
    """Record work, several times over, as a CUDA graph, after the runs that tune and allocate; give what replays it."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(REPLAYED):
            work()
    return graph.replay


def outside(x: torch.Tensor) -> torch.Tensor:
    """Reorder (V, B, X, Y, Z, F) to the baseline's (B, F, V, X, Y, Z)."""
    return x.permute(1, 5, 0, 2, 3, 4).contiguous()


def without_kernel(work: Callable[[], object]) -> object:
    """Run in plain PyTorch."""
    loaded, cpu.library = cpu.library, lambda: None
    try:
        return work()
    finally:
        cpu.library = loaded


def take_turns(turns: int, *variants: Callable[[], object], wait: Callable[[], None] = lambda: None) -> list[float]:
    """Return the least seconds of each variant over several turns, after one that does not count.

    With one thread this is processor time, which other work on the machine does not add to.
    """
    clock = time.process_time if torch.get_num_threads() == 1 and not torch.cuda.is_available() else time.perf_counter
    best = [np.inf] * len(variants)
    for turn in range(turns + 1):
        for index, variant in enumerate(variants):
            wait()
            start = clock()
            variant()
            wait()
            if turn:
                best[index] = min(best[index], clock() - start)
    return best


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest difference relative to the largest value; refuse a wrong result."""
    error = ((found - expected).abs().max() / expected.abs().max()).item()
    if not error < 1e-4:
        raise SystemExit(f"outputs differ by {error:.1e} of their size: the comparison would mean nothing")
    return error


def ms(seconds: float) -> str:
    """Return the time in milliseconds as text."""
    return f"{seconds * 1e3:.3g} ms"


if __name__ == "__main__":
    sys.exit(main())
