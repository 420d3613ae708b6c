"""Fibre detection (Fig. 6, Table 1, Fig. 9): strands that cross, with many and with few directions, the same for every method.

Networks are trained on one volume of the generator; with few directions they are trained super-resolved: shown the few, asked for
all. The other methods get the few alone. Responses of networks are those of the volume of their training, all other methods
estimate their own. Peaks of the third volume count above the share of the largest that has the largest F1 in the second, for
every method alike; the area under precision over recall needs no such choice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import peers
import scenes
from found import Found, find_maxima
from matplotlib.figure import Figure
from measured import scan_of
from scenes import Scene
from selection import select

from shd_bids import simulation
from shd_bids.fod.inputs.volumes import InputVolumes
from shd_bids.fod.weights import load_weights
from shd_bids.scan import Scan
from shd_bids.simulation.scoring import PeakScore, score_peaks
from shd_bids.sphere.harmonics import sh_inverse
from shd_bids.sphere.healpix import hemisphere
from tests.benchmarks.paper import figures, learned
from tests.benchmarks.paper.base import Claim, Done, Experiment, Outcome, Settings, Unit
from tests.benchmarks.paper.strands import strand_scene

HIGH, LOW = "high", "low"
"""Rows: all of four shells of 90 directions, and 29 directions at b = 1000 s/mm2."""

METRICS = ("pr_area", "f1", "angular_error", "fnr", "fdr")
NETWORKS = ("esd", "shd", "shd_tv", "rt_esd", "cnn", "cnn_supervised", "ponita", *learned.LONGER)
CLASSICAL = ("msmt_csd", "csd", "dipy_csd", "rumba", "rumba_tv", "force")
DEFAULT = "amortised"
TRUTHS = {"truth": 18, "truth, degree 8": 8}
"""The true fODF, a lobe of 8 degrees for each fibre, cut at a degree, which bounds what can be found with it."""

_FEW = InputVolumes(1000.0, 29)
_SNR = 30.0
_TRUE_NSIDE = 8
_SHELLS, _N_B0 = scenes.PROTOCOLS["4 shells x 90"]
_DRAWN = (DEFAULT, "msmt_csd", "rumba_tv", "esd", "shd", "shd_tv")  # in the figure


@dataclass(frozen=True)
class Size:
    """Of a volume: its side, bundles and their radius, voxels."""

    side: int
    n_bundles: int
    radius: float


SMALL, FULL = Size(10, 6, 2.0), Size(40, 40, 3.2)


@dataclass(frozen=True, eq=False)
class Volumes:
    """Three volumes of one generator with one gradient table."""

    train: Scene
    validate: Scene
    test: Scene

    @property
    def trained(self) -> Scan:
        """The scan that networks are trained on."""
        return _scan(self.train)

    def seen(self, scene: Scene) -> Scan:
        """Return the scan of a volume that they are applied to, with the responses of their training."""
        return scan_of(scene, self.trained.responses)


@lru_cache(maxsize=2)
def volumes(seed: int, size: Size) -> Volumes:
    """Draw the volumes of a seed."""
    rng = np.random.default_rng(scenes.FIRST_SEED + 2000 + seed)
    gradients = simulation.make_gradients(rng, _SHELLS, n_b0=_N_B0)
    draw = partial(strand_scene, size=size.side, n_bundles=size.n_bundles, radius=size.radius, snr=_SNR)
    return Volumes(*(draw(rng, gradients=gradients) for _ in range(3)))


def reduced(scene: Scene) -> Scene:
    """Return a scene with the few directions alone."""
    kept = _FEW.choose(scene.gradients)
    return replace(scene, signal=scene.signal[..., kept], gradients=scene.gradients.select(kept))


def units(settings: Settings) -> Iterator[Unit]:
    """Yield every method on both rows, seed by seed; with the published steps no training is longer."""
    left_out = () if settings.is_small else learned.LONGER
    methods = [m for m in (*TRUTHS, DEFAULT, *NETWORKS, *CLASSICAL) if m not in left_out]
    for seed in range(settings.seeds):
        for row in (HIGH, LOW):
            for method in methods:
                run = partial(measure, method, row, seed, settings)
                yield Unit(row, method, seed, run, uses_weights=peers.uses_weights(method))


def measure(method: str, row: str, seed: int, settings: Settings) -> Outcome:
    """Score the peaks of a method in the test volume, above the threshold that the validation volume chooses."""
    drawn = volumes(seed, SMALL if settings.is_small else FULL)
    find = finder(method, row, drawn, seed, settings)
    chosen = _scored(find(drawn.validate), drawn.validate).best
    found = find(drawn.test)
    score = _scored(found, drawn.test)
    shown = np.flatnonzero(_slice(drawn.test.mask.shape)[drawn.test.mask])
    return Outcome(
        values_at(score, chosen),
        {
            "recall": score.recall,
            "precision": score.precision,
            "threshold": score.thresholds[chosen],
            "directions": found.directions[shown, :5],
            "amplitudes": found.amplitudes[shown, :5],
        },
    )


def values_at(score: PeakScore, chosen: int) -> dict[str, float]:
    """Return the area under precision over recall, and the other measures at a threshold by its number."""
    return {
        "pr_area": score.pr_area,
        "f1": score.f1[chosen],
        "angular_error": score.angular_errors[chosen],
        "fnr": 1 - score.recall[chosen],
        "fdr": 1 - score.precision[chosen],
    }


def finder(method: str, row: str, drawn: Volumes, seed: int, settings: Settings) -> Callable[[Scene], Found]:
    """Return what finds the peaks of a volume by a method; a network is trained on the first volume for it."""
    if method not in NETWORKS:
        return partial(run_peer, method, row)
    effort = learned.SMALL if settings.is_small else learned.FULL
    few = _FEW if row == LOW else None
    weights = learned.train(
        method, drawn.trained, drawn.train.phantom, effort=effort, few=few, seed=seed, device=settings.device
    )
    return lambda scene: learned.maxima(weights, drawn.seen(scene), settings.device)


def run_peer(method: str, row: str, scene: Scene) -> Found:
    """Return the peaks of a method that is not trained here."""
    if method in TRUTHS:
        density = learned.true_density(scene.phantom, _TRUE_NSIDE)[scene.mask]
        return find_maxima(density @ sh_inverse(hemisphere(_TRUE_NSIDE), TRUTHS[method]).T)
    shown = reduced(scene) if row == LOW else scene
    return peers.methods([method], load_weights(), to_border=True)[method](shown)


def _scored(found: Found, scene: Scene) -> PeakScore:
    return score_peaks(found.directions, found.amplitudes, scene.truth)


def draw(done: Sequence[Done], file: Path) -> None:
    """Draw precision over recall for each row, and the peaks of a slice of the first seed beside the truth."""
    columns = len(_DRAWN) + 1
    figure = Figure(figsize=(figures.WIDTH, 7.6))
    grid = figure.add_gridspec(3, columns, height_ratios=(2.2, 1, 1), hspace=0.45, wspace=0.04)
    paint = figures.colours((*TRUTHS, DEFAULT, *CLASSICAL, *NETWORKS))
    for number, row in enumerate((HIGH, LOW)):
        ax = figure.add_subplot(grid[0, 4 * number : 4 * number + 3])
        _curves(ax, [d for d in done if d.unit.row == row], paint)
        ax.set(title=row, xlabel="recall", ylabel="precision" if not number else "")
        _truth_panel(figure.add_subplot(grid[number + 1, 0]), row)
        at = {d.unit.method: d for d in done if d.unit.row == row and d.unit.seed == 0}
        for column, method in enumerate(m for m in _DRAWN if m in at):
            _panel(figure.add_subplot(grid[number + 1, column + 1]), at[method].arrays, method)
    figures.legend(figure, columns=7)
    figures.save(figure, file)


def _curves(ax, done: Sequence[Done], paint: dict) -> None:
    for item in done:
        arrays, method = item.arrays, item.unit.method
        style = "-" if method in NETWORKS else "--"
        ax.plot(arrays["recall"], arrays["precision"], style, color=paint[method], label=method, lw=1)
    ax.set(xlim=(0.2, 1), ylim=(0.2, 1))


def _truth_panel(ax, row: str) -> None:
    scene = volumes(0, SMALL).test
    shown = np.flatnonzero(_slice(scene.mask.shape)[scene.mask])
    figures.sticks(
        ax, scene.truth[shown], np.sqrt(scene.fractions[shown]) * (scene.fractions[shown] >= 0.1), _places(len(shown))
    )
    ax.set_ylabel(row)
    ax.set_title("truth", fontsize=8)


def _panel(ax, arrays: dict, title: str) -> None:
    """Draw the peaks above the chosen threshold, as long as the root of their share of the largest in the slice."""
    amplitudes = arrays["amplitudes"]
    kept = amplitudes > arrays["threshold"] * amplitudes.max(axis=1, keepdims=True)
    lengths = np.sqrt(amplitudes / max(np.percentile(amplitudes[:, 0], 95), 1e-12)).clip(0, 1) * kept
    figures.sticks(ax, arrays["directions"], lengths, _places(len(amplitudes)))
    ax.set_title(title, fontsize=8)


def _slice(shape: tuple[int, ...]) -> np.ndarray:
    """Return the middle slice of a volume as a mask."""
    mask = np.zeros(shape, dtype=bool)
    mask[:, :, shape[2] // 2] = True
    return mask


def _places(n: int) -> np.ndarray:
    """Return the places of the voxels of a square slice, (n, 2)."""
    return np.indices((round(n**0.5),) * 2).reshape(2, -1).T.astype(float)


def _scan(scene: Scene) -> Scan:
    return scan_of(scene, select(scene, to_border=True)[0])


EXPERIMENT = Experiment(
    name="fibres",
    title="Fibre detection in packed strands",
    units=units,
    metrics=METRICS,
    draw=draw,
    claims=(
        Claim("SHD is as good as RT-ESD (within 0.02)", "pr_area", "shd", "rt_esd", margin=0.02),
        Claim("SHD-TV leads SHD", "pr_area", "shd_tv", "shd"),
        Claim("SHD-TV leads SHD", "angular_error", "shd_tv", "shd", (LOW,)),
        Claim("SHD-TV leads SHD, longer training", "pr_area", learned.LONGER[1], learned.LONGER[0], (LOW,)),
        Claim("SHD-TV leads SHD, longer training", "angular_error", learned.LONGER[1], learned.LONGER[0], (LOW,)),
        Claim("SHD-TV leads ESD", "pr_area", "shd_tv", "esd", (LOW,)),
        Claim("SHD-TV leads CSD", "pr_area", "shd_tv", "msmt_csd", (LOW,)),
        Claim("SHD-TV leads RUMBA-SD", "pr_area", "shd_tv", "rumba", (LOW,)),
        Claim("SHD-TV leads RUMBA-SD with TV", "pr_area", "shd_tv", "rumba_tv", (LOW,)),
        Claim("SHD-TV has the fewest spurious fibres: fewer than CSD", "fdr", "shd_tv", "msmt_csd", (LOW,)),
        Claim("the app's default leads SHD-TV", "pr_area", DEFAULT, "shd_tv"),
        Claim("the app's default leads CSD", "pr_area", DEFAULT, "msmt_csd"),
        Claim("the app's default leads RUMBA-SD with TV", "pr_area", DEFAULT, "rumba_tv"),
    ),
)
