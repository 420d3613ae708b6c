"""How a volume is cut for the memory there is."""

import numpy as np
import pytest
import torch

from shd_bids.nn.backends import cpu
from shd_bids.nn.streaming.plan import Plan, column_bytes, plan
from tests.nn.networks import SMALL, build


def test_tiles_need_some_memory():
    net, mask = build(**SMALL), np.ones((60, 60, 60), bool)
    with pytest.raises(ValueError, match="not enough for the smallest tile"):
        plan(net, mask, memory_bytes=1000)
    column = column_bytes(net, 2, levels=range(2))
    assert plan(net, mask, memory_bytes=1 << 40) == Plan((60, 60), 8, False)  # 16 planes save a seventeenth of the work
    assert plan(net, mask, memory_bytes=60 * 60 * column) == Plan((60, 60), 2, False)
    assert plan(net, mask, memory_bytes=0.5 * 60 * 60 * column).staged


@pytest.mark.skipif(cpu.library() is None, reason="no compiled kernel and no compiler")
def test_kernel_needs_no_thick_slabs_and_few_tiles_cost_less_than_stages():
    net, mask = build(**SMALL, dtype=torch.float32), np.ones((20, 200, 20), bool)
    whole = 200 * 20 * column_bytes(net, 2, levels=range(2))
    for enough in (1 << 40, whole, 0.8 * whole):  # a halo of two times nine adds less than a tenth to 200
        assert plan(net, mask, memory_bytes=enough) == Plan((100, 20), 2, False)
    assert plan(net, mask, memory_bytes=0.5 * whole) == Plan((68, 20), 2, False)
    assert plan(net, mask, memory_bytes=0.2 * whole).staged


@pytest.mark.skipif(cpu.library() is None, reason="no compiled kernel and no compiler")
def test_slabs_of_one_plane_hold_least_where_no_level_pools_space():
    mask = np.ones((20, 40, 20), bool)
    flat = build(nside=2, channels=(4,), spatial_levels=1, dtype=torch.float32)
    pooled = build(**SMALL, dtype=torch.float32)
    assert [plan(net, mask, memory_bytes=1 << 40).thickness for net in (flat, pooled)] == [1, 2]


def test_a_halo_outside_the_mask_is_no_reason_for_stages():
    net, mask = build(**SMALL, dtype=torch.float32), np.zeros((40, 80, 80), bool)
    mask[10:30, 20:60, 20:60] = True
    column = column_bytes(net, 2, levels=range(2))
    assert plan(net, mask, memory_bytes=40**2 * column) == Plan((40, 40), 2, False)
