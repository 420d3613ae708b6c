"""A small simulated head, and what the stages before leave of it; nothing changes these files."""

import nibabel as nib
import numpy as np
import pytest

from shd_bids.images import load_mask, load_volume
from shd_bids.sphere.harmonics import sh_basis
from tests.interfaces.stages import prepare
from tests.phantoms import RAS, head, write_head


@pytest.fixture(scope="session")
def simulated():
    """Signal, gradient table and phantom."""
    return head(np.random.default_rng(5), size=14)


@pytest.fixture(scope="session")
def dwi_file(tmp_path_factory, simulated):
    """The image of the head in a BIDS data set."""
    signal, table, _ = simulated
    return write_head(tmp_path_factory.mktemp("raw"), signal, table)


@pytest.fixture(scope="session")
def prepared(dwi_file, tmp_path_factory):
    """Outputs of the first stage: gradients, mask, b=0."""
    return prepare(dwi_file, tmp_path_factory.mktemp("gradients"))


@pytest.fixture(scope="session")
def true_fod(prepared, tmp_path_factory, simulated):
    """The true fODF, as the fit would leave it: the inputs of the stages after it, by name."""
    phantom, folder = simulated[2], tmp_path_factory.mktemp("fod")
    mask = load_mask(prepared.mask_file, load_volume(prepared.mask_file))
    weights = phantom.fractions[mask]
    directions = np.where(weights[..., None] > 0, phantom.directions[mask], [0.0, 0.0, 1.0])
    delta = sh_basis(directions.reshape(-1, 3), 8).reshape(*weights.shape, -1)
    np.save(folder / "fod.npy", np.einsum("nk,nkc->nc", weights, delta).astype(np.float32))
    np.savez(folder / "precision.npz", errors=np.array([[2.0, 40.0], [1.0, 4.0], [0.2, 4.0]]), prominence=0.15)
    files = {"fod_file": str(folder / "fod.npy"), "precision_file": str(folder / "precision.npz")}
    files["mask_file"] = prepared.mask_file
    for name, volume in (("vfwm", phantom.wm), ("vfgm", phantom.gm), ("vfcsf", phantom.csf)):
        nib.save(nib.Nifti1Image((volume * mask).astype(np.float32), RAS), folder / f"{name}.nii.gz")
        files[f"{name}_file"] = str(folder / f"{name}.nii.gz")
    return files
