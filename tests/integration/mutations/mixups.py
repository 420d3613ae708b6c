"""Images and tables that are sound by themselves, but not of each other or not of one scan."""

from collections.abc import Callable

import nibabel as nib
import numpy as np

from tests.integration.mutations.base import ANY, TOLD, Change, Tree, one_of


def mixups(tree: Tree, rng: np.random.Generator) -> Change:
    """Bring volumes, b-values or directions out of step, as conversions, joined runs and stopped scans do."""
    image = nib.load(tree.dwi)
    scan = _Scan(np.asarray(image.dataobj, np.float32), np.loadtxt(tree.table("bval")), np.loadtxt(tree.table("bvec")))
    kinds: dict[str, tuple[Callable[[_Scan, np.random.Generator], None], str]] = {
        "one volume mirrored": (_mirrored_volume, TOLD),
        "volumes moved by voxels": (_moved_volumes, TOLD),
        "second half with another gain": (_gain_from_the_middle, TOLD),
        "every other volume with another gain": (_gain_of_every_other, TOLD),
        "another gain at b=0": (_gain_at_b0, TOLD),
        "slices lost": (_lost_slices, TOLD),
        "one volume in the place of a shell": (_repeated_volume, TOLD),
        "b=0 in the place of weighted volumes": (_repeated_b0, TOLD),
        "end of the scan repeated": (_repeated_end, TOLD),
        "b-values times ten": (_times_ten, TOLD),
        "b-values by ten": (_by_ten, TOLD),
        "shells exchanged in the table": (_exchanged_shells, TOLD),
        "first volume left out": (_first_left_out, TOLD),
        "image mirrored": (_mirrored_image, ANY),
        "vectors with x turned": (_turned_x, ANY),
        "axes of vectors exchanged": (_exchanged_axes, ANY),
        "signs of single vectors": (_signs, ANY),
        "weighted labelled b=0": (_labelled_b0, TOLD),
        "b=0 labelled weighted": (_labelled_weighted, TOLD),
        "clipped": (_clipped, TOLD),
        "spikes": (_spikes, ANY),
        "tiny numbers": (_tiny, ANY),
        "huge numbers": (_huge, ANY),
        "offset": (_offset, TOLD),
        "squared": (_squared, TOLD),
        "sorted by brightness": (_sorted, TOLD),
    }
    kind = one_of(rng, list(kinds))
    change, expect = kinds[kind]
    change(scan, rng)
    nib.save(nib.Nifti1Image(scan.data.astype(np.float32), image.affine), tree.dwi)
    np.savetxt(tree.table("bval"), scan.bvals[None], fmt="%g")
    np.savetxt(tree.table("bvec"), scan.bvecs, fmt="%.6f")
    return Change(kind, expect)


class _Scan:
    """Volumes (x, y, z, N), b-values (N,) and vectors (3, N), to be changed in place."""

    def __init__(self, data: np.ndarray, bvals: np.ndarray, bvecs: np.ndarray) -> None:
        self.data, self.bvals, self.bvecs = data, bvals, bvecs

    @property
    def b0(self) -> np.ndarray:
        return np.flatnonzero(self.bvals < 50)

    @property
    def weighted(self) -> np.ndarray:
        return np.flatnonzero(self.bvals >= 50)

    def some(self, rng: np.random.Generator, *, most: int = 10) -> np.ndarray:
        """Return some of the weighted volumes."""
        return rng.permutation(self.weighted)[: int(rng.integers(1, most))]


def _mirrored_volume(scan: _Scan, rng: np.random.Generator) -> None:
    row, axis = rng.choice(scan.weighted), int(rng.integers(3))
    scan.data[..., row] = np.flip(scan.data[..., row], axis)


def _moved_volumes(scan: _Scan, rng: np.random.Generator) -> None:
    for row in scan.some(rng):
        scan.data[..., row] = np.roll(scan.data[..., row], int(rng.integers(3, 6)), axis=int(rng.integers(3)))


def _gain_from_the_middle(scan: _Scan, rng: np.random.Generator) -> None:
    order = rng.permutation(len(scan.bvals))  # runs hold b=0 and weighted volumes alike
    scan.data, scan.bvals, scan.bvecs = scan.data[..., order], scan.bvals[order], scan.bvecs[:, order]
    scan.data[..., len(order) // 2 :] *= rng.choice([0.5, 0.7, 1.4, 2.0])


def _gain_of_every_other(scan: _Scan, rng: np.random.Generator) -> None:
    scan.data[..., ::2] *= rng.choice([0.5, 0.7, 1.4, 2.0])


def _gain_at_b0(scan: _Scan, rng: np.random.Generator) -> None:
    scan.data[..., scan.b0] *= rng.choice([0.2, 0.4, 50.0])


def _lost_slices(scan: _Scan, rng: np.random.Generator) -> None:
    rows, first = scan.some(rng), int(rng.integers(2, 5))
    scan.data[:, :, first : first + 4, rows] = 0


def _repeated_volume(scan: _Scan, rng: np.random.Generator) -> None:
    scan.data[..., scan.weighted] = scan.data[..., scan.weighted[:1]]


def _repeated_b0(scan: _Scan, rng: np.random.Generator) -> None:
    rows = scan.some(rng)
    scan.data[..., rows] = scan.data[..., scan.b0[:1]]


def _repeated_end(scan: _Scan, rng: np.random.Generator) -> None:
    n = int(rng.integers(3, len(scan.weighted) - 7))
    scan.data[..., -n:] = scan.data[..., -n - 1][..., None]


def _times_ten(scan: _Scan, rng: np.random.Generator) -> None:
    scan.bvals = 10 * scan.bvals


def _by_ten(scan: _Scan, rng: np.random.Generator) -> None:
    scan.bvals = scan.bvals / 10


def _exchanged_shells(scan: _Scan, rng: np.random.Generator) -> None:
    low, high = np.unique(scan.bvals[scan.weighted])[[0, -1]]
    scan.bvals = np.where(scan.bvals == low, high, np.where(scan.bvals == high, low, scan.bvals))


def _first_left_out(scan: _Scan, rng: np.random.Generator) -> None:
    scan.data = scan.data[..., 1:]
    scan.bvals, scan.bvecs = scan.bvals[:-1], scan.bvecs[:, :-1]


def _mirrored_image(scan: _Scan, rng: np.random.Generator) -> None:
    scan.data = np.flip(scan.data, int(rng.integers(3)))


def _turned_x(scan: _Scan, rng: np.random.Generator) -> None:
    scan.bvecs[0] *= -1


def _exchanged_axes(scan: _Scan, rng: np.random.Generator) -> None:
    scan.bvecs = scan.bvecs[[1, 0, 2]]


def _signs(scan: _Scan, rng: np.random.Generator) -> None:
    scan.bvecs[:, scan.some(rng)] *= -1


def _labelled_b0(scan: _Scan, rng: np.random.Generator) -> None:
    rows = scan.some(rng, most=5)
    scan.bvals[rows], scan.bvecs[:, rows] = 0, 0


def _labelled_weighted(scan: _Scan, rng: np.random.Generator) -> None:
    row, like = rng.choice(scan.b0), rng.choice(scan.weighted)
    scan.bvals[row], scan.bvecs[:, row] = scan.bvals[like], scan.bvecs[:, like]


def _clipped(scan: _Scan, rng: np.random.Generator) -> None:
    scan.data = np.minimum(scan.data, np.percentile(scan.data[..., scan.weighted], 60))


def _spikes(scan: _Scan, rng: np.random.Generator) -> None:
    places = rng.integers(0, scan.data.size, 200)
    scan.data.reshape(-1)[places] = 50 * scan.data.max()


def _tiny(scan: _Scan, rng: np.random.Generator) -> None:
    scan.data *= 1e-7


def _huge(scan: _Scan, rng: np.random.Generator) -> None:
    scan.data *= 1e5


def _offset(scan: _Scan, rng: np.random.Generator) -> None:
    scan.data += 5 * scan.data.max()


def _squared(scan: _Scan, rng: np.random.Generator) -> None:
    scan.data = scan.data**4 / scan.data.max() ** 3


def _sorted(scan: _Scan, rng: np.random.Generator) -> None:
    scan.data = scan.data[..., np.argsort(scan.data.mean(axis=(0, 1, 2)))]
