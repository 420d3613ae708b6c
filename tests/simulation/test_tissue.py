"""Simulated tissue: the truth is the density that its signal is made of, and noise and geometry obey their laws."""

import numpy as np
import pytest
from numpy.polynomial.legendre import legval
from scipy.ndimage import gaussian_filter1d

from shd_bids import simulation
from shd_bids.response.forward import forward_model
from shd_bids.simulation.dispersion import densities, least_spread, relative_covariance, true_density
from shd_bids.simulation.microstructure import L_MAX_SIGNAL, Subject, draw_subject, kernel_moments, subject_responses
from shd_bids.simulation.phantoms import Bundle
from shd_bids.simulation.signal import correlated_noise, misaligned, tissue_signal
from shd_bids.simulation.tissue import Dispersion, build_tissue, random_tissue, thinned, winding
from shd_bids.sphere.harmonics import sh_inverse
from shd_bids.sphere.healpix import hemisphere

SIZE = 5


def subject(n_bundles=1, *, spread=8.0, intensity=1.0):
    return Subject(
        axonal=np.full(n_bundles, 0.6),
        axial=np.full(n_bundles, 1.9e-3),
        radial=np.full(n_bundles, 0.6e-3),
        intensity=np.full(n_bundles, intensity),
        response_spread=np.deg2rad(spread),
    )


def bundle_of_tissue(*, across=15.0, along=15.0, bend=0.0, fan=(0.0, 1.0, 0.0)):
    """Return a volume filled by one bundle along x that disperses by so many degrees, and may bend towards y."""
    s = np.arange(-3 * SIZE, 3 * SIZE, 0.25)
    curve = np.stack([s, bend * s**2 / 2, 0 * s], axis=1) + (SIZE - 1) / 2
    bundle = Bundle(curve, np.full(len(s), 3.0 * SIZE))
    spread = Dispersion(np.full(len(s), np.deg2rad(across)), np.full(len(s), np.deg2rad(along)), np.array(fan))
    return build_tissue((bundle,), [spread], csf=np.zeros((SIZE,) * 3))


@pytest.mark.parametrize("seed", range(3))
def test_every_voxel_is_full_and_the_density_integrates_to_the_white_matter(seed):
    tissue = random_tissue(np.random.default_rng(seed), 7, narrowest=np.deg2rad(8.0))
    wm = tissue.fractions.sum(-1)
    np.testing.assert_allclose(wm + tissue.gm + tissue.csf, 1.0, atol=1e-9)
    assert min(tissue.fractions.min(), tissue.gm.min(), tissue.csf.min()) >= 0
    density = true_density(tissue, subject(8), nside=8, l_max=18).reshape(-1, 384)
    integral = np.sqrt(4 * np.pi) * density @ sh_inverse(hemisphere(8), 18)[0]
    np.testing.assert_allclose(integral, wm.reshape(-1), atol=1e-4)


def test_populations_have_unit_directions_and_spread_across_them_alone():
    tissue = random_tissue(np.random.default_rng(1), 7, narrowest=np.deg2rad(8.0))
    there = tissue.fractions > 0
    assert np.all(np.diff(tissue.fractions, axis=-1) <= 0) and np.array_equal(there, tissue.bundle >= 0)
    np.testing.assert_allclose(np.linalg.norm(tissue.directions, axis=-1), there, atol=1e-9)
    along = np.einsum("...ij,...j->...i", tissue.covariance, tissue.directions)
    np.testing.assert_allclose(along, 0, atol=1e-9)


@pytest.mark.parametrize(("across", "along"), [(14.0, 14.0), (14.0, 26.0)])
def test_the_response_convolved_with_the_truth_predicts_the_signal(across, along):
    gradients = simulation.make_gradients(np.random.default_rng(0), {1000.0: 30, 3000.0: 45}, n_b0=2)
    tissue, who = bundle_of_tissue(across=across, along=along), subject(intensity=1.3)
    clean = tissue_signal(tissue, who, gradients)[2, 2, 2]
    density = true_density(tissue, who, nside=8, l_max=18)[2, 2, 2]
    model = forward_model(gradients, subject_responses(who, gradients), l_max=18)
    coefficients = np.zeros(model.matrix.shape[1])
    coefficients[:190] = sh_inverse(hemisphere(8), 18) @ density
    assert tissue.fractions[2, 2, 2].sum() == pytest.approx(1.0)
    np.testing.assert_allclose(model.matrix.double().numpy() @ coefficients, clean, atol=0.013)


def test_winding_turns_fibres_alike_in_neighbours_and_changes_nothing_else():
    tissue = bundle_of_tissue(across=10.0, along=20.0)
    wound = winding(tissue, np.random.default_rng(3), angle=np.deg2rad(8.0), length=1.0)
    tilt = np.rad2deg(np.arccos((wound.directions * tissue.directions).sum(-1)[..., 0].clip(-1, 1)))
    assert 5 < np.sqrt((tilt**2).mean()) < 17  # two of three rotations tilt
    neighbours = (wound.directions[1:, ..., 0, :] * wound.directions[:-1, ..., 0, :]).sum(-1)
    assert np.rad2deg(np.arccos(neighbours)).mean() < tilt.mean()
    np.testing.assert_allclose(np.linalg.eigvalsh(wound.covariance), np.linalg.eigvalsh(tissue.covariance), atol=1e-12)
    np.testing.assert_allclose((wound.covariance @ wound.directions[..., None])[..., 0], 0, atol=1e-12)
    assert wound.fractions is tissue.fractions


def test_thinned_white_matter_becomes_grey_and_fractions_still_sum_to_one():
    tissue = bundle_of_tissue(across=10.0, along=20.0)
    thin = thinned(tissue, np.random.default_rng(5), length=1.0)
    assert (thin.fractions <= tissue.fractions).all() and (thin.fractions.sum(-1) < 0.95).any()
    np.testing.assert_allclose(thin.fractions.sum(-1) + thin.gm + thin.csf, 1.0, atol=1e-12)
    ratio = thin.covariance[..., 0, :, :].trace(axis1=-2, axis2=-1) / np.trace(tissue.covariance[2, 2, 2, 0])
    assert 0.49 < ratio.min() < ratio.max() < 2.01


def test_bingham_with_equal_variances_is_watson():
    axis = np.array([[0.6, 0.0, 0.8]])
    variance = np.deg2rad(12.0) ** 2
    points = hemisphere(4)
    covariance = variance * (np.eye(3) - axis[:, :, None] * axis[:, None, :])
    watson = np.exp(((points @ axis[0]) ** 2 - 1) / (2 * variance))
    np.testing.assert_allclose(densities(axis, covariance, points)[0], watson, rtol=1e-3, atol=1e-6)


def test_a_gaussian_of_angles_falls_with_the_angle_alone():
    axis, points = np.array([[0.0, 0.0, 1.0]]), hemisphere(8)
    covariance = np.deg2rad(20.0) ** 2 * np.diag([1.0, 1.0, 0.0])[None]
    angle = np.arccos(np.abs(points[:, 2]).clip(0, 1))
    expected = np.exp(-0.5 * (angle / np.deg2rad(20.0)) ** 2)
    np.testing.assert_allclose(densities(axis, covariance, points, tails=1.0)[0], expected, rtol=1e-3, atol=1e-6)


def test_what_the_response_holds_is_taken_from_the_covariance():
    axis = np.array([[0.0, 0.0, 1.0]])
    covariance = np.diag(np.deg2rad([20.0, 10.0, 0.0]) ** 2)[None]
    found = relative_covariance(axis, covariance, np.deg2rad(9.0), l_max=18)[0]
    expected = np.diag([np.deg2rad(20.0) ** 2 - np.deg2rad(9.0) ** 2, least_spread(18) ** 2, 0.0])
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_a_bundle_that_bends_within_a_voxel_spreads_there():
    straight, bent = (bundle_of_tissue(across=8.0, along=8.0, bend=bend) for bend in (0.0, 0.35))
    plain, wide = (np.rad2deg(np.sqrt(t.covariance[2, 2, 2, 0][1, 1])) for t in (straight, bent))
    assert plain == pytest.approx(8.0, abs=0.01) and wide > 9
    heights = [true_density(t, subject(spread=4.0), nside=8, l_max=18)[2, 2, 2].max() for t in (straight, bent)]
    assert heights[1] < 0.9 * heights[0]


def test_the_signal_of_undispersed_fibres_is_that_of_two_compartments():
    who, cosine = subject(), np.linspace(0, 1, 7)
    moments = kernel_moments(who, np.array([0.0, 1500.0]))[0]
    series = np.zeros((2, L_MAX_SIGNAL + 1))
    series[:, ::2] = moments
    expected = 0.6 * np.exp(-1500 * 1.9e-3 * cosine**2) + 0.4 * np.exp(-1500 * (0.6e-3 + 1.3e-3 * cosine**2))
    np.testing.assert_allclose(legval(cosine, series[0]), 1.0, atol=1e-9)
    np.testing.assert_allclose(legval(cosine, series[1]), expected, atol=1e-6)


@pytest.mark.parametrize("width", [0.0, 0.4, 0.6])
def test_noise_has_the_asked_deviation_and_correlation(width):
    signal = np.full((40, 40, 40, 2), 50.0, dtype=np.float32)
    noise = correlated_noise(signal, 0.3, np.random.default_rng(0), width=width, n_coils=1) - 50.0
    assert noise.std() == pytest.approx(0.3, rel=0.02)
    kernel = np.eye(1, 65, 32)[0] if width == 0 else gaussian_filter1d(np.eye(1, 65, 32)[0], width, truncate=3.0)
    expected = (kernel[1:] * kernel[:-1]).sum() / (kernel**2).sum()
    assert np.mean(noise[1:] * noise[:-1]) / noise.var() == pytest.approx(expected, abs=0.02)


def test_the_square_of_noise_is_that_of_its_coils():
    signal = np.full((40, 40, 40, 1), 0.5, dtype=np.float32)
    noisy = correlated_noise(signal, 0.2, np.random.default_rng(1), width=0.0, n_coils=4)
    assert np.mean(noisy.astype(float) ** 2) == pytest.approx(0.25 + 8 * 0.04, rel=0.01)


def test_a_shift_moves_the_middle_of_the_signal_and_none_changes_nothing():
    rng = np.random.default_rng(0)
    signal = np.zeros((9, 9, 9, 20), dtype=np.float32)
    signal[3:6, 3:6, 3:6] = 1.0
    np.testing.assert_array_equal(misaligned(signal, rng, 0.0), signal)
    moved = misaligned(signal, rng, 0.2)
    np.testing.assert_allclose(moved.sum(axis=(0, 1, 2)), 27.0, rtol=1e-5)
    middles = (moved.sum(axis=(1, 2)) * np.arange(9)[:, None]).sum(axis=0) / 27
    assert 0.1 < np.std(middles - 4) < 0.35


def test_a_seed_fixes_the_tissue():
    def draw(seed):
        rng = np.random.default_rng(seed)
        who = draw_subject(rng, 8)
        tissue = random_tissue(rng, 5, narrowest=who.response_spread)
        return tissue_signal(tissue, who, simulation.random_gradients(rng))

    np.testing.assert_array_equal(draw(3), draw(3))
    assert draw(3).shape != draw(4).shape or np.any(draw(3) != draw(4))
