"""The sampling: antipodes, hemisphere, and that pooling commutes with the antipodal map."""

import numpy as np
import pytest

from shd_bids.sphere import healpix


@pytest.mark.parametrize("nside", [1, 2, 4, 8])
def test_every_vertex_has_one_antipode(nside):
    opposite = healpix.antipodes(nside)
    np.testing.assert_array_equal(opposite[opposite], np.arange(12 * nside**2))
    np.testing.assert_allclose(healpix.vertices(nside)[opposite], -healpix.vertices(nside), atol=1e-12)


@pytest.mark.parametrize("nside", [1, 2, 4, 8])
def test_hemisphere_holds_one_of_each_pair(nside):
    kept = healpix.hemisphere_indices(nside)
    both = np.concatenate([kept, healpix.antipodes(nside)[kept]])
    np.testing.assert_array_equal(np.sort(both), np.arange(12 * nside**2))
    assert (healpix.hemisphere(nside)[:, 2] >= 0).all()


@pytest.mark.parametrize("nside", [2, 4, 8])
def test_pooling_commutes_with_the_antipodal_map(nside):
    parent = healpix.parents(nside, hemisphere_only=False)
    fine, coarse = healpix.antipodes(nside), healpix.antipodes(nside // 2)
    np.testing.assert_array_equal(parent[fine], coarse[parent])


@pytest.mark.parametrize("nside", [2, 4, 8])
def test_pooling_on_the_hemisphere_is_pooling_an_even_signal(nside, rng):
    half = rng.normal(size=6 * nside**2)
    whole = half[healpix.hemisphere_lookup(nside)]
    pooled = whole[healpix.children(nside, hemisphere_only=False)].mean(axis=1)
    on_half = half[healpix.children(nside, hemisphere_only=True)].mean(axis=1)
    np.testing.assert_allclose(on_half, pooled[healpix.hemisphere_indices(nside // 2)], rtol=0, atol=1e-15)


@pytest.mark.parametrize("hemisphere_only", [True, False])
def test_parents_invert_children(hemisphere_only):
    child = healpix.children(4, hemisphere_only=hemisphere_only)
    parent = healpix.parents(4, hemisphere_only=hemisphere_only)
    np.testing.assert_array_equal(parent[child], np.repeat(np.arange(len(child))[:, None], 4, axis=1))


def test_children_lie_around_their_parent():
    points, coarse = healpix.vertices(8), healpix.vertices(4)
    centre = points[healpix.children(8, hemisphere_only=False)].mean(axis=1)
    cosine = (centre * coarse).sum(axis=1) / np.linalg.norm(centre, axis=1)
    assert np.degrees(np.arccos(cosine.min())) < 2.0


def test_wrong_resolution_is_refused():
    with pytest.raises(ValueError, match="power of two"):
        healpix.vertices(3)
    with pytest.raises(ValueError, match="no parents"):
        healpix.children(1, hemisphere_only=True)
    with pytest.raises(ValueError, match="away from the vertices"):
        healpix.match(np.array([[0.0, 0.0, 1.0]]), 4)


def test_tables_cannot_be_written():
    with pytest.raises(ValueError, match="read-only"):
        healpix.vertices(2)[0] = 0
