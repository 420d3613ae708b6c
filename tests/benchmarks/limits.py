r"""What an ideal observer tells apart: two bundles that cross, or one that disperses and has the nearest signal.

    python tests/benchmarks/limits.py [--save] [--compare]

The observer knows the signal of undispersed fibres, both hypotheses and the noise. For each crossing, the one bundle is
sought whose signal without noise is nearest: its axis, its dispersions and the amounts of white matter, grey matter and CSF
are free, its density is Gaussian in the angle, as in ``dispersed.py``, or as flat as it need be. The distance between the
two signals, over the noise and times the root of the number of voxels seen that hold the same, is

.. math:: d' = \sqrt n\,\|S_2 - S_1\| / \sigma.

While it calls the share p of such bundles one fibre, it calls two of the crossings the share
:math:`\Phi(d' - \Phi^{-1}(p))` (Neyman-Pearson, Gaussian noise).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import dispersed
import numpy as np
import results
from dispersed import PROTOCOLS
from results import METRICS, Figure
from scipy.optimize import minimize
from scipy.special import gamma
from scipy.stats import norm

from shd_bids.gradients.table import GradientTable
from shd_bids.simulation.dispersion import densities
from shd_bids.sphere.healpix import hemisphere

CROSSINGS = ((20, 8), (30, 8), (40, 8), (40, 15))
"""Angle between two equal bundles and standard deviation of the directions of each, degrees."""

KEPT_ONE = {"ABCD": 0.97, "HCP": 0.97, "b1000": 0.92}
"""Share of the single bundles that are one fibre."""

FORMS = {"Gaussian": 1.0, "any flatness": 4.0}
"""Form of the single bundle -> largest p of its density ``exp(-(q / s)^p / 2)``, which has a flatter top the larger p is."""

SEEN = (1, 27)  # voxels
_SNR = (30, 15)  # of white matter at b=0
_POINTS = hemisphere(32)
_MEAN = dispersed.Microstructure(axonal=0.55, along_axons=2.2e-3, along=1.6e-3, across=0.6e-3)


@dataclass(frozen=True, eq=False)
class Signals:
    """Signals of a protocol: of undispersed fibres along each point, (V, N), of grey matter and of CSF, (N, 2)."""

    fibres: np.ndarray
    isotropic: np.ndarray

    @classmethod
    def of(cls, gradients: GradientTable) -> Signals:
        """Compute them for a mean microstructure."""
        isotropic = np.stack([dispersed.grey_matter(gradients), dispersed.csf(gradients)], axis=1)
        return cls(_MEAN.signals(_POINTS, gradients), isotropic)

    def bundle(self, along: float, across: float, *, tilt: float = 0.0, exponent: float = 1.0) -> np.ndarray:
        """Return the signal, (N,), of one bundle with dispersions in and across the x-z plane, degrees, tilted in that plane."""
        sine, cosine = np.sin(np.radians(tilt)), np.cos(np.radians(tilt))
        axis, inside = np.array([sine, 0.0, cosine]), np.array([cosine, 0.0, -sine])
        covariance = np.radians(along) ** 2 * np.outer(inside, inside) + np.diag([0.0, np.radians(across) ** 2, 0.0])
        density = densities(axis[None], covariance[None], _POINTS, tails=1.0)[0]
        density = flattened(density, exponent)
        return density / density.sum() @ self.fibres


def flattened(density: np.ndarray, exponent: float) -> np.ndarray:
    """Return ``exp(-(q / s)^p / 2)`` of a density ``exp(-q / 2)``, whose covariance in the tangent plane the s keeps.

    Gomez et al. (1998), Communications in Statistics 27, section 3.
    """
    scale = 2 ** (1 - 1 / exponent) * gamma(1 / exponent) / gamma(2 / exponent)
    return np.exp(-0.5 * (-2 * np.log(np.maximum(density, 1e-37)) / scale) ** exponent)


@dataclass(frozen=True)
class Nearest:
    """The single bundle that is nearest to a crossing: its dispersions, degrees, and the norm of the difference of signals."""

    along: float
    across: float
    distance: float

    def found(self, *, kept_one: float, snr: float, n_voxels: int) -> float:
        """Return the share of the crossings that are two fibres while the share ``kept_one`` of these bundles is one."""
        return float(norm.cdf(np.sqrt(n_voxels) * snr * self.distance - norm.ppf(kept_one)))


def nearest_bundle(signals: Signals, angle: float, spread: float, *, most_flat: float) -> Nearest:
    """Find the single bundle nearest to two equal ones that cross at ``angle`` with the dispersion ``spread``, degrees."""
    two = (signals.bundle(spread, spread, tilt=angle / 2) + signals.bundle(spread, spread, tilt=-angle / 2)) / 2

    def difference(parameters: np.ndarray) -> np.ndarray:
        along, across, exponent = parameters
        terms = np.column_stack([signals.bundle(along, across, exponent=exponent), signals.isotropic])
        return two - terms @ np.linalg.lstsq(terms, two)[0]

    start = (np.hypot(angle / 2, spread), spread, np.sqrt(most_flat))
    bounds = ((1.0, 60.0), (1.0, 60.0), (1.0, most_flat))
    best = minimize(
        lambda p: 1e4 * np.sum(difference(p) ** 2),
        start,
        method="Nelder-Mead",
        bounds=bounds,
        options={"xatol": 1e-3, "fatol": 1e-7},
    )
    return Nearest(best.x[0], best.x[1], float(np.linalg.norm(difference(best.x))))


def figures() -> Iterator[Figure]:
    """Yield what the observer reaches for each protocol, noise level, crossing and form."""
    for protocol in PROTOCOLS:
        signals = Signals.of(dispersed.make_gradients(protocol))
        for (angle, spread), (form, most_flat) in product(CROSSINGS, FORMS.items()):
            nearest = nearest_bundle(signals, angle, spread, most_flat=most_flat)
            for snr in _SNR:
                row = f"{protocol}, {snr}, crossing {angle}, {spread}x{spread}"
                values = {"nearest_along": nearest.along, "nearest_across": nearest.across} | {
                    f"found_{n}": nearest.found(kept_one=KEPT_ONE[protocol], snr=snr, n_voxels=n) for n in SEEN
                }
                yield from (Figure(row, form, metric, value, 1) for metric, value in values.items())


def main() -> int:
    """Print and record the figures."""
    options = results.parse(results.command(__doc__))
    found = []
    for figure in figures():
        found.append(figure)
        value = METRICS[figure.metric].form.format(figure.value)
        print(f"{figure.row}, {figure.method}: {METRICS[figure.metric].label} {value}", flush=True)
    return results.finish("limits", found, options)


if __name__ == "__main__":
    sys.exit(main())
