"""The mean response: free of gains, unmoved by spoilt series, kept where tissues are missing."""

import numpy as np
import pytest

from shd_bids.errors import InputError
from shd_bids.response.mean import mean_responses
from shd_bids.response.response import Response, Responses

BVALUES = np.array([0.0, 1000, 2000])
WM = np.array([[900.0, 0, 0], [500, -120, 20], [320, -130, 40]])
GM = np.array([[1100.0], [500], [260]])
CSF = np.array([[3000.0], [150], [20]])


def member(gain=1.0, *, wm=WM, gm=GM, csf=CSF, bvalues=BVALUES):
    tissues = {"wm": wm, "gm": gm, "csf": csf}
    return Responses(**{
        tissue: Response(tissue, bvalues, gain * rows) for tissue, rows in tissues.items() if rows is not None
    })  # fmt: skip


def noisy(rng, gain, scatter=0.02):
    return member(gain, **{
        name: rows * np.exp(scatter * rng.normal(size=rows.shape))
        for name, rows in (("wm", WM), ("gm", GM), ("csf", CSF))
    })  # fmt: skip


def test_gains_alone_leave_the_response_of_a_median_series():
    gains = np.array([0.5, 1.0, 1.3, 2.0, 7.0])
    mean = mean_responses([member(gain) for gain in gains])
    for response, rows in zip(mean.responses.tissues, (WM, GM, CSF), strict=True):
        np.testing.assert_allclose(response.coefficients, 1.3 * rows, rtol=1e-12)
    np.testing.assert_allclose(mean.gain, gains / 1.3, rtol=1e-12)
    assert not mean.is_outlier.any() and mean.distance.max() < 1e-12


def test_the_mean_follows_the_gain_of_all_and_not_that_of_one(rng):
    members = [noisy(rng, gain) for gain in np.exp(0.05 * rng.normal(size=9))]
    mean = mean_responses(members)
    scaled = mean_responses([Responses(*(r.scaled(1.7) for r in one.tissues)) for one in members])
    one_scaled = mean_responses([Responses(*(r.scaled(1.7) for r in members[0].tissues)), *members[1:]])
    for before, after, moved in zip(*(m.responses.tissues for m in (mean, scaled, one_scaled)), strict=True):
        np.testing.assert_allclose(after.coefficients, 1.7 * before.coefficients, rtol=1e-9)
        np.testing.assert_allclose(moved.coefficients, before.coefficients, rtol=0.05)
    assert one_scaled.gain[0] / mean.gain[0] == pytest.approx(1.7, rel=0.05)


def test_a_spoilt_series_is_left_out_and_changes_nothing(rng):
    good = [noisy(rng, 1.0) for _ in range(7)]
    spoilt = member(wm=WM * [[1, 1, 1], [1, 0.1, 0], [2, 0.1, 0]], csf=CSF * [[1], [3], [9]])
    mean = mean_responses([*good[:3], spoilt, *good[3:]])
    assert mean.is_outlier.tolist() == [False] * 3 + [True] + [False] * 4
    assert mean.distance[3] > 5 * np.delete(mean.distance, 3).max()
    alone = mean_responses(good)
    for found, expected in zip(mean.responses.tissues, alone.responses.tissues, strict=True):
        np.testing.assert_allclose(found.coefficients, expected.coefficients, rtol=1e-12)


def test_many_series_give_the_response_they_scatter_about(rng):
    found = mean_responses([noisy(rng, np.exp(0.3 * rng.normal()), scatter=0.1) for _ in range(400)]).responses
    for response, rows in zip(found.tissues, (WM, GM, CSF), strict=True):
        ratio = response.coefficients / response.coefficients[0, 0]
        np.testing.assert_allclose(ratio, rows / rows[0, 0], rtol=0.05)


def test_three_series_are_too_few_to_leave_one_out():
    assert not mean_responses([member(), member(), member(csf=CSF[::-1])]).is_outlier.any()


@pytest.mark.parametrize(("n_without", "is_kept"), [(2, True), (3, False)])
def test_a_tissue_is_kept_that_most_series_have(n_without, is_kept):
    mean = mean_responses([member(csf=None)] * n_without + [member()] * (5 - n_without))
    assert (mean.responses.csf is not None) == is_kept
    assert mean.responses.gm is not None and np.isfinite(mean.distance).all()


def test_series_with_fewer_degrees_count_as_flat_above():
    mean = mean_responses([member(), member(), member(wm=WM[:, :2])])
    np.testing.assert_allclose(mean.responses.wm.coefficients, WM, rtol=1e-12)


def test_shells_must_be_equal_in_number():
    with pytest.raises(InputError, match="same shells"):
        mean_responses([member(), member(bvalues=BVALUES[:2], wm=WM[:2], gm=GM[:2], csf=CSF[:2])])
    with pytest.raises(InputError, match="at least one"):
        mean_responses([])
