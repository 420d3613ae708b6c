"""A disk that is or runs full: code 73 within seconds, in one line, with records as far as they fit."""

import contextlib
import json
import os
import subprocess

import numpy as np
import pytest

from tests.integration.processes import Program
from tests.phantoms import head, write_head

pytestmark = pytest.mark.slow

LEVEL = ("--level", "response")


def mounted(folder, size):
    """Whether a small file system could be mounted on the folder, which takes root."""
    if os.geteuid() != 0:
        return False
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    with contextlib.suppress(OSError):
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    return False


@pytest.fixture
def small_disk(tmp_path):
    """Return a function that mounts a disk of a size, in bytes."""
    folder = tmp_path / "small"
    folder.mkdir()

    def mount(size):
        if not mounted(folder, size):
            pytest.skip("only root can mount a small file system")
        return folder

    yield mount
    subprocess.run(["umount", "-l", str(folder)], capture_output=True, check=False)


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    root = tmp_path_factory.mktemp("full") / "raw"
    write_head(root, *head(np.random.default_rng(8), size=12)[:2])
    return root


@pytest.mark.parametrize(
    ("full", "size"), [("work", 16_000), ("work", 300_000), ("out", 8_000), ("out", 200_000), ("both", 500_000)]
)
def test_a_full_disk_ends_the_call(raw, small_disk, tmp_path, full, size):
    disk = small_disk(size)
    out = tmp_path / "out" if full == "work" else disk / "out"
    work = {"work": disk / "work", "out": tmp_path / "work", "both": None}[full]
    out.parent.mkdir(exist_ok=True)
    call = Program(raw, out, *LEVEL, work=work, errors=tmp_path / "errors")
    with call:
        assert call.ended() == 73
    lines = call.problems()
    print(full, size, *lines)
    assert len(lines) == 1
    assert any(words in lines[0] for words in ("disk is full", "No space left"))
    for path in out.glob("sub-01/log/*/status.json"):
        status = json.loads(path.read_text())
        assert (status["status"], status["exit_code"]) == ("failed", 73)
    assert (full == "out" and size < 10_000) or list(out.glob("sub-01/log/*/status.json"))


def test_a_disk_with_room_again_goes_on(raw, small_disk, tmp_path):
    disk = small_disk(300_000)
    with Program(raw, tmp_path / "out", *LEVEL, work=disk / "work") as call:
        assert call.ended() == 73
    subprocess.run(["mount", "-o", "remount,size=100m", str(disk)], check=True)
    with Program(raw, tmp_path / "out", *LEVEL, work=disk / "work") as call:
        assert call.ended() == 0 and not call.problems()
