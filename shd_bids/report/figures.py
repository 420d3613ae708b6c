"""Pictures of every stage: arrays in, one PNG out; matplotlib only, no display, no OpenGL.

All slices are shown in world orientation (left on the left), and directions are coloured by world axes: red
left-right, green front-back, blue up-down. Values "in mask order" follow ``array[mask]``. Where there is nothing to
draw, a panel says so.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike

from shd_bids.atomic import atomic_path
from shd_bids.report.curves import (
    TISSUES,
    draw_courses,
    draw_decay,
    draw_response,
    draw_scheme,
    draw_scores,
    draw_shell_residuals,
    draw_sphere,
    draw_volume_residuals,
    shell_colours,
)
from shd_bids.report.glyphs import (
    Box,
    cut_to_segments,
    dec_image,
    draw_glyphs,
    draw_outline,
    draw_segments,
    draw_sticks,
)
from shd_bids.report.view import (
    DPI,
    FONT,
    INK,
    PLANES,
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
MAX_STREAMLINES = 4000
MAX_SEGMENTS = 90_000
MAX_SPHERES = 5  # shells in a row
SLAB_MM = 4.0  # half thickness of the slabs in which streamlines are seen against the anatomy
CURVE_PADDING = (0.8, 0.1, 0.55, 0.05)  # inches left, right, below and above a plot for its ticks and labels


def plot_gradients(
    out_file: Path,
    *,
    bvals: ArrayLike,
    directions: ArrayLike,
    shell_index: ArrayLike,
    scores: Sequence[tuple[str, np.ndarray, float]] = (),
) -> Path:
    """Draw the directions of each shell on the sphere, the order of the volumes, and the orientation check.

    Parameters
    ----------
    out_file : Path
        PNG to write.
    bvals : array, shape (N,)
        In s/mm2.
    directions : array, shape (N, 3)
        Unit, world axes (RAS+); zero rows at b=0.
    shell_index : array, shape (N,)
        Number of the shell of each volume, ascending in b; 0 is b=0.
    scores : sequence of (label, matrix, score)
        Candidates of the orientation check; the identity is the table as given.

    Returns
    -------
    Path
        ``out_file``.
    """
    bvals, directions = np.asarray(bvals, float), np.asarray(directions, float).reshape(-1, 3)
    numbers = np.asarray(shell_index, int)
    shells = [int(shell) for shell in np.unique(numbers) if shell > 0]
    chunks = [shells[start : start + MAX_SPHERES] for start in range(0, len(shells), MAX_SPHERES)] or [[]]
    titles = [[_shell_title(bvals[numbers == shell]) for shell in chunk] or [" "] for chunk in chunks]
    heading = "Directions by shell, seen from above (open circles: seen from below)"
    rows = [
        Row([1.0] * max(len(chunk), 1), title="" if number else heading, max_height=3.3, titles=names)
        for number, (chunk, names) in enumerate(zip(chunks, titles, strict=True))
    ]
    rows.append(Row([5.2], title="Order of the volumes", padding=CURVE_PADDING))
    if len(scores):
        rows.append(Row([4.6], title="Orientation check: all flips and permutations", padding=(0.8, 0.1, 0.6, 0.05)))
    with rc_context(FONT):
        figure, axes = gallery(rows, gap=0.3)
        spheres = [ax for row in axes[: len(chunks)] for ax in row]
        if not shells:
            note_empty(spheres[0], "no diffusion-weighted volumes", on_black=False)
        for ax, shell in zip(spheres, shells, strict=False):
            draw_sphere(ax, directions[numbers == shell])
        draw_scheme(axes[len(chunks)][0], bvals, numbers)
        if len(scores):
            draw_scores(axes[-1][0], scores)
        return _save(figure, out_file)


def plot_mask(out_file: Path, *, b0: np.ndarray, mask: np.ndarray, affine: ArrayLike) -> Path:
    """Draw mosaics of the mean b=0 image in three planes with the outline of the mask.

    Parameters
    ----------
    out_file : Path
        PNG to write.
    b0 : array, shape (x, y, z)
        Mean b=0 image.
    mask : bool array, shape (x, y, z)
    affine : array, shape (4, 4)
        Voxel to world mm.

    Returns
    -------
    Path
        ``out_file``.
    """
    mask = np.asarray(mask, bool)
    view = world_view(mask.shape, affine, mask, margin=3)
    planes = view.planes()
    cuts = [view.mosaic(plane, 6 if len(planes) > 1 else 3) for plane in planes]
    rows = [
        Row([view.aspect(plane)] * len(found), title=plane.name.capitalize())
        for plane, found in zip(planes, cuts, strict=True)
    ]
    with rc_context(FONT):
        figure, axes = gallery(rows)
        inside = view.volume(mask)
        grey = _grey(view.volume(b0), inside)
        for row_axes, row_cuts in zip(axes, cuts, strict=True):
            for ax, cut in zip(row_axes, row_cuts, strict=True):
                show_slice(ax, view, cut, slice_of(grey, cut), cmap="gray", norm=Normalize(0, 1))
                draw_outline(ax, view, cut.plane, slice_of(inside, cut), colour="#ff4d6d", width=1.1)
        if not mask.any():
            note_empty(axes[0][0], "the mask is empty")
        return _save(figure, out_file)


def plot_response(
    out_file: Path,
    *,
    responses: Mapping[str, tuple[ArrayLike, ArrayLike]],
    voxels: Mapping[str, np.ndarray] | None = None,
    b0: np.ndarray | None = None,
    mask: np.ndarray | None = None,
    affine: ArrayLike | None = None,
) -> Path:
    """Draw the zonal response of each tissue by shell, its decay with b, and the voxels it was taken from.

    Parameters
    ----------
    out_file : Path
        PNG to write.
    responses : mapping tissue -> (bvalues (S,), coefficients (S, L))
        Zonal coefficients of degree 0, 2, 4, ... in MRtrix normalisation; tissues ``wm``, ``gm``, ``csf``.
    voxels : mapping tissue -> bool array, shape (x, y, z), optional
        Voxels selected; shown when ``b0`` and ``affine`` are given too.
    b0, mask : array, shape (x, y, z), optional
        Background and what it is cropped to.
    affine : array, shape (4, 4), optional
        Voxel to world mm.

    Returns
    -------
    Path
        ``out_file``.
    """
    titles = [name for name, _ in TISSUES.values()]
    rows = [
        Row([1.0] * 3, title="Signal by angle to the fibre (upright)", max_height=3.0, titles=titles),
        Row([5.2], title="Mean signal by b-value (white matter at b = 0 is 1)", padding=CURVE_PADDING),
    ]
    view: WorldView | None = None
    cuts: tuple[Cut, ...] = ()
    if voxels and b0 is not None and affine is not None:
        voxels = {tissue: np.asarray(chosen, bool) for tissue, chosen in voxels.items()}
        view = world_view(b0.shape, affine, mask)
        cuts = _busiest_cuts(view, {tissue: view.volume(chosen) for tissue, chosen in voxels.items()})
        counts = [
            f"{name} {np.count_nonzero(voxels[tissue])}" for tissue, (name, _) in TISSUES.items() if tissue in voxels
        ]
        title = "Voxels taken: " + ", ".join(counts) + " (blue, green, red)"
        rows.append(_slices_row(view, cuts, title, max_height=4.4))
    with rc_context(FONT):
        figure, axes = gallery(rows, gap=0.25)
        for ax, tissue in zip(axes[0], TISSUES, strict=True):
            if tissue in responses:
                draw_response(ax, _table(responses[tissue][1]))
            else:
                note_empty(ax, "not fitted", on_black=False)
        _shell_legend(figure, axes[0], responses)
        draw_decay(axes[1][0], {tissue: (bvalues, _table(rows)) for tissue, (bvalues, rows) in responses.items()})
        if view is not None and b0 is not None and voxels:
            grey = _grey(view.volume(b0), None if mask is None else view.volume(np.asarray(mask, bool)))
            for ax, cut in zip(axes[2], cuts, strict=True):
                image = np.repeat(0.8 * slice_of(grey, cut)[..., None], 3, axis=2)
                for tissue, (_, colour) in TISSUES.items():
                    if tissue in voxels:
                        image[slice_of(view.volume(voxels[tissue]), cut)] = to_rgb(colour)
                show_slice(ax, view, cut, image)
        return _save(figure, out_file)


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
    cuts, numbers = view.cuts(), _mask_numbers(view, mask)
    total = np.clip(np.nan_to_num(coefficients[:, 0]), 0, None)
    anisotropy = _in_view(np.linalg.norm(np.nan_to_num(coefficients[:, 1:6]), axis=1), numbers)  # degree 2
    windows = [_busiest_window(view, cut, slice_of(anisotropy, cut)) for cut in cuts]
    rows = [
        _slices_row(view, cuts, "Fibre directions: red left-right, green front-back, blue up-down"),
        Row([_box_aspect(box) for box in windows], title="fODF surfaces in the windows marked above", max_height=5.5),
    ]
    with rc_context(FONT):
        figure, axes = gallery(rows)
        grey = np.zeros(view.shape) if background is None else _grey(view.volume(background), numbers >= 0)
        top = _percentile(total, 97)
        for ax, zoom, cut, box in zip(*axes, cuts, windows, strict=True):
            shown = slice_of(numbers, cut)
            show_slice(ax, view, cut, dec_image(coefficients, shown, top))
            show_slice(zoom, view, cut, 0.45 * slice_of(grey, cut), cmap="gray", norm=Normalize(0, 1))
            _mark_window(ax, zoom, box)
            draw_glyphs(zoom, view, cut, coefficients, shown, box)
            if not (shown >= 0).any():
                note_empty(ax, "no fODF in this slice")
        return _save(figure, out_file)


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
    cuts, numbers = view.cuts(), _mask_numbers(view, mask)
    largest = _in_view(np.nan_to_num(np.asarray(amplitudes, float)).max(axis=1, initial=0), numbers)
    windows = [_busiest_window(view, cut, slice_of(largest, cut)) for cut in cuts]
    rows = [
        _slices_row(view, cuts, "Peaks: red left-right, green front-back, blue up-down"),
        Row([_box_aspect(box) for box in windows], title="Peaks in the windows marked above", max_height=5.5),
    ]
    with rc_context(FONT):
        figure, axes = gallery(rows)
        grey = _grey(largest if background is None else view.volume(background), numbers >= 0)
        scale = _percentile(np.asarray(amplitudes), 95)
        for ax, zoom, cut, box in zip(*axes, cuts, windows, strict=True):
            shown = slice_of(numbers, cut)
            for panel, part, width in ((ax, None, 0.8), (zoom, box, 2.2)):
                show_slice(panel, view, cut, 0.5 * slice_of(grey, cut), cmap="gray", norm=Normalize(0, 1))
                draw_sticks(panel, view, cut, (directions, amplitudes), shown, scale=scale, width=width, box=part)
            _mark_window(ax, zoom, box)
            if not (shown >= 0).any():
                note_empty(ax, "no peaks in this slice")
        return _save(figure, out_file)


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
    volume = _in_view(fractions, _mask_numbers(view, mask))
    colours = volume[..., ::-1]  # CSF red, grey matter green, white matter blue, as mrview shows them
    single = cuts[-1]
    names = [name for name, _ in TISSUES.values()]
    rows = [
        _slices_row(view, cuts, "Together: white matter blue, grey matter green, CSF red", max_height=4.6),
        Row([view.aspect(single.plane)] * 3, title="One by one", max_height=4.2, margin_right=0.75, titles=names),
    ]
    with rc_context(FONT):
        figure, axes = gallery(rows)
        for ax, cut in zip(axes[0], cuts, strict=True):
            show_slice(ax, view, cut, slice_of(colours, cut))
        for number, ax in enumerate(axes[1]):
            if fractions[:, number].any():
                image = slice_of(volume[..., number], single)
                show_slice(ax, view, single, image, cmap="gray", norm=Normalize(0, 1))
            else:
                note_empty(ax, "not fitted" if mask.any() else "the mask is empty")
        colour_bar(axes[1], ScalarMappable(Normalize(0, 1), "gray"), "signal fraction")
        return _save(figure, out_file)


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
    cuts, numbers = view.cuts(), _mask_numbers(view, mask)
    titles = ["Residual by shell", "Residual by volume"][: 2 if volumes.size else 1]
    rows = [
        _slices_row(view, cuts, "R² of the predicted signal", max_height=3.6, margin_right=0.9),
        _slices_row(view, cuts, "Residual standard deviation, units of the input", max_height=3.6, margin_right=0.9),
        Row([5.2 / len(titles)] * len(titles), padding=CURVE_PADDING, titles=titles),
    ]
    with rc_context(FONT):
        figure, axes = gallery(rows)
        maps = (
            (r_squared, "viridis", Normalize(0, 1), "R²"),
            (residual_std, "magma", Normalize(0, _percentile(residual_std, 98)), "residual"),
        )
        for row_axes, (values, palette, norm, label) in zip(axes, maps, strict=False):
            volume = _in_view(values, numbers, fill=np.nan)
            for ax, cut in zip(row_axes, cuts, strict=True):
                show_slice(ax, view, cut, slice_of(volume, cut), cmap=palette, norm=norm)
            colour_bar(row_axes, ScalarMappable(norm, palette), label)
            if not mask.any():
                note_empty(row_axes[0], "the mask is empty")
        draw_shell_residuals(axes[2][0], shell_residuals or {"all shells": residual_std})
        if volumes.size:
            draw_volume_residuals(axes[2][1], volumes)
        return _save(figure, out_file)


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
        _slices_row(view, cuts, f"Streamlines within {half:.0f} mm of a slice"),
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
        grey = np.zeros(view.shape) if background is None else _grey(view.volume(background), inside)
        for ax, cut in zip(axes[1], cuts, strict=True):
            show_slice(ax, view, cut, 0.6 * slice_of(grey, cut), cmap="gray", norm=Normalize(0, 1))
            draw_outline(ax, view, cut.plane, slice_of(inside, cut), colour="#7b8794", width=0.8)
            away = np.abs(segments[:, :, cut.plane.axis].mean(axis=1) - (cut.index + 0.5) * view.zooms[cut.plane.axis])
            draw_segments(ax, cut.plane, segments[away < half], colours[away < half], width=1.0)
        return _save(figure, out_file)


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
        _slices_row(view, cuts, "Streamlines per voxel", max_height=4.2, margin_right=0.9),
        _slices_row(view, projections, "Maximum along the line of sight", max_height=4.2, margin_right=0.9),
    ]
    norm = LogNorm(1, max(10.0, _percentile(density, 99.8)))
    palette = colormaps["inferno"].with_extremes(under="black", bad="black")
    with rc_context(FONT):
        figure, axes = gallery(rows)
        volume = view.volume(density)
        images = [
            [slice_of(volume, cut) for cut in cuts],
            [_projected(volume, plane.axis) for plane in planes],
        ]
        for row_axes, row_cuts, row_images in zip(axes, (cuts, projections), images, strict=True):
            for ax, cut, image in zip(row_axes, row_cuts, row_images, strict=True):
                show_slice(ax, view, cut, image, cmap=palette, norm=norm)
            colour_bar(row_axes, ScalarMappable(norm, palette), "streamlines")
        if not density.any():
            note_empty(axes[0][0], "no streamlines")
        return _save(figure, out_file)


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
    chunks = [terms[start : start + n_columns] for start in range(0, len(terms), n_columns)]
    aspect, height = (4.9 / n_columns, 2.6) if n_columns > 1 else (3.2, 3.0)
    rows = [
        Row(
            [aspect] * n_columns,
            max_height=height,
            padding=CURVE_PADDING,
            titles=[*chunk, *[""] * n_columns][:n_columns],
        )
        for chunk in chunks
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
        return _save(figure, out_file)


def _save(figure: Figure, out_file: Path) -> Path:
    """Write the figure whole or not at all, without naming the software, so that equal input gives equal bytes."""
    FigureCanvasAgg(figure)
    with atomic_path(Path(out_file)) as temporary:
        figure.savefig(temporary, dpi=DPI, metadata={"Software": None})
    return Path(out_file)


def _slices_row(
    view: WorldView, cuts: Sequence[Cut], title: str, *, max_height: float = 5.0, margin_right: float = 0.0
) -> Row:
    aspects = [view.aspect(cut.plane) for cut in cuts]
    return Row(aspects, title=title, max_height=max_height, margin_right=margin_right)


def _table(coefficients: ArrayLike) -> np.ndarray:
    """Give zonal coefficients as (S, L); a response that holds degree 0 only may come as (S,)."""
    values = np.asarray(coefficients, float)
    return values[:, None] if values.ndim == 1 else values


def _shell_title(bvals: np.ndarray) -> str:
    return f"b = {bvals.mean():.0f} s/mm², {len(bvals)} direction{'' if len(bvals) == 1 else 's'}"


def _shell_legend(figure: Figure, axes: Sequence[Axes], responses: Mapping[str, tuple[ArrayLike, ArrayLike]]) -> None:
    """Name the shells once, in the heading of the row."""
    bvalues = max((np.asarray(values).ravel() for values, _ in responses.values()), key=len, default=np.empty(0))
    lines = [axes[0].plot([], [], color=colour, lw=2)[0] for colour in shell_colours(len(bvalues))]
    if lines:
        labels = [f"b = {bvalue:.0f}" for bvalue in bvalues]
        place = {"loc": "upper right", "bbox_to_anchor": (0.99, 1.0), "ncols": min(len(lines), 6)}
        figure.legend(lines, labels, frameon=False, fontsize=9.5, labelcolor=INK, **place)


def _mask_numbers(view: WorldView, mask: np.ndarray) -> np.ndarray:
    """Number the mask's voxels in mask order and turn the numbers into the view; -1 outside."""
    numbers = np.full(mask.shape, -1, dtype=np.int64)
    numbers[mask] = np.arange(np.count_nonzero(mask))
    return view.volume(numbers)


def _in_view(values: np.ndarray, numbers: np.ndarray, *, fill: float = 0.0) -> np.ndarray:
    """Spread values in mask order, shape (n, ...), over the view."""
    volume = np.full((*numbers.shape, *values.shape[1:]), fill)
    inside = numbers >= 0
    volume[inside] = values[numbers[inside]]
    return volume


def _projected(volume: np.ndarray, axis: int) -> np.ndarray:
    """Take the maximum along an axis of the view as an image, shape (up, right)."""
    return np.max(volume, axis=axis).T


def _percentile(values: np.ndarray, percent: float) -> float:
    """Take a percentile of the positive finite values; 1 when there are none."""
    positive = values[np.isfinite(values) & (values > 0)]
    return float(np.percentile(positive, percent)) if positive.size else 1.0


def _grey(volume: np.ndarray, inside: np.ndarray | None) -> np.ndarray:
    """Scale an image to 0..1 by the 1st and 99th percentile in the mask (of all voxels when the mask is empty)."""
    volume = np.nan_to_num(np.asarray(volume, float))
    values = volume[inside] if inside is not None and inside.any() else volume.ravel()
    low, high = np.percentile(values, (1, 99)) if values.size else (0.0, 1.0)
    low = min(low, 0.3 * high)  # an image of one tissue must not lose its grey to the window
    return np.clip((volume - low) / max(high - low, np.finfo(np.float64).tiny), 0, 1)


def _mark_window(ax: Axes, zoom: Axes, box: Box) -> None:
    """Frame a window in the whole slice and limit the enlarged panel to it."""
    left, right, bottom, top = box
    ax.add_patch(Rectangle((left, bottom), right - left, top - bottom, fill=False, ec="white", lw=1.2))
    zoom.set(xlim=(left, right), ylim=(bottom, top))


def _busiest_cuts(view: WorldView, chosen: Mapping[str, np.ndarray]) -> tuple[Cut, ...]:
    """Take the slice of each plane with most selected voxels, rare tissues counting as much as frequent ones."""
    weight = np.zeros(view.shape)
    for selected in chosen.values():
        weight += selected / max(np.count_nonzero(selected), 1)
    if len(view.planes()) == 1 or not weight.any():
        return view.cuts()
    others = {plane.axis: tuple(axis for axis in range(3) if axis != plane.axis) for plane in PLANES}
    return tuple(Cut(plane, int(np.argmax(weight.sum(axis=others[plane.axis])))) for plane in view.planes())


def _busiest_window(view: WorldView, cut: Cut, strength: np.ndarray) -> Box:
    """Place a window of at most WINDOW x WINDOW voxels where the slice, shape (up, right), shows most."""
    height, width = (min(WINDOW, size) for size in strength.shape)
    sums = np.pad(np.cumsum(np.cumsum(strength, axis=0), axis=1), ((1, 0), (1, 0)))
    total = sums[height:, width:] - sums[:-height, width:] - sums[height:, :-width] + sums[:-height, :-width]
    bottom, left = (int(place) for place in np.unravel_index(np.argmax(total), total.shape))
    if not strength.any():
        bottom, left = (strength.shape[0] - height) // 2, (strength.shape[1] - width) // 2
    pitch_right, pitch_up = float(view.zooms[cut.plane.right]), float(view.zooms[cut.plane.up])
    return (left * pitch_right, (left + width) * pitch_right, bottom * pitch_up, (bottom + height) * pitch_up)


def _box_aspect(box: Box) -> float:
    return (box[1] - box[0]) / (box[3] - box[2])
