"""Pictures inside a page, with their numbers in words."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from shd_bids.report.expected import measured_number
from shd_bids.report.facts import RunReport, connectome_texts, dig, listed

QUALITY = 84
"""Of WebP, 0 to 100: no difference is seen at the size of the page."""


@dataclass(frozen=True)
class Picture:
    """A picture as the page holds it.

    Attributes
    ----------
    data : str
        Address that contains the picture.
    width, height : int
        Pixels.
    rows : sequence of str
        What each row of panels shows, from the top.
    """

    data: str
    width: int
    height: int
    rows: Sequence[str]


def embed(path: Path) -> Picture:
    """Return a picture recoded as WebP, a fraction of the size of its PNG."""
    with Image.open(path) as image:
        rows = str(image.info.get("Description", "")).splitlines()
        picture = image.convert("RGB")
    coded = io.BytesIO()
    picture.save(coded, "WEBP", quality=QUALITY)
    return Picture(f"data:image/webp;base64,{base64.b64encode(coded.getvalue()).decode()}", *picture.size, rows)


def alternative(desc: str, title: str, run: RunReport) -> str:
    """Return what a picture shows in words, with the numbers that were measured."""
    told = [words for words in (_number(run, *entry) for entry in NUMBERS.get(desc, ())) if words]
    if desc == "connectome":
        told = connectome_texts(run)
    return f"{title} of {run.prefix}" + (f": {listed(told)}" if told else "") + "."


def _number(run: RunReport, column: str, form: str) -> str:
    value: Any = dig(run.facts, *column.split("/")) if "/" in column else measured_number(run, column)
    return form.format(value) if isinstance(value, int | float) else ""


NUMBERS: dict[str, tuple[tuple[str, str], ...]] = {
    "gradients": (
        ("n_volumes", "{:.0f} volumes"),
        ("n_b0", "{:.0f} of them with b = 0"),
        ("gradient_coherence_given", "fibre coherence {:.3f} with the directions as given"),
        ("gradient_coherence_best", "{:.3f} with the best orientation"),
    ),
    "mask": (("mask_volume_ml", "{:,.0f} ml outlined over the mean b = 0 image"),),
    "response": (
        ("n_voxels_response_wm", "{:,.0f} voxels of white matter"),
        ("n_voxels_response_gm", "{:,.0f} of grey matter"),
        ("n_voxels_response_csf", "{:,.0f} of CSF"),
    ),
    "fodf": (("fod/sidecar/fod_lmax", "surfaces of degree {:.0f}"), ("snr", "signal-to-noise ratio {:.0f}")),
    "residual": (
        ("fit_r2_median", "median R² {:.3f}"),
        ("fit_misfit_share", "{:.1%} of the voxels with a residual that noise does not explain"),
    ),
    "peaks": (
        ("nufo_mean", "{:.2f} fibres per voxel of white matter"),
        ("afd_total_wm_median", "median total apparent fibre density {:.2f} in white matter"),
        ("afd_total_csf_median", "{:.2f} in CSF"),
    ),
    "tractogram": (
        ("n_streamlines", "{:,.0f} streamlines"),
        ("streamline_length_median", "median length {:.0f} mm"),
        ("streamline_length_p95", "95 % shorter than {:.0f} mm"),
    ),
    "tdi": (("mask_coverage", "{:.0%} of the mask visited"),),
}
"""By label of the figure: column of the quality table, or path in the facts, and the words around it."""
