"""The picture of a series in the page of its study: small enough for five hundred of them in one file."""

from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from shd_bids.files import atomic_path
from shd_bids.report.figures.shared import mask_numbers, percentile
from shd_bids.report.glyphs import dec_image
from shd_bids.report.view import PLANES, Cut, slice_of, world_view

__all__ = ["plot_thumbnail"]

SIZE = 96  # pixels along the longer edge
QUALITY = 60


def plot_thumbnail(out_file: Path, *, coefficients: np.ndarray, mask: np.ndarray, affine: ArrayLike) -> Path:
    """Draw the middle axial slice of the fODF in direction-encoded colour.

    Parameters
    ----------
    out_file : Path
        WebP to write.
    coefficients : array, shape (n, C)
        SH coefficients in mask order, basis of MRtrix3, world axes; may be a memory map.
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
    axial = PLANES[2]
    top = percentile(np.clip(np.nan_to_num(coefficients[:, 0]), 0, None), 97)
    colours = dec_image(coefficients, slice_of(mask_numbers(view, mask), Cut(axial, view.focus[axial.axis])), top)
    picture = Image.fromarray(np.round(255 * colours[::-1]).astype(np.uint8))  # rows of a picture run down
    width, height = view.aspect(axial), 1.0
    scale = SIZE / max(width, height)
    picture = picture.resize((max(1, round(scale * width)), max(1, round(scale * height))), Image.Resampling.BICUBIC)
    with atomic_path(out_file) as temporary:
        picture.save(temporary, quality=QUALITY, method=6)
    return out_file
