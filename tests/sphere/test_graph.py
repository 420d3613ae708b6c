"""The Laplacian: invariance under the antipodal map, exactness of the fold, and the facts of the published graph."""

import numpy as np
import pytest

from shd_bids.sphere import graph, healpix

# nside: {degree: vertices}, edges x 2, largest eigenvalue, non-zeros of the folded Laplacian.
FACTS = {
    1: ({10: 12}, 120, 1.3499, 36),
    2: ({8: 8, 9: 24, 10: 8, 12: 8}, 456, 1.4484, 252),
    4: ({8: 152, 9: 40}, 1576, 1.4919, 884),
    8: ({8: 648, 9: 104, 10: 16}, 6280, 1.5059, 3524),
}


@pytest.mark.parametrize("nside", FACTS)
def test_graph_has_the_published_facts(nside):
    neighbours = (graph.adjacency(nside) > 0).sum(axis=1)
    degrees, edges, largest, nonzeros = FACTS[nside]
    assert dict(zip(*(a.tolist() for a in np.unique(neighbours, return_counts=True)), strict=True)) == degrees
    assert neighbours.sum() == edges
    assert graph.largest_eigenvalue(nside) == pytest.approx(largest, abs=5e-5)
    folded = graph.rescaled_laplacian(nside, hemisphere_only=True)
    assert np.count_nonzero(np.abs(folded) > 1e-14) == nonzeros


@pytest.mark.parametrize("nside", FACTS)
def test_laplacian_commutes_with_the_antipodal_map(nside):
    opposite = healpix.antipodes(nside)
    laplacian = graph.laplacian(nside)
    np.testing.assert_allclose(laplacian[np.ix_(opposite, opposite)], laplacian, atol=1e-14)


@pytest.mark.parametrize("nside", FACTS)
def test_fold_acts_as_the_sphere_on_even_signals(nside, rng):
    half = rng.normal(size=6 * nside**2)
    whole = graph.rescaled_laplacian(nside, hemisphere_only=False) @ half[healpix.hemisphere_lookup(nside)]
    folded = graph.rescaled_laplacian(nside, hemisphere_only=True) @ half
    np.testing.assert_allclose(folded, whole[healpix.hemisphere_indices(nside)], atol=1e-13)


@pytest.mark.parametrize("nside", FACTS)
def test_spectrum_lies_within_the_chebyshev_interval(nside):
    values = np.linalg.eigvalsh(graph.rescaled_laplacian(nside, hemisphere_only=False))
    assert values[0] == pytest.approx(-1, abs=1e-12)
    assert 0.97 < values[-1] == pytest.approx(2 / 1.01 - 1, abs=1e-12)


def test_edge_of_one_width_weighs_one_half():
    weights, points = graph.adjacency(4), healpix.vertices(4)
    i, j = np.nonzero(weights)
    distance = np.linalg.norm(points[i] - points[j], axis=1)
    np.testing.assert_allclose(weights[i, j], 0.5 ** ((distance / 0.2) ** 2), rtol=1e-9)
    assert graph.kernel_width(64) == 0.01228
