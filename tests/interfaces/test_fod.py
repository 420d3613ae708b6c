"""The fit: all maps in one order, the network of a recipe, and what is refused."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from shd_bids.errors import DeviceError, WeightsError
from shd_bids.fod.weights import save_weights
from shd_bids.images import load_mask, load_volume, scatter
from shd_bids.interfaces import fod as fod_stage
from shd_bids.interfaces.base import options_input, read_json
from shd_bids.interfaces.fod import FitFOD, RestoreFOD, fit_image
from shd_bids.interfaces.report import DrawResidual
from shd_bids.interfaces.response import EstimateResponses
from shd_bids.options import FodOptions, Runtime
from tests.interfaces.stages import ON_CPU, run
from tests.phantoms import RAS
from tests.tiny import tiny_weights


def test_values_in_mask_order_go_back_to_their_voxels(prepared):
    """The one order that joins ``fod.npy`` to the images."""
    mask = load_mask(prepared.mask_file, load_volume(prepared.mask_file))
    values = np.arange(mask.sum())
    np.testing.assert_array_equal(scatter(values, mask)[mask], values)


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory):
    """A network small enough to run in no time; what it says means nothing."""
    return save_weights(tmp_path_factory.mktemp("weights") / "tiny.safetensors", tiny_weights())


@pytest.fixture(scope="module")
def responses(dwi_file, prepared, tmp_path_factory):
    """Outputs of the stage before."""
    inputs = {"mask_file": prepared.mask_file, "gradients_file": prepared.gradients_file}
    return run(EstimateResponses, tmp_path_factory.mktemp("response"), dwi_file=str(dwi_file), **inputs)


def test_amortised_without_weights_is_refused(dwi_file, prepared, tmp_path):
    with pytest.raises(WeightsError, match="--fit amortised applies trained weights, but none were given"):
        fit_image(
            dwi_file=dwi_file,
            mask_file=prepared.mask_file,
            gradients_file=prepared.gradients_file,
            response_files=[],
            options=FodOptions(weights="none"),
            runtime=Runtime(),
            label="fit",
            out_dir=tmp_path,
        )


RECIPE = """
method = "mine"
input = "shells"
l_max = 4
refinement = false
[network]
form = "patch"
nside = 2
channels = [4, 4]
[training]
steps = 2
held_out = 0.0
hidden = 0.0
[loss]
reconstruction = 1.0
smoothness = 0.25
"""


@pytest.mark.slow
@pytest.mark.parametrize(("refinement", "is_refined"), [("auto", False), ("on", True)])
def test_network_of_a_recipe_is_trained_on_the_series(dwi_file, prepared, responses, tmp_path, refinement, is_refined):
    (tmp_path / "mine.toml").write_text(RECIPE)
    mask = np.zeros(load_volume(prepared.mask_file).shape, np.uint8)
    mask[5:9, 5:9, 5:9] = 1  # a network a patch at a time has much to do
    nib.save(nib.Nifti1Image(mask, RAS), tmp_path / "few.nii.gz")
    inputs = {"dwi_file": str(dwi_file), "gradients_file": prepared.gradients_file}
    options = FodOptions(
        fit="subject", weights="none", network=str(tmp_path / "mine.toml"), refinement=refinement, fod_lmax=4
    )
    run(
        FitFOD,
        tmp_path / "fod",
        **inputs,
        mask_file=str(tmp_path / "few.nii.gz"),
        response_files=responses.response_files,
        **options_input(options),
        **ON_CPU,
    )
    model = read_json(tmp_path / "fod" / "facts.json")["sidecar"]["model"]
    assert (model["Method"], model["Refinement"]) == ("mine", is_refined)
    assert model["Training"] == "trained on the series by its signal alone"
    assert model["TotalVariationWeight"] == 0.25  # of the recipe, as the options leave it


def test_fit_writes_all_maps_in_one_order(dwi_file, prepared, responses, weights_file, tmp_path):
    outputs = run(
        FitFOD,
        tmp_path / "fod",
        dwi_file=str(dwi_file),
        mask_file=prepared.mask_file,
        gradients_file=prepared.gradients_file,
        response_files=[responses.wm_file, responses.csf_file],  # no grey matter
        **options_input(FodOptions(weights=str(weights_file), fod_lmax=2)),
        **ON_CPU,
    )
    mask = load_mask(prepared.mask_file, load_volume(prepared.mask_file))
    coefficients = np.load(outputs.fod_file)
    assert coefficients.shape == (mask.sum(), 15)  # all that the network gave
    stored = load_volume(outputs.wm_file, keep_negative=True).data
    np.testing.assert_array_equal(stored[mask], coefficients[:, :6])  # as asked
    assert not isinstance(outputs.gm_file, str)
    assert nib.load(outputs.csf_file).shape == (*mask.shape, 1)  # an SH image of degree 0
    fractions = [load_volume(path).data for path in (outputs.vfwm_file, outputs.vfgm_file, outputs.vfcsf_file)]
    np.testing.assert_allclose(sum(fractions)[mask], 1, atol=1e-5)
    facts = read_json(tmp_path / "fod" / "facts.json")
    assert facts["sidecar"]["fod_lmax"] == 2
    assert facts["sidecar"]["model"]["FittedDegree"] == 4
    assert facts["sidecar"]["model"]["Precision"] == facts["qc"]["precision"]["value"] != "auto"
    assert facts["sidecar"]["model"]["Method"] == "conditioned"
    assert facts["sidecar"]["model"]["Refinement"] is True
    assert len(facts["sidecar"]["model"]["WeightsSHA256"]) == 64
    assert list(facts["shell_residuals"]) == ["b = 0", "b = 1000", "b = 2500"]
    json.dumps(facts, allow_nan=False)
    kept = {"wm_file": outputs.wm_file, "fodrest_file": outputs.fodrest_file, "mask_file": prepared.mask_file}
    restored = run(RestoreFOD, tmp_path / "restored", **kept)
    assert Path(restored.fod_file).read_bytes() == Path(outputs.fod_file).read_bytes()
    figure = run(
        DrawResidual,
        tmp_path / "draw",
        rsquared_file=outputs.rsquared_file,
        residualstd_file=outputs.residualstd_file,
        facts_file=outputs.facts_file,
        mask_file=prepared.mask_file,
    )
    assert figure.figure_file.endswith("residual.png")


def test_a_gpu_too_small_for_an_adaptation_is_left_for_the_cpu_if_it_was_not_asked_for(monkeypatch, caplog):
    monkeypatch.setattr("shd_bids.nn.device.choose_device", lambda name: torch.device("cuda", 0))
    tried = []

    def adapt(device):
        tried.append(device.type)
        if device.type == "cuda":
            raise torch.OutOfMemoryError("no room")
        return "adapted"

    assert fod_stage._where_it_fits(adapt, "auto") == "adapted"
    assert tried == ["cuda", "cpu"] and "going on with the CPU" in caplog.text
    with pytest.raises(DeviceError, match="cuda:0 has too little memory"):
        fod_stage._where_it_fits(adapt, "cuda:0")


def test_the_precision_of_the_device_reaches_an_adaptation():
    assert fod_stage.adaptation_options(FodOptions(), Runtime(precision="bf16", seed=3)).precision == "bf16"
