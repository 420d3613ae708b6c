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
    assert usable_bytes(device, 1e6) < torch.cuda.mem_get_info(device)[0] and usable_bytes(device, 1.0) == 2**30
