"""Picture of the connectomes."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm

from shd_bids.report.figures.shared import save
from shd_bids.report.view import FONT, INK, Row, colour_bar, gallery, note_empty

MOST = 8  # matrices in one picture
IN_A_ROW = 2
DECADES = 1e-4  # of the largest value, where the scale begins


def plot_connectomes(out_file: Path, *, matrices: Mapping[str, np.ndarray]) -> Path:
    """Draw the matrix of each parcellation on a logarithmic scale that is read alike by every kind of colour vision.

    Parameters
    ----------
    out_file : Path
        PNG to write.
    matrices : mapping
        Name of a parcellation -> (n, n) array, not negative.

    Returns
    -------
    Path
        ``out_file``.
    """
    shown = list(matrices.items())[:MOST]
    pairs = [shown[start : start + IN_A_ROW] for start in range(0, len(shown), IN_A_ROW)]
    rows = [
        Row(
            [1.0] * len(pair),
            titles=[f"{name}: {len(matrix)} regions" for name, matrix in pair],
            padding=(0.5, 0.1, 0.4, 0.0),
            margin_right=1.0,
            max_height=5.0,
        )
        for pair in pairs
    ]
    largest = max((float(matrix.max(initial=0)) for _, matrix in shown), default=0.0) or 1.0
    colours = colormaps["cividis"].with_extremes(under="white", bad="white")
    palette = ScalarMappable(LogNorm(DECADES * largest, largest), colours)
    with rc_context(FONT):
        figure, axes = gallery(rows)
        for pair, panels in zip(pairs, axes, strict=True):
            for (_, matrix), ax in zip(pair, panels, strict=True):
                ax.imshow(np.ma.masked_equal(matrix, 0), cmap=palette.cmap, norm=palette.norm, interpolation="nearest")
                ax.set_xlabel("region")
                ax.tick_params(labelsize=9, colors=INK, length=2)
                if not matrix.any():
                    note_empty(ax, "no connections", on_black=False)
            colour_bar(panels, palette, "strength of the connection")
        return save(figure, out_file)
