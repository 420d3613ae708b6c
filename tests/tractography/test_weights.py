"""Laws of the weights of streamlines, on bundles whose truth is known."""

import numpy as np
import pytest
from nibabel.streamlines import ArraySequence
from scipy import sparse

from shd_bids.tractography.fixels import Fixels
from shd_bids.tractography.visits import lengths_in
from shd_bids.tractography.weights import Visits, fit_weights

SIZE = 6  # voxels of 2 mm along each side
AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])


def bundles(n_x: int, n_y: int, rng: np.random.Generator) -> ArraySequence:
    """Lines along x through the low half of z, and along y through the high half, evenly spread."""
    along = np.linspace(-1, 2 * SIZE - 1, 25)
    lines = []
    for axis, n, low in ((0, n_x, -1.0), (1, n_y, SIZE - 1.0)):
        for a, b in zip((np.arange(n) + 0.5) / n * 2 * SIZE - 1, low + rng.permutation(n) / n * SIZE, strict=True):
            line = np.full((len(along), 3), [a, a, b])
            line[:, axis] = along
            lines.append(line.astype(np.float32))
    return ArraySequence(lines)


def two_bundles(density: tuple[float, float] = (1.0, 1.0)) -> Fixels:
    """Every voxel with a lobe along x and one along y; only one has a density in each half of z."""
    mask = np.ones((SIZE, SIZE, SIZE), dtype=bool)
    directions = np.tile(np.eye(3, dtype=np.float32)[:2], (mask.sum(), 1, 1))
    low = np.argwhere(mask)[:, 2] < SIZE // 2
    values = np.where(low[:, None], [density[0], 0], [0, density[1]]).astype(np.float32)
    return Fixels(directions, values, np.ones(mask.sum(), np.float32), mask, AFFINE)


def fit(fixels: Fixels, lines: ArraySequence):
    """Return the weights of lines on fixels."""
    return fit_weights([lengths_in(fixels, lines)], fixels.volumes, fixels.shares)


def test_lengths_are_those_of_the_streamlines_in_the_lobe_along_them():
    """A line along x, one that leaves the image, one between the lobes and one across both."""
    fixels = two_bundles()
    along = np.array([[0, 0, 0], [4, 0, 0]])
    leaving = np.array([[0, 2, 0], [-20, 2, 0]])
    slanted = np.array([[0, 4, 0], [3, 4.6, 0]])
    across = np.array([[0, 0, 0], [0, 0, 4]])
    lines = ArraySequence([line.astype(np.float32) for line in (along, leaving, slanted, across)])
    lengths = lengths_in(fixels, lines)
    np.testing.assert_allclose(lengths.sum(axis=1), [4, 1, np.hypot(3, 0.6), 0], atol=0.3)
    first = lengths.toarray()[0].reshape(SIZE, SIZE, SIZE, 2)
    np.testing.assert_allclose(first[:3, 0, 0, 0], [1, 2, 1], atol=1e-6)
    assert first.sum() == pytest.approx(4)
    assert lengths_in(fixels, ArraySequence()).shape == (0, 2 * SIZE**3)


def test_fixels_of_other_shapes_are_refused():
    fixels = two_bundles()
    with pytest.raises(ValueError, match="expected \\(n, K, 3\\)"):
        Fixels(fixels.directions[1:], fixels.density, fixels.share, fixels.mask, AFFINE)


def test_streamlines_that_reproduce_the_densities_weigh_one(rng):
    lengths = sparse.random_array((300, 200), density=0.1, rng=rng, dtype=np.float32, format="csr")
    volumes = 3.5 * np.asarray(lengths.sum(axis=0))
    found = fit_weights([lengths], volumes, rng.uniform(0.2, 1, 200))
    np.testing.assert_allclose(found.weights, 1, atol=1e-4)
    assert found.mu == pytest.approx(3.5, rel=1e-5)
    assert found.misfit < 1e-5


def test_the_scale_of_the_fodf_changes_only_the_proportion(rng):
    lines = bundles(72, 36, rng)
    one, three = fit(two_bundles((1.0, 0.6)), lines), fit(two_bundles((3.0, 1.8)), lines)
    np.testing.assert_allclose(three.weights, one.weights, rtol=1e-3)
    assert three.mu == pytest.approx(3 * one.mu, rel=1e-5)


def test_a_bundle_sampled_twice_as_densely_gets_half_the_weight(rng):
    found = fit(two_bundles(), bundles(432, 216, rng))
    first, second = found.weights[:432], found.weights[432:]
    assert first.mean() / second.mean() == pytest.approx(0.5, rel=0.02)


def test_the_cross_section_of_a_bundle_is_the_true_one(rng):
    """Proportion times weights is density times area, whatever the sampling; the misfit falls."""
    for n_x, n_y in ((432, 216), (216, 864)):
        found = fit(two_bundles((1.0, 0.5)), bundles(n_x, n_y, rng))
        area = found.mu * np.array([found.weights[:n_x].sum(), found.weights[n_x:].sum()])
        np.testing.assert_allclose(area, np.array([1.0, 0.5]) * 2 * SIZE**2, rtol=0.05)
        assert found.misfit < 0.5 * found.misfit_before


def test_a_minimum_is_found_among_weights_that_are_not_negative(rng):
    """The gradient vanishes where weights are positive; where they fall to zero it does not ask for more."""
    lengths = sparse.random_array((60, 40), density=0.3, rng=rng, dtype=np.float32, format="csr")
    volumes = rng.uniform(0.5, 1.5, 40) * np.asarray(lengths.sum(axis=0))
    shares = np.ones(40)
    found = fit_weights([lengths], volumes, shares)
    dense = lengths.toarray().astype(float)
    pull = 0.1 * (dense**2).sum(axis=1)

    def objective(weights: np.ndarray) -> float:
        return float(((weights @ dense - volumes / found.mu) ** 2).sum() + (pull * (weights - 1) ** 2).sum())

    best = objective(found.weights)
    assert (found.weights >= 0).all()
    for _ in range(50):
        assert objective(np.maximum(found.weights + rng.normal(0, 0.05, 60), 0)) > 0.99 * best


def test_what_cannot_be_fitted_is_left_at_one():
    """A streamline outside all lobes keeps its weight; without any lobe there is no proportion."""
    lengths = sparse.csr_array(np.array([[2.0, 0, 0], [0, 0, 0], [2.0, 1e-3, 0]], np.float32))
    found = fit_weights([lengths], np.array([8.0, 8.0, 0]), np.ones(3))
    np.testing.assert_allclose(found.weights, 1, atol=1e-3)  # the second lobe is hardly reached and does not count
    assert found.mu == pytest.approx(2.0)
    nothing = fit_weights([lengths], np.zeros(3), np.ones(3))
    assert nothing.mu == 0 and (nothing.weights == 1).all()


def test_visits_in_a_file_give_the_same_weights(rng, tmp_path):
    """In parts, one of them empty, as in one piece in memory."""
    fixels, lines = two_bundles(), bundles(144, 72, rng)
    visits = Visits(tmp_path, fixels.density.size)
    for part in (slice(0, 100), slice(100, 100), slice(100, None)):
        visits.append(lengths_in(fixels, lines[part]))
    stored = np.concatenate([part.toarray() for part in visits])
    np.testing.assert_array_equal(stored, lengths_in(fixels, lines).toarray())
    found, whole = fit_weights(visits, fixels.volumes, fixels.shares), fit(fixels, lines)
    np.testing.assert_allclose(found.weights, whole.weights, rtol=1e-4)
    assert found.mu == pytest.approx(whole.mu, rel=1e-6)
    visits.remove()
    assert not list(tmp_path.iterdir())
