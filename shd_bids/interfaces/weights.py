"""Weights of streamlines and the density that they give."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nipype.interfaces.base import File

from shd_bids.interfaces.base import StageInputSpec, StageInterface, StageOutputSpec, log_progress, qc_column
from shd_bids.interfaces.tractography import save_density

if TYPE_CHECKING:
    from shd_bids.images import Volume
    from shd_bids.tractography.fixels import Fixels
    from shd_bids.tractography.weights import Weights

__all__ = ["WeighStreamlines"]

AT_ONCE = 20_000  # streamlines; bounds what is held of them


@dataclass(frozen=True)
class WeightFiles:
    """What weights are fitted to.

    Attributes
    ----------
    tracks_file, mask_file : Path
        TRX of `track_image`, and the mask.
    vfwm_file : Path
        WM signal fraction: how much each voxel counts.
    peaks_file, peakafd_file : Path
        Directions and fibre densities of the lobes.
    """

    tracks_file: Path
    mask_file: Path
    vfwm_file: Path
    peaks_file: Path
    peakafd_file: Path


def weigh_image(*, files: WeightFiles, n_threads: int, label: str, out_dir: Path) -> dict[str, Any]:
    """Fit one weight a streamline and write the weights and the density that they give.

    Parameters
    ----------
    files : WeightFiles
    n_threads, label : int and str
        Threads, on which results do not depend; name of the stage in progress lines.
    out_dir : Path
        Gets ``weights.npy`` and ``tdi.nii.gz``; while it runs also the lengths of the streamlines in the lobes.
    """
    import numpy as np

    from shd_bids.images import load_volume
    from shd_bids.tractography.files import count_trx, iterate_trx
    from shd_bids.tractography.visits import lengths_in
    from shd_bids.tractography.weights import Visits, fit_weights

    mask = load_volume(files.mask_file)
    fixels, progress = _fixels(files, mask), log_progress(label)
    visits, n, done = Visits(out_dir, fixels.density.size), max(count_trx(files.tracks_file), 1), 0
    for part in iterate_trx(files.tracks_file, AT_ONCE):
        visits.append(lengths_in(fixels, part, n_threads=n_threads))
        done += len(part)
        progress("following streamlines", done / n)
    fitted = fit_weights(visits, fixels.volumes, fixels.shares)
    visits.remove()
    np.save(out_dir / "weights.npy", fitted.weights)
    _save_weighted_density(files, mask, fitted, out_dir / "tdi.nii.gz")
    return {
        "streamline_weights_file": str(out_dir / "weights.npy"),
        "weighted_tdi_file": str(out_dir / "tdi.nii.gz"),
        "facts": {"sidecar": {"weights": _about(fitted)}, "qc": _qc(fitted), "updates": fitted.n_updates},
    }


def _fixels(files: WeightFiles, reference: "Volume") -> "Fixels":
    import numpy as np

    from shd_bids.images import gather, load_mask, load_volume
    from shd_bids.tractography.fixels import Fixels

    mask = load_mask(files.mask_file, reference)
    n = int(mask.sum())
    vectors = gather(load_volume(files.peaks_file, keep_negative=True).data, mask).reshape(n, -1, 3)
    density = gather(load_volume(files.peakafd_file).data, mask).reshape(n, -1)
    amplitude = np.linalg.norm(vectors, axis=-1, keepdims=True)
    directions = np.divide(vectors, amplitude, out=np.zeros_like(vectors), where=amplitude > 0)
    white = gather(load_volume(files.vfwm_file).data, mask).astype(np.float32)
    return Fixels(directions, density, white, mask, reference.affine)


def _save_weighted_density(files: WeightFiles, mask: "Volume", fitted: "Weights", path: Path) -> None:
    import numpy as np

    from shd_bids.tractography.density import track_density
    from shd_bids.tractography.files import iterate_trx

    density, first = np.zeros(mask.shape), 0
    for part in iterate_trx(files.tracks_file, AT_ONCE):
        own = fitted.weights[first : first + len(part)]
        density += track_density(part, mask.affine, mask.shape, own)
        first += len(part)
    save_density(path, density, files.mask_file)


def _about(fitted: "Weights") -> dict[str, Any]:
    """Return the sidecar block on the weights."""
    from shd_bids.tractography.weights import LEAST_TRACKED

    return {
        "StreamlineWeights": {
            "Description": "non-negative least squares to the fibre densities of the lobes (after Smith et al. 2015)",
            "ProportionalityCoefficient": fitted.mu,
            "Units": "mm2",
            "LeastTrackedShare": LEAST_TRACKED,
            "MisfitUnweighted": fitted.misfit_before,
            "Misfit": fitted.misfit,
        }
    }


def _qc(fitted: "Weights") -> dict[str, Any]:
    return {
        "weights_misfit": qc_column(fitted.misfit, "Fibre density that the weighted streamlines miss, relative", "1"),
        "weights_mu": qc_column(fitted.mu, "Cross-section of a streamline of weight one", "mm2"),
    }


class _WeighStreamlinesInputSpec(StageInputSpec):
    tracks_file = File(exists=True, mandatory=True, desc="TRX")
    mask_file = File(exists=True, mandatory=True)
    vfwm_file = File(exists=True, mandatory=True, desc="WM signal fraction")
    peaks_file = File(exists=True, mandatory=True, desc="lobes: vectors in world axes")
    peakafd_file = File(exists=True, mandatory=True, desc="fibre density of each")


class _WeighStreamlinesOutputSpec(StageOutputSpec):
    streamline_weights_file = File(exists=True, desc="array of the weights")
    weighted_tdi_file = File(exists=True, desc="sum of weights per voxel")


class WeighStreamlines(StageInterface):
    """One weight for each streamline."""

    input_spec = _WeighStreamlinesInputSpec
    output_spec = _WeighStreamlinesOutputSpec
    function = staticmethod(weigh_image)
    files_type = WeightFiles
    wants = ("n_threads", "label")
