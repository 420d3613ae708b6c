"""Tables, masks and headers in forms that other programs, scripts and people write."""

import gzip
import io
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np

from tests.integration.mutations.base import ANY, REFUSED, TOLD, Change, Tree, one_of


def table_forms(tree: Tree, rng: np.random.Generator) -> Change:
    """Write b-values or directions as spreadsheets, scripts and other programs do."""
    extension = one_of(rng, ["bval", "bvec"])
    path = tree.table(extension)
    text, values = path.read_text(), np.loadtxt(path, ndmin=2)
    n = values.shape[1]
    is_b = extension == "bval"
    kinds: dict[str, tuple[Callable[[], str | bytes], str]] = {
        "with commas": (lambda: text.replace(" ", ", "), ANY),
        "with semicolons": (lambda: text.replace(" ", ";"), REFUSED),
        "in quotes": (lambda: " ".join(f'"{word}"' for word in text.split()), REFUSED),
        "in brackets": (lambda: f"[{text}]", REFUSED),
        "with a heading": (lambda: "b x y z\n" + text, REFUSED),
        "with a remark": (lambda: "# by a script\n" + text, ANY),
        "with numbers of rows": (lambda: "\n".join(f"{k} {line}" for k, line in enumerate(text.splitlines())), REFUSED),
        "with sums": (lambda: _text(np.column_stack([values, values.sum(axis=1)])), REFUSED),
        "with a row of zeros": (lambda: _text(np.vstack([values, np.zeros(n)])), REFUSED),
        "with thousands": (lambda: " ".join(f"{value:,.0f}" for value in values[0]), ANY),
        "with long minus signs": (lambda: text.replace("-", "\u2212"), ANY if is_b else REFUSED),
        "with blanks of another kind": (lambda: text.replace(" ", "\u00a0"), ANY),
        "one below the other": (lambda: "\n".join(text.split()), ANY if is_b else REFUSED),
        "two bytes each": (lambda: text.encode("utf-16-le"), REFUSED),
        "old line ends": (lambda: text.replace("\n", "\r").encode(), ANY),
        "BOM twice": (lambda: ("\ufeff\ufeff" + text).encode(), REFUSED),
        "cut within a number": (lambda: text[: int(rng.integers(1, len(text) - 8))], REFUSED),
        "rounded away": (lambda: _text(np.rint(values / 3000) if is_b else np.rint(values / 3)), TOLD),
        "negative": (lambda: _text(-values), REFUSED if is_b else ANY),
        "twice as long": (lambda: _text(2 * values), TOLD),
        "in degrees": (lambda: _text(180 / np.pi * values), TOLD),
        "sorted": (lambda: _text(np.sort(values, axis=1)), ANY if is_b else TOLD),
        "zipped": (lambda: gzip.compress(text.encode()), REFUSED),
        "of numpy": (lambda: _npy(values), REFUSED),
        "complex": (lambda: " ".join(f"{word}+0j" for word in text.split()), REFUSED),
        "with infinity": (lambda: text.replace(text.split()[-1], "Infinity"), REFUSED),
    }
    kind = one_of(rng, list(kinds))
    make, expect = kinds[kind]
    content = make()
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return Change(f"{extension}: {kind}", expect)


def mask_forms(tree: Tree, rng: np.random.Generator) -> Change:
    """Store a mask as other programs do, or another image in its place."""
    image = nib.load(tree.mask)
    mask, affine = np.asarray(image.dataobj) > 0, image.affine
    dwi = nib.load(tree.dwi)
    scattered = rng.random(mask.shape) < 0.02
    slab = np.zeros_like(mask)
    slab[:, :, 5] = True
    flipped = affine @ np.array([[-1, 0, 0, mask.shape[0] - 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    kinds: dict[str, tuple[Callable[[], nib.Nifti1Image], str]] = {
        "of the type of a byte": (lambda: _image(255 * mask.astype(np.uint8), affine), ANY),
        "with a scale": (lambda: _scaled(mask, affine, 0.00392), ANY),
        "with a fourth axis": (lambda: _image(mask[..., None].astype(np.uint8), affine), ANY),
        "with five axes": (lambda: _image(mask[..., None, None].astype(np.uint8), affine), ANY),
        "of two tissues": (lambda: _image(np.stack([mask, ~mask], -1).astype(np.uint8), affine), REFUSED),
        "of every volume": (lambda: _image(np.repeat(mask[..., None], 36, -1).astype(np.uint8), affine), REFUSED),
        "of colours": (lambda: _rgb(mask, affine), REFUSED),
        "complex": (lambda: nib.Nifti1Image(mask.astype(np.complex64), affine), REFUSED),
        "inside out": (lambda: _image((~mask).astype(np.uint8), affine), ANY),
        "scattered": (lambda: _image(scattered.astype(np.uint8), affine), TOLD),
        "of one slice": (lambda: _image(slab.astype(np.uint8), affine), TOLD),
        "stored the other way round": (lambda: _image(mask[::-1].astype(np.uint8), flipped), REFUSED),
        "transposed": (lambda: _image(mask.transpose(2, 1, 0).astype(np.uint8), affine[:, [2, 1, 0, 3]]), REFUSED),
        "without codes": (lambda: _without_codes(mask, affine), ANY),
        "half a voxel away": (lambda: _image(mask.astype(np.uint8), _moved(affine, 1.0)), REFUSED),
        "of half the voxels": (lambda: _image(mask[::2, ::2, ::2].astype(np.uint8), affine), REFUSED),
        "the image itself": (lambda: dwi, REFUSED),
        "the first volume": (lambda: dwi.slicer[..., 0], REFUSED),
        "minus one outside": (lambda: _image(mask.astype(np.int16) - 1, affine), REFUSED),
        "almost nothing": (lambda: _image(1e-3 * mask.astype(np.float32), affine), REFUSED),
        "NaN outside": (lambda: _image(np.where(mask, 1, np.nan).astype(np.float32), affine), ANY),
        "infinite inside": (lambda: _image(np.where(mask, np.inf, 0).astype(np.float32), affine), REFUSED),
        "blurred": (lambda: _image(np.clip(mask - 0.7 * scattered, 0, 1).astype(np.float32), affine), TOLD),
    }
    kind = one_of(rng, list(kinds))
    make, expect = kinds[kind]
    made = make()
    if kind == "the image itself":
        tree.mask.write_bytes(tree.dwi.read_bytes())
    else:
        nib.save(made, tree.mask)
    return Change(kind, expect)


def header_forms(tree: Tree, rng: np.random.Generator) -> Change:
    """Store the image with another scale, type, unit, byte order or frame of reference."""
    image = nib.load(tree.dwi)
    data, affine = np.asarray(image.dataobj, np.float32), image.affine
    top = float(data.max())
    sheared = affine @ np.array([[1, 0.9, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    kinds: dict[str, tuple[Callable[[], nib.Nifti1Image], str]] = {
        "integers": (lambda: _image(data.astype(np.int16), affine), ANY),
        "integers with a scale": (lambda: _image((30_000 * data / top).astype(np.int16), affine, top / 30_000), ANY),
        "a scale of NaN": (lambda: _image(data.astype(np.int16), affine, np.nan), ANY),
        "a scale of -1": (lambda: _image(data.astype(np.int16), affine, -1.0), REFUSED),
        "a scale of 1e-20": (lambda: _image(data.astype(np.int16), affine, 1e-20), REFUSED),
        "an offset above all": (lambda: _image(data.astype(np.int16), affine, 1.0, 1e6), TOLD),
        "an offset below all": (lambda: _image(data.astype(np.int16), affine, 1.0, -1e6), REFUSED),
        "overflown integers": (lambda: _image((60 * data).astype(np.int64).astype(np.int16), affine), TOLD),
        "cut at a byte": (lambda: _image(np.minimum(data, 255).astype(np.uint8), affine), TOLD),
        "few levels": (lambda: _image((data / top * 4).astype(np.uint8), affine), TOLD),
        "booleans": (lambda: _image((data > np.median(data)).astype(np.uint8), affine), TOLD),
        "other byte order": (lambda: nib.Nifti1Image(data, affine, header=nib.Nifti1Header(endianness=">")), ANY),
        "NIfTI-2": (lambda: nib.Nifti2Image(data, affine), ANY),
        "metres": (lambda: _units(data, affine, "meter"), REFUSED),
        "micrometres": (lambda: _units(data, affine, "micron"), REFUSED),
        "no unit": (lambda: _units(data, affine, "unknown"), ANY),
        "another qform": (lambda: _another_qform(data, affine), TOLD),
        "no frame": (lambda: _without_codes(data, affine), ANY),
        "shears": (lambda: _image(data, sheared), ANY),
        "voxels of 100 mm": (lambda: _image(data, affine @ np.diag([50, 50, 50, 1.0])), REFUSED),
        "flat voxels": (lambda: _image(data, affine @ np.diag([1, 1, 1e-9, 1])), REFUSED),
        "time first": (lambda: _image(np.moveaxis(data, 3, 0), affine), REFUSED),
        "volumes as slices": (lambda: _image(data.reshape(12, 12, -1), affine), REFUSED),
        "a fifth axis": (lambda: _image(data[:, :, :, None, :], affine), REFUSED),
        "one slice": (lambda: _image(data[:, :, :1], affine), REFUSED),
        "half the slices": (lambda: _image(data[:, :, ::2], affine), REFUSED),
        "doubles": (lambda: nib.Nifti1Image(data.astype(np.float64), affine), ANY),
        "complex": (lambda: nib.Nifti1Image(data.astype(np.complex64), affine), REFUSED),
    }
    kind = one_of(rng, list(kinds))
    make, expect = kinds[kind]
    nib.save(make(), tree.dwi)
    return Change(kind, expect)


def _image(data: np.ndarray, affine: np.ndarray, slope: float | None = None, offset: float = 0.0) -> nib.Nifti1Image:
    """Return an image whose stored numbers are those given, with a scale in the header."""
    image = nib.Nifti1Image(data, affine)
    if slope is None:
        return image
    content = bytearray(image.to_bytes())
    fields = np.dtype(nib.Nifti1Header.template_dtype).fields
    for name, value in (("scl_slope", slope), ("scl_inter", offset)):
        place = fields[name][1]
        content[place : place + 4] = np.float32(value).tobytes()
    return _Stored(bytes(content))


class _Stored:
    """Bytes of a file that nibabel would not write, to be saved as an image is."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def to_filename(self, path: Path) -> None:
        Path(path).write_bytes(gzip.compress(self.content, compresslevel=1))


def _scaled(mask: np.ndarray, affine: np.ndarray, slope: float) -> nib.Nifti1Image:
    return _image(255 * mask.astype(np.uint8), affine, slope)


def _rgb(mask: np.ndarray, affine: np.ndarray) -> nib.Nifti1Image:
    colours = np.zeros(mask.shape, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    colours["R"] = mask
    return nib.Nifti1Image(colours, affine)


def _without_codes(data: np.ndarray, affine: np.ndarray) -> nib.Nifti1Image:
    image = nib.Nifti1Image(data.astype(np.float32), affine)
    image.set_sform(affine, code=0)
    image.set_qform(affine, code=0)
    return image


def _another_qform(data: np.ndarray, affine: np.ndarray) -> nib.Nifti1Image:
    image = nib.Nifti1Image(data, affine)
    turned = affine.copy()
    turned[:3, :3] = turned[:3, [1, 0, 2]] * [1, -1, 1]
    image.set_sform(affine, code=1)
    image.set_qform(turned, code=1)
    return image


def _units(data: np.ndarray, affine: np.ndarray, unit: str) -> nib.Nifti1Image:
    image = nib.Nifti1Image(data, affine)
    image.header.set_xyzt_units(unit)
    return image


def _moved(affine: np.ndarray, shift: float) -> np.ndarray:
    moved = affine.copy()
    moved[:3, 3] += shift
    return moved


def _text(values: np.ndarray) -> str:
    return "\n".join(" ".join(f"{value:g}" for value in row) for row in values)


def _npy(values: np.ndarray) -> bytes:
    stored = io.BytesIO()
    np.save(stored, values)
    return stored.getvalue()
