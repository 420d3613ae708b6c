"""Track, weigh and connect a whole real brain: time and memory, and whether the streamlines obey its anatomy.

    python tests/benchmarks/whole_tracts.py RESULTS SCAN [--parts tracking weights connectomes anatomy] [--select 1000000]
                                            [--tckgen 1000] [--threads 2] [--keep DIR] [--save] [--compare]

RESULTS is the ``dwi`` folder of a subject after ``shd_bids ... --level fod``, SCAN the BIDS data set that it was made of.

* *tracking*: the stage of the app, in a process of its own, with its peak memory; beside it iFOD2 of MRtrix3 on the same fODFs,
  seeds, lengths and mask with ``--tckgen`` streamlines. Both as streamlines a second of the processor.
* *weights*, *connectomes*: the stages on these streamlines, the latter with ten parcellations of 100 regions and one map.
* *anatomy*: streamlines through fluid, ends outside of white matter, with anatomy and without, and the correlation of the density
  with its mirror image. Fluid and white matter are those of a tensor (`counts.tissues`), which the tracking does not know.

``--keep`` holds the streamlines, so that parts can run one after another. Times are seconds of the processor over all threads.
"""

from __future__ import annotations

import argparse
import multiprocessing
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import counts
import heldout
import nibabel as nib
import numpy as np
import results
from connectomes import fixels_of
from results import Figure
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree
from tracts import tckgen

from shd_bids.gradients.dti import fit_tensor
from shd_bids.images import gather, load_mask, load_volume
from shd_bids.interfaces.connectome import ConnectomeFiles, connect_image
from shd_bids.interfaces.tractography import TrackingFiles, track_image
from shd_bids.options import Runtime, TrackingOptions, TractogramOptions
from shd_bids.tractography.density import track_density
from shd_bids.tractography.field import FibreField
from shd_bids.tractography.files import count_trx, iterate_trx, read_trx
from shd_bids.tractography.fixels import Fixels
from shd_bids.tractography.visits import lengths_in
from shd_bids.tractography.weights import Visits, fit_weights

PARTS = ("tracking", "weights", "connectomes", "anatomy")
_SEEDS = 200  # of each voxel at most: the number of streamlines ends tracking
_PARCELLATIONS, _REGIONS = 10, 100
_AT_ONCE = 20_000  # streamlines
_FEW = 4000  # streamlines for the anatomy
_SMOOTH = 1.0  # standard deviation in voxels, of a density before it is mirrored

Values = dict[str, dict[str, float]]
"""Method -> metric -> value."""


@dataclass(frozen=True)
class Brain:
    """What is measured, and where its files lie.

    Attributes
    ----------
    results, scan, keep : Path
        Derivatives of the subject, its data set, and the folder of the streamlines.
    field : FibreField
    threads, select, tckgen : int
        As of the command line.
    """

    results: Path
    scan: Path
    keep: Path
    field: FibreField
    threads: int
    select: int
    tckgen: int

    def file(self, pattern: str) -> Path:
        """Return the one file of the results that matches."""
        (found,) = self.results.glob(f"*{pattern}.nii.gz")
        return found


def main() -> int:
    """Measure every part, print and record what was found."""
    options = _options()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        keep = options.keep or Path(folder)
        keep.mkdir(parents=True, exist_ok=True)
        field = read_field(options.results)
        brain = Brain(options.results, options.scan, keep, field, options.threads, options.select, options.tckgen)
        return max([_recorded(part, brain, options) for part in options.parts])


def _recorded(part: str, brain: Brain, options: argparse.Namespace) -> int:
    """Measure a part, print and record it, and return the exit code."""
    values = _MEASURES[part](brain)
    row = f"{options.scan.name}, {part}, {_FEW if part == 'anatomy' else options.select}"
    print(row, values, sep="\n", flush=True)
    figures = [
        Figure(row, method, metric, value, options.threads, results.shipped_weights())
        for method, found in values.items()
        for metric, value in found.items()
    ]
    return results.finish("whole_tracts", figures, options)


def read_field(folder: Path) -> FibreField:
    """Return the fODFs and fractions of a subject's results."""
    mask_file, wm, *fractions = (
        next(folder.glob(f"*{name}.nii.gz"))
        for name in (
            "desc-brain_mask",
            "param-wm_dwimap",
            *(f"param-vf{tissue}_dwimap" for tissue in ("wm", "gm", "csf")),
        )
    )
    volume = load_volume(wm, keep_negative=True)
    mask = load_mask(mask_file, volume)
    shares = [gather(load_volume(path).data, mask) for path in fractions]
    return FibreField(gather(volume.data, mask), np.stack(shares, axis=1), mask, volume.affine)


def tracking(brain: Brain) -> Values:
    """Return streamlines a second and peak memory of the stage, and streamlines a second of iFOD2."""
    measured = _alone(partial(_tracked, brain.results, brain.keep, brain.select, "auto", brain.threads))
    found = count_trx(brain.keep / "tractogram.trx") / measured.pop("seconds")
    values: Values = {"prob": {"lines_per_second": found, **measured}}
    if shutil.which("tckgen"):
        lines, seconds = tckgen(brain.field, brain.tckgen, algorithm="iFOD2")
        values["iFOD2"] = {"lines_per_second": len(lines) / seconds}
    return values


def weights(brain: Brain) -> Values:
    """Return what it costs to weigh the streamlines of `tracking`."""
    with tempfile.TemporaryDirectory(dir=brain.keep) as folder:
        return {"weights": _alone(partial(_weighed, fixels_of(brain.field), brain.keep, Path(folder), brain.threads))}


def connectomes(brain: Brain) -> Values:
    """Return what it costs to connect the streamlines of `tracking` with ten parcellations."""
    with tempfile.TemporaryDirectory(dir=brain.keep) as name:
        folder = Path(name)
        images = [_parcellation(brain.field, folder / f"p{n}.nii.gz", n) for n in range(_PARCELLATIONS)]
        return {"connectomes": _alone(partial(_connected, brain.keep, images, brain.file("param-vfwm_dwimap"), folder))}


def anatomy(brain: Brain) -> Values:
    """Return how some streamlines obey the tissues of the tensor, with anatomy and without."""
    scan = heldout.read_scan(brain.scan)
    tissue = {name: np.zeros(scan.mask.shape, bool) for name in ("white matter", "CSF")}
    for name, image in tissue.items():
        image[scan.mask] = counts.tissues(fit_tensor(scan.signal[scan.mask], scan.gradients))[name]
    values = {}
    for act, method in (("auto", "prob"), ("off", "prob, no anatomy")):
        with tempfile.TemporaryDirectory() as folder:
            _tracked(brain.results, Path(folder), _FEW, act, brain.threads)
            values[method] = _obeyed(read_trx(Path(folder) / "tractogram.trx"), tissue, brain.field)
    return values


def _obeyed(lines: nib.streamlines.ArraySequence, tissue: dict[str, np.ndarray], field: FibreField) -> dict[str, float]:
    """Return percentages of streamlines and ends, and the correlation of the density with its mirror image."""
    voxels = np.rint(nib.affines.apply_affine(np.linalg.inv(field.affine), lines.get_data())).astype(int)
    voxels = voxels.clip(0, np.array(field.mask.shape) - 1)
    owner = np.repeat(np.arange(len(lines)), lines._lengths)
    wet = np.unique(owner[tissue["CSF"][tuple(voxels.T)]])
    ends = np.concatenate([lines._offsets, lines._offsets + lines._lengths - 1])
    white = tissue["white matter"][tuple(voxels[ends].T)]
    density = track_density(lines, field.affine, field.mask.shape)
    return {
        "through_fluid": 100 * len(wet) / len(lines),
        "ends_in_white": 100 * float(white.mean()),
        "symmetry": _symmetry(density, field),
    }


def _symmetry(density: np.ndarray, field: FibreField) -> float:
    """Return the correlation of a density in the mask with its image mirrored where the mask is most alike to its own."""
    axis = int(np.flatnonzero(nib.io_orientation(field.affine)[:, 0] == 0)[0])
    mirrored = np.flip(field.mask, axis)
    shift = max(range(-10, 11), key=lambda by: (np.roll(mirrored, by, axis) & field.mask).sum())
    smooth = gaussian_filter(density, _SMOOTH)
    both = np.roll(mirrored, shift, axis) & field.mask
    return float(np.corrcoef(smooth[both], np.roll(np.flip(smooth, axis), shift, axis)[both])[0, 1])


def _alone(work: Callable[[], None]) -> dict[str, float]:
    """Return processor seconds and peak memory of work that a new process does."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_measured, work).result()


def _measured(work: Callable[[], None]) -> dict[str, float]:
    began = time.process_time()
    work()
    return {"seconds": time.process_time() - began, "peak_gb": _peak_gb()}


def _peak_gb() -> float:
    """Return the peak memory of this process; that of `resource` would hold its parent's too."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    (peak,) = (line.split()[1] for line in lines if line.startswith("VmHWM"))
    return int(peak) / 2**20


def _tracked(folder: Path, out: Path, select: int, act: str, threads: int) -> None:
    field = read_field(folder)
    np.save(out / "fod.npy", field.coefficients)
    white, grey, fluid = (next(folder.glob(f"*param-vf{name}_dwimap.nii.gz")) for name in ("wm", "gm", "csf"))
    track_image(
        files=TrackingFiles(out / "fod.npy", next(folder.glob("*desc-brain_mask.nii.gz")), white, grey, fluid),
        anatomy=None,
        options=TrackingOptions(select=select, seeds=_SEEDS, act=act, min_length=20.0),
        runtime=Runtime(device="cpu"),
        n_threads=threads,
        label="tracking",
        out_dir=out,
    )


def _weighed(fixels: Fixels, keep: Path, out: Path, threads: int) -> None:
    visits = Visits(out, fixels.density.size)
    for part in iterate_trx(keep / "tractogram.trx", _AT_ONCE):
        visits.append(lengths_in(fixels, part, n_threads=threads))
    fit_weights(visits, fixels.volumes, fixels.shares)


def _connected(keep: Path, images: list[Path], scalar: Path, out: Path) -> None:
    connect_image(
        files=ConnectomeFiles(keep / "tractogram.trx", None, None, [scalar], images, []),
        labels=[image.name.split(".")[0] for image in images],
        table_labels=[],
        map_names=["vfwm"],
        radius=TractogramOptions().connectome_radius,
        n_threads=1,
        out_dir=out,
    )


def _parcellation(field: FibreField, path: Path, seed: int) -> Path:
    """Write the voxels with little white matter by the nearest of some of them, drawn at random."""
    grey = np.argwhere(field.mask)[field.white < 0.5]
    centres = grey[np.random.default_rng(seed).choice(len(grey), _REGIONS, replace=False)]
    labels = np.zeros(field.mask.shape, dtype=np.int16)
    labels[tuple(grey.T)] = cKDTree(centres).query(grey)[1] + 1
    nib.save(nib.Nifti1Image(labels, field.affine), path)
    return path


_MEASURES: dict[str, Callable[[Brain], Values]] = {
    "tracking": tracking,
    "weights": weights,
    "connectomes": connectomes,
    "anatomy": anatomy,
}


def _options() -> argparse.Namespace:
    parser = results.command(__doc__, threads=2)
    parser.add_argument("results", type=Path)
    parser.add_argument("scan", type=Path)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--select", type=int, default=1_000_000, help="streamlines")
    parser.add_argument("--tckgen", type=int, default=1000, help="streamlines of iFOD2")
    parser.add_argument("--keep", type=Path)
    return results.parse(parser)


if __name__ == "__main__":
    sys.exit(main())
