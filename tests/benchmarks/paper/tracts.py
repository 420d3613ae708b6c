"""Tractography (Fig. 7): fODFs and streamlines of bundles with known ends, by the measures of the Tractometer.

Networks are trained on the scan that they are applied to, as published. All methods are tracked alike, by MRtrix3's iFOD2 with
its defaults from the whole mask; ``amortised, prob`` are the same fODFs as ``amortised`` with this package's tracker. fODFs of
dipy's methods, which have another scale, are brought to that of the others in the voxels of one full fibre.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path

import nibabel as nib
import numpy as np
import peers
from found import Found
from matplotlib.figure import Figure
from measured import scan_of
from nibabel.streamlines import ArraySequence
from results import METRICS as LABELS
from scenes import FIRST_SEED
from selection import select
from tract_scenes import BALL, Ball, TractScene, make_scene
from tract_scores import score

from shd_bids.fod.fit import fit_fod
from shd_bids.fod.weights import load_weights
from shd_bids.options import Runtime, TrackingOptions
from shd_bids.simulation.scoring import score_peaks
from shd_bids.sphere.harmonics import SQRT_4PI
from shd_bids.tractography.field import FibreField
from shd_bids.tractography.track import track
from shd_bids.tractography.tracker import Batch
from tests.benchmarks.paper import figures, learned
from tests.benchmarks.paper.base import Claim, Done, Experiment, Outcome, Settings, Unit

METRICS = ("angular_error", "fdr", "valid", "invalid", "overlap", "overreach", "bundles")
NETWORKS = ("esd", "shd", "shd_tv", "rt_esd", "cnn", "ponita")
CLASSICAL = ("msmt_csd", "dipy_csd", "rumba", "rumba_tv")
DEFAULT, OWN = "amortised", "amortised, prob"

ROW, _SNR = "b1000 x 30", 30.0
_SMALL_BALL = Ball(26, 10.0, 11.2, 12.0)
_SCALED = ("dipy_csd", "rumba", "rumba_tv")
_SEEDS = 200  # of each voxel at most: the number of streamlines ends tracking
_ON_CPU = Runtime(device="cpu")


@lru_cache(maxsize=2)
def ball(seed: int, *, is_small: bool) -> TractScene:
    """Draw and measure the bundles of a seed."""
    at = FIRST_SEED + seed  # apart from the volumes on which the tracker's constants were chosen
    size, n = (_SMALL_BALL, 10) if is_small else (BALL, 20)
    return make_scene(ROW, _SNR, seed=at, n_bundles=n, ball=size)


def units(settings: Settings) -> Iterator[Unit]:
    """Yield every method, seed by seed."""
    for seed in range(settings.seeds):
        for method in (DEFAULT, OWN, *NETWORKS, *CLASSICAL):
            run = partial(measure, method, seed, settings)
            yield Unit(ROW, method, seed, run, uses_weights=method in (DEFAULT, OWN))


def measure(method: str, seed: int, settings: Settings) -> Outcome:
    """Score the peaks of a method and the streamlines through its fODFs."""
    scene = ball(seed, is_small=settings.is_small)
    n, shortest = (500, 20.0) if settings.is_small else (100_000, 60.0)
    field = fitted(scene) if method == OWN else None
    found = None if field else _found(method, scene, seed, settings)
    lines = own_tracks(field, n, shortest) if field else tracks(found.coefficients, scene, n, shortest)
    values = {name: value for name, value in score(lines, scene).items() if name in METRICS}
    if found:
        peaks = score_peaks(found.directions, found.amplitudes, scene.scene.truth).summary()
        values |= {name: peaks[name] for name in ("angular_error", "fdr")}
    shown = lines[:400]
    return Outcome(values, {"points": shown.get_data(), "lengths": np.array([len(line) for line in shown])})


def _found(method: str, scene: TractScene, seed: int, settings: Settings) -> Found:
    """Return peaks and fODFs of a method."""
    volume = scene.scene
    if method in NETWORKS:
        effort = learned.SMALL if settings.is_small else learned.FULL
        scan = scan_of(volume, select(volume, to_border=False)[0])
        weights = learned.train(
            method, scan, volume.phantom, effort=effort, few=None, seed=seed, device=settings.device
        )
        return learned.maxima(weights, scan, settings.device)
    found = peers.methods([method], load_weights())[method](volume)
    if method in _SCALED:
        found.coefficients[:] *= 1 / (SQRT_4PI * _full_fibre(found.coefficients[:, 0], volume.fractions))
    return found


def _full_fibre(amounts: np.ndarray, fractions: np.ndarray) -> float:
    """Return the median coefficient of degree 0 where one fibre fills nine tenths of the voxel or more."""
    return float(np.median(amounts[fractions[:, 0] > 0.9]))


def fitted(scene: TractScene) -> FibreField:
    """Fit as the app does."""
    volume = scene.scene
    fod = fit_fod(scan_of(volume, select(volume, to_border=False)[0]), load_weights(), runtime=_ON_CPU)
    return FibreField(fod.wm, fod.fractions, volume.mask, volume.affine)


def own_tracks(field: FibreField, n: int, shortest: float) -> ArraySequence:
    """Track with this package by its defaults but for the lengths."""
    batches: list[Batch] = []
    options = TrackingOptions(tracking_algorithm="prob", select=n, seeds=_SEEDS, min_length=shortest)
    track(field, options, batches.append)
    lines = ArraySequence()
    for batch in batches:
        lines.extend(batch.streamlines)
    return lines


def tracks(coefficients: np.ndarray, scene: TractScene, n: int, shortest: float) -> ArraySequence:
    """Track with MRtrix3 from the whole mask, by its defaults but for the lengths, as published."""
    mask = scene.scene.mask
    image = np.zeros((*mask.shape, coefficients.shape[1]), dtype=np.float32)
    image[mask] = coefficients
    with tempfile.TemporaryDirectory() as folder:
        for name, data in (("fod", image), ("mask", mask.astype(np.uint8))):
            nib.save(nib.Nifti1Image(data, scene.affine), Path(folder) / f"{name}.nii")
        command = "tckgen -quiet -nthreads 1 fod.nii tracks.tck -mask mask.nii -seed_image mask.nii"
        command += f" -select {n} -seeds {20 * n} -minlength {shortest}"
        subprocess.run(command.split(), cwd=folder, check=True)
        return nib.streamlines.load(Path(folder) / "tracks.tck").streamlines


def draw(done: Sequence[Done], file: Path) -> None:
    """Draw the measures as bars, and the streamlines of the first seed from one side."""
    measures = ("angular_error", "fdr", "valid", "overlap")
    methods = list(dict.fromkeys(d.unit.method for d in done))
    at = {d.unit.method: d for d in done if d.unit.seed == 0}
    columns = 6
    figure = Figure(figsize=(figures.WIDTH, 8.5))
    grid = figure.add_gridspec(3, 12, height_ratios=(1.3, 1, 1), hspace=0.25, wspace=3.0)
    for number, metric in enumerate(measures):
        ax = figure.add_subplot(grid[0, 3 * number : 3 * number + 3])
        figures.bars(ax, figures.grouped(done, metric), label=LABELS[metric].label, methods=methods)
        ax.set_xticks([])
        ax.tick_params(labelsize=7)
    figures.legend(figure, columns=6)
    for number, (method, item) in enumerate(at.items()):
        row, column = divmod(number, columns)
        if row < 2:
            _lines(figure.add_subplot(grid[row + 1, 2 * column : 2 * column + 2]), item.arrays, method)
    figures.save(figure, file)


def _lines(ax, arrays: dict, title: str) -> None:
    """Draw streamlines seen along z, coloured by direction."""
    for line in np.split(arrays["points"], np.cumsum(arrays["lengths"])[:-1]):
        if len(line) > 1:
            colour = np.abs(line[-1] - line[0]) / max(np.linalg.norm(line[-1] - line[0]), 1e-9)
            ax.plot(line[:, 0], line[:, 1], color=colour, lw=0.3)
    ax.set(xticks=[], yticks=[], aspect="equal")
    ax.set_title(title, fontsize=8)


EXPERIMENT = Experiment(
    name="tracts",
    title="Tractography of bundles with known ends",
    units=units,
    metrics=METRICS,
    draw=draw,
    claims=(
        Claim("SHD-TV has a smaller angular error than SHD", "angular_error", "shd_tv", "shd"),
        Claim("SHD-TV has fewer false fibres than CSD", "fdr", "shd_tv", "msmt_csd"),
        Claim("SHD-TV has more valid streamlines than CSD", "valid", "shd_tv", "msmt_csd"),
        Claim("SHD-TV has more valid streamlines than RUMBA-SD with TV", "valid", "shd_tv", "rumba_tv"),
        Claim("SHD-TV has more overlap than CSD", "overlap", "shd_tv", "msmt_csd"),
        Claim("SHD is as good as RT-ESD (within 2 points)", "valid", "shd", "rt_esd", margin=2.0),
        Claim("the app's default has more valid streamlines than SHD-TV", "valid", DEFAULT, "shd_tv"),
    ),
)
