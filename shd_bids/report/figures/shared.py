"""What several pictures need: the page, rows of slices, values in mask order, grey images."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from shd_bids.boxes import row_numbers
from shd_bids.files import atomic_path
from shd_bids.report.view import DPI, Cut, Row, WorldView, colour_bar, show_slice, slice_of

CURVE_PADDING = (0.8, 0.1, 0.55, 0.05)  # inches left, right, below and above a plot for its ticks and labels


def save(figure: Figure, out_file: Path) -> Path:
    """Write the figure whole or not at all, with the words of its rows, and no software: equal input gives equal bytes."""
    FigureCanvasAgg(figure)
    with atomic_path(Path(out_file)) as temporary:
        figure.savefig(temporary, dpi=DPI, metadata={"Software": None, "Description": figure.get_label()})
    return Path(out_file)


def slices_row(
    view: WorldView, cuts: Sequence[Cut], title: str, *, max_height: float = 5.0, margin_right: float = 0.0
) -> Row:
    """Return a row with one panel for each slice."""
    aspects = [view.aspect(cut.plane) for cut in cuts]
    return Row(aspects, title=title, max_height=max_height, margin_right=margin_right)


def show_grey(ax: Axes, view: WorldView, cut: Cut, volume: np.ndarray, *, brightness: float = 1.0) -> None:
    """Draw a slice of a grey image of values in 0..1, darkened where something is drawn over it."""
    show_slice(ax, view, cut, brightness * slice_of(volume, cut), cmap="gray", norm=Normalize(0, 1))


def show_maps(
    axes: Sequence[Axes],
    view: WorldView,
    cuts: Sequence[Cut],
    images: Sequence[np.ndarray],
    *,
    palette: ScalarMappable,
    label: str,
) -> None:
    """Draw one image, shape (up, right), in each panel of a row and the colour bar of all at its end."""
    for ax, cut, image in zip(axes, cuts, images, strict=True):
        show_slice(ax, view, cut, image, cmap=palette.cmap, norm=palette.norm)
    colour_bar(axes, palette, label)


def mask_numbers(view: WorldView, mask: np.ndarray) -> np.ndarray:
    """Return the row of each voxel of the view in mask order, -1 outside."""
    return view.volume(row_numbers(mask))


def in_view(values: np.ndarray, numbers: np.ndarray, *, fill: float = 0.0) -> np.ndarray:
    """Return values in mask order, shape (n, ...), as a volume of the view."""
    volume = np.full((*numbers.shape, *values.shape[1:]), fill)
    inside = numbers >= 0
    volume[inside] = values[numbers[inside]]
    return volume


def percentile(values: np.ndarray, percent: float) -> float:
    """Return a percentile of the positive finite values, 1 when there are none."""
    positive = values[np.isfinite(values) & (values > 0)]
    return float(np.percentile(positive, percent)) if positive.size else 1.0


def grey_image(volume: np.ndarray, inside: np.ndarray | None) -> np.ndarray:
    """Return an image scaled to 0..1 by the 1st and 99th percentile in the mask (of all voxels when the mask is empty)."""
    volume = np.nan_to_num(np.asarray(volume, float))
    values = volume[inside] if inside is not None and inside.any() else volume.ravel()
    low, high = np.percentile(values, (1, 99)) if values.size else (0.0, 1.0)
    low = min(low, 0.3 * high)  # an image of one tissue must not lose its grey to the window
    return np.clip((volume - low) / max(high - low, np.finfo(np.float64).tiny), 0, 1)
