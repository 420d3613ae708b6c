"""Anatomy that ends streamlines: images on grids of their own, its rules, and a judge that shares no code."""

import nibabel as nib
import numpy as np
import pytest
from dipy.tracking.stopping_criterion import ActStoppingCriterion, StreamlineStatus

from shd_bids.errors import InputError
from shd_bids.tractography.anatomy import Anatomy, TissueImages, TissuePart, anatomy_of_fractions, read_anatomy
from shd_bids.tractography.field import FibreField
from shd_bids.tractography.tracker import ENDS
from tests.tractography.test_track import ALGORITHMS, lobes, run

TISSUES = {"cortical": 1, "deep": 2, "white": 3, "fluid": 4}
FINE = nib.affines.from_matvec(np.diag([-1.0, 1.0, 1.0]), [60.0, -12.0, -12.0])
"""Grid of 1 mm, mirrored and shifted against that of the fODFs."""


def field_with(labels_at, *, tilt: float = 0.0) -> FibreField:
    """Fibres nearly along x through 24 x 8 x 8 voxels of 2 mm, and tissues by a function of x in mm."""
    shape = (24, 8, 8)
    affine = nib.affines.from_matvec(2 * np.eye(3), [0.0, -7.0, -7.0])
    n = int(np.prod(shape))
    direction = np.array([[np.cos(tilt), np.sin(tilt), 0]])
    fractions = np.tile([1.0, 0, 0], (n, 1))
    return FibreField(
        np.repeat(lobes(direction), n, axis=0), fractions, np.ones(shape, bool), affine, anatomy_at(labels_at)
    )


def anatomy_at(labels_at) -> Anatomy:
    """Return tissues of slabs: label of `TISSUES` as a function of x in mm."""
    shape = (80, 24, 24)
    x = nib.affines.apply_affine(FINE, np.indices(shape).reshape(3, -1).T)[:, 0].reshape(shape)
    labels = labels_at(x)
    cortical, deep, white, fluid = (np.float32(labels == number) for number in TISSUES.values())
    return Anatomy(np.stack([cortical, deep, fluid, cortical + deep], axis=-1), white, FINE)


def ends_of(batches) -> set[str]:
    return {ENDS[number] for batch in batches for number in np.unique(batch.ends)}


def judged(streamlines, anatomy: Anatomy) -> tuple[list[np.ndarray], ActStoppingCriterion]:
    """Return the status by dipy of every point of each streamline."""
    include = np.ascontiguousarray(anatomy.shares[..., 0], dtype=float)
    exclude = np.ascontiguousarray(anatomy.shares[..., 2], dtype=float)
    criterion = ActStoppingCriterion(include, exclude)
    to_voxel = np.linalg.inv(anatomy.affine)
    lines = [nib.affines.apply_affine(to_voxel, np.asarray(line, dtype=float)) for line in streamlines]
    return [np.array([int(criterion.check_point(point)) for point in line]) for line in lines], criterion


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_dipy_agrees_that_every_streamline_obeys(algorithm):
    """Interior points are such that dipy goes on, both ends such that it ends in grey matter, none is in fluid."""
    field = field_with(lambda x: np.select([x < 8, x > 40], [1, 1], 3), tilt=0.1)
    streamlines, facts, batches = run(field, tracking_algorithm=algorithm, min_length=4.0)
    assert facts.n_accepted > 500
    statuses, _ = judged(streamlines, field.given)
    for status, ends in zip(statuses, np.concatenate([batch.ends for batch in batches]), strict=True):
        assert (status[1:-1] == int(StreamlineStatus.TRACKPOINT)).all()
        for last, end in ((status[0], ends[0]), (status[-1], ends[1])):
            expected = "ENDPOINT" if ENDS[end] == "grey matter" else "TRACKPOINT"
            assert last == int(StreamlineStatus[expected])
    assert ends_of(batches) <= {"grey matter", "edge of the mask"}


def test_the_judge_sees_a_wrong_grid():
    """With the tissues shifted, dipy finds points beyond an end: the test above can fail."""
    field = field_with(lambda x: np.select([x < 8, x > 40], [1, 1], 3))
    streamlines, *_ = run(field, tracking_algorithm="det", min_length=4.0)
    shifted = Anatomy(field.given.shares, field.given.white, nib.affines.from_matvec(np.eye(3), [3, 0, 0]) @ FINE)
    statuses, _ = judged(streamlines, shifted)
    assert not all((status[1:-1] == int(StreamlineStatus.TRACKPOINT)).all() for status in statuses)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_no_streamline_passes_fluid(algorithm):
    """A ventricle across the bundle leaves no way from one cortex to the other."""
    field = field_with(lambda x: np.select([x < 8, x > 40, (x > 20) & (x < 26)], [1, 1, 4], 3))
    streamlines, facts, _ = run(field, tracking_algorithm=algorithm, min_length=1.0)
    assert facts.n_refused["fluid"] > 0.5 * facts.n_generated
    statuses, _ = judged(streamlines, field.given)
    assert all((status != int(StreamlineStatus.INVALIDPOINT)).all() for status in statuses)
    _, free, _ = run(field, tracking_algorithm=algorithm, min_length=1.0, act="off")
    assert not free.n_refused and free.n_accepted > 0.9 * free.n_generated


def test_fluid_behind_grey_matter_ends_a_streamline_there():
    """Where the cortex is thinner than a step, fluid beyond it is no fault."""
    field = field_with(lambda x: np.select([x < 7.5, x < 8, x > 40], [4, 1, 1], 3))
    thin = field.given.shares.copy()
    thin[..., 3] = 1.0
    loose = FibreField(
        field.coefficients, field.fractions, field.mask, field.affine, Anatomy(thin, field.given.white, FINE)
    )
    streamlines, facts, batches = run(loose, tracking_algorithm="det", min_length=4.0)
    assert facts.n_accepted > 0.9 * facts.n_generated
    statuses, _ = judged(streamlines, loose.given)
    assert all((status != int(StreamlineStatus.INVALIDPOINT)).all() for status in statuses)
    assert "fluid" not in ends_of(batches)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_deep_grey_matter_cuts_where_the_amplitude_is_lowest(algorithm):
    """What leaves a nucleus again is cut inside, at its weakest plane."""
    field = field_with(lambda x: np.select([x < 8, x > 40, (x > 18) & (x < 28)], [1, 1, 2], 3))
    x = nib.affines.apply_affine(field.affine, np.argwhere(field.mask))[:, 0]
    weak = np.where(x == 24, 0.4, 1).astype(np.float32)[:, None]
    field = FibreField(weak * field.coefficients, field.fractions, field.mask, field.affine, field.given)
    streamlines, facts, batches = run(field, tracking_algorithm=algorithm, min_length=2.0)
    assert facts.n_ends["deep grey matter"] > 100
    ends = np.concatenate([batch.ends for batch in batches])
    inside = [line[end][0] for line, pair in zip(streamlines, ends, strict=True) for end in (0, -1) if pair[end] == 1]
    np.testing.assert_allclose(inside if algorithm == "det" else np.median(inside), 24, atol=1.1)
    assert min(inside) > 17 and max(inside) < 29
    both_sides = [line for line in streamlines if line[:, 0].min() < 18 and line[:, 0].max() > 28]
    assert not both_sides


def test_amplitudes_that_fade_in_grey_matter_end_there_and_in_white_matter_do_not():
    for tissue, accepted in ((2, True), (3, False)):
        field = field_with(lambda x, tissue=tissue: np.select([x < 8, x > 28], [1, tissue], 3))
        x = nib.affines.apply_affine(field.affine, np.argwhere(field.mask))[:, 0]
        faded = field.coefficients * np.where(x > 36, 0.01, 1).astype(np.float32)[:, None]
        field = FibreField(faded, field.fractions, field.mask, field.affine, field.given)
        _, facts, _ = run(field, tracking_algorithm="det", min_length=4.0)
        assert (facts.n_accepted > 0.9 * facts.n_generated) == accepted
        assert (facts.n_refused.get("low amplitude or sharp turn", 0) > 0.9 * facts.n_generated) != accepted


def test_a_streamline_that_fades_just_before_the_cortex_goes_on_to_it():
    field = field_with(lambda x: np.select([x < 8, x > 40], [1, 1], 3))
    x = nib.affines.apply_affine(field.affine, np.argwhere(field.mask))[:, 0]
    faded = field.coefficients * np.where(x > 39, 0.01, 1).astype(np.float32)[:, None]
    field = FibreField(faded, field.fractions, field.mask, field.affine, field.given)
    streamlines, facts, _ = run(field, tracking_algorithm="det", min_length=4.0)
    assert facts.n_accepted > 0.9 * facts.n_generated
    assert min(line[:, 0].max() for line in streamlines) > 40


def test_seeds_lie_in_white_matter_or_at_its_border():
    field = field_with(lambda x: np.select([x < 8, x > 40], [1, 1], 3))
    everywhere, border = field.seeded_voxels(), field.seeded_voxels(at_border=True)
    x = nib.affines.apply_affine(field.affine, everywhere)[:, 0]
    assert x.min() >= 8 and x.max() <= 40
    assert set(nib.affines.apply_affine(field.affine, border)[:, 0]) <= {8.0, 10.0, 38.0, 40.0}
    _, facts, _ = run(field, tracking_algorithm="det", min_length=4.0, seed_region="border")
    assert facts.n_seeds == len(border) < len(everywhere)
    assert facts.n_accepted > 0.5 * facts.n_seeds


def test_with_one_shell_the_pedestal_is_grey_matter():
    """Grey matter that was not fitted is the even part of the fODF."""
    field = field_with(lambda x: np.select([x < 8], [1], 3))
    x = nib.affines.apply_affine(field.affine, np.argwhere(field.mask))[:, 0]
    flat = np.zeros_like(field.coefficients)
    flat[:, 0] = field.coefficients[:, 0]
    own = FibreField(np.where((x < 8)[:, None], flat, field.coefficients), field.fractions, field.mask, field.affine)
    assert not own.has_grey
    np.testing.assert_allclose(own.tissues.sum(axis=1), 1)
    assert own.tissues[x < 8, 1].min() > 0.95 and own.tissues[x > 8, 1].max() < 0.2
    streamlines, facts, batches = run(own, tracking_algorithm="det", min_length=4.0)
    assert ends_of(batches) <= {"grey matter", "edge of the mask"} and facts.n_accepted > 300
    assert min(line[:, 0].min() for line in streamlines) > 2


def test_fractions_tell_ventricles_from_sulci():
    """Fluid in the depth is none in which a streamline may fade, at the edge it may."""
    mask = np.ones((30, 30, 30), bool)
    tissues = np.tile([0.3, 0.2, 0.5], (mask.sum(), 1))
    anatomy = anatomy_of_fractions(tissues, mask, np.diag([2.0, 2, 2, 1]))
    assert anatomy.shares[16, 16, 16, 3] == pytest.approx(0.2)
    assert anatomy.shares[2, 16, 16, 3] == pytest.approx(0.7)


def written(path, data, affine=FINE):
    nib.save(nib.Nifti1Image(data, affine), path)
    return path


def test_five_tissues_and_labels_give_the_same(tmp_path):
    labels = np.random.default_rng(0).integers(0, 5, (6, 5, 4)).astype(np.int16)
    five = np.stack([labels == n for n in range(1, 5)] + [labels == 0], axis=-1).astype(np.float32)
    parts = tuple(TissuePart(0, tissue, volume=n) for n, tissue in enumerate(TISSUES))
    from_shares = read_anatomy(TissueImages("five", (written(tmp_path / "five.nii", five),), parts))
    parts = tuple(TissuePart(0, tissue, labels=(n,)) for tissue, n in TISSUES.items())
    images = TissueImages("labels", (written(tmp_path / "labels.nii", labels),), parts)
    from_labels = read_anatomy(TissueImages.from_dict(images.to_dict()))
    np.testing.assert_array_equal(from_shares.shares, from_labels.shares)
    np.testing.assert_array_equal(from_shares.white, labels == 3)
    np.testing.assert_array_equal(from_labels.affine, FINE)


@pytest.mark.parametrize(
    ("data", "affine", "told"),
    [
        (np.full((4, 4, 4, 2), 0.5, np.float32), FINE, "2 volumes"),
        (np.full((4, 4, 4, 5), 90.0, np.float32), FINE, "90"),
        (np.zeros((4, 4, 4, 5), np.float32), FINE, "no white matter"),
        (np.full((5, 4, 4, 5), 0.5, np.float32), FINE, "not on the grid"),
    ],
)
def test_images_without_tissues_are_told(tmp_path, data, affine, told):
    files = (
        written(tmp_path / "first.nii", np.zeros((4, 4, 4), np.float32)),
        written(tmp_path / "b.nii", data, affine),
    )
    parts = (TissuePart(1, "cortical", volume=0), TissuePart(1, "white", volume=2))
    with pytest.raises(InputError, match=told):
        read_anatomy(TissueImages("five", files, parts))
