"""Measure how far the fibre density of one head differs between two sites, without and with normalisation.

    python tests/benchmarks/normalisation.py [--size 10] [--snr 40] [--weights FILE] [--threads 1] [--save] [--compare]

The second site has a gain of 1.7, and in the second row a bias field too (polynomial of second order, ratio about 2); each site
has noise of its own. Both take one set of responses, those of the first site, as where metadata do not tell sites apart. In
white matter the table gives the difference of the median total fibre density, and the standard deviation of the logarithm
of its ratio over voxels, in percent.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from dataclasses import replace

import numpy as np
import results

from shd_bids import simulation
from shd_bids.fod.fit import fit_fod
from shd_bids.fod.fod import FOD
from shd_bids.fod.normalisation import normalise_fod
from shd_bids.fod.weights import Weights, load_weights
from shd_bids.gradients.table import GradientTable
from shd_bids.options import Runtime
from shd_bids.response.estimate import estimate_responses
from shd_bids.scan import Scan

GAIN = 1.7
SHELLS = {1000.0: 20, 2500.0: 40}
MODES = ("off", "global", "bias")
WHITE = 0.7  # share of the signal


def main() -> int:
    """Fit both sites, and print and record how much they differ."""
    options = _options()
    warnings.simplefilter("ignore")
    weights = load_weights(options.weights)
    clean, gradients = head(options.size)
    field = bias_field(clean.shape[:3])
    first = site(clean, gradients, seed=1, snr=options.snr)
    one = fit(first, weights)
    white = one.fractions[:, 0] > WHITE
    sha = weights.sha256[:12]
    figures = []
    for row, factor in (("gain 1.7", np.float64(GAIN)), ("gain 1.7 and bias", GAIN * field)):
        second = site(clean, gradients, seed=2, snr=options.snr, factor=factor, like=first)
        two = fit(second, weights)
        for mode in MODES:
            difference, spread = compared(normalised(one, first, mode), normalised(two, second, mode), white)
            print(f"{row}, {mode}: density differs by {difference:.1f} %, spread {spread:.1f} %", flush=True)
            figures += [
                results.Figure(row, mode, metric, value, options.threads, sha)
                for metric, value in (("density_difference", difference), ("density_spread", spread))
            ]
    return results.finish("normalisation", figures, options)


def head(size: int) -> tuple[np.ndarray, GradientTable]:
    """Return the signal (X, Y, Z, N) of a crossing of 70 degrees with grey matter and CSF, without noise."""
    rng = np.random.default_rng(8)
    phantom = simulation.crossing_phantom(rng, size=size, angles=(70.0,))
    gradients = simulation.make_gradients(rng, SHELLS, n_b0=4)
    micro = simulation.draw_microstructure(rng, len(phantom.bundles))
    return simulation.noiseless_signal(phantom, micro, gradients), gradients


def bias_field(shape: tuple[int, ...]) -> np.ndarray:
    """Return a smooth field (X, Y, Z), geometric mean 1."""
    x, y, z = (2 * np.indices(shape).T / (np.array(shape) - 1) - 1).T
    log = 0.25 * x - 0.2 * y**2 + 0.15 * x * z
    return np.exp(log - log.mean())


def site(
    clean: np.ndarray,
    gradients: GradientTable,
    *,
    seed: int,
    snr: float,
    factor: np.ndarray | float = 1.0,
    like: Scan | None = None,
) -> Scan:
    """Return the scan of a site whose signal is multiplied by a factor, with the responses of another site if given."""
    noisy = simulation.add_noise(clean, 1 / snr, np.random.default_rng(seed))
    signal = 500 * noisy * np.asarray(factor)[..., None]
    mask = np.ones(clean.shape[:3], dtype=bool)
    found = like.responses if like else estimate_responses(signal, mask, gradients).responses
    return Scan.of_volume(signal, mask, gradients, found, np.diag([2.0, 2.0, 2.0, 1.0]))


def fit(scan: Scan, weights: Weights) -> FOD:
    """Return the fODFs of a scan."""
    return fit_fod(scan, weights, runtime=Runtime(device="cpu"))


def normalised(fod: FOD, scan: Scan, mode: str) -> FOD:
    """Return fODFs as ``--normalise`` leaves them."""
    return fod if mode == "off" else normalise_fod(replace(fod), scan, mode)[0]


def compared(one: FOD, two: FOD, white: np.ndarray) -> tuple[float, float]:
    """Return the difference of the median density in white matter, and the spread of the ratio, in percent."""
    first, second = one.wm[white, 0], two.wm[white, 0]
    ratio = second / np.maximum(first, 1e-6)
    return 100 * abs(float(np.median(second) / np.median(first)) - 1), 100 * float(np.log(ratio).std())


def _options() -> argparse.Namespace:
    parser = results.command(__doc__)
    parser.add_argument("--size", type=int, default=10, help="of the head, voxels")
    parser.add_argument("--snr", type=float, default=40)
    return results.parse(parser)


if __name__ == "__main__":
    sys.exit(main())
