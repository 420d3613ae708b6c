"""The view shows the same picture however the image is stored."""

from itertools import permutations, product

import numpy as np
import pytest

from shd_bids.report.view import PLANES, Cut, Row, gallery, slice_of, world_view

ZOOMS = np.array([2.0, 3.0, 4.0])
SHAPE = (5, 6, 7)


def ras_affine() -> np.ndarray:
    affine = np.diag([*ZOOMS, 1.0])
    affine[:3, 3] = (-4.0, -9.0, 11.0)
    return affine


def stored(volume, affine, order, flips):
    """Store a RAS image with permuted and flipped axes: the same world content under another affine."""
    turn = np.zeros((4, 4))
    turn[3, 3] = 1.0
    for new, (old, flip) in enumerate(zip(order, flips, strict=True)):
        turn[old, new] = -1.0 if flip else 1.0
        turn[old, 3] = volume.shape[old] - 1 if flip else 0
    moved = np.moveaxis(volume, order, (0, 1, 2))
    return moved[tuple(slice(None, None, -1 if flip else 1) for flip in flips)], affine @ turn


def rotation(degrees: float, axis: int) -> np.ndarray:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    first, second = (other for other in range(3) if other != axis)
    matrix = np.eye(3)
    matrix[[first, first, second, second], [first, second, first, second]] = (c, -s, s, c)
    return matrix


@pytest.mark.parametrize("order", list(permutations(range(3))))
@pytest.mark.parametrize("flips", list(product((False, True), repeat=3)))
def test_view_does_not_depend_on_the_storage_order(rng, order, flips):
    volume, affine = rng.normal(size=SHAPE), ras_affine()
    mask = np.zeros(SHAPE, bool)
    mask[1:3, 2:4, 3:6] = True
    reference = world_view(SHAPE, affine, mask, margin=1)
    moved, moved_affine = stored(volume, affine, order, flips)
    moved_mask, _ = stored(mask, affine, order, flips)
    view = world_view(moved.shape, moved_affine, moved_mask, margin=1)
    np.testing.assert_array_equal(view.volume(moved), reference.volume(volume))
    np.testing.assert_array_equal(view.volume(moved_mask), mask[0:4, 1:5, 2:7])
    np.testing.assert_allclose(view.to_view, reference.to_view, atol=1e-12)
    np.testing.assert_allclose(view.rotation, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(view.zooms, ZOOMS)
    assert (view.shape, view.focus) == (reference.shape, reference.focus)


@pytest.mark.parametrize("flips", list(product((False, True), repeat=3)))
def test_oblique_directions_and_points_follow_the_picture(flips):
    """In an image turned by 20 degrees, what lies along its axes is drawn along the axes of the picture."""
    turn = np.eye(4)
    turn[:3, :3] = rotation(20, 2) @ rotation(-10, 0)
    volume = np.zeros(SHAPE)
    moved, affine = stored(volume, turn @ ras_affine(), (1, 2, 0), flips)
    view = world_view(moved.shape, affine)
    np.testing.assert_allclose(view.directions(turn[:3, :3].T), np.eye(3), atol=1e-12)
    voxel = np.array([3, 1, 4])
    world = turn[:3, :3] @ (ras_affine()[:3, :3] @ voxel + ras_affine()[:3, 3])
    np.testing.assert_allclose(view.points(world[None])[0], (voxel + 0.5) * ZOOMS, atol=1e-9)


def test_slices_have_left_on_the_left_and_front_up():
    volume = np.zeros((2, 3, 4))
    volume[0, 2, 3] = 1.0  # left, front, top
    expected = {"sagittal": (3, 2), "coronal": (3, 0), "axial": (2, 0)}  # row from below, column
    for plane in PLANES:
        index = int(np.argwhere(volume)[0][plane.axis])
        image = slice_of(volume, Cut(plane, index))
        assert tuple(np.argwhere(image)[0]) == expected[plane.name]


def test_planes_face_the_viewer():
    for plane in PLANES:
        towards = np.cross(np.eye(3)[plane.right], np.eye(3)[plane.up])
        assert towards[plane.axis] == plane.towards_viewer


def test_a_slab_is_drawn_in_the_only_plane_it_fills():
    view = world_view((40, 40, 2), np.eye(4))
    assert [cut.plane.name for cut in view.cuts()] == ["axial", "axial"]
    assert [cut.index for cut in view.cuts()] == [0, 1]
    assert len(world_view((10, 10, 10), np.eye(4)).cuts()) == 3


def test_an_empty_mask_shows_the_whole_image():
    view = world_view(SHAPE, ras_affine(), np.zeros(SHAPE, bool))
    assert view.shape == SHAPE


def test_panels_never_overlap_and_stay_inside():
    rows = [
        Row([1.0, 1.3, 0.7], title="a"),
        Row([0.5], max_height=2.0, margin_right=0.9),
        Row([1.6, 1.6], padding=(0.8, 0.1, 0.5, 0.1), titles=["b", "c"]),
    ]
    figure, axes = gallery(rows)
    boxes = [ax.get_position() for row in axes for ax in row]
    assert [len(row) for row in axes] == [3, 1, 2]
    for number, box in enumerate(boxes):
        assert 0 <= box.x0 < box.x1 <= 1 and 0 <= box.y0 < box.y1 <= 1
        for other in boxes[:number]:
            apart = box.x1 <= other.x0 or other.x1 <= box.x0 or box.y1 <= other.y0 or other.y1 <= box.y0
            assert apart
    width, height = figure.get_size_inches()
    for ax, aspect in zip(axes[0], rows[0].aspects, strict=True):
        box = ax.get_position()
        assert box.width * width / (box.height * height) == pytest.approx(aspect)
