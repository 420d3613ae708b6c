"""Small networks and fields to run them on."""

import torch

from shd_bids.nn.layers.norm import NormReLU
from shd_bids.nn.unet import UNet, UNetConfig

SMALL = {"nside": 2, "channels": (4, 6)}


def build(*, dtype=torch.float64, train=False, **settings):
    """Build a network with fixed weights and batch statistics that are not the trivial ones."""
    torch.manual_seed(0)
    net = UNet(UNetConfig(2, 2, **settings))
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, NormReLU):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(std=0.1)
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.5, 1.5)
    return net.to(dtype).train(train)


def field(generator, *size, vertices=24, batch=1, dtype=torch.float64):
    return torch.randn(batch, 2, *size, vertices, generator=generator, dtype=dtype)


def on_mask(net, x, mask):
    """Evaluate on a mask at once; give the values there."""
    with torch.no_grad():
        return net(x, torch.tensor(mask)[None])[:, :, mask]
