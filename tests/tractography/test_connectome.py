"""Connectomes of lines whose ends are known, and the same matrices of dipy."""

import nibabel as nib
import numpy as np
import pytest
from dipy.tracking.utils import connectivity_matrix
from nibabel.streamlines import ArraySequence
from scipy.spatial.transform import Rotation

from shd_bids.tractography.connectome import (
    BUNDLE_CAPACITY,
    COUNT,
    DENSITY,
    LENGTH,
    Streamlines,
    assign_ends,
    connect,
    mean_of,
    measures,
)
from shd_bids.tractography.regions import Regions

SHAPE = (10, 11, 12)
OBLIQUE = nib.affines.from_matvec(Rotation.from_rotvec([0.3, -0.2, 0.4]).as_matrix() * [-1.0, 1.5, 2.0], [4, -8, -9])


def regions_of(node: np.ndarray, affine: np.ndarray = OBLIQUE) -> Regions:
    n = int(node.max()) + 1
    return Regions(node.astype(np.int32), affine, np.arange(1, n + 1), tuple("abcdefghi"[:n]))


@pytest.fixture
def regions(rng) -> Regions:
    """Five regions of scattered voxels, and many voxels of none."""
    return regions_of(rng.choice(np.r_[[-1] * 5, np.arange(5)], SHAPE))


def ends_in(regions: Regions, rng: np.random.Generator, n: int) -> np.ndarray:
    """Ends anywhere in the image and a little around it, (n, 2, 3)."""
    return nib.affines.apply_affine(regions.affine, rng.uniform(-1.5, np.array(SHAPE) + 0.5, (n, 2, 3)))


def told(ends: np.ndarray, **more) -> Streamlines:
    values = {"lengths": np.ones(len(ends)), "cross_sections": None, "means": {}}
    return Streamlines(ends=ends, **(values | more))


def test_counts_are_those_of_dipy(regions, rng):
    """Without a search, as dipy has none."""
    ends = nib.affines.apply_affine(regions.affine, rng.uniform(-0.4, np.array(SHAPE) - 0.6, (400, 2, 3)))
    nodes = assign_ends(ends, regions, radius=0)
    ours = connect(told(ends), nodes, regions)[COUNT]
    theirs = connectivity_matrix(ArraySequence(list(ends)), regions.affine, regions.node + 1, symmetric=True)
    np.testing.assert_array_equal(ours, theirs[1:, 1:])
    assert ours.sum() > 50


@pytest.mark.parametrize("radius", [0.9, 2.5])
@pytest.mark.parametrize("n_threads", [1, 2])
def test_the_nearest_labelled_voxel_within_the_radius_is_taken(regions, rng, radius, n_threads):
    """Against the distances to all labelled voxels; an end in a labelled voxel belongs to it."""
    ends = ends_in(regions, rng, 200)
    found = assign_ends(ends, regions, radius=radius, n_threads=n_threads).ravel()
    labels = regions.node[regions.node >= 0]
    distance = np.linalg.norm(ends.reshape(-1, 1, 3) - regions.centres, axis=-1)
    voxels = np.rint(nib.affines.apply_affine(np.linalg.inv(regions.affine), ends.reshape(-1, 3))).astype(int)
    inside = ((voxels >= 0) & (voxels < SHAPE)).all(axis=1)
    own = np.where(inside, regions.node[tuple(voxels.clip(0, np.array(SHAPE) - 1).T)], -1)
    near = np.where(distance.min(axis=1) <= radius, labels[distance.argmin(axis=1)], -1)
    np.testing.assert_array_equal(found, np.where(own >= 0, own, near))
    assert (found < 0).any() and (own < 0).sum() > (found < 0).sum()


def test_measures_of_a_few_lines_by_hand():
    node = np.full((4, 1, 1), -1)
    node[0], node[2], node[3] = 0, 1, 2
    regions = regions_of(node, np.diag([2.0, 1.0, 1.0, 1.0]))
    pairs = np.array([[0, 1], [1, 0], [0, 2], [2, 2], [0, -1], [-1, -1]])
    streamlines = told(
        np.zeros((6, 2, 3)),
        lengths=np.array([10.0, 40, 30, 5, 7, 7]),
        cross_sections=np.array([3.0, 1, 0.5, 2, 9, 9]),
        means={"fa": np.array([0.2, np.nan, 0.4, 0.6, 1, 1])},
    )
    found = connect(streamlines, pairs, regions)
    assert tuple(found) == measures(is_weighted=True, maps=("fa",))
    np.testing.assert_array_equal(found[COUNT], [[0, 2, 1], [2, 0, 0], [1, 0, 1]])
    np.testing.assert_array_equal(found[BUNDLE_CAPACITY], [[0, 4, 0.5], [4, 0, 0], [0.5, 0, 2]])
    np.testing.assert_allclose(found[DENSITY], found[BUNDLE_CAPACITY] / 2)  # both volumes are 2 mm3
    nan = np.nan
    np.testing.assert_allclose(found[LENGTH], [[nan, 17.5, 30], [17.5, nan, nan], [30, nan, 5]])
    np.testing.assert_allclose(found[mean_of("fa")], [[nan, 0.2, 0.4], [0.2, nan, nan], [0.4, nan, 0.6]])


def test_without_weights_every_streamline_counts_alike():
    regions = regions_of(np.array([0, 1]).reshape(2, 1, 1), np.eye(4))
    found = connect(told(np.zeros((2, 2, 3)), lengths=np.array([1.0, 3])), np.array([[0, 1], [1, 0]]), regions)
    assert tuple(found) == measures(is_weighted=False, maps=()) and BUNDLE_CAPACITY not in found
    assert found[LENGTH][0, 1] == 2 and found[DENSITY][0, 1] == 2


def test_no_streamline_gives_an_empty_connectome(regions):
    nodes = assign_ends(np.zeros((0, 2, 3)), regions, radius=2)
    found = connect(told(np.zeros((0, 2, 3))), nodes, regions)
    assert found[COUNT].shape == (5, 5) and not found[COUNT].any() and np.isnan(found[LENGTH]).all()
