"""What a user installs: the wheel holds the package, its workflows and its data, and nothing else at the top."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.xdist_group("wheel")  # one worker, so that the wheel is built once


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> list[str]:
    """Names in a wheel that is built, without network and without a compiler, from a copy of the source tree."""
    source, target = tmp_path_factory.mktemp("source") / "src", tmp_path_factory.mktemp("wheel")
    source.mkdir()
    for name in ("shd_bids", "workflows"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "setup.py"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, source / name)
    build = "import sys, setuptools.build_meta as b; b.build_wheel(sys.argv[1])"
    run = subprocess.run(
        [sys.executable, "-c", build, str(target)],
        cwd=source,
        env=os.environ | {"CC": "false", "CXX": "false"},  # the compiled kernel is optional, and takes most of the time
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]
    (file,) = target.glob("*.whl")
    return zipfile.ZipFile(file).namelist()


def test_only_one_package_at_the_top(wheel):
    tops = {name.split("/")[0] for name in wheel if ".dist-info/" not in name}
    assert tops == {"shd_bids"}


def test_every_workflow_is_in_the_wheel(wheel):
    want = {f"shd_bids/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "workflows").rglob("*.py")}
    assert want, "no workflow found: the test looks in the wrong place"
    assert want <= set(wheel), f"missing from the wheel: {sorted(want - set(wheel))}"


def test_every_source_and_data_file_is_in_the_wheel(wheel):
    """Data files count by their suffix, so that a forgotten ``package-data`` pattern shows."""
    kept = {".py", ".json", ".toml", ".html", ".md", ".safetensors", ".cpp", ".h"}
    want = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "shd_bids").rglob("*")
        if path.suffix in kept and path.is_file() and "workflows" not in path.relative_to(ROOT).parts
    }
    assert want <= set(wheel), f"missing from the wheel: {sorted(want - set(wheel))}"


def test_licence_travels_with_the_wheel(wheel):
    assert any(name.endswith("licenses/LICENSE") for name in wheel)
