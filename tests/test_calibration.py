"""The data's corrections of the network's answer: exact formulas, the constrained optimum, and better prediction."""

import numpy as np
import pytest
import torch
from scipy.optimize import LinearConstraint, minimize

from shd_bids import calibration, simulation
from shd_bids.model import ForwardModel, forward_model
from shd_bids.sphere.harmonics import sh_basis
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
    """Coefficients of sharp crossings with grey matter and CSF, and their noisy signal."""
    _, model = subject
    grid = hemisphere(8)
    density = np.exp(12 * ((grid @ simulation.uniform_directions(rng, 60).T) ** 2 - 1))  # (V, 60)
    density = density / density.mean(axis=0) / (4 * np.pi)
    wm = (0.5 * (density[:, :30] + density[:, 30:])).T @ np.linalg.pinv(sh_basis(grid, L_MAX)).T
    truth = np.concatenate([wm, rng.uniform(0.05, 0.2, size=(30, 2))], axis=1)
    signal = truth @ model.matrix.double().numpy().T
    return truth, signal + rng.normal(0, 0.01, size=signal.shape)


def correct(prior, signal, subject):
    gradients, model = subject
    wm, isotropic = prior[:, :-2].copy(), prior[:, -2:].copy()
    return calibration.correct(wm, isotropic, voxels=signal, gradients=gradients, model=model)


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


def test_the_errors_of_leaving_one_out_are_those_of_leaving_one_out(subject, voxels, monkeypatch):
    gradients, model = subject
    truth, signal = voxels
    prior, matrix = 0.8 * truth, model.matrix.double().numpy()
    variances = calibration._prior_variances(model)
    found = []
    monkeypatch.setattr(calibration, "WIDTHS", (0.0, 0.3, 30.0))
    for widths in ((0.0, 0.3), (0.0, 30.0), (0.3, 30.0)):
        errors = []
        for width in widths:
            square = 0.0
            for out in np.flatnonzero(gradients.bvals > 0):
                kept = np.delete(np.arange(gradients.n_volumes), out)
                inner = np.linalg.inv(width * (matrix[kept] * variances) @ matrix[kept].T + np.eye(len(kept)))
                step = (signal - prior @ matrix.T)[:, kept] @ inner @ (width * matrix[kept] * variances)
                square += (((prior + step) @ matrix[out] - signal[:, out]) ** 2).mean()
            errors.append(square)
        monkeypatch.setattr(calibration, "WIDTHS", widths)
        monkeypatch.setattr(calibration, "_TOLERANCE", 1.0)
        best = calibration._best_width(
            prior[:, :-2], prior[:, -2:], signal, matrix=matrix, variances=variances, gradients=gradients
        )
        found.append(best == widths[int(np.argmin(errors))])
    assert all(found)


def test_a_prior_that_already_predicts_is_kept_to_the_last_digit(subject, voxels):
    truth, signal = voxels
    wm, isotropic, width = correct(truth, signal, subject)
    assert width == 0
    np.testing.assert_array_equal(np.concatenate([wm, isotropic], axis=1), truth)


def test_the_solution_is_the_constrained_optimum(subject, voxels, monkeypatch):
    _, model = subject
    truth, signal = voxels
    matrix = model.matrix.double().numpy()
    variances = calibration._prior_variances(model)
    prior = 0.8 * truth[:2]
    monkeypatch.setattr(calibration, "_ROUNDS", 3000)
    found = calibration._Constrained(matrix, variances, l_max=L_MAX)(signal[:2], prior)
    basis = np.zeros((len(hemisphere(8)) + 2, matrix.shape[1]))
    basis[:-2, :-2], basis[-2:, -2:] = sh_basis(hemisphere(8), L_MAX), np.eye(2)
    for i in range(2):

        def cost(c, i=i):
            error, step = matrix @ c - signal[i], c - prior[i]
            return error @ error + step @ (step / variances), 2 * (matrix.T @ error + step / variances)

        bound = LinearConstraint(basis, lb=0)
        expected = minimize(cost, prior[i], jac=True, method="SLSQP", constraints=bound, options={"ftol": 1e-13})
        assert cost(found[i])[0] == pytest.approx(expected.fun, rel=1e-4)
        np.testing.assert_allclose(found[i], expected.x, atol=2e-3)


def test_a_wrong_prior_is_moved_towards_the_data_and_stays_positive(subject, voxels):
    _, model = subject
    truth, signal = voxels
    prior = truth.copy()
    prior[:, 1:-2] *= 0.7  # too blunt
    prior[:, -2:] *= 1.5
    wm, isotropic, width = correct(prior, signal, subject)
    clean, matrix = truth @ model.matrix.numpy().T, model.matrix.numpy()
    error = np.concatenate([wm, isotropic], axis=1) @ matrix.T - clean
    assert width > 0 and (error**2).mean() < 0.2 * ((prior @ matrix.T - clean) ** 2).mean()
    amplitudes = wm @ sh_basis(hemisphere(8), L_MAX).T
    assert -amplitudes.clip(max=0).sum() < 0.02 * amplitudes.clip(0).sum() and isotropic.min() >= 0


def test_no_voxels_are_no_problem(subject, voxels):
    truth, signal = voxels
    assert correct(truth[:0], signal[:0], subject)[2] == 0
