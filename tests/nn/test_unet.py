"""The network: the published one exactly, its whole-volume form, its variants and its running in pieces."""

import itertools
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch

from shd_bids.boxes import box_of
from shd_bids.nn.backends import cpu, memory
from shd_bids.nn.layers import norm
from shd_bids.nn.layers.pool import Pooling
from shd_bids.nn.streaming import tiles
from shd_bids.nn.streaming.plan import Plan, column_bytes, plan
from shd_bids.nn.streaming.tiles import apply_in_tiles
from shd_bids.nn.unet import UNet, UNetConfig
from shd_bids.sphere import healpix, symmetry
from tests.helpers import assert_adjoint, assert_equivariant
from tests.nn.oracle import unet

SMALL = {"nside": 2, "channels": (4, 6)}


def build(*, dtype=torch.float64, train=False, **settings):
    """Build a network with fixed weights and batch statistics that are not the trivial ones."""
    torch.manual_seed(0)
    net = UNet(UNetConfig(2, 2, **settings))
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, norm.NormReLU):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(std=0.1)
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.5, 1.5)
    return net.to(dtype).train(train)


def field(generator, *size, vertices=24, batch=1, dtype=torch.float64):
    return torch.randn(batch, 2, *size, vertices, generator=generator, dtype=dtype)


@pytest.mark.parametrize(("inputs", "count"), [(2, 843_938), (5, 844_802)])
def test_paper_network_has_the_published_parameters(inputs, count):
    # Less the published head's spatial weights, 64 numbers that never reach its output.
    net = UNet(UNetConfig(inputs, 2, form="patch"))
    assert sum(p.numel() for p in net.parameters()) == count - 64


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("hemisphere", [True, False])
@pytest.mark.parametrize("patch_size", [1, 2, 3])
def test_patch_form_is_the_published_network(generator, patch_size, hemisphere, train):
    net = build(nside=4, channels=(4, 6, 8), form="patch", patch_size=patch_size, hemisphere=hemisphere, train=train)
    x = field(generator, *[patch_size] * 3, vertices=96 * (2 - hemisphere), batch=2)
    torch.testing.assert_close(net(x), unet(x, net), rtol=0, atol=1e-10)


def test_training_keeps_the_running_statistics_of_batch_norm(generator):
    own, torchs = norm.NormReLU(3), torch.nn.BatchNorm1d(3)
    for _ in range(2):
        y = torch.randn(50, 3, generator=generator) * 3 + 5
        torch.testing.assert_close(own(y), torchs(y).relu(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(dict(own.state_dict()), dict(torchs.state_dict()), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_normalisation_has_the_gradients_of_batch_norm(generator, dtype):
    own, torchs = norm.NormReLU(5).to(dtype), torch.nn.BatchNorm1d(5).to(dtype)
    y = (torch.randn(70, 5, generator=generator, dtype=dtype) * 2 + 1).requires_grad_()
    target = torch.randn(70, 5, generator=generator, dtype=dtype)
    found = torch.autograd.grad((own(y) * target).sum(), [y, own.weight, own.bias])
    wanted = torch.autograd.grad((torchs(y).relu() * target).sum(), [y, torchs.weight, torchs.bias])
    torch.testing.assert_close(found, wanted, rtol=1e-4 if dtype == torch.float32 else 1e-10, atol=1e-5)


def test_network_on_the_hemisphere_is_that_on_the_sphere(generator):
    settings = {"nside": 4, "channels": (4, 6, 5)}
    half, whole = build(**settings), build(**settings, hemisphere=False)
    lookup = torch.tensor(healpix.hemisphere_lookup(4))
    x = field(generator, 3, 2, 4, vertices=96)
    torch.testing.assert_close(whole(x[..., lookup]), half(x)[..., lookup], rtol=0, atol=1e-9)


def test_sphere_only_network_treats_each_voxel_alone(generator):
    net = build(**SMALL, spatial_levels=0)
    x = field(generator, 2, 2, 1)
    torch.testing.assert_close(net(x)[:, :, 1:, 1:], net(x[:, :, 1:, 1:]), rtol=0, atol=1e-13)
    assert not any("weightSpa" in name for name, _ in net.named_parameters())


@pytest.mark.parametrize("size", [(4, 4, 4), (5, 3, 1)])
def test_gradients_reach_every_parameter_and_agree_between_evaluations(generator, size):
    x = field(generator, *size)
    exact, fast = build(**SMALL, train=True), build(**SMALL, train=True, dtype=torch.float32)
    for net, data in ((exact, x), (fast, x.float())):
        torch.nn.functional.softplus(net(data)).square().mean().backward()
    for (name, want), found in zip(exact.named_parameters(), fast.parameters(), strict=True):
        if name.endswith("conv.bias"):
            continue  # exactly zero under batch normalisation
        assert want.grad.abs().max() > 0, name
        error = (found.grad - want.grad).norm() / want.grad.norm()
        assert error < 1e-4, f"{name}: {error:.1e}"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_recomputed_activations_change_nothing(generator, monkeypatch, dtype):
    x = field(generator, 4, 2, 2, dtype=dtype)
    first, second = (build(**SMALL, train=True, dtype=dtype) for _ in range(2))
    first(x).square().mean().backward()
    monkeypatch.setattr("shd_bids.nn.unet.recomputed", lambda tensors: nullcontext())
    second(x).square().mean().backward()
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=0, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_way_back_is_gone_once(generator, dtype):
    loss = build(**SMALL, train=True, dtype=dtype)(field(generator, 4, 2, 2, dtype=dtype)).sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="was taken before"):
        loss.backward()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_activations_are_made_again_once(generator, monkeypatch, dtype):
    made, rectify = [], norm._rectify
    monkeypatch.setattr(norm, "_rectify", lambda *arguments: made.append(1) or rectify(*arguments))
    loss = build(**SMALL, train=True, dtype=dtype)(field(generator, 4, 2, 2, dtype=dtype)).square().mean()
    forward = len(made)
    loss.backward()
    assert forward == 6
    assert len(made) == 2 * forward


@pytest.mark.parametrize("size", [(3, 5, 2), (1, 1, 7)])
def test_odd_sizes_are_a_part_of_a_larger_volume(generator, size):
    net = build(**SMALL)
    x = field(generator, *size)
    larger = field(generator, *(n + n % 2 for n in size))
    part = (..., *(slice(n) for n in size))
    larger[(*part, slice(None))] = x
    mask = torch.zeros(larger.shape[0], *larger.shape[2:5], dtype=torch.bool)
    mask[part] = True
    torch.testing.assert_close(net(x), net(larger, mask)[(*part, slice(None))], rtol=0, atol=1e-14)


def test_inference_leaves_its_input_alone(generator):
    net = build(nside=2, channels=(2, 2), dtype=torch.float32)
    x = torch.randn(24, 1, 4, 6, 2, 2, generator=generator)  # laid out as the network computes
    x = x.permute(1, 5, 2, 3, 4, 0)
    before = x.clone()
    with torch.no_grad():
        net(x), net.folded()(x)
    torch.testing.assert_close(x, before, rtol=0, atol=0)


@pytest.mark.parametrize("size", [(4, 6, 2), (5, 1, 3)])
@pytest.mark.parametrize("channels", [(4, 6), (4, 3, 5), (4, 4, 4)])
def test_inference_is_what_training_computes(generator, size, channels):
    net = build(nside=4, channels=channels, spatial_levels=len(channels), dtype=torch.float32)
    x = field(generator, *size, vertices=96, batch=2, dtype=torch.float32)
    with torch.no_grad():
        found = net(x)  # which leaves unpooled maps unformed
    torch.testing.assert_close(found, net(x).detach(), rtol=0, atol=1e-5)


def test_receptive_radius_is_reached_and_not_passed(generator):
    net = build(nside=2, channels=(6, 6))
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, norm.NormReLU):
                module.bias.fill_(4.0)  # nearly every unit on, so that nothing hides the reach
    radius = net.config.receptive_radius
    assert radius == 2 + 4 + 2 + 1
    x = field(generator, 24, 1, 1).requires_grad_()
    for place in (10, 11):
        (reach,) = torch.autograd.grad(net(x)[0, :, place].sum(), x)
        used = np.flatnonzero(reach.abs().sum((0, 1, 3, 4, 5)).numpy())
        assert place - used.min() <= radius >= used.max() - place
        assert max(place - used.min(), used.max() - place) >= radius - 1


def on_mask(net, x, mask):
    """Evaluate on a mask at once; give the values there."""
    with torch.no_grad():
        return net(x, torch.tensor(mask)[None])[:, :, mask]


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
def test_tiles_are_exact(generator, monkeypatch, settings, dtype):
    net = build(**settings, dtype=dtype)
    net = net.folded() if dtype == torch.float32 else net
    x = field(generator, 15, 12, 29, vertices=6 * settings["nside"] ** 2, dtype=dtype)
    mask = np.zeros((15, 12, 29), bool)
    mask[2:9, 1:12, :13] = True
    mask[5:8, 3:9, 2:] = False
    mask[7:10, 4:9, 9:26] = True
    mask[14, 11, 28] = True
    whole = on_mask(build(**settings), x.double(), mask).to(dtype)
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


def test_a_mask_of_everything_is_no_mask(generator):
    net, x = build(**SMALL), field(generator, 6, 4, 8)
    torch.testing.assert_close(net(x, torch.ones(1, 6, 4, 8, dtype=torch.bool)), net(x), rtol=0, atol=0)


def test_a_mask_that_does_not_fit_is_refused(generator):
    with pytest.raises(ValueError, match="found a mask of shape"):
        build(**SMALL)(field(generator, 6, 4, 8), torch.ones(1, 6, 4, 9, dtype=torch.bool))


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
    analyse, combine = cpu.Slabwise.analyse, cpu.Slabwise.combine

    def counted_in(self, index, values, place, planes):
        taken[self, index] = taken.get((self, index), 0) + planes.stop - planes.start
        return analyse(self, index, values, place, planes)

    def counted_out(self, planes, spare):
        made[self] = made.get(self, 0) + planes.stop - planes.start
        return combine(self, planes, spare)

    monkeypatch.setattr(cpu.Slabwise, "analyse", counted_in)
    monkeypatch.setattr(cpu.Slabwise, "combine", counted_out)
    run_in_tiles(net, field(generator, 40, 8, 8, dtype=torch.float32), np.ones((40, 8, 8), bool), memory_bytes=1 << 30)
    fine, coarse = 40, 20
    assert sorted(made.values()) == [coarse] * 2 + [fine] * 4
    assert sorted(taken.values()) == [coarse] * 3 + [fine] * 4  # the decoder takes the coarser answer by its cells


def test_tiles_need_some_memory():
    net, mask = build(**SMALL), np.ones((60, 60, 60), bool)
    with pytest.raises(ValueError, match="not enough for the smallest tile"):
        plan(net, mask, memory_bytes=1000)
    column = column_bytes(net, 2, levels=range(2))
    assert plan(net, mask, memory_bytes=1 << 40) == Plan((60, 60), 16, False)
    assert plan(net, mask, memory_bytes=60 * 60 * column) == Plan((60, 60), 2, False)
    assert plan(net, mask, memory_bytes=0.5 * 60 * 60 * column).staged


@pytest.mark.skipif(cpu.library() is None, reason="no compiled kernel and no compiler")
def test_kernel_needs_no_thick_slabs_and_few_tiles_cost_less_than_stages():
    net, mask = build(**SMALL, dtype=torch.float32), np.ones((20, 200, 20), bool)
    whole = 200 * 20 * column_bytes(net, 2, levels=range(2))
    for enough in (1 << 40, whole):
        assert plan(net, mask, memory_bytes=enough) == Plan((200, 20), 2, False)
    assert plan(net, mask, memory_bytes=0.8 * whole) == Plan((100, 20), 2, False)
    assert plan(net, mask, memory_bytes=0.2 * whole).staged


def test_a_halo_outside_the_mask_is_no_reason_for_stages():
    net, mask = build(**SMALL, dtype=torch.float32), np.zeros((40, 80, 80), bool)
    mask[10:30, 20:60, 20:60] = True
    column = column_bytes(net, 2, levels=range(2))
    assert plan(net, mask, memory_bytes=40**2 * column) == Plan((40, 40), 2, False)


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
    code = f"from tests.nn.test_unet import memory_of_tiles; print(memory_of_tiles({megabytes} << 20))"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, check=True, capture_output=True, text=True)
    assert int(done.stdout) <= megabytes << 20


def test_folded_network_is_the_same_in_fewer_steps(generator):
    net = build(**SMALL)
    folded = net.folded()
    x = field(generator, 4, 3, 2)
    torch.testing.assert_close(folded(x), net(x), rtol=0, atol=1e-12)
    assert folded.config.norm == "none"
    single, half = net.float().folded(), net.float().folded().bfloat16()
    error = (half(x.bfloat16()).float() - single(x.float())).norm() / single(x.float()).norm()
    assert 0 < error < 0.06  # bfloat16 rounds to 2^-9 in each of some twenty products: 0.033 measured


@pytest.mark.parametrize("stride", [0, 1, 2])
@pytest.mark.parametrize("fast", [True, False])
def test_pooling_and_unpooling_have_their_adjoints(generator, monkeypatch, stride, fast):
    if fast and cpu.library() is None:
        pytest.skip("no compiled kernel")
    dtype = torch.float32 if fast else torch.float64
    pool, size = Pooling(2, hemisphere=True, stride=stride), (3, 3, 3) if stride == 1 else (4, 2, 6)
    x = torch.randn(24, 1, *size, 3, generator=generator, dtype=dtype)
    y = pool(x)
    if stride:
        assert y.shape[2:5] == tuple((n - 2) // stride + 1 for n in size)
    torch.testing.assert_close(y.mean(), x.mean()) if stride != 1 else None
    back = lambda f, shape: lambda g: torch.autograd.functional.vjp(f, torch.zeros(shape, dtype=dtype), g)[1]  # noqa: E731
    assert_adjoint(pool, back(pool, x.shape), x, torch.randn(y.shape, generator=generator, dtype=dtype), rtol=1e-4)
    assert_adjoint(pool.unpool, back(pool.unpool, y.shape), y, x, rtol=1e-4)
    torch.testing.assert_close(pool(pool.unpool(y)), y) if stride != 1 else None


def test_unpooling_an_odd_patch_copies_as_published(generator):
    pool = Pooling(2, hemisphere=True, stride=1)
    y = torch.arange(8.0).view(1, 1, 2, 2, 2, 1).expand(6, 1, 2, 2, 2, 1)
    torch.testing.assert_close(pool.unpool(y)[0, 0, :, 0, 0, 0], torch.tensor([0.0, 0.0, 4.0]))


@pytest.mark.parametrize("element", range(8))
def test_network_commutes_with_joint_symmetries(generator, element):
    # A symmetry of the vertices' grid applied to space and sphere together, as a rotation of the object does.
    net = build(**SMALL)
    matrix, _ = symmetry.group(inversion=False)[element]
    image = torch.tensor(symmetry.permutation(2, tuple(map(tuple, matrix)), hemisphere_only=True))
    turns, mirrored = divmod(element, 2)

    def act(x):
        moved = torch.empty_like(x)
        moved[..., image] = x
        moved = moved.flip(2) if mirrored else moved
        return moved.rot90(turns, (2, 3))

    assert_equivariant(net, field(generator, 4, 4, 2), act, act, atol=1e-12)


@pytest.mark.parametrize(
    ("axes", "flip"), list(itertools.product(itertools.permutations((2, 3, 4)), ((), (4,), (2, 3, 4))))
)
def test_network_commutes_with_the_symmetries_of_the_cube(generator, axes, flip):
    act = lambda x: x.permute(0, 1, *axes, 5).flip(flip)  # noqa: E731
    assert_equivariant(build(**SMALL), field(generator, 4, 2, 2), act, act, atol=1e-12)


def test_configuration_survives_json_and_refuses_nonsense():
    config = UNetConfig(3, 2, channels=[16, 32], nside=4)
    assert UNetConfig.from_dict(config.to_dict()) == config
    with pytest.raises(ValueError, match="unknown network settings"):
        UNetConfig.from_dict({**config.to_dict(), "depth": 3})
    with pytest.raises(ValueError, match=r"power of two; 5 levels do not fit|expected a power of two"):
        UNetConfig(3, 2, nside=6, channels=(1, 2, 3, 4, 5))
    with pytest.raises(ValueError, match="expected 'volume' or 'patch'"):
        UNetConfig(3, 2, form="tile")


def test_wrong_input_is_refused(generator):
    with pytest.raises(ValueError, match="expected \\(batch, 2, x, y, z, 24\\)"):
        build(**SMALL)(torch.zeros(1, 3, 2, 2, 2, 24, dtype=torch.float64))
    with pytest.raises(ValueError, match="form='volume'"):
        build(**SMALL, form="patch")(field(generator, 4, 4, 4))
