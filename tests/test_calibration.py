"""The data's corrections of the network's answer: exact formulas and better prediction."""

import numpy as np
import pytest
import torch

from shd_bids import calibration, simulation
from shd_bids.conditioning import lobes
from shd_bids.model import ForwardModel, forward_model
from shd_bids.sphere.harmonics import sh_basis, sh_inverse
from shd_bids.sphere.healpix import hemisphere

L_MAX = 6


@pytest.fixture(scope="module")
def subject():
    rng = np.random.default_rng(5)
    gradients = simulation.make_gradients(rng, {1000.0: 20, 2500.0: 30}, n_b0=3)
    micro = simulation.draw_microstructure(rng, 3)
    return gradients, forward_model(gradients, simulation.true_responses(micro, gradients), l_max=L_MAX)


@pytest.fixture
def voxels(subject, rng):
    """Coefficients of crossings with grey matter and CSF, and their noisy signal."""
    _, model = subject
    grid = hemisphere(8)
    density = np.exp(4 * ((grid @ simulation.uniform_directions(rng, 60).T) ** 2 - 1))  # (V, 60)
    density = density / density.mean(axis=0) / (4 * np.pi)
    wm = (0.5 * (density[:, :30] + density[:, 30:])).T @ np.linalg.pinv(sh_basis(grid, L_MAX)).T
    truth = np.concatenate([wm, rng.uniform(0.05, 0.2, size=(30, 2))], axis=1)
    signal = truth @ model.matrix.double().numpy().T
    return truth, signal + rng.normal(0, 0.01, size=signal.shape)


def correct(prior, signal, subject):
    gradients, model = subject
    wm, isotropic = prior[:, :-2].copy(), prior[:, -2:].copy()
    return calibration.correct(wm, isotropic, voxels=signal, gradients=gradients, model=model)


def lobes_along(directions, sharpness, l_max):
    """Coefficients (n, C) of lobes along directions (n, K, 3), of one mass together."""
    density = lobes(hemisphere(8), directions, sharpness).mean(axis=1)
    return density @ sh_inverse(hemisphere(8), l_max).T


def test_sharpened_lobes_are_narrow_lobes_of_the_same_mass(rng):
    axis = simulation.uniform_directions(rng, 20)[:, None]
    found = calibration.sharpen(lobes_along(axis, 45.0, 18), taught=45.0)
    expected = lobes_along(axis, calibration.SHARPNESS, 18)
    np.testing.assert_allclose(found[:, 0], lobes_along(axis, 45.0, 18)[:, 0], rtol=1e-5)
    grid = sh_basis(hemisphere(8), 18)
    heights = [(c @ grid.T).max(axis=1).mean() for c in (lobes_along(axis, 45.0, 18), found, expected)]
    assert 1.02 * heights[0] < heights[1] < 1.02 * heights[2]


def test_sharpening_parts_a_crossing_that_the_lobes_taught_hide(rng):
    first = simulation.uniform_directions(rng, 20)
    side = np.cross(first, simulation.uniform_directions(rng, 20))
    side /= np.linalg.norm(side, axis=1, keepdims=True)
    half = np.radians(9)
    pair = np.stack([np.cos(half) * first + sign * np.sin(half) * side for sign in (-1, 1)], axis=1)
    before = lobes_along(pair, 45.0, 18)
    after = calibration.sharpen(before, taught=45.0)
    dip = []
    for c in (before, after):
        middle = np.einsum("nc,nc->n", c, sh_basis(first, 18))
        dip.append(middle / np.einsum("nc,nc->n", c, sh_basis(pair[:, 0], 18)))
    assert np.mean(dip[1]) < np.mean(dip[0]) - 0.02


def test_lobes_that_are_narrow_already_stay(rng):
    wm = lobes_along(simulation.uniform_directions(rng, 3)[:, None], 90.0, 18)
    assert calibration.sharpen(wm, taught=90.0) is wm


def test_the_data_settle_the_amplitudes_and_the_network_what_they_cannot_tell(rng):
    shape = rng.uniform(1.0, 3.0, size=(5, 40))
    basis = rng.uniform(1.0, 3.0, size=(40, 2))
    truth_s, truth_z = np.array([[0.6], [1.0], [1.3], [1.9], [1.2]]), rng.uniform(0.1, 1.0, size=(5, 2))
    signal = truth_s * shape + truth_z @ basis.T
    prior, mass = np.full((5, 2), 0.3), np.full((5, 1), 0.2)
    s, z = calibration._solve(signal * 1e4, shape * 1e4, basis * 1e4, prior, mass=mass)
    np.testing.assert_allclose(s, truth_s, rtol=0.05)
    np.testing.assert_allclose(z, truth_z, rtol=0.1)
    s, z = calibration._solve(signal * 1e-6, shape * 1e-6, basis * 1e-6, prior, mass=mass)
    np.testing.assert_allclose(s, 1.0, atol=1e-3)
    np.testing.assert_allclose(z, prior, atol=1e-3)


@pytest.mark.parametrize("without", ["", "gm"])
def test_calibrated_amounts_predict_the_measured_b0_exactly(subject, voxels, rng, without):
    gradients, model = subject
    truth, signal = voxels
    wm, fractions = truth[:, :-2] * rng.uniform(0.5, 1.5, size=(30, 1)), rng.uniform(0.1, 0.5, size=(30, 2))
    if without:
        matrix = torch.cat([model.matrix[:, :-2], model.matrix[:, -1:]], dim=1)
        model = ForwardModel(matrix, l_max=L_MAX, tissues=("wm", "csf"))
    wm, isotropic = calibration.calibrate(
        wm.copy(), fractions, voxels=signal, gradients=gradients, model=model, sigma=0.01
    )
    predicted = np.concatenate([wm, isotropic], axis=1) @ model.matrix.numpy().T
    b0 = gradients.b0_indices
    np.testing.assert_allclose(predicted[:, b0].mean(axis=1), signal[:, b0].mean(axis=1), rtol=1e-5)


def test_masses_predict_what_their_coefficients_predict(subject, rng):
    _, model = subject
    axes = calibration._Axes(model, 1.0)
    masses = torch.as_tensor(rng.random((5, axes.kernel.shape[1])), dtype=torch.float32)
    wm, isotropic = axes.coefficients(masses)
    expected = masses.numpy() @ axes.kernel.T
    np.testing.assert_allclose(np.concatenate([wm, isotropic], axis=1) @ model.matrix.numpy().T, expected, rtol=1e-4)
    np.testing.assert_allclose(wm[:, 0] * np.sqrt(4 * np.pi), masses[:, :-2].sum(dim=1), rtol=1e-5)


def test_coefficients_come_back_from_masses(subject, voxels):
    _, model = subject
    wm, isotropic = voxels[0][:, :-2], voxels[0][:, -2:]
    axes = calibration._Axes(model, 1.0)
    back = axes.coefficients(axes.masses(wm, isotropic))
    # Beside the floor, the grid is not quite a quadrature.
    np.testing.assert_allclose(back[0], wm, atol=0.02 * np.abs(wm).max())
    np.testing.assert_allclose(back[1], isotropic, rtol=1e-6)


def test_a_prior_that_already_predicts_is_kept_to_the_last_digit(subject, voxels):
    truth, signal = voxels
    wm, isotropic, times = correct(truth, signal, subject)
    assert times == 0
    np.testing.assert_array_equal(np.concatenate([wm, isotropic], axis=1), truth)


def test_a_wrong_prior_is_moved_towards_the_data_and_stays_positive(subject, voxels):
    _, model = subject
    truth, signal = voxels
    prior = truth.copy()
    prior[:, 1:-2] *= 0.7  # too blunt
    prior[:, -2:] *= 1.5
    wm, isotropic, times = correct(prior, signal, subject)
    clean, matrix = truth @ model.matrix.numpy().T, model.matrix.numpy()
    error = np.concatenate([wm, isotropic], axis=1) @ matrix.T - clean
    assert times > 0 and (error**2).mean() < 0.2 * ((prior @ matrix.T - clean) ** 2).mean()
    amplitudes = wm @ sh_basis(hemisphere(8), L_MAX).T
    assert -amplitudes.clip(max=0).sum() < 0.02 * amplitudes.clip(0).sum() and isotropic.min() >= 0


def test_no_voxels_are_no_problem(subject, voxels):
    truth, signal = voxels
    assert correct(truth[:0], signal[:0], subject)[2] == 0
