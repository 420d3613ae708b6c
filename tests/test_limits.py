"""The ideal observer of two bundles and one."""

import limits
import numpy as np
import pytest
from dispersed import make_gradients

from shd_bids.simulation.dispersion import densities
from shd_bids.sphere.healpix import hemisphere


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


@pytest.mark.parametrize("exponent", [0.8, 1.5, 2.0])
def test_a_flatter_or_more_peaked_profile_keeps_the_covariance(exponent):
    axis, points = np.array([[0.0, 0.0, 1.0]]), hemisphere(32)
    covariance = np.diag([*np.deg2rad([14.0, 7.0]) ** 2, 0.0])[None]
    plain = densities(axis, covariance, points)[0]

    def moments(power: float) -> np.ndarray:
        density = limits.flattened(plain, power)
        return density @ points[:, :2] ** 2 / density.sum()

    np.testing.assert_allclose(moments(exponent), moments(1.0), rtol=0.04)


def test_a_flatter_bundle_is_nearer(signals):
    gaussian, flat = (limits.nearest_bundle(signals, 40.0, 8.0, most_flat=m) for m in (1.0, 4.0))
    assert flat.distance < gaussian.distance
