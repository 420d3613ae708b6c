"""Tractography: a curved bundle of known world geometry on every kind of grid, files that read back, density."""

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

from shd_bids.errors import InputError
from shd_bids.options import TrackingOptions
from shd_bids.sphere.harmonics import degrees, sh_basis
from shd_bids.tractography.density import track_density
from shd_bids.tractography.files import save_tractogram
from shd_bids.tractography.track import Tractogram, track
from tests.helpers import requires_mrtrix

ALGORITHMS = ("det", "prob", "ptt")
CENTRE = np.array([5.0, -3.0, 10.0])  # mm, of the arc
NORMAL = np.array([0.3, 0.5, 0.8]) / np.linalg.norm([0.3, 0.5, 0.8])  # of its plane: no symmetry with any axis
ARC_RADIUS, TUBE_RADIUS = 25.0, 5.0

_OBLIQUE = Rotation.from_rotvec(np.radians(20) * np.array([1, 2, 0.5]) / np.linalg.norm([1, 2, 0.5])).as_matrix()
AXES = {
    "RAS": np.diag([2.5, 2.5, 2.5]),
    "LAS": np.diag([-2.5, 2.5, 2.5]),
    "LPS": np.diag([-2.5, -2.5, 2.5]),
    "PSR": np.array([[0, 0, 2.5], [-2.5, 0, 0], [0, 2.5, 0]]),
    "oblique LAS": _OBLIQUE @ np.diag([-2.5, 2.5, 2.5]),
    "oblique, anisotropic": _OBLIQUE @ np.diag([2.0, 2.5, 3.2]),
}


def _plane() -> tuple[np.ndarray, np.ndarray]:
    """Two unit vectors of the plane of the arc."""
    first = np.cross(NORMAL, [1, 0, 0])
    first /= np.linalg.norm(first)
    return first, np.cross(NORMAL, first)


def _bundle(axes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Half a ring of fibres on a grid; return coefficients in world axes (degree 8), mask and affine."""
    first, second = _plane()
    shape = tuple(np.ceil(74 / np.linalg.norm(axes, axis=0)).astype(int))
    affine = nib.affines.from_matvec(axes, CENTRE - axes @ ((np.array(shape) - 1) / 2))
    offset = nib.affines.apply_affine(affine, np.indices(shape).reshape(3, -1).T) - CENTRE
    a, b, c = offset @ first, offset @ second, offset @ NORMAL
    mask = (np.hypot(np.hypot(a, b) - ARC_RADIUS, c) < TUBE_RADIUS) & (a > 0)
    tangent = (a[:, None] * second - b[:, None] * first)[mask]
    l = degrees(8)  # noqa: E741
    coefficients = sh_basis(tangent, 8) * np.exp(-0.015 * l * (l + 1))
    return coefficients.astype(np.float32), mask.reshape(shape), affine


def _middle(mask: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """The part of the mask near the apex of the arc."""
    points = nib.affines.apply_affine(affine, np.indices(mask.shape).reshape(3, -1).T) - CENTRE
    return mask & (points @ _plane()[0] > 0.9 * ARC_RADIUS).reshape(mask.shape)


def _track(axes: np.ndarray, *, random_seed: int = 7, nprocs: int = 1, **options) -> Tractogram:
    coefficients, mask, affine = _bundle(axes)
    chosen = TrackingOptions(**{"seeds": 1} | options)
    seeds = _middle(mask, affine)
    return track(coefficients, mask, affine, chosen, seed_mask=seeds, random_seed=random_seed, nprocs=nprocs)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("axes", AXES.values(), ids=AXES.keys())
def test_streamlines_follow_the_bundle_in_world_axes(axes, algorithm):
    """Whatever the grid, from the apex they run along the arc to both of its ends and never leave the tube."""
    max_angle = 20 if algorithm == "ptt" else 45
    result = _track(axes, tracking_algorithm=algorithm, max_angle=max_angle)
    assert result.n_accepted > 0.5 * result.n_seeds
    assert len(result.streamlines) == result.n_accepted
    first, second = _plane()
    lengths, angles = [], []
    for points in result.streamlines:
        points = points - CENTRE
        distance = np.hypot(np.hypot(points @ first, points @ second) - ARC_RADIUS, points @ NORMAL)
        assert distance.max() < TUBE_RADIUS + 2.2  # the mask ends with its voxels
        middles = (points[1:] + points[:-1]) / 2
        tangents = np.outer(middles @ first, second) - np.outer(middles @ second, first)
        steps = np.diff(points, axis=0)
        if algorithm != "ptt":  # whose steps follow curves, and which leaves the seed by two at once
            np.testing.assert_allclose(np.linalg.norm(steps, axis=1), result.step_size, rtol=1e-4)
        steps /= np.linalg.norm(steps, axis=1, keepdims=True)
        assert np.degrees(np.arccos((steps[1:] * steps[:-1]).sum(axis=1).min())) < 1.2 * max_angle  # chords of arcs
        cosine = (steps * tangents).sum(axis=1) / np.linalg.norm(tangents, axis=1)
        angles.append(np.degrees(np.arccos(np.minimum(np.abs(cosine), 1))))
        lengths.append(np.linalg.norm(np.diff(points, axis=0), axis=1).sum())
    assert np.median(np.concatenate(angles)) < (5 if algorithm == "det" else 15)
    # walkers that step off the side of the tube end early
    assert np.median(lengths) > (0.4 if algorithm == "ptt" else 0.6) * np.pi * ARC_RADIUS


@pytest.mark.parametrize("algorithm", ["det", "prob"])
def test_a_wrong_frame_would_be_seen(algorithm):
    """With the x axis of the coefficients mirrored, the same bundle falls apart: the test above can fail."""
    coefficients, mask, affine = _bundle(AXES["RAS"])
    l = degrees(8)  # noqa: E741
    mirrored = np.where(l > 0, _bundle(AXES["RAS"])[0] @ _mirror(), coefficients)
    right = _track(AXES["RAS"], tracking_algorithm=algorithm)
    options = TrackingOptions(seeds=1, tracking_algorithm=algorithm)
    wrong = track(mirrored, mask, affine, options, seed_mask=_middle(mask, affine), random_seed=7)
    assert wrong.n_accepted < 0.5 * right.n_accepted


def _mirror() -> np.ndarray:
    """Matrix that turns degree-8 coefficients of f(x, y, z) into those of f(-x, y, z), applied from the right."""
    points = np.random.default_rng(0).normal(size=(200, 3))
    return (np.linalg.pinv(sh_basis(points, 8)) @ sh_basis(points * [-1, 1, 1], 8)).T


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_seed_decides_and_threads_do_not(algorithm):
    options = {"tracking_algorithm": algorithm}
    once, again, threaded, other = (
        _track(AXES["LAS"], random_seed=seed, nprocs=nprocs, **options)
        for seed, nprocs in ((7, 1), (7, 1), (7, 2), (8, 1))
    )
    np.testing.assert_array_equal(once.streamlines.get_data(), again.streamlines.get_data())
    np.testing.assert_array_equal(once.streamlines.get_data(), threaded.streamlines.get_data())
    assert once.streamlines.get_data().shape != other.streamlines.get_data().shape


def test_select_and_lengths():
    every = _track(AXES["LAS"], seeds=4)
    some = _track(AXES["LAS"], seeds=4, select=20)
    assert some.n_accepted == len(some.streamlines) == 20
    assert some.n_seeds < every.n_seeds == 4 * _middle(*_bundle(AXES["LAS"])[1:]).sum()
    assert every.n_accepted <= every.n_generated <= every.n_seeds
    limited = _track(AXES["LAS"], seeds=4, min_length=60, max_length=70)
    lengths = np.array([np.linalg.norm(np.diff(points, axis=0), axis=1).sum() for points in limited.streamlines])
    assert 0 < limited.n_accepted < every.n_accepted
    assert lengths.min() > 60 - 1e-3
    assert lengths.max() < 70 + 1e-3


def test_tracking_stops_at_amplitude_and_mask():
    """Where the fODF falls below the stop amplitude, and where the mask ends, no point lies."""
    coefficients, mask, affine = _bundle(AXES["RAS"])
    second = _plane()[1]
    offset = nib.affines.apply_affine(affine, np.argwhere(mask)) - CENTRE
    faded = coefficients * np.where(offset @ second > 10, 0.01, 1)[:, None]
    seed_mask, options = _middle(mask, affine), TrackingOptions(seeds=1, tracking_algorithm="det")
    by_amplitude = track(faded, mask, affine, options, seed_mask=seed_mask)
    assert ((by_amplitude.streamlines.get_data() - CENTRE) @ second).max() < 10 + 2.5
    cut = mask.copy()
    cut[mask] = offset @ second <= 10
    by_mask = track(coefficients[cut[mask]], cut, affine, options, seed_mask=seed_mask)
    points = np.rint(nib.affines.apply_affine(np.linalg.inv(affine), by_mask.streamlines.get_data())).astype(int)
    assert cut[tuple(points.T)].all()


def test_image_border_ends_streamlines_inside():
    """Fibres that run out of the image give points inside it, the outermost half voxels included."""
    mask = np.ones((8, 6, 6), dtype=bool)
    coefficients = np.tile(sh_basis(np.array([[1.0, 0, 0]]), 8), (mask.sum(), 1))
    options = TrackingOptions(min_length=8, tracking_algorithm="det", seeds=1)
    result = track(coefficients, mask, np.diag([2.0, 2, 2, 1]), options, seed_mask=mask)
    x = result.streamlines.get_data()[:, 0] / 2
    assert result.n_out_of_box == 0
    assert -0.5 <= x.min() < 0.2
    assert 6.8 < x.max() <= 7.5


def test_what_cannot_be_tracked_is_told():
    coefficients, mask, affine = _bundle(AXES["RAS"])
    options = TrackingOptions()
    with pytest.raises(InputError, match="seed mask"):
        track(coefficients, mask, affine, options, seed_mask=np.zeros_like(mask))
    with pytest.raises(InputError, match="stop amplitude"):
        track(0 * coefficients, mask, affine, options, seed_mask=mask)
    with pytest.raises(ValueError, match="one row a mask voxel"):
        track(coefficients[1:], mask, affine, options, seed_mask=mask)


@pytest.fixture
def streamlines(rng) -> ArraySequence:
    """Five wandering lines of different lengths inside a box of 20 voxels of 2 mm."""
    return ArraySequence([np.cumsum(rng.normal(0, 0.4, (k, 3)), axis=0).astype(np.float32) for k in (2, 9, 30, 4, 17)])


SHAPE = (20, 22, 24)
AFFINE = nib.affines.from_matvec(_OBLIQUE @ np.diag([-2.0, 2, 2.5]), [22, -20, -28])


@pytest.mark.parametrize("suffix", ["trx", "tck", "trk"])
@pytest.mark.parametrize("n", [5, 0])
def test_files_read_back_equal(tmp_path, streamlines, suffix, n):
    """In every format dipy reads the points, the affine and the size that were written."""
    path = tmp_path / f"tracks.{suffix}"
    save_tractogram(path, streamlines[:n], AFFINE, SHAPE)
    reference = nib.Nifti1Image(np.zeros(SHAPE, dtype=np.uint8), AFFINE)
    back = load_tractogram(str(path), reference)
    assert [len(points) for points in back.streamlines] == [len(points) for points in streamlines[:n]]
    np.testing.assert_allclose(back.affine, AFFINE, atol=1e-5)
    np.testing.assert_array_equal(back.dimensions, SHAPE)
    if n:
        np.testing.assert_allclose(back.streamlines.get_data(), streamlines.get_data(), atol=2e-5)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_trx_bytes_are_reproducible_and_exact(tmp_path, streamlines):
    for name in ("a.trx", "b.trx"):
        save_tractogram(tmp_path / name, streamlines, AFFINE, SHAPE)
    assert (tmp_path / "a.trx").read_bytes() == (tmp_path / "b.trx").read_bytes()
    container = trx.load(str(tmp_path / "a.trx"))
    np.testing.assert_array_equal(container.streamlines.get_data(), streamlines.get_data())
    container.close()


def test_nothing_is_written_beside_the_file(tmp_path, streamlines):
    """A read-only home and temporary folder do not matter, and an unknown suffix leaves nothing behind."""
    save_tractogram(tmp_path / "in.trx", streamlines, AFFINE, SHAPE)
    code = (
        "import sys, numpy as np; from pathlib import Path; from nibabel.streamlines import ArraySequence;"
        "from shd_bids.tractography.files import save_tractogram;"
        "save_tractogram(Path(sys.argv[1]), ArraySequence([np.ones((3, 3), 'f4')]), np.eye(4), (9, 9, 9))"
    )
    environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "TMPDIR": "/nonexistent"}
    command = [sys.executable, "-W", "error", "-c", code, tmp_path / "out.trx"]
    run = subprocess.run(command, env=environment, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "out.trx").is_file()
    with pytest.raises(ValueError, match="suffix"):
        save_tractogram(tmp_path / "out.vtk", streamlines, AFFINE, SHAPE)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["in.trx", "out.trx"]


def test_density_counts_each_streamline_once_a_voxel():
    """A line through four voxels, one that turns back in them, and one that steps over a voxel."""
    line = np.array([[0, 0, 0], [3, 0, 0]], dtype=np.float32)
    there_and_back = np.array([[0, 1, 0], [3, 1, 0], [0, 1, 0]], dtype=np.float32)
    outside = np.array([[2, 2, 0], [9, 2, 0]], dtype=np.float32)
    density = track_density(ArraySequence([line, line, there_and_back, outside]), np.eye(4), (4, 3, 1))
    np.testing.assert_array_equal(density[:, :, 0].T, [[2, 2, 2, 2], [1, 1, 1, 1], [0, 0, 1, 1]])
    assert track_density(ArraySequence(), np.eye(4), (4, 3, 1)).sum() == 0


@requires_mrtrix
def test_mrtrix_reads_the_tracks_and_maps_them_alike(tmp_path):
    """tckinfo counts them, and the density of tckmap is ours."""
    tracks = _track(AXES["oblique, anisotropic"], tracking_algorithm="det").streamlines
    mask, affine = _bundle(AXES["oblique, anisotropic"])[1:]
    save_tractogram(tmp_path / "tracks.tck", tracks, affine, mask.shape)
    nib.save(nib.Nifti1Image(mask.astype(np.uint8), affine), tmp_path / "mask.nii")
    info = subprocess.run(["tckinfo", "-count", tmp_path / "tracks.tck"], capture_output=True, text=True, check=True)
    assert f"actual count in file: {len(tracks)}" in info.stdout
    command = ["tckmap", "-quiet", "-nthreads", "1", "-upsample", "8", "-template", tmp_path / "mask.nii"]
    subprocess.run([*command, tmp_path / "tracks.tck", tmp_path / "map.nii"], check=True)
    theirs = nib.load(tmp_path / "map.nii").get_fdata()
    ours = track_density(tracks, affine, mask.shape)
    assert np.corrcoef(theirs.ravel(), ours.ravel())[0, 1] > 0.99
    assert abs(theirs.sum() / ours.sum() - 1) < 0.1  # MRtrix3 curves the segments before it cuts them


@requires_mrtrix
def test_mrtrix_tracks_the_same_bundle(tmp_path):
    """tckgen on the same fODF image visits the voxels that ours visits."""
    coefficients, mask, affine = _bundle(AXES["oblique LAS"])
    image = np.zeros((*mask.shape, coefficients.shape[1]), dtype=np.float32)
    image[mask] = coefficients
    seeds = _middle(mask, affine)
    for name, data in (("fod", image), ("seeds", seeds.astype(np.uint8)), ("mask", mask.astype(np.uint8))):
        nib.save(nib.Nifti1Image(data, affine), tmp_path / f"{name}.nii")
    result = track(coefficients, mask, affine, TrackingOptions(tracking_algorithm="det", seeds=4), seed_mask=seeds)
    command = "tckgen -quiet -nthreads 1 -algorithm SD_STREAM fod.nii tracks.tck -seed_image seeds.nii -mask mask.nii"
    command += f" -select {result.n_accepted} -cutoff {result.stop_amplitude} -minlength 20"
    subprocess.run(command.split(), cwd=tmp_path, check=True)
    theirs = track_density(nib.streamlines.load(tmp_path / "tracks.tck").streamlines, affine, mask.shape)
    ours = track_density(result.streamlines, affine, mask.shape)
    assert np.corrcoef(theirs[mask], ours[mask])[0, 1] > 0.8
