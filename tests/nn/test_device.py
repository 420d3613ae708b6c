"""Where a network may run."""

import pytest
import torch

from shd_bids.errors import DeviceError
from shd_bids.nn.device import choose_device, usable_bytes


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
