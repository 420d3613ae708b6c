"""A cohort is trained by several processes as by one."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from shd_bids.errors import DeviceError, TrainingError
from shd_bids.fod.weights import load_weights, save_weights
from shd_bids.interfaces.cohort import CohortFiles, adapt_to_images
from shd_bids.nn.distributed import run_together
from shd_bids.options import FodOptions, Runtime
from shd_bids.response.mrtrix import format_response
from tests.bids_trees import write_image
from tests.tiny import tiny_scan, tiny_weights

RECIPE = """
method = "SHD-TV"
input = "shells"
isotropic = "max"
l_max = 4
refinement = false
[network]
form = "patch"
nside = 2
channels = [4, 6]
[training]
batch = 8
learning_rate = 1e-2
held_out = 0.0
hidden = 0.0
[loss]
reconstruction = 1.0
negativity = 0.1
sparsity = 5e-5
smoothness = 0.5
"""


def write_scan(folder: Path, *, brightness: float) -> tuple[Path, Path, Path, Path]:
    """Write what the stages before leave of one series: image, mask, gradient table and response of white matter."""
    scan = tiny_scan()
    signal = np.zeros((*scan.mask.shape, scan.gradients.n_volumes), np.float32)
    signal[scan.mask] = brightness * scan.voxels
    files = [write_image(folder / name, data, scan.affine) for name, data in
             (("dwi.nii.gz", signal), ("mask.nii.gz", scan.mask.astype(np.uint8)))]  # fmt: skip
    (folder / "gradients.json").write_text(json.dumps(scan.gradients.to_dict()))
    for response in scan.responses.tissues:
        (folder / f"{response.tissue}.txt").write_text(format_response(response.scaled(brightness)))
    return *files, folder / "gradients.json", folder / "wm.txt"


@pytest.fixture
def files(tmp_path):
    """Two series of one head, one brighter."""
    both = [write_scan(tmp_path / f"{number}", brightness=number) for number in (1.0, 3.0)]
    dwi, masks, gradients, responses = zip(*both, strict=True)
    return CohortFiles({"a": str(dwi[0]), "b": str(dwi[1])}, list(masks), list(gradients), list(responses))


def adapt(files, folder, *, n_processes, **options):
    folder.mkdir()
    outputs = adapt_to_images(
        files=files,
        options=FodOptions(max_steps=6, **options),
        runtime=Runtime(device="cpu"),
        n_processes=n_processes,
        label="cohort",
        out_dir=folder,
    )
    return load_weights(Path(outputs["weights_file"])), outputs["facts"]


@pytest.mark.slow
def test_two_processes_train_a_cohort_as_one_does(files, tmp_path):
    (tmp_path / "mine.toml").write_text(RECIPE)
    chosen = {"weights": "none", "network": str(tmp_path / "mine.toml")}
    (one, facts), (two, shared) = (adapt(files, tmp_path / f"by{n}", n_processes=n, **chosen) for n in (1, 2))
    assert (facts["processes"], shared["processes"]) == (1, 2)
    for alone, together in zip(facts["history"], shared["history"], strict=True):
        # Equal weights give equal losses; then sums round otherwise, and each step of Adam makes more of it: most of the
        # biases before a norm, whose gradient is nothing else, and which the averages of the norm follow late.
        assert together.pop("held_out", 0) == pytest.approx(alone.pop("held_out", 0), rel=1e-2)
        assert together == pytest.approx(alone, rel=1e-5 if alone["step"] < 2 else 1e-3)
    for name, value in one.state.items():
        if not name.endswith(("conv.bias", "running_mean")):
            torch.testing.assert_close(two.state[name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_two_processes_take_a_crop_each_of_a_network_that_trains_on_single_crops(files, tmp_path):
    start = save_weights(tmp_path / "tiny.safetensors", tiny_weights())
    found, facts = adapt(files, tmp_path / "out", n_processes=2, weights=str(start))
    assert found.training["cohort"]["series"] == ["a", "b"] and facts["steps"] == 6
    assert np.isfinite(facts["held_out_after"])


@pytest.mark.slow
def test_processes_that_cannot_share_a_batch_say_so_in_one_line(files, tmp_path):
    (tmp_path / "mine.toml").write_text(RECIPE)
    with pytest.raises(TrainingError, match="3 processes cannot share batches of 8 evenly"):
        adapt(files, tmp_path / "out", n_processes=3, weights="none", network=str(tmp_path / "mine.toml"))


def test_each_process_needs_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(DeviceError, match="found 1 CUDA devices from cuda:1 on, expected one for each of 2 processes"):
        run_together(print, {}, n_processes=2, device="cuda:1")
