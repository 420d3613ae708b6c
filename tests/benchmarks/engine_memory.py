"""Growth of the peak resident size by one evaluation, in a process of its own: ``engine_memory.py WHAT VARIANT``."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # to share the oracle with the tests

from shd_bids.nn.layers.cheb import SphereBasis
from shd_bids.nn.layers.conv import SpatioSphericalConv
from shd_bids.nn.unet import UNet, UNetConfig
from tests.nn import oracle


def grown(what: str, variant: str, *, gaps: bool = True) -> float:
    """Return the bytes by which a fresh process's peak grew, the least of five: gaps between blocks only add to it.

    Without ``gaps`` each block has pages of its own, which are given back with it.
    """
    command = [sys.executable, __file__, what, variant]
    own_pages = {} if gaps else dict.fromkeys(("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"), "65536")
    environment = os.environ | own_pages
    runs = (subprocess.run(command, check=True, capture_output=True, text=True, env=environment) for _ in range(5))
    return min(float(run.stdout.splitlines()[-1]) for run in runs)


def growth(work: Callable[[], object]) -> float:
    """Run once and return the growth of the peak resident size in bytes."""
    before = peak()
    work()
    return peak() - before


def peak() -> float:
    """Return the peak resident size of this process in bytes (getrusage would begin with that of its parent)."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return float(line.split()[1]) * 1024


def memory_of_layer(variant: str) -> float:
    """Evaluate one layer, 32 to 64 channels on 8^3 voxels."""
    torch.set_num_threads(1)
    conv = layer(32, 64)
    with torch.no_grad():
        small = torch.randn(384, 1, 1, 1, 1, 32)
        conv(small)
        oracle.layer(small.permute(1, 5, 0, 2, 3, 4), conv)
        if variant == "ours":
            x = torch.randn(384, 1, 8, 8, 8, 32)
            return growth(lambda: conv(x))
        published = torch.randn(1, 32, 384, 8, 8, 8)
        return growth(lambda: oracle.layer(published, conv))


def memory_of_training(variant: str) -> float:
    """Train one step of the published widths: sixteen patches as published, one crop of 16^3 as here."""
    torch.set_num_threads(1)
    net = UNet(UNetConfig(2, 2, form="patch" if variant == "published" else "volume"))
    edge, batch = (3, 16) if variant == "published" else (16, 1)
    small, x = torch.randn(1, 2, *[3] * 3, 384), torch.randn(batch, 2, *[edge] * 3, 384)
    evaluate = (lambda x: oracle.unet(x, net)) if variant == "published" else net
    torch.set_grad_enabled(False)
    evaluate(small)
    torch.set_grad_enabled(True)
    return growth(lambda: evaluate(x).square().mean().backward())


def memory_of_network(variant: str) -> float:
    """Evaluate a network on the hemisphere or the sphere."""
    torch.set_num_threads(1)
    net = UNet(UNetConfig(2, 2, channels=(16, 32, 64), hemisphere=variant == "half")).eval().folded()
    vertices = net.bases[0].n_vertices
    with torch.no_grad():
        net(torch.randn(1, 2, 4, 4, 4, vertices))  # what x runs counts once it is loaded: full tiles need 4^3
        x = torch.randn(1, 2, 16, 16, 16, vertices)
        return growth(lambda: net(x))


def layer(in_channels: int, out_channels: int) -> SpatioSphericalConv:
    """Return one layer on the finest grid."""
    basis = SphereBasis(8, hemisphere=True, order=5)
    return SpatioSphericalConv(basis, (in_channels,), out_channels=out_channels, spatial=True)


MEMORY = {"layer": memory_of_layer, "training": memory_of_training, "network": memory_of_network}

if __name__ == "__main__":
    print(MEMORY[sys.argv[1]](sys.argv[2]))
