"""Draw known bundles of a real scan, chosen from a tractogram by boxes that a neuroanatomist would place.

    python tests/benchmarks/bundles.py TRACTOGRAM SCAN PICTURE

TRACTOGRAM is a TRX, TCK or TRK of the whole brain, SCAN the BIDS data set of TractSeg's example, for which the boxes hold. Prints
how many streamlines each bundle has on the right and on the left. PICTURE (PNG) has a row for each bundle and a panel for each
plane, over the mean signal of the slice in the bundle's middle.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import heldout
import nibabel as nib
import numpy as np
from measured import Series
from nibabel.streamlines import ArraySequence

from shd_bids.report.figures.shared import grey_image, save, show_grey
from shd_bids.report.glyphs import cut_to_segments, draw_segments
from shd_bids.report.view import Cut, Row, gallery, world_view
from shd_bids.tractography.files import read_trx

Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
"""First and last voxel along each axis of the scan, the first of which runs from right to left."""

_MIDDLE = 36  # voxel of the midsagittal plane
_AT_MOST = 1500  # streamlines drawn of a bundle
_EVERYWHERE = (0, 200)
_MIDSAGITTAL: Box = ((_MIDDLE, _MIDDLE), _EVERYWHERE, _EVERYWHERE)


@dataclass(frozen=True)
class Bundle:
    """What a streamline visits on the right, and what it keeps out of.

    Attributes
    ----------
    name : str
    through, avoiding : tuple of Box
    has_sides : bool
        Whether there is one on each side, mirrored.
    """

    name: str
    through: tuple[Box, ...]
    avoiding: tuple[Box, ...] = ()
    has_sides: bool = True

    def mirrored(self) -> Bundle:
        """Return the bundle of the left side."""
        return Bundle(self.name, tuple(map(_mirrored, self.through)), tuple(map(_mirrored, self.avoiding)))


BUNDLES = (
    Bundle(
        "corpus callosum",
        (((36, 36), (30, 63), (28, 41)), ((22, 31), _EVERYWHERE, (26, 70)), ((41, 50), _EVERYWHERE, (26, 70))),
        (((20, 52), _EVERYWHERE, (0, 14)), ((30, 42), (46, 58), (0, 27))),  # brain stem, anterior commissure
        has_sides=False,
    ),
    Bundle(
        "corticospinal tract",
        (((28, 36), (28, 44), (12, 16)), ((24, 33), (36, 50), (30, 32)), ((14, 35), (30, 52), (46, 50))),
        (_MIDSAGITTAL, ((0, 72), (0, 28), _EVERYWHERE)),
    ),
    Bundle(
        "superior longitudinal fasciculus",
        (((17, 27), (36, 36), (34, 46)), ((17, 27), (48, 48), (34, 46))),
        (_MIDSAGITTAL, (_EVERYWHERE, _EVERYWHERE, (0, 14))),
    ),
    Bundle(
        "cingulum",
        (((31, 35), (38, 38), (39, 44)), ((31, 35), (50, 50), (39, 44))),
        (_MIDSAGITTAL,),
    ),
)


def main() -> int:
    """Choose, count and draw the bundles."""
    options = _options()
    scan = heldout.read_scan(options.scan)
    lines = _read(options.tractogram)
    visits = _Visits(lines, scan.affine)
    chosen = []
    for bundle in BUNDLES:
        sides = (bundle, bundle.mirrored()) if bundle.has_sides else (bundle,)
        found = [visits.of(side) for side in sides]
        print(f"{bundle.name}: {' and '.join(str(len(side)) for side in found)} of {len(lines)}")
        chosen.append(lines[np.concatenate(found)])
    print(draw(options.picture, scan, chosen))
    return 0


class _Visits:
    """Which streamlines pass which boxes."""

    def __init__(self, lines: ArraySequence, affine: np.ndarray) -> None:
        points = nib.affines.apply_affine(np.linalg.inv(affine), lines.get_data())
        self._voxels = np.rint(points).astype(int)
        self._owner, self._n = np.repeat(np.arange(len(lines)), lines._lengths), len(lines)

    def of(self, bundle: Bundle) -> np.ndarray:
        """Return the numbers of the streamlines of a bundle."""
        passed = [self._in(box) for box in bundle.through]
        avoided = [~self._in(box) for box in bundle.avoiding]
        return np.flatnonzero(np.logical_and.reduce(passed + avoided))

    def _in(self, box: Box) -> np.ndarray:
        low, high = np.array(box).T
        inside = ((self._voxels >= low) & (self._voxels <= high)).all(axis=1)
        return np.bincount(self._owner[inside], minlength=self._n) > 0


def draw(path: Path, scan: Series, bundles: list[ArraySequence]) -> Path:
    """Draw each bundle in three planes."""
    view = world_view(scan.mask.shape, scan.affine, scan.mask)
    grey = grey_image(view.volume(scan.signal.mean(axis=-1)), view.volume(scan.mask))
    planes = view.planes()
    rows = [Row([view.aspect(plane) for plane in planes], title=bundle.name, max_height=5.0) for bundle in BUNDLES]
    figure, axes = gallery(rows)
    for row, lines in zip(axes, bundles, strict=True):
        segments, colours = cut_to_segments(view, lines, n_streamlines=_AT_MOST, n_segments=200_000)
        for ax, plane in zip(row, planes, strict=True):
            middle = np.median(segments[:, :, plane.axis]) if len(segments) else 0.0
            show_grey(ax, view, Cut(plane, int(middle / view.zooms[plane.axis])), grey, brightness=0.5)
            draw_segments(ax, plane, segments, colours, width=0.5)
    return save(figure, path)


def _mirrored(box: Box) -> Box:
    (low, high), back, down = box
    return (2 * _MIDDLE - high, 2 * _MIDDLE - low), back, down


def _read(path: Path) -> ArraySequence:
    return read_trx(path) if path.suffix == ".trx" else nib.streamlines.load(path).streamlines


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tractogram", type=Path)
    parser.add_argument("scan", type=Path)
    parser.add_argument("picture", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
