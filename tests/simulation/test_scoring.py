"""Peak metrics: laws of the score, values known on paper, and equality with a slow loop written from the rules."""

import json

import numpy as np
import pytest

from shd_bids.simulation.scoring import THRESHOLDS, crossing_angle, pooled, score_by_crossing, score_peaks


def _axes(*degrees: float) -> np.ndarray:
    """Axes in the x-y plane at the given angles, (k, 3)."""
    angle = np.radians(degrees)
    return np.stack([np.cos(angle), np.sin(angle), np.zeros_like(angle)], axis=1)


def _random_case(rng: np.random.Generator, n: int = 60) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Truth of 0 to 3 fibres, peaks near some of them and elsewhere, with random signs."""
    truth = rng.normal(size=(n, 3, 3))
    truth /= np.linalg.norm(truth, axis=2, keepdims=True)
    truth *= (np.arange(3) < rng.integers(0, 4, n)[:, None])[..., None]
    near = truth + 0.25 * rng.normal(size=truth.shape)
    peaks = np.concatenate([near, rng.normal(size=(n, 2, 3))], axis=1)
    amplitudes = rng.uniform(0.01, 1, (n, 5)) * (rng.uniform(size=(n, 5)) > 0.3)
    return peaks * np.where(amplitudes > 0, 1.0, 0.0)[..., None], amplitudes, truth


def _slow_counts(peaks, amplitudes, truth, threshold):
    """Count as the rules say, one voxel and one pair at a time."""
    tp = fp = fn = 0
    errors = []
    for p, a, t in zip(peaks, amplitudes, truth, strict=True):
        fibres = [f for f in t if np.linalg.norm(f) > 0]
        if not fibres:
            continue
        kept = [d / np.linalg.norm(d) for d, h in zip(p, a, strict=True) if h > 0 and h > threshold * a.max()]
        angle = [[np.degrees(np.arccos(min(1.0, abs(np.dot(f, d))))) for d in kept] for f in fibres]
        found = 0
        for i in range(len(fibres)):
            for j in range(len(kept)):
                is_row_best = angle[i][j] == min(angle[i])
                is_column_best = angle[i][j] == min(angle[k][j] for k in range(len(fibres)))
                found += is_row_best and is_column_best and angle[i][j] <= 25
        tp, fp, fn = tp + found, fp + len(kept) - found, fn + len(fibres) - found
        errors.append(np.mean([min(row) if row else 90.0 for row in angle]))
    return tp, fp, fn, np.mean(errors)


def test_equals_the_loop_over_voxels(rng):
    peaks, amplitudes, truth = _random_case(rng)
    score = score_peaks(peaks, amplitudes, truth)
    for k, threshold in enumerate(THRESHOLDS):
        tp, fp, fn, error = _slow_counts(peaks, amplitudes, truth, threshold)
        counts = score.true_positives[k], score.false_positives[k], score.false_negatives[k]
        assert counts == (tp, fp, fn), f"at threshold {threshold}"
        assert score.angular_errors[k] == pytest.approx(error, abs=1e-9)


def test_axes_have_no_sign_no_order_and_no_frame(rng):
    """The score depends on neither the signs nor the order of axes, nor on a common rotation."""
    peaks, amplitudes, truth = _random_case(rng)
    reference = score_peaks(peaks, amplitudes, truth).summary()
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    order = rng.permutation(5)
    signs = rng.choice([-1.0, 1.0], size=(*amplitudes.shape, 1))
    other = score_peaks((peaks * signs)[:, order] @ rotation.T, amplitudes[:, order], truth[:, ::-1] @ rotation.T)
    assert other.summary() == pytest.approx(reference, abs=1e-9)


def test_perfect_peaks(rng):
    """The truth itself, in equal amplitudes, scores 1 with no error."""
    _, _, truth = _random_case(rng)
    score = score_peaks(truth, np.linalg.norm(truth, axis=2), truth)
    assert score.pr_area == pytest.approx(1.0)
    assert (score.f1_max, score.fnr, score.fdr, score.empty_hit_rate) == (1.0, 0.0, 0.0, 0.0)
    assert score.angular_error == pytest.approx(0.0, abs=1e-5)


def test_no_peaks(rng):
    """Nothing found: every fibre missed, an error of 90 degrees, and only the triangle between the closing points."""
    _, _, truth = _random_case(rng)
    score = score_peaks(np.zeros((len(truth), 2, 3)), np.zeros((len(truth), 2)), truth)
    assert (score.fnr, score.fdr, score.f1_max, score.angular_error) == (1.0, 0.0, 0.0, 90.0)
    assert score.pr_area == pytest.approx(0.5)  # the straight line from (0, 1) to (1, 0)


def test_known_value():
    """One voxel, fibres at 0 and 90 degrees; peaks at 10 (amplitude 1), 40 (0.52) and 88 (0.3), by hand."""
    score = score_peaks(_axes(10, 40, 88)[None], np.array([[1, 0.52, 0.3]]), _axes(0, 90)[None])
    below, middle, high = THRESHOLDS < 0.3, (THRESHOLDS >= 0.3) & (THRESHOLDS < 0.52), THRESHOLDS >= 0.52
    np.testing.assert_array_equal(score.true_positives, 2 * below + middle + high)
    np.testing.assert_array_equal(score.false_positives, below * 1 + middle * 1)
    # recall 1 with precision 2/3, then recall 1/2 with precision 1/2 and with 1, closed by (1, 0) and (0, 1)
    assert score.pr_area == pytest.approx(0.5 * (2 / 3 + 1 / 2) / 2 + 0.5)
    assert score.f1_max == pytest.approx(4 / 5)
    assert score.angular_error == pytest.approx((10 + 2) / 2)
    assert score.fdr == pytest.approx(1 / 3)


def test_one_peak_finds_one_fibre():
    """A peak between two close fibres is the nearest of both, and counts for one."""
    score = score_peaks(_axes(4)[None], np.ones((1, 1)), _axes(0, 10)[None])
    assert (score.true_positives[0], score.false_positives[0], score.false_negatives[0]) == (1, 0, 1)


def test_limit_of_matching():
    """24.9 degrees is a match, 25.1 is not."""
    for angle, found in ((24.9, 1), (25.1, 0)):
        assert score_peaks(_axes(angle)[None], np.ones((1, 1)), _axes(0)[None]).true_positives[0] == found


def test_false_fibres_in_empty_voxels_are_counted_apart():
    """They change no other number."""
    peaks, amplitudes, truth = _axes(3)[None], np.ones((1, 1)), _axes(0)[None]
    alone = score_peaks(peaks, amplitudes, truth)
    both = score_peaks(
        np.concatenate([peaks, _axes(50)[None], np.zeros((1, 1, 3))]), np.array([[1], [0.2], [0]]), _pad(truth, 2)
    )
    assert both.pr_area == alone.pr_area
    assert both.angular_error == alone.angular_error
    assert (both.n_voxels, both.n_empty_voxels) == (1, 2)
    assert both.empty_hit_rate == 0.5
    assert both.empty_false_fibres_per_voxel == 0.5
    assert alone.empty_false_fibres_per_voxel == 0.0


def _pad(truth: np.ndarray, n: int) -> np.ndarray:
    return np.concatenate([truth, np.zeros((n, *truth.shape[1:]))])


def test_crossing_angle():
    truth = np.stack([_axes(0, 30, 80), np.concatenate([_axes(0, 150), np.zeros((1, 3))])])
    np.testing.assert_allclose(crossing_angle(truth), [30, 30], atol=1e-6)
    assert np.isnan(crossing_angle(_axes(0)[None])).all()
    assert np.isnan(crossing_angle(np.zeros((1, 3, 3)))).all()


def test_bins_of_crossings_share_out_the_counts(rng):
    """Counts of the bins add up to those of all voxels with fibres."""
    peaks, amplitudes, truth = _random_case(rng)
    parts = score_by_crossing(peaks, amplitudes, truth, edges=(0, 20, 45, 90))
    assert set(parts) <= {"single", "0-20", "20-45", "45-90"}
    whole = score_peaks(peaks, amplitudes, truth)
    for name in ("true_positives", "false_positives", "false_negatives"):
        np.testing.assert_array_equal(sum(getattr(part, name) for part in parts.values()), getattr(whole, name))


def test_summary_is_json(rng):
    json.dumps(score_peaks(*_random_case(rng)).summary(), allow_nan=False)


def test_chunks_change_nothing(rng, monkeypatch):
    case = _random_case(rng)
    whole = score_peaks(*case)
    monkeypatch.setattr("shd_bids.simulation.scoring._VOXELS_PER_CHUNK", 7)
    assert score_peaks(*case).summary() == pytest.approx(whole.summary())


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match=r"\(n, G, 3\)"):
        score_peaks(np.zeros((4, 2, 3)), np.zeros((4, 3)), np.zeros((4, 2, 3)))


def test_pooling_parts_equals_scoring_the_whole(rng):
    peaks, amplitudes, truth = _random_case(rng)
    parts = [slice(0, 11), slice(11, 40), slice(40, None)]
    together = pooled([score_peaks(peaks[p], amplitudes[p], truth[p]) for p in parts])
    whole = score_peaks(peaks, amplitudes, truth)
    assert together.summary() == pytest.approx(whole.summary())
    np.testing.assert_array_equal(together.empty_false_fibres, whole.empty_false_fibres)


def test_pooling_wants_equal_thresholds(rng):
    case = _random_case(rng)
    with pytest.raises(ValueError, match="same thresholds"):
        pooled([score_peaks(*case), score_peaks(*case, thresholds=np.array([0.5]))])
    with pytest.raises(ValueError, match="found 0 scores"):
        pooled([])
