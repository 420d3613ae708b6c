"""A layer by the compiled kernel a few planes at a time."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from shd_bids.boxes import cells_of
from shd_bids.nn.backends import cpu
from shd_bids.nn.layers.pool import Pooling
from tests.nn.convolutions import make

pytestmark = pytest.mark.skipif(cpu.library() is None, reason="no compiled kernel and no compiler")


@pytest.mark.parametrize("thickness", [1, 2, 3, 10])
@pytest.mark.parametrize("spatial", [True, False])
@pytest.mark.parametrize("unpooled", [True, False])
@pytest.mark.parametrize("start", [0, 1, 4])
def test_a_few_planes_at_a_time_are_those_of_the_whole(generator, start, unpooled, spatial, thickness):
    if unpooled and not spatial:
        pytest.skip("where space is pooled there is a spatial kernel")
    conv, pool = make((3, 2), 4, spatial=spatial, dtype=torch.float32), Pooling(2, hemisphere=True, stride=2)
    rng = np.random.default_rng(0)
    wanted, inside = (rng.random((10, 8, 22)) < share for share in (0.05, 0.3))
    wanted[:start] = wanted[:, :2] = wanted[:, :, 18:] = False
    wanted[start, 3, 5] = wanted[9, 7, 1] = True
    sizes = [(24, 1, 10, 8, 22, 3), (6, 1, 5, 4, 11, 2) if unpooled else (24, 1, 10, 8, 22, 2)]
    inputs = [torch.randn(*size, generator=generator) for size in sizes]
    marks = [inside, cells_of(inside) if unpooled else inside]
    for x, holding in zip(inputs, marks, strict=True):
        x[:, :, ~holding] = 0
    with torch.no_grad():
        whole = conv(inputs[0], pool.unpool(inputs[1]) if unpooled else inputs[1], relu=True)
    read = ndimage.maximum_filter(wanted, 3) if spatial else wanted
    reads = [read, cells_of(read) if unpooled else read]
    for x, holding, needed in zip(inputs, marks, reads, strict=True):
        x[:, :, ~(holding & needed)] = torch.nan  # must not matter
    plan = cpu.SlabPlan(wanted, inside, thickness, unit=2)
    layer = conv.slabwise(plan, relu=True, pool=pool if unpooled else None)
    done = [max(start - spatial, 0), max(start - spatial, 0)]
    if unpooled:
        done[1] //= 2
    for first in range(start, 10, thickness):
        stop = min(first + thickness, 10)
        for index, x in enumerate(inputs):
            last = min(stop + spatial, 10)
            last = -(-last // 2) if unpooled and index == 1 else last
            for planes in (slice(done[index], min(done[index] + 1, last)), slice(min(done[index] + 1, last), last)):
                if planes.start < planes.stop:  # in slabs that are larger than what is taken from them
                    place = (planes, slice(0, x.shape[3]), slice(0, x.shape[4]))
                    layer.analyse(index, x[:, :, planes], place, planes)
            done[index] = last
        y = layer.combine(slice(first, stop))
        there = torch.from_numpy(wanted[first:stop][:, *layer.sides])
        expected = whole[:, :, first:stop, *layer.sides]
        torch.testing.assert_close(y[:, :, there], expected[:, :, there], rtol=0, atol=1e-5)
