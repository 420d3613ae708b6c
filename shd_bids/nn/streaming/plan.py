"""How to run a network over a masked volume in bounded memory: tiles of its cross-section, planes of a slab, stages."""

from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np

from shd_bids.boxes import box_of, cells_of
from shd_bids.nn.backends import backend_for
from shd_bids.nn.unet import UNet

_THICKNESS = (16, 8, 4, 2, 1)  # planes of a slab at the finest level; one only where no level pools space
_MOST_CUTS = 16  # of one side of the cross-section
_WORTH_MEMORY = 1.1  # times the least work, which less memory may cost
_ENCODED_AGAIN = 1.4  # work of the three stages, which run the finest encoder twice


@dataclass(frozen=True)
class Plan:
    """How to run: edges of the tiles along y and z, planes of a slab, and whether in three stages."""

    edges: tuple[int, int]
    thickness: int
    staged: bool


@dataclass(frozen=True)
class _Strategy:
    """A way to run: work for each voxel, bytes held throughout, and which levels run together with what halo."""

    staged: bool
    cost: float
    held: float
    chains: tuple[tuple[range, int], ...]


class _Candidate(NamedTuple):
    """A plan with its work, in voxels of a cross-section, and the bytes that it needs."""

    plan: Plan
    work: float
    needed: float


def plan(net: UNet, mask: np.ndarray, *, memory_bytes: float) -> Plan:
    """Choose the way of least work that fits the memory; of those within a tenth of the least work, that of least memory.

    Parameters
    ----------
    net : UNet
    mask : array of bool, shape (x, y, z)
        Of multiples of the network's spatial stride.
    memory_bytes : float
    """
    config, (_, *sides) = net.config, box_of(mask)
    depth, reach = len(config.channels), 2 * config.convs_per_block
    strategies = [_Strategy(False, 1.0, 0.0, ((range(depth), config.receptive_radius),))]
    if config.pool_strides[:1] == (2,):
        stored = 2 * int(cells_of(mask).sum())
        held = float(stored) * net.bases[1].n_vertices * config.channels[0] * net.head.bias.element_size()
        strategies.append(_Strategy(True, _ENCODED_AGAIN, held, ((range(1), reach), (range(1, depth), 2 * reach))))
    # In plain PyTorch a slab expands two planes again in each layer, which is about half of the work on them.
    once = backend_for(net.head.bias).in_slabs
    thicknesses = [t for t in _THICKNESS if t > 1 or config.spatial_stride == 1]
    fitting: list[_Candidate] = []
    least = least_work = np.inf
    for edges in product(*(_edges(side, config.spatial_stride) for side in sides)):
        for strategy, thickness in product(strategies, thicknesses):
            areas = [_areas(sides, edges, halo) for _, halo in strategy.chains]
            columns = (column_bytes(net, thickness, levels=levels) for levels, _ in strategy.chains)
            needed = strategy.held + max(largest * each for (_, largest), each in zip(areas, columns, strict=True))
            work = strategy.cost * areas[0][0] * (1 if once else 1 + 1 / thickness)
            least, least_work = min(least, needed), min(least_work, work)
            if needed <= memory_bytes:
                fitting.append(_Candidate(Plan((edges[0], edges[1]), thickness, strategy.staged), work, needed))
    if not fitting:
        raise ValueError(
            f"{memory_bytes / 2**20:.0f} MB are not enough for the smallest tile, which needs {least / 2**20:.0f} MB; "
            "give more memory or a smaller network"
        )
    return min(fitting, key=lambda one: (max(one.work, _WORTH_MEMORY * least_work), one.needed)).plan


def column_bytes(net: UNet, thickness: int, *, levels: range) -> float:
    """Estimate the memory for each voxel of a cross-section when slabs of ``thickness`` planes stream through some levels.

    Each layer keeps the planes of its input that the next slab needs again. Beside them there are the slabs on their way from
    one layer to the next. A skip waits until the next level answers.
    """
    config, numbers = net.config, 0.0
    for level in levels:
        if level and not config.spatial[level]:
            break
        waiting = config.receptive_radius >> level if level + 1 in levels and config.spatial[level + 1] else 0
        planes = max(1, thickness >> level)
        held = waiting + (config.n_convs(level) - 1) * (planes + 2) + 2 * planes + 1
        enters = config.channels[level - 1] if level else config.in_channels + config.out_channels
        numbers += net.bases[level].n_vertices * (config.channels[level] * held + enters * (planes + 4)) / 4**level
    return 1.3 * numbers * net.head.bias.element_size()  # three tenths come and go, or lie in gaps


def _areas(sides: list[slice], edges: tuple[int, ...], halo: int) -> tuple[int, int]:
    """Return the voxels of all tiles with their halos, and those of the largest; nothing is computed beyond the sides."""
    y, z = (_widths(*along, halo) for along in zip(sides, edges, strict=True))
    return sum(y) * sum(z), max(y) * max(z)


def _edges(side: slice, stride: int) -> list[int]:
    """Return the edges that cut a side into equal parts of multiples of ``stride``."""
    length = side.stop - side.start // stride * stride
    return sorted({_up(-(-length // parts), stride) for parts in range(1, _MOST_CUTS + 1)}, reverse=True)


def _widths(side: slice, edge: int, halo: int) -> list[int]:
    """Return the widths of the tiles of a side with their halos."""
    starts = range(side.start, side.stop, edge)
    return [min(first + edge + halo, side.stop) - max(first - halo, side.start) for first in starts]


def _up(n: int, unit: int) -> int:
    return -(-n // unit) * unit
