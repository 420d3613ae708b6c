"""The network: convolution over space and sphere, pooling, U-Net, and running it over a volume in tiles."""
