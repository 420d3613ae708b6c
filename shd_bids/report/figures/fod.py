"""Pictures of the fit: fODFs, their peaks, tissues, residual, and the course of an adaptation."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike

from shd_bids.boxes import chunks
from shd_bids.report.curves import draw_courses, draw_shell_residuals, draw_volume_residuals
from shd_bids.report.facts import TISSUE_NAMES
from shd_bids.report.figures.shared import (
    CURVE_PADDING,
    grey_image,
    in_view,
    mask_numbers,
    percentile,
    save,
    show_grey,
    show_maps,
    slices_row,
)
from shd_bids.report.glyphs import Window, dec_image, draw_glyphs, draw_sticks
from shd_bids.report.view import (
    FONT,
    Cut,
    Row,
    WorldView,
    colour_bar,
    gallery,
    note_empty,
    show_slice,
    slice_of,
    world_view,
)

WINDOW = 20  # voxels along a glyph window: 20 x 20 x 3 planes stays below 2000 glyphs


def plot_fod(
    out_file: Path,
    *,
    coefficients: np.ndarray,
    mask: np.ndarray,
    affine: ArrayLike,
    background: np.ndarray | None = None,
) -> Path:
    """Draw the fODF: direction-encoded colour in three planes, and its surfaces in a window of each.

    Parameters
    ----------
    out_file : Path
        PNG to write.
    coefficients : array, shape (n, C)
        SH coefficients in mask order, basis of MRtrix3, world axes; may be a memory map.
    mask : bool array, shape (x, y, z)
    affine : array, shape (4, 4)
        Voxel to world mm.
    background : array, shape (x, y, z), optional
        Grey image under the surfaces (mean b=0).

    Returns
    -------
    Path
        ``out_file``.
    """
    mask = np.asarray(mask, bool)
    view = world_view(mask.shape, affine, mask)
    numbers = mask_numbers(view, mask)
    anisotropy = in_view(np.linalg.norm(np.nan_to_num(coefficients[:, 1:6]), axis=1), numbers)  # degree 2
    windows = [_busiest_window(view, cut, slice_of(anisotropy, cut)) for cut in view.cuts()]
    top = percentile(np.clip(np.nan_to_num(coefficients[:, 0]), 0, None), 97)
    with rc_context(FONT):
        figure, panels = _windowed_gallery(view, windows, "Fibre directions", "fODF surfaces")
        grey = np.zeros(view.shape) if background is None else grey_image(view.volume(background), numbers >= 0)
        for ax, zoom, cut, window in panels:
            shown = slice_of(numbers, cut)
            show_slice(ax, view, cut, dec_image(coefficients, shown, top))
            show_grey(zoom, view, cut, grey, brightness=0.45)
            _mark_window(ax, zoom, window)
            draw_glyphs(zoom, view, cut, coefficients, shown, window)
            if not (shown >= 0).any():
                note_empty(ax, "no fODF in this slice")
        return save(figure, out_file)


def plot_peaks(
    out_file: Path,
    *,
    directions: np.ndarray,
    amplitudes: np.ndarray,
    mask: np.ndarray,
    affine: ArrayLike,
    background: np.ndarray | None = None,
) -> Path:
    """Draw the peaks as sticks of their amplitude's length over a grey image, whole slices and windows of them.

    Parameters
    ----------
    out_file : Path
        PNG to write.
    directions : array, shape (n, K, 3)
        Unit, world axes, in mask order; zero where there is no peak.
    amplitudes : array, shape (n, K)
    mask : bool array, shape (x, y, z)
    affine : array, shape (4, 4)
        Voxel to world mm.
    background : array, shape (x, y, z), optional
        Grey image under the sticks; the largest amplitude when not given.

    Returns
    -------
    Path
        ``out_file``.
    """
    mask = np.asarray(mask, bool)
    view = world_view(mask.shape, affine, mask)
    numbers = mask_numbers(view, mask)
    largest = in_view(np.nan_to_num(np.asarray(amplitudes, float)).max(axis=1, initial=0), numbers)
    windows = [_busiest_window(view, cut, slice_of(largest, cut)) for cut in view.cuts()]
    scale = percentile(np.asarray(amplitudes), 95)
    with rc_context(FONT):
        figure, panels = _windowed_gallery(view, windows, "Peaks", "Peaks")
        grey = grey_image(largest if background is None else view.volume(background), numbers >= 0)
        for ax, zoom, cut, window in panels:
            shown = slice_of(numbers, cut)
            for panel, part, width in ((ax, None, 0.8), (zoom, window, 2.2)):
                show_grey(panel, view, cut, grey, brightness=0.5)
                draw_sticks(panel, view, cut, (directions, amplitudes), shown, scale=scale, width=width, window=part)
            _mark_window(ax, zoom, window)
            if not (shown >= 0).any():
                note_empty(ax, "no peaks in this slice")
        return save(figure, out_file)


def plot_tissue(out_file: Path, *, fractions: np.ndarray, mask: np.ndarray, affine: ArrayLike) -> Path:
    """Draw the signal fractions of white matter, grey matter and CSF, together in colour and one by one.

    Parameters
    ----------
    out_file : Path
        PNG to write.
    fractions : array, shape (n, 3)
        White matter, grey matter, CSF in mask order; a column of zeros is a tissue that was not fitted.
    mask : bool array, shape (x, y, z)
    affine : array, shape (4, 4)
        Voxel to world mm.

    Returns
    -------
    Path
        ``out_file``.
    """
    mask = np.asarray(mask, bool)
    view = world_view(mask.shape, affine, mask)
    cuts = view.cuts()
    fractions = np.clip(np.nan_to_num(np.asarray(fractions, float)), 0, 1)
    volume = in_view(fractions, mask_numbers(view, mask))
    colours = volume[..., ::-1]  # CSF red, grey matter green, white matter blue, as mrview shows them
    single = cuts[-1]
    names = list(TISSUE_NAMES.values())
    rows = [
        slices_row(view, cuts, "Together: white matter blue, grey matter green, CSF red", max_height=4.6),
        Row([view.aspect(single.plane)] * 3, title="One by one", max_height=4.2, margin_right=0.75, titles=names),
    ]
    with rc_context(FONT):
        figure, axes = gallery(rows)
        for ax, cut in zip(axes[0], cuts, strict=True):
            show_slice(ax, view, cut, slice_of(colours, cut))
        for number, ax in enumerate(axes[1]):
            if fractions[:, number].any():
                show_grey(ax, view, single, volume[..., number])
            else:
                note_empty(ax, "not fitted" if mask.any() else "the mask is empty")
        colour_bar(axes[1], ScalarMappable(Normalize(0, 1), "gray"), "signal fraction")
        return save(figure, out_file)


def plot_residual(
    out_file: Path,
    *,
    r_squared: np.ndarray,
    residual_std: np.ndarray,
    mask: np.ndarray,
    affine: ArrayLike,
    shell_residuals: Mapping[str, ArrayLike] | None = None,
    volume_residuals: ArrayLike | None = None,
) -> Path:
    """Draw how well the signal is explained: maps of R2 and residual, residuals by shell, the worst volumes.

    Parameters
    ----------
    out_file : Path
        PNG to write.
    r_squared, residual_std : array, shape (n,)
        In mask order; the residual in units of the input.
    mask : bool array, shape (x, y, z)
    affine : array, shape (4, 4)
        Voxel to world mm.
    shell_residuals : mapping label -> array, shape (n,), or float, optional
        Residual standard deviation by shell: voxel values are drawn as histograms, single numbers as bars.
    volume_residuals : array, shape (N,), optional
        Residual standard deviation by volume.

    Returns
    -------
    Path
        ``out_file``.
    """
    mask = np.asarray(mask, bool)
    r_squared, residual_std = np.asarray(r_squared, float), np.asarray(residual_std, float)
    volumes = np.asarray([] if volume_residuals is None else volume_residuals, float)
    view = world_view(mask.shape, affine, mask)
    cuts, numbers = view.cuts(), mask_numbers(view, mask)
    titles = ["Residual by shell", "Residual by volume"][: 2 if volumes.size else 1]
    rows = [
        slices_row(view, cuts, "R² of the predicted signal", max_height=3.6, margin_right=0.9),
        slices_row(view, cuts, "Residual standard deviation, units of the input", max_height=3.6, margin_right=0.9),
        Row([5.2 / len(titles)] * len(titles), padding=CURVE_PADDING, titles=titles),
    ]
    with rc_context(FONT):
        figure, axes = gallery(rows)
        maps = (
            (r_squared, "viridis", Normalize(0, 1), "R²"),
            (residual_std, "magma", Normalize(0, percentile(residual_std, 98)), "residual"),
        )
        for row_axes, (values, colours, norm, label) in zip(axes, maps, strict=False):
            volume = in_view(values, numbers, fill=np.nan)
            images = [slice_of(volume, cut) for cut in cuts]
            show_maps(row_axes, view, cuts, images, palette=ScalarMappable(norm, colours), label=label)
            if not mask.any():
                note_empty(row_axes[0], "the mask is empty")
        draw_shell_residuals(axes[2][0], shell_residuals or {"all shells": residual_std})
        if volumes.size:
            draw_volume_residuals(axes[2][1], volumes)
        return save(figure, out_file)


def plot_training(
    out_file: Path,
    *,
    train: Mapping[str, Sequence[float]],
    held_out: Mapping[str, Sequence[float]] | None = None,
    train_steps: Sequence[float] | None = None,
    held_out_steps: Sequence[float] | None = None,
) -> Path:
    """Draw the loss and its terms by training step, on the training data and on the held-out part.

    Parameters
    ----------
    out_file : Path
        PNG to write.
    train, held_out : mapping term -> sequence of float
        Values of each term.
    train_steps, held_out_steps : sequence of float, optional
        Steps of the values; spread evenly over the longest course when not given.

    Returns
    -------
    Path
        ``out_file``.
    """
    sources = (("training", train, train_steps, "#3d7fd9"), ("held out", held_out or {}, held_out_steps, "#e8590c"))
    terms = list(dict.fromkeys(term for _, values, _, _ in sources for term in values)) or ["loss"]
    last = max((len(course) for _, values, _, _ in sources for course in values.values()), default=1)
    n_columns = min(len(terms), 3)
    lines = [terms[part] for part in chunks(len(terms), n_columns)]
    aspect, height = (4.9 / n_columns, 2.6) if n_columns > 1 else (3.2, 3.0)
    rows = [
        Row(
            [aspect] * n_columns,
            max_height=height,
            padding=CURVE_PADDING,
            titles=[*line, *[""] * n_columns][:n_columns],
        )
        for line in lines
    ]
    with rc_context(FONT):
        figure, axes = gallery(rows)
        panels = [ax for row in axes for ax in row]
        for ax, term in zip(panels, terms, strict=False):
            courses = {}
            for label, values, steps, colour in sources:
                course = np.asarray(values.get(term, ()), float)
                if course.size:
                    given = np.linspace(last / course.size, last, course.size) if steps is None else np.asarray(steps)
                    courses[label] = (given[: course.size], course, colour)
            draw_courses(ax, courses)
        for ax in panels[len(terms) :]:
            ax.set_axis_off()
        return save(figure, out_file)


def _windowed_gallery(
    view: WorldView, windows: Sequence[Window], slices: str, parts: str
) -> tuple[Figure, Iterator[tuple[Axes, Axes, Cut, Window]]]:
    """Lay out a row of slices and below each its window; return the page and (slice, window panel, cut, window)."""
    cuts = view.cuts()
    aspects = [(right - left) / (top - bottom) for left, right, bottom, top in windows]
    rows = [
        slices_row(view, cuts, f"{slices}: red left-right, green front-back, blue up-down"),
        Row(aspects, title=f"{parts} in the windows marked above", max_height=5.5),
    ]
    figure, axes = gallery(rows)
    return figure, zip(*axes, cuts, windows, strict=True)


def _mark_window(ax: Axes, zoom: Axes, window: Window) -> None:
    """Frame a window in the whole slice and limit the enlarged panel to it."""
    left, right, bottom, top = window
    ax.add_patch(Rectangle((left, bottom), right - left, top - bottom, fill=False, ec="white", lw=1.2))
    zoom.set(xlim=(left, right), ylim=(bottom, top))


def _busiest_window(view: WorldView, cut: Cut, strength: np.ndarray) -> Window:
    """Return the window of at most WINDOW x WINDOW voxels in which a slice, shape (up, right), shows most."""
    height, width = (min(WINDOW, size) for size in strength.shape)
    sums = np.pad(np.cumsum(np.cumsum(strength, axis=0), axis=1), ((1, 0), (1, 0)))
    total = sums[height:, width:] - sums[:-height, width:] - sums[height:, :-width] + sums[:-height, :-width]
    bottom, left = (int(place) for place in np.unravel_index(np.argmax(total), total.shape))
    if not strength.any():
        bottom, left = (strength.shape[0] - height) // 2, (strength.shape[1] - width) // 2
    pitch_right, pitch_up = float(view.zooms[cut.plane.right]), float(view.zooms[cut.plane.up])
    return (left * pitch_right, (left + width) * pitch_right, bottom * pitch_up, (bottom + height) * pitch_up)
