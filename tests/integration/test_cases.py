"""Situations that people who process diffusion data have reported, each with what is right."""

import shutil

import nibabel as nib
import numpy as np
import pytest

from shd_bids.gradients.dti import fit_tensor
from shd_bids.interfaces import base
from shd_bids.interfaces.report import FigureInterface
from tests.integration.app import call
from tests.integration.fuzz import call_here, make_template
from tests.integration.mutations.base import Tree
from tests.phantoms import many_bundles, write_head

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    return make_template(tmp_path_factory.mktemp("cases") / "template")


@pytest.fixture
def tree(template, tmp_path, monkeypatch):
    """The data set of the fuzzer: 4 volumes of b = 0, 12 of b = 1000 and 20 of b = 2500 s/mm2."""
    monkeypatch.setattr(base, "call_isolated", call_here)
    monkeypatch.setattr(FigureInterface, "_run_interface", lambda self, runtime: runtime)
    shutil.copytree(template.root, tmp_path / "set")
    return Tree(tmp_path / "set")


@pytest.fixture
def app(tree, capfd):
    """Return exit code and standard error of a call up to the responses."""

    def run(*options, mask=True):
        given = ["--mask", str(tree.mask)] if mask else []
        linear = ["--use-plugin", str(tree.given / "linear.yml"), "--input-type", "raw"]
        code = call(tree.raw, tree.root / "out", *given, *linear, *options, level="response")
        return code, capfd.readouterr().err

    return run


def rewrite(tree, change):
    """Write the image again with its voxels and affine changed."""
    image = nib.load(tree.dwi)
    data, affine = change(np.asarray(image.dataobj, dtype=np.float32).copy(), image.affine.copy())
    nib.save(nib.Nifti1Image(data, affine), tree.dwi)


def tables(tree):
    return np.loadtxt(tree.table("bval")), np.loadtxt(tree.table("bvec"))


def write_tables(tree, bvals, bvecs):
    np.savetxt(tree.table("bval"), bvals[None], fmt="%g")
    np.savetxt(tree.table("bvec"), bvecs, fmt="%.6f")


def test_shells_in_the_length_of_the_vectors_are_scaled_and_told(tree, app):
    bvals, bvecs = tables(tree)
    write_tables(tree, np.where(bvals > 50, 2500, 0), bvecs * np.sqrt(bvals / 2500))
    code, told = app()
    assert code == 0
    assert "b=1000: 12, b=2500: 20" in told
    assert "lengths in clear groups" in told


def test_zero_vectors_do_not_make_a_b0(tree, app):
    bvals, bvecs = tables(tree)
    write_tables(tree, np.full(36, 1000.0), np.where(bvals > 50, bvecs, 0))
    code, told = app()
    assert code == 65
    assert "no b=0 volume" in told


def test_a_b0_beside_the_series_is_skipped(tree, app):
    image = nib.load(tree.dwi)
    nib.save(image.slicer[..., 0], tree.dwi.with_name("sub-01_dir-PA_dwi.nii.gz"))
    code, told = app()
    assert code == 0
    assert "sub-01_dir-PA_dwi.nii.gz: 1 volume without tables, at least 7 are needed; skipped" in told


@pytest.mark.parametrize("shift", [0.002, 1.0])
def test_a_small_share_of_a_voxel_is_the_same_grid(tree, app, shift):
    image = nib.load(tree.mask)
    affine = image.affine.copy()
    affine[:3, 3] += shift
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), affine), tree.mask)
    code, told = app()
    assert code == (0 if shift < 0.1 else 65)
    assert "estimated" not in told


@pytest.mark.parametrize("overshoot", [1.000001, 1.2])
def test_fractional_masks_are_cut_at_half(tree, app, overshoot):
    image = nib.load(tree.mask)
    data = overshoot * np.asarray(image.dataobj, dtype=np.float32)
    data[0] = 0.3
    nib.save(nib.Nifti1Image(data, image.affine), tree.mask)
    code, told = app()
    assert code == 0
    assert "cut at 0.5: 1000 voxels" in told


def test_a_rodent_is_no_error(tree, app):
    rewrite(tree, lambda data, affine: (data, affine @ np.diag([0.08, 0.08, 0.08, 1])))
    code, told = app(mask=False)
    assert code == 0, told


def test_a_grid_in_small_steps_is_no_shell(tree, app):
    bvals, bvecs = tables(tree)
    write_tables(tree, np.where(bvals > 50, 300 + 76 * np.arange(36), 0), bvecs)
    code, told = app()
    assert code == 65
    assert "q-space grids (DSI) are not supported" in told


def test_planar_encoding_is_left_out_and_named(tree, app):
    signal, table = many_bundles(np.random.default_rng(3))
    weighted = table.bvals > 0
    b0 = signal[..., ~weighted].mean(axis=-1)
    tensors = fit_tensor(signal.reshape(-1, signal.shape[-1]), table)
    along = np.einsum("nij,ki,kj->nk", tensors, table.directions[weighted], table.directions[weighted])
    trace = np.trace(tensors, axis1=1, axis2=2)[:, None]
    planar = signal.copy()
    planar[..., weighted] = b0[..., None] * np.exp(-1000 * (trace - along) / 2).reshape(*b0.shape, -1)
    shutil.rmtree(tree.raw / "sub-01")
    for subject, values in (("01", signal), ("02", planar)):
        write_head(tree.raw, values, table, subject=subject)
    code, told = app(mask=False)
    assert code == 1
    (line,) = [line for line in told.splitlines() if "ERROR" in line]
    assert "sub-02: sub-02_dwi.nii.gz: the encoding may not be linear" in line
    assert "fix" not in line
    assert "1 of 2 series done, 1 failed (sub-02)" in told


def test_volumes_that_were_never_measured_are_dropped(tree, app):
    def change(data, affine):
        data[..., -2:] = 0
        return data, affine

    rewrite(tree, change)
    code, told = app()
    assert code == 0
    assert "2 of 36 volumes dropped: volume 34 is empty; volume 35 is empty" in told


def test_a_tiny_mask_leaves_its_doubts_on_standard_error_and_in_the_report(tree, app):
    image = nib.load(tree.mask)
    data = np.zeros(image.shape, np.uint8)
    data[4:7, 4:7, 4:7] = 1
    nib.save(nib.Nifti1Image(data, image.affine), tree.mask)
    code, told = app()
    page = (tree.root / "out" / "sub-01.html").read_text("utf-8")
    assert code == 0
    for doubt in ("the mask covers 1.6% of the field of view", "few voxels of WM"):
        assert doubt in told
        assert doubt in page
