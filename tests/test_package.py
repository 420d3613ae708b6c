"""What a user installs: the wheel holds the package and its data, the source distribution all that is tracked."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import shd_bids

ROOT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.xdist_group("wheel")  # one worker, so that the wheel is built once


BUILD = "import sys, setuptools.build_meta as b; getattr(b, sys.argv[1])(sys.argv[2])"
LEFT_BEHIND = ("__pycache__", "*.so", ".git", ".venv", "build", "dist", "demo", "*.egg-info", ".*_cache")


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A copy of the source tree."""
    folder = tmp_path_factory.mktemp("source") / "src"
    return shutil.copytree(ROOT, folder, symlinks=True, ignore=shutil.ignore_patterns(*LEFT_BEHIND))


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory) -> list[str]:
    """Names in a wheel that is built without network and without a compiler."""
    with zipfile.ZipFile(built("build_wheel", source, tmp_path_factory.mktemp("wheel"))) as file:
        return file.namelist()


@pytest.fixture(scope="module")
def unpacked(source, tmp_path_factory) -> Path:
    """The folder that a source distribution unpacks to."""
    target = tmp_path_factory.mktemp("sdist")
    subprocess.run(["tar", "-xzf", built("build_sdist", source, target)], cwd=target, check=True)
    (folder,) = (path for path in target.iterdir() if path.is_dir())
    return folder


def built(what: str, source: Path, target: Path) -> Path:
    """Build a distribution by the package's own backend and return its file."""
    run = subprocess.run(
        [sys.executable, "-c", BUILD, what, str(target)],
        cwd=source,
        env=os.environ | {"CC": "false", "CXX": "false"},  # the compiled kernel is optional, and takes most of the time
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]
    (file,) = target.iterdir()
    return file


def test_only_one_package_at_the_top(wheel):
    tops = {name.split("/")[0] for name in wheel if ".dist-info/" not in name}
    assert tops == {"shd_bids"}


def test_every_workflow_is_in_the_wheel(wheel):
    want = {f"shd_bids/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "workflows").rglob("*.py")}
    assert want, "no workflow found: the test looks in the wrong place"
    assert want <= set(wheel), f"missing from the wheel: {sorted(want - set(wheel))}"


def test_every_source_and_data_file_is_in_the_wheel(wheel):
    """Data files count by their suffix, so that a forgotten ``package-data`` pattern shows."""
    kept = {".py", ".json", ".toml", ".html", ".md", ".safetensors", ".sha256", ".cpp", ".h"}
    want = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "shd_bids").rglob("*")
        if path.suffix in kept and path.is_file() and "workflows" not in path.relative_to(ROOT).parts
    }
    assert want <= set(wheel), f"missing from the wheel: {sorted(want - set(wheel))}"


def test_licence_travels_with_the_wheel(wheel):
    assert any(name.endswith("licenses/LICENSE") for name in wheel)


def test_source_distribution_holds_every_file(unpacked):
    """Whoever unpacks it can install, test and build the images as from a clone."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("only a clone knows which files are tracked")
    missing = [name for name in listed.stdout.split() if (ROOT / name).exists() and not (unpacked / name).exists()]
    assert not missing


def test_source_distribution_keeps_the_link_to_the_workflows(unpacked):
    assert (unpacked / "shd_bids" / "workflows").readlink() == Path("../workflows")


def test_citation_names_the_version_of_the_package():
    assert f"version: {shd_bids.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
