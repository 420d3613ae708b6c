"""Pictures of the streamlines and of their density."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from numpy.typing import ArrayLike

from shd_bids.report.figures.shared import grey_image, percentile, save, show_grey, show_maps, slices_row
from shd_bids.report.glyphs import cut_to_segments, draw_outline, draw_segments
from shd_bids.report.view import FONT, Cut, Row, gallery, note_empty, show_slice, slice_of, world_view

MAX_STREAMLINES = 4000
MAX_SEGMENTS = 90_000
SLAB_MM = 4.0  # half thickness of the slabs in which streamlines are seen against the anatomy


def plot_streamlines(
    out_file: Path,
    *,
    streamlines: Sequence[np.ndarray],
    affine: ArrayLike,
    mask: np.ndarray,
    background: np.ndarray | None = None,
) -> Path:
    """Draw a thinned tractogram in three projections and in thin slabs, coloured by direction, near over far.

    Parameters
    ----------
    out_file : Path
        PNG to write.
    streamlines : sequence of array, shape (points, 3)
        World mm (RAS+).
    affine : array, shape (4, 4)
        Voxel to world mm.
    mask : bool array, shape (x, y, z)
        Drawn as an outline.
    background : array, shape (x, y, z), optional
        Grey image under the slabs (mean b=0).

    Returns
    -------
    Path
        ``out_file``.
    """
    mask = np.asarray(mask, bool)
    view = world_view(mask.shape, affine, mask)
    planes, cuts = view.planes(), view.cuts()
    segments, colours = cut_to_segments(view, streamlines, n_streamlines=MAX_STREAMLINES, n_segments=MAX_SEGMENTS)
    shown = min(len(streamlines), MAX_STREAMLINES)
    half = max(SLAB_MM, 0.75 * float(view.zooms.max()))
    rows = [
        Row([view.aspect(plane) for plane in planes], title=f"Streamlines ({shown:,} drawn)", max_height=6.0),
        slices_row(view, cuts, f"Streamlines within {half:.0f} mm of a slice"),
    ]
    with rc_context(FONT):
        figure, axes = gallery(rows)
        inside = view.volume(mask)
        for ax, plane in zip(axes[0], planes, strict=True):
            show_slice(ax, view, Cut(plane, 0), None)
            draw_outline(ax, view, plane, _projected(inside, plane.axis), colour="#7b8794", width=0.8)
            draw_segments(ax, plane, segments, colours, width=0.6)
            if not len(segments):
                note_empty(ax, "no streamlines")
        grey = np.zeros(view.shape) if background is None else grey_image(view.volume(background), inside)
        for ax, cut in zip(axes[1], cuts, strict=True):
            show_grey(ax, view, cut, grey, brightness=0.6)
            draw_outline(ax, view, cut.plane, slice_of(inside, cut), colour="#7b8794", width=0.8)
            away = np.abs(segments[:, :, cut.plane.axis].mean(axis=1) - (cut.index + 0.5) * view.zooms[cut.plane.axis])
            draw_segments(ax, cut.plane, segments[away < half], colours[away < half], width=1.0)
        return save(figure, out_file)


def plot_tdi(out_file: Path, *, density: np.ndarray, affine: ArrayLike, mask: np.ndarray | None = None) -> Path:
    """Draw the number of streamlines per voxel: slices and maximum projections on a logarithmic scale.

    Parameters
    ----------
    out_file : Path
        PNG to write.
    density : array, shape (x, y, z)
        Visits per voxel.
    affine : array, shape (4, 4)
        Voxel to world mm.
    mask : bool array, shape (x, y, z), optional
        What the view is cropped to; the visited voxels otherwise.

    Returns
    -------
    Path
        ``out_file``.
    """
    density = np.nan_to_num(np.asarray(density, float))
    view = world_view(density.shape, affine, density > 0 if mask is None else np.asarray(mask, bool))
    cuts, planes = view.cuts(), view.planes()
    projections = [Cut(plane, 0) for plane in planes]
    rows = [
        slices_row(view, cuts, "Streamlines per voxel", max_height=4.2, margin_right=0.9),
        slices_row(view, projections, "Maximum along the line of sight", max_height=4.2, margin_right=0.9),
    ]
    colours = colormaps["inferno"].with_extremes(under="black", bad="black")
    palette = ScalarMappable(LogNorm(1, max(10.0, percentile(density, 99.8))), colours)
    with rc_context(FONT):
        figure, axes = gallery(rows)
        volume = view.volume(density)
        slices = [slice_of(volume, cut) for cut in cuts]
        show_maps(axes[0], view, cuts, slices, palette=palette, label="streamlines")
        images = [_projected(volume, plane.axis) for plane in planes]
        show_maps(axes[1], view, projections, images, palette=palette, label="streamlines")
        if not density.any():
            note_empty(axes[0][0], "no streamlines")
        return save(figure, out_file)


def _projected(volume: np.ndarray, axis: int) -> np.ndarray:
    """Return the maximum along an axis of the view as an image, shape (up, right)."""
    return np.max(volume, axis=axis).T
