"""Streamlines in files: written to TRX as they come, then copied to TCK and TRK."""

import json
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO

import nibabel as nib
import numpy as np
from nibabel.streamlines import ArraySequence, LazyTractogram

from shd_bids.boxes import chunks
from shd_bids.files import atomic_path

_POSITIONS = "positions.3.float32"


class TrxWriter:
    """What is appended to a TRX container, see `trx_writer`; what is known of each streamline is held until the end.

    Parameters
    ----------
    positions : file
        Takes the points as they come.
    """

    def __init__(self, positions: IO[bytes]) -> None:
        self._positions = positions
        self._lengths: list[np.ndarray] = [np.zeros(0, dtype=np.int64)]
        self._each: dict[str, list[np.ndarray]] = {}

    def add(self, points: np.ndarray, lengths: np.ndarray, each: Mapping[str, np.ndarray] | None = None) -> None:
        """Append streamlines.

        Parameters
        ----------
        points : (p, 3) array
            World mm (RAS+), one streamline after another.
        lengths : (s,) array
            Number of points of each.
        each : mapping, optional
            Name -> (s,) or (s, k) array, data per streamline.
        """
        self._positions.write(np.ascontiguousarray(points, dtype="<f4").tobytes())
        self._lengths.append(lengths)
        for name, values in (each or {}).items():
            self._each.setdefault(name, []).append(values)

    def entries(self, affine: np.ndarray, shape: tuple[int, int, int]) -> Iterator[tuple[str, bytes]]:
        """Yield name and content of every other entry of the container."""
        lengths = np.concatenate(self._lengths)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype("<u8")
        header = {
            "DIMENSIONS": [int(size) for size in shape],
            "VOXEL_TO_RASMM": np.asarray(affine, dtype=float).tolist(),
            "NB_VERTICES": int(offsets[-1]),
            "NB_STREAMLINES": len(lengths),
        }
        yield "header.json", json.dumps(header).encode()
        yield "offsets.uint64", offsets.tobytes()
        for name, parts in self._each.items():
            yield _each_entry(name, np.concatenate(parts))


@contextmanager
def trx_writer(path: Path, affine: np.ndarray, shape: tuple[int, int, int]) -> Iterator[TrxWriter]:
    """Yield what appends to a TRX container, which is there whole when the block ends without an error, or not at all.

    The container is a zip of raw arrays and a JSON header; equal streamlines give equal bytes.

    Parameters
    ----------
    path : Path
    affine : (4, 4) array
        Voxel to world mm, kept in the header.
    shape : tuple of int
        Size of the image, kept likewise.
    """
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as container:
        with container.open(_entry(_POSITIONS), "w", force_zip64=True) as positions:
            writer = TrxWriter(positions)
            yield writer
        for name, content in writer.entries(affine, shape):
            container.writestr(_entry(name), content)


def read_trx(path: Path) -> ArraySequence:
    """Return the streamlines of a container of `trx_writer`; their points stay in the file until they are used."""
    with zipfile.ZipFile(path) as container:
        offsets = np.frombuffer(container.read("offsets.uint64"), dtype="<u8").astype(np.int64)
        start = _start_of(path, container.getinfo(_POSITIONS))
    streamlines = ArraySequence()
    if len(offsets) > 1:
        streamlines._data = np.memmap(path, dtype="<f4", mode="r", offset=start, shape=(int(offsets[-1]), 3))
        streamlines._offsets, streamlines._lengths = offsets[:-1], np.diff(offsets)
    return streamlines


def iterate_trx(path: Path, at_once: int) -> Iterator[ArraySequence]:
    """Yield the streamlines of a container of `trx_writer`, so many at once; no more of the file is held."""
    with zipfile.ZipFile(path) as container:
        offsets = np.frombuffer(container.read("offsets.uint64"), dtype="<u8").astype(np.int64)
        start = _start_of(path, container.getinfo(_POSITIONS))
    with path.open("rb") as file:
        file.seek(start)
        for some in chunks(len(offsets) - 1, at_once):
            ends = offsets[some.start : some.stop + 1]
            part = ArraySequence()
            part._data = np.fromfile(file, dtype="<f4", count=3 * int(ends[-1] - ends[0])).reshape(-1, 3)
            part._offsets, part._lengths = ends[:-1] - ends[0], np.diff(ends)
            yield part


def count_trx(path: Path) -> int:
    """Return the number of streamlines of a container of `trx_writer`."""
    with zipfile.ZipFile(path) as container:
        return int(json.loads(container.read("header.json"))["NB_STREAMLINES"])


def read_each(path: Path) -> dict[str, np.ndarray]:
    """Return the data per streamline of a container of `trx_writer`: name -> (s,) or (s, k) array."""
    found = {}
    with zipfile.ZipFile(path) as container:
        for entry in container.namelist():
            if not entry.startswith("dps/"):
                continue
            name, *columns, dtype = entry.removeprefix("dps/").split(".")
            values = np.frombuffer(container.read(entry), dtype=dtype)
            found[name] = values.reshape(-1, int(columns[0])) if columns else values
    return found


def add_to_trx(source: Path, path: Path, each: Mapping[str, np.ndarray]) -> None:
    """Write a container of `trx_writer` with more data per streamline, (s,) or (s, k) by name, whole or not at all."""
    with atomic_path(path) as temporary:
        shutil.copyfile(source, temporary)
        with zipfile.ZipFile(temporary, "a", zipfile.ZIP_STORED) as container:
            for name, values in each.items():
                entry, content = _each_entry(name, values)
                container.writestr(_entry(entry), content)


def copy_trx(source: Path, path: Path, affine: np.ndarray, shape: tuple[int, ...]) -> None:
    """Copy a container of `trx_writer` to TCK or TRK, whole or not at all, a part at a time.

    A TRK holds the data per streamline too; a TCK has no place for them.

    Raises
    ------
    ValueError
        If the suffix is of another format.
    """
    if path.suffix not in (".tck", ".trk"):
        raise ValueError(f"found suffix {path.suffix!r}, expected .tck or .trk")
    header: dict[str, object] = {}
    each: dict[str, np.ndarray] = {}
    if path.suffix == ".trk":
        header = {
            "voxel_to_rasmm": np.asarray(affine, dtype=np.float32),
            "voxel_sizes": nib.affines.voxel_sizes(affine).astype(np.float32),
            "dimensions": np.asarray(shape, dtype=np.int16),
            "voxel_order": "".join(nib.aff2axcodes(affine)),
        }
        each = read_each(source)
    streamlines = read_trx(source)
    columns = {name: partial(iter, values.reshape(len(values), values[:1].size or 1)) for name, values in each.items()}
    tractogram = LazyTractogram(lambda: iter(streamlines), columns, affine_to_rasmm=np.eye(4))
    with atomic_path(path) as temporary:
        nib.streamlines.save(tractogram, str(temporary), header=header)


def _each_entry(name: str, values: np.ndarray) -> tuple[str, bytes]:
    """Return name and content of the entry of data per streamline."""
    columns = f".{values.shape[1]}" if values.ndim == 2 else ""
    return f"dps/{name}{columns}.{values.dtype.name}", values.tobytes()


def _entry(name: str) -> zipfile.ZipInfo:
    return zipfile.ZipInfo(name)  # of a fixed date


def _start_of(path: Path, entry: zipfile.ZipInfo) -> int:
    """Return where the bytes of a stored entry begin: behind a header of 30 bytes, its name and extra field."""
    with path.open("rb") as file:
        file.seek(entry.header_offset + 26)
        name, extra = np.frombuffer(file.read(4), dtype="<u2")
    return int(entry.header_offset + 30 + name + extra)
