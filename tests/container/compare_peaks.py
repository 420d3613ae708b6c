"""Compare the peaks of two output folders: ``compare_peaks.py REFERENCE OTHER``; exit 1 where they differ.

The same numbers are expected but for rounding: another number of threads or another build of a numerical library
may change the last digits, and a peak within those of a threshold may come or go.
"""

import sys
from pathlib import Path

import nibabel as nib
import numpy as np

MAX_ANGLE = 0.1  # degrees
MAX_LENGTH = 1e-3  # of the largest peak
MIN_AGREEING = 0.999  # share of voxels with the same number of peaks


def main(reference: Path, other: Path) -> int:
    files = sorted(file.relative_to(reference) for file in reference.rglob("*_param-peaks_dwimap.nii.gz"))
    if not files:
        print(f"no peaks under {reference}")
        return 1
    return max(compare(reference / file, other / file, name=file.name) for file in files)


def compare(reference: Path, other: Path, *, name: str) -> int:
    if not other.exists():
        print(f"{name}: not written")
        return 1
    first, second = (nib.load(file) for file in (reference, other))
    if first.shape != second.shape or not np.allclose(first.affine, second.affine):
        print(f"{name}: shape {first.shape} and {second.shape}, or affines differ")
        return 1
    a, b = (np.nan_to_num(image.get_fdata()).reshape(-1, first.shape[3] // 3, 3) for image in (first, second))
    length_a, length_b = np.linalg.norm(a, axis=-1), np.linalg.norm(b, axis=-1)
    same = ((length_a > 0) == (length_b > 0)).all(axis=1)
    both = (length_a > 0) & (length_b > 0) & same[:, None]
    cosine = np.abs((a * b).sum(-1)[both]) / (length_a * length_b)[both]
    angle = np.degrees(np.arccos(np.clip(cosine, 0, 1)))
    length = np.abs(length_a - length_b)[both] / max(length_a.max(), 1e-12)
    print(
        f"{name}: {both.sum()} peaks in {(length_a[:, 0] > 0).sum()} voxels; same number in {same.mean():.2%}, "
        f"angle {np.quantile(angle, MIN_AGREEING):.4f} degrees, length {np.quantile(length, MIN_AGREEING):.1e} "
        f"({MIN_AGREEING:.1%} are below)"
    )
    agree = (
        both.any()
        and same.mean() >= MIN_AGREEING
        and np.quantile(angle, MIN_AGREEING) <= MAX_ANGLE
        and np.quantile(length, MIN_AGREEING) <= MAX_LENGTH
    )
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
