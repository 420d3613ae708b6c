"""Directions in a slice: fODF surfaces, peaks as sticks, streamlines; coloured by world axes, far things first."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection

from shd_bids.report.view import Cut, Plane, WorldView
from shd_bids.sphere.harmonics import l_max_of, sh_basis

Window = tuple[float, float, float, float]
"""Left, right, bottom, top of a part of a panel in mm."""

TINY = np.finfo(np.float64).tiny


def dec_image(coefficients: np.ndarray, rows: np.ndarray, top: float) -> np.ndarray:
    r"""Return a slice coloured by direction: hue of :math:`\int |u| f(u) du`, brightness by the fODF's integral.

    Parameters
    ----------
    coefficients : array, shape (n, C)
        SH coefficients in mask order.
    rows : int array, shape (up, right)
        Row of ``coefficients`` of each pixel, -1 outside the mask.
    top : float
        First coefficient drawn at full brightness.

    Returns
    -------
    array, shape (up, right, 3)
        In 0..1; after Dhollander et al., "Panchromatic sharpening of FOD-based DEC maps", ISMRM 2015.
    """
    image = np.zeros((*rows.shape, 3))
    inside = rows >= 0
    if inside.any():
        points, _ = sphere_mesh()
        mean = _amplitudes(coefficients, rows[inside], points) @ np.abs(points)
        hue = mean / np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), TINY)
        strength = np.clip(np.nan_to_num(coefficients[rows[inside], 0]) / top, 0, 1)
        image[inside] = hue * strength[:, None]
    return np.clip(image, 0, 1)


def draw_glyphs(
    ax: Axes, view: WorldView, cut: Cut, coefficients: np.ndarray, rows: np.ndarray, window: Window
) -> None:
    """Draw fODF surfaces as shaded triangles, the far ones first; faces turned away are left out.

    All have one scale, at which strong ones fill their voxel; the strongest are cut at 1.25 of it.

    Parameters
    ----------
    coefficients : array, shape (n, C)
        SH coefficients in mask order, world axes.
    rows : int array, shape (up, right)
        Row of ``coefficients`` of each pixel of the slice, -1 outside the mask.
    window : tuple of float
        Part of the slice to draw.
    """
    chosen, centres = _places(view, cut, rows, window)
    if not len(chosen):
        return
    plane = cut.plane
    points, faces = sphere_mesh()
    amplitudes = _amplitudes(coefficients, chosen, points).astype(np.float32)
    largest = amplitudes.max(axis=1)
    unit = float(np.percentile(largest, 85)) or 1.0
    radius = 0.62 * _pitch(view, plane) * amplitudes / unit / np.maximum(largest / unit / 1.25, 1)[:, None]

    seen = view.directions(points)[:, [plane.right, plane.up, plane.axis]].astype(np.float32)
    seen[:, 2] *= plane.towards_viewer
    corners = (radius[..., None] * seen)[:, faces]  # (glyphs, faces, 3 corners, 3)
    normals = np.cross(corners[:, :, 1] - corners[:, :, 0], corners[:, :, 2] - corners[:, :, 0])
    length = np.linalg.norm(normals, axis=2)
    smallest = (0.02 * _pitch(view, plane)) ** 2  # such a face covers a sixth of a pixel
    glyph, face = np.nonzero((normals[..., 2] > 0) & (length > smallest))
    near_last = np.argsort(corners[glyph, face, :, 2].mean(axis=1), kind="stable")
    glyph, face = glyph[near_last], face[near_last]
    light = 0.4 + 0.6 * normals[glyph, face, 2] / length[glyph, face]
    colours = _hue(points[faces].mean(axis=1))[face] * light[:, None]
    polygons = corners[glyph, face, :, :2] + centres[glyph][:, None]
    style = {"edgecolors": "face", "linewidths": 0.15}  # a hair of edge closes the seams between triangles
    ax.add_collection(PolyCollection(polygons, facecolors=np.clip(colours, 0, 1), **style), autolim=False)


def draw_sticks(
    ax: Axes,
    view: WorldView,
    cut: Cut,
    peaks: tuple[np.ndarray, np.ndarray],
    rows: np.ndarray,
    *,
    scale: float,
    width: float,
    window: Window | None = None,
) -> None:
    """Draw peaks as centred lines, those along the line of sight short, the strong ones last.

    Parameters
    ----------
    peaks : directions (n, K, 3) and amplitudes (n, K)
        In mask order, world axes; amplitude 0 where there is none.
    rows : int array, shape (up, right)
        Row of the peaks of each pixel of the slice, -1 outside the mask.
    scale : float
        Amplitude that fills a voxel.
    width : float
        Of the lines, in points.
    window : tuple of float, optional
        Part of the slice to draw.
    """
    chosen, centres = _places(view, cut, rows, window)
    world, size = np.asarray(peaks[0][chosen], float), np.nan_to_num(np.asarray(peaks[1][chosen], float))
    voxel, number = np.nonzero((size > 0) & (np.linalg.norm(world, axis=2) > 0))
    if not len(voxel):
        return
    strong_last = np.argsort(size[voxel, number])
    voxel, number = voxel[strong_last], number[strong_last]
    world, size = world[voxel, number], size[voxel, number]
    half = 0.55 * _pitch(view, cut.plane) * np.minimum(size / scale, 1.2)
    flat = view.directions(world)[:, [cut.plane.right, cut.plane.up]] * half[:, None]
    lines = np.stack([centres[voxel] - flat, centres[voxel] + flat], axis=1)
    ax.add_collection(
        LineCollection(list(lines), colors=_hue(world), linewidths=width, capstyle="round"), autolim=False
    )


def cut_to_segments(
    view: WorldView, streamlines: Sequence[np.ndarray], *, n_streamlines: int, n_segments: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return streamlines thinned to a drawable number of segments.

    Parameters
    ----------
    streamlines : sequence of array, shape (points, 3)
        World mm.
    n_streamlines, n_segments : int
        At most so many are kept, evenly spaced.

    Returns
    -------
    segments : array, shape (n, 2, 3)
        View mm.
    colours : array, shape (n, 3)
        By world direction.
    """
    if not len(streamlines):
        return np.empty((0, 2, 3)), np.empty((0, 3))
    picks = np.unique(np.linspace(0, len(streamlines) - 1, min(len(streamlines), n_streamlines)).astype(int))
    lines = [np.asarray(streamlines[int(pick)], float) for pick in picks]
    step = max(1, -(-sum(len(line) for line in lines) // n_segments))
    pieces = [line[np.unique(np.r_[0 : len(line) : step, len(line) - 1])] for line in lines if len(line) > 1]
    if not pieces:
        return np.empty((0, 2, 3)), np.empty((0, 3))
    world = np.concatenate([np.stack([piece[:-1], piece[1:]], axis=1) for piece in pieces])
    return view.points(world.reshape(-1, 3)).reshape(-1, 2, 3), _hue(world[:, 1] - world[:, 0])


def draw_segments(ax: Axes, plane: Plane, segments: np.ndarray, colours: np.ndarray, *, width: float) -> None:
    """Draw segments (n, 2, 3) of view mm back to front; far ones are darker, so that depth can be read."""
    if not len(segments):
        return
    depth = segments[:, :, plane.axis].mean(axis=1) * plane.towards_viewer
    near_last = np.argsort(depth)
    light = 0.4 + 0.6 * (depth[near_last] - depth.min()) / (np.ptp(depth) or 1.0)
    lines = segments[near_last][:, :, [plane.right, plane.up]]
    ax.add_collection(
        LineCollection(list(lines), colors=colours[near_last] * light[:, None], linewidths=width), autolim=False
    )


def draw_outline(ax: Axes, view: WorldView, plane: Plane, inside: np.ndarray, *, colour: str, width: float) -> None:
    """Draw the border of a binary image, shape (up, right), along its pixel edges."""
    pitch_right, pitch_up = view.zooms[plane.right], view.zooms[plane.up]
    padded = np.pad(inside.astype(np.int8), 1)
    up, right = np.nonzero(np.diff(padded, axis=1)[1:-1])
    upright = np.stack([right * pitch_right, up * pitch_up, right * pitch_right, (up + 1) * pitch_up], axis=1)
    up, right = np.nonzero(np.diff(padded, axis=0)[:, 1:-1])
    level = np.stack([right * pitch_right, up * pitch_up, (right + 1) * pitch_right, up * pitch_up], axis=1)
    lines = np.concatenate([upright, level]).reshape(-1, 2, 2)
    ax.add_collection(LineCollection(list(lines), colors=colour, linewidths=width, capstyle="round"), autolim=False)


@lru_cache(maxsize=1)
def sphere_mesh() -> tuple[np.ndarray, np.ndarray]:
    """Return an icosahedron split three times.

    Returns
    -------
    points : array, shape (642, 3)
        On the unit sphere, with every point its opposite.
    faces : int array, shape (1280, 3)
        Corners, counter-clockwise from outside.
    """
    golden = (1 + np.sqrt(5)) / 2
    rectangle = np.array([(s, t * golden, 0.0) for s in (-1.0, 1.0) for t in (-1.0, 1.0)])
    points = np.concatenate([np.roll(rectangle, turn, axis=1) for turn in range(3)])
    near = np.isclose(np.linalg.norm(points[:, None] - points[None], axis=2), 2.0)
    corners = [(i, j, k) for i in range(12) for j in range(i) for k in range(j) if near[i, j] & near[j, k] & near[i, k]]
    points, faces = points / np.linalg.norm(points[0]), np.array(corners)
    for _ in range(3):
        points, faces = _split(points, faces)
    a, b, c = points[faces].transpose(1, 0, 2)
    inward = np.einsum("ij,ij->i", np.cross(b - a, c - a), a) < 0
    faces[inward] = faces[inward][:, ::-1]
    return points, faces


def _split(points: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return each triangle cut into four at the middles of its edges, pushed out to the sphere."""
    edges = np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), axis=1)
    unique, number = np.unique(edges, axis=0, return_inverse=True)
    middles = points[unique].sum(axis=1)
    middles /= np.linalg.norm(middles, axis=1, keepdims=True)
    i, j, k = faces.T
    ij, jk, ki = len(points) + number.reshape(3, -1)
    parts = [(i, ij, ki), (ij, j, jk), (ki, jk, k), (ij, jk, ki)]
    return np.concatenate([points, middles]), np.concatenate([np.stack(part, axis=1) for part in parts])


def _amplitudes(coefficients: np.ndarray, rows: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return the non-negative part of the fODF of the chosen rows, shape (rows, points)."""
    picked = np.nan_to_num(np.asarray(coefficients[rows], dtype=np.float64))
    return np.clip(picked @ sh_basis(points, l_max_of(picked.shape[1])).T, 0, None)


def _places(view: WorldView, cut: Cut, rows: np.ndarray, window: Window | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of the mask's voxels in a window of a slice and their centres in the panel, mm."""
    up, right = np.nonzero(rows >= 0)
    centres = np.stack([(right + 0.5) * view.zooms[cut.plane.right], (up + 0.5) * view.zooms[cut.plane.up]], axis=1)
    if window is not None:
        left, right_end, bottom, top = window
        x, y = centres.T
        seen = (x > left) & (x < right_end) & (y > bottom) & (y < top)
        up, right, centres = up[seen], right[seen], centres[seen]
    return rows[up, right], centres


def _pitch(view: WorldView, plane: Plane) -> float:
    """Return the smaller voxel side in a plane, mm."""
    return float(min(view.zooms[plane.right], view.zooms[plane.up]))


def _hue(directions: np.ndarray) -> np.ndarray:
    """Return the colours of world directions, shape (n, 3): absolute components, the largest at full brightness."""
    colours = np.abs(directions)
    return colours / np.maximum(colours.max(axis=1, keepdims=True), TINY)
