"""Draw the README's picture: fODFs of MRtrix3 and of this package from all directions of a scan and from few of them.

    python tests/benchmarks/tutorial_figure.py [.github/fodfs.png] [--scan FOLDER] [--weights FILE] [--directions 15 12]

The upper row is a simulated volume, with its truth on the left: three shells of 90 directions, and 15 of those at
b = 1000 s/mm2. The lower row is a coronal slab of the scan in FOLDER (a BIDS data set with one series and a mask): all its
directions, and 12 of its lowest shell. Few directions are chosen to be far from each other. Each panel has its own scale.
"""

from __future__ import annotations

import argparse
import warnings
from io import BytesIO
from pathlib import Path

import numpy as np
import peers
import scenes
import torch
from heldout import read_scan
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from measured import Series, scan_of
from PIL import Image

from shd_bids import simulation
from shd_bids.fod.fit import fit_fod
from shd_bids.fod.weights import Weights, load_weights
from shd_bids.gradients.dti import fit_tensor, fractional_anisotropy
from shd_bids.options import Runtime
from shd_bids.report.glyphs import draw_glyphs
from shd_bids.report.view import PLANES, Cut, WorldView, slice_of, world_view
from shd_bids.response.estimate import estimate_responses
from shd_bids.sphere.harmonics import degrees, n_coefficients, sh_basis

SHELLS, N_B0 = scenes.PROTOCOLS["HCP 3 x 90"]
SNR = 30.0
SHAPE = (26, 26, 11)  # voxels of the simulated volume
SIMULATED_WINDOW = (8.0, 40.0, 15.0, 47.0)  # left, right, bottom, top, mm
STORED_DEGREE = 12  # of the images that the app writes
SLAB = 11  # coronal slices of the scan that are fitted, the drawn one in the middle

Window = tuple[float, float, float, float]


def main() -> None:
    """Fit both volumes twice with both methods and draw them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figure", nargs="?", type=Path, default=Path(".github/fodfs.png"))
    parser.add_argument("--scan", type=Path, metavar="FOLDER")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--directions", nargs=2, type=int, default=[15, 12], metavar=("SIMULATED", "REAL"))
    parser.add_argument("--window", nargs=4, type=float, default=[73, 113, 71, 111], help="left right bottom top, mm")
    parser.add_argument("--coronal", type=float, default=0.47, help="share of the mask in front of the drawn slice")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads)
    weights = load_weights(options.weights)
    simulated, truth = simulate()
    rows = [(simulated, Cut(PLANES[2], SHAPE[2] // 2), SIMULATED_WINDOW, truth, options.directions[0])]
    if options.scan:
        scan = coronal_slab(read_scan(options.scan), options.coronal)
        rows.append((scan, Cut(PLANES[1], SLAB // 2), (*options.window,), None, options.directions[1]))
    figure, axes = _canvas(len(rows))
    for panels, (scan, cut, window, reference, n_few) in zip(axes, rows, strict=True):
        draw_row(panels, scan, cut, window, reference, weights, n_few=n_few)
    save(figure, options.figure)


def save(figure: Figure, path: Path) -> None:
    """Write the picture with a palette of 256 colours, a third of the size and no difference to the eye."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = BytesIO()
    figure.savefig(pixels, dpi=150, facecolor="white")
    Image.open(pixels).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


def simulate() -> tuple[Series, np.ndarray]:
    """Return a volume with an arc that meets two straight bundles, and its true fODFs, (n, C)."""
    rng = np.random.default_rng(scenes.FIRST_SEED + 7)
    middle = (np.array(SHAPE) - 1) / 2
    turn = np.linspace(-1.1, 1.1, 240)
    arc = np.stack([13 * np.sin(turn), 13 * np.cos(turn) - 10.5, 0 * turn], axis=1)
    s = np.linspace(-26, 26, 240)
    curves = [arc] + [s[:, None] * [np.cos(a), np.sin(a), 0.0] for a in np.radians([62.0, 118.0])]
    bundles = tuple(simulation.Bundle(c + middle + [0, 1.5, 0], np.full(len(c), 3.2)) for c in curves)
    grid = np.meshgrid(*map(np.arange, SHAPE), indexing="ij")
    csf = 1 / (1 + np.exp((grid[1] - 2.5) / 0.4))
    phantom = simulation.build_phantom(bundles, SHAPE, csf=csf)
    scene = scenes.observe(rng, phantom, SHELLS, n_b0=N_B0, snr=SNR)
    degree = degrees(18)
    axes = phantom.directions[scene.mask].reshape(-1, 3)
    axes = np.where(axes.any(axis=1, keepdims=True), axes, np.array([0.0, 0.0, 1.0]))  # unused: their fraction is zero
    lobe = sh_basis(axes, 18) * np.exp(-degree * (degree + 1) / 90)
    truth = (lobe.reshape(-1, simulation.MAX_FIBRES, len(degree)) * scene.fractions[..., None]).sum(axis=1)
    return Series("simulated", scene.signal, scene.mask, scene.gradients, np.diag([2.0, 2.0, 2.0, 1.0])), truth


def coronal_slab(scan: Series, share: float) -> Series:
    """Cut a scan to some coronal slices, ``share`` of the mask's voxels lying in front of the middle one."""
    view = world_view(scan.mask.shape, scan.affine)
    axis = view.order[1]  # runs from back to front in the view
    counts = scan.mask.sum(axis=tuple(other for other in range(3) if other != axis)).cumsum() / scan.mask.sum()
    if not view.flips[1]:
        share = 1 - share
    first = max(int(np.searchsorted(counts, share)) - SLAB // 2, 0)
    window = tuple(slice(first, first + SLAB) if a == axis else slice(None) for a in range(3))
    affine = scan.affine.copy()
    affine[:3, 3] += first * affine[:3, axis]
    return Series("in vivo", scan.signal[window], scan.mask[window], scan.gradients, affine)


def draw_row(
    panels: list[Axes],
    scan: Series,
    cut: Cut,
    window: Window,
    truth: np.ndarray | None,
    weights: Weights,
    *,
    n_few: int,
) -> None:
    """Draw the truth (or where the window lies), then both methods with all and with few directions."""
    view = world_view(scan.mask.shape, scan.affine, scan.mask)
    row_of = np.full(scan.mask.shape, -1)
    row_of[scan.mask] = np.arange(scan.mask.sum())
    rows = slice_of(view.volume(row_of), cut)
    tensors = fit_tensor(scan.signal[scan.mask], scan.gradients)
    colours = np.zeros((*scan.mask.shape, 3))
    principal = np.linalg.eigh(tensors)[1][..., 2]
    colours[scan.mask] = (1.4 * fractional_anisotropy(tensors)[:, None] * np.abs(principal)).clip(0, 1)
    background = slice_of(view.volume(colours), cut)
    if truth is not None:
        _panel(panels[0], view, cut, background, truth, rows, window)
    else:
        _overview(panels[0], view, cut, background, window)
    panels[0].set_title("truth" if truth is not None else "first direction of a tensor", fontsize=11)
    panels[0].set_ylabel(scan.name, fontsize=11)
    n_all = scan.gradients.n_volumes - len(scan.gradients.b0_indices)
    few = few_volumes(scan, n_few)
    for k, (kept, n) in enumerate(((np.arange(scan.gradients.n_volumes), n_all), (few, n_few))):
        part = Series(scan.name, scan.signal[..., kept], scan.mask, scan.gradients.select(kept), scan.affine)
        for m, (name, fod) in enumerate((("msmt_csd", fit_mrtrix(part)), ("shd_bids", fit_ours(part, weights)))):
            _panel(panels[1 + 2 * k + m], view, cut, background, fod, rows, window)
            panels[1 + 2 * k + m].set_title(f"{name}, {n} directions", fontsize=11)


def few_volumes(scan: Series, n: int) -> np.ndarray:
    """Return two b=0 volumes (or the one there is) and ``n`` of the lowest shell, each as far as can be from those before."""
    shell = scan.gradients.shells[1].indices
    cosine = np.abs(scan.gradients.directions[shell] @ scan.gradients.directions[shell].T)
    chosen = [0]
    while len(chosen) < n:
        chosen.append(int(cosine[chosen].max(axis=0).argmin()))
    return np.sort(np.concatenate([scan.gradients.b0_indices[:2], shell[chosen]]))


def fit_mrtrix(scan: Series) -> np.ndarray:
    """Return the fODFs of MRtrix3's multi-tissue deconvolution, (n, C)."""
    return peers.msmt_tissues(scan).wm


def fit_ours(scan: Series, weights: Weights) -> np.ndarray:
    """Return the fODFs of the network at the degree that the app stores, (n, C)."""
    responses = estimate_responses(scan.signal, scan.mask, scan.gradients).responses
    fod = fit_fod(scan_of(scan, responses), weights, runtime=Runtime(device="cpu"))
    return fod.wm[:, : n_coefficients(STORED_DEGREE)]


def _canvas(n_rows: int) -> tuple[Figure, list[list[Axes]]]:
    side, gap, top, left = 2.75, 0.08, 0.32, 0.3
    width, height = left + 5 * side + 5 * gap, n_rows * (side + top) + gap
    figure = Figure(figsize=(width, height))
    grid = []
    for row in range(n_rows):
        bottom = height - (row + 1) * (side + top)
        lefts = [left + k * (side + gap) for k in range(5)]
        grid.append([figure.add_axes((x / width, bottom / height, side / width, side / height)) for x in lefts])
    return figure, grid


def _panel(
    ax: Axes, view: WorldView, cut: Cut, background: np.ndarray, fod: np.ndarray, rows: np.ndarray, window: Window
) -> None:
    ax.imshow(
        0.35 * background.mean(axis=2), origin="lower", extent=view.extent(cut.plane), cmap="gray", vmin=0, vmax=0.5
    )
    draw_glyphs(ax, view, cut, fod, rows, window)
    _frame(ax, window)


def _overview(ax: Axes, view: WorldView, cut: Cut, background: np.ndarray, window: Window) -> None:
    extent = view.extent(cut.plane)
    ax.imshow(background, origin="lower", extent=extent)
    left, right, bottom, top = window
    corners = np.array([[left, bottom], [right, bottom], [right, top], [left, top], [left, bottom]])
    ax.plot(*corners.T, color="white", linewidth=1.4)
    middle, half = (extent[1] / 2, extent[3] / 2), max(extent[1], extent[3]) / 2
    _frame(ax, (middle[0] - half, middle[0] + half, middle[1] - half, middle[1] + half))


def _frame(ax: Axes, window: Window) -> None:
    ax.set(xlim=window[:2], ylim=window[2:], aspect="equal", xticks=[], yticks=[], facecolor="black")
    ax.spines[:].set_visible(False)


if __name__ == "__main__":
    main()
