"""Pictures of what goes into the fit: gradient table, mask, responses."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from shd_bids.boxes import chunks
from shd_bids.report.curves import (
    TISSUE_COLOURS,
    draw_decay,
    draw_response,
    draw_scheme,
    draw_scores,
    draw_sphere,
    shell_colours,
)
from shd_bids.report.facts import TISSUE_NAMES
from shd_bids.report.figures.shared import CURVE_PADDING, grey_image, save, show_grey, slices_row
from shd_bids.report.glyphs import draw_outline
from shd_bids.report.view import (
    FONT,
    INK,
    PLANES,
    Cut,
    Row,
    WorldView,
    gallery,
    note_empty,
    show_slice,
    slice_of,
    world_view,
)

MAX_SPHERES = 5  # shells in a row


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
    lines = [shells[part] for part in chunks(len(shells), MAX_SPHERES)] or [[]]
    titles = [[_shell_title(bvals[numbers == shell]) for shell in line] or [" "] for line in lines]
    heading = "Directions by shell, seen from above (open circles: seen from below)"
    rows = [
        Row([1.0] * max(len(line), 1), title="" if number else heading, max_height=3.3, titles=names)
        for number, (line, names) in enumerate(zip(lines, titles, strict=True))
    ]
    rows.append(Row([5.2], title="Order of the volumes", padding=CURVE_PADDING))
    if len(scores):
        rows.append(Row([4.6], title="Orientation check: all flips and permutations", padding=(0.8, 0.1, 0.6, 0.05)))
    with rc_context(FONT):
        figure, axes = gallery(rows, gap=0.3)
        spheres = [ax for row in axes[: len(lines)] for ax in row]
        if not shells:
            note_empty(spheres[0], "no diffusion-weighted volumes", on_black=False)
        for ax, shell in zip(spheres, shells, strict=False):
            draw_sphere(ax, directions[numbers == shell])
        draw_scheme(axes[len(lines)][0], bvals, numbers)
        if len(scores):
            draw_scores(axes[-1][0], scores)
        return save(figure, out_file)


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
        grey = grey_image(view.volume(b0), inside)
        for row_axes, row_cuts in zip(axes, cuts, strict=True):
            for ax, cut in zip(row_axes, row_cuts, strict=True):
                show_grey(ax, view, cut, grey)
                draw_outline(ax, view, cut.plane, slice_of(inside, cut), colour="#ff4d6d", width=1.1)
        if not mask.any():
            note_empty(axes[0][0], "the mask is empty")
        return save(figure, out_file)


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
    titles = list(TISSUE_NAMES.values())
    rows = [
        Row([1.0] * 3, title="Signal by angle to the fibre (upright)", max_height=3.0, titles=titles),
        Row([5.2], title="Mean signal by b-value (white matter at b = 0 is 1)", padding=CURVE_PADDING),
    ]
    selection = None
    if voxels and b0 is not None and affine is not None:
        selection = _Selection(world_view(b0.shape, affine, mask), voxels)
        rows.append(selection.row())
    with rc_context(FONT):
        figure, axes = gallery(rows, gap=0.25)
        for ax, tissue in zip(axes[0], TISSUE_NAMES, strict=True):
            if tissue in responses:
                draw_response(ax, _table(responses[tissue][1]))
            else:
                note_empty(ax, "not fitted", on_black=False)
        _shell_legend(figure, axes[0], responses)
        draw_decay(axes[1][0], {tissue: (bvalues, _table(rows)) for tissue, (bvalues, rows) in responses.items()})
        if selection is not None:
            selection.draw(axes[2], b0, mask)
        return save(figure, out_file)


class _Selection:
    """The voxels that responses were measured in, over a grey image.

    Parameters
    ----------
    view : WorldView
    voxels : mapping tissue -> bool array, shape (x, y, z)
    """

    def __init__(self, view: WorldView, voxels: Mapping[str, np.ndarray]) -> None:
        self._view = view
        self._chosen = {
            tissue: view.volume(np.asarray(voxels[tissue], bool)) for tissue in TISSUE_NAMES if tissue in voxels
        }
        self._counts = {tissue: np.count_nonzero(voxels[tissue]) for tissue in self._chosen}
        self._cuts = _busiest_cuts(view, self._chosen)

    def row(self) -> Row:
        """Return the row of slices, titled with the number of voxels of each tissue."""
        counts = [f"{TISSUE_NAMES[tissue]} {count}" for tissue, count in self._counts.items()]
        title = "Voxels taken: " + ", ".join(counts) + " (blue, orange, purple)"
        return slices_row(self._view, self._cuts, title, max_height=4.4)

    def draw(self, axes: Sequence[Axes], b0: np.ndarray, mask: np.ndarray | None) -> None:
        """Draw the slices into the panels of the row."""
        inside = None if mask is None else self._view.volume(np.asarray(mask, bool))
        grey = grey_image(self._view.volume(b0), inside)
        for ax, cut in zip(axes, self._cuts, strict=True):
            image = np.repeat(0.8 * slice_of(grey, cut)[..., None], 3, axis=2)
            for tissue, chosen in self._chosen.items():
                image[slice_of(chosen, cut)] = to_rgb(TISSUE_COLOURS[tissue])
            show_slice(ax, self._view, cut, image)


def _table(coefficients: ArrayLike) -> np.ndarray:
    """Return zonal coefficients as (S, L); a response that holds degree 0 only may come as (S,)."""
    values = np.asarray(coefficients, float)
    return values[:, None] if values.ndim == 1 else values


def _shell_title(bvals: np.ndarray) -> str:
    return f"b = {bvals.mean():.0f} s/mm², {len(bvals)} direction{'' if len(bvals) == 1 else 's'}"


def _shell_legend(figure: Figure, axes: Sequence[Axes], responses: Mapping[str, tuple[ArrayLike, ArrayLike]]) -> None:
    """Draw the legend of the shells once, in the heading of the row."""
    bvalues = max((np.asarray(values).ravel() for values, _ in responses.values()), key=len, default=np.empty(0))
    lines = [axes[0].plot([], [], color=colour, lw=2)[0] for colour in shell_colours(len(bvalues))]
    if lines:
        labels = [f"b = {bvalue:.0f}" for bvalue in bvalues]
        place = {"loc": "upper right", "bbox_to_anchor": (0.99, 1.0), "ncols": min(len(lines), 6)}
        figure.legend(lines, labels, frameon=False, fontsize=9.5, labelcolor=INK, **place)


def _busiest_cuts(view: WorldView, chosen: Mapping[str, np.ndarray]) -> tuple[Cut, ...]:
    """Return the slice of each plane with most selected voxels, rare tissues counting as much as frequent ones."""
    weight = np.zeros(view.shape)
    for selected in chosen.values():
        weight += selected / max(np.count_nonzero(selected), 1)
    if len(view.planes()) == 1 or not weight.any():
        return view.cuts()
    others = {plane.axis: tuple(axis for axis in range(3) if axis != plane.axis) for plane in PLANES}
    return tuple(Cut(plane, int(np.argmax(weight.sum(axis=others[plane.axis])))) for plane in view.planes())
