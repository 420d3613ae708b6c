"""What must hold before a call: the device, a work folder that is safe, places for caches."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from shd_bids.cli import preflight
from shd_bids.cli.preflight import make_private, require_private
from shd_bids.errors import DeviceError, OutputError
from shd_bids.settings import Settings


@pytest.fixture(autouse=True)
def surroundings(monkeypatch):
    """Give the environment back as it was."""
    monkeypatch.setattr(os, "environ", os.environ.copy())


class TestDevice:
    def gpus(self, monkeypatch, *names):
        monkeypatch.setattr(preflight, "CUDA_QUESTION", f"print(*{names!r}, sep='\\n')")
        monkeypatch.setattr(preflight, "may_use_gpu", lambda device: device != "cpu" and bool(names))

    def test_auto_takes_what_is_there(self, monkeypatch):
        self.gpus(monkeypatch)
        assert preflight.find_devices("auto") == ("cpu",)
        self.gpus(monkeypatch, "H200")
        assert preflight.find_devices("auto") == ("cuda:0 (H200)",)

    def test_a_number_must_exist(self, monkeypatch):
        self.gpus(monkeypatch, "A", "B")
        assert preflight.find_devices("cuda:1") == ("cuda:1 (B)",)
        assert preflight.find_devices("cuda") == ("cuda:0 (A)", "cuda:1 (B)")
        with pytest.raises(DeviceError, match="found 2 CUDA devices"):
            preflight.find_devices("cuda:2")

    def test_cpu_asks_nobody(self, monkeypatch):
        monkeypatch.setattr(preflight.subprocess, "run", None)
        assert preflight.find_devices("cpu") == ("cpu",)


def test_bfloat16_stops_before_hours_of_work_where_the_processor_has_none(tmp_path, monkeypatch):
    monkeypatch.setattr("shd_bids.nn.device.bf16_level", lambda: None)
    asked, auto = (
        Settings(bids_dir=tmp_path, output_dir=tmp_path / "out", precision=word) for word in ("bf16", "auto")
    )
    with pytest.raises(DeviceError, match="AVX512-BF16"):
        preflight.require_arithmetic(asked, ("cpu",))
    preflight.require_arithmetic(asked, ("cuda:0 (H200)",))
    preflight.require_arithmetic(auto, ("cpu",))


def test_a_call_without_a_tracker_stops_before_hours_of_work(tmp_path, monkeypatch):
    monkeypatch.setattr("shd_bids.tractography.native.library", lambda kernel: None)
    full, peaks = (Settings(bids_dir=tmp_path, output_dir=tmp_path / "out", level=level) for level in ("full", "peaks"))
    with pytest.raises(DeviceError, match=r"C\+\+ compiler .* --level peaks"):
        preflight.require_tracker(full)
    preflight.require_tracker(peaks)
    preflight.require_tracker(replace(full, analysis_level="group"))


def test_caches_have_a_place_without_a_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/nonexistent")
    monkeypatch.delenv("LOGNAME", raising=False)
    monkeypatch.delenv("MPLCONFIGDIR", raising=False)
    preflight.set_environment(tmp_path / "work")
    assert Path(os.environ["HOME"]).is_dir()
    assert Path(os.environ["MPLCONFIGDIR"]).is_relative_to(tmp_path)
    assert os.environ["LOGNAME"]
    assert os.environ["NO_ET"] == "1"


@pytest.mark.parametrize(("mode", "words"), [(0o777, "written by others (mode 777)"), (0o770, "mode 770")])
def test_a_work_folder_that_others_can_write_is_refused(tmp_path, mode, words):
    (tmp_path / "work").mkdir()
    (tmp_path / "work").chmod(mode)
    with pytest.raises(OutputError, match=words.replace("(", r"\(").replace(")", r"\)")):
        require_private(tmp_path / "work")
    assert (tmp_path / "work").stat().st_mode & 0o777 == mode


def test_a_work_folder_of_another_user_is_refused(tmp_path, monkeypatch):
    if os.geteuid() == 0:
        os.chown(tmp_path, 12345, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(OutputError, match="another user"):
        require_private(tmp_path)


def test_work_folders_that_are_safe(tmp_path, monkeypatch):
    make_private(tmp_path / "a" / "new")
    assert (tmp_path / "a" / "new").stat().st_mode & 0o777 == 0o700
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)  # as /tmp
    require_private(shared)
    shared.chmod(0o777)
    with monkeypatch.context() as patch:
        patch.setattr(os.path, "ismount", lambda path: path == shared)  # as in a container
        require_private(shared)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "chmod", lambda *_: None)  # a file system without modes
        require_private(shared)
    with pytest.raises(OutputError):
        require_private(shared)
