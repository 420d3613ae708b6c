"""Images and masks that are damaged, or not what their names say."""

import gzip
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np

from tests.integration.mutations.base import ANY, REFUSED, SPECIAL, TOLD, Change, Tree, one_of

HEADER_BYTES = 352


def image_bytes(tree: Tree, rng: np.random.Generator) -> Change:
    """Damage the file of the image, compressed or not."""
    path = tree.dwi
    if rng.random() < 0.3:
        path = Path(f"{tree.stem}.nii")
        nib.save(nib.load(tree.dwi), path)
        tree.dwi.unlink()
    content = bytearray(path.read_bytes())
    is_zipped = path.suffix == ".gz"
    start = 10 if is_zipped else HEADER_BYTES  # the name and time in front of gzip's content mean nothing
    n, place = len(content), int(rng.integers(start, len(content)))
    length = int(rng.integers(1, 2000))
    kinds: dict[str, Callable[[], bytes]] = {
        "one bit": lambda: (
            content[:place] + bytes([content[place] ^ (1 << int(rng.integers(8)))]) + content[place + 1 :]
        ),
        "truncated": lambda: content[:place],
        "block of zeros": lambda: content[:place] + bytes(length) + content[place + length :],
        "block removed": lambda: content[:place] + content[place + length :],
        "random block": lambda: content[:place] + rng.bytes(length) + content[place + length :],
        "bytes appended": lambda: content + rng.bytes(length),
        "empty": lambda: b"",
        "text": lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12345\n",
        "noise": lambda: rng.bytes(n),
        "head only": lambda: content[: int(rng.integers(1, 352))],
    }
    kind = one_of(rng, list(kinds))
    path.write_bytes(kinds[kind]())
    is_seen = kind in ("truncated", "empty", "text", "noise", "head only", "block removed") or is_zipped
    return Change(f"{path.suffix} {kind} at {place}", REFUSED if is_seen and kind != "bytes appended" else ANY)


def header(tree: Tree, rng: np.random.Generator) -> Change:
    """Write odd values into the header of the image, whose voxels stay."""
    content = bytearray(_unzipped(tree.dwi))
    fields = np.dtype(nib.Nifti1Header.template_dtype).fields
    if rng.random() < 0.2:
        places = rng.integers(0, HEADER_BYTES - 4, int(rng.integers(1, 6)))
        for place in places:
            content[place] = int(rng.integers(256))
        what = f"bytes {places.tolist()}"
    else:
        name = one_of(
            rng, [n for n in fields if n not in ("data_type", "db_name", "extents", "regular", "glmax", "glmin")]
        )
        dtype, offset = fields[name][:2]
        base, count = dtype.base, int(np.prod(dtype.shape)) if dtype.shape else 1
        entry = int(rng.integers(count))
        value = _odd_value(base, rng)
        content[offset + entry * base.itemsize : offset + (entry + 1) * base.itemsize] = value.tobytes()
        what = f"{name}[{entry}] = {value!r}"
    _zip(tree.dwi, bytes(content))
    return Change(what)


def volumes(tree: Tree, rng: np.random.Generator) -> Change:
    """Change volumes of the image as scanners and scripts do."""
    image = nib.load(tree.dwi)
    data = np.asarray(image.dataobj, dtype=np.float32)
    bvals = np.loadtxt(tree.table("bval"))
    b0, weighted = np.flatnonzero(bvals < 50), np.flatnonzero(bvals > 50)
    some = rng.permutation(weighted)[: int(rng.integers(1, 10))]
    half = len(data) // 2

    def put(where: np.ndarray, value: np.ndarray | float) -> np.ndarray:
        changed = data.copy()
        changed[..., where] = value
        return changed

    def exchanged() -> np.ndarray:
        order = np.arange(len(bvals))
        first, second = rng.choice(b0), rng.choice(weighted)
        order[[first, second]] = second, first
        return data[..., order]

    def halves() -> np.ndarray:
        changed = data.copy()
        changed[:half, :, :, some] = 0
        return changed

    kinds: dict[str, Callable[[], np.ndarray]] = {
        "empty volumes": lambda: put(some, 0),
        "volumes of NaN": lambda: put(some, np.nan),
        "half-empty volumes": halves,
        "gain of 1.6": lambda: put(some, 1.6 * data[..., some]),
        "gain of 0.4": lambda: put(some, 0.4 * data[..., some]),
        "volumes of noise": lambda: put(some, rng.uniform(0, data.mean(), (*data.shape[:3], len(some)))),
        "b=0 exchanged with weighted": exchanged,
        "volumes in reverse": lambda: data[..., ::-1],
        "volumes rolled": lambda: np.roll(data, int(rng.integers(1, len(bvals))), axis=-1),
        "mirrored volumes": lambda: put(some, data[::-1, :, :, some]),
        "all zero": lambda: 0 * data,
        "constant": lambda: 0 * data + 7,
        "white noise": lambda: np.abs(rng.normal(size=data.shape)).astype(np.float32),
        "negative": lambda: -data,
        "inverted": lambda: data.max() - data,
        "wrapped at 8 bits": lambda: (data.astype(np.int64) % 256).astype(np.float32),
        "logarithm": lambda: np.log(data + 1),
    }
    kind = one_of(rng, list(kinds))
    _save(tree.dwi, kinds[kind](), image.affine)
    return Change(f"{kind} ({', '.join(map(str, some))})", TOLD)


def masks(tree: Tree, rng: np.random.Generator) -> Change:
    """Give a mask that is none, or of another image."""
    image = nib.load(tree.mask)
    data = np.asarray(image.dataobj, dtype=np.float32)
    affine = image.affine.copy()
    moved = affine.copy()
    moved[:3, 3] += rng.uniform(0.5, 20, 3)
    odd = SPECIAL[int(rng.integers(len(SPECIAL)))]
    air = np.zeros_like(data)
    air[0, :3, :3] = 1
    kinds: dict[str, tuple[np.ndarray, np.ndarray, str]] = {
        "empty": (0 * data, affine, REFUSED),
        "NaN": (np.nan * data, affine, REFUSED),
        "negative": (-data, affine, REFUSED),
        "labels": (data * rng.integers(1, 9, data.shape), affine, ANY),
        "probabilities": (data * rng.uniform(0, 1.2, data.shape), affine, TOLD),
        "an image": (data * rng.uniform(0, 1000, data.shape), affine, REFUSED),
        "moved": (data, moved, REFUSED),
        "mirrored affine": (data, affine @ np.diag([-1, 1, 1, 1]), REFUSED),
        "another shape": (data[1:], affine, REFUSED),
        "two volumes": (np.stack([data, data], -1), affine, REFUSED),
        "one voxel": (np.where(np.arange(data.size).reshape(data.shape) == 444, 1, 0), affine, TOLD),
        "everything": (0 * data + 1, affine, ANY),
        "a corner": (air, affine, TOLD),
        f"of {odd}": (0 * data + odd, affine, ANY),
    }
    kind = one_of(rng, list(kinds))
    content, where, expect = kinds[kind]
    _save(tree.mask, content, where)
    if rng.random() < 0.2:
        damaged = bytearray(tree.mask.read_bytes())
        tree.mask.write_bytes(damaged[: int(rng.integers(len(damaged)))])
        return Change(f"{kind}, truncated", REFUSED)
    return Change(kind, expect)


def _odd_value(base: np.dtype, rng: np.random.Generator) -> np.ndarray:
    if base.kind == "f":
        return np.array(SPECIAL[int(rng.integers(len(SPECIAL)))], dtype=base)
    if base.kind in "iu":
        info = np.iinfo(base)
        choices = [0, 1, info.min, info.max, int(rng.integers(info.min, info.max, dtype=np.int64)), 8, 2, 4]
        return np.array(choices[int(rng.integers(len(choices)))]).astype(base)
    return np.frombuffer(rng.bytes(base.itemsize), dtype=base)[0:1]


def _save(path: Path, data: np.ndarray, affine: np.ndarray) -> None:
    nib.save(nib.Nifti1Image(np.asarray(data, dtype=np.float32), affine), path)


def _unzipped(path: Path) -> bytes:
    return gzip.decompress(path.read_bytes())


def _zip(path: Path, content: bytes) -> None:
    path.write_bytes(gzip.compress(content, compresslevel=1))
