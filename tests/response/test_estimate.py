"""The estimate of responses: against truth and against MRtrix3, and its laws."""

import shutil
import subprocess

import nibabel as nib
import numpy as np
import pytest
from dipy.data import get_fnames

from shd_bids import simulation
from shd_bids.errors import InputError
from shd_bids.gradients.files import read_fsl
from shd_bids.gradients.frames import world_to_fsl
from shd_bids.gradients.table import gradient_table
from shd_bids.response.estimate import (
    FREE_DIFFUSIVITY,
    PERCENT,
    _anisotropic,
    _as_gaussians,
    _split,
    estimate_responses,
)
from shd_bids.response.mrtrix import parse_response
from shd_bids.response.response import Response, zonal_basis
from tests.helpers import requires_mrtrix
from tests.response.heads import AFFINE, MICRO, head


def relative(found: Response, truth: Response) -> np.ndarray:
    """Difference of the signals along and across the fibre and of the means, as a share of the mean at b=0."""
    found_at, true_at = found.amplitude([0.0, 0.7, 1.0]), truth.amplitude([0.0, 0.7, 1.0])
    return np.abs(found_at - true_at) / true_at[:, 0].mean()


def test_the_responses_that_made_the_signal_are_found(multi_shell, estimate):
    truth = simulation.true_responses(MICRO, multi_shell[2])
    assert estimate.separable_tissues == ("wm", "gm", "csf")
    for found, true, bound in zip(estimate.responses.tissues, truth.tissues, (0.05, 0.05, 0.03), strict=True):
        assert found.tissue == true.tissue
        error = relative(found, true.scaled(1000))
        assert error.max() < bound, f"{found.tissue}: {error.max():.3f}"


def test_voxels_lie_in_their_tissue(multi_shell, estimate):
    phantom = multi_shell[3]
    assert phantom.csf[estimate.voxels["csf"]].min() > 0.95
    assert phantom.gm[estimate.voxels["gm"]].mean() > 0.9
    assert phantom.fractions[..., 0][estimate.voxels["wm"]].mean() > 0.95
    total = sum(voxels.astype(int) for voxels in estimate.voxels.values())
    assert total.max() == 1


def test_wm_signal_is_positive_and_rises_from_along_the_fibre_to_across_it(estimate):
    signal = estimate.responses.wm.amplitude(np.cos(np.deg2rad(np.arange(0, 91, 3))))
    assert signal.min() > -1e-6 * signal.max()
    assert np.diff(signal, axis=0).min() > -1e-6 * signal.max()


def test_responses_scale_with_the_signal(multi_shell, estimate):
    signal, mask, table, _ = multi_shell
    again = estimate_responses(signal * np.float32(8), mask, table)
    for found, first in zip(again.responses.tissues, estimate.responses.tissues, strict=True):
        np.testing.assert_allclose(found.coefficients, 8 * first.coefficients, rtol=1e-5, atol=1e-3)


def test_responses_do_not_depend_on_the_frame(multi_shell, estimate, rng):
    signal, mask, table, _ = multi_shell
    turned = table.directions @ np.linalg.qr(rng.normal(size=(3, 3)))[0]
    again = estimate_responses(signal, mask, gradient_table(table.bvals, turned))
    wm = estimate.responses.wm.coefficients
    # the grid of the non-negativity constraint does not turn along, so a voxel or two may change
    np.testing.assert_allclose(again.responses.wm.coefficients, wm, atol=0.01 * wm[0, 0])


def test_volumes_may_come_in_any_order(multi_shell, estimate, rng):
    signal, mask, table, _ = multi_shell
    order = rng.permutation(table.n_volumes)
    again = estimate_responses(signal[..., order], mask, table.select(order))
    for found, first in zip(again.responses.tissues, estimate.responses.tissues, strict=True):
        np.testing.assert_allclose(found.coefficients, first.coefficients, rtol=1e-4, atol=0.1)


def write_mrtrix_input(folder, signal, mask, table):
    nib.save(nib.Nifti1Image(signal, AFFINE), folder / "dwi.nii")
    nib.save(nib.Nifti1Image(mask.astype(np.uint8), AFFINE), folder / "mask.nii")
    np.savetxt(folder / "bvec", world_to_fsl(table.directions, AFFINE).T, fmt="%.10f")
    np.savetxt(folder / "bval", table.bvals[None], fmt="%g")


@pytest.mark.slow
@requires_mrtrix
@pytest.mark.skipif(shutil.which("dwi2response") is None, reason="dwi2response is the oracle and is not installed")
@pytest.mark.parametrize("shells", [{1000.0: 16, 2000.0: 24, 3000.0: 32}, {1000.0: 30}], ids=["three shells", "one"])
def test_responses_are_those_of_mrtrix(tmp_path, shells):
    signal, mask, table, _ = head(np.random.default_rng(6), shells=shells, snr=25)
    write_mrtrix_input(tmp_path, signal, mask, table)
    command = ["dwi2response", "dhollander", "dwi.nii", "wm", "gm", "csf", "-mask", "mask.nii", "-quiet"]
    command += ["-fslgrad", "bvec", "bval", "-scratch", str(tmp_path), "-nthreads", "1"]
    command += ["-sfwm", "5", "-gm", "5"]  # of a brain the defaults are hundreds of voxels, of this ball four
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    ours = estimate_responses(signal, mask, table, percent={**PERCENT, "wm": 5, "gm": 5}).responses
    for found in ours.tissues:
        oracle = parse_response((tmp_path / found.tissue).read_text(), found.tissue, table.shell_bvalues)
        # those that matter stand out of the mean of their shell; the rest is noise, which a single voxel changes
        matters = np.abs(oracle.coefficients) > 0.05 * oracle.coefficients[:, :1]
        np.testing.assert_allclose(found.coefficients[matters], oracle.coefficients[matters], rtol=0.03)
        rest = np.abs(found.coefficients - oracle.coefficients) / oracle.coefficients[:, :1]
        assert rest.max() < 0.01


def test_a_tiny_crop_gives_a_usable_response_and_a_warning():
    image_file, bval_file, bvec_file = get_fnames(name="small_64D")
    image = nib.load(image_file)
    signal = image.get_fdata(dtype=np.float32)
    table = read_fsl(bval_file, bvec_file, image.affine, signal.shape[3])
    estimate = estimate_responses(signal, np.ones(signal.shape[:3], bool), table)
    assert any("few voxels of WM: 10 of" in note for note in estimate.notes)
    along, across = estimate.responses.wm.amplitude([1.0, 0.0])[:, 1]
    assert 2 < across / along < 10
    diffusivity = np.log(np.divide(*estimate.responses.csf.coefficients[:, 0])) / table.shell_bvalues[1]
    assert diffusivity == pytest.approx(3.0e-3, rel=0.2)


def test_a_crop_without_fluid_says_so(multi_shell, estimate):
    signal, mask, table, phantom = multi_shell
    estimate = estimate_responses(signal, mask & (phantom.csf < 0.05), table)
    assert any("no voxel is pure CSF" in note for note in estimate.notes)


def test_signal_without_fibres_is_told(rng):
    table = simulation.make_gradients(rng, {1000.0: 30}, n_b0=2)
    signal = simulation.add_noise(np.where(table.bvals > 0, 40.0, 100.0) * np.ones((9, 9, 9, 1)), 2.0, rng)
    estimate = estimate_responses(signal, np.ones((9, 9, 9), bool), table)
    assert any("nearly isotropic" in note for note in estimate.notes)


def test_signal_that_does_not_decay_is_refused(rng):
    table = simulation.make_gradients(rng, {1000.0: 12}, n_b0=2)
    with pytest.raises(InputError, match="only 0 voxels of the mask have a signal that decays"):
        estimate_responses(np.ones((6, 6, 6, 14), np.float32), np.ones((6, 6, 6), bool), table)
    with pytest.raises(InputError, match="expected \\(6, 6, 6, 14\\)"):
        estimate_responses(np.ones((6, 6, 6, 13), np.float32), np.ones((6, 6, 6), bool), table)


def test_split_is_the_best_of_all_thresholds(rng):
    values = np.concatenate([rng.normal(1, 0.3, 300), rng.normal(3, 0.5, 100)])
    chosen = _split(values)
    correlation = [np.corrcoef(values, values >= threshold)[0, 1] for threshold in np.sort(values)[1:]]
    assert np.corrcoef(values, values >= chosen)[0, 1] == pytest.approx(max(correlation), rel=1e-12)


@pytest.mark.parametrize("bvalue", [300.0, 1000.0, 4000.0, 13000.0])
def test_gaussian_compartments_keep_the_bounds_of_a_response(rng, bvalue):
    nodes, weights = np.polynomial.legendre.leggauss(64)
    attenuation = bvalue * rng.uniform(0.1, 1, size=(50, 1)) * FREE_DIFFUSIVITY
    mixtures = rng.dirichlet(np.ones(50), size=20) @ np.exp(-attenuation * nodes**2)
    coefficients = (mixtures * weights) @ zonal_basis(nodes, 10)
    margin = coefficients @ _as_gaussians(bvalue, 10).T
    assert margin.min() > -1e-12
    mirrored = coefficients * [1, -1, 1, 1, 1, 1]
    assert (mirrored @ _as_gaussians(bvalue, 10).T).min(axis=1).max() < 0


def test_six_directions_make_up_no_high_degrees(rng):
    """Two bundles that differ a little, as two always do, look like one response with ripples to so few directions."""
    fibres = np.repeat(simulation.uniform_directions(rng, 2), 200, axis=0)
    table = simulation.make_gradients(rng, {500.0: 6, 2500.0: 40}, n_b0=2)
    truth = simulation.true_responses(MICRO, table).wm.coefficients
    amplitudes = zonal_basis(fibres @ table.directions.T, 10)
    signal = np.einsum("nvl,vl->nv", amplitudes, truth[table.shell_index])
    differing = signal * np.repeat([0.9, 1.1], 200)[:, None]
    found = _anisotropic(differing, fibres, table, l_max=10)
    np.testing.assert_allclose(found[1] / truth[0, 0], truth[1] / truth[0, 0], atol=0.01)
