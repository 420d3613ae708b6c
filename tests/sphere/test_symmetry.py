"""The eigenbasis: orthogonal, block diagonal, diagonalising, deterministic."""

import numpy as np
import pytest

from shd_bids.sphere import graph, healpix, symmetry

GRIDS = [(1, True), (2, True), (4, True), (8, True), (2, False)]


@pytest.mark.parametrize(("nside", "half"), GRIDS)
def test_basis_diagonalises_the_laplacian(nside, half):
    basis = symmetry.eigenbasis(nside, hemisphere_only=half)
    vectors, laplacian = basis.vectors, graph.rescaled_laplacian(nside, hemisphere_only=half)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(len(vectors)), atol=1e-13)
    np.testing.assert_allclose(vectors.T @ laplacian @ vectors, np.diag(basis.eigenvalues[basis.mode]), atol=5e-14)


@pytest.mark.parametrize(("nside", "half"), GRIDS)
def test_group_maps_the_grid_to_itself_and_commutes_with_the_laplacian(nside, half):
    laplacian, points = graph.rescaled_laplacian(nside, hemisphere_only=half), healpix.grid(nside, hemisphere_only=half)
    for matrix, _ in symmetry.group(inversion=not half):
        image = symmetry.permutation(nside, tuple(map(tuple, matrix)), hemisphere_only=half)
        moved = points @ matrix.T
        if half:
            moved = moved * np.sign((moved * points[image]).sum(axis=1, keepdims=True))
        np.testing.assert_allclose(points[image], moved, atol=1e-12)
        np.testing.assert_allclose(laplacian[np.ix_(image, image)], laplacian, atol=1e-13)


def test_representations_multiply_like_the_group():
    elements = symmetry.group(inversion=True)
    for first, small in elements:
        for second, other in elements[::3]:
            product = next(rep for matrix, rep in elements if np.allclose(matrix, first @ second))
            for a, b, c in zip(small, other, product, strict=True):
                np.testing.assert_allclose(a @ b, c, atol=1e-12)


def test_blocks_of_the_finest_hemisphere():
    basis = symmetry.eigenbasis(8, hemisphere_only=True)
    assert [(len(rotation), copies) for rotation, copies in basis.blocks] == [
        (56, 1),
        (44, 1),
        (48, 1),
        (52, 1),
        (92, 2),
    ]
    assert (np.abs(basis.adapted) > 1e-12).sum(axis=0).max() <= 8


def test_basis_is_deterministic():
    first = symmetry.eigenbasis(4, hemisphere_only=True).vectors.copy()
    symmetry.eigenbasis.cache_clear()
    np.testing.assert_array_equal(symmetry.eigenbasis(4, hemisphere_only=True).vectors, first)
