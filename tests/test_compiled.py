"""Where a compiled kernel comes from, and that a library that cannot be loaded is replaced, with one warning."""

import logging
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from shd_bids import compiled
from shd_bids.nn.backends.cpu.build import SPECTRAL

LOADED = compiled.library(SPECTRAL)


@pytest.fixture
def kernel():
    """The file of a kernel that can be loaded."""
    if LOADED is None:
        pytest.skip("no compiled kernel and no compiler")
    return Path(LOADED._name)


@pytest.fixture
def package(monkeypatch, tmp_path, caplog) -> compiled.Kernel:
    """A kernel of a package without a library, an empty home folder, no other folder and no compiler."""
    caplog.set_level(logging.INFO)
    folder = tmp_path / "package"
    shutil.copytree(SPECTRAL.folder, folder / "spectral")
    monkeypatch.setattr(compiled, "EXTENSION_SUFFIXES", [".so"])
    monkeypatch.setattr(compiled.Path, "home", lambda: tmp_path / "home")
    monkeypatch.setattr(compiled.tempfile, "gettempdir", lambda: "/dev/null")
    monkeypatch.setattr(compiled.shutil, "which", lambda name: None)
    return replace(SPECTRAL, folder=folder / "spectral")


@pytest.fixture
def compiler(monkeypatch, kernel):
    """A compiler that takes no time, as it copies the kernel; gives the files that it made."""
    made = []

    def copied(command, **_):
        made.append(Path(command[-1]))
        shutil.copy(kernel, made[-1])

    monkeypatch.setattr(compiled.shutil, "which", lambda name: name)
    monkeypatch.setattr(compiled, "subprocess", SimpleNamespace(run=copied, SubprocessError=OSError))
    return made


def cut_short(kernel, target):
    overwrite(target, kernel.read_bytes()[: kernel.stat().st_size // 2])


def garbage(kernel, target):
    overwrite(target, b"\x7fELF no library" * 100)


def overwrite(target, content):
    """Write a new file, as one that is loaded must not change."""
    target.unlink(missing_ok=True)
    target.write_bytes(content)


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_kernel_that_came_with_the_package_is_taken(package, kernel, caplog):
    shutil.copy(kernel, package.folder.with_name("_spectral.so"))
    assert package.find()._name == str(package.folder.with_name("_spectral.so"))
    assert not warnings(caplog)


def test_the_kernel_is_not_needed(package, caplog):
    assert package.find() is None
    (warning,) = warnings(caplog)
    assert "plain PyTorch" in warning
    assert "no C++ compiler" in warning


def test_a_compiler_that_fails_is_told_and_done_without(package, monkeypatch, caplog):
    monkeypatch.setattr(compiled.shutil, "which", lambda name: "/bin/false")
    assert package.find() is None
    (warning,) = warnings(caplog)
    assert "could not be compiled" in warning


@pytest.mark.parametrize("damage", [cut_short, garbage])
def test_a_damaged_kernel_is_compiled_again(package, kernel, compiler, caplog, damage):
    damage(kernel, package.folder.with_name("_spectral.so"))
    loaded = package.find()
    assert loaded.shd_best_level() >= 0
    assert "home" in loaded._name
    assert len(compiler) == 1
    (warning,) = warnings(caplog)
    assert "_spectral.so" in warning


@pytest.mark.parametrize("damage", [cut_short, garbage])
def test_a_damaged_kernel_without_a_compiler_is_replaced_by_pytorch(package, kernel, caplog, damage):
    damage(kernel, package.folder.with_name("_spectral.so"))
    assert package.find() is None
    (warning,) = warnings(caplog)
    assert "_spectral.so" in warning
    assert "plain PyTorch" in warning


def test_a_library_that_is_no_kernel_is_not_taken(package, caplog):
    import _ctypes

    shutil.copy(_ctypes.__file__, package.folder.with_name("_spectral.so"))
    assert package.find() is None
    (warning,) = warnings(caplog)
    assert "is not the kernel" in warning


@pytest.mark.parametrize("damage", [cut_short, garbage])
def test_a_damaged_file_in_the_cache_is_compiled_again(package, kernel, compiler, caplog, damage):
    name = Path.home() / ".cache" / "shd_bids" / f"spectral-{package.digest()}-{compiled.platform.machine()}.so"
    name.parent.mkdir(parents=True)
    damage(kernel, name)
    assert package.find()._name == str(name)
    assert len(compiler) == 1
    assert name.stat().st_size == kernel.stat().st_size
    assert not warnings(caplog)


def test_what_was_compiled_is_found_again(package, compiler):
    assert package.find()._name == package.find()._name
    assert len(compiler) == 1


def test_a_kernel_of_another_source_is_left_out(package, kernel, caplog):
    shutil.copy(kernel, package.folder.with_name("_spectral.so"))
    (package.folder / "more.h").write_text("// one line\n")
    assert package.find() is None
    assert "another source" in caplog.text


def test_the_digest_is_of_every_source_file(package):
    digests = {package.digest()}
    for path in package.sources(".cpp", ".h"):
        path.write_text(path.read_text() + "\n")
        digests.add(package.digest())
    assert len(digests) == 1 + len(list(package.folder.iterdir()))
