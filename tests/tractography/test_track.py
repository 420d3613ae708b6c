"""Tracking: bundles of known world geometry on every kind of grid, the rules of anatomy, and what must not matter."""

import subprocess
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from nibabel.streamlines import ArraySequence
from scipy.spatial.transform import Rotation

from shd_bids.errors import DeviceError, InputError
from shd_bids.options import TrackingOptions
from shd_bids.sphere.harmonics import degrees, sh_basis
from shd_bids.tractography.density import track_density
from shd_bids.tractography.field import FibreField
from shd_bids.tractography.files import copy_trx, trx_writer
from shd_bids.tractography.track import TrackingFacts, track
from shd_bids.tractography.tracker import ENDS, Batch
from tests.helpers import requires_mrtrix

ALGORITHMS = ("det", "prob")
CENTRE = np.array([5.0, -3.0, 10.0])  # mm, of the arc
NORMAL = np.array([0.3, 0.5, 0.8]) / np.linalg.norm([0.3, 0.5, 0.8])  # of its plane: no symmetry with any axis
ARC_RADIUS, TUBE_RADIUS = 25.0, 5.0
L_MAX = 12
_LOBE_VARIANCE = 0.031  # of the Gaussian that curves as `lobes` at its peak, rad^2

_OBLIQUE = Rotation.from_rotvec(np.radians(20) * np.array([1, 2, 0.5]) / np.linalg.norm([1, 2, 0.5])).as_matrix()
AXES = {
    "RAS": np.diag([2.5, 2.5, 2.5]),
    "LAS": np.diag([-2.5, 2.5, 2.5]),
    "LPS": np.diag([-2.5, -2.5, 2.5]),
    "PSR": np.array([[0, 0, 2.5], [-2.5, 0, 0], [0, 2.5, 0]]),
    "oblique LAS": _OBLIQUE @ np.diag([-2.5, 2.5, 2.5]),
    "oblique, anisotropic": _OBLIQUE @ np.diag([2.0, 2.5, 3.2]),
}


def lobes(directions: np.ndarray) -> np.ndarray:
    """Return a lobe around each direction, of amplitude 1, as coefficients."""
    l = degrees(L_MAX)  # noqa: E741
    coefficients = sh_basis(directions, L_MAX) * np.exp(-0.01 * l * (l + 1))
    peak = (sh_basis(directions[:1], L_MAX) * coefficients[:1]).sum()
    return (coefficients / peak).astype(np.float32)


def _plane() -> tuple[np.ndarray, np.ndarray]:
    """Two unit vectors of the plane of the arc."""
    first = np.cross(NORMAL, [1, 0, 0])
    first /= np.linalg.norm(first)
    return first, np.cross(NORMAL, first)


def _offsets(shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    """Voxel centres relative to the centre of the arc, mm."""
    return nib.affines.apply_affine(affine, np.indices(shape).reshape(3, -1).T) - CENTRE


def arc_field(axes: np.ndarray) -> FibreField:
    """Half a ring of fibres on a grid, seeded near its apex."""
    first, second = _plane()
    shape = tuple(np.ceil(74 / np.linalg.norm(axes, axis=0)).astype(int))
    affine = nib.affines.from_matvec(axes, CENTRE - axes @ ((np.array(shape) - 1) / 2))
    offset = _offsets(shape, affine)
    a, b, c = offset @ first, offset @ second, offset @ NORMAL
    inside = (np.hypot(np.hypot(a, b) - ARC_RADIUS, c) < TUBE_RADIUS) & (a > 0)
    tangent = (a[:, None] * second - b[:, None] * first)[inside]
    white = np.where(a[inside] > 0.9 * ARC_RADIUS, 1.0, 0.4)
    fractions = np.stack([white, np.zeros_like(white), np.zeros_like(white)], axis=1)
    return FibreField(lobes(tangent), fractions, inside.reshape(shape), affine)


def straight_field(*, grey: int = 0, fluid: int = 0) -> FibreField:
    """Fibres along x through a block of 24 x 6 x 6 voxels of 2 mm, grey matter at its low and fluid at its high end.

    With fluid, voxels without anything lie around, so that it is deep.
    """
    shell = 8 if fluid else 0
    mask = np.ones(np.array([24, 6, 6]) + 2 * shell, dtype=bool)
    place = np.argwhere(mask) - shell
    x, within = place[:, 0], ((place >= 0) & (place < [24, 6, 6])).all(axis=1)
    fractions = np.zeros((len(x), 3))
    fractions[np.arange(len(x)), np.where(x < grey, 1, np.where(x >= 24 - fluid, 2, 0))] = 1.0
    fractions[~within & (x < 24 - fluid)] = 0  # fluid lies across the whole block
    coefficients = lobes(np.array([[1.0, 0, 0]])) * within[:, None].astype(np.float32)
    return FibreField(coefficients, fractions, mask, nib.affines.from_matvec(2 * np.eye(3), [-2.0 * shell] * 3))


def run(
    field: FibreField, *, random_seed: int = 7, n_threads: int = 1, **options
) -> tuple[ArraySequence, TrackingFacts, list[Batch]]:
    batches: list[Batch] = []
    chosen = TrackingOptions(**{"seeds": 1, "tracking_cutoff": 0.1, "min_length": 20.0} | options)
    facts = track(field, chosen, batches.append, random_seed=random_seed, n_threads=n_threads)
    streamlines = ArraySequence()
    for batch in batches:
        streamlines.extend(batch.streamlines)
    return streamlines, facts, batches


def lengths(streamlines: ArraySequence) -> np.ndarray:
    return np.array([np.linalg.norm(np.diff(points, axis=0), axis=1).sum() for points in streamlines])


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("axes", AXES.values(), ids=AXES.keys())
def test_streamlines_follow_the_bundle_in_world_axes(axes, algorithm):
    """Whatever the grid, from the apex they run along the arc to both of its ends and never leave the tube."""
    streamlines, facts, _ = run(arc_field(axes), tracking_algorithm=algorithm)
    assert facts.n_accepted == len(streamlines) > 0.5 * facts.n_seeds
    first, second = _plane()
    angles = []
    for points in streamlines:
        points = points - CENTRE
        distance = np.hypot(np.hypot(points @ first, points @ second) - ARC_RADIUS, points @ NORMAL)
        assert distance.max() < TUBE_RADIUS + 2.2  # the mask ends with its voxels
        middles = (points[1:] + points[:-1]) / 2
        tangents = np.outer(middles @ first, second) - np.outer(middles @ second, first)
        steps = np.diff(points, axis=0)
        assert np.linalg.norm(steps, axis=1).max() < facts.step_size * (1 + 1e-4)
        steps /= np.linalg.norm(steps, axis=1, keepdims=True)
        assert np.degrees(np.arccos((steps[1:] * steps[:-1]).sum(axis=1).min())) < facts.max_angle + 0.1
        cosine = (steps * tangents).sum(axis=1) / np.linalg.norm(tangents, axis=1)
        angles.append(np.degrees(np.arccos(np.minimum(np.abs(cosine), 1))))
    assert np.median(np.concatenate(angles)) < (4 if algorithm == "det" else 12)
    # walkers that step off the side of the tube end early
    assert np.median(lengths(streamlines)) > (0.8 if algorithm == "det" else 0.6) * np.pi * ARC_RADIUS


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_wrong_frame_would_be_seen(algorithm):
    """With the x axis of the coefficients mirrored, the same bundle falls apart: the test above can fail."""
    field = arc_field(AXES["RAS"])
    points = np.random.default_rng(0).normal(size=(400, 3))
    mirror = np.linalg.pinv(sh_basis(points, L_MAX)) @ sh_basis(points * [-1, 1, 1], L_MAX)
    wrong = FibreField(field.coefficients @ mirror.T.astype(np.float32), field.fractions, field.mask, field.affine)
    right = run(field, tracking_algorithm=algorithm)[1].n_accepted
    assert run(wrong, tracking_algorithm=algorithm)[1].n_accepted < 0.5 * right


def test_a_straight_bundle_stays_straight():
    streamlines, *_ = run(straight_field(), tracking_algorithm="det")
    assert len(streamlines) > 800
    for points in streamlines:
        np.testing.assert_allclose(points[:, 1:], points[:1, 1:].repeat(len(points), axis=0), atol=2e-3)


def test_a_circle_keeps_its_radius():
    """Deterministic streamlines through a wide ring stay at the distance of their seed, by the midpoint rule."""
    mask = np.ones((40, 40, 5), dtype=bool)
    place = np.argwhere(mask) - [19.5, 19.5, 2.0]
    radius = np.hypot(place[:, 0], place[:, 1])
    tangent = np.stack([-place[:, 1], place[:, 0], np.zeros(len(place))], axis=1)
    fractions = np.zeros((len(place), 3))
    fractions[:, 0] = (np.abs(radius - 12) < 1) & (np.abs(place[:, 2]) < 0.5)
    affine = nib.affines.from_matvec(np.diag([2.0, 2, 2]), [-39.0, -39.0, -4.0])
    field = FibreField(lobes(tangent), fractions, mask, affine)
    streamlines, *_ = run(field, tracking_algorithm="det", max_length=140.0)
    streamlines_long, *_ = run(field, tracking_algorithm="det", max_length=400.0, step_size=0.25)
    for lines in (streamlines, streamlines_long):
        for points in lines:
            distance = np.hypot(points[:, 0], points[:, 1])
            assert np.ptp(distance) < 0.5


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_reflected_bundle_gives_reflected_density(algorithm):
    """The density in a bundle and in its mirror image differ by chance only."""
    field = arc_field(AXES["RAS"])
    mirrored = FibreField(
        _mirrored_coefficients(field), field.fractions[_mirrored_order(field)], field.mask[::-1], field.affine
    )
    densities = []
    for one in (field, mirrored):
        streamlines, *_ = run(one, tracking_algorithm=algorithm, seeds=8)
        densities.append(track_density(streamlines, one.affine, one.mask.shape))
    first, second = densities[0][field.mask], densities[1][::-1][field.mask]
    assert np.corrcoef(first, second)[0, 1] > 0.97
    assert abs(first.sum() / second.sum() - 1) < 0.05


def _mirrored_order(field: FibreField) -> np.ndarray:
    """Row of each voxel of the mirrored mask."""
    rows = np.full(field.mask.shape, -1)
    rows[field.mask] = np.arange(field.mask.sum())
    return rows[::-1][field.mask[::-1]]


def _mirrored_coefficients(field: FibreField) -> np.ndarray:
    points = np.random.default_rng(0).normal(size=(400, 3))
    mirror = np.linalg.pinv(sh_basis(points, L_MAX)) @ sh_basis(points * [-1, 1, 1], L_MAX)
    return (field.coefficients @ mirror.T.astype(np.float32))[_mirrored_order(field)]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_seed_decides_and_threads_do_not(algorithm):
    field = arc_field(AXES["LAS"])
    once, again, threaded, other = (
        run(field, tracking_algorithm=algorithm, random_seed=seed, n_threads=n_threads)[0].get_data()
        for seed, n_threads in ((7, 1), (7, 1), (7, 2), (8, 1))
    )
    np.testing.assert_array_equal(once, again)
    np.testing.assert_array_equal(once, threaded)
    assert once.shape != other.shape


def test_arcs_are_drawn_in_proportion_to_what_lies_along_them():
    """In a crossing of two lobes of amplitudes 1 and 0.5, seeds start along the first twice as often."""
    mask = np.ones((30, 30, 30), dtype=bool)
    both = lobes(np.array([[1.0, 0, 0]])) + 0.5 * lobes(np.array([[0, 1.0, 0]]))
    fractions = np.zeros((mask.sum(), 3))
    fractions[:, 0] = (np.abs(np.argwhere(mask) - 14.5) < 5).all(axis=1)
    field = FibreField(np.repeat(both, mask.sum(), axis=0), fractions, mask, np.diag([2.0, 2, 2, 1]))
    streamlines, *_ = run(field, tracking_algorithm="det", min_length=1.0)
    along = [np.abs(line[1] - line[0]).argmax() for line in streamlines]
    counts = np.bincount(along, minlength=3)
    assert counts[2] == 0
    assert counts[0] / counts[1] == pytest.approx(2, rel=0.2)


def test_arcs_spread_as_the_product_of_amplitudes_at_their_quarters():
    """In an even field of a nearly Gaussian lobe of variance s^2, chords have a variance of s^2 / 6 across it.

    With f halfway and f at the end squared, a tangent has the mean -1/5 of the last and the variance 2/5 s^2, and a chord is the
    mean of two tangents.
    """
    mask = np.ones((24, 24, 24), dtype=bool)
    fractions = np.zeros((mask.sum(), 3))
    fractions[:, 0] = (np.abs(np.argwhere(mask) - 11.5) < 4).all(axis=1)
    coefficients = np.repeat(lobes(np.array([[1.0, 0, 0]])), mask.sum(), axis=0)
    streamlines, *_ = run(FibreField(coefficients, fractions, mask, np.diag([2.0, 2, 2, 1])), tracking_algorithm="prob")
    chords = np.concatenate([np.diff(line, axis=0) for line in streamlines])
    across = chords[:, 1:] / np.linalg.norm(chords, axis=1, keepdims=True)
    assert across.var() == pytest.approx(_LOBE_VARIANCE / 6, rel=0.2)


def test_the_largest_turn_is_that_of_the_algorithm_or_as_given():
    field = arc_field(AXES["LAS"])
    turns = [run(field, tracking_algorithm=name)[1].max_angle for name in ALGORITHMS]
    assert turns == [60.0, 20.0]
    assert run(field, tracking_algorithm="det", max_angle=30.0)[1].max_angle == 30
    sharp, *_ = run(field, tracking_algorithm="det", max_angle=1.0)  # the arc itself turns by 2.9 degrees a step
    assert not len(sharp)


@pytest.mark.slow
def test_select_and_lengths():
    field = arc_field(AXES["LAS"])
    _, every, _ = run(field, seeds=40)
    some, facts, _ = run(field, seeds=40, select=20)
    assert facts.n_accepted == len(some) == 20
    assert facts.n_seeds < every.n_seeds == 40 * len(field.seeded_voxels())
    assert every.n_accepted + every.n_other_length <= every.n_generated <= every.n_seeds
    limited, facts, _ = run(field, seeds=40, min_length=60, max_length=70)
    assert 0 < facts.n_accepted < every.n_accepted
    assert lengths(limited).min() > 60 * 0.97  # chords of arcs
    assert lengths(limited).max() < 70 + 1e-3


def test_the_least_length_follows_the_brain():
    """Half a ring of fibres is tracked the same in a brain of a tenth of the size."""
    field = arc_field(AXES["LAS"])
    _, usual, _ = run(field, seeds=4, min_length=None)
    _, small, _ = run(replace(field, affine=field.affine @ np.diag([0.1, 0.1, 0.1, 1])), seeds=4, min_length=None)
    assert 0 < usual.min_length < 20
    assert small.min_length == pytest.approx(usual.min_length / 10, abs=1e-3)
    assert small.n_accepted > 0.8 * usual.n_accepted > 0
    _, human, _ = run(replace(field, affine=field.affine @ np.diag([6, 6, 6, 1])), seeds=1, min_length=None)
    assert human.min_length == 20
    _, given, _ = run(field, seeds=1, min_length=30.0)
    assert given.min_length == 30
    _, short, _ = run(field, seeds=1, min_length=None, max_length=4.0)
    assert short.min_length == 2


def test_tracking_stops_at_amplitude_and_mask():
    """Where the fODF falls below the cutoff, and where the mask ends, no point lies."""
    field = arc_field(AXES["RAS"])
    second = _plane()[1]
    beyond = _offsets(field.mask.shape, field.affine)[field.mask.ravel()] @ second > 10
    faded = FibreField(
        field.coefficients * np.where(beyond, 0.01, 1)[:, None].astype(np.float32),
        field.fractions,
        field.mask,
        field.affine,
    )
    by_amplitude, *_ = run(faded, tracking_algorithm="det")
    assert ((by_amplitude.get_data() - CENTRE) @ second).max() < 10 + 2.5
    cut = field.mask.copy()
    cut[field.mask] = ~beyond
    short = FibreField(field.coefficients[~beyond], field.fractions[~beyond], cut, field.affine)
    by_mask, *_ = run(short, tracking_algorithm="det")
    points = np.rint(nib.affines.apply_affine(np.linalg.inv(field.affine), by_mask.get_data())).astype(int)
    assert cut[tuple(points.T)].all()


@pytest.mark.slow
def test_the_cutoff_is_a_share_of_the_usual_peak_where_noise_is_less():
    """Lobes of amplitude one and fluid without any; noise in the fluid raises it."""
    field = straight_field(grey=3, fluid=3)
    silent = np.where(field.fractions[:, :1] > 0, field.coefficients, 0).astype(np.float32)
    quiet = FibreField(silent, field.fractions, field.mask, field.affine)
    assert quiet.usual_cutoff == pytest.approx(0.05, rel=0.1)
    loud = np.where(field.fractions[:, 2:] > 0, lobes(np.array([[0, 1.0, 0]])), silent).astype(np.float32)
    noisy = FibreField(loud, field.fractions, field.mask, field.affine)
    assert noisy.usual_cutoff > 0.1
    assert run(noisy, tracking_cutoff=None)[1].cutoff == pytest.approx(noisy.usual_cutoff)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_anatomy_ends_streamlines_in_grey_matter_and_keeps_them_out_of_fluid(algorithm):
    """Between grey matter and the mask all is kept; with fluid at one end, what runs into it is refused."""
    streamlines, facts, batches = run(straight_field(grey=3), tracking_algorithm=algorithm, min_length=4.0)
    assert facts.uses_tissue
    assert facts.n_accepted > 0.9 * facts.n_generated
    assert set(np.concatenate([batch.ends for batch in batches]).ravel()) <= {
        ENDS.index("grey matter"),
        ENDS.index("edge of the mask"),
    }
    assert streamlines.get_data()[:, 0].min() > 2 * (2.5 - 0.5) - 1  # one step into the grey
    _, refused, _ = run(straight_field(grey=3, fluid=3), tracking_algorithm=algorithm, min_length=4.0)
    if algorithm == "det":
        assert refused.n_accepted == 0
        assert refused.n_refused["fluid"] > 0.9 * refused.n_generated
    else:
        assert refused.n_accepted < 0.5 * refused.n_generated
    _, free, _ = run(straight_field(grey=3, fluid=3), tracking_algorithm=algorithm, min_length=4.0, act="off")
    assert not free.uses_tissue
    assert free.n_accepted > 0.9 * free.n_generated


def test_image_border_ends_streamlines_inside():
    """Fibres that run out of the image give points inside it, the outermost half voxels included."""
    streamlines, *_ = run(straight_field(), tracking_algorithm="det")
    x = streamlines.get_data()[:, 0] / 2
    assert -0.5 <= x.min() < 0.2
    assert 22.8 < x.max() <= 23.5


def test_what_cannot_be_tracked_is_told():
    field = straight_field()
    with pytest.raises(InputError, match="seeded"):
        run(FibreField(field.coefficients, 0 * field.fractions, field.mask, field.affine))
    with pytest.raises(InputError, match="nothing to track"):
        run(FibreField(0 * field.coefficients, field.fractions, field.mask, field.affine), tracking_cutoff=None)
    with pytest.raises(ValueError, match="one row a mask voxel"):
        FibreField(field.coefficients[1:], field.fractions, field.mask, field.affine)


def test_without_a_kernel_the_user_is_told_what_to_do(monkeypatch):
    monkeypatch.setattr("shd_bids.tractography.native.library", lambda kernel: None)
    with pytest.raises(DeviceError, match="compiler"):
        run(straight_field())


def _write_tck(path, streamlines: ArraySequence, field: FibreField) -> None:
    grid = (field.affine, field.mask.shape)
    with trx_writer(path.with_suffix(".trx"), *grid) as writer:
        writer.add(streamlines.get_data(), np.array([len(line) for line in streamlines]))
    copy_trx(path.with_suffix(".trx"), path, *grid)


@requires_mrtrix
def test_mrtrix_reads_the_tracks_and_maps_them_alike(tmp_path):
    """tckinfo counts them, and the density of tckmap is ours."""
    field = arc_field(AXES["oblique, anisotropic"])
    tracks, *_ = run(field, tracking_algorithm="det")
    _write_tck(tmp_path / "tracks.tck", tracks, field)
    nib.save(nib.Nifti1Image(field.mask.astype(np.uint8), field.affine), tmp_path / "mask.nii")
    info = subprocess.run(["tckinfo", "-count", tmp_path / "tracks.tck"], capture_output=True, text=True, check=True)
    assert f"actual count in file: {len(tracks)}" in info.stdout
    command = ["tckmap", "-quiet", "-nthreads", "1", "-upsample", "8", "-template", tmp_path / "mask.nii"]
    subprocess.run([*command, tmp_path / "tracks.tck", tmp_path / "map.nii"], check=True)
    theirs = nib.load(tmp_path / "map.nii").get_fdata()
    ours = track_density(tracks, field.affine, field.mask.shape)
    assert np.corrcoef(theirs.ravel(), ours.ravel())[0, 1] > 0.99
    assert abs(theirs.sum() / ours.sum() - 1) < 0.1  # MRtrix3 curves the segments before it cuts them


@pytest.mark.slow
@requires_mrtrix
@pytest.mark.parametrize(("algorithm", "theirs"), [("det", "SD_STREAM"), ("prob", "iFOD2")])
def test_mrtrix_tracks_the_same_bundle(tmp_path, algorithm, theirs):
    """tckgen on the same fODF image visits the voxels that ours visits."""
    field = arc_field(AXES["oblique LAS"])
    image = np.zeros((*field.mask.shape, field.coefficients.shape[1]), dtype=np.float32)
    image[field.mask] = field.coefficients
    seeds = np.zeros(field.mask.shape, dtype=np.uint8)
    seeds[tuple(field.seeded_voxels().T)] = 1
    for name, data in (("fod", image), ("seeds", seeds), ("mask", field.mask.astype(np.uint8))):
        nib.save(nib.Nifti1Image(data, field.affine), tmp_path / f"{name}.nii")
    ours, facts, _ = run(field, tracking_algorithm=algorithm, seeds=4)
    command = f"tckgen -quiet -nthreads 1 -algorithm {theirs} fod.nii tracks.tck -seed_image seeds.nii -mask mask.nii"
    command += f" -select {facts.n_accepted} -cutoff 0.1 -minlength 20"
    subprocess.run(command.split(), cwd=tmp_path, check=True)
    reference = nib.streamlines.load(tmp_path / "tracks.tck").streamlines
    densities = [track_density(lines, field.affine, field.mask.shape)[field.mask] for lines in (reference, ours)]
    assert np.corrcoef(*densities)[0, 1] > 0.8
