"""Pathology (Fig. 10): fibres lost and invented in and around a lesion, and how smoothly directions follow their bundles.

Networks are trained on the scan itself, as a patient's is the only one of its kind. Peaks are those that each method shows by its
own rules; those of networks by the rules of this package.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import peers
import scenes
from found import Found, own_peaks
from matplotlib.figure import Figure
from measured import scan_of
from results import METRICS as LABELS
from scenes import Scene
from selection import select

from shd_bids import simulation
from shd_bids.fod.weights import load_weights
from shd_bids.simulation.scoring import score_peaks
from tests.benchmarks.paper import figures, learned
from tests.benchmarks.paper.base import Claim, Done, Experiment, Outcome, Settings, Unit
from tests.benchmarks.paper.lesion import REGIONS, lesion_scene

METRICS = ("lost", "invented", "coherence")
NETWORKS = ("esd", "shd", "shd_tv", "rt_esd")
CLASSICAL = ("msmt_csd", "csd", "rumba", "rumba_tv", "force")
DEFAULT = "amortised"

_SHELLS, _N_B0, _SNR = {1000.0: 30, 2000.0: 30}, 4, 25.0  # of a clinical research scan
_SAME_BUNDLE = np.cos(np.radians(20.0))  # between the largest fibres of neighbours
_NONE = np.zeros(1)
_DRAWN = (DEFAULT, "shd", "shd_tv", "rt_esd", "msmt_csd", "rumba_tv", "force")


@lru_cache(maxsize=2)
def volume(seed: int, *, is_small: bool) -> tuple[Scene, dict[str, np.ndarray]]:
    """Draw the volume of a seed, with the voxels of the regions."""
    rng = np.random.default_rng(scenes.FIRST_SEED + 3000 + seed)
    gradients = simulation.make_gradients(rng, _SHELLS, n_b0=_N_B0)
    size = {"size": 13, "n_bundles": 7, "radius": 2.4, "lesion_radius": 2.2}
    if not is_small:
        size = {"size": 40, "n_bundles": 40, "radius": 3.2, "lesion_radius": 7.0}
    return lesion_scene(rng, **size, gradients=gradients, snr=_SNR)


def units(settings: Settings) -> Iterator[Unit]:
    """Yield every region for every method, seed by seed."""
    for seed in range(settings.seeds):
        for method in (DEFAULT, *NETWORKS, *CLASSICAL):
            for region in REGIONS:
                run = partial(measure, method, region, seed, settings)
                yield Unit(region, method, seed, run, uses_weights=peers.uses_weights(method))


def measure(method: str, region: str, seed: int, settings: Settings) -> Outcome:
    """Score the peaks of a method in a region."""
    scene, regions = volume(seed, is_small=settings.is_small)
    found, where = found_by(method, seed, settings), regions[region]
    directions = np.zeros((*where.shape, *found.directions.shape[1:]))
    directions[scene.mask] = found.directions
    amplitudes = np.zeros(directions.shape[:-1])
    amplitudes[scene.mask] = found.amplitudes
    truth = scene.phantom.true_directions()
    values = score(directions, amplitudes, truth, where)
    plane = (slice(None), slice(None), where.shape[2] // 2)
    return Outcome(values, {"directions": directions[plane], "amplitudes": amplitudes[plane]})


def score(directions: np.ndarray, amplitudes: np.ndarray, truth: np.ndarray, where: np.ndarray) -> dict[str, float]:
    """Return the share of fibres lost, the fibres invented a voxel, and the coherence, in the voxels of a region.

    Coherence is the mean cosine between the largest peaks of neighbours that both have one, where their largest true fibres
    are one bundle's. What a region has none of is left out.
    """
    counts = score_peaks(directions[where], amplitudes[where], truth[where], thresholds=_NONE)
    n_true = counts.true_positives[0] + counts.false_negatives[0]
    values = {"invented": (counts.false_positives[0] + counts.empty_false_fibres[0]) / where.sum()}
    if n_true:
        values["lost"] = counts.false_negatives[0] / n_true
    if len(cosines := coherent_pairs(directions[..., 0, :], truth[..., 0, :], where)):
        values["coherence"] = cosines.mean()
    return values


def coherent_pairs(largest: np.ndarray, true: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Return the cosines between the largest peaks (X, Y, Z, 3), where there are any, of neighbours of one true bundle."""
    found, has_peak = [], largest.any(axis=-1)
    for axis in range(3):
        one, other = ([slice(None)] * 3 for _ in range(2))
        one[axis], other[axis] = slice(None, -1), slice(1, None)
        first, second = tuple(one), tuple(other)
        alike = np.abs((true[first] * true[second]).sum(-1)) > _SAME_BUNDLE
        kept = alike & where[first] & where[second] & has_peak[first] & has_peak[second]
        found.append(np.abs((largest[first] * largest[second]).sum(-1))[kept])
    return np.concatenate(found)


@lru_cache(maxsize=1)
def found_by(method: str, seed: int, settings: Settings) -> Found:
    """Return the peaks that a method shows in the volume of a seed."""
    scene, _ = volume(seed, is_small=settings.is_small)
    if method not in NETWORKS:
        return own_peaks(method, peers.methods([method], load_weights(), to_border=True)[method](scene))
    effort = learned.SMALL if settings.is_small else learned.FULL
    scan = scan_of(scene, select(scene, to_border=True)[0])
    weights = learned.train(method, scan, scene.phantom, effort=effort, few=None, seed=seed, device=settings.device)
    return own_peaks(DEFAULT, learned.maxima(weights, scan, settings.device))


def draw(done: Sequence[Done], file: Path) -> None:
    """Draw the measures as bars over the regions, and the peaks of the middle slice of the first seed beside the truth."""
    at = {d.unit.method: d.arrays for d in done if d.unit.row == "core" and d.unit.seed == 0}
    figure = Figure(figsize=(figures.WIDTH, 8.5))
    grid = figure.add_gridspec(3, 12, height_ratios=(1.1, 1, 1), hspace=0.2, wspace=1.4)
    for number, metric in enumerate(METRICS):
        ax = figure.add_subplot(grid[0, 4 * number : 4 * number + 4])
        figures.bars(ax, figures.grouped(done, metric), label=LABELS[metric].label)
        ax.tick_params(labelsize=7)
    figures.legend(figure, columns=7)
    _truth_panel(figure.add_subplot(grid[1, :3]))
    for number, method in enumerate((m for m in _DRAWN if m in at), 1):
        row, column = divmod(number, 4)
        ax = figure.add_subplot(grid[row + 1, 3 * column : 3 * column + 3])
        _panel(ax, at[method]["directions"], at[method]["amplitudes"], method)
    figures.save(figure, file)


def _truth_panel(ax) -> None:
    scene, _ = volume(0, is_small=True)
    plane = (slice(None), slice(None), scene.mask.shape[2] // 2)
    fractions = scene.phantom.fractions[plane]
    _panel(ax, scene.phantom.directions[plane], fractions * (fractions >= 0.1), "truth")


def _panel(ax, directions: np.ndarray, amplitudes: np.ndarray, title: str) -> None:
    """Draw the peaks of a slice, as long as the root of their share of the largest, and the border of the core."""
    n = len(directions)
    scale = max(float(np.percentile(amplitudes[..., 0], 95)), 1e-12)
    lengths = np.sqrt(amplitudes / scale).clip(0, 1).reshape(n * n, -1)
    places = np.indices((n, n)).reshape(2, -1).T.astype(float)
    figures.sticks(ax, directions.reshape(n * n, -1, 3), lengths, places)
    _, regions = volume(0, is_small=True)
    ax.contour(regions["core"][:, :, n // 2].T, levels=[0.5], colors="0.4", linewidths=1)
    ax.set_title(title, fontsize=8)


EXPERIMENT = Experiment(
    name="pathology",
    title="A lesion that displaces, infiltrates and swells bundles",
    units=units,
    metrics=METRICS,
    draw=draw,
    claims=(
        Claim("SHD-TV is more coherent than CSD", "coherence", "shd_tv", "msmt_csd", REGIONS[1:]),
        Claim("SHD-TV invents fewer fibres than CSD", "invented", "shd_tv", "msmt_csd", REGIONS),
        Claim("SHD-TV loses no more fibres than CSD (within 0.02)", "lost", "shd_tv", "msmt_csd", REGIONS[1:], 0.02),
        Claim("SHD is as coherent as RT-ESD (within 0.02)", "coherence", "shd", "rt_esd", REGIONS[1:], 0.02),
        Claim("the app's default invents fewer fibres than CSD", "invented", DEFAULT, "msmt_csd", REGIONS),
        Claim("the app's default loses no more than CSD (within 0.02)", "lost", DEFAULT, "msmt_csd", REGIONS[1:], 0.02),
    ),
)
