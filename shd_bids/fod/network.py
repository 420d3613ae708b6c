"""Apply a network to a whole scan: from its input to fODFs and tissue fractions."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import softplus

from shd_bids.boxes import Box, grown, within
from shd_bids.fod.fod import FOD
from shd_bids.fod.inputs.blocks import SlabCache, to_block
from shd_bids.fod.inputs.inputs import Inputs
from shd_bids.fod.weights import Weights
from shd_bids.nn.device import Compute, choose_compute, set_precision, usable_bytes
from shd_bids.nn.patches import apply_to_patches
from shd_bids.nn.streaming.tiles import apply_in_tiles
from shd_bids.nn.unet import UNet
from shd_bids.options import Runtime
from shd_bids.scan import Scan
from shd_bids.sphere.harmonics import SQRT_4PI, sh_inverse
from shd_bids.sphere.healpix import hemisphere

logger = logging.getLogger(__name__)

_LEAST_TILE_BYTES = 200 * 2**20  # below this a tile is mostly halo


def read_output(output: Tensor, *, isotropic: str = "mean") -> tuple[Tensor, Tensor]:
    """Return what the output of a network stands for.

    Parameters
    ----------
    output : Tensor, shape (3, ..., V)
        Of white matter, grey matter and CSF on the hemisphere.
    isotropic : {"mean", "max"}
        What of the vertices the fraction of an isotropic tissue is; published: the maximum.

    Returns
    -------
    amplitudes : Tensor, shape (..., V)
        Of the fODF on the hemisphere; positive.
    fractions : Tensor, shape (..., 2)
        Of GM and CSF; positive.
    """
    positive = softplus(output)
    fractions = positive[1:].amax(dim=-1) if isotropic == "max" else positive[1:].mean(dim=-1)
    return positive[0], fractions.movedim(0, -1)


def apply_network(
    weights: Weights,
    inputs: Inputs,
    scan: Scan,
    *,
    runtime: Runtime,
    progress: Callable[[float], None] | None = None,
) -> tuple[FOD, Compute]:
    """Run a network over a scan: in tiles that fit the memory, or, in patch form, on a patch around each voxel.

    Parameters
    ----------
    weights : Weights
    inputs : Inputs
        Of the scan, as the weights want them.
    scan : Scan
    runtime : Runtime
        Where a GPU has too little memory even for small tiles, the device ``auto`` goes on with the CPU.
    progress : callable, optional
        Called with the share done.

    Returns
    -------
    fod : FOD
    compute : Compute
        Where it ran, and in which arithmetic.

    Raises
    ------
    DeviceError
        When a device or an arithmetic is asked for that is not there.
    torch.OutOfMemoryError, ValueError
        When the memory is not enough and another device is not allowed.
    """
    compute, fall_back = choose_compute(runtime.device, runtime.precision), runtime.device == "auto"
    net, (fod, write) = weights.network().folded(), _collector(scan, weights)
    bound = memory = usable_bytes(compute.device, runtime.memory_gb)
    while True:
        try:
            network, dtype = _prepared(net, compute)
            read = _reader(inputs, scan, compute.device, dtype)
            apply = apply_to_patches if network.config.form == "patch" else apply_in_tiles
            apply(network, scan.mask, read=read, write=write, memory_bytes=memory, progress=progress)
            return fod, compute
        except torch.OutOfMemoryError:
            if memory // 2 < _LEAST_TILE_BYTES and not fall_back:
                raise
            memory //= 2
        except ValueError:  # no tile is as small as what was left to try
            if memory == bound or not fall_back:
                raise
            memory = 0
        # Not in the handlers: while they run, the traceback holds the tensors of what failed.
        torch.cuda.empty_cache()
        if memory < _LEAST_TILE_BYTES:
            logger.warning("the device has too little memory even for small tiles: going on with the CPU")
            compute = choose_compute("cpu", "auto" if runtime.precision == "auto" else "float32")
            bound = memory = usable_bytes(compute.device, runtime.memory_gb)
        else:
            logger.warning("out of memory on the device: going on with tiles of %d MB", memory // 2**20)


def _prepared(net: UNet, compute: Compute) -> tuple[UNet, torch.dtype]:
    """Return a network where it runs and in its arithmetic, and the type of the numbers between its layers."""
    dtype = set_precision(compute)
    network = net.to(compute.device, dtype)
    if compute.device.type == "cpu" and compute.precision == "bf16":
        network.multiply_in_bf16()
    return network, dtype


def _reader(inputs: Inputs, scan: Scan, device: torch.device, dtype: torch.dtype) -> Callable[[Box], Tensor]:
    """Return what gives the input of the network in a box, (1, C, x, y, z, V)."""
    maps, cache = inputs.to(device), SlabCache()

    def read(box: Box) -> Tensor:
        near = grown(box, inputs.reach, scan.mask.shape)
        cache.corner = near[0].start, near[1].start, near[2].start
        signal, inside = to_block(scan.voxels, scan.rows[near], device)
        return maps(signal, inside, within(box, near), cache)[None].to(dtype)

    return read


def _collector(scan: Scan, weights: Weights) -> tuple[FOD, Callable[[Box, Tensor], None]]:
    """Return an empty FOD, and what writes the output of the network in a box, (1, 3, x, y, z, V), into it."""
    to_sh = torch.as_tensor(sh_inverse(hemisphere(weights.config.nside), weights.l_max), dtype=torch.float32)
    n = len(scan.voxels)
    fod = FOD(np.zeros((n, len(to_sh)), np.float32), np.zeros(n, np.float32), np.zeros(n, np.float32))

    def write(box: Box, output: Tensor) -> None:
        rows = torch.as_tensor(scan.rows[box])
        inside, target = (rows >= 0).to(output.device), rows[rows >= 0].numpy()
        amplitudes, fractions = read_output(output[0][:, inside].float(), isotropic=weights.isotropic)
        fod.wm[target] = (amplitudes @ to_sh.to(amplitudes.device).T).cpu().numpy()
        fod.gm[target], fod.csf[target] = fractions.T.cpu().numpy() / SQRT_4PI

    return fod, write
