"""The simulated volumes of bundles that disperse, and the figures of the peaks found in them."""

import numpy as np
import pytest

from tests.benchmarks import counts, dispersed

GRADIENTS = dispersed.make_gradients("b1000")


def at(*degrees):
    """Return axes in the x-y plane at the given angles, (1, k, 3)."""
    angle = np.radians(degrees)
    return np.stack([np.cos(angle), np.sin(angle), np.zeros_like(angle)], axis=1)[None]


@pytest.fixture(scope="module")
def volume():
    return dispersed.make_volume("b1000", 1e6, seed=3, side=4)


@pytest.mark.parametrize("spread", [(8.0, 8.0), (20.0, 8.0), (4.0, 24.0)])
def test_sticks_spread_as_asked_about_z(rng, spread):
    sticks = dispersed.draw_sticks(rng, spread, 20_000)
    offsets = np.degrees(np.arctan2(np.linalg.norm(sticks[:, :2], axis=1), sticks[:, 2]))[:, None] * (
        sticks[:, :2] / np.linalg.norm(sticks[:, :2], axis=1, keepdims=True)
    )
    np.testing.assert_allclose(np.linalg.norm(sticks, axis=1), 1, atol=1e-12)
    np.testing.assert_allclose(offsets.std(axis=0), spread, rtol=0.03)
    np.testing.assert_allclose(sticks.mean(axis=0)[:2], 0, atol=1e-12)


def test_a_bent_bundle_turns_by_its_length_over_its_radius():
    angle = np.array([0.0, 0.1, 0.4])
    on_arc = np.stack([6 * np.cos(angle) - 6, 0 * angle, 6 * np.sin(angle)], axis=1)
    turned = dispersed.tangents(on_arc, 6.0)
    np.testing.assert_allclose(turned, np.stack([-np.sin(angle), 0 * angle, np.cos(angle)], axis=1), atol=1e-12)
    np.testing.assert_array_equal(dispersed.tangents(on_arc, np.inf), [[0, 0, 1]] * 3)


def test_signal_falls_most_along_the_bundle():
    micro = dispersed.Microstructure(axonal=0.55, along_axons=2.2e-3, along=1.6e-3, across=0.6e-3)
    signal = micro.signal(np.array([[0.0, 0.0, 1.0]]), GRADIENTS)
    np.testing.assert_allclose(signal[GRADIENTS.b0_indices], 1)
    shell = GRADIENTS.shells[1].indices
    order = np.argsort(np.abs(GRADIENTS.directions[shell, 2]))
    assert (np.diff(signal[shell][order]) <= 0).all()


def test_directions_of_a_protocol_are_spread_and_fixed():
    again = dispersed.make_gradients("b1000")
    np.testing.assert_array_equal(again.directions, GRADIENTS.directions)
    shell = GRADIENTS.directions[GRADIENTS.shells[1].indices]
    cosine = np.abs(shell @ shell.T) - np.eye(len(shell))
    assert np.degrees(np.arccos(cosine.max())) > 20, "32 axes spread evenly lie 26 degrees apart"


def test_regions_share_no_voxel_and_their_axes_are_unit(volume):
    rows = np.concatenate([volume.rows(region) for region in volume.regions])
    assert sorted(rows) == list(range(volume.scored.sum()))
    assert {c.name for c in dispersed.CONFIGURATIONS} < {region.name for region in volume.regions}
    for region in volume.regions:
        assert region.axes.shape[::2] == (len(region.voxels), 3)
        np.testing.assert_allclose(np.linalg.norm(region.axes, axis=2), 1, atol=1e-9)


def test_a_volume_holds_the_configurations_given():
    what = dispersed.Configuration("crossing 41", ((9, 9), (9, 9)), 41, (0.6, 0.4))
    given = dispersed.make_volume("b1000", 1e6, seed=3, side=4, configurations=[what])
    assert [region.name for region in given.regions] == ["crossing 41", "single 8x8", "grey matter", "CSF"]
    first, second = given.regions[0].axes[0]
    assert np.degrees(np.arccos(first @ second)) == pytest.approx(41)


def test_axes_of_a_crossing_enclose_its_angle(volume):
    by_name = {region.name: region for region in volume.regions}
    for what in dispersed.CROSSING:
        axes = by_name[what.name].axes
        np.testing.assert_allclose(counts.angles(axes[:, :1], axes[:, 1:]), what.angle, atol=1e-4)


def test_signal_of_a_region_is_that_of_its_axes(volume):
    """Without noise the volume that is weighted nearest along the axis of a single bundle is the darkest."""
    signal = volume.signal[volume.scored]
    shell = GRADIENTS.shells[1].indices
    for region in volume.regions:
        if region.axes.shape[1] == 1:
            along = np.abs(region.axes[:, 0] @ GRADIENTS.directions[shell].T)  # (n, N)
            correlation = [
                np.corrcoef(a**2, s)[0, 1] for a, s in zip(along, signal[volume.rows(region)][:, shell], strict=True)
            ]
            assert max(correlation) < -0.9, region.name


def test_noise_is_one_over_the_ratio():
    volume = dispersed.make_volume("b1000", 20, seed=3, side=3)
    (fluid,) = (region for region in volume.regions if region.name == "CSF")
    b0 = volume.signal[volume.scored][volume.rows(fluid)][:, GRADIENTS.b0_indices]
    assert b0.std() == pytest.approx(1000 / 20, rel=0.1)


@pytest.mark.parametrize(
    "rule, kept",
    [
        ({}, [True, True, True]),
        ({"relative": 0.4}, [True, True, False]),
        ({"absolute": 0.6}, [True, False, False]),
        ({"separation": 15.0}, [True, False, True]),
        ({"most": 2}, [True, True, False]),
    ],
)
def test_peaks_are_kept_by_size_and_distance(rule, kept):
    rule = {"relative": 0.0, "absolute": 0.0, "separation": 0.0, "most": 5} | rule
    found = counts.keep_peaks(at(0, 10, 70), np.array([[1.0, 0.5, 0.3]]), **rule)
    assert found.tolist() == [kept]


def test_a_peak_near_one_that_went_is_kept():
    rule = {"relative": 0.0, "absolute": 0.0, "separation": 15.0, "most": 5}
    found = counts.keep_peaks(at(0, 10, 20), np.array([[1.0, 0.5, 0.3]]), **rule)
    assert found.tolist() == [[True, False, True]]


def test_one_bundle_is_found_by_exactly_one_peak():
    one = counts.measure(np.concatenate([at(5), np.zeros((1, 1, 3))], axis=1), at(0))
    two = counts.measure(at(5, 60), at(0))
    none = counts.measure(np.zeros((1, 2, 3)), at(0))
    assert [m["one_peak"].item() for m in (one, two, none)] == [True, False, False]
    np.testing.assert_allclose([m["first_error"].item() for m in (one, two, none)], [5, 5, 90])


@pytest.mark.parametrize(
    "peaks, axes, both, exactly",
    [
        ((3, 87), (0, 90), True, True),
        ((3, 25), (0, 90), False, True),
        ((3, 12), (0, 30), False, True),  # the second lies nearer to the first axis
        ((3, 50, 87), (0, 90), True, False),
        ((10, 10), (0, 20), False, True),
    ],
)
def test_two_bundles_need_a_peak_each(peaks, axes, both, exactly):
    figures = counts.measure(at(*peaks), at(*axes))
    assert (figures["both_found"].item(), figures["exactly_two"].item()) == (both, exactly)


def test_without_a_bundle_any_peak_counts():
    assert counts.measure(at(3), np.zeros((1, 0, 3)))["with_peak"].tolist() == [True]
    assert counts.measure(np.zeros((1, 2, 3)), np.zeros((1, 0, 3)))["with_peak"].tolist() == [False]


def test_volumes_are_pooled_by_their_voxels():
    few, many = ({"one_peak": np.full(n, v), "first_error": np.arange(n)} for n, v in ((1, True), (3, False)))
    assert counts.pool([few, many]) == {"one_peak": 0.25, "first_error": 0.5}


def tensor(*eigenvalues):
    """Return a tensor with these eigenvalues along x, y and z, um2/ms."""
    return np.diag(eigenvalues) * 1e-3


def test_tissues_are_told_by_their_tensors():
    tensors = np.stack([tensor(1.7, 0.3, 0.3), tensor(0.8, 0.8, 0.8), tensor(3, 3, 3), tensor(2.5, 1.2, 1.2)])
    found = counts.tissues(tensors)
    assert {tissue: np.flatnonzero(which).tolist() for tissue, which in found.items()} == {
        "white matter": [0],
        "grey matter": [1],
        "CSF": [2],
    }


def test_peaks_of_a_scan_are_compared_with_tensors():
    tensors = np.stack([tensor(1.9, 0.15, 0.15), tensor(1.7, 0.4, 0.4), tensor(0.8, 0.8, 0.8)])
    directions = np.zeros((3, 3, 3))
    directions[0], directions[1, 0] = at(10, 40, 90), at(20)
    found = counts.measure_scan(directions, tensors)
    assert found["FA 0.8-1.0"]["one_peak"].tolist() == [False]
    assert found["FA 0.6-0.8"]["one_peak"].tolist() == [True]
    np.testing.assert_allclose(found["FA above 0.6"]["first_error"], [10, 20])
    assert found["white matter"]["three_peaks"].tolist() == [True, False]
    assert found["grey matter"]["with_peak"].tolist() == [False]
    assert not len(found["CSF"]["with_peak"])


@pytest.mark.slow
def test_halves_part_each_shell_and_share_b0():
    gradients = dispersed.make_gradients("ABCD")
    one, other = counts.odd_and_even(gradients)
    assert sorted({*one, *other}) == list(range(gradients.n_volumes))
    np.testing.assert_array_equal(np.intersect1d(one, other), gradients.b0_indices)
    for shell in gradients.shells[1:]:
        assert abs(np.isin(shell.indices, one).sum() - np.isin(shell.indices, other).sum()) <= 1


def test_halves_agree_in_the_number_and_the_largest_of_their_peaks():
    one = np.concatenate([at(0, 60), at(0, 60)])
    other = np.concatenate([at(7, 50), at(40, 50)])
    other[1, 1] = 0
    found = counts.measure_halves(one, other)
    np.testing.assert_allclose(found["first_error"], [7, 40])
    assert found["same_count"].tolist() == [True, False]


def test_peaks_of_a_half_are_compared_with_the_tensors_of_the_other():
    x, y = tensor(1.9, 0.15, 0.15), tensor(0.15, 1.9, 0.15)
    one, other = (np.concatenate([at(degrees) for degrees in half]) for half in ((10, 20, 0), (0, 30, 0)))
    tensors = np.stack([x, x, tensor(0.8, 0.8, 0.8)])  # the last is no single fibre
    found = counts.measure_across((one, other), (np.stack([x, x, x]), np.stack([x, y, x])), tensors)
    np.testing.assert_allclose(found["first_error"], [10, 20, 0, 60])


def test_correlation_knows_neither_size_nor_mean_nor_degrees_above_eight(rng):
    one = rng.normal(size=(5, 91))
    other = 3 * one
    other[:, 0], other[:, 45:] = 7, 0
    np.testing.assert_allclose(counts.correlation(one, other), 1)
    np.testing.assert_allclose(counts.correlation(one, -other), -1)
    np.testing.assert_array_equal(counts.correlation(one, 0 * other), 0)
    assert np.abs(counts.correlation(one, rng.normal(size=(5, 45)))).max() < 0.8
