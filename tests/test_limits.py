"""The ideal observer of two bundles and one."""

import limits
import pytest
from dispersed import make_gradients


@pytest.fixture(scope="module")
def signals():
    return limits.Signals.of(make_gradients("b1000"))


def test_two_bundles_along_one_axis_are_one(signals):
    nearest = limits.nearest_bundle(signals, 0.0, 12.0, most_flat=1.0)
    assert nearest.distance < 1e-4
    assert (nearest.along, nearest.across) == pytest.approx((12.0, 12.0), abs=0.1)
    assert nearest.found(kept_one=0.9, snr=30, n_voxels=1) == pytest.approx(0.1, abs=0.01)


def test_the_nearest_bundle_has_the_second_moments_of_a_narrow_crossing(signals):
    nearest = limits.nearest_bundle(signals, 20.0, 8.0, most_flat=1.0)
    assert (nearest.along, nearest.across) == pytest.approx((164**0.5, 8.0), abs=0.5)


def test_more_voxels_and_less_noise_tell_more(signals):
    nearest = limits.nearest_bundle(signals, 40.0, 8.0, most_flat=1.0)
    shares = [nearest.found(kept_one=0.9, snr=snr, n_voxels=n) for snr, n in ((15, 1), (30, 1), (30, 27))]
    assert 0.1 < shares[0] < shares[1] < shares[2] <= 1.0
    assert nearest.found(kept_one=0.9, snr=60, n_voxels=1) == pytest.approx(
        nearest.found(kept_one=0.9, snr=30, n_voxels=4)
    )


def test_a_flatter_bundle_is_nearer(signals):
    gaussian, flat = (limits.nearest_bundle(signals, 40.0, 8.0, most_flat=m) for m in (1.0, 4.0))
    assert flat.distance < gaussian.distance
