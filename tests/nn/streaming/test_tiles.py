"""The network over a volume in tiles: what it gives at once, each plane made once, in bounded memory."""

import itertools
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch

from shd_bids.boxes import box_of
from shd_bids.nn.backends import cpu, memory
from shd_bids.nn.streaming import tiles
from shd_bids.nn.streaming.plan import Plan
from shd_bids.nn.streaming.tiles import apply_in_tiles
from tests.nn.networks import SMALL, build, field, on_mask


def run_in_tiles(net, x, mask, *, memory_bytes):
    """Evaluate in tiles and check the contract; give what was written, how often each voxel was read, and the progress."""
    found = torch.full((1, 2, *mask.shape, x.shape[-1]), torch.nan, dtype=x.dtype)
    written, read, told = np.zeros(mask.shape, int), np.zeros(mask.shape, int), []

    def take(box):
        read[box] += 1
        return x[(slice(None), slice(None), *box)]

    def write(box, values):
        found[(slice(None), slice(None), *box)] = values
        written[box] += 1

    apply_in_tiles(net, mask, read=take, write=write, memory_bytes=memory_bytes, progress=told.append)
    assert told == sorted(told)
    assert told[-1] == pytest.approx(1)
    assert written.max() == 1
    assert written[mask].all()
    return found, read, told


@lru_cache
def in_pieces(settings):
    """Return a field, a mask of three pieces, and what the network of some settings makes of it at once, in double precision."""
    chosen = dict(settings)
    generator = torch.Generator().manual_seed(20260101)
    x = field(generator, 15, 12, 29, vertices=6 * chosen["nside"] ** 2, dtype=torch.float64)
    mask = np.zeros((15, 12, 29), bool)
    mask[2:9, 1:12, :13] = True
    mask[5:8, 3:9, 2:] = False
    mask[7:10, 4:9, 9:26] = True
    mask[14, 11, 28] = True
    return x, mask, on_mask(build(**chosen), x, mask)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"nside": 2, "channels": (4, 6)},
        {"nside": 4, "channels": (4, 6, 5)},
        {"nside": 4, "channels": (4, 3, 5), "spatial_levels": 3},
        {"nside": 2, "channels": (4, 6), "spatial_levels": 1, "convs_per_block": 3},
        {"nside": 2, "channels": (4,), "spatial_levels": 1},
        {"nside": 2, "channels": (4, 6), "spatial_levels": 0},
    ],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_tiles_are_exact(monkeypatch, settings, dtype):
    net = build(**settings, dtype=dtype)
    net = net.folded() if dtype == torch.float32 else net
    x, mask, whole = in_pieces(tuple(settings.items()))
    x, whole = x.to(dtype), whole.to(dtype)
    atol = 1e-12 if dtype == torch.float64 else 1e-5 * whole.abs().max().item()
    ways = [Plan((40, 40), 16, False), Plan((14, 20), 4, False), Plan((20, 40), 2, False)]
    if net.config.pool_strides[:1] == (2,):
        ways += [Plan((40, 40), 16, True), Plan((8, 12), 2, True), Plan((40, 40), 8, True)]
    for way in ways if dtype == torch.float32 else ways[1::3]:  # plain PyTorch: the two that cut the most
        monkeypatch.setattr(tiles, "plan", lambda *arguments, way=way, **options: way)
        found, _, told = run_in_tiles(net, x, mask, memory_bytes=0)
        assert len(told) > 1
        torch.testing.assert_close(found[:, :, mask], whole, rtol=0, atol=atol)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("staged", [True, False])
@pytest.mark.parametrize("thickness", [1, 2, 3, 4, 5, 7])
def test_tiles_are_exact_in_a_thin_volume(generator, monkeypatch, thickness, staged, dtype):
    net = build(**SMALL)
    shape = (33, 30, thickness)
    x, mask = field(generator, *shape), np.zeros(shape, bool)
    mask[14:18, 4:8] = True
    mask[17, 7:25, thickness // 2] = True
    whole = on_mask(net, x, mask)
    atol = 1e-12 if dtype == torch.float64 else 1e-5 * whole.abs().max().item()
    monkeypatch.setattr(tiles, "plan", lambda *arguments, **options: Plan((8, 40), 2, staged))
    found, _, _ = run_in_tiles(net.to(dtype), x.to(dtype), mask, memory_bytes=0)
    torch.testing.assert_close(found[:, :, mask].double(), whole, rtol=0, atol=atol)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_what_lies_outside_the_mask_is_not_computed_and_changes_nothing(generator, monkeypatch, dtype):
    net = build(**SMALL).to(dtype)
    x, mask = field(generator, 22, 18, 16, dtype=dtype), np.zeros((22, 18, 16), bool)
    mask[3:9, 2:7, 5:11] = True
    mask[9:15, 4, 6:9] = True
    whole = on_mask(net, x, mask)
    cut = tuple(slice(side.start // 2 * 2, side.stop) for side in box_of(mask))
    torch.testing.assert_close(on_mask(net, x[:, :, *cut], mask[cut]), whole, rtol=0, atol=1e-5)
    x[:, :, ~torch.tensor(mask)] = torch.nan if cpu.suits(x) else 1e3
    monkeypatch.setattr(tiles, "plan", lambda *arguments, **options: Plan((4, 6), 2, False))
    found, read, _ = run_in_tiles(net, x, mask, memory_bytes=0)
    torch.testing.assert_close(found[:, :, mask], whole, rtol=0, atol=1e-5 * whole.abs().max().item())
    assert not read[:, 8:].any()


def test_axes_come_in_any_order(generator):
    net = build(**SMALL)
    x, mask = field(generator, 6, 5, 15), np.zeros((6, 5, 15), bool)
    mask[1:4, 2, 3:14] = True
    mask[2, 1:5, 7] = True
    for axes in itertools.permutations((0, 1, 2)):
        turned = x.permute(0, 1, *(2 + axis for axis in axes), 5)
        found, _, _ = run_in_tiles(net, turned, mask.transpose(axes), memory_bytes=1 << 30)
        expected = on_mask(net, turned, mask.transpose(axes))
        torch.testing.assert_close(found[:, :, mask.transpose(axes)], expected, rtol=0, atol=1e-12)


@pytest.mark.skipif(cpu.library() is None, reason="no compiled kernel and no compiler")
def test_each_convolution_takes_and_makes_each_plane_once(generator, monkeypatch):
    net = build(**SMALL, dtype=torch.float32).folded()
    taken, made = {}, {}
    analyse, combine = cpu.SlabwiseConv.analyse, cpu.SlabwiseConv.combine

    def counted_in(self, index, values, place, planes):
        taken[self, index] = taken.get((self, index), 0) + planes.stop - planes.start
        return analyse(self, index, values, place, planes)

    def counted_out(self, planes, reuse):
        made[self] = made.get(self, 0) + planes.stop - planes.start
        return combine(self, planes, reuse)

    monkeypatch.setattr(cpu.SlabwiseConv, "analyse", counted_in)
    monkeypatch.setattr(cpu.SlabwiseConv, "combine", counted_out)
    run_in_tiles(net, field(generator, 40, 8, 8, dtype=torch.float32), np.ones((40, 8, 8), bool), memory_bytes=1 << 30)
    fine, coarse = 40, 20
    assert sorted(made.values()) == [coarse] * 2 + [fine] * 4
    assert sorted(taken.values()) == [coarse] * 3 + [fine] * 4  # the decoder takes the coarser answer by its cells


def memory_of_tiles(memory_bytes):
    """Run a network over an ellipsoid and give by how much the peak resident size of this process grew."""
    torch.set_num_threads(1)
    memory.keep_freed_memory()
    axes = np.ogrid[-13:13, -15:15, -12:12]
    mask = sum((axis / radius) ** 2 for axis, radius in zip(axes, (13, 15, 12), strict=True)) < 1
    net = build(nside=8, channels=(8, 12, 12), dtype=torch.float32).folded()

    def read(box):
        return torch.ones(1, 2, *(side.stop - side.start for side in box), 384)

    def peak():
        (line,) = (row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith("VmHWM"))
        return int(line.split()[1]) * 1024

    with torch.no_grad():
        net(read((slice(0, 2),) * 3))
    before = peak()
    apply_in_tiles(net, mask, read=read, write=lambda box, values: None, memory_bytes=memory_bytes)
    return peak() - before


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc")
@pytest.mark.skipif(cpu.library() is None, reason="no compiled kernel and no compiler")
@pytest.mark.parametrize("megabytes", [150, 250, 500])
def test_a_volume_keeps_to_its_memory(megabytes):
    # In a process of its own, as the peak of this one is past.
    code = f"from tests.nn.streaming.test_tiles import memory_of_tiles; print(memory_of_tiles({megabytes} << 20))"
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, check=True, capture_output=True, text=True)
    assert int(done.stdout) <= (megabytes << 20) + memory.TAKEN_AHEAD
