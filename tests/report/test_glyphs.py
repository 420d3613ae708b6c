"""Glyphs, sticks and streamlines: right place, right direction, right colour."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from shd_bids.report import glyphs
from shd_bids.report.view import PLANES, Cut, world_view
from shd_bids.sphere.harmonics import sh_basis

AXIAL = PLANES[2]
RED, GREEN, BLUE = np.eye(3)


def lobe(direction, l_max: int = 8) -> np.ndarray:
    """Give the SH coefficients of an even delta along a direction."""
    return sh_basis(np.atleast_2d(direction), l_max)[0]


def one_voxel_view(affine=None):
    """Give a 3x3x3 view with one fODF in its middle: the view, the cut and the row numbers of the slice."""
    view = world_view((3, 3, 3), np.eye(4) if affine is None else affine)
    rows = np.full((3, 3), -1)
    rows[1, 1] = 0
    return view, Cut(AXIAL, 1), rows


def test_sphere_mesh_is_closed_even_and_faces_outward():
    points, faces = glyphs.sphere_mesh()
    edges = {tuple(sorted(edge)) for face in faces for edge in zip(face, np.roll(face, 1), strict=True)}
    assert len(points) - len(edges) + len(faces) == 2  # Euler
    np.testing.assert_allclose(np.linalg.norm(points, axis=1), 1, atol=1e-12)
    np.testing.assert_allclose(np.max(points @ -points.T, axis=1), 1, atol=1e-12)  # every point has its opposite
    a, b, c = points[faces].transpose(1, 0, 2)
    assert (np.einsum("ij,ij->i", np.cross(b - a, c - a), a) > 0).all()


@pytest.mark.parametrize(("direction", "colour"), [([1, 0, 0], 0), ([0, 1, 0], 1), ([0, 0, 1], 2)])
def test_dec_colours_follow_the_world_axes(direction, colour):
    coefficients = lobe(direction)[None]
    rows = np.array([[0, -1]])
    image = glyphs.dec_image(coefficients, rows, top=float(coefficients[0, 0]))
    assert image.shape == (1, 2, 3)
    assert np.argmax(image[0, 0]) == colour
    assert image[0, 0, colour] > 2 * np.delete(image[0, 0], colour).max()
    assert not image[0, 1].any()


def drawn_vertices(ax) -> np.ndarray:
    return np.concatenate([path.vertices for path in ax.collections[0].get_paths()])


def test_glyph_points_along_its_fibre():
    view, cut, rows = one_voxel_view()
    ax = Figure().add_subplot()
    glyphs.draw_glyphs(ax, view, cut, lobe([1, 1, 0])[None], rows, (0, 3, 0, 3))
    away = drawn_vertices(ax) - 1.5
    values, axes = np.linalg.eigh(away.T @ away)
    np.testing.assert_allclose(np.abs(axes[:, 1]), np.sqrt([0.5, 0.5]), atol=0.02)
    assert axes[0, 1] * axes[1, 1] > 0
    assert values[1] > 5 * values[0]


def test_glyph_of_an_oblique_image_is_drawn_in_its_picture():
    """A fibre along the first axis of an image turned by 30 degrees lies level in the picture."""
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(np.pi / 6), -np.sin(np.pi / 6)], [np.sin(np.pi / 6), np.cos(np.pi / 6)]]
    view, cut, rows = one_voxel_view(turn)
    ax = Figure().add_subplot()
    glyphs.draw_glyphs(ax, view, cut, lobe(turn[:3, 0])[None], rows, (0, 3, 0, 3))
    away = drawn_vertices(ax) - 1.5
    _, axes = np.linalg.eigh(away.T @ away)
    np.testing.assert_allclose(np.abs(axes[:, 1]), [1, 0], atol=0.02)


@pytest.mark.parametrize("plane", PLANES)
def test_the_near_lobe_is_drawn_last(plane):
    """Of a fibre that points to the right and at the viewer, the right end hides the left one."""
    view, _, rows = one_voxel_view()
    direction = np.zeros(3)
    direction[[plane.right, plane.axis]] = 1, plane.towards_viewer
    ax = Figure().add_subplot()
    glyphs.draw_glyphs(ax, view, Cut(plane, 1), lobe(direction)[None], rows, (0, 3, 0, 3))
    centres = np.array([path.vertices.mean(axis=0) for path in ax.collections[0].get_paths()])
    assert centres[0, 0] < 1.5 < centres[-1, 0]


def test_glyphs_keep_their_scale_and_cut_the_strongest():
    view, cut, _ = one_voxel_view()
    rows = np.arange(9).reshape(3, 3)
    coefficients = np.repeat(lobe([1, 0, 0])[None], 9, axis=0)
    coefficients[0] *= 0.5
    coefficients[8] *= 100
    ax = Figure().add_subplot()
    glyphs.draw_glyphs(ax, view, cut, coefficients, rows, (0, 3, 0, 3))
    places = drawn_vertices(ax)
    assert places.min() > -0.5
    assert places.max() < 3.5


def test_sticks_lie_on_their_peak_with_its_length_and_colour():
    view, cut, rows = one_voxel_view()
    directions = np.zeros((1, 3, 3))
    directions[0, :2] = [RED, GREEN]
    amplitudes = np.array([[1.0, 0.5, 0.0]])
    ax = Figure().add_subplot()
    glyphs.draw_sticks(ax, view, cut, (directions, amplitudes), rows, scale=1.0, width=1.0)
    lines = np.array(ax.collections[0].get_segments())
    spans = lines[:, 1] - lines[:, 0]
    np.testing.assert_allclose(lines.mean(axis=1), [[1.5, 1.5]] * 2)
    np.testing.assert_allclose(spans, [[0, 0.55], [1.1, 0]], atol=1e-12)  # the stronger one last, on top
    np.testing.assert_allclose(ax.collections[0].get_colors()[:, :3], [GREEN, RED])


def test_segments_are_thinned_coloured_and_drawn_near_last():
    view, _, _ = one_voxel_view()
    lines = [np.array([[0, 0, z], [2, 0, z]], float) for z in (2.0, 0.0, 1.0)] + [np.zeros((1, 3))]
    segments, colours = glyphs.cut_to_segments(view, lines, n_streamlines=10, n_segments=10)
    assert segments.shape == (3, 2, 3)
    np.testing.assert_allclose(colours, np.tile(RED, (3, 1)))
    np.testing.assert_allclose(segments[0], [[0.5, 0.5, 2.5], [2.5, 0.5, 2.5]])
    ax = Figure().add_subplot()
    glyphs.draw_segments(ax, AXIAL, segments, colours, width=1.0)
    reds = ax.collections[0].get_colors()[:, 0]
    assert reds[0] < reds[1] < reds[2] == 1.0  # the top of the head is nearest


def test_thinning_keeps_the_ends_of_a_streamline():
    view, _, _ = one_voxel_view()
    line = np.stack([np.linspace(0, 2, 1001), np.zeros(1001), np.zeros(1001)], axis=1)
    segments, _ = glyphs.cut_to_segments(view, [line] * 50, n_streamlines=20, n_segments=100)
    assert len(segments) <= 100 + 20
    assert segments[:, :, 0].min() == pytest.approx(0.5)
    assert segments[:, :, 0].max() == pytest.approx(2.5)


def test_outline_follows_voxel_edges():
    view, _, _ = one_voxel_view()
    inside = np.zeros((3, 3), bool)
    inside[1, 1:] = True
    ax = Figure().add_subplot()
    glyphs.draw_outline(ax, view, AXIAL, inside, colour="red", width=1.0)
    lines = np.array(ax.collections[0].get_segments())
    assert len(lines) == 6  # the rim of two pixels side by side
    np.testing.assert_allclose(lines.reshape(-1, 2).min(axis=0), [1, 1])
    np.testing.assert_allclose(lines.reshape(-1, 2).max(axis=0), [3, 2])
