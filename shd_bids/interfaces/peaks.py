"""Peaks of the fODF and the measures that follow from them."""

from pathlib import Path
from typing import Any

from nipype.interfaces.base import File, traits

from shd_bids.interfaces.base import StageInputSpec, StageInterface, StageOutputSpec, log_progress, qc_column

__all__ = ["FindPeaks"]


def find_image_peaks(
    *,
    fod_file: Path,
    mask_file: Path,
    vfwm_file: Path,
    vfcsf_file: Path,
    max_peaks: int,
    relative_threshold: float,
    absolute_threshold: float | None,
    min_separation: float,
    device: str,
    label: str,
    out_dir: Path,
) -> dict[str, Any]:
    """Find the fibre directions of every voxel and write them with the density maps.

    Parameters
    ----------
    fod_file : Path
        ``fod.npy`` of `fit_image`, (n, C) in the order of the mask.
    mask_file, vfwm_file, vfcsf_file : Path
        Mask and signal fractions.
    max_peaks, relative_threshold, min_separation
        As in `shd_bids.peaks.search.find_peaks`.
    device : str
        ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
    absolute_threshold : float, optional
        Smallest amplitude; from the voxels of fluid where absent.
    label : str
        Names the stage in progress lines.
    out_dir : Path
        Gets one image per map.
    """
    import numpy as np

    from shd_bids.fod.fit import choose_device
    from shd_bids.images import gather, load_mask, load_volume, save_volume, scatter
    from shd_bids.peaks.measures import afd_total, dec
    from shd_bids.peaks.search import find_peaks
    from shd_bids.peaks.threshold import noise_threshold

    where = choose_device(device)
    coefficients = np.load(fod_file)
    reference = load_volume(mask_file)
    mask = load_mask(mask_file, reference)
    fractions = {path: gather(load_volume(path).data, mask) for path in (vfwm_file, vfcsf_file)}
    is_automatic = absolute_threshold is None
    if is_automatic:
        absolute_threshold = noise_threshold(
            coefficients, fractions[vfcsf_file], wm_fraction=fractions[vfwm_file], device=where
        )
    peaks = find_peaks(
        coefficients,
        max_peaks=max_peaks,
        relative_threshold=relative_threshold,
        absolute_threshold=absolute_threshold,
        min_separation=min_separation,
        device=where,
        progress=log_progress(label),
    )
    total = afd_total(coefficients)
    maps = {
        "peaks": peaks.vectors,
        "peakamp": peaks.amplitudes,
        "nufo": peaks.n_fibres,
        "afdtotal": total,
        "afdmax": peaks.afd_max,
        "afdsum": peaks.afd_sum,
        "dec": dec(coefficients),
    }
    outputs: dict[str, Any] = {}
    for name, values in maps.items():
        path = out_dir / f"{name}.nii.gz"
        dtype = "uint8" if name == "nufo" else "float32"
        save_volume(path, scatter(values, mask), reference.affine, reference_header=reference.header, dtype=dtype)
        outputs[f"{name}_file"] = str(path)
    outputs["facts"] = {
        "sidecar": {
            "peaks": {
                "PeakRelativeThreshold": relative_threshold,
                "PeakAbsoluteThreshold": float(absolute_threshold),
                "PeakMinimumSeparation": min_separation,
                "PeakMaximumNumber": max_peaks,
            }
        },
        "is_threshold_automatic": is_automatic,
        "qc": _qc(peaks.n_fibres, total, wm=fractions[vfwm_file] > 0.7, csf=fractions[vfcsf_file] > 0.9),
    }
    return outputs


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


class _FindPeaksInputSpec(StageInputSpec):
    fod_file = File(exists=True, mandatory=True, desc="coefficients in the order of the mask")
    mask_file = File(exists=True, mandatory=True)
    vfwm_file = File(exists=True, mandatory=True, desc="WM signal fraction")
    vfcsf_file = File(exists=True, mandatory=True, desc="CSF signal fraction")
    max_peaks = traits.Int(mandatory=True)
    relative_threshold = traits.Float(mandatory=True)
    absolute_threshold = traits.Float(desc="from voxels of fluid where absent")
    min_separation = traits.Float(mandatory=True, desc="degrees")
    device = traits.Str("cpu", usedefault=True)


class _FindPeaksOutputSpec(StageOutputSpec):
    peaks_file = File(exists=True)
    peakamp_file = File(exists=True)
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
    wants = ("label",)
