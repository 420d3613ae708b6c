"""Pieces of the interactive view, one for each stage: arrays in, one JSON out."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from shd_bids.files import write_text
from shd_bids.report.figures.shared import grey_image, in_view, mask_numbers, percentile
from shd_bids.report.scene import ViewMap, grid, pack_glyphs, pack_map, pack_peaks, pack_signal, pack_streamlines
from shd_bids.report.view import WorldView, world_view


@dataclass(frozen=True, eq=False)
class Ground:
    """The grid that the pieces of a series share.

    Attributes
    ----------
    mask : bool array, shape (x, y, z)
    affine : array, shape (4, 4)
        Voxel to world mm.
    """

    mask: np.ndarray
    affine: np.ndarray

    @cached_property
    def view(self) -> WorldView:
        """The grid turned to world axes and cropped to the mask."""
        return world_view(self.mask.shape, self.affine, self.mask)

    @cached_property
    def numbers(self) -> np.ndarray:
        """Row of each voxel of the view in mask order, -1 outside."""
        return mask_numbers(self.view, self.mask)

    def volume(self, values: np.ndarray) -> np.ndarray:
        """Return values in mask order as a volume of the view, not finite outside of the mask."""
        return in_view(np.asarray(values, float), self.numbers, fill=np.nan)


def save_fod_scene(
    out_file: Path,
    *,
    ground: Ground,
    b0: np.ndarray,
    coefficients: np.ndarray,
    fractions: np.ndarray,
    quality: Mapping[str, np.ndarray],
    signals: Mapping[str, tuple[np.ndarray, np.ndarray]],
) -> Path:
    """Write mean b=0 image, tissues, quality, fODFs, and signals measured and predicted.

    Parameters
    ----------
    out_file : Path
        JSON to write.
    ground : Ground
    b0 : array, shape (x, y, z)
        In storage order.
    coefficients : array, shape (n, C)
        SH coefficients in mask order, basis of MRtrix3, world axes; may be a memory map.
    fractions : array, shape (n, 3)
        White matter, grey matter, CSF.
    quality : mapping
        ``rsquared``, ``misfit`` and ``residualstd``, (n,) each.
    signals : mapping name -> (measured (n,), predicted (n,))
        Of single volumes.

    Returns
    -------
    Path
        ``out_file``.
    """
    view = ground.view
    grey = grey_image(view.volume(b0), ground.numbers >= 0)
    residual = np.asarray(quality["residualstd"], float)
    maps = [
        ViewMap("Mean b = 0 image", grey, unit="of the 99th percentile"),
        ViewMap("Tissues: CSF red, grey matter green, white matter blue", ground.volume(fractions[:, ::-1])),
        ViewMap("R² of the predicted signal", ground.volume(quality["rsquared"]), palette="viridis"),
        ViewMap(
            "Misfit: residual over noise and model error", ground.volume(quality["misfit"]), 0.0, 4.0, palette="magma"
        ),
        ViewMap(
            "Residual", ground.volume(residual), 0.0, percentile(residual, 98), unit="of the input", palette="magma"
        ),
    ]
    return _save(
        out_file,
        ground,
        maps,
        glyphs=pack_glyphs(view, coefficients, ground.numbers),
        signals=[
            pack_signal(name, ground.volume(measured), ground.volume(predicted))
            for name, (measured, predicted) in signals.items()
        ],
    )


def save_peaks_scene(
    out_file: Path,
    *,
    ground: Ground,
    vectors: np.ndarray,
    colours: np.ndarray,
    counts: np.ndarray,
    density: np.ndarray,
) -> Path:
    """Write peaks, direction-encoded colour, number of fibres and apparent fibre density.

    Parameters
    ----------
    out_file : Path
        JSON to write.
    ground : Ground
    vectors : array, shape (n, K, 3)
        In mask order, world axes, of the amplitude's length.
    colours : array, shape (n, 3)
        Direction-encoded colour.
    counts, density : array, shape (n,)
        Number of fibres; total apparent fibre density.

    Returns
    -------
    Path
        ``out_file``.
    """
    top = percentile(np.linalg.norm(colours, axis=1), 97)
    maps = [
        ViewMap("Fibre directions", ground.volume(np.clip(colours / top, 0, 1))),
        ViewMap(
            "Fibres in a voxel", ground.volume(counts), 0.0, max(3.0, float(counts.max(initial=0))), palette="viridis"
        ),
        ViewMap(
            "Total apparent fibre density", ground.volume(density), 0.0, percentile(density, 99), palette="viridis"
        ),
    ]
    return _save(out_file, ground, maps, peaks=pack_peaks(ground.view, vectors, ground.numbers))


def save_tracks_scene(
    out_file: Path, *, ground: Ground, streamlines: Sequence[np.ndarray], density: np.ndarray
) -> Path:
    """Write some streamlines and the density of all.

    Parameters
    ----------
    out_file : Path
        JSON to write.
    ground : Ground
    streamlines : sequence of array, shape (points, 3)
        World mm.
    density : array, shape (x, y, z)
        Streamlines per voxel, in storage order.

    Returns
    -------
    Path
        ``out_file``.
    """
    values = ground.view.volume(np.asarray(density, float))
    visits = ViewMap("Streamlines in a voxel", values, 0.0, percentile(values, 99), palette="magma")
    return _save(out_file, ground, [visits], streamlines=pack_streamlines(ground.view, streamlines))


def _save(out_file: Path, ground: Ground, maps: Sequence[ViewMap], **parts: Any) -> Path:
    piece = {"grid": grid(ground.view), "maps": [pack_map(shown) for shown in maps], **parts}
    write_text(out_file, json.dumps(piece, separators=(",", ":"), allow_nan=False))
    return out_file
