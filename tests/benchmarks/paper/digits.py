"""R3 x S2 MNIST: a volume whose voxels hold digits on the sphere, with tubes of one digit each in a background of all.

As in Elaldi, Gerig and Dey 2023 (arXiv:2304.06103). The digits are those of 8 x 8 pixels that scikit-learn ships. Each lies on
the upper half of the sphere and, as the networks take even functions, repeated on the opposite half.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import map_coordinates
from scipy.spatial.transform import Rotation

from shd_bids.sphere.healpix import hemisphere

ROTATIONS = ("none", "voxel", "grid", "independent", "joint")
"""Of nothing, of what voxels hold, of the grid, of both apart, of both as one."""

_PIXELS = 8
_REACH = np.radians(75)  # from the centre of a digit to the middle of its side, on the sphere


@dataclass(frozen=True)
class Sizes:
    """Edge of a volume, tubes and their width in voxels, and the digits that they may be of."""

    edge: int
    n_tubes: int
    width: int
    n_digits: int
    nside: int


@dataclass(frozen=True, eq=False)
class Digits:
    """Images (n, 8, 8) in [0, 1] and their digits (n,)."""

    images: np.ndarray
    labels: np.ndarray

    @classmethod
    def load(cls, *, n_digits: int, test: bool) -> Digits:
        """Return the first 80 % of the images of each digit, or for a test the rest."""
        from sklearn.datasets import load_digits  # the pages of the documents are built without it

        images, labels = load_digits(return_X_y=True)
        rank = np.array([np.sum(labels[:i] == label) for i, label in enumerate(labels)])
        is_test = rank >= 0.8 * np.bincount(labels)[labels]
        chosen = (labels < n_digits) & (is_test == test)
        return cls(images[chosen].reshape(-1, _PIXELS, _PIXELS) / 16, labels[chosen])


def volume(rng: np.random.Generator, digits: Digits, sizes: Sizes, rotation: str) -> tuple[np.ndarray, np.ndarray]:
    """Draw a volume and rotate it.

    Returns
    -------
    signal : ndarray, shape (edge, edge, edge, V), float32
        On the hemisphere.
    labels : ndarray of int, shape (edge, edge, edge)
        Digit of each voxel; in the background, where voxels hold any digit, ``n_digits``.
    """
    voxel, grid = draw_rotations(rng, rotation)
    labels = tubes(rng, sizes, grid)
    shown = np.where(labels < sizes.n_digits, labels, rng.integers(0, sizes.n_digits, labels.shape))
    images = np.empty((*labels.shape, _PIXELS, _PIXELS))
    for digit in range(sizes.n_digits):
        choices = digits.images[digits.labels == digit]
        images[shown == digit] = choices[rng.integers(0, len(choices), int((shown == digit).sum()))]
    signal = images.reshape(*labels.shape, -1) @ sampling(hemisphere(sizes.nside) @ voxel).T
    return signal.astype(np.float32), labels


def draw_rotations(rng: np.random.Generator, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the rotation of what voxels hold and that of the grid."""
    first, second = Rotation.random(2, random_state=rng).as_matrix()
    turned = {"none": (False, False), "voxel": (True, False), "grid": (False, True)}.get(kind, (True, True))
    voxel, grid = (r if is_turned else np.eye(3) for r, is_turned in zip((first, second), turned, strict=True))
    return (voxel, voxel) if kind == "joint" else (voxel, grid)


def tubes(rng: np.random.Generator, sizes: Sizes, rotation: np.ndarray) -> np.ndarray:
    """Return the digit of each voxel of a cube of parallel tubes, turned about its centre; ``n_digits`` outside tubes."""
    plane = np.full((sizes.edge, sizes.edge), sizes.n_digits)
    names = rng.permutation(sizes.n_digits)[: sizes.n_tubes]
    for name, (x, y) in zip(names, _corners(rng, sizes), strict=True):
        plane[x : x + sizes.width, y : y + sizes.width] = name
    axis = np.arange(sizes.edge) - (sizes.edge - 1) / 2
    places = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1) @ rotation
    index = np.rint(places + (sizes.edge - 1) / 2).astype(int)
    inside = ((index >= 0) & (index < sizes.edge)).all(axis=-1)
    index = index.clip(0, sizes.edge - 1)
    return np.where(inside, plane[index[..., 0], index[..., 1]], sizes.n_digits)


def _corners(rng: np.random.Generator, sizes: Sizes) -> list[tuple[int, int]]:
    """Draw corners of squares that do not overlap, again from the first where the last do not fit."""
    while True:
        found: list[tuple[int, int]] = []
        for _ in range(100):
            corner = tuple(int(n) for n in rng.integers(0, sizes.edge - sizes.width + 1, 2))
            if all(max(abs(a - b) for a, b in zip(corner, other, strict=True)) >= sizes.width for other in found):
                found.append((corner[0], corner[1]))
            if len(found) == sizes.n_tubes:
                return found


def sampling(points: np.ndarray) -> np.ndarray:
    """Return the matrix (V, 64) that evaluates an image at unit vectors (V, 3), by bilinear interpolation.

    The image lies about +z, distances from its centre kept (azimuthal equidistant); opposite points have one value.
    """
    up = np.where(points[:, 2:] < 0, -points, points)
    angle = np.arccos(up[:, 2].clip(-1, 1))
    radius = np.hypot(up[:, 0], up[:, 1]).clip(1e-12)
    pixels = (_PIXELS - 1) / 2 * (1 + (angle / radius / _REACH)[:, None] * up[:, :2])  # (V, 2)
    units = np.eye(_PIXELS**2).reshape(-1, _PIXELS, _PIXELS)
    return np.stack([map_coordinates(unit, pixels.T, order=1, mode="constant") for unit in units], axis=1)
