"""Files of streamlines that read back in other packages."""

import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import trx.trx_file_memmap as trx
from dipy.io.streamline import load_tractogram
from nibabel.streamlines import ArraySequence
from scipy.spatial.transform import Rotation

from shd_bids.tractography.files import add_to_trx, copy_trx, read_each, read_trx, trx_writer

SHAPE = (20, 22, 24)
_OBLIQUE = Rotation.from_rotvec([0.15, 0.3, 0.08]).as_matrix()
AFFINE = nib.affines.from_matvec(_OBLIQUE @ np.diag([-2.0, 2, 2.5]), [22, -20, -28])


@pytest.fixture
def streamlines(rng) -> ArraySequence:
    """Five wandering lines of different lengths inside a box of 20 voxels of 2 mm."""
    return ArraySequence([np.cumsum(rng.normal(0, 0.4, (k, 3)), axis=0).astype(np.float32) for k in (2, 9, 30, 4, 17)])


def write(path: Path, streamlines: ArraySequence) -> Path:
    """Write lines in two batches, with data of each."""
    with trx_writer(path, AFFINE, SHAPE) as writer:
        for part in (streamlines[:2], streamlines[2:]):
            lengths = np.array([len(line) for line in part], dtype=np.int64)
            points = np.concatenate([np.zeros((0, 3)), *part])
            ends = np.stack([lengths, lengths + 1], axis=1).astype(np.uint8).reshape(-1, 2)
            writer.add(points, lengths, {"ends": ends})
    bare = path.rename(path.with_name("bare.trx"))
    add_to_trx(bare, path, {"weight": np.array([len(line) for line in streamlines], dtype=np.float32)})
    bare.unlink()
    return path


@pytest.mark.parametrize("suffix", ["trx", "tck", "trk"])
@pytest.mark.parametrize("n", [5, 0])
def test_files_read_back_equal(tmp_path, streamlines, suffix, n):
    """In every format dipy reads the points, the affine and the size that were written."""
    path = write(tmp_path / "tracks.trx", streamlines[:n])
    if suffix != "trx":
        copy_trx(path, tmp_path / f"tracks.{suffix}", AFFINE, SHAPE)
        path.unlink()
        path = tmp_path / f"tracks.{suffix}"
    reference = nib.Nifti1Image(np.zeros(SHAPE, dtype=np.uint8), AFFINE)
    back = load_tractogram(str(path), reference)
    assert [len(points) for points in back.streamlines] == [len(points) for points in streamlines[:n]]
    np.testing.assert_allclose(back.affine, AFFINE, atol=1e-5)
    np.testing.assert_array_equal(back.dimensions, SHAPE)
    if n:
        np.testing.assert_allclose(back.streamlines.get_data(), streamlines.get_data(), atol=2e-5)
        if suffix != "tck":
            lengths = [len(line) for line in streamlines]
            np.testing.assert_array_equal(np.ravel(back.data_per_streamline["weight"]), lengths)
            np.testing.assert_array_equal(np.array(back.data_per_streamline["ends"])[:, 0], lengths)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_trx_bytes_are_reproducible_and_exact(tmp_path, streamlines):
    paths = [write(tmp_path / name, streamlines) for name in ("a.trx", "b.trx")]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    container = trx.load(str(paths[0]))
    np.testing.assert_array_equal(container.streamlines.get_data(), streamlines.get_data())
    lengths = np.array([len(line) for line in streamlines])
    np.testing.assert_array_equal(np.ravel(container.data_per_streamline["weight"]), lengths)
    np.testing.assert_array_equal(container.data_per_streamline["ends"], np.stack([lengths, lengths + 1], axis=1))
    container.close()
    np.testing.assert_array_equal(read_trx(paths[0]).get_data(), streamlines.get_data())
    each = read_each(paths[0])
    np.testing.assert_array_equal(each["weight"], lengths)
    np.testing.assert_array_equal(each["ends"][:, 1], lengths + 1)


def test_what_is_broken_off_leaves_no_file(tmp_path, streamlines):
    def broken() -> None:
        with trx_writer(tmp_path / "tracks.trx", AFFINE, SHAPE) as writer:
            writer.add(streamlines[0], np.array([2]))
            raise KeyError("broken off")

    with pytest.raises(KeyError, match="broken off"):
        broken()
    assert not list(tmp_path.iterdir())


def test_nothing_is_written_beside_the_file(tmp_path, streamlines):
    """A read-only home and temporary folder do not matter, and an unknown suffix leaves nothing behind."""
    write(tmp_path / "in.trx", streamlines)
    code = (
        "import sys, numpy as np; from pathlib import Path; from shd_bids.tractography.files import trx_writer\n"
        "with trx_writer(Path(sys.argv[1]), np.eye(4), (9, 9, 9)) as writer: writer.add(np.ones((3, 3)), np.array([3]))"
    )
    environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "TMPDIR": "/nonexistent"}
    command = [sys.executable, "-W", "error", "-c", code, tmp_path / "out.trx"]
    run = subprocess.run(command, env=environment, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "out.trx").is_file()
    with pytest.raises(ValueError, match="suffix"):
        copy_trx(tmp_path / "out.trx", tmp_path / "out.vtk", AFFINE, SHAPE)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["in.trx", "out.trx"]
