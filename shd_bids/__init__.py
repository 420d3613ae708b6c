"""Fibre orientation distributions for BIDS data sets by equivariant spatio-hemispherical deconvolution."""

__version__ = "0.1.0"
