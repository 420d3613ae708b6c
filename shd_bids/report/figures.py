"""Pictures of every stage: arrays in, one PNG out; matplotlib only, no display, no OpenGL.

All slices are shown in world orientation (left on the left), and directions are coloured by world axes: red
left-right, green front-back, blue up-down. Values "in mask order" follow ``array[mask]``.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Rectangle
from numpy.typing import ArrayLike

from shd_bids.atomic import atomic_path
from shd_bids.report.view import (
    DPI,
    FAINT,
    FONT,
    INK,
    PLANES,
    Cut,
    Row,
    WorldView,
    colour_bar,
    frame_panel,
    gallery,
    note_empty,
    show_slice,
    slice_of,
    tidy_plot,
    world_view,
)
from shd_bids.sphere.harmonics import l_max_of, sh_basis

TISSUES = {"wm": ("white matter", "#3d7fd9"), "gm": ("grey matter", "#2f9e44"), "csf": ("CSF", "#e03131")}
WINDOW = 22  # voxels along a glyph window: 22 x 22 x 3 planes stays below 2000 glyphs
MAX_STREAMLINES = 4000
MAX_SEGMENTS = 90_000


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
    bvals, directions, shell_index = np.asarray(bvals, float), np.asarray(directions, float), np.asarray(shell_index)
    shells = [shell for shell in np.unique(shell_index) if shell > 0]
    spheres = max(len(shells), 1)
    rows = [
        Row(
            [1.0] * spheres,
            title="Directions by shell, seen from above (open: from below)",
            max_height=3.4,
            titles=[" "] * spheres,
        )
    ]
    rows.append(Row([3.9], title="Order of the volumes", max_height=2.2, padding=(0.75, 0.1, 0.5, 0.0)))
    if len(scores):
        rows.append(Row([2.7], title="Orientation check", max_height=3.1, padding=(0.75, 0.1, 1.1, 0.0)))

    with rc_context(FONT):
        figure, axes = gallery(rows, gap=0.3)
        if not shells:
            note_empty(axes[0][0], "no diffusion-weighted volumes", on_black=False)
        for ax, shell in zip(axes[0], shells, strict=False):
            chosen = shell_index == shell
            _draw_sphere(ax, directions[chosen])
            ax.set_title(f"b = {bvals[chosen].mean():.0f} s/mm², {chosen.sum()} directions", color=INK, pad=8)
        _draw_scheme(axes[1][0], bvals, shell_index)
        if len(scores):
            _draw_scores(axes[2][0], scores)
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
    view = world_view(mask.shape, affine, mask, margin=4)
    planes = view.planes()
    cuts = [view.mosaic(plane, 6 if len(planes) > 1 else 12) for plane in planes]
    rows = [
        Row([view.aspect(p)] * len(c), title=p.name.capitalize(), max_height=3.2)
        for p, c in zip(planes, cuts, strict=True)
    ]
    with rc_context(FONT):
        figure, axes = gallery(rows)
        background, outline = _window(view.volume(b0), view.volume(mask)), view.volume(mask)
        for row_axes, row_cuts in zip(axes, cuts, strict=True):
            for ax, cut in zip(row_axes, row_cuts, strict=True):
                show_slice(ax, view, cut, slice_of(background, cut), cmap="gray", vmin=0, vmax=1)
                _outline(ax, view, cut, slice_of(outline, cut), "#ff4d6d", 1.1)
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
    r"""Draw the zonal response of each tissue by shell, its decay with b, and the voxels it was taken from.

    .. math:: S_b(\theta) = \sum_l r_{bl} \sqrt{(2l+1)/4\pi} \, P_l(\cos\theta)

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
    rows = [
        Row([1.0] * 3, title="Response: signal by angle to the fibre (vertical)", max_height=3.0, titles=[" "] * 3),
        Row(
            [3.9],
            title="Mean signal by b-value, relative to white matter at b = 0",
            max_height=2.2,
            padding=(0.75, 0.1, 0.5, 0.05),
        ),
    ]
    overlay = voxels and b0 is not None and affine is not None
    if overlay:
        view = world_view(b0.shape, affine, mask)
        cuts = _busiest_cuts(view, {tissue: view.volume(chosen) for tissue, chosen in voxels.items()})
        rows.append(
            Row([view.aspect(cut.plane) for cut in cuts], title="Voxels the responses were taken from", max_height=4.2)
        )
    with rc_context(FONT):
        figure, axes = gallery(rows, gap=0.25)
        for ax, (tissue, (name, _)) in zip(axes[0], TISSUES.items(), strict=True):
            if tissue in responses:
                _draw_response(ax, *map(np.asarray, responses[tissue]))
                ax.set_title(name, color=INK, pad=8)
            else:
                note_empty(ax, f"{name}: not fitted", on_black=False)
        _draw_decay(axes[1][0], responses)
        if overlay:
            background = _window(view.volume(b0), None if mask is None else view.volume(mask))
            _draw_selection(axes[2], view, cuts, background, voxels)
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
        SH coefficients in mask order, basis of MRtrix3, world axes.
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
    cuts = view.cuts()
    index = _mask_index(view, mask)
    size = view.volume(mask)
    strength = np.zeros(size.shape)
    strength[size] = np.clip(np.asarray(coefficients)[index[size], 0], 0, None) if size.any() else 0
    windows = [_busiest_window(view, cut, slice_of(strength, cut)) for cut in cuts]
    rows = [
        Row(
            [view.aspect(cut.plane) for cut in cuts],
            title="Fibre directions: red left-right, green front-back, blue up-down",
        ),
        Row([_box_aspect(box) for box in windows], title="fODF surfaces in the windows marked above", max_height=5.5),
    ]
    with rc_context(FONT):
        figure, axes = gallery(rows)
        grey = None if background is None else _window(view.volume(background), size)
        top = _positive_percentile(strength, 99)
        for ax, zoom, cut, box in zip(*axes, cuts, windows, strict=True):
            chosen = slice_of(index, cut)
            show_slice(ax, view, cut, _dec_image(coefficients, chosen, top))
            ax.add_patch(Rectangle((box[0], box[2]), box[1] - box[0], box[3] - box[2], fill=False, ec="white", lw=1.2))
            show_slice(
                zoom, view, cut, None if grey is None else 0.45 * slice_of(grey, cut), cmap="gray", vmin=0, vmax=1
            )
            zoom.set(xlim=box[:2], ylim=box[2:])
            _draw_glyphs(zoom, view, cut, coefficients, chosen, box)
            if not (chosen >= 0).any():
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
        Grey image under the sticks (mean b=0 or AFD).

    Returns
    -------
    Path
        ``out_file``.
    """
    mask = np.asarray(mask, bool)
    view = world_view(mask.shape, affine, mask)
    cuts = view.cuts()
    index, inside = _mask_index(view, mask), view.volume(mask)
    total = np.zeros(inside.shape)
    total[inside] = np.nan_to_num(amplitudes).sum(axis=1)[index[inside]] if inside.any() else 0
    windows = [_busiest_window(view, cut, slice_of(total, cut)) for cut in cuts]
    rows = [
        Row([view.aspect(cut.plane) for cut in cuts], title="Peaks: red left-right, green front-back, blue up-down"),
        Row([_box_aspect(box) for box in windows], title="Peaks in the windows marked above", max_height=5.5),
    ]
    with rc_context(FONT):
        figure, axes = gallery(rows)
        grey = _window(
            view.volume(total if background is None else background) if background is not None else total, inside
        )
        scale = _positive_percentile(np.asarray(amplitudes), 95)
        for ax, zoom, cut, box in zip(*axes, cuts, windows, strict=True):
            chosen = slice_of(index, cut)
            for panel in (ax, zoom):
                show_slice(panel, view, cut, 0.55 * slice_of(grey, cut), cmap="gray", vmin=0, vmax=1)
            zoom.set(xlim=box[:2], ylim=box[2:])
            ax.add_patch(Rectangle((box[0], box[2]), box[1] - box[0], box[3] - box[2], fill=False, ec="white", lw=1.2))
            _draw_sticks(ax, view, cut, directions, amplitudes, chosen, scale, 0.8, None)
            _draw_sticks(zoom, view, cut, directions, amplitudes, chosen, scale, 2.4, box)
            if not (chosen >= 0).any():
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
    volume = view.volume(_scatter(fractions, mask))
    colours = volume[..., ::-1]  # CSF red, grey matter green, white matter blue, as mrview shows them
    single = cuts[-1]
    rows = [
        Row([view.aspect(cut.plane) for cut in cuts], title="Together: white matter blue, grey matter green, CSF red"),
        Row([view.aspect(single.plane)] * 3, title="One by one", max_height=4.4, margin_right=0.75, titles=[" "] * 3),
    ]
    with rc_context(FONT):
        figure, axes = gallery(rows)
        for ax, cut in zip(axes[0], cuts, strict=True):
            show_slice(ax, view, cut, slice_of(colours, cut))
        for number, (ax, (name, _)) in enumerate(zip(axes[1], TISSUES.values(), strict=True)):
            ax.set_title(name, color=INK, pad=5)
            if fractions[:, number].any():
                show_slice(ax, view, single, slice_of(volume[..., number], single), cmap="gray", vmin=0, vmax=1)
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
    view = world_view(mask.shape, affine, mask)
    cuts = view.cuts()
    aspects = [view.aspect(cut.plane) for cut in cuts]
    n_plots = 2 if volume_residuals is not None and np.size(volume_residuals) else 1
    rows = [
        Row(aspects, title="R² of the predicted signal", max_height=3.6, margin_right=0.9),
        Row(aspects, title="Residual standard deviation, units of the input", max_height=3.6, margin_right=0.9),
        Row([4.0 / n_plots] * n_plots, max_height=2.5, padding=(0.75, 0.15, 0.5, 0.0), titles=[" "] * n_plots),
    ]
    with rc_context(FONT):
        figure, axes = gallery(rows)
        residual_top = _positive_percentile(np.asarray(residual_std), 98)
        maps = (
            (r_squared, "viridis", Normalize(0, 1), "R²"),
            (residual_std, "magma", Normalize(0, residual_top), "residual"),
        )
        for row_axes, (values, palette, norm, label) in zip(axes, maps, strict=False):
            volume = view.volume(_scatter(np.asarray(values, float), mask, fill=np.nan))
            for ax, cut in zip(row_axes, cuts, strict=True):
                show_slice(ax, view, cut, slice_of(volume, cut), cmap=palette, norm=norm)
            colour_bar(row_axes, ScalarMappable(norm, palette), label)
            if not mask.any():
                note_empty(row_axes[0], "the mask is empty")
        _draw_shell_residuals(axes[2][0], shell_residuals or {"all shells": residual_std})
        if n_plots == 2:
            _draw_volume_residuals(axes[2][1], np.asarray(volume_residuals, float))
        return _save(figure, out_file)


def plot_streamlines(out_file: Path, *, streamlines: Sequence[np.ndarray], affine: ArrayLike, mask: np.ndarray) -> Path:
    """Draw a thinned tractogram in three projections, near segments over far ones, coloured by direction.

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

    Returns
    -------
    Path
        ``out_file``.
    """
    mask = np.asarray(mask, bool)
    view = world_view(mask.shape, affine, mask)
    planes = view.planes()
    shown = min(len(streamlines), MAX_STREAMLINES)
    note = f" ({shown} of {len(streamlines)} drawn)" if len(streamlines) else ""
    rows = [Row([view.aspect(plane) for plane in planes], title=f"Streamlines{note}", max_height=8.0)]
    with rc_context(FONT):
        figure, axes = gallery(rows)
        segments, colours = _segments(view, streamlines)
        inside = view.volume(mask)
        for ax, plane in zip(axes[0], planes, strict=True):
            cut = Cut(plane, 0)
            show_slice(ax, view, cut, None)
            _outline(ax, view, cut, inside.any(axis=plane.axis).T, "#7b8794", 0.8)
            if len(segments):
                _draw_segments(ax, plane, segments, colours)
            else:
                note_empty(ax, "no streamlines")
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
    rows = [
        Row([view.aspect(cut.plane) for cut in cuts], title="Streamlines per voxel", max_height=4.2, margin_right=0.9),
        Row(
            [view.aspect(plane) for plane in planes],
            title="Maximum along the line of sight",
            max_height=4.2,
            margin_right=0.9,
        ),
    ]
    norm = LogNorm(1, max(10.0, _positive_percentile(density, 99.8)), clip=False)
    palette = colormaps["inferno"].with_extremes(under="black", bad="black")
    with rc_context(FONT):
        figure, axes = gallery(rows)
        volume = view.volume(density)
        for ax, cut in zip(axes[0], cuts, strict=True):
            show_slice(ax, view, cut, slice_of(volume, cut), cmap=palette, norm=norm)
        for ax, plane in zip(axes[1], planes, strict=True):
            show_slice(ax, view, Cut(plane, 0), volume.max(axis=plane.axis).T, cmap=palette, norm=norm)
        for row_axes in axes:
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
    held_out = held_out or {}
    terms = list(dict.fromkeys([*train, *held_out])) or ["loss"]
    per_row = min(len(terms), 3)
    chunks = [terms[start : start + per_row] for start in range(0, len(terms), per_row)]
    rows = [
        Row([4.2 / per_row] * len(chunk), max_height=2.6, padding=(0.75, 0.1, 0.55, 0.0), titles=chunk)
        for chunk in chunks
    ]
    last = max([len(values) for values in [*train.values(), *held_out.values()]] or [1])
    with rc_context(FONT):
        figure, axes = gallery(rows)
        for ax, term in zip((ax for row in axes for ax in row), terms, strict=True):
            tidy_plot(ax, {"xlabel": "step"})
            courses = (
                (train.get(term, ()), train_steps, "#3d7fd9", "training"),
                (held_out.get(term, ()), held_out_steps, "#e8590c", "held out"),
            )
            for values, steps, colour, label in courses:
                values = np.asarray(values, float)
                if values.size == 0:
                    continue
                given = (
                    np.linspace(last / values.size, last, values.size) if steps is None else np.asarray(steps, float)
                )
                marker = "o" if values.size < 30 else None
                ax.plot(given[: values.size], values, color=colour, label=label, lw=1.6, marker=marker, ms=3.5)
            drawn = np.concatenate([line.get_ydata() for line in ax.lines]) if ax.lines else np.empty(0)
            if drawn.size == 0:
                note_empty(ax, "no training was done", on_black=False)
                continue
            if np.nanmin(drawn) > 0 and np.nanmax(drawn) > 5 * np.nanmin(drawn):
                ax.set_yscale("log")
            ax.legend(frameon=False, fontsize=9.5)
        return _save(figure, out_file)


def _save(figure: Figure, out_file: Path) -> Path:
    """Write the figure whole or not at all, without the date, so that equal input gives equal bytes."""
    FigureCanvasAgg(figure)
    with atomic_path(Path(out_file)) as temporary:
        figure.savefig(temporary, dpi=DPI, metadata={"Software": None})
    return Path(out_file)


def _scatter(values: np.ndarray, mask: np.ndarray, *, fill: float = 0.0) -> np.ndarray:
    volume = np.full((*mask.shape, *values.shape[1:]), fill)
    volume[mask] = values
    return volume


def _mask_index(view: WorldView, mask: np.ndarray) -> np.ndarray:
    """Number the mask's voxels in mask order and turn the numbers into the view; -1 outside."""
    numbers = np.full(mask.shape, -1, dtype=np.int64)
    numbers[mask] = np.arange(np.count_nonzero(mask))
    return view.volume(numbers)


def _positive_percentile(values: np.ndarray, percent: float) -> float:
    """Take a percentile of the positive finite values; 1 when there are none."""
    positive = values[np.isfinite(values) & (values > 0)]
    return float(np.percentile(positive, percent)) if positive.size else 1.0


def _window(volume: np.ndarray, inside: np.ndarray | None) -> np.ndarray:
    """Scale an image to 0..1 by the 1st and 99th percentile in the mask (of all voxels when the mask is empty)."""
    volume = np.nan_to_num(np.asarray(volume, float))
    values = volume[inside] if inside is not None and inside.any() else volume.ravel()
    low, high = np.percentile(values, (1, 99)) if values.size else (0.0, 1.0)
    low = min(low, 0.3 * high)  # an image of one tissue must not lose its grey to the window
    return np.clip((volume - low) / max(high - low, np.finfo(float).tiny), 0, 1)


def _outline(ax, view: WorldView, cut: Cut, inside: np.ndarray, colour: str, width: float) -> None:
    """Draw the border of a binary slice along the voxel edges."""
    step_right, step_up = view.zooms[cut.plane.right], view.zooms[cut.plane.up]
    padded = np.pad(inside.astype(np.int8), 1)
    up, right = np.nonzero(np.diff(padded, axis=1)[1:-1])
    upright = np.stack([right * step_right, up * step_up, right * step_right, (up + 1) * step_up], axis=1)
    up, right = np.nonzero(np.diff(padded, axis=0)[:, 1:-1])
    level = np.stack([right * step_right, up * step_up, (right + 1) * step_right, up * step_up], axis=1)
    lines = np.concatenate([upright, level]).reshape(-1, 2, 2)
    ax.add_collection(LineCollection(lines, colors=colour, linewidths=width, capstyle="round"), autolim=False)


def _draw_sphere(ax, directions: np.ndarray) -> None:
    """Draw directions and their opposites in an equal-area projection of the upper half, seen from above.

    Lambert's azimuthal projection, rho = sqrt(2) sin(polar angle / 2), keeps density: an even scheme looks even.
    """
    frame_panel(ax)
    for angle in (30, 60, 90):
        radius = np.sqrt(2) * np.sin(np.radians(angle) / 2)
        ax.add_patch(Circle((0, 0), radius, fill=angle == 90, fc="#f5f7fa", ec="#cbd2d9", lw=0.8, zorder=0))
    ax.plot([-1, 1, np.nan, 0, 0], [0, 0, np.nan, -1, 1], color="#cbd2d9", lw=0.8, zorder=1)
    below = directions[:, 2] < 0
    upper = np.where(below[:, None], -directions, directions)
    radius = np.sqrt(2) * np.sin(np.arccos(np.clip(upper[:, 2], 0, 1)) / 2)
    flat = np.hypot(upper[:, 0], upper[:, 1])
    place = upper[:, :2] * (radius / np.where(flat > 0, flat, 1))[:, None]
    colours = np.clip(np.abs(directions), 0, 1)
    size = float(np.clip(2600 / max(len(directions), 1), 14, 70))
    ax.scatter(*place[~below].T, s=size, c=colours[~below], edgecolors=INK, linewidths=0.4, zorder=3)
    ax.scatter(*place[below].T, s=size, facecolors="white", edgecolors=colours[below], linewidths=1.6, zorder=3)
    for letter, x, y in (("L", -1.1, 0), ("R", 1.1, 0), ("P", 0, -1.1), ("A", 0, 1.1)):
        ax.text(x, y, letter, ha="center", va="center", color=INK, fontweight="bold", fontsize=10)
    ax.set(xlim=(-1.2, 1.2), ylim=(-1.2, 1.2), aspect="equal")


def _shell_colours(n: int) -> np.ndarray:
    """Give one colour per diffusion-weighted shell, dark to light."""
    return colormaps["viridis"](np.linspace(0.15, 0.85, max(n, 1)))


def _draw_scheme(ax, bvals: np.ndarray, shell_index: np.ndarray) -> None:
    shells = np.unique(shell_index)
    colours = dict(zip(shells, [np.array([0.55, 0.6, 0.65, 1]), *_shell_colours(len(shells) - 1)], strict=False))
    volumes = np.arange(len(bvals))
    ax.vlines(volumes, 0, bvals, colors=[colours[shell] for shell in shell_index], linewidth=0.8, alpha=0.5)
    for shell in shells:
        chosen = shell_index == shell
        label = f"b = {bvals[chosen].mean():.0f}: {np.count_nonzero(chosen)} volumes"
        ax.plot(volumes[chosen], bvals[chosen], "o", ms=4.5, color=colours[shell], label=label)
    tidy_plot(ax, {"xlabel": "volume", "ylabel": "b-value (s/mm²)", "xlim": (-1, max(len(bvals), 2))})
    if len(bvals):
        ax.legend(
            loc="upper center", bbox_to_anchor=(0.5, 1.16), ncols=min(len(shells), 6), frameon=False, fontsize=9.5
        )
        ax.set_ylim(0, 1.12 * max(float(bvals.max()), 1.0))


def _draw_scores(ax, scores: Sequence[tuple[str, np.ndarray, float]]) -> None:
    ranked = sorted(scores, key=lambda entry: -entry[2])
    values = [score for _, _, score in ranked]
    given = [np.allclose(np.abs(np.trace(np.asarray(matrix))), 3) for _, matrix, _ in ranked]
    ax.bar(np.arange(len(ranked)), values, color=["#2f9e44" if own else "#cbd2d9" for own in given], width=0.75)
    ax.set_xticks(
        np.arange(len(ranked)), [label for label, _, _ in ranked], rotation=60, ha="right", rotation_mode="anchor"
    )
    tidy_plot(ax, {"ylabel": "fibre coherence", "xlim": (-0.6, len(ranked) - 0.4)})
    ax.grid(axis="x", visible=False)
    for number, own in enumerate(given):
        if own:
            ax.get_xticklabels()[number].set(color="#2b8a3e", fontweight="bold")
            ax.annotate(
                "as given" + (" = best" if number == 0 else f": rank {number + 1}"),
                (number, values[number]),
                (0, 4),
                textcoords="offset points",
                ha="center" if number else "left",
                color="#2b8a3e",
                fontweight="bold",
            )
    low, high = min(values), max(values)
    ax.set_ylim(min(0.0, low), high + 0.15 * (high - min(0.0, low) or 1.0))


def _draw_response(ax, bvalues: np.ndarray, coefficients: np.ndarray) -> None:
    coefficients = np.atleast_2d(coefficients)
    angle = np.linspace(0, 2 * np.pi, 361)
    orders = 2 * np.arange(coefficients.shape[1])
    series = np.zeros((orders[-1] + 1, len(coefficients)))  # Legendre coefficients, odd degrees zero
    series[orders] = (coefficients * np.sqrt((2 * orders + 1) / (4 * np.pi))).T
    signal = np.polynomial.legendre.legval(np.cos(angle), series)  # (S, angle)
    limit = max(float(np.nanmax(np.abs(signal))), np.finfo(float).tiny)
    frame_panel(ax)
    for fraction in (0.25, 0.5, 0.75, 1.0):
        ax.add_patch(Circle((0, 0), fraction * limit, fill=False, ec="#e4e7eb", lw=0.8))
        ax.text(
            0,
            fraction * limit,
            f"{fraction * limit:.3g}",
            fontsize=8,
            color=FAINT,
            ha="center",
            va="center",
            bbox={"fc": "white", "ec": "none", "pad": 0.6},
        )
    colours = np.vstack([[0.55, 0.6, 0.65, 1], _shell_colours(len(bvalues) - 1)])
    for row, bvalue, colour in zip(signal, bvalues, colours, strict=False):
        ax.plot(row * np.sin(angle), row * np.cos(angle), color=colour, lw=2, label=f"b = {bvalue:.0f}")
    ax.set(xlim=(-1.08 * limit, 1.08 * limit), ylim=(-1.08 * limit, 1.08 * limit), aspect="equal")
    ax.legend(loc="lower right", fontsize=8.5, frameon=True, framealpha=0.9, edgecolor="none", borderpad=0.2)


def _draw_decay(ax, responses: Mapping[str, tuple[ArrayLike, ArrayLike]]) -> None:
    tidy_plot(ax, {"xlabel": "b-value (s/mm²)", "ylabel": "mean signal"})
    if not responses:
        note_empty(ax, "no response functions", on_black=False)
        return
    first = "wm" if "wm" in responses else next(iter(responses))
    reference = float(np.atleast_2d(responses[first][1])[0, 0]) or 1.0
    for tissue, (name, colour) in TISSUES.items():
        if tissue in responses:
            bvalues, coefficients = responses[tissue]
            mean = np.atleast_2d(coefficients)[:, 0] / reference
            ax.plot(bvalues, np.where(mean > 0, mean, np.nan), "o-", color=colour, lw=2, label=name)
    ax.set_yscale("log")
    ax.legend(frameon=False, fontsize=9.5, ncols=3, loc="upper right")


def _busiest_cuts(view: WorldView, chosen: Mapping[str, np.ndarray]) -> tuple[Cut, ...]:
    """Take the slice of each plane that shows most selected voxels, rare tissues counting as much as frequent ones."""
    if len(view.planes()) == 1:
        return view.cuts()
    weight = sum((selected / max(np.count_nonzero(selected), 1) for selected in chosen.values()), np.zeros(view.shape))
    if not weight.any():
        return view.cuts()
    others = {plane.axis: tuple(axis for axis in range(3) if axis != plane.axis) for plane in PLANES}
    return tuple(Cut(plane, int(np.argmax(weight.sum(axis=others[plane.axis])))) for plane in view.planes())


def _draw_selection(axes, view: WorldView, cuts, background: np.ndarray, voxels: Mapping[str, np.ndarray]) -> None:
    for ax, cut in zip(axes, cuts, strict=True):
        image = np.repeat(0.8 * slice_of(background, cut)[..., None], 3, axis=2)
        for tissue, (_, colour) in TISSUES.items():
            if tissue in voxels:
                image[slice_of(view.volume(np.asarray(voxels[tissue], bool)), cut)] = _rgb(colour)
        show_slice(ax, view, cut, image)
    counts = [f"{name} {np.count_nonzero(voxels[tissue])}" for tissue, (name, _) in TISSUES.items() if tissue in voxels]
    axes[0].text(
        0.02,
        0.97,
        "voxels in all: " + ", ".join(counts),
        transform=axes[0].transAxes,
        color="white",
        fontsize=8.5,
        va="top",
    )


def _rgb(colour: str) -> np.ndarray:
    return np.array([int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)])


@lru_cache(maxsize=1)
def _sphere_mesh() -> tuple[np.ndarray, np.ndarray]:
    """Split an icosahedron three times: 642 points on the sphere and 1280 faces, counter-clockwise from outside."""
    golden = (1 + np.sqrt(5)) / 2
    points = [(s * 1.0, t * golden, 0.0) for s in (-1, 1) for t in (-1, 1)]
    points = np.array([np.roll(point, turn) for turn in range(3) for point in points])
    edge = np.linalg.norm(points[:, None] - points[None], axis=2)
    near = np.isclose(edge, 2.0)
    faces = [
        (i, j, k) for i in range(12) for j in range(i) for k in range(j) if near[i, j] and near[j, k] and near[i, k]
    ]
    points = points / np.linalg.norm(points[0])
    for _ in range(3):
        points, faces = _split(points, faces)
    faces = np.array(faces)
    a, b, c = points[faces].transpose(1, 0, 2)
    inward = np.einsum("ij,ij->i", np.cross(b - a, c - a), a) < 0
    faces[inward] = faces[inward][:, ::-1]
    return points, faces


def _split(points: np.ndarray, faces: Sequence[tuple[int, int, int]]) -> tuple[np.ndarray, list[tuple[int, int, int]]]:
    """Cut each triangle into four at the middles of its edges, pushed out to the sphere."""
    points, middles, smaller = list(points), {}, []

    def middle(i: int, j: int) -> int:
        key = (min(i, j), max(i, j))
        if key not in middles:
            middles[key] = len(points)
            centre = points[i] + points[j]
            points.append(centre / np.linalg.norm(centre))
        return middles[key]

    for i, j, k in faces:
        ij, jk, ki = middle(i, j), middle(j, k), middle(k, i)
        smaller += [(i, ij, ki), (ij, j, jk), (ki, jk, k), (ij, jk, ki)]
    return np.array(points), smaller


def _amplitudes(coefficients: np.ndarray, chosen: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Evaluate the non-negative part of the fODF of the chosen rows, shape (rows, points)."""
    picked = np.nan_to_num(np.asarray(coefficients[chosen], dtype=np.float64))
    return np.clip(picked @ sh_basis(points, l_max_of(picked.shape[1])).T, 0, None)


def _dec_image(coefficients: np.ndarray, chosen: np.ndarray, top: float) -> np.ndarray:
    r"""Colour a slice: hue of :math:`\int |u| f(u) du` (Dhollander et al. 2015), brightness by the fODF's integral."""
    image = np.zeros((*chosen.shape, 3))
    inside = chosen >= 0
    if inside.any():
        points, _ = _sphere_mesh()
        mean = _amplitudes(coefficients, chosen[inside], points) @ np.abs(points)
        hue = mean / np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), np.finfo(float).tiny)
        strength = np.clip(np.nan_to_num(coefficients[chosen[inside], 0]) / top, 0, 1)
        image[inside] = hue * strength[:, None]
    return np.clip(image, 0, 1)


def _busiest_window(view: WorldView, cut: Cut, strength: np.ndarray) -> tuple[float, float, float, float]:
    """Place a window of at most WINDOW x WINDOW voxels where the slice shows most; left, right, bottom, top in mm."""
    box = []
    sums = np.pad(np.cumsum(np.cumsum(strength, axis=0), axis=1), ((1, 0), (1, 0)))
    height, width = (min(WINDOW, size) for size in strength.shape)
    total = sums[height:, width:] - sums[:-height, width:] - sums[height:, :-width] + sums[:-height, :-width]
    bottom, left = (
        np.unravel_index(np.argmax(total), total.shape)
        if total.any()
        else ((strength.shape[0] - height) // 2, (strength.shape[1] - width) // 2)
    )
    for start, size, axis in ((left, width, cut.plane.right), (bottom, height, cut.plane.up)):
        box += [float(start * view.zooms[axis]), float((start + size) * view.zooms[axis])]
    return tuple(box)


def _box_aspect(box: tuple[float, float, float, float]) -> float:
    return (box[1] - box[0]) / (box[3] - box[2])


def _places(view: WorldView, cut: Cut, chosen: np.ndarray, box) -> tuple[np.ndarray, np.ndarray]:
    """List the rows of the mask's voxels of a slice and their centres in the panel, mm; only those in the box."""
    up, right = np.nonzero(chosen >= 0)
    centres = np.stack([(right + 0.5) * view.zooms[cut.plane.right], (up + 0.5) * view.zooms[cut.plane.up]], axis=1)
    if box is not None:
        seen = (centres[:, 0] > box[0]) & (centres[:, 0] < box[1]) & (centres[:, 1] > box[2]) & (centres[:, 1] < box[3])
        up, right, centres = up[seen], right[seen], centres[seen]
    return chosen[up, right], centres


def _draw_glyphs(ax, view: WorldView, cut: Cut, coefficients: np.ndarray, chosen: np.ndarray, box) -> None:
    """Draw fODF surfaces as shaded triangles, the far ones first; faces turned away are left out."""
    rows, centres = _places(view, cut, chosen, box)
    if not len(rows):
        return
    plane = cut.plane
    points, faces = _sphere_mesh()
    amplitudes = _amplitudes(coefficients, rows, points).astype(np.float32)
    largest = _positive_percentile(amplitudes.max(axis=1), 95)
    radius = 0.62 * min(view.zooms[plane.right], view.zooms[plane.up]) * np.minimum(amplitudes / largest, 1.25)

    seen = view.directions(points)[:, [plane.right, plane.up, plane.axis]].astype(np.float32)
    seen[:, 2] *= plane.towards_viewer
    corners = (radius[..., None] * seen)[:, faces]  # (glyphs, faces, 3 corners, 3)
    first, second = corners[:, :, 1] - corners[:, :, 0], corners[:, :, 2] - corners[:, :, 0]
    normals = np.cross(first, second)
    length = np.linalg.norm(normals, axis=2)
    visible = (normals[..., 2] > 0) & (length > 1e-5 * radius.max() ** 2)
    glyph, face = np.nonzero(visible)
    depth = corners[glyph, face, :, 2].mean(axis=1)
    nearest_last = np.argsort(depth, kind="stable")
    glyph, face = glyph[nearest_last], face[nearest_last]
    light = 0.4 + 0.6 * normals[glyph, face, 2] / length[glyph, face]
    colours = np.abs(points[faces].mean(axis=1))
    colours = (colours / colours.max(axis=1, keepdims=True))[face] * light[:, None]
    polygons = corners[glyph, face, :, :2] + centres[glyph][:, None]
    ax.add_collection(
        PolyCollection(
            polygons, facecolors=np.clip(colours, 0, 1), edgecolors="face", linewidths=0.15, antialiaseds=True
        ),
        autolim=False,
    )


def _draw_sticks(ax, view, cut, directions, amplitudes, chosen, scale, width, box) -> None:
    """Draw peaks as centred lines, those along the line of sight short, the strong ones last."""
    rows, centres = _places(view, cut, chosen, box)
    if not len(rows):
        return
    world, size = np.asarray(directions[rows], float), np.nan_to_num(np.asarray(amplitudes[rows], float))
    present = (size > 0) & (np.linalg.norm(world, axis=2) > 0)
    voxel, number = np.nonzero(present)
    order = np.argsort(size[voxel, number])
    voxel, number = voxel[order], number[order]
    world, size = world[voxel, number], size[voxel, number]
    half = 0.55 * min(view.zooms[cut.plane.right], view.zooms[cut.plane.up]) * np.minimum(size / scale, 1.2)
    flat = view.directions(world)[:, [cut.plane.right, cut.plane.up]] * half[:, None]
    lines = np.stack([centres[voxel] - flat, centres[voxel] + flat], axis=1)
    colours = np.abs(world)
    colours = colours / np.maximum(colours.max(axis=1, keepdims=True), np.finfo(float).tiny)
    ax.add_collection(LineCollection(lines, colors=colours, linewidths=width, capstyle="round"), autolim=False)


def _segments(view: WorldView, streamlines: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Thin streamlines to a drawable number of segments in view mm, shape (n, 2, 3), and colour them by direction."""
    picks = (
        np.unique(np.linspace(0, len(streamlines) - 1, min(len(streamlines), MAX_STREAMLINES)).astype(int))
        if len(streamlines)
        else []
    )
    lines = [np.asarray(streamlines[int(pick)], float) for pick in picks]
    step = max(1, -(-sum(len(line) for line in lines) // MAX_SEGMENTS))
    pieces = [line[np.unique(np.r_[0 : len(line) : step, len(line) - 1])] for line in lines if len(line) > 1]
    if not pieces:
        return np.empty((0, 2, 3)), np.empty((0, 3))
    world = np.concatenate([np.stack([piece[:-1], piece[1:]], axis=1) for piece in pieces])
    along = np.abs(world[:, 1] - world[:, 0])
    colours = along / np.maximum(along.max(axis=1, keepdims=True), np.finfo(float).tiny)
    return view.points(world.reshape(-1, 3)).reshape(-1, 2, 3), colours


def _draw_segments(ax, plane, segments: np.ndarray, colours: np.ndarray) -> None:
    """Draw segments back to front; far ones are darker, so that depth can be read."""
    depth = segments[:, :, plane.axis].mean(axis=1) * plane.towards_viewer
    order = np.argsort(depth)
    spread = np.ptp(depth) or 1.0
    light = 0.35 + 0.65 * (depth[order] - depth.min()) / spread
    lines = segments[order][:, :, [plane.right, plane.up]]
    ax.add_collection(LineCollection(lines, colors=colours[order] * light[:, None], linewidths=0.6), autolim=False)


def _draw_shell_residuals(ax, residuals: Mapping[str, ArrayLike]) -> None:
    ax.set_title("Residual by shell", color=INK, pad=5)
    values = {str(label): np.asarray(entry, float).ravel() for label, entry in residuals.items()}
    values = {label: entry[np.isfinite(entry)] for label, entry in values.items()}
    values = {label: entry for label, entry in values.items() if entry.size}
    if not values:
        note_empty(ax, "no residuals", on_black=False)
        return
    colours = _shell_colours(len(values))
    if all(entry.size == 1 for entry in values.values()):
        ax.bar(list(values), [entry[0] for entry in values.values()], color=colours, width=0.6)
        tidy_plot(ax, {"ylabel": "residual"})
        return
    top = max(_positive_percentile(entry, 99) for entry in values.values())
    for (label, entry), colour in zip(values.items(), colours, strict=True):
        ax.hist(entry, bins=np.linspace(0, top, 60), histtype="step", color=colour, lw=1.8, density=True, label=label)
    tidy_plot(ax, {"xlabel": "residual", "ylabel": "density of voxels", "xlim": (0, top)})
    ax.legend(frameon=False, fontsize=9.5)


def _draw_volume_residuals(ax, residuals: np.ndarray) -> None:
    """Draw the residual of each volume; the three worst that stand out (over median + 3 MAD) are named."""
    ax.set_title("Residual by volume", color=INK, pad=5)
    tidy_plot(ax, {"xlabel": "volume", "ylabel": "residual"})
    ax.plot(residuals, "o", ms=4, color="#3d7fd9")
    middle = np.nanmedian(residuals)
    limit = middle + 3 * 1.4826 * np.nanmedian(np.abs(residuals - middle))
    ax.axhline(middle, color=FAINT, lw=1)
    for volume in np.argsort(-np.nan_to_num(residuals))[:3]:
        if residuals[volume] > limit:
            ax.plot(volume, residuals[volume], "o", ms=6, color="#e03131")
            ax.annotate(
                str(volume),
                (volume, residuals[volume]),
                (5, 3),
                textcoords="offset points",
                fontsize=9,
                color="#c92a2a",
            )
