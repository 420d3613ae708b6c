"""Peaks of the fODF and the measures that follow from them."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nipype.interfaces.base import File

from shd_bids.interfaces.base import (
    RuntimeInputSpec,
    StageInterface,
    StageOutputSpec,
    log_progress,
    qc_column,
    save_maps,
)
from shd_bids.options import PeakOptions, Runtime

if TYPE_CHECKING:
    import numpy as np

    from shd_bids.peaks.fibres import Fibres
    from shd_bids.peaks.rule import Rule

__all__ = ["FindPeaks"]

_SEARCHING = 0.9  # share of the time; the rest measures lobes and writes maps


@dataclass(frozen=True)
class PeakFiles:
    """What the peaks of an image are found from.

    Attributes
    ----------
    fod_file : Path
        ``fod.npy`` of `fit_image`, (n, C) in the order of the mask.
    precision_file : Path
        ``precision.npz`` of `fit_image`: errors of directions, and the least depth of saddles.
    mask_file, vfwm_file, vfcsf_file : Path
        Mask and signal fractions.
    """

    fod_file: Path
    precision_file: Path
    mask_file: Path
    vfwm_file: Path
    vfcsf_file: Path


def find_image_peaks(
    *, files: PeakFiles, options: PeakOptions, runtime: Runtime, label: str, out_dir: Path
) -> dict[str, Any]:
    """Find the fibre directions of every voxel and write them with the density maps.

    Parameters
    ----------
    files : PeakFiles
    options : PeakOptions
        Without an absolute threshold it is taken from the voxels of fluid.
    runtime : Runtime
        Its device is used.
    label : str
        Names the stage in progress lines.
    out_dir : Path
        Gets one image per map.
    """
    import numpy as np

    from shd_bids.images import gather, load_mask, load_volume
    from shd_bids.nn.backends.memory import keep_freed_memory
    from shd_bids.nn.device import choose_device
    from shd_bids.peaks.fibres import find_fibres

    keep_freed_memory()
    where = choose_device(runtime.device)
    with np.load(files.precision_file) as stored:
        errors, prominence = stored["errors"], float(stored["prominence"])
    coefficients = np.load(files.fod_file)
    reference = load_volume(files.mask_file)
    mask = load_mask(files.mask_file, reference)
    wm, csf = (gather(load_volume(path).data, mask) for path in (files.vfwm_file, files.vfcsf_file))
    fibres = find_fibres(
        coefficients,
        options,
        wm_fraction=wm,
        csf_fraction=csf,
        prominence=prominence,
        direction_errors=errors,
        device=where,
        progress=log_progress(label, until=_SEARCHING),
    )
    maps = _maps(fibres, coefficients)
    facts = {
        "sidecar": {"peaks": _thresholds(fibres.rule, options)},
        "is_threshold_automatic": options.peak_absolute_threshold is None,
        "qc": _qc(maps["nufo"], maps["afdtotal"], wm=wm > 0.7, csf=csf > 0.9),
    }
    return save_maps(maps, mask, reference, out_dir) | {"facts": facts}


def _maps(fibres: "Fibres", coefficients: "np.ndarray") -> dict[str, "np.ndarray"]:
    """Return what is stored as images, by name."""
    from shd_bids.peaks.measures import afd_total, dec

    peaks, lobes = fibres.peaks, fibres.lobes
    return {
        "peaks": peaks.vectors,
        "peakamp": peaks.amplitudes,
        "peakafd": lobes.density,
        "peakdispersion": lobes.dispersion.reshape(len(coefficients), -1),
        "peakinterval": fibres.intervals,
        "nufo": peaks.n_fibres,
        "afdtotal": afd_total(coefficients),
        "afdmax": peaks.afd_max,
        "afdsum": peaks.afd_sum,
        "dec": dec(coefficients),
    }


def _thresholds(rule: "Rule", options: PeakOptions) -> dict[str, Any]:
    """Return the sidecar keys on the peaks that were kept."""
    return {
        "PeakRelativeThreshold": rule.relative_threshold,
        "PeakAbsoluteThreshold": float(rule.absolute_threshold),
        "PeakMinimumSeparation": rule.min_separation,
        "PeakMinimumProminence": rule.prominence,
        "PeakMaximumInterval": options.peak_interval,
        "PeakMaximumNumber": rule.max_peaks,
    }


def _qc(n_fibres: Any, total: Any, *, wm: Any, csf: Any) -> dict[str, Any]:
    """Return the columns on fibres and densities; a tissue without voxels has no number."""
    import numpy as np

    def over(values: Any, where: Any, reduce: Any) -> float | None:
        return float(reduce(values[where])) if where.any() else None

    return {
        "nufo_mean": qc_column(
            over(n_fibres, wm, np.mean), "Mean number of fibre orientations where WM exceeds 70 %", "1"
        ),
        "afd_total_wm_median": qc_column(
            over(total, wm, np.median), "Median total apparent fibre density where WM exceeds 70 %"
        ),
        "afd_total_csf_median": qc_column(
            over(total, csf, np.median), "Median total apparent fibre density where CSF exceeds 90 %"
        ),
    }


class _FindPeaksInputSpec(RuntimeInputSpec):
    fod_file = File(exists=True, mandatory=True, desc="coefficients in the order of the mask")
    precision_file = File(exists=True, mandatory=True, desc="how precisely directions are known")
    mask_file = File(exists=True, mandatory=True)
    vfwm_file = File(exists=True, mandatory=True, desc="WM signal fraction")
    vfcsf_file = File(exists=True, mandatory=True, desc="CSF signal fraction")


class _FindPeaksOutputSpec(StageOutputSpec):
    peaks_file = File(exists=True)
    peakamp_file = File(exists=True)
    peakafd_file = File(exists=True)
    peakdispersion_file = File(exists=True)
    peakinterval_file = File(exists=True)
    nufo_file = File(exists=True)
    afdtotal_file = File(exists=True)
    afdmax_file = File(exists=True)
    afdsum_file = File(exists=True)
    dec_file = File(exists=True)


class FindPeaks(StageInterface):
    """Fibre directions and densities of every voxel."""

    input_spec = _FindPeaksInputSpec
    output_spec = _FindPeaksOutputSpec
    function = staticmethod(find_image_peaks)
    options_type = PeakOptions
    files_type = PeakFiles
    wants = ("label",)
