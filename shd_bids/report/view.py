"""Slices in world orientation, whatever the storage order of the image, and a grid of panels to draw them in."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

INK = "#1f2933"
FAINT = "#7b8794"
WIDTH = 12.0  # inches; with DPI 150 a figure fills a laptop's width at twice the resolution of its report column
DPI = 150
FONT = {"font.family": "DejaVu Sans", "font.size": 11.0, "axes.titlesize": 11.0, "axes.labelsize": 10.5}


@dataclass(frozen=True)
class Plane:
    """One of the three anatomical planes, neurological: left is on the left, the front to the right or up.

    Attributes
    ----------
    name : str
        Name for headings.
    axis, right, up : int
        World axis (0 = R, 1 = A, 2 = S) across the plane, along its horizontal, along its vertical.
    labels : tuple of str
        Letters at the left, right, bottom and top edge.
    """

    name: str
    axis: int
    right: int
    up: int
    labels: tuple[str, str, str, str]

    @property
    def towards_viewer(self) -> int:
        """Sign of the world axis that points out of the page (right x up)."""
        return -1 if self.axis == 1 else 1


PLANES = (
    Plane("sagittal", 0, 1, 2, ("P", "A", "I", "S")),
    Plane("coronal", 1, 0, 2, ("L", "R", "I", "S")),
    Plane("axial", 2, 0, 1, ("L", "R", "P", "A")),
)


@dataclass(frozen=True)
class Cut:
    """One slice: a plane and the index along its axis in the view."""

    plane: Plane
    index: int


@dataclass(frozen=True, eq=False)
class WorldView:
    """A volume's storage axes turned to the closest R, A, S and cropped; view coordinates are mm from its corner.

    Attributes
    ----------
    order : tuple of int
        Storage axis nearest to world R, A, S.
    flips : tuple of bool
        True where that storage axis runs the other way.
    crop : tuple of slice
        Part shown, in turned voxels.
    zooms : array, shape (3,)
        Voxel size along R, A, S in mm.
    rotation : array, shape (3, 3)
        Turns directions of the view into world directions: identity unless the image is oblique.
    to_view : array, shape (4, 4)
        World mm to view mm.
    shape : tuple of int
        Voxels shown.
    focus : tuple of int
        Voxel through which single slices are drawn: the middle of the mask.
    """

    order: tuple[int, ...]
    flips: tuple[bool, ...]
    crop: tuple[slice, ...]
    zooms: np.ndarray
    rotation: np.ndarray
    to_view: np.ndarray
    shape: tuple[int, ...]
    focus: tuple[int, ...]

    def volume(self, values: np.ndarray) -> np.ndarray:
        """Return an image turned and cropped, shape (x, y, z) or (x, y, z, n) in storage order."""
        turned = np.moveaxis(values, self.order, (0, 1, 2))
        return turned[tuple(slice(None, None, -1) if flip else slice(None) for flip in self.flips)][self.crop]

    def directions(self, world: ArrayLike) -> np.ndarray:
        """Return world directions, shape (..., 3), in the axes of the picture."""
        return np.asarray(world) @ self.rotation

    def points(self, world: ArrayLike) -> np.ndarray:
        """Return world positions in mm, shape (n, 3), in mm from the corner of the view."""
        return np.asarray(world) @ self.to_view[:3, :3].T + self.to_view[:3, 3]

    def extent(self, plane: Plane) -> tuple[float, float, float, float]:
        """Return left, right, bottom, top of a plane in mm."""
        size = np.multiply(self.shape, self.zooms)
        return (0.0, float(size[plane.right]), 0.0, float(size[plane.up]))

    def aspect(self, plane: Plane) -> float:
        """Return width over height of a plane."""
        _, width, _, height = self.extent(plane)
        return width / height

    def planes(self) -> tuple[Plane, ...]:
        """Return the planes worth drawing: those that are not a thin strip (a slab of two slices has one)."""
        worth = tuple(plane for plane in PLANES if 0.2 <= self.aspect(plane) <= 5.0)
        return worth or (max(PLANES, key=lambda plane: self.shape[plane.right] * self.shape[plane.up]),)

    def cuts(self) -> tuple[Cut, ...]:
        """Return the slices of a summary: one per plane through the focus, or up to three of the only plane."""
        planes = self.planes()
        if len(planes) > 1:
            return tuple(Cut(plane, self.focus[plane.axis]) for plane in planes)
        return self.mosaic(planes[0], 3)

    def mosaic(self, plane: Plane, n: int) -> tuple[Cut, ...]:
        """Return up to ``n`` evenly spaced slices of one plane, the outermost 15 % left out."""
        size = self.shape[plane.axis]
        if size <= n:
            return tuple(Cut(plane, index) for index in range(size))
        indices = np.linspace(0.15 * (size - 1), 0.85 * (size - 1), n).round().astype(int)
        return tuple(Cut(plane, int(index)) for index in indices)


def world_view(
    shape: Sequence[int], affine: ArrayLike, mask: np.ndarray | None = None, *, margin: int = 2
) -> WorldView:
    """Return the view of an image with right, front and top where the reader expects them.

    Parameters
    ----------
    shape : sequence of int
        Image shape, at least (x, y, z).
    affine : array, shape (4, 4)
        Voxel to world mm.
    mask : bool array, shape (x, y, z), optional
        What must be seen; the view is cropped to it.
    margin : int
        Voxels kept around the mask.

    Returns
    -------
    WorldView
    """
    affine = np.asarray(affine, dtype=float)
    linear = affine[:3, :3]
    sizes = np.linalg.norm(linear, axis=0)
    cosines = linear / np.where(sizes > 0, sizes, 1.0)  # column: world direction of a storage axis
    order = max(permutations(range(3)), key=lambda axes: sum(abs(cosines[world, axes[world]]) for world in range(3)))
    flips = tuple(bool(cosines[world, order[world]] < 0) for world in range(3))

    turn = np.zeros((4, 4))  # turned voxel -> storage voxel
    turn[3, 3] = 1.0
    for world, (axis, flip) in enumerate(zip(order, flips, strict=True)):
        turn[axis, world] = -1.0 if flip else 1.0
        turn[axis, 3] = shape[axis] - 1 if flip else 0
    turned_shape = tuple(int(shape[axis]) for axis in order)
    crop, focus = _bounds(mask, order, flips, turned_shape, margin)

    turned_affine = affine @ turn
    left, _, right = np.linalg.svd(turned_affine[:3, :3])
    zooms = sizes[list(order)]
    scale = np.diag([*zooms, 1.0])
    scale[:3, 3] = zooms * (0.5 - np.array([part.start for part in crop]))  # voxel centres lie half a voxel inside
    return WorldView(
        order=order,
        flips=flips,
        crop=crop,
        zooms=zooms,
        rotation=left @ right,  # polar factor
        to_view=scale @ np.linalg.inv(turned_affine),
        shape=tuple(part.stop - part.start for part in crop),
        focus=tuple(int(middle - part.start) for middle, part in zip(focus, crop, strict=True)),
    )


def _bounds(
    mask: np.ndarray | None, order: Sequence[int], flips: Sequence[bool], shape: Sequence[int], margin: int
) -> tuple[tuple[slice, ...], tuple[int, ...]]:
    """Return the box of the mask and its middle voxel in turned axes; the whole image when the mask is empty."""
    if mask is None or not mask.any():
        return tuple(slice(0, size) for size in shape), tuple(size // 2 for size in shape)
    crop, focus = [], []
    for axis, flip, size in zip(order, flips, shape, strict=True):
        counts = np.count_nonzero(mask, axis=tuple(other for other in range(3) if other != axis))
        counts = counts[::-1] if flip else counts
        filled = np.flatnonzero(counts)
        crop.append(slice(max(int(filled[0]) - margin, 0), min(int(filled[-1]) + margin + 1, size)))
        focus.append(int(np.searchsorted(np.cumsum(counts), counts.sum() / 2)))
    return tuple(crop), tuple(focus)


def slice_of(volume: np.ndarray, cut: Cut) -> np.ndarray:
    """Return one slice of a turned volume as an image, rows from bottom to top, shape (up, right[, channels])."""
    return np.swapaxes(np.take(volume, cut.index, axis=cut.plane.axis), 0, 1)


def show_slice(
    ax: Axes,
    view: WorldView,
    cut: Cut,
    image: np.ndarray | None,
    *,
    cmap: str | Colormap | None = None,
    norm: Normalize | None = None,
) -> None:
    """Draw one slice on black with its letters L R A P S I; without an image only the empty black frame."""
    extent = view.extent(cut.plane)
    ax.set_facecolor("black")
    if image is not None:
        ax.imshow(image, origin="lower", extent=extent, interpolation="nearest", cmap=cmap, norm=norm)
    ax.set(xlim=extent[:2], ylim=extent[2:], aspect="equal")
    frame_panel(ax)
    letter_edges(ax, cut.plane)


def frame_panel(ax: Axes) -> None:
    """Remove ticks and spines: the axes become a plain picture."""
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)


def letter_edges(ax: Axes, plane: Plane) -> None:
    """Write the world letters at the four edges of a panel, rimmed in black to be read on any picture."""
    places = [(0.02, 0.5, "left", "center"), (0.98, 0.5, "right", "center")]
    places += [(0.5, 0.02, "center", "bottom"), (0.5, 0.98, "center", "top")]
    for letter, (x, y, ha, va) in zip(plane.labels, places, strict=True):
        text = ax.text(x, y, letter, transform=ax.transAxes, ha=ha, va=va, color="#ffe08a", fontweight="bold")
        text.set(fontsize=10.5, zorder=9, path_effects=[patheffects.withStroke(linewidth=2.5, foreground="black")])


def note_empty(ax: Axes, text: str, *, on_black: bool = True) -> None:
    """Write in the middle of a panel why there is nothing in it."""
    frame_panel(ax)
    ax.set_facecolor("black" if on_black else "#f5f7fa")
    colour = "#cbd2d9" if on_black else FAINT
    ax.text(0.5, 0.5, text, transform=ax.transAxes, ha="center", va="center", color=colour, fontsize=11, zorder=9)


@dataclass(frozen=True)
class Row:
    """One row of panels that share their height.

    Attributes
    ----------
    aspects : sequence of float
        Width over height of each panel.
    title : str
        What the row shows; told beside the picture, not in it.
    max_height : float
        Inches; a row that would be higher is made narrower and centred.
    padding : tuple of float
        Inches kept free left, right, below and above each panel, for ticks and labels.
    margin_right : float
        Inches kept free at the right end of the row, for a colour bar.
    titles : sequence of str
        What each panel shows; told as the title is.
    """

    aspects: Sequence[float]
    title: str = ""
    max_height: float = 5.0
    padding: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    margin_right: float = 0.0
    titles: Sequence[str] = ()

    @property
    def words(self) -> str:
        """Title of the row and of its panels."""
        panels = ", ".join(filter(None, self.titles))
        return ": ".join(filter(None, [self.title, panels])) + (" (from the left)" if len(self.titles) > 1 else "")


def gallery(rows: Sequence[Row], *, gap: float = 0.08) -> tuple[Figure, list[list[Axes]]]:
    """Return a figure with rows of panels, each filling the width, none overlapping.

    Parameters
    ----------
    rows : sequence of Row
        From top to bottom.
    gap : float
        Inches between panels.

    Returns
    -------
    figure : Figure
        White, WIDTH inches wide, as high as the rows need; its label holds the words of the rows, one line each.
    axes : list of list of Axes
        One list per row.
    """
    rest = 0.14
    sizes = [_row_size(row, gap) for row in rows]
    heights = [row.padding[2] + row.padding[3] + size + rest for row, (size, _) in zip(rows, sizes, strict=True)]
    total = sum(heights) + rest
    figure = Figure(figsize=(WIDTH, total), dpi=DPI, facecolor="white")
    figure.set_label("\n".join(row.words for row in rows))
    grid: list[list[Axes]] = []
    top = total - rest / 2
    for row, (height, start), used in zip(rows, sizes, heights, strict=True):
        below = top - row.padding[3] - height
        left, panels = start, []
        for aspect in row.aspects:
            left += row.padding[0]
            box = (left / WIDTH, below / total, aspect * height / WIDTH, height / total)
            panels.append(figure.add_axes(box))
            left += aspect * height + row.padding[1] + gap
        grid.append(panels)
        top -= used
    return figure, grid


def _row_size(row: Row, gap: float) -> tuple[float, float]:
    """Return a row's height and left edge in inches."""
    outer = 0.12
    free = WIDTH - 2 * outer - row.margin_right - gap * (len(row.aspects) - 1)
    free -= len(row.aspects) * (row.padding[0] + row.padding[1])
    height = min(free / sum(row.aspects), row.max_height)
    return height, outer + (free - height * sum(row.aspects)) / 2


def colour_bar(axes: Sequence[Axes], mappable: ScalarMappable, label: str) -> None:
    """Draw a slim colour bar in the margin right of the last panel of a row."""
    last = axes[-1]
    figure, box = last.figure, last.get_position()
    bar = figure.add_axes((box.x1 + 0.12 / WIDTH, box.y0, 0.14 / WIDTH, box.height))
    scale = figure.colorbar(mappable, cax=bar)
    scale.set_label(label, color=INK)
    scale.outline.set_visible(False)
    bar.tick_params(labelsize=9, colors=INK, length=2)
