"""Many against few directions in vivo (Fig. 2): what a method finds with few is compared with what it finds with all.

A box of white matter is a unit of work: networks are trained on one box of the brain and applied to another, with few directions
super-resolved. Responses are those of the whole scan, with the directions that a method gets. Scans are BIDS data sets under the
folder of the environment variable ``SHD_BIDS_SCANS``; those that are not there are left out.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path

import counts
import heldout
import numpy as np
import peers
from found import Found, find_maxima, own_peaks
from matplotlib.figure import Figure
from measured import Series, scan_of
from selection import select

from shd_bids.fod.fit import fit_fod
from shd_bids.fod.inputs.volumes import InputVolumes
from shd_bids.fod.weights import load_weights
from shd_bids.gradients.dti import fit_tensor
from shd_bids.options import Runtime
from shd_bids.peaks.threshold import noise_threshold
from shd_bids.scan import Scan
from tests.benchmarks.paper import figures, learned
from tests.benchmarks.paper.base import Claim, Done, Experiment, Outcome, Settings, Unit

METRICS = ("fod_correlation", "first_error", "same_count")
NETWORKS = ("esd", "shd", "shd_tv", "rt_esd")
CLASSICAL = ("msmt_csd", "csd", "dipy_csd", "rumba", "force")
DEFAULT = "amortised"

_MARGIN = 4  # voxels around a box that the default's network also sees
_APART = 12  # slices from a box of the test to that of the training
_DRAWN = (DEFAULT, "msmt_csd", "shd", "shd_tv")


@dataclass(frozen=True)
class Source:
    """A scan by the name of its folder, and the directions that are kept of it."""

    folder: str
    bvalue: float
    few: int

    @property
    def chosen(self) -> InputVolumes:
        """The directions that are kept."""
        return InputVolumes(self.bvalue, self.few)


SOURCES = (Source("tractseg", 1000.0, 12), Source("dcmqa-sag", 2000.0, 10))


@lru_cache(maxsize=1)
def read(source: Source) -> Series:
    """Read a scan."""
    return heldout.read_scan(Path(os.environ["SHD_BIDS_SCANS"]) / source.folder)


@lru_cache(maxsize=2)
def scan_with(source: Source, *, few: bool) -> Scan:
    """Return a scan with all or with few directions, and the responses that these give."""
    series = thinned(source) if few else read(source)
    return scan_of(series, select(series, to_border=False)[0])


def thinned(source: Source) -> Series:
    """Return a scan with the few directions alone."""
    series = read(source)
    kept = source.chosen.choose(series.gradients)
    return replace(series, signal=series.signal[..., kept], gradients=series.gradients.select(kept))


def box(mask: np.ndarray, seed: int, settings: Settings, *, is_training: bool) -> np.ndarray:
    """Return a box of the mask about its centre; seeds move it up, and that of the training lies apart from it."""
    side, height = (22, 4) if settings.is_small else (60, 12)
    centre = np.round(np.argwhere(mask).mean(axis=0)).astype(int)
    centre[2] += 5 * seed - (_APART if is_training else 0)
    half = np.array([side, side, height]) // 2
    region = np.zeros_like(mask)
    region[tuple(slice(max(c - h, 0), c + h) for c, h in zip(centre, half, strict=True))] = True
    return region & mask


def units(settings: Settings) -> Iterator[Unit]:
    """Yield every method on every scan, seed by seed."""
    folder = os.environ.get("SHD_BIDS_SCANS", "")
    for seed in range(settings.seeds):
        for source in (source for source in SOURCES if folder and (Path(folder) / source.folder).is_dir()):
            row = f"{source.folder}, b = {source.bvalue:.0f}, {source.few}"
            for method in (DEFAULT, *NETWORKS, *CLASSICAL):
                run = partial(measure, method, source, seed, settings)
                yield Unit(row, method, seed, run, uses_weights=peers.uses_weights(method))


def measure(method: str, source: Source, seed: int, settings: Settings) -> Outcome:
    """Compare what a method finds with few and with all directions in the white matter of a box."""
    mask = read(source).mask
    region = box(mask, seed, settings, is_training=False)
    many, few = (found_in(method, source, region, seed, settings, few=few) for few in (False, True))
    tensors = fit_tensor(read(source).signal[region], read(source).gradients)
    white = counts.tissues(tensors)["white matter"]
    shown = [own_peaks(DEFAULT if method in NETWORKS else method, found) for found in (many, few)]
    samples = counts.measure_halves(shown[0].directions[white], shown[1].directions[white])
    if many.coefficients is not None:
        samples["fod_correlation"] = counts.correlation(many.coefficients[white], few.coefficients[white])
    plane = np.argwhere(region)[:, 2] == np.argwhere(region)[:, 2].min() + 1
    arrays = {"places": np.argwhere(region)[plane, :2]}
    for name, found in zip(("many", "few"), shown, strict=True):
        arrays |= {f"{name}_directions": found.directions[plane], f"{name}_amplitudes": found.amplitudes[plane]}
    return Outcome(counts.pool([samples]), arrays)


def found_in(method: str, source: Source, region: np.ndarray, seed: int, settings: Settings, *, few: bool) -> Found:
    """Return what a method finds in a region with few or with all directions."""
    if method in NETWORKS:
        return _network(method, source, region, seed, settings, few=few)
    if method == DEFAULT:
        return _ours(scan_with(source, few=few), region)
    series = thinned(source) if few else read(source)
    return peers.methods([method], None)[method](series, where=region)


def _network(method: str, source: Source, region: np.ndarray, seed: int, settings: Settings, *, few: bool) -> Found:
    """Train on another box, from all directions or super-resolved, and find the peaks in the region."""
    scan, effort = scan_with(source, few=False), learned.SMALL if settings.is_small else learned.FULL
    trained = scan.within(box(scan.mask, seed, settings, is_training=True))
    chosen = source.chosen if few else None
    weights = learned.train(method, trained, None, effort=effort, few=chosen, seed=seed, device=settings.device)
    return learned.maxima(weights, scan.within(region), settings.device, cutoff=np.nan)  # where fibres are, all count


def _ours(scan: Scan, region: np.ndarray) -> Found:
    """Fit the region with a margin as the app fits a whole scan."""
    near = np.zeros_like(region)
    low, high = np.argwhere(region).min(axis=0) - _MARGIN, np.argwhere(region).max(axis=0) + _MARGIN + 1
    near[tuple(slice(max(a, 0), b) for a, b in zip(low, high, strict=True))] = True
    part = scan.within(near)
    fod = fit_fod(part, load_weights(), runtime=Runtime(device="cpu"))
    cutoff = noise_threshold(fod.wm, fod.fractions[:, 2], wm_fraction=fod.fractions[:, 0])
    rows = region[part.mask]
    return find_maxima(
        fod.wm[rows],
        cutoff,
        prominence=fod.facts.prominence,
        direction_errors=fod.direction_errors,
        wm_fraction=fod.fractions[rows, 0],
    )


def draw(done: Sequence[Done], file: Path) -> None:
    """Draw the peaks of one slice of the first scan, above from all and below from few directions."""
    first = next(iter(done)).unit.row
    at = {d.unit.method: d.arrays for d in done if d.unit.row == first and d.unit.seed == 0}
    shown = [method for method in _DRAWN if method in at]
    figure = Figure(figsize=(figures.WIDTH, 2 * figures.WIDTH / max(len(shown), 2)))
    panels = figure.subplots(2, len(shown), squeeze=False)
    figure.subplots_adjust(0.03, 0, 1, 0.95, 0.02, 0.02)
    for column, method in zip(panels.T, shown, strict=True):
        scale = np.percentile(at[method]["many_amplitudes"][:, 0], 90)
        for ax, name in zip(column, ("many", "few"), strict=True):
            lengths = np.sqrt(at[method][f"{name}_amplitudes"] / scale).clip(0, 1)
            figures.sticks(ax, at[method][f"{name}_directions"], lengths, at[method]["places"].astype(float))
        column[0].set_title(method, fontsize=9)
    panels[0, 0].set_ylabel("all directions")
    panels[1, 0].set_ylabel("few directions")
    figures.save(figure, file)


EXPERIMENT = Experiment(
    name="invivo",
    title="Few against all directions in vivo",
    units=units,
    metrics=METRICS,
    draw=draw,
    claims=(
        Claim("SHD-TV with few is nearer to itself with all than CSD", "fod_correlation", "shd_tv", "msmt_csd"),
        Claim("SHD-TV with few is nearer to itself with all than CSD", "first_error", "shd_tv", "msmt_csd"),
        Claim("SHD-TV with few is nearer to itself with all than RUMBA-SD", "first_error", "shd_tv", "rumba"),
        Claim("SHD is as good as RT-ESD (within 0.02)", "fod_correlation", "shd", "rt_esd", margin=0.02),
        Claim("SHD-TV leads SHD", "fod_correlation", "shd_tv", "shd"),
        Claim("SHD-TV leads ESD", "first_error", "shd_tv", "esd"),
        Claim("the app's default leads CSD", "fod_correlation", DEFAULT, "msmt_csd"),
        Claim("the app's default leads SHD-TV", "first_error", DEFAULT, "shd_tv"),
    ),
)
