"""A simulated head with known fibres, or a piece of a real one, as a BIDS data set, stored in any orientation."""

from pathlib import Path

import nibabel as nib
import numpy as np
from dipy.data import get_fnames

from shd_bids import simulation
from shd_bids.gradients.frames import fsl_to_world, world_to_fsl
from shd_bids.gradients.table import GradientTable, gradient_table
from tests.bids_trees import write_description

RAS = np.array([[2.0, 0, 0, -12], [0, 2.0, 0, -14], [0, 0, 2.0, -10], [0, 0, 0, 1]])
SHELLS = {1000.0: 20, 2500.0: 40}


def head(rng: np.random.Generator, *, size: int = 12, snr: float = 40.0, shells: dict[float, int] | None = None):
    """Simulate a crossing of 70 degrees with grey matter and CSF.

    Returns
    -------
    tuple
        Signal (X, Y, Z, N); gradient table; phantom, whose directions are along the axes of the array, as in `RAS`.
    """
    phantom = simulation.crossing_phantom(rng, size=size, angles=(70.0,))
    table = simulation.make_gradients(rng, shells or SHELLS, n_b0=4)
    micro = simulation.draw_microstructure(rng, len(phantom.bundles))
    clean = simulation.noiseless_signal(phantom, micro, table)
    return 500 * simulation.add_noise(clean, 1 / snr, rng), table, phantom


def many_bundles(rng: np.random.Generator) -> tuple[np.ndarray, GradientTable]:
    """Simulate thin straight tubes in many directions, from which the right orientation of gradients can be told."""
    steps = np.arange(-28, 28, 0.25)[:, None]
    bundles = tuple(
        simulation.Bundle(rng.uniform(4, 24, 3) + steps * direction, np.full(len(steps), 1.3))
        for _ in range(3)
        for direction in simulation.uniform_directions(rng, 6)
    )
    phantom = simulation.build_phantom(bundles, (28, 28, 28))
    table = simulation.make_gradients(rng, {1000.0: 20}, n_b0=1)
    micro = simulation.draw_microstructure(rng, len(bundles))
    return 500 * simulation.add_noise(simulation.noiseless_signal(phantom, micro, table), 0.05, rng), table


def real_crop() -> tuple[np.ndarray, GradientTable, np.ndarray]:
    """Read the piece of a scan that dipy ships (see `shd_bids.cli.demo`): signal (10, 10, 10, 65), table, affine."""
    image_file, bval_file, bvec_file = get_fnames(name="small_64D")
    image = nib.load(image_file)
    directions = fsl_to_world(np.nan_to_num(np.loadtxt(bvec_file)), image.affine)
    return image.get_fdata(dtype=np.float32), gradient_table(np.loadtxt(bval_file), directions), image.affine


def write_head(
    root: Path,
    signal: np.ndarray,
    table: GradientTable,
    *,
    affine: np.ndarray = RAS,
    subject: str = "01",
    bvecs: np.ndarray | None = None,
) -> Path:
    """Write a head as ``sub-<subject>``; directions of the table are in world axes, ``bvecs`` (N, 3) replaces them."""
    if not (root / "dataset_description.json").exists():
        write_description(root)
    stem = root / f"sub-{subject}" / "dwi" / f"sub-{subject}_dwi"
    stem.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(signal.astype(np.float32), affine), f"{stem}.nii.gz")
    np.savetxt(f"{stem}.bval", table.bvals[None], fmt="%.1f")
    np.savetxt(f"{stem}.bvec", (world_to_fsl(table.directions, affine) if bvecs is None else bvecs).T, fmt="%.8f")
    return Path(f"{stem}.nii.gz")


def stored_as(signal: np.ndarray, affine: np.ndarray, codes: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the same image with its axes in another order and sense, as ``LPS`` or ``SRA``, and its affine."""
    image = nib.Nifti1Image(signal, affine)
    turn = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(affine), nib.orientations.axcodes2ornt(tuple(codes))
    )
    turned = image.as_reoriented(turn)
    return np.asarray(turned.dataobj), turned.affine


def rotation(degrees: float, axis: tuple[float, float, float] = (1.0, 2.0, 0.5)) -> np.ndarray:
    """Return the rotation about an axis, shape (3, 3) (Rodrigues)."""
    x, y, z = np.array(axis) / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = np.deg2rad(degrees)
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
