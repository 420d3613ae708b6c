"""Streamlines in files: TRX, TCK and TRK."""

import json
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.streamlines import ArraySequence

from shd_bids.files import atomic_path


def save_tractogram(path: Path, streamlines: ArraySequence, affine: np.ndarray, shape: tuple[int, int, int]) -> None:
    """Write streamlines whole or not at all, in the format of the suffix, float32 world mm (RAS+).

    Parameters
    ----------
    path : Path
        Ends in ``.trx``, ``.tck`` or ``.trk``.
    streamlines : ArraySequence
        Points in world mm, inside the image.
    affine : (4, 4) array
        Voxel to world mm, kept in the header (``.trx``, ``.trk``).
    shape : tuple of int
        Size of the image, kept likewise.

    Raises
    ------
    ValueError
        If the suffix is none of the three.
    """
    if path.suffix not in (".trx", ".tck", ".trk"):
        raise ValueError(f"found suffix {path.suffix!r}, expected .trx, .tck or .trk")
    with atomic_path(path) as temporary:
        if path.suffix == ".trx":
            _write_trx(temporary, streamlines, affine, shape)
            return
        header = {}
        if path.suffix == ".trk":
            header = {
                "voxel_to_rasmm": np.asarray(affine, dtype=np.float32),
                "voxel_sizes": nib.affines.voxel_sizes(affine).astype(np.float32),
                "dimensions": np.asarray(shape, dtype=np.int16),
                "voxel_order": "".join(nib.aff2axcodes(affine)),
            }
        tractogram = nib.streamlines.Tractogram(streamlines, affine_to_rasmm=np.eye(4))
        nib.streamlines.save(tractogram, str(temporary), header=header)


def lengths(streamlines: ArraySequence) -> np.ndarray:
    """Return the number of points of each streamline."""
    return np.fromiter(map(len, streamlines), dtype=np.int64, count=len(streamlines))


def _write_trx(path: Path, streamlines: ArraySequence, affine: np.ndarray, shape: tuple[int, int, int]) -> None:
    """Write the TRX container: a zip of one JSON header and two raw arrays.

    trx-python writes it by way of two unpacked copies in the temporary folder; this needs no more than the arrays, and
    equal streamlines give equal bytes.
    """
    points = np.asarray(streamlines.get_data(), dtype="<f4").reshape(-1, 3)
    header = {
        "DIMENSIONS": [int(size) for size in shape],
        "VOXEL_TO_RASMM": np.asarray(affine, dtype=float).tolist(),
        "NB_VERTICES": len(points),
        "NB_STREAMLINES": len(streamlines),
    }
    offsets = np.concatenate([[0], np.cumsum(lengths(streamlines))]).astype("<u8")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as container:
        for name, content in (
            ("header.json", json.dumps(header).encode()),
            ("positions.3.float32", points.tobytes()),
            ("offsets.uint64", offsets.tobytes()),
        ):
            container.writestr(zipfile.ZipInfo(name), content)
