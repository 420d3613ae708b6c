"""Tiny BIDS data sets for tests, right by default, with one thing wrong where asked."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np

from shd_bids.bids.collect import collect_runs
from shd_bids.bids.run import DWIRun
from shd_bids.settings import Settings

SHAPE = (6, 6, 6)
AFFINE = np.diag([-2.0, 2.0, 2.0, 1.0])


def directions(n: int) -> np.ndarray:
    """Return ``n`` unit vectors, shape (n, 3), spread over the sphere by the golden angle."""
    z = np.linspace(-0.95, 0.95, n)
    angle = np.pi * (3 - np.sqrt(5)) * np.arange(n)
    radius = np.sqrt(1 - z**2)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle), z], axis=1)


def write_image(path: Path, data: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    """Write a NIfTI image, with its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(data, affine), path)
    return path


def write_gradients(stem: Path, *, n_b0: int = 2, n_weighted: int = 12, bvalue: float = 1000.0) -> None:
    """Write ``.bval`` and ``.bvec`` in FSL's form."""
    bvals = np.r_[np.zeros(n_b0), np.full(n_weighted, bvalue)]
    bvecs = np.r_[np.zeros((n_b0, 3)), directions(n_weighted)]
    Path(f"{stem}.bval").write_text(" ".join(f"{b:g}" for b in bvals) + "\n")
    np.savetxt(f"{stem}.bvec", bvecs.T, fmt="%.6f")


def write_dwi(
    root: Path, name: str, *, n_b0: int = 2, n_weighted: int = 12, gradients: bool = True, extension: str = ".nii.gz"
) -> Path:
    """Write one diffusion series, ``name`` being its BIDS name without extension; return the image."""
    subject, *rest = name.split("_")
    session = [entity for entity in rest if entity.startswith("ses-")]
    folder = root.joinpath(subject, *session, "dwi")
    data = np.full((*SHAPE, n_b0 + n_weighted), 300, dtype=np.int16)
    data[..., :n_b0] = 1000
    path = write_image(folder / f"{name}{extension}", data)
    if gradients:
        write_gradients(folder / name, n_b0=n_b0, n_weighted=n_weighted)
    return path


def write_mask(root: Path, name: str, *, shape: tuple[int, ...] = SHAPE, value: int = 1) -> Path:
    """Write a brain mask that leaves out the border."""
    subject, *rest = name.split("_")
    session = [entity for entity in rest if entity.startswith("ses-")]
    data = np.zeros(shape, dtype=np.uint8)
    data[1:-1, 1:-1, 1:-1] = value
    return write_image(root.joinpath(subject, *session, "dwi", f"{name}.nii.gz"), data)


def write_description(root: Path, *, pipeline: str | None = None, **more: object) -> Path:
    """Write ``dataset_description.json`` of a raw data set, or of a pipeline's derivatives."""
    content: dict[str, object] = {"Name": root.name, "BIDSVersion": "1.9.0", **more}
    if pipeline:
        content |= {"DatasetType": "derivative", "GeneratedBy": [{"Name": pipeline, "Version": "1.0"}]}
    root.mkdir(parents=True, exist_ok=True)
    (root / "dataset_description.json").write_text(json.dumps(content))
    return root


def raw_dataset(root: Path, *names: str) -> Path:
    """Write a raw data set with the series ``names`` (one of sub-01 by default)."""
    write_description(root)
    for name in names or ("sub-01_dwi",):
        write_dwi(root, name)
    return root


def dwi_run(root: Path, *, entities: dict[str, str] | None = None, **more: object) -> DWIRun:
    """Return a series of ``root`` as `collect_runs` would, without looking at files."""
    entities = entities or {"sub": "01"}
    folder = root / "sub-01" / "dwi"
    values: dict[str, object] = {
        "subject": entities["sub"],
        "session": entities.get("ses"),
        "entities": entities,
        "space": "orig",
        "dwi": folder / "sub-01_dwi.nii.gz",
        "bval": folder / "sub-01_dwi.bval",
        "bvec": folder / "sub-01_dwi.bvec",
        "grad_b": None,
        "mask": None,
        "mask_origin": "estimated",
        "source_uri": "bids:raw:sub-01/dwi/sub-01_dwi.nii.gz",
        "links": {"raw": root},
        "shape": (*SHAPE, 14),
        "voxel_size": (2.0, 2.0, 2.0),
        "shells": ((0.0, 2), (1000.0, 12)),
    }
    return DWIRun(**values | more)


def collect(root, **options):
    """Return the series that a call with some options finds in a data set."""
    return collect_runs(Settings(bids_dir=root, output_dir=root.parent / "out", **options))


def keys(root, **options):
    """Return the source entities of the series found."""
    return [run.prefix for run in collect(root, **options)]
