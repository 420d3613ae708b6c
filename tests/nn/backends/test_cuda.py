"""The Triton kernels: the function and gradients of the spectral form, by Triton's interpreter here and on a GPU where one is."""

import importlib.util
import logging
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from shd_bids.nn.backends import cpu, cuda, eager
from shd_bids.nn.backends.arguments import Filters
from shd_bids.nn.layers.cheb import SphereBasis
from shd_bids.nn.layers.conv import SpatioSphericalConv
from shd_bids.nn.streaming.tiles import apply_in_tiles
from shd_bids.nn.unet import UNet, UNetConfig
from tests.nn.oracle import layer


def make(ins, out, *, nside=1, hemisphere=True, spatial=True):
    torch.manual_seed(0)
    basis = SphereBasis(nside, hemisphere=hemisphere, order=5)
    conv = SpatioSphericalConv(basis, ins, out_channels=out, spatial=spatial)
    with torch.no_grad():
        conv.bias.normal_()
    return conv


def draw(generator, conv, shape, dtype=torch.float32, device="cpu"):
    size = conv.basis.n_vertices, *shape
    tensors = [torch.randn(*size, f, generator=generator).to(device, dtype) for f in conv.in_channels]
    return [x.requires_grad_() for x in tensors]


def with_gradients(evaluate, inputs, parameters, target):
    """Give the output and all gradients of its product with a target."""
    y = evaluate(*inputs)
    return [y, *torch.autograd.grad(y, [*inputs, *parameters], target.to(y))]


def exact(conv, inputs, target, *, relu=False):
    """The same in float64 on the CPU, where everything runs in plain PyTorch."""
    double = SpatioSphericalConv(
        SphereBasis(conv.basis.grid.nside, hemisphere=conv.basis.grid.hemisphere, order=5),
        conv.in_channels,
        out_channels=len(conv.bias),
        spatial=conv.weightSpa is not None,
    ).double()
    double.load_state_dict(conv.state_dict())
    x = [x.detach().cpu().double().requires_grad_() for x in inputs]
    return with_gradients(lambda *x: double(*x, relu=relu), x, double.parameters(), target)


def assert_all_near(found, expected, tolerance):
    __tracebackhide__ = True
    for number, (a, b) in enumerate(zip(found, expected, strict=True)):
        error = ((a.detach().cpu().double() - b.detach()).norm() / b.detach().norm()).item()
        assert error < tolerance, f"result {number}: relative error {error:.1e}"


@pytest.fixture
def interpreter():
    """The kernels as NumPy programs, on tensors of the CPU; ``tests/conftest.py`` asks for them."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed")
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("the kernels run on the device itself")


@pytest.fixture
def chosen(interpreter, monkeypatch):
    """Let every layer take the kernels, as on a CUDA device, but for the expected values in float64."""
    monkeypatch.setattr(cpu, "suits", lambda *tensors: False)
    monkeypatch.setattr(cuda, "suits", lambda *tensors: tensors[0].dtype != torch.float64 and cuda._runs_on(0))
    monkeypatch.setattr(cuda, "_tried", lambda device: True)


@pytest.mark.parametrize(
    ("ins", "out", "shape", "spatial"),
    [
        ((3, 2), 4, (1, 3, 2, 2), True),  # two inputs, all borders
        ((5,), 20, (5, 1, 4, 4), True),  # more columns than a tile has; more outputs than a block
        ((20,), 3, (2, 2, 1, 2), True),  # more inputs than a block; a flat volume
        ((2, 1, 3), 2, (1, 2, 2, 1), True),  # more inputs than a kernel takes
        ((3, 2), 4, (2, 1, 1, 3), False),
        ((1,), 1, (1, 1, 1, 1), True),
    ],
)
def test_kernels_are_the_spectral_form(generator, chosen, monkeypatch, ins, out, shape, spatial):
    monkeypatch.setattr(cuda, "_BLOCK", 16)
    conv = make(ins, out, spatial=spatial)
    inputs = draw(generator, conv, shape)
    target = torch.randn(6, *shape, out, generator=generator)
    found = with_gradients(conv, inputs, conv.parameters(), target)
    assert_all_near(found, exact(conv, inputs, target), 3e-6)


def test_half_precision_sums_in_single(generator, chosen):
    # float16, as the interpreter multiplies no bfloat16; 11 bits of mantissa through three products.
    conv = make((16, 3), 5)
    inputs = draw(generator, conv, (1, 2, 1, 2), torch.float16)
    target = torch.randn(6, 1, 2, 1, 2, 5, generator=generator).half()
    found = with_gradients(conv, inputs, conv.parameters(), target)
    assert [t.dtype for t in found[:3]] == [torch.float16] * 3
    assert_all_near(found, exact(conv, inputs, target), 2e-3)


def test_network_trains_through_the_kernels(generator, chosen, monkeypatch):
    config = UNetConfig(2, 2, nside=1, channels=(3,), spatial_levels=1, convs_per_block=1)
    torch.manual_seed(0)
    net = UNet(config)
    reference = UNet(config).double()
    reference.load_state_dict(net.state_dict())
    x = torch.randn(1, 2, 2, 2, 2, 6, generator=generator)
    net(x).square().mean().backward()
    reference(x.double()).square().mean().backward()
    for (name, found), expected in zip(net.named_parameters(), reference.parameters(), strict=True):
        if not name.endswith("conv.bias"):  # exactly zero under batch normalisation
            assert_all_near([found.grad], [expected.grad], 1e-4)


@pytest.mark.parametrize("spatial", [pytest.param(True, marks=pytest.mark.slow), False])
def test_operator_keeps_the_rules_of_torch(generator, interpreter, spatial):
    conv = make((2, 1), 2, spatial=spatial)
    inputs = draw(generator, conv, (1, 1, 1, 1))
    inputs[1].requires_grad_(False)
    (weight,) = eager.mode_weights(Filters(conv.weightSph, conv.weightSpa, conv.basis.grid), conv.basis)
    weight = weight.detach().requires_grad_()
    torch.library.opcheck(cuda.mode_conv, (inputs, weight, conv.bias, 1, True, True))


def test_compiled_layer_is_one_graph(generator, chosen):
    conv = make((2, 1), 2)
    inputs = draw(generator, conv, (1, 1, 2, 1))
    target = torch.randn(6, 1, 1, 2, 1, 2, generator=generator)
    compiled = torch.compile(conv, fullgraph=True, backend="aot_eager")
    found = with_gradients(lambda *x: compiled(*x, relu=True), inputs, conv.parameters(), target)
    assert_all_near(found, exact(conv, inputs, target, relu=True), 3e-6)


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
def test_kernels_compile_without_a_device(tmp_path, capability):
    # In a fresh process: one that interprets does not compile.
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    subprocess.run(
        [sys.executable, "-c", f"from {__name__} import build; build({capability})"],
        check=True,
        cwd=Path(__file__).parents[3],
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path)},
    )


def build(capability):
    """Compile both kernels for a device of this capability and look for the matrix units in what comes out."""
    from triton import compile as compiled
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from shd_bids.nn.backends.cuda import kernels

    blocks = {"PRECISION": "ieee", "BLOCK_I": 16, "BLOCK_O": 32, "BLOCK_P": 64}
    for kernel, data, single in (
        (kernels.product, ("first", "second", "weight", "out"), ("bias", "constant")),
        (kernels.correlation, ("x_spectrum", "y_gradient"), ("out",)),
    ):
        names = kernel.fn.arg_names
        kinds = dict.fromkeys(names, "i32") | dict.fromkeys(data, "*bf16") | dict.fromkeys(single, "*fp32")
        kinds |= dict.fromkeys({"distinct", "rows"} & set(names), "*i32") | dict.fromkeys(blocks, "constexpr")
        source = ASTSource(kernel.fn, kinds, {(names.index(name),): value for name, value in blocks.items()})
        options = {"num_warps": 4, "num_stages": 1}
        built = compiled(source, target=GPUTarget("cuda", capability, 32), options=options)
        assert "mma" in built.asm["ptx"]


def test_only_what_the_kernels_can_do_is_given_to_them(monkeypatch):
    monkeypatch.setattr(cuda, "_tried", lambda device: device == 1)

    def tensor(device="cuda:1", dtype=torch.bfloat16):
        return SimpleNamespace(device=torch.device(device), dtype=dtype)

    assert cuda.suits(tensor(), tensor(dtype=torch.float32))
    assert not cuda.suits(tensor(), tensor(dtype=torch.float64))
    assert not cuda.suits(tensor("cuda:0"))
    assert not cuda.suits(tensor("cpu"))


def test_without_triton_or_a_device_that_runs_it_there_is_plain_pytorch(monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(cuda, "find_spec", lambda name: None)
    assert not cuda._tried.__wrapped__(0)
    assert "no Triton" in caplog.text
    monkeypatch.setattr(cuda, "find_spec", lambda name: name)
    monkeypatch.setattr(torch, "ones", lambda *size, device: torch.zeros(size))
    monkeypatch.setattr(cuda, "_forward", lambda *args: 1 / 0)
    assert not cuda._tried.__wrapped__(0)
    assert "division by zero" in caplog.text


# On a device.

SIZES = [((32,), 32, (16, 3, 3, 3)), ((64,), 32, (1, 8, 8, 8)), ((32, 32), 48, (2, 5, 6, 7)), ((7,), 80, (1, 4, 1, 9))]


@pytest.mark.gpu
@pytest.mark.parametrize("spatial", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 3e-6), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize(("ins", "out", "shape"), SIZES)
def test_device_equals_the_spectral_form(generator, ins, out, shape, dtype, tolerance, spatial):
    conv = make(ins, out, nside=4, spatial=spatial)
    inputs = draw(generator, conv, shape, dtype, "cuda")
    target = torch.randn(96, *shape, out, generator=generator).to(dtype)
    expected = exact(conv, inputs, target)
    conv.cuda()
    assert cuda.suits(*inputs)
    found = with_gradients(conv, inputs, conv.parameters(), target)
    again = with_gradients(conv, inputs, conv.parameters(), target)
    assert_all_near(found, expected, tolerance)
    for a, b in zip(found[1:-1], again[1:-1], strict=True):
        assert torch.equal(a, b)  # no atomic sums: a run repeats itself


@pytest.mark.gpu
@pytest.mark.parametrize("hemisphere", [True, False])
def test_device_equals_the_dense_oracle(generator, hemisphere):
    conv = make((32,), 32, nside=8, hemisphere=hemisphere)
    x = torch.randn(conv.basis.n_vertices, 2, 3, 4, 3, 32, generator=generator)
    expected = layer(x.double().permute(1, 5, 0, 2, 3, 4), conv.double())
    found = conv.float().cuda()(x.cuda()).permute(1, 5, 0, 2, 3, 4)
    assert_all_near([found], [expected], 3e-6)


@pytest.mark.gpu
def test_device_follows_the_setting_of_tf32(generator, monkeypatch):
    conv = make((32,), 32, nside=4).cuda()
    x = torch.randn(96, 1, 6, 6, 6, 32, generator=generator).cuda()
    full = conv(x)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", True)
    error = ((conv(x) - full).norm() / full.norm()).item()
    assert 1e-5 < error < 2e-3  # 11 bits of mantissa instead of 24


@pytest.mark.gpu
@pytest.mark.filterwarnings("default")  # torch.compile warns of its own doings
@pytest.mark.parametrize("spatial", [True, False])
def test_device_compiles_the_layer_as_one_graph(generator, spatial):
    conv = make((16, 16), 32, nside=4, spatial=spatial)
    inputs = draw(generator, conv, (1, 4, 5, 6), device="cuda")
    target = torch.randn(96, 1, 4, 5, 6, 32, generator=generator)
    expected = exact(conv, inputs, target, relu=True)
    compiled = torch.compile(conv.cuda(), fullgraph=True)
    found = with_gradients(lambda *x: compiled(*x, relu=True), inputs, conv.parameters(), target)
    assert_all_near(found, expected, 3e-6)


def small_network():
    torch.manual_seed(0)
    return UNet(UNetConfig(3, 2, nside=4, channels=(16, 32, 32)))


@pytest.mark.gpu
def test_device_replays_the_network_as_a_graph(generator):
    net = small_network().cuda().eval().folded()
    first, second = (torch.randn(2, 3, 4, 6, 4, 96, generator=generator).cuda() for _ in range(2))
    x = first.clone()
    with torch.no_grad():
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            net(x)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = net(x)
        for data in (second, first):
            x.copy_(data)
            graph.replay()
            torch.testing.assert_close(y, net(data), rtol=0, atol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("autocast", [False, True])
def test_device_trains_the_network_as_the_cpu_does(generator, autocast):
    x = torch.randn(2, 3, 4, 6, 4, 96, generator=generator)
    exact, net = small_network().double(), small_network().cuda()
    exact(x.double()).square().mean().backward()
    with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
        y = net(x.cuda())
    y.float().square().mean().backward()
    for (name, expected), found in zip(exact.named_parameters(), net.parameters(), strict=True):
        if not name.endswith("conv.bias"):  # exactly zero under batch normalisation
            error = (found.grad.cpu().double() - expected.grad).norm() / expected.grad.norm()
            # Rounding switches some units; on the CPU 0.007 in float32 and 0.21 under autocast.
            assert error < (0.4 if autocast else 0.03), f"{name}: {error:.1e}"


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.1)])
def test_device_runs_a_volume_in_tiles(generator, dtype, tolerance):
    net = small_network().eval()
    x = torch.randn(1, 3, 21, 14, 9, 96, generator=generator)
    mask = np.zeros((21, 14, 9), bool)
    mask[2:20, 1:14, :7] = True
    found = torch.zeros(1, 2, *mask.shape, 96)

    def write(box, values):
        found[(slice(None), slice(None), *box)] = values.float().cpu()

    apply_in_tiles(
        net.folded().cuda().to(dtype),
        mask,
        read=lambda box: x[(slice(None), slice(None), *box)].to("cuda", dtype),
        write=write,
        memory_bytes=60 << 20,
    )
    with torch.no_grad():
        expected = net.double()(x.double())
    assert_all_near([found[:, :, mask]], [expected[:, :, mask]], tolerance)
