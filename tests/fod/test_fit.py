"""Whole-volume inference: exact identities, fall-backs and refusals."""

import numpy as np
import pytest
import torch

from shd_bids import simulation
from shd_bids.errors import DeviceError, WeightsError
from shd_bids.fod import fit
from shd_bids.fod.fit import choose_device, domain_warnings, fit_fod
from shd_bids.fod.inputs.estimates import CHANNELS
from shd_bids.fod.weights import Weights
from shd_bids.nn.unet import UNet, UNetConfig
from shd_bids.response.forward import forward_model
from shd_bids.response.response import Response, Responses


@pytest.fixture(scope="module")
def weights():
    torch.manual_seed(0)
    config = UNetConfig(len(CHANNELS), 3, nside=2, channels=(4, 4))
    net = UNet(config)
    return Weights(config=config, state=net.state_dict(), l_max=4, sha256="0" * 64, name="tiny", training={})


@pytest.fixture(scope="module")
def scene():
    rng = np.random.default_rng(0)
    phantom = simulation.crossing_phantom(rng, size=10, angles=(70.0,))
    gradients = simulation.make_gradients(rng, {1000.0: 20, 2500.0: 30}, n_b0=3)
    micro = simulation.draw_microstructure(rng, len(phantom.bundles))
    signal = 500 * simulation.add_noise(simulation.noiseless_signal(phantom, micro, gradients), 1 / 30, rng)
    true = simulation.true_responses(micro, gradients)
    responses = Responses(*(Response(t.tissue, t.bvalues, 500 * t.coefficients) for t in true.tissues))
    mask = np.ones(phantom.gm.shape, dtype=bool)
    mask[:, :, 0] = False
    return signal, mask, gradients, responses


def test_fractions_are_shares_and_one_row_stands_for_each_voxel(scene, weights):
    result = fit_fod(*scene, affine=np.eye(4), weights=weights, device="cpu")
    assert len(result.wm) == len(result.gm) == len(result.r_squared) == scene[1].sum()
    np.testing.assert_allclose(result.fractions.sum(axis=1), 1.0, atol=1e-5)
    assert result.wm.dtype == np.float32 and np.isfinite(result.wm).all()


def test_the_unit_of_the_signal_does_not_matter(scene, weights):
    signal, mask, gradients, responses = scene
    larger = Responses(*(Response(t.tissue, t.bvalues, 8 * t.coefficients) for t in responses.tissues))
    plain = fit_fod(*scene, affine=np.eye(4), weights=weights, device="cpu")
    scaled = fit_fod(8 * signal, mask, gradients, larger, affine=np.eye(4), weights=weights, device="cpu")
    np.testing.assert_allclose(scaled.wm, plain.wm, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(scaled.residual_std, 8 * plain.residual_std, rtol=1e-3)


def test_little_memory_gives_the_same_result(scene, weights):
    whole = fit_fod(*scene, affine=np.eye(4), weights=weights, device="cpu", memory_gb=8.0)
    tiled = fit_fod(*scene, affine=np.eye(4), weights=weights, device="cpu", memory_gb=0.01)
    np.testing.assert_allclose(tiled.wm, whole.wm, rtol=1e-4, atol=1e-5)


class Device:
    """A stand-in for tiles on a device that runs out of memory, and a record of what was tried."""

    def __init__(self, monkeypatch, *, fails):
        self.tried, self._fails, self._tiles = [], fails, fit.apply_in_tiles
        monkeypatch.setattr(fit, "apply_in_tiles", self)

    def __call__(self, net, mask, *, memory_bytes, **options):
        self.tried.append(memory_bytes / 2**30)
        if len(self.tried) <= len(self._fails):
            raise self._fails[len(self.tried) - 1]
        self._tiles(net, mask, memory_bytes=memory_bytes, **options)


def test_a_device_out_of_memory_gets_smaller_tiles_then_the_cpu_goes_on(scene, weights, monkeypatch, caplog):
    expected = fit_fod(*scene, affine=np.eye(4), weights=weights, device="cpu")
    for fails, tried in (
        ([torch.OutOfMemoryError()] * 2, [8, 4, 2]),
        ([torch.OutOfMemoryError(), ValueError("not enough for the smallest tile")], [8, 4, 8]),
        ([torch.OutOfMemoryError()] * 6, [8, 4, 2, 1, 0.5, 0.25, 8]),
    ):
        with monkeypatch.context() as patch:
            device = Device(patch, fails=fails)
            found = fit_fod(*scene, affine=np.eye(4), weights=weights, device="auto", memory_gb=8.0)
        assert device.tried == tried
        np.testing.assert_array_equal(found.wm, expected.wm)
    assert "going on with tiles of 4096 MB" in caplog.text and "going on with the CPU" in caplog.text


@pytest.mark.parametrize(
    "fails", [[torch.OutOfMemoryError()] * 6, [torch.OutOfMemoryError(), ValueError("not enough")]]
)
def test_who_insists_on_a_device_is_told_that_its_memory_is_not_enough(scene, weights, monkeypatch, fails):
    Device(monkeypatch, fails=fails)
    with pytest.raises(type(fails[-1])):
        fit_fod(*scene, affine=np.eye(4), weights=weights, device="cpu", memory_gb=8.0)


@pytest.mark.gpu
@pytest.mark.parametrize(("precision", "atol"), [("float32", 1e-4), ("tf32", 5e-3), ("bf16", 3e-2)])
def test_a_gpu_gives_the_result_of_the_cpu(scene, weights, precision, atol):
    here = fit_fod(*scene, affine=np.eye(4), weights=weights, device="cpu")
    there = fit_fod(*scene, affine=np.eye(4), weights=weights, device="cuda", precision=precision)
    assert "cuda" in there.info["device"] and there.info["peak_gpu_mb"] > 0
    np.testing.assert_allclose(there.wm, here.wm, atol=atol)


@pytest.mark.gpu
def test_a_gpu_without_free_memory_leaves_the_work_to_the_cpu(scene, weights):
    expected = fit_fod(*scene, affine=np.eye(4), weights=weights, device="cpu")
    torch.cuda.set_per_process_memory_fraction(1e-6)
    try:
        found = fit_fod(*scene, affine=np.eye(4), weights=weights, device="auto")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    np.testing.assert_allclose(found.wm, expected.wm, atol=1e-4)


def test_residual_of_a_shell_is_that_of_its_volumes(scene, weights):
    signal, mask, gradients, responses = scene
    result = fit_fod(*scene, affine=np.eye(4), weights=weights, device="cpu")
    matrix = forward_model(gradients, responses, l_max=4).matrix.numpy()
    coefficients = np.concatenate([result.wm, result.gm[:, None], result.csf[:, None]], axis=1)
    error = signal[mask] - coefficients @ matrix.T
    shell = gradients.shells[1]
    expected = np.median(np.sqrt((error[:, shell.indices] ** 2).mean(axis=1)))
    assert result.shell_residuals[shell.bvalue] == pytest.approx(expected, rel=1e-3)
    np.testing.assert_allclose(result.residual_std, np.sqrt((error**2).mean(axis=1)), rtol=1e-3)


def test_amortised_without_weights_is_refused(scene):
    with pytest.raises(WeightsError, match="--fit amortised applies trained weights, but none were given"):
        fit_fod(*scene, affine=np.eye(4), weights=None)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there")
def test_absent_cuda_is_an_error_unless_auto():
    assert choose_device("auto") == torch.device("cpu")
    with pytest.raises(DeviceError, match="'cuda:1' was asked for, found 0 CUDA devices"):
        choose_device("cuda:1")


def test_acquisitions_outside_the_training_are_named():
    rng = np.random.default_rng(0)
    inside = simulation.make_gradients(rng, {1000.0: 30, 3000.0: 60}, n_b0=2)
    assert domain_warnings(inside, snr=30) == []
    few = simulation.make_gradients(rng, {1000.0: 8}, n_b0=1)
    assert any("at most 8 directions" in w for w in domain_warnings(few, snr=30))
    low = simulation.make_gradients(rng, {200.0: 30}, n_b0=1)
    assert any("[200] lie outside the trained range 500 to 13000" in w for w in domain_warnings(low, snr=30))
    assert any("signal-to-noise ratio 3" in w for w in domain_warnings(inside, snr=3))


def test_a_signal_that_the_fit_cannot_explain_is_named(scene, weights):
    signal, mask, gradients, responses = scene
    good = fit_fod(*scene, affine=np.eye(4), weights=weights, device="cpu")
    assert not any("misses" in warning for warning in good.info["warnings"])
    drifting = signal * np.where(np.arange(gradients.n_volumes) % 2, 0.2, 1.8)  # as scaling between volumes would
    bad = fit_fod(drifting, mask, gradients, responses, affine=np.eye(4), weights=weights, device="cpu")
    assert any(warning.startswith("b=1000: the predicted signal misses") for warning in bad.info["warnings"])


def test_grey_matter_that_is_not_fitted_becomes_isotropic_fibre_density(scene, weights):
    signal, mask, gradients, responses = scene
    two = Responses(wm=responses.wm, gm=None, csf=responses.csf)
    result = fit_fod(signal, mask, gradients, two, affine=np.eye(4), weights=weights, device="cpu")
    assert np.all(result.gm == 0) and np.all(result.fractions[:, 1] == 0)
    matrix = forward_model(gradients, two, l_max=4).matrix.numpy()
    predicted = np.concatenate([result.wm, result.csf[:, None]], axis=1) @ matrix[gradients.b0_indices].T
    measured = signal[mask][:, gradients.b0_indices].mean(axis=1)
    np.testing.assert_allclose(predicted.mean(axis=1), measured, rtol=0.2)
    assert abs(np.mean(predicted) / np.mean(measured) - 1) < 0.05
