"""The threshold of peaks: it follows the fluid between its bounds."""

import numpy as np
import pytest

from shd_bids.peaks.measures import largest_peak
from shd_bids.peaks.threshold import noise_threshold
from tests.peaks.fods import lobes


def test_noise_threshold_follows_the_fluid(rng):
    """What 95 percent of the spurious lobes stay below, within 2 and 15 percent of the white-matter lobe."""
    n = 400
    axes = rng.normal(size=(n, 1, 3))
    axes /= np.linalg.norm(axes, axis=2, keepdims=True)
    white = lobes(axes, np.ones((n, 1)), 8)
    wm = np.repeat([1.0, 0.0], n)
    reference = np.median(largest_peak(white).heights)
    for scale, expected in ((0.05, 0.05), (0.001, 0.02), (0.5, 0.15)):
        both = np.concatenate([white, scale * white])
        assert noise_threshold(both, 1 - wm, wm_fraction=wm) == pytest.approx(expected * reference, rel=0.01)
    spread = np.concatenate([white, np.linspace(0, 0.1, n)[:, None] * white])
    assert noise_threshold(spread, 1 - wm, wm_fraction=wm) == pytest.approx(0.095 * reference, rel=0.01)
    assert noise_threshold(white, np.zeros(n), wm_fraction=np.ones(n)) == pytest.approx(0.02 * reference, rel=0.01)


def test_grey_matter_that_counts_as_fibres_is_no_reference(rng):
    axes = rng.normal(size=(300, 1, 3))
    axes /= np.linalg.norm(axes, axis=2, keepdims=True)
    white = lobes(axes, np.ones((300, 1)), 8)
    grey = 0.05 * white + np.eye(1, white.shape[1]) * white[:, :1]
    fluid = 0.1 * white[:50]
    csf = np.repeat([0.0, 1.0], [600, 50])
    threshold = noise_threshold(np.concatenate([white, grey, fluid]), csf, wm_fraction=1 - csf)
    assert threshold == pytest.approx(0.1 * np.median(largest_peak(white).heights), rel=0.02)
