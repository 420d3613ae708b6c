r"""Eigenbasis of the graph Laplacian, adapted to the symmetry of the HEALPix grid.

The rotations by 90 degrees about z and the mirror x -> -x map the grid to itself and commute with the Laplacian: the
dihedral group D4 of order 8 (on the whole sphere also the inversion). Vectors that transform by one row of one irreducible
representation do not mix with others, so the Laplacian is block diagonal in them and so is its eigenbasis:

.. math:: \tilde L = S \, \mathrm{diag}(Q_b \Lambda_b Q_b^T) \, S^T

with S sparse (its columns live on one orbit of at most 8 or 16 vertices) and small dense Q_b. For the two-dimensional
representation E both rows share one Q_b and their eigenvalues. (Serre, Linear Representations of Finite Groups, 2.6-2.7.)
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import product

import numpy as np

from shd_bids.sphere import constant, graph, healpix

_ROTATION = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
_MIRROR = np.diag([-1.0, 1.0, 1.0])

# Irreducible representations of D4 by the matrices of the rotation and of the mirror: A1, A2, B1, B2, E.
_REPRESENTATIONS = (
    (np.eye(1), np.eye(1)),
    (np.eye(1), -np.eye(1)),
    (-np.eye(1), np.eye(1)),
    (-np.eye(1), -np.eye(1)),
    (_ROTATION[:2, :2], _MIRROR[:2, :2]),
)


@dataclass(frozen=True, eq=False)
class Eigenbasis:
    """Eigenvectors of the rescaled Laplacian in factored form.

    Attributes
    ----------
    adapted : array, shape (V, V)
        Orthogonal S: columns are symmetry-adapted vectors, block after block, the rows of a representation innermost.
    blocks : tuple of (Q, copies)
        Orthogonal Q, shape (n, n), whose columns are eigenvectors within the block; ``copies`` is the number of rows that
        share it. A block covers ``n * copies`` consecutive columns of S.
    eigenvalues : array, shape (U,)
        One for each column of each Q: the distinct modes.
    mode : array, shape (V,)
        Index into ``eigenvalues`` of each of the V eigenvectors.
    """

    adapted: np.ndarray
    blocks: tuple[tuple[np.ndarray, int], ...]
    eigenvalues: np.ndarray
    mode: np.ndarray

    @cached_property
    def vectors(self) -> np.ndarray:
        """Eigenvectors as the columns of one dense orthogonal matrix, shape (V, V)."""
        columns, start = [], 0
        for rotation, copies in self.blocks:
            part = self.adapted[:, start : start + len(rotation) * copies].reshape(len(self.adapted), -1, copies)
            columns.append(np.einsum("vnc,nm->vmc", part, rotation).reshape(len(self.adapted), -1))
            start += part.shape[1] * copies
        return np.concatenate(columns, axis=1)


@lru_cache
def eigenbasis(nside: int, *, hemisphere_only: bool) -> Eigenbasis:
    """Return the eigenbasis of :func:`shd_bids.sphere.graph.rescaled_laplacian` with deterministic signs."""
    laplacian = graph.rescaled_laplacian(nside, hemisphere_only=hemisphere_only)
    columns, blocks, mode = [], [], []
    eigenvalues: list[np.ndarray] = []
    for rows in _adapted_vectors(nside, hemisphere_only=hemisphere_only):
        block = rows[:, :, 0].T @ laplacian @ rows[:, :, 0]
        values, vectors = np.linalg.eigh((block + block.T) / 2)
        mode.append(np.repeat(sum(len(found) for found in eigenvalues) + np.arange(len(values)), rows.shape[2]))
        columns.append(rows.reshape(len(laplacian), -1))
        blocks.append((constant(vectors * _signs(vectors)), rows.shape[2]))
        eigenvalues.append(values)
    return Eigenbasis(
        adapted=constant(np.concatenate(columns, axis=1)),
        blocks=tuple(blocks),
        eigenvalues=constant(np.concatenate(eigenvalues)),
        mode=constant(np.concatenate(mode)),
    )


@lru_cache
def group(*, inversion: bool) -> tuple[tuple[np.ndarray, tuple[np.ndarray, ...]], ...]:
    """Return the elements of D4, or of D4 times the inversion: each as a 3x3 matrix and its matrix in every representation."""
    parities = (1, -1) if inversion else (1,)
    elements = []
    for turns, mirrored, parity in product(range(4), range(2), parities):
        power = np.linalg.matrix_power
        matrix = parity * power(_ROTATION, turns) @ power(_MIRROR, mirrored)
        small = [power(rotation, turns) @ power(mirror, mirrored) for rotation, mirror in _REPRESENTATIONS]
        elements.append((matrix, tuple(small) + (tuple(parity * part for part in small) if inversion else ())))
    return tuple(elements)


@lru_cache
def permutation(nside: int, matrix: tuple[tuple[float, ...], ...], *, hemisphere_only: bool) -> np.ndarray:
    """Return for each vertex the index of its image under an orthogonal matrix that maps the grid to itself, shape (V,)."""
    moved = healpix.grid(nside, hemisphere_only=hemisphere_only) @ np.array(matrix).T
    index = healpix.match(moved, nside)
    return constant(healpix.hemisphere_lookup(nside)[index] if hemisphere_only else index)


def _adapted_vectors(nside: int, *, hemisphere_only: bool) -> Iterator[np.ndarray]:
    """Yield for each representation its adapted vectors, shape (V, n, rows), orthonormal, each on one orbit."""
    elements = group(inversion=not hemisphere_only)
    images = np.stack(
        [permutation(nside, tuple(map(tuple, matrix)), hemisphere_only=hemisphere_only) for matrix, _ in elements]
    )  # (G, V)
    for index in range(len(elements[0][1])):
        matrices = np.stack([small[index] for _, small in elements])  # (G, d, d)
        found = [pair for orbit in _orbits(images) for pair in _orbit_vectors(orbit, images, matrices)]
        if found:
            yield np.stack(found, axis=1)


def _orbits(images: np.ndarray) -> list[np.ndarray]:
    """Return the orbits of the vertices, each sorted, by their first vertex."""
    return [np.array(orbit) for orbit in sorted({tuple(sorted(set(column))) for column in images.T.tolist()})]


def _orbit_vectors(orbit: np.ndarray, images: np.ndarray, matrices: np.ndarray) -> Iterator[np.ndarray]:
    """Yield vectors (V, d) on one orbit: column a is the image of column 0 under the group's shift from row 0 to row a.

    The operator P_a0 = d/|G| sum_g D_a0(g) g projects on row 0 (a = 0) and carries row 0 to row a.
    """
    dimension = matrices.shape[1]
    kept: list[np.ndarray] = []
    for vertex in orbit:
        rows = np.zeros((images.shape[1], dimension))
        for image, matrix in zip(images, matrices, strict=True):
            rows[image[vertex]] += dimension / len(images) * matrix[:, 0]
        for other in kept:
            rows -= other * (other[:, 0] @ rows[:, 0])
        length = np.linalg.norm(rows[:, 0])
        if length > 1e-9:
            kept.append(rows / length)
    yield from kept


def _signs(vectors: np.ndarray) -> np.ndarray:
    """Return the signs that make the first of the largest entries of each column positive: one matrix has one eigenbasis."""
    size = np.abs(vectors)
    first = np.argmax(size > size.max(axis=0) - 1e-6, axis=0)
    return np.sign(vectors[first, np.arange(vectors.shape[1])])
