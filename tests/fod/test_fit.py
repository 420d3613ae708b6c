"""From a scan to fODFs: exact identities, fall-backs and warnings."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from shd_bids import simulation
from shd_bids.fod import network
from shd_bids.fod.config import TrainedDomain
from shd_bids.fod.fit import fit_fod
from shd_bids.fod.quality import domain_warnings
from shd_bids.images import scatter
from shd_bids.nn import device
from shd_bids.nn.backends.cpu import bf16_level
from shd_bids.options import Runtime
from shd_bids.response.forward import forward_model
from shd_bids.response.response import Responses
from shd_bids.scan import Scan
from tests.tiny import tiny_scan, tiny_weights

CPU = Runtime(device="cpu")


@pytest.fixture(scope="module")
def weights():
    return tiny_weights()


@pytest.fixture(scope="module")
def scene():
    return tiny_scan()


@pytest.fixture(scope="module")
def fitted(scene, weights):
    """What the defaults give."""
    return fit_fod(scene, weights, runtime=CPU)


@pytest.fixture(scope="module")
def unrefined(scene, weights):
    """The answer of the network."""
    return fit_fod(scene, weights, runtime=CPU, refine=False)


def brighter(scan, factor):
    """The same scan in another unit of signal."""
    responses = Responses(*(response.scaled(factor) for response in scan.responses.tissues))
    return replace(scan, voxels=factor * scan.voxels, responses=responses, sigma=factor * scan.sigma)


def test_fractions_are_shares_and_one_row_stands_for_each_voxel(scene, fitted):
    assert len(fitted) == len(fitted.gm) == len(fitted.quality.r_squared) == scene.mask.sum()
    np.testing.assert_allclose(fitted.fractions.sum(axis=1), 1.0, atol=1e-5)
    assert fitted.wm.dtype == np.float32 and np.isfinite(fitted.wm).all()


@pytest.mark.slow
@pytest.mark.parametrize("arithmetic", ["float32", "mixed"])
def test_the_order_of_the_axes_does_not_matter(scene, monkeypatch, arithmetic):
    """A series stored with its axes in another order; `mixed` on any processor."""
    monkeypatch.setattr(device, "bf16_level", lambda: 0 if arithmetic == "mixed" else None)
    volume, mask = scatter(scene.voxels, scene.mask)[:4, :8], scene.mask[:4, :8]
    results = []
    for order in ((0, 1, 2), (2, 0, 1)):
        affine = scene.affine @ np.eye(4)[:, [*order, 3]]
        signal, inside = volume.transpose(*order, 3), mask.transpose(order)
        fod = fit_fod(Scan.of_volume(signal, inside, scene.gradients, scene.responses, affine), runtime=CPU)
        assert fod.facts.precision == arithmetic
        results.append(scatter(fod.wm, inside).transpose(*np.argsort(order), 3))
    largest = np.abs(results[0]).max()
    np.testing.assert_allclose(results[1], results[0], rtol=0, atol=1e-5 * largest)


def test_the_unit_of_the_signal_does_not_matter(scene, weights, fitted):
    scaled = fit_fod(brighter(scene, 8), weights, runtime=CPU)
    np.testing.assert_allclose(scaled.wm, fitted.wm, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(scaled.quality.residual_std, 8 * fitted.quality.residual_std, rtol=1e-3)


def test_little_memory_gives_the_same_result(scene, weights, fitted):
    tiled = fit_fod(scene, weights, runtime=Runtime(device="cpu", memory_gb=0.01))
    np.testing.assert_allclose(tiled.wm, fitted.wm, rtol=1e-4, atol=1e-5)


class Device:
    """A stand-in for tiles on a device that runs out of memory, and a record of what was tried."""

    def __init__(self, monkeypatch, *, fails):
        self.tried, self._fails, self._tiles = [], fails, network.apply_in_tiles
        monkeypatch.setattr(network, "apply_in_tiles", self)

    def __call__(self, net, mask, *, memory_bytes, **options):
        self.tried.append(memory_bytes / 2**30)
        if len(self.tried) <= len(self._fails):
            raise self._fails[len(self.tried) - 1]
        self._tiles(net, mask, memory_bytes=memory_bytes, **options)


def test_a_device_out_of_memory_gets_smaller_tiles_then_the_cpu_goes_on(scene, weights, unrefined, monkeypatch, caplog):
    for fails, tried in (
        ([torch.OutOfMemoryError()] * 2, [8, 4, 2]),
        ([torch.OutOfMemoryError(), ValueError("not enough for the smallest tile")], [8, 4, 8]),
        ([torch.OutOfMemoryError()] * 6, [8, 4, 2, 1, 0.5, 0.25, 8]),
    ):
        with monkeypatch.context() as patch:
            device = Device(patch, fails=fails)
            found = fit_fod(scene, weights, runtime=Runtime(device="auto", memory_gb=8.0), refine=False)
        assert device.tried == tried
        np.testing.assert_array_equal(found.wm, unrefined.wm)
    assert "going on with tiles of 4096 MB" in caplog.text and "going on with the CPU" in caplog.text


def test_the_cpu_that_goes_on_rounds_nothing_where_float32_is_asked_for(scene, weights, monkeypatch):
    Device(monkeypatch, fails=[torch.OutOfMemoryError()] * 6)
    found = fit_fod(scene, weights, runtime=Runtime(device="auto", precision="float32", memory_gb=8.0), refine=False)
    assert found.facts.precision == "float32"


@pytest.mark.parametrize(
    "fails", [[torch.OutOfMemoryError()] * 6, [torch.OutOfMemoryError(), ValueError("not enough")]]
)
def test_who_insists_on_a_device_is_told_that_its_memory_is_not_enough(scene, weights, monkeypatch, fails):
    Device(monkeypatch, fails=fails)
    with pytest.raises(type(fails[-1])):
        fit_fod(scene, weights, runtime=Runtime(device="cpu", memory_gb=8.0))


@pytest.mark.skipif(bf16_level() is None, reason="no instructions for bfloat16 here")
def test_facts_tell_the_arithmetic(scene, weights):
    found = {
        name: fit_fod(scene, weights, runtime=Runtime(device="cpu", precision=name))
        for name in ("float32", "auto", "bf16")
    }
    assert [fod.facts.precision for fod in found.values()] == ["float32", "mixed", "bf16"]
    exact, *rounded = (fod.wm for fod in found.values())
    for wm in rounded:
        assert not np.array_equal(wm, exact)
        np.testing.assert_allclose(wm, exact, atol=0.02 * np.abs(exact).max())


@pytest.mark.gpu
@pytest.mark.parametrize(("precision", "atol"), [("float32", 1e-4), ("tf32", 5e-3), ("bf16", 3e-2)])
def test_a_gpu_gives_the_result_of_the_cpu(scene, weights, precision, atol):
    here = fit_fod(scene, weights, runtime=Runtime(device="cpu", precision="float32"))
    there = fit_fod(scene, weights, runtime=Runtime(device="cuda", precision=precision))
    assert "cuda" in there.facts.device and there.facts.peak_gpu_mb > 0
    np.testing.assert_allclose(there.wm, here.wm, atol=atol)


@pytest.mark.gpu
def test_a_gpu_without_free_memory_leaves_the_work_to_the_cpu(scene, weights, fitted):
    torch.cuda.set_per_process_memory_fraction(1e-6)
    try:
        found = fit_fod(scene, weights, runtime=Runtime())
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    np.testing.assert_allclose(found.wm, fitted.wm, atol=1e-4)


def test_residual_of_a_shell_is_that_of_its_volumes(scene, fitted):
    error = scene.voxels - fitted.predict(forward_model(scene.gradients, scene.responses, l_max=4))
    shell = scene.gradients.shells[1]
    expected = np.median(np.sqrt((error[:, shell.indices] ** 2).mean(axis=1)))
    assert fitted.quality.shell_residuals[shell.bvalue] == pytest.approx(expected, rel=1e-3)
    np.testing.assert_allclose(fitted.quality.residual_std, np.sqrt((error**2).mean(axis=1)), rtol=1e-3)


def test_the_answer_of_the_network_can_be_left_as_it_is(fitted, unrefined):
    assert unrefined.facts.correction_updates == 0 and np.abs(unrefined.wm - fitted.wm).max() > 0.01
    assert np.square(fitted.quality.residual_std).mean() < np.square(unrefined.quality.residual_std).mean()


def test_acquisitions_outside_the_training_are_named():
    rng = np.random.default_rng(0)
    inside = simulation.make_gradients(rng, {1000.0: 30, 3000.0: 60}, n_b0=2)
    assert domain_warnings(inside, TrainedDomain(), snr=30) == []
    few = simulation.make_gradients(rng, {1000.0: 8}, n_b0=1)
    assert any("at most 8 directions" in w for w in domain_warnings(few, TrainedDomain(), snr=30))
    low = simulation.make_gradients(rng, {200.0: 30}, n_b0=1)
    assert any(
        "[200] lie outside the trained range 500 to 13000" in w for w in domain_warnings(low, TrainedDomain(), snr=30)
    )
    assert any("signal-to-noise ratio 3" in w for w in domain_warnings(inside, TrainedDomain(), snr=3))


def test_a_signal_that_the_fit_cannot_explain_is_named(scene, weights, fitted):
    assert not any("misses" in warning for warning in fitted.facts.warnings)
    drift = np.where(np.arange(scene.gradients.n_volumes) % 2, 0.2, 1.8)  # as scaling between volumes would
    drifting = replace(scene, voxels=(scene.voxels * drift).astype(np.float32))
    bad = fit_fod(drifting, weights, runtime=CPU)
    assert any(warning.startswith("b=1000: the predicted signal misses") for warning in bad.facts.warnings)
    most = weights.domain.most_misfit
    assert np.median(fitted.quality.misfit) < most / 2 and np.median(bad.quality.misfit) > most
    np.testing.assert_allclose(bad.quality.misfit * bad.quality.explained_error, bad.quality.residual_std, rtol=1e-6)


def test_grey_matter_that_is_not_fitted_becomes_isotropic_fibre_density(scene, weights):
    two = replace(scene, responses=scene.responses.only(("wm", "csf")))
    result = fit_fod(two, weights, runtime=CPU)
    assert np.all(result.gm == 0) and np.all(result.fractions[:, 1] == 0)
    b0 = scene.gradients.b0_indices
    predicted, measured = (values[:, b0].mean(axis=1) for values in (result.predict(two.forward(4)), scene.voxels))
    np.testing.assert_allclose(predicted, measured, rtol=0.2)
    assert abs(np.mean(predicted) / np.mean(measured) - 1) < 0.05
