"""What the view holds says what the maps say: place, direction and size, within the bits spent on them."""

import json

import numpy as np
import pytest

from shd_bids.report.figures import Ground, save_fod_scene, save_peaks_scene, save_tracks_scene
from shd_bids.report.packing import unpacked
from shd_bids.report.scene import MAX_GLYPHS, averaged, pack_glyphs, pack_streamlines
from shd_bids.sphere.harmonics import sh_basis

LAS = np.array([[-2.0, 0, 0, 10], [0, 2, 0, -20], [0, 0, 3, 5], [0, 0, 0, 1]])


@pytest.fixture
def ground():
    mask = np.zeros((7, 8, 6), dtype=bool)
    mask[1:6, 1:7, 1:5] = True
    return Ground(mask, LAS)


def sharp(directions, degree=8):
    """Coefficients of narrow lobes along directions."""
    damping = np.concatenate([np.full(2 * n + 1, np.exp(-0.02 * n * (n + 1))) for n in range(0, degree + 1, 2)])
    return sh_basis(directions, degree) * damping


def test_glyphs_come_back_within_four_percent_of_the_largest_peak(ground):
    generator = np.random.default_rng(1)
    n = np.count_nonzero(ground.mask)
    fibres = generator.normal(size=(n, 3))
    truth = sharp(fibres) * generator.uniform(0.5, 1.5, (n, 1))
    largest = (truth * sh_basis(fibres, 8)).sum(axis=1).max()
    piece = pack_glyphs(ground.view, truth, ground.numbers)
    places = np.cumsum(unpacked(piece["places"]))
    rows = ground.numbers.ravel(order="F")[places]
    amount = (unpacked(piece["amount"]).astype(float) - 1) / 254 * piece["amount_high"]
    shape = unpacked(piece["shape"]) * np.array(piece["scale"])
    back = amount[:, None] * np.concatenate([np.ones((len(rows), 1)), shape], axis=1)
    basis = sh_basis(generator.normal(size=(50, 3)), 8)
    expected = truth[rows] @ basis.T
    assert len(rows) == n
    assert (
        np.abs(back @ basis.T - expected).max() < 0.04 * largest
    )  # 44 coefficients, each off by up to half of 1/127 of its limit


def test_large_images_keep_evenly_spaced_slices(monkeypatch, ground):
    monkeypatch.setattr("shd_bids.report.scene.MAX_GLYPHS", 60)
    coefficients = np.ones((np.count_nonzero(ground.mask), 6))
    piece = pack_glyphs(ground.view, coefficients, ground.numbers)
    assert 0 < len(unpacked(piece["places"])) <= 60 < MAX_GLYPHS
    assert all(focus in kept for focus, kept in zip(ground.view.focus, piece["slices"], strict=True))


def test_a_peak_lies_where_its_voxel_is_and_points_as_it_does(ground, tmp_path):
    n = np.count_nonzero(ground.mask)
    vectors = np.zeros((n, 2, 3))
    place = (2, 5, 3)
    row = np.cumsum(ground.mask).reshape(ground.mask.shape)[place] - 1
    vectors[row, 1] = [0.6, 0, 0.8]
    written = save_peaks_scene(
        tmp_path / "p.json",
        ground=ground,
        vectors=vectors,
        colours=np.ones((n, 3)),
        counts=np.ones(n),
        density=np.ones(n),
    )
    piece = json.loads(written.read_text())
    (number,) = np.cumsum(unpacked(piece["peaks"]["places"]))
    voxel = np.unravel_index(number, piece["grid"]["shape"], order="F")
    point = (np.array(voxel) + 0.5) * piece["grid"]["zooms"]
    world = np.array(piece["grid"]["world"]) @ [*point, 1]
    np.testing.assert_allclose(world[:3], (LAS @ [*place, 1])[:3], atol=1e-4)
    np.testing.assert_allclose(unpacked(piece["peaks"]["directions"])[0] / 127, [0.6, 0, 0.8], atol=0.005)


def test_streamlines_come_back_within_a_tenth_of_a_millimetre(ground):
    line = np.cumsum(np.random.default_rng(2).normal(size=(40, 3)), axis=0)
    piece = pack_streamlines(ground.view, [line, line[:1], line[::-1]])
    counts, moves = unpacked(piece["counts"]), unpacked(piece["moves"])
    np.testing.assert_array_equal(counts, [40, 40])
    back = np.cumsum(moves[:40], axis=0) * piece["unit"]
    np.testing.assert_allclose(back, ground.view.points(line), atol=0.051)


def test_averages_leave_out_what_is_absent():
    values = np.arange(27.0).reshape(3, 3, 3)
    values[0, 0, 0] = np.nan
    coarse = averaged(values, 2)
    assert coarse.shape == (2, 2, 2)
    np.testing.assert_allclose(coarse[0, 0, 0], np.nanmean(values[:2, :2, :2]))
    np.testing.assert_allclose(coarse[1, 1, 1], 26)


def test_nothing_at_all_is_packed_too(tmp_path):
    empty = Ground(np.zeros((4, 4, 4), dtype=bool), np.eye(4))
    none = np.zeros(0)
    save_fod_scene(
        tmp_path / "f.json",
        ground=empty,
        b0=np.ones((4, 4, 4)),
        coefficients=np.zeros((0, 45)),
        fractions=np.zeros((0, 3)),
        quality=dict.fromkeys(("rsquared", "misfit", "residualstd"), none),
        signals={"b = 1000, volume 3": (none, none)},
    )
    save_peaks_scene(
        tmp_path / "p.json",
        ground=empty,
        vectors=np.zeros((0, 3, 3)),
        colours=np.zeros((0, 3)),
        counts=none,
        density=none,
    )
    save_tracks_scene(tmp_path / "t.json", ground=empty, streamlines=[], density=np.zeros((4, 4, 4)))
    assert json.loads((tmp_path / "t.json").read_text())["streamlines"]["counts"]["shape"] == [0]


@pytest.mark.slow
def test_a_whole_brain_of_noise_leaves_room_for_the_pictures(tmp_path):
    """Noise does not compress: no brain of 2 mm with three shells needs more; real ones need half."""
    generator = np.random.default_rng(4)
    place = np.indices((80, 96, 80)) - np.array([39.5, 47.5, 39.5])[:, None, None, None]
    mask = (place**2 / np.array([36.0, 44, 35])[:, None, None, None] ** 2).sum(axis=0) < 1
    n, whole = np.count_nonzero(mask), Ground(mask, np.diag([2.0, 2, 2, 1]))
    quality = {name: generator.random(n) for name in ("rsquared", "misfit", "residualstd")}
    signals = {f"b = {b}": (generator.random(n), generator.random(n)) for b in (1000, 2000, 3000)}
    coefficients = generator.normal(size=(n, 45)) * 0.05 + np.eye(45)[0]
    fractions, b0 = generator.random((n, 3)), generator.random(mask.shape) * mask
    fod = save_fod_scene(
        tmp_path / "f.json",
        ground=whole,
        b0=b0,
        coefficients=coefficients,
        fractions=fractions,
        quality=quality,
        signals=signals,
    )
    peaks = save_peaks_scene(
        tmp_path / "p.json",
        ground=whole,
        vectors=generator.normal(size=(n, 2, 3)),
        colours=generator.random((n, 3)),
        counts=generator.integers(0, 4, n).astype(float),
        density=generator.random(n),
    )
    lines = [np.cumsum(generator.normal(size=(60, 3)), axis=0) for _ in range(4000)]
    tracks = save_tracks_scene(tmp_path / "t.json", ground=whole, streamlines=lines, density=b0)
    assert sum(path.stat().st_size for path in (fod, peaks, tracks)) < 8_500_000
