"""Curves show the numbers they are given."""

import itertools

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from shd_bids.report import curves
from shd_bids.report.curves import BAD, GOOD, TISSUE_COLOURS

# Machado et al., IEEE Trans Vis Comput Graph 15 (2009) 1291: what linear RGB becomes without red, green and blue cones.
BLINDNESS = (
    np.eye(3),
    [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
)
XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


@pytest.fixture
def ax():
    return Figure().add_subplot()


def cielab(colour, seen_by):
    """Return CIE L*a*b* of an sRGB colour as it is seen without some cones."""
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    x, y, z = np.cbrt(XYZ @ (np.array(seen_by) @ linear).clip(1e-3, 1) / [0.9505, 1, 1.089])
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("colours", [tuple(TISSUE_COLOURS.values()), (GOOD, BAD)])
@pytest.mark.parametrize("seen_by", BLINDNESS)
def test_colours_differ_for_every_eye(colours, seen_by):
    for first, second in itertools.combinations(colours, 2):
        assert np.linalg.norm(cielab(first, seen_by) - cielab(second, seen_by)) > 40


def test_isotropic_response_is_a_circle_of_its_signal(ax):
    """S = r_0 sqrt(1 / 4 pi) in all directions."""
    curves.draw_response(ax, np.array([[np.sqrt(4 * np.pi) * 7], [np.sqrt(4 * np.pi) * 3]]))
    for line, signal in zip(ax.lines, (7, 3), strict=True):
        np.testing.assert_allclose(np.hypot(*line.get_data()), signal)


def test_response_across_the_fibre_is_to_the_side(ax):
    """A signal lost along the fibre (negative degree 2) is wide to the sides and flat upright."""
    curves.draw_response(ax, np.array([[4.0, -1.0]]))
    x, y = ax.lines[0].get_data()
    p0, p2 = np.sqrt(1 / (4 * np.pi)), np.sqrt(5 / (4 * np.pi))
    assert x.max() == pytest.approx(4 * p0 + 0.5 * p2, rel=1e-3)
    assert y[0] == pytest.approx(4 * p0 - p2)


def test_directions_keep_their_side_and_density(ax):
    """Equal area: a cap of polar angle t has its rim at sqrt(2) sin(t / 2); the equator at 1."""
    angle = np.radians(40)
    directions = np.array(
        [[0, 0, 1.0], [1, 0, 0], [0, np.sin(angle), np.cos(angle)], [0, np.sin(angle), -np.cos(angle)]]
    )
    curves.draw_sphere(ax, directions)
    above, below = (collection.get_offsets() for collection in ax.collections)
    np.testing.assert_allclose(above, [[0, 0], [1, 0], [0, np.sqrt(2) * np.sin(angle / 2)]], atol=1e-12)
    np.testing.assert_allclose(below, [[0, -np.sqrt(2) * np.sin(angle / 2)]], atol=1e-12)  # its opposite is above


@pytest.mark.parametrize(("given", "told"), [(0.9, "as given: the best"), (0.2, "as given: place 2 of 3")])
def test_orientation_check_marks_the_given_table(ax, given, told):
    flip = np.diag([-1.0, 1.0, 1.0])
    scores = [("-x,y,z", flip, 0.5), ("x,y,z", np.eye(3), given), ("x,-y,z", np.diag([1.0, -1, 1]), 0.1)]
    curves.draw_scores(ax, scores)
    bars = [patch for patch in ax.patches if isinstance(patch, Rectangle)]
    heights = [bar.get_height() for bar in bars]
    assert heights == sorted(heights, reverse=True)
    assert told in [text.get_text() for text in ax.texts]
    bold = [label.get_text() for label in ax.get_xticklabels() if label.get_fontweight() == "bold"]
    assert bold == ["x,y,z"]


def test_worst_volumes_are_numbered(ax, rng):
    residuals = 10 + 0.1 * rng.standard_normal(40)
    residuals[[7, 23]] = 15, 14
    curves.draw_volume_residuals(ax, residuals)
    assert {text.get_text() for text in ax.texts} >= {"7", "23"}


def test_even_volumes_are_not_accused(ax):
    curves.draw_volume_residuals(ax, np.full(30, 2.0))
    assert not ax.texts


def test_shell_residuals_as_numbers_and_as_voxels(ax):
    curves.draw_shell_residuals(ax, {"b = 0": 3.0, "b = 1000": 2.0})
    assert [bar.get_height() for bar in ax.patches] == [3.0, 2.0]
    other = Figure().add_subplot()
    curves.draw_shell_residuals(other, {"b = 0": np.arange(50.0), "b = 1000": np.arange(80.0)})
    assert [text.get_text() for text in other.get_legend().get_texts()] == ["b = 0", "b = 1000"]


def test_courses_are_drawn_as_given(ax):
    steps, values = np.array([1, 10, 100]), np.array([1.0, 0.1, 0.01])
    curves.draw_courses(ax, {"training": (steps, values, "red"), "held out": (steps, 2 * values, "blue")})
    np.testing.assert_array_equal(ax.lines[1].get_ydata(), 2 * values)
    assert ax.get_yscale() == "log"


def test_negative_losses_stay_on_a_linear_axis(ax):
    curves.draw_courses(ax, {"training": (np.arange(3), np.array([1.0, -1.0, 0.1]), "red")})
    assert ax.get_yscale() == "linear"
