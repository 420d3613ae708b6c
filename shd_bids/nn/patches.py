"""The published evaluation: a patch around each voxel, of whose output the centre alone is kept.

What lies outside the volume or the mask is zero. The network is that of the paper to rounding (Elaldi, Gerig and Dey 2024,
NeurIPS), at 27 times the cost of running a volume as a whole (:mod:`shd_bids.nn.streaming.tiles`), for which it is not trained.
"""

from collections.abc import Callable, Iterator
from itertools import product

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from shd_bids.boxes import Box, box_of, grown
from shd_bids.nn.unet import UNet, UNetConfig
from shd_bids.sphere.healpix import hemisphere_indices, hemisphere_lookup

_BLOCK = 8  # voxels along a side of what is read at once
_FEATURE_MAPS = 12  # of the finest level that exist at a time, in units of its features
_MOST_PATCHES = 256  # at once; more are no faster


def apply_to_patches(
    net: UNet,
    mask: np.ndarray,
    *,
    read: Callable[[Box], Tensor],
    write: Callable[[Box, Tensor], None],
    memory_bytes: int,
    progress: Callable[[float], None] | None = None,
) -> None:
    """Evaluate a patch-form network around each voxel of a mask; the arguments are those of ``apply_in_tiles``.

    Parameters
    ----------
    net : UNet
        In evaluation mode; :meth:`~shd_bids.nn.unet.UNet.folded` is fastest.
    mask : array of bool, shape (x, y, z)
    read : callable
        Gives the network's input on a box of the volume, (1, C, x, y, z, V) on the hemisphere, in the network's precision and on
        its device; of voxels outside the mask, anything.
    write : callable
        Takes a box and its output on the hemisphere, (1, O, x, y, z, V), zero outside the mask.
    memory_bytes : int
        Bound on the memory for activations.
    progress : callable, optional
        Told the fraction done after each block.

    Raises
    ------
    ValueError
        If the network is in volume form.
    """
    if net.config.form != "patch":
        raise ValueError("the network is in volume form; only form='patch' runs on patches")
    mask = np.asarray(mask, dtype=bool)
    at_once = int(np.clip(memory_bytes // _patch_bytes(net), 1, _MOST_PATCHES))
    done = 0
    for box in _blocks(mask):
        with torch.inference_mode():
            write(box, _evaluate(net, mask, box, read, at_once))
        done += int(mask[box].sum())
        if progress is not None:
            progress(done / mask.sum())


def on_hemisphere(net: UNet, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """Evaluate a network on an even field that is given on the hemisphere, (B, C, X, Y, Z, V), and so is the result.

    A network on the whole sphere gets the other half as well. In patch form the mask (B, X, Y, Z) is not needed, as the input is
    zero outside it.
    """
    config = net.config
    mask = mask if config.form == "volume" else None
    if config.hemisphere:
        return net(x, mask)
    lookup, kept = (
        torch.tensor(index(config.nside), device=x.device) for index in (hemisphere_lookup, hemisphere_indices)
    )
    return net(x[..., lookup], mask)[..., kept]


def _evaluate(net: UNet, mask: np.ndarray, box: Box, read: Callable[[Box], Tensor], at_once: int) -> Tensor:
    """Return the output at the voxels of a box, (1, O, x, y, z, V)."""
    size = net.config.patch_size
    patches = _patches(read, mask, box, size)
    here = mask[box]
    x, y, z = (torch.from_numpy(index) for index in np.nonzero(here))
    output = None
    for part in torch.arange(len(x)).split(at_once):
        chosen = patches[:, x[part], y[part], z[part]]  # (C, n, V, p, p, p)
        centre = on_hemisphere(net, chosen.permute(1, 0, 3, 4, 5, 2))[:, :, size // 2, size // 2, size // 2]
        if output is None:
            output = centre.new_zeros(1, centre.shape[1], *here.shape, centre.shape[2])
        output[0, :, x[part], y[part], z[part]] = centre.transpose(0, 1)
    return output


def _patches(read: Callable[[Box], Tensor], mask: np.ndarray, box: Box, size: int) -> Tensor:
    """Return views of the input around each voxel of a box, (C, x, y, z, V, size, size, size)."""
    before = size // 2
    near = grown(box, before, mask.shape)
    inside = torch.from_numpy(mask[near])
    values = read(near)[0]
    values = torch.where(inside.to(values.device)[..., None], values, 0)
    lacking = [
        n
        for side, b in reversed(list(zip(near, box, strict=True)))
        for n in (before - (b.start - side.start), before - (side.stop - b.stop))
    ]
    values = pad(values, (0, 0, *lacking))
    for axis in (1, 2, 3):
        values = values.narrow(axis, 0, values.shape[axis] - (size + 1) % 2).unfold(axis, size, 1)
    return values


def _blocks(mask: np.ndarray) -> Iterator[Box]:
    """Yield the boxes that cover a mask and hold some of it."""
    if not mask.any():
        return
    whole = box_of(mask)
    starts = (range(side.start, side.stop, _BLOCK) for side in whole)
    for corner in product(*starts):
        x, y, z = (slice(a, min(a + _BLOCK, side.stop)) for a, side in zip(corner, whole, strict=True))
        if mask[x, y, z].any():
            yield x, y, z


def _patch_bytes(net: UNet) -> int:
    """Return about what the activations of one patch take."""
    config: UNetConfig = net.config
    values = net.bases[0].n_vertices * config.patch_size**3 * max(config.channels[0], config.in_channels)
    return values * _FEATURE_MAPS * net.head.bias.element_size()
