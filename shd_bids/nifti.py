"""Headers and voxels of NIfTI files as they are stored, and what is said of damage."""

import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.openers import ImageOpener

from shd_bids.boxes import chunks
from shd_bids.errors import InputError
from shd_bids.files import absence

AFFINE_TOLERANCE = 1e-3  # mm, over the whole field of view: headers hold float32
MILLIMETRES = {1: 1e3, 2: 1.0, 3: 1e-3}  # of the codes of NIfTI for metre, millimetre and micrometre
BLOCK_BYTES = 1 << 26  # of the file, read at once


def open_image(path: Path) -> nib.Nifti1Image:
    """Return an image of which only the header was read.

    Raises
    ------
    InputError
        Missing, not NIfTI, damaged.
    """
    reason = absence(path) or ("" if path.is_file() else "not a regular file")
    if reason:
        raise InputError(f"{path}: {reason}")
    try:
        image = nib.load(path)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read, damaged or truncated ({_first_line(error)})") from None
    except Exception as error:  # a damaged header fails wherever nibabel first computes with it
        raise InputError(f"{path}: not a NIfTI image ({_first_line(error)})") from None
    if not isinstance(image, nib.Nifti1Image):
        raise InputError(f"{path}: an image of type {type(image).__name__}, expected NIfTI (.nii, .nii.gz)")
    return image


def read_image(path: Path, image: nib.Nifti1Image) -> np.ndarray:
    """Return all volumes as one float32 array in C order, shape (x, y, z, n), with little memory beside it.

    nibabel would hold the file's integers, a Fortran-ordered float array and the result together. The file is read to
    its end, where gzip keeps the checksum and the length of its content.

    Raises
    ------
    InputError
        Damaged, truncated, or too large for the memory.
    """
    grid, n_volumes = image.shape[:3], int(np.prod(image.shape[3:]))
    proxy = image.dataobj
    volume_bytes = int(np.prod(grid)) * proxy.dtype.itemsize
    step = max(BLOCK_BYTES // volume_bytes, 1)
    try:
        data = np.empty((*grid, n_volumes), dtype=np.float32)
        with ImageOpener(path) as stream, np.errstate(over="ignore"):  # too large for float32 is infinite: repaired
            stream.seek(proxy.offset)
            for part in chunks(n_volumes, step):
                count = part.stop - part.start
                raw = stream.read(count * volume_bytes)
                if len(raw) < count * volume_bytes:
                    raise EOFError(f"ends in volume {part.start + len(raw) // volume_bytes} of {n_volumes}")
                block = np.frombuffer(raw, dtype=proxy.dtype).reshape((*grid, count), order="F")
                if proxy.slope != 1 or proxy.inter != 0:
                    block = block * np.float64(proxy.slope) + np.float64(proxy.inter)
                data[..., part] = block
            while stream.read(BLOCK_BYTES):
                pass
    except (OSError, EOFError, OverflowError, ValueError, zlib.error) as error:  # also of an offset or size of no file
        raise InputError(f"{path}: damaged or truncated ({_first_line(error)}); copy it again") from None
    except MemoryError:
        gigabytes = 4e-9 * n_volumes * np.prod(grid, dtype=np.float64)
        raise InputError(f"{path}: {gigabytes:.1f} GB as float32 do not fit into memory") from None
    return data


def affine_in_mm(image: nib.Nifti1Image) -> np.ndarray:
    """Return the affine in mm, shape (4, 4), whatever unit of length the header names; mm where it names none."""
    affine = np.array(image.affine, dtype=np.float64)
    affine[:3] *= MILLIMETRES.get(int(image.header["xyzt_units"]) & 7, 1.0)
    return affine


def header_notes(image: nib.Nifti1Image) -> tuple[str, ...]:
    """Return what is doubtful about the orientation that a header gives."""
    sform, sform_code = image.get_sform(coded=True)
    qform, qform_code = image.get_qform(coded=True)
    if not sform_code and not qform_code:
        return ("the header has neither sform nor qform: left and right are a guess",)
    if sform_code and qform_code and not is_same_affine(sform, qform, image.shape[:3], tolerance=0.5):
        return ("sform and qform of the header disagree; the sform is used",)
    return ()


def is_same_affine(
    first: np.ndarray, second: np.ndarray, shape: tuple[int, ...], *, tolerance: float = AFFINE_TOLERANCE
) -> bool:
    """Whether two affines put the corners of a grid within ``tolerance`` mm of each other."""
    return corner_distance(first, second, shape) <= tolerance


def corner_distance(first: np.ndarray, second: np.ndarray, shape: tuple[int, ...]) -> float:
    """Return how far, along an axis, two affines put a corner of a grid apart, mm."""
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in shape], [1], indexing="ij")).reshape(4, -1)
    return float(np.abs((np.asarray(first) - np.asarray(second)) @ corners).max())


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [error.__class__.__name__])[0]
