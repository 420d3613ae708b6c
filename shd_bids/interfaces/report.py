"""Figures of the report: each stage's files in, one picture out; a picture that fails costs nothing but itself."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, fields
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nipype.interfaces.base import File, TraitedSpec

from shd_bids.interfaces.base import StageInputSpec, StageInterface, read_json
from shd_bids.response import TISSUES

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "DrawConnectome",
    "DrawFOD",
    "DrawFODView",
    "DrawGradients",
    "DrawMask",
    "DrawPeaks",
    "DrawPeaksView",
    "DrawResidual",
    "DrawResponse",
    "DrawStreamlines",
    "DrawTDI",
    "DrawThumbnail",
    "DrawTissue",
    "DrawTracksView",
    "DrawTraining",
    "FigureInterface",
]

logger = logging.getLogger(__name__)


def draw_gradients(*, gradients_file: Path, facts_file: Path, out_dir: Path) -> Path:
    """Draw the table and the result of its test against the data."""
    import numpy as np

    from shd_bids.gradients.table import GradientTable
    from shd_bids.report.figures import plot_gradients

    table = GradientTable.from_dict(read_json(gradients_file))
    check = read_json(facts_file)["orientation_check"]
    scores = [(row["label"], np.array(row["matrix"]), row["score"]) for row in check["scores"]] if check else []
    return plot_gradients(
        out_dir / "gradients.png",
        bvals=table.bvals,
        directions=table.directions,
        shell_index=table.shell_index,
        scores=scores,
    )


def draw_mask(*, b0_file: Path, mask_file: Path, out_dir: Path) -> Path:
    """Draw the mask over the mean b=0 image."""
    from shd_bids.images import load_mask, load_volume
    from shd_bids.report.figures import plot_mask

    b0 = load_volume(b0_file)
    return plot_mask(out_dir / "mask.png", b0=b0.data, mask=load_mask(mask_file, b0), affine=b0.affine)


def draw_response(
    *, gradients_file: Path, facts_file: Path, voxels_file: Path | None, b0_file: Path, mask_file: Path, out_dir: Path
) -> Path:
    """Draw the responses and the voxels they come from."""
    import numpy as np

    from shd_bids.images import load_mask, load_volume
    from shd_bids.report.figures import plot_response

    b0 = load_volume(b0_file)
    bvalues = [shell["bvalue"] for shell in read_json(gradients_file)["shells"]]
    coefficients = read_json(facts_file)["sidecar"]["response"]
    labels = load_volume(voxels_file).data if voxels_file else None
    return plot_response(
        out_dir / "response.png",
        responses={tissue: (bvalues, np.array(rows)) for tissue, rows in coefficients.items()},
        voxels=None if labels is None else {tissue: labels == n for n, tissue in enumerate(TISSUES, start=1)},
        b0=b0.data,
        mask=load_mask(mask_file, b0),
        affine=b0.affine,
    )


def draw_fod(*, fod_file: Path, mask_file: Path, b0_file: Path, out_dir: Path) -> Path:
    """Draw the fODFs."""
    import numpy as np

    from shd_bids.images import load_mask, load_volume
    from shd_bids.report.figures import plot_fod

    b0 = load_volume(b0_file)
    return plot_fod(
        out_dir / "fodf.png",
        coefficients=np.load(fod_file, mmap_mode="r"),
        mask=load_mask(mask_file, b0),
        affine=b0.affine,
        background=b0.data,
    )


def draw_thumbnail(*, fod_file: Path, mask_file: Path, out_dir: Path) -> Path:
    """Draw the small picture for the page of the study."""
    import numpy as np

    from shd_bids.images import load_mask, load_volume
    from shd_bids.report.figures import plot_thumbnail

    reference = load_volume(mask_file)
    return plot_thumbnail(
        out_dir / "thumbnail.webp",
        coefficients=np.load(fod_file, mmap_mode="r"),
        mask=load_mask(mask_file, reference),
        affine=reference.affine,
    )


def draw_tissue(*, vfwm_file: Path, vfgm_file: Path, vfcsf_file: Path, mask_file: Path, out_dir: Path) -> Path:
    """Draw the tissue fractions."""
    import numpy as np

    from shd_bids.images import gather, load_mask, load_volume
    from shd_bids.report.figures import plot_tissue

    volumes = [load_volume(path) for path in (vfwm_file, vfgm_file, vfcsf_file)]
    mask = load_mask(mask_file, volumes[0])
    fractions = np.stack([gather(volume.data, mask) for volume in volumes], axis=1)  # (n, 3)
    return plot_tissue(out_dir / "tissue.png", fractions=fractions, mask=mask, affine=volumes[0].affine)


def draw_residual(
    *, rsquared_file: Path, residualstd_file: Path, facts_file: Path, mask_file: Path, out_dir: Path
) -> Path:
    """Draw how well the signal is explained."""
    from shd_bids.images import gather, load_mask, load_volume
    from shd_bids.report.figures import plot_residual

    facts = read_json(facts_file)
    r_squared = load_volume(rsquared_file, keep_negative=True)
    mask = load_mask(mask_file, r_squared)
    return plot_residual(
        out_dir / "residual.png",
        r_squared=gather(r_squared.data, mask),
        residual_std=gather(load_volume(residualstd_file).data, mask),
        mask=mask,
        affine=r_squared.affine,
        shell_residuals=facts["shell_residuals"],
        volume_residuals=facts["volume_residuals"],
    )


def draw_training(*, facts_file: Path, out_dir: Path) -> Path:
    """Draw the course of an adaptation to the subject."""
    from shd_bids.report.figures import plot_training

    history = read_json(facts_file)["info"]["adaptation"]["history"]
    trained = [row for row in history if "loss" in row]
    watched = [row for row in history if "held_out" in row]
    terms = [name for name in trained[0] if name not in ("step", "held_out")]
    return plot_training(
        out_dir / "training.png",
        train={name: [row[name] for row in trained] for name in terms},
        held_out={"held-out directions": [row["held_out"] for row in watched]},
        train_steps=[row["step"] for row in trained],
        held_out_steps=[row["step"] for row in watched],
    )


def draw_peaks(*, peaks_file: Path, mask_file: Path, b0_file: Path, out_dir: Path) -> Path:
    """Draw the peaks as sticks."""
    import numpy as np

    from shd_bids.images import load_mask, load_volume
    from shd_bids.report.figures import plot_peaks

    b0 = load_volume(b0_file)
    mask = load_mask(mask_file, b0)
    vectors = _vectors(peaks_file, mask)
    amplitudes = np.linalg.norm(vectors, axis=-1)
    return plot_peaks(
        out_dir / "peaks.png",
        directions=vectors / np.where(amplitudes > 0, amplitudes, 1)[..., None],
        amplitudes=amplitudes,
        mask=mask,
        affine=b0.affine,
        background=b0.data,
    )


def draw_streamlines(*, preview_file: Path, mask_file: Path, b0_file: Path, out_dir: Path) -> Path:
    """Draw some of the streamlines, over the mean b=0 image."""
    from shd_bids.images import load_mask, load_volume
    from shd_bids.report.figures import plot_streamlines

    b0 = load_volume(b0_file)
    return plot_streamlines(
        out_dir / "tractogram.png",
        streamlines=_streamlines(preview_file),
        affine=b0.affine,
        mask=load_mask(mask_file, b0),
        background=b0.data,
    )


def draw_tdi(*, tdi_file: Path, mask_file: Path, out_dir: Path) -> Path:
    """Draw the density of the streamlines."""
    from shd_bids.images import load_mask, load_volume
    from shd_bids.report.figures import plot_tdi

    density = load_volume(tdi_file)
    mask = load_mask(mask_file, density)
    return plot_tdi(out_dir / "tdi.png", density=density.data, affine=density.affine, mask=mask)


@dataclass(frozen=True)
class FODViewFiles:
    """fODFs and signals as `fit_image` keeps them, maps of tissues and quality, mask and mean b=0 image."""

    fod_file: Path
    signal_file: Path
    vfwm_file: Path
    vfgm_file: Path
    vfcsf_file: Path
    rsquared_file: Path
    residualstd_file: Path
    misfit_file: Path
    mask_file: Path
    b0_file: Path


def draw_fod_view(*, files: FODViewFiles, out_dir: Path) -> Path:
    """Collect fODFs, tissues, quality, and measured and predicted signal for the interactive view."""
    import numpy as np

    from shd_bids.images import gather, load_mask, load_volume
    from shd_bids.report.figures import Ground, save_fod_scene

    b0 = load_volume(files.b0_file)
    mask = load_mask(files.mask_file, b0)

    def values(path: Path) -> np.ndarray:
        return gather(load_volume(path, keep_negative=True).data, mask)

    with np.load(files.signal_file) as stored:
        signals = dict(
            zip(stored["names"].tolist(), zip(stored["measured"], stored["predicted"], strict=True), strict=True)
        )
    quality = {"rsquared": files.rsquared_file, "residualstd": files.residualstd_file, "misfit": files.misfit_file}
    fractions = (files.vfwm_file, files.vfgm_file, files.vfcsf_file)
    return save_fod_scene(
        out_dir / "fodview.json",
        ground=Ground(mask, b0.affine),
        b0=b0.data,
        coefficients=np.load(files.fod_file, mmap_mode="r"),
        fractions=np.stack([values(path) for path in fractions], axis=1),  # (n, 3)
        quality={name: values(path) for name, path in quality.items()},
        signals=signals,
    )


def draw_peaks_view(
    *, peaks_file: Path, dec_file: Path, nufo_file: Path, afdtotal_file: Path, mask_file: Path, out_dir: Path
) -> Path:
    """Collect peaks and the maps beside them for the interactive view."""
    from shd_bids.images import gather, load_mask, load_volume
    from shd_bids.report.figures import Ground, save_peaks_scene

    counts = load_volume(nufo_file)
    mask = load_mask(mask_file, counts)
    return save_peaks_scene(
        out_dir / "peaksview.json",
        ground=Ground(mask, counts.affine),
        vectors=_vectors(peaks_file, mask),
        colours=gather(load_volume(dec_file).data, mask),
        counts=gather(counts.data, mask),
        density=gather(load_volume(afdtotal_file, keep_negative=True).data, mask),
    )


def draw_tracks_view(*, preview_file: Path, tdi_file: Path, mask_file: Path, out_dir: Path) -> Path:
    """Collect streamlines and their density for the interactive view."""
    from shd_bids.images import load_mask, load_volume
    from shd_bids.report.figures import Ground, save_tracks_scene

    density = load_volume(tdi_file)
    return save_tracks_scene(
        out_dir / "tracksview.json",
        ground=Ground(load_mask(mask_file, density), density.affine),
        streamlines=_streamlines(preview_file),
        density=density.data,
    )


def _vectors(peaks_file: Path, mask: "np.ndarray") -> "np.ndarray":
    """Return the peaks of the voxels of a mask, shape (n, K, 3)."""
    from shd_bids.images import gather, load_volume

    vectors = gather(load_volume(peaks_file, keep_negative=True).data, mask)
    return vectors.reshape(len(vectors), -1, 3)


def _streamlines(preview_file: Path) -> list["np.ndarray"]:
    """Return the streamlines that tracking kept for the report, (points, 3) mm each."""
    import numpy as np

    with np.load(preview_file) as preview:
        return np.split(preview["points"], np.cumsum(preview["counts"])[:-1])


def draw_connectome(*, matrices_file: Path, out_dir: Path) -> Path:
    """Draw the matrix of each parcellation."""
    import numpy as np

    from shd_bids.report.figures import plot_connectomes

    with np.load(matrices_file) as matrices:
        return plot_connectomes(out_dir / "connectome.png", matrices=dict(matrices))


class _FigureOutputSpec(TraitedSpec):
    figure_file = File(exists=True, desc="PNG; absent when it could not be drawn")


class FigureInterface(StageInterface):
    """Call one drawing function, which returns its file; what it raises is logged and stops nothing."""

    output_spec = _FigureOutputSpec

    def _run_interface(self, runtime: Any) -> Any:
        try:
            self._results["figure_file"] = str(type(self).function(**self._arguments(), out_dir=Path(runtime.cwd)))
        except Exception as exception:
            logger.warning(
                "%s: the figure %s could not be drawn (%s: %s)",
                self.inputs.series,
                self.inputs.stage,
                type(exception).__name__,
                exception,
            )
            logger.debug("traceback of the figure", exc_info=True)
        return runtime


def _interface(name: str, function: Callable[..., Path], *, files_type: type | None = None) -> type[FigureInterface]:
    """Return the interface of a drawing function: a file for each argument, or field of its argument ``files``.

    It may be absent if it may be None.
    """
    if files_type is None:
        arguments = {key: value.annotation for key, value in signature(function).parameters.items() if key != "out_dir"}
    else:
        arguments = {field.name: field.type for field in fields(files_type)}
    files = {key: File(exists=True, mandatory=kind is Path) for key, kind in arguments.items()}
    place = {"__module__": __name__, "__qualname__": f"{name}.input_spec"}  # where pickle looks for it
    spec = type(f"{name}InputSpec", (StageInputSpec,), files | place)
    own = {"__doc__": function.__doc__, "__module__": __name__, "input_spec": spec, "function": staticmethod(function)}
    own["files_type"] = files_type
    return type(name, (FigureInterface,), own)


DrawGradients = _interface("DrawGradients", draw_gradients)
DrawMask = _interface("DrawMask", draw_mask)
DrawResponse = _interface("DrawResponse", draw_response)
DrawFOD = _interface("DrawFOD", draw_fod)
DrawThumbnail = _interface("DrawThumbnail", draw_thumbnail)
DrawFODView = _interface("DrawFODView", draw_fod_view, files_type=FODViewFiles)
DrawPeaksView = _interface("DrawPeaksView", draw_peaks_view)
DrawTracksView = _interface("DrawTracksView", draw_tracks_view)
DrawTissue = _interface("DrawTissue", draw_tissue)
DrawResidual = _interface("DrawResidual", draw_residual)
DrawTraining = _interface("DrawTraining", draw_training)
DrawPeaks = _interface("DrawPeaks", draw_peaks)
DrawStreamlines = _interface("DrawStreamlines", draw_streamlines)
DrawTDI = _interface("DrawTDI", draw_tdi)
DrawConnectome = _interface("DrawConnectome", draw_connectome)
