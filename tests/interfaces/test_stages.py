"""Each stage on a small simulated head: right files, right facts, and an error where the input is wrong."""

import json
import pickle

import nibabel as nib
import numpy as np
import pytest
import torch

from shd_bids.errors import GradientError, InputError, WeightsError
from shd_bids.fod.config import CHANNELS
from shd_bids.fod.weights import Weights, save_weights
from shd_bids.gradients.table import GradientTable
from shd_bids.images import load_mask, load_volume, scatter
from shd_bids.interfaces import report
from shd_bids.interfaces.base import StageInterface, options_input, read_json, runtime_inputs
from shd_bids.interfaces.fod import FitFOD, fit_image
from shd_bids.interfaces.gradients import PrepareGradients, RequireOrientation
from shd_bids.interfaces.peaks import FindPeaks
from shd_bids.interfaces.report import DrawMask, DrawResidual, DrawStreamlines
from shd_bids.interfaces.response import EstimateResponses, ReadResponses
from shd_bids.interfaces.tractography import TrackStreamlines
from shd_bids.nn.unet import UNet, UNetConfig
from shd_bids.options import FodOptions, GradientOptions, PeakOptions, Runtime, TrackingOptions
from shd_bids.report.facts import RunReport
from shd_bids.report.methods import methods_text
from shd_bids.sphere.harmonics import sh_basis
from tests.phantoms import RAS, head, many_bundles, write_head

ON_CPU = runtime_inputs(Runtime(device="cpu", memory_gb=1.0))


@pytest.fixture(autouse=True)
def in_process(monkeypatch):
    """The process of their own is tested elsewhere and costs a second each."""
    monkeypatch.setattr(StageInterface, "is_isolated", False)


@pytest.fixture(scope="module")
def simulated():
    return head(np.random.default_rng(5), size=14)


@pytest.fixture
def dwi_file(tmp_path, simulated):
    signal, table, _ = simulated
    return write_head(tmp_path / "raw", signal, table)


def run(interface, folder, **inputs):
    folder.mkdir(exist_ok=True)
    return interface(**inputs).run(cwd=folder).outputs


def prepare(dwi_file, folder, *, gradient_check="error", **files):
    stem = str(dwi_file).removesuffix(".nii.gz")
    inputs = {
        "mask_origin": "estimated",
        "dwi_file": str(dwi_file),
        "bval_file": f"{stem}.bval",
        "bvec_file": f"{stem}.bvec",
    }
    options = options_input(GradientOptions(gradient_check=gradient_check))
    return run(PrepareGradients, folder, **inputs | files, **options)


def test_gradients_are_read_in_world_axes(dwi_file, tmp_path, simulated):
    signal, table, _ = simulated
    outputs = prepare(dwi_file, tmp_path / "gradients")
    read = GradientTable.from_dict(read_json(tmp_path / "gradients" / "gradients.json"))
    np.testing.assert_allclose(read.directions, table.directions, atol=1e-6)
    b0 = load_volume(outputs.b0_file)
    np.testing.assert_allclose(b0.data, signal[..., table.b0_indices].mean(-1), rtol=1e-5)
    facts = read_json(tmp_path / "gradients" / "facts.json")
    assert [shell["n_volumes"] for shell in facts["shells"]] == [4, 20, 40]
    assert facts["orientation_check"]["is_given_best"]
    assert facts["qc"]["gradient_flip_suggested"]["value"] == "n/a"
    assert facts["sidecar"]["mask_origin"] == "estimated"
    json.dumps(facts, allow_nan=False)


def test_directions_that_cannot_be_judged_are_a_doubt(dwi_file, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("shd_bids.gradients.orientation.CLEAR_LEAD", 1e9)
    prepare(dwi_file, tmp_path / "gradients")
    notes = read_json(tmp_path / "gradients" / "facts.json")["notes"]
    assert any("cannot be judged" in note for note in notes)
    assert "cannot be judged" in caplog.text


@pytest.fixture
def flipped(tmp_path):
    """A head whose directions were written without the sign change that BIDS asks for; and the right table."""
    signal, table = many_bundles(np.random.default_rng(3))
    wrong = table.directions.copy()  # as along the image axes, though the determinant is positive
    return write_head(tmp_path / "raw", signal, table, bvecs=wrong), table


def agreement(folder, table):
    """Return the cosine between the directions read and the true ones, up to the sign that no signal can tell."""
    read = GradientTable.from_dict(read_json(folder / "gradients.json"))
    return np.abs(np.sum(read.directions * table.directions, axis=1))[table.bvals > 50]


def gate(prepared, folder, shown=()):
    files = {"gradients_file": prepared.gradients_file, "facts_file": prepared.facts_file}
    return run(RequireOrientation, folder, shown_files=list(shown), **files)


def test_flipped_gradients_stop_the_series_and_say_where_it_shows(flipped, tmp_path):
    prepared = prepare(flipped[0], tmp_path / "gradients")
    axes, coherence = np.loadtxt(prepared.orientation_file, dtype=str, skiprows=1, unpack=True)
    assert len(axes) == 24 and axes[0] == "-x,y,z" and "x,y,z" in axes
    assert np.all(np.diff(coherence.astype(float)) <= 0)
    shown = [
        "/out/sub-01_desc-gradients_dwi.png",
        "/out/sub-01_desc-orientation_dwi.tsv",
        "/out/sub-01_desc-mask_dwi.png",
    ]
    with pytest.raises(GradientError, match=r"sub-01_dwi.nii.gz: .*--gradient-check fix.*; shown in") as caught:
        gate(prepared, tmp_path / "gate", shown)
    assert [path in str(caught.value) for path in shown] == [True, True, False]


def test_gradients_that_fit_are_passed_on(dwi_file, tmp_path):
    for action in ("error", "off"):
        prepared = prepare(dwi_file, tmp_path / action, gradient_check=action)
        assert gate(prepared, tmp_path / f"{action}_gate").gradients_file == prepared.gradients_file


def test_flipped_gradients_are_mended_where_asked(flipped, tmp_path):
    dwi_file, table = flipped
    for action in ("fix", "warn", "off"):
        gate(prepare(dwi_file, tmp_path / action, gradient_check=action), tmp_path / f"{action}_gate")
    assert any("corrected" in note for note in read_json(tmp_path / "fix" / "facts.json")["notes"])
    np.testing.assert_allclose(agreement(tmp_path / "fix", table), 1, atol=1e-6)
    assert agreement(tmp_path / "warn", table).min() < 0.9
    assert agreement(tmp_path / "off", table).min() < 0.9
    assert not read_json(tmp_path / "warn" / "facts.json")["orientation_check"]["is_given_best"]
    assert read_json(tmp_path / "off" / "facts.json")["orientation_check"] is None


def test_volumes_of_a_scan_that_stopped_early_are_dropped_when_few(tmp_path, simulated):
    signal, table, _ = simulated
    signal = signal.copy()
    signal[..., -2:] = 0
    prepare(write_head(tmp_path / "raw", signal, table), tmp_path / "few")
    read = GradientTable.from_dict(read_json(tmp_path / "few" / "gradients.json"))
    assert (read.n_volumes, read.n_source_volumes) == (table.n_volumes - 2, table.n_volumes)
    last = table.n_volumes - 1
    notes = " ".join(read_json(tmp_path / "few" / "facts.json")["notes"])
    assert f"volume {last - 1} is empty; volume {last} is empty" in notes
    signal[..., -30:] = 0
    with pytest.raises(GradientError, match=r"sub-01_dwi\.nii\.gz: 30 of 60 weighted volumes"):
        prepare(write_head(tmp_path / "raw", signal, table), tmp_path / "many")


def test_given_mask_wins_and_loses_voxels_without_signal(dwi_file, tmp_path, simulated):
    signal = simulated[0].copy()
    signal[3, 3, 3] = 0
    write_head(tmp_path / "raw", signal, simulated[1])
    mask = np.zeros(signal.shape[:3], np.uint8)
    mask[2:-2, 2:-2, 2:-2] = 1
    nib.save(nib.Nifti1Image(mask, RAS), tmp_path / "mask.nii.gz")
    outputs = prepare(dwi_file, tmp_path / "out", mask_file=str(tmp_path / "mask.nii.gz"), mask_origin="given")
    mask[3, 3, 3] = 0
    np.testing.assert_array_equal(load_mask(outputs.mask_file, load_volume(dwi_file)), mask > 0)
    assert read_json(tmp_path / "out" / "facts.json")["qc"]["mask_zero_signal_fraction"]["value"] == pytest.approx(1e-3)


@pytest.fixture
def prepared(dwi_file, tmp_path):
    return prepare(dwi_file, tmp_path / "gradients")


def test_responses_estimated_then_given_are_the_same(dwi_file, prepared, tmp_path):
    inputs = {"gradients_file": prepared.gradients_file}
    estimated = run(EstimateResponses, tmp_path / "a", dwi_file=str(dwi_file), mask_file=prepared.mask_file, **inputs)
    facts = read_json(tmp_path / "a" / "facts.json")
    text = methods_text([RunReport("sub-01", {"response": facts})])
    assert "Response functions of white matter, grey matter and CSF were estimated" in text
    assert facts["qc"]["n_voxels_response_wm"]["value"] > 0
    files = [estimated.wm_file, estimated.gm_file, estimated.csf_file]
    files = [file for file in files if isinstance(file, str)]
    run(ReadResponses, tmp_path / "b", response_files=files[::-1], **inputs)  # names decide, not the order
    read = read_json(tmp_path / "b" / "facts.json")["sidecar"]["response"]
    assert read.keys() == facts["sidecar"]["response"].keys()
    for tissue, rows in read.items():
        np.testing.assert_allclose(rows, facts["sidecar"]["response"][tissue], rtol=1e-13)  # 15 digits of text


def test_doubts_about_a_small_mask_reach_the_user_and_the_facts(dwi_file, prepared, tmp_path, caplog):
    image = nib.load(prepared.mask_file)
    mask = np.asarray(image.dataobj) > 0
    mask[np.cumsum(mask).reshape(mask.shape) > 30] = False
    nib.save(nib.Nifti1Image(mask.astype(np.uint8), image.affine), tmp_path / "small.nii.gz")
    inputs = {"gradients_file": prepared.gradients_file, "mask_file": str(tmp_path / "small.nii.gz")}
    run(EstimateResponses, tmp_path / "few", dwi_file=str(dwi_file), series="sub-01", **inputs)
    notes = read_json(tmp_path / "few" / "facts.json")["notes"]
    assert any("few voxels of WM" in note for note in notes)
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warned == [f"sub-01: {note}" for note in notes]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("csf.txt",), "expected at least wm"),
        (("group.txt",), "one of wm, gm, csf"),
        (("wm.txt", "sub-1_WM.txt"), "each once"),
    ],
)
def test_responses_without_a_clear_tissue_are_refused(prepared, tmp_path, names, message):
    for name in names:
        (tmp_path / name).write_text("1 0\n")
    with pytest.raises(InputError, match=message):
        run(
            ReadResponses,
            tmp_path / "b",
            response_files=[str(tmp_path / name) for name in names],
            gradients_file=prepared.gradients_file,
        )


@pytest.fixture
def fitted(prepared, tmp_path, simulated):
    """The true fODF, as the fit would leave it."""
    phantom = simulated[2]
    mask = load_mask(prepared.mask_file, load_volume(prepared.mask_file))
    weights = phantom.fractions[mask]
    directions = np.where(weights[..., None] > 0, phantom.directions[mask], [0.0, 0.0, 1.0])
    delta = sh_basis(directions.reshape(-1, 3), 8).reshape(*weights.shape, -1)
    np.save(tmp_path / "fod.npy", np.einsum("nk,nkc->nc", weights, delta).astype(np.float32))
    np.save(tmp_path / "precision.npy", np.array([[2.0, 40.0], [1.0, 4.0], [0.2, 4.0]]))
    files = {f"{name}_file": str(tmp_path / f"{name}.npy") for name in ("fod", "precision")}
    files["mask_file"] = prepared.mask_file
    for name, volume in (("vfwm", phantom.wm), ("vfcsf", phantom.csf)):
        nib.save(nib.Nifti1Image((volume * mask).astype(np.float32), RAS), tmp_path / f"{name}.nii.gz")
        files[f"{name}_file"] = str(tmp_path / f"{name}.nii.gz")
    return files


def test_peaks_follow_the_fibres_and_the_mrtrix_layout(fitted, tmp_path, simulated):
    phantom = simulated[2]
    options = PeakOptions(peak_max=3, peak_relative_threshold=0.2, peak_separation=25.0)
    outputs = run(FindPeaks, tmp_path / "peaks", **fitted, **options_input(options), **ON_CPU)
    peaks = load_volume(outputs.peaks_file, keep_negative=True).data
    assert peaks.shape[3] == 9
    alone = (phantom.fractions[..., 0] > 0.9) & (load_volume(fitted["mask_file"]).data > 0)
    first = peaks[alone][:, :3]
    cosine = np.abs(np.sum(first * phantom.directions[alone][:, 0], axis=1)) / np.linalg.norm(first, axis=1)
    assert np.rad2deg(np.arccos(cosine.clip(max=1))).max() < 1.0
    amplitude = load_volume(outputs.peakamp_file).data
    np.testing.assert_allclose(np.linalg.norm(first, axis=1), amplitude[alone][:, 0], rtol=1e-4)
    assert load_volume(outputs.nufo_file).data[alone].max() == 1
    density, dispersion, interval = (
        load_volume(path).data[alone]
        for path in (outputs.peakafd_file, outputs.peakdispersion_file, outputs.peakinterval_file)
    )
    assert density.shape[1] == 3 and dispersion.shape[1] == 6 and interval.shape[1] == 3
    assert (density[:, 0] > 0).all() and (density[:, 1:] == 0).all()
    assert (dispersion[:, :2] > 0).all() and (dispersion[:, 2:] == 0).all()
    assert (interval[:, 0] > 0).all() and (interval[:, 1:] == 0).all()
    np.testing.assert_allclose(load_volume(outputs.afdtotal_file).data[alone], phantom.wm[alone], rtol=0.05)
    facts = read_json(tmp_path / "peaks" / "facts.json")
    assert facts["sidecar"]["peaks"]["PeakMaximumNumber"] == 3
    assert facts["is_threshold_automatic"]
    json.dumps(facts, allow_nan=False)


def test_streamlines_in_every_format(prepared, fitted, tmp_path):
    options = TrackingOptions(
        tracking_algorithm="det", seeds=1, min_length=4.0, max_length=100.0, tractogram_format=("tck", "trk")
    )
    for name in ("vfcsf_file", "precision_file"):  # say nothing about where to track
        fitted.pop(name)
    outputs = run(TrackStreamlines, tmp_path / "track", **fitted, **options_input(options), **ON_CPU)
    tck, trk = (nib.streamlines.load(path).streamlines for path in outputs.tractogram_files)
    assert len(tck) == len(trk) > 0
    np.testing.assert_allclose(tck[0], trk[0], atol=1e-3)
    facts = read_json(tmp_path / "track" / "facts.json")
    assert facts["qc"]["n_streamlines"]["value"] == len(tck)
    assert facts["sidecar"]["tractography"]["StreamlineReconstructionDensity"]["AcceptedStreamlines"] == len(tck)
    density = load_volume(outputs.tdi_file).data
    assert 0 < density.max() <= len(tck)
    preview = np.load(outputs.preview_file)
    assert preview["counts"].sum() == len(preview["points"])
    files = {"preview_file": outputs.preview_file, "mask_file": fitted["mask_file"], "b0_file": prepared.b0_file}
    figure = run(DrawStreamlines, tmp_path / "draw", **files)
    assert figure.figure_file.endswith("tractogram.png")


def test_few_streamlines_are_a_doubt(prepared, fitted, tmp_path, caplog):
    options = TrackingOptions(tracking_algorithm="det", seeds=1, min_length=900.0, max_length=1000.0)
    for name in ("vfcsf_file", "precision_file"):
        fitted.pop(name)
    run(TrackStreamlines, tmp_path / "track", **fitted, **options_input(options), **ON_CPU)
    assert read_json(tmp_path / "track" / "facts.json")["notes"][0].startswith("only 0 streamlines from ")
    assert "only 0 streamlines from " in caplog.text


@pytest.mark.parametrize("name", [name for name in report.__all__ if name.startswith("Draw")])
def test_figures_travel_to_other_processes(name):
    node = getattr(report, name)(series="sub-01")
    copy = pickle.loads(pickle.dumps(node))
    assert copy.inputs.series == "sub-01"
    assert copy.inputs.copyable_trait_names() == node.inputs.copyable_trait_names()


def test_figure_that_cannot_be_drawn_stops_nothing(prepared, tmp_path, caplog):
    (tmp_path / "empty.nii.gz").touch()
    outputs = run(DrawMask, tmp_path / "draw", b0_file=str(tmp_path / "empty.nii.gz"), mask_file=prepared.mask_file)
    assert not isinstance(outputs.figure_file, str)
    assert "could not be drawn" in caplog.text


def test_values_in_mask_order_go_back_to_their_voxels(prepared):
    """The one order that joins ``fod.npy`` to the images."""
    mask = load_mask(prepared.mask_file, load_volume(prepared.mask_file))
    values = np.arange(mask.sum())
    np.testing.assert_array_equal(scatter(values, mask)[mask], values)


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory):
    """A network small enough to run in no time; what it says means nothing."""
    torch.manual_seed(0)
    net = UNet(UNetConfig(len(CHANNELS), 3, nside=2, channels=(4, 4)))
    return save_weights(tmp_path_factory.mktemp("weights") / "tiny.safetensors", Weights.of(net, l_max=4, training={}))


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


@pytest.mark.parametrize(("refinement", "is_refined"), [("auto", False), ("on", True)])
def test_network_of_a_recipe_is_trained_on_the_series(dwi_file, prepared, tmp_path, refinement, is_refined):
    (tmp_path / "mine.toml").write_text(RECIPE)
    mask = np.zeros(load_volume(prepared.mask_file).shape, np.uint8)
    mask[5:9, 5:9, 5:9] = 1  # a network a patch at a time has much to do
    nib.save(nib.Nifti1Image(mask, RAS), tmp_path / "few.nii.gz")
    inputs = {"dwi_file": str(dwi_file), "gradients_file": prepared.gradients_file}
    responses = run(EstimateResponses, tmp_path / "response", mask_file=prepared.mask_file, **inputs)
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


def test_fit_writes_all_maps_in_one_order(dwi_file, prepared, weights_file, tmp_path):
    responses = run(
        EstimateResponses,
        tmp_path / "response",
        dwi_file=str(dwi_file),
        mask_file=prepared.mask_file,
        gradients_file=prepared.gradients_file,
    )
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
    assert facts["sidecar"]["model"]["Method"] == "conditioned"
    assert facts["sidecar"]["model"]["Refinement"] is True
    assert len(facts["sidecar"]["model"]["WeightsSHA256"]) == 64
    assert list(facts["shell_residuals"]) == ["b = 0", "b = 1000", "b = 2500"]
    json.dumps(facts, allow_nan=False)
    figure = run(
        DrawResidual,
        tmp_path / "draw",
        rsquared_file=outputs.rsquared_file,
        residualstd_file=outputs.residualstd_file,
        facts_file=outputs.facts_file,
        mask_file=prepared.mask_file,
    )
    assert figure.figure_file.endswith("residual.png")
