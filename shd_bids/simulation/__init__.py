"""Simulate diffusion volumes with spatially coherent bundles and known truth.

A :class:`Phantom` is geometry: which fibre populations cross each voxel, how much of the voxel each fills, and where
grey matter and CSF lie. A :class:`Microstructure` says how each bundle and tissue attenuates the signal (dispersed
sticks and zeppelins, never a deconvolution response). :func:`noiseless_signal` joins both with a gradient table.

:mod:`shd_bids.simulation.tissue` has bundles that disperse and bend within a voxel, for training; its truth are the densities of
:mod:`shd_bids.simulation.dispersion`. Everything is drawn from one :class:`numpy.random.Generator`, so a seed fixes the result.
"""

from shd_bids.simulation.microstructure import (
    Microstructure,
    attenuation_tables,
    draw_microstructure,
    isotropic_attenuation,
    true_responses,
)
from shd_bids.simulation.phantoms import (
    MAX_FIBRES,
    Bundle,
    Phantom,
    build_phantom,
    crossing_phantom,
    csf_side,
    random_bundles,
    random_phantom,
)
from shd_bids.simulation.protocols import make_gradients, random_gradients, uniform_directions
from shd_bids.simulation.signal import add_noise, bias_field, noiseless_signal

__all__ = [
    "MAX_FIBRES",
    "Bundle",
    "Microstructure",
    "Phantom",
    "add_noise",
    "attenuation_tables",
    "bias_field",
    "build_phantom",
    "crossing_phantom",
    "csf_side",
    "draw_microstructure",
    "isotropic_attenuation",
    "make_gradients",
    "noiseless_signal",
    "random_bundles",
    "random_gradients",
    "random_phantom",
    "true_responses",
    "uniform_directions",
]
