"""What several tests of the refinement share: a subject, lobes as a network answers with, and scans of given signals."""

import numpy as np

from shd_bids import simulation
from shd_bids.fod.fod import FOD
from shd_bids.scan import Scan
from shd_bids.sphere.harmonics import sh_inverse
from shd_bids.sphere.healpix import hemisphere
from shd_bids.sphere.lobes import lobes

L_MAX = 18


def subject():
    """Gradients and responses of a subject."""
    rng = np.random.default_rng(5)
    gradients = simulation.make_gradients(rng, {1000.0: 20, 2500.0: 30}, n_b0=3)
    return gradients, simulation.true_responses(simulation.draw_microstructure(rng, 3), gradients)


def lobes_along(directions, kappa, l_max):
    """Coefficients (n, C) of lobes along directions (n, K, 3), of integral 1 together."""
    density = lobes(hemisphere(8), directions, kappa).mean(axis=1)
    return density @ sh_inverse(hemisphere(8), l_max).T


def fod_of(wm):
    """FOD of white matter (n, C) alone."""
    empty = np.zeros(len(wm), dtype=np.float32)
    return FOD(wm.astype(np.float32), empty, empty)


def scan_of(signal, responses=None):
    """Scan of signals (n, N) of the subject."""
    gradients, own = subject()
    mask = np.ones((len(signal), 1, 1), dtype=bool)
    return Scan(signal, mask, np.eye(4), gradients, responses or own, sigma=0.01)
