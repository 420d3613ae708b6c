"""The two images agree and take what the machine's pip is set to; building them is `make test-container`."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from nibabel import Nifti1Image, save

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent


def test_both_images_set_the_same_environment():
    """What the program may rely on in one container, it may rely on in the other."""
    docker = (ROOT / "Dockerfile").read_text().split("\nENV ")[-1].split("\nWORKDIR")[0]
    singularity = (ROOT / "singularity.def").read_text().split("%environment")[1].split("%runscript")[0]
    in_docker = dict(re.findall(r"(\w+)=(\S+)", docker))
    in_singularity = dict(re.findall(r"(\w+)=(\S+)", singularity))
    assert in_docker.pop("HOME") == "/tmp"  # Apptainer sets the home itself
    assert in_docker == in_singularity


def test_both_images_are_built_from_the_same_sources():
    copied = set(re.findall(r"^    (\S+) /src/\S+$", (ROOT / "singularity.def").read_text(), re.M))
    allowed = set(re.findall(r"^!(\S+)$", (ROOT / ".dockerignore").read_text(), re.M))
    assert copied == allowed


def test_pip_mounts_hand_in_what_pip_is_set_to(tmp_path, monkeypatch):
    wheels, index = tmp_path / "wheels", tmp_path / "index" / "simple"
    wheels.mkdir()
    index.mkdir(parents=True)
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", f"file://{index}")
    run = subprocess.run([sys.executable, HERE / "pip_mounts.py", tmp_path], capture_output=True, text=True, check=True)
    mounts = run.stdout.split()
    assert f"{wheels}:{wheels}:ro" in mounts
    assert f"{index.parent}:{index.parent}:ro" in mounts
    assert f"{tmp_path}/pip.conf:/etc/pip.conf:ro" in mounts
    assert f"find-links = {wheels}" in (tmp_path / "pip.conf").read_text()


def test_constraints_of_pip_keep_clear_of_those_of_the_project(tmp_path, monkeypatch):
    """They lie beside the sources in some builds, so equal names would replace one by the other."""
    file = tmp_path / "constraints.txt"
    file.write_text("torch<3\n")
    monkeypatch.setenv("PIP_CONSTRAINT", str(file))
    run = subprocess.run([sys.executable, HERE / "pip_mounts.py", tmp_path], capture_output=True, text=True, check=True)
    (mount,) = (line for line in run.stdout.split() if line.startswith(f"{file}:"))
    _, target, _ = mount.split(":")
    assert Path(target).name != "constraints.txt"
    assert f"constraint = {target}\n" in (tmp_path / "pip.conf").read_text()


PEAKS = np.zeros((4, 4, 4, 6), dtype=np.float32)
PEAKS[..., 0] = 0.5


def write_peaks(folder: Path, data: np.ndarray) -> Path:
    folder.mkdir()
    save(Nifti1Image(data, np.eye(4)), folder / "sub-01_space-orig_model-shdtv_param-peaks_dwimap.nii.gz")
    return folder


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        pytest.param(lambda data: data, 0, id="equal"),
        pytest.param(lambda data: data * (1 + 1e-5), 0, id="rounding"),
        pytest.param(lambda data: data * 1.1, 1, id="other length"),
        pytest.param(lambda data: data[..., [1, 0, 2, 3, 4, 5]], 1, id="other axis"),
        pytest.param(lambda data: data[..., [0, 1, 2, 0, 1, 2]], 1, id="one fibre more"),
        pytest.param(lambda data: data[:3], 1, id="other grid"),
    ],
)
def test_comparison_of_peaks_tells_a_change_from_rounding(tmp_path, change, expected):
    reference = write_peaks(tmp_path / "a", PEAKS)
    other = write_peaks(tmp_path / "b", np.ascontiguousarray(change(PEAKS)))
    run = subprocess.run([sys.executable, HERE / "compare_peaks.py", reference, other], check=False)
    assert run.returncode == expected


def test_comparison_of_nothing_fails(tmp_path):
    (tmp_path / "a").mkdir()
    run = subprocess.run([sys.executable, HERE / "compare_peaks.py", tmp_path / "a", tmp_path / "a"], check=False)
    assert run.returncode == 1
