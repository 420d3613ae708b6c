"""Where a network may run, and in which arithmetic."""

import pytest
import torch

from shd_bids.errors import DeviceError
from shd_bids.nn import device as device_module
from shd_bids.nn.device import Compute, choose_compute, choose_device, choose_precision, set_precision, usable_bytes


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there")
def test_absent_cuda_is_an_error_unless_auto():
    assert choose_device("auto") == torch.device("cpu")
    with pytest.raises(DeviceError, match="'cuda:1' was asked for, found 0 CUDA devices"):
        choose_device("cuda:1")


@pytest.mark.gpu
def test_a_gpu_is_not_asked_for_more_than_is_free():
    device = choose_device("auto")
    assert 0 < usable_bytes(device, 1.0) < torch.cuda.mem_get_info(device)[0]


def test_the_memory_of_a_gpu_does_not_depend_on_that_of_the_host(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (40 * 2**30, 80 * 2**30))
    cpu, gpu = torch.device("cpu"), torch.device("cuda", 0)
    assert usable_bytes(cpu, 2.0) == 2 * 2**30
    assert usable_bytes(gpu, 2.0) == usable_bytes(gpu, 500.0) == 32 * 2**30


@pytest.mark.parametrize("level", [3, None])
def test_a_network_computes_in_bfloat16_where_that_is_asked_for_alone(monkeypatch, level):
    monkeypatch.setattr(device_module, "bf16_level", lambda: level)
    for precision in ("float32", "tf32"):
        assert choose_compute("cpu", precision) == Compute(torch.device("cpu"), "float32")
    assert choose_precision("auto", torch.device("cpu")) == ("float32" if level is None else "mixed")
    assert choose_precision("auto", torch.device("cuda", 0)) == "float32"
    assert choose_precision("bf16", torch.device("cuda", 0)) == "bf16"


def test_a_processor_that_multiplies_bfloat16_does_so_where_it_is_asked_for(monkeypatch):
    monkeypatch.setattr(device_module, "bf16_level", lambda: 3)
    assert choose_compute("cpu", "bf16") == Compute(torch.device("cpu"), "bf16")


def test_who_insists_on_bfloat16_is_told_what_the_processor_lacks(monkeypatch):
    monkeypatch.setattr(device_module, "bf16_level", lambda: None)
    with pytest.raises(DeviceError, match=r"without AVX512-BF16 .* use --precision auto or float32"):
        choose_compute("cpu", "bf16")


def test_decompositions_are_rounded_on_processors_that_multiply_bfloat16():
    cpu, gpu = torch.device("cpu"), torch.device("cuda", 0)
    assert [Compute(cpu, name).rounds_decomposition for name in ("float32", "mixed", "bf16")] == [False, True, True]
    assert not Compute(gpu, "bf16").rounds_decomposition


def test_numbers_between_layers_are_of_bfloat16_on_cuda_alone():
    where = {name: torch.device(name) for name in ("cpu", "cuda")}
    assert set_precision(Compute(where["cpu"], "bf16")) == torch.float32
    assert set_precision(Compute(where["cuda"], "bf16")) == torch.bfloat16
    assert set_precision(Compute(where["cuda"], "tf32")) == torch.float32 and torch.backends.cuda.matmul.allow_tf32
    set_precision(Compute(where["cpu"], "float32"))
    assert not torch.backends.cuda.matmul.allow_tf32
