"""Compare connectomes of simulated bundles with the true ones; prints one table for each protocol and noise level.

    python tests/benchmarks/connectomes.py [--methods ...] [--rows ...] [--select 20000] [--volumes 0] [--weights FILE]
                                           [--cache DIR] [--save] [--compare]

Scenes are those of `tract_scenes.py`: a ball of bundles, each between two regions. The true strength of a connection is the
cross-section of its bundle: the volume of its fibres over its length, mm². All methods get the same fODFs, and those but the
last the same streamlines, of this package:

* ``weighted``: fibre bundle capacity of this package;
* ``counted``: its numbers of streamlines;
* ``SIFT2``: ``tcksift2`` and ``tck2connectome``;
* ``iFOD2 SIFT2``: the same of as many streamlines of ``tckgen``.

Measures: correlation with the truth over all pairs of regions and over the true ones, the share of the strength that joins
regions without a bundle, and the number of such pairs. ``--cache`` keeps the fits of the same weights.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import results
import torch
from nibabel.streamlines import ArraySequence
from results import Figure
from tract_scenes import VOXEL, TractScene, make_scene
from tracts import ROWS, fitted, ours, table, tckgen, volumes_of

from shd_bids.fod.config import PrecisionConfig
from shd_bids.fod.weights import load_weights
from shd_bids.options import PeakOptions, TractogramOptions
from shd_bids.peaks.lobes import measure_lobes
from shd_bids.peaks.search import find_peaks
from shd_bids.tractography.connectome import BUNDLE_CAPACITY, COUNT, Streamlines, assign_ends, connect
from shd_bids.tractography.field import FibreField
from shd_bids.tractography.fixels import Fixels
from shd_bids.tractography.regions import Regions
from shd_bids.tractography.visits import lengths_in
from shd_bids.tractography.weights import fit_weights

SHOWN = ("correlation", "true_correlation", "false_share", "false_pairs")
METHODS = ("weighted", "counted", "SIFT2", "iFOD2 SIFT2")
_RADIUS = TractogramOptions().connectome_radius

Matrices = dict[str, np.ndarray]


def main() -> int:
    """Run every row with every method, and print and record what was found."""
    options = _options()
    warnings.simplefilter("ignore")
    weights = load_weights(options.weights)
    figures: list[Figure] = []
    for protocol, snr in (ROWS[number] for number in options.rows):
        found: dict[str, list[dict[str, float]]] = {name: [] for name in options.methods}
        for seed in options.volumes:
            scene = make_scene(protocol, snr, seed=seed)
            field = fitted(scene, weights, cache=options.cache, name=f"{protocol}_{snr}_{seed}")
            truth = true_connectome(scene)
            for name, matrix in connectomes(scene, field, options).items():
                found[name].append(score(matrix, truth))
        means = {name: {key: float(np.mean([v[key] for v in all_])) for key in SHOWN} for name, all_ in found.items()}
        title = f"{protocol}, SNR {snr}, {options.select} streamlines"
        print(*table(title, means, first="connectome", shown=SHOWN), sep="\n", flush=True)
        row = f"{protocol}, {snr}, {volumes_of(options)} x {options.select}"
        figures += [
            Figure(row, name, key, value, options.threads, weights.sha256[:12])
            for name, values in means.items()
            for key, value in values.items()
        ]
    return results.finish("connectomes", figures, options)


def true_connectome(scene: TractScene) -> np.ndarray:
    """Return the cross-section of the bundle between each pair of regions, mm²."""
    phantom = scene.scene.phantom
    matrix = np.zeros((2 * len(phantom.bundles),) * 2)
    for number, bundle in enumerate(phantom.bundles):
        volume = phantom.fractions[phantom.bundle == number].sum() * VOXEL**3
        length = np.linalg.norm(np.diff(bundle.curve, axis=0), axis=1).sum() * VOXEL
        matrix[2 * number, 2 * number + 1] = matrix[2 * number + 1, 2 * number] = volume / length
    return matrix


def score(matrix: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Return how a connectome differs from the true one, by its pairs of regions."""
    upper = np.triu_indices(len(truth), 1)
    found, true = matrix[upper], truth[upper]
    is_true = true > 0
    return {
        "correlation": float(np.corrcoef(found, true)[0, 1]),
        "true_correlation": float(np.corrcoef(found[is_true], true[is_true])[0, 1]),
        "false_share": float(found[~is_true].sum() / found.sum()),
        "false_pairs": int((found[~is_true] > 0).sum()),
    }


def connectomes(scene: TractScene, field: FibreField, options: argparse.Namespace) -> Matrices:
    """Return the matrix of each method."""
    regions = _regions(scene)
    asked, matrices = set(options.methods), dict[str, np.ndarray]()
    lines = ours(field, options.select, algorithm="prob")[0] if asked & set(METHODS[:3]) else None
    if asked & {"weighted", "counted"}:
        own = _own(lines, field, regions, n_threads=options.threads)
        matrices |= {"weighted": own[BUNDLE_CAPACITY], "counted": own[COUNT]}
    if "SIFT2" in asked:
        matrices["SIFT2"] = _sift2(lines, field, regions)
    if "iFOD2 SIFT2" in asked:
        matrices["iFOD2 SIFT2"] = _sift2(tckgen(field, options.select, algorithm="iFOD2")[0], field, regions)
    return {name: matrices[name] for name in options.methods}


def fixels_of(field: FibreField) -> Fixels:
    """Return the lobes as the app finds them."""
    chosen = PeakOptions()
    peaks = find_peaks(
        field.coefficients,
        max_peaks=chosen.peak_max,
        relative_threshold=chosen.peak_relative_threshold,
        absolute_threshold=field.usual_cutoff,
        min_separation=chosen.peak_separation,
        prominence=PrecisionConfig().prominence,
        device=torch.device("cpu"),
    )
    lobes = measure_lobes(field.coefficients, peaks)
    vectors = peaks.vectors.reshape(len(field.coefficients), -1, 3)
    amplitude = np.linalg.norm(vectors, axis=-1, keepdims=True)
    directions = np.divide(vectors, amplitude, out=np.zeros_like(vectors), where=amplitude > 0)
    white = field.fractions[:, 0].astype(np.float32)
    return Fixels(directions.astype(np.float32), lobes.density.astype(np.float32), white, field.mask, field.affine)


def _regions(scene: TractScene) -> Regions:
    n = 2 * len(scene.inside)
    names = tuple(map(str, range(n)))
    return Regions(scene.ends.astype(np.int32), scene.affine, np.arange(1, n + 1), names)


def _own(lines: ArraySequence, field: FibreField, regions: Regions, *, n_threads: int) -> Matrices:
    fixels = fixels_of(field)
    weights = fit_weights([lengths_in(fixels, lines, n_threads=n_threads)], fixels.volumes, fixels.shares)
    ends = np.array([[line[0], line[-1]] for line in lines])
    lengths = np.ones(len(ends))
    streamlines = Streamlines(ends, lengths, weights.mu * weights.weights, {})
    return connect(streamlines, assign_ends(ends, regions, radius=_RADIUS, n_threads=n_threads), regions)


def _sift2(lines: ArraySequence, field: FibreField, regions: Regions) -> np.ndarray:
    """Return the sums of the weights of MRtrix3, in units of its proportionality coefficient."""
    image = np.zeros((*field.mask.shape, field.coefficients.shape[1]), dtype=np.float32)
    image[field.mask] = field.coefficients
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        nib.save(nib.Nifti1Image(image, field.affine), folder / "fod.nii")
        nib.save(nib.Nifti1Image((regions.node + 1).astype(np.int16), regions.affine), folder / "labels.nii")
        tractogram = nib.streamlines.Tractogram(lines, affine_to_rasmm=np.eye(4))
        nib.streamlines.save(tractogram, folder / "tracks.tck")
        _run(folder, "tcksift2 tracks.tck fod.nii weights.txt -out_mu mu.txt")
        search = f"-assignment_radial_search {_RADIUS:g}"
        _run(folder, f"tck2connectome tracks.tck labels.nii found.csv -tck_weights_in weights.txt -symmetric {search}")
        mu = float((folder / "mu.txt").read_text())
        return mu * np.loadtxt(folder / "found.csv", delimiter=",")


def _run(folder: Path, command: str) -> None:
    subprocess.run([*command.split(), "-quiet"], cwd=folder, check=True)


def _options() -> argparse.Namespace:
    has_mrtrix = shutil.which("tck2connectome") is not None
    names = list(METHODS) if has_mrtrix else list(METHODS[:2])
    parser = results.command(__doc__)
    parser.add_argument("--methods", nargs="+", default=names, choices=names)
    parser.add_argument("--rows", nargs="+", type=int, default=list(range(len(ROWS))), choices=range(len(ROWS)))
    parser.add_argument("--select", type=int, default=20_000, help="streamlines of each tractogram")
    parser.add_argument("--volumes", nargs="+", type=int, default=[0], help="seeds of the balls of each row")
    parser.add_argument("--cache", type=Path)
    parser.set_defaults(geometry=None)
    return results.parse(parser)


if __name__ == "__main__":
    sys.exit(main())
