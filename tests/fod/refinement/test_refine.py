"""The data's corrections of the network's answer: exact formulas and better prediction."""

import numpy as np
import pytest
import torch

from shd_bids import simulation
from shd_bids.fod.fod import FOD
from shd_bids.fod.refinement import refine
from shd_bids.fod.weights import OUTPUT_KAPPA
from shd_bids.peaks.search import find_peaks
from shd_bids.response.forward import ForwardModel, forward_model
from shd_bids.scan import Scan
from shd_bids.sphere.harmonics import sh_basis, sh_inverse
from shd_bids.sphere.healpix import hemisphere
from shd_bids.sphere.lobes import lobes
from shd_bids.sphere.spiral import spiral

L_MAX = 18
TAUGHT = 45.0
AXES = spiral(refine.N_AXES)


@pytest.fixture(scope="module")
def subject():
    rng = np.random.default_rng(5)
    gradients = simulation.make_gradients(rng, {1000.0: 20, 2500.0: 30}, n_b0=3)
    micro = simulation.draw_microstructure(rng, 3)
    return gradients, simulation.true_responses(micro, gradients)


@pytest.fixture(scope="module")
def model(subject):
    return forward_model(*subject, l_max=L_MAX)


def lobes_along(directions, sharpness, l_max):
    """Coefficients (n, C) of lobes along directions (n, K, 3), of one mass together."""
    density = lobes(hemisphere(8), directions, sharpness).mean(axis=1)
    return density @ sh_inverse(hemisphere(8), l_max).T


@pytest.fixture
def voxels(model, rng):
    """What a network would answer to crossings with grey matter and CSF, the truth, and its noisy signal."""
    directions = simulation.uniform_directions(rng, 60).reshape(30, 2, 3)
    isotropic = rng.uniform(0.05, 0.2, size=(30, 2))
    answer, truth = (
        np.concatenate([lobes_along(directions, sharpness, L_MAX), isotropic], axis=1)
        for sharpness in (TAUGHT, OUTPUT_KAPPA)
    )
    signal = truth @ model.matrix.double().numpy().T
    return answer, truth, signal + rng.normal(0, 0.01, size=signal.shape)


def network_answer(values):
    """FOD of coefficients (n, C + 2)."""
    wm, gm, csf = np.split(values.astype(np.float32), [-2, -1], axis=1)
    return FOD(wm.copy(), gm[:, 0], csf[:, 0])


def refined(prior, signal, subject):
    scan = Scan(signal, np.ones((len(prior), 1, 1), dtype=bool), np.eye(4), *subject, sigma=0.01)
    fod, n_updates = refine.refine_fod(network_answer(prior), scan, trained_kappa=TAUGHT)
    return fod.wm, np.stack([fod.gm, fod.csf], axis=1), n_updates


def test_masses_lie_along_the_axes_of_their_lobes(rng):
    axis = simulation.uniform_directions(rng, 20)[:, None]
    wm = 2.5 * lobes_along(axis, 45.0, 18)
    masses = refine.axis_masses(wm, concentration=45.0)
    np.testing.assert_allclose(masses.sum(axis=1), np.sqrt(4 * np.pi) * wm[:, 0], rtol=1e-5)
    near = np.abs(axis[:, 0] @ AXES.T) > np.cos(np.radians(12))
    assert (masses * near).sum(axis=1).min() > 0.8 * 2.5


def test_an_axis_anywhere_becomes_one_peak(rng):
    wm = lobes_along(simulation.uniform_directions(rng, 200)[:, None], 30.0, 18)
    fod = refine.axis_masses(wm, concentration=30.0) @ lobes_along(AXES[:, None], OUTPUT_KAPPA, 18)
    peaks = find_peaks(fod.astype(np.float32), max_peaks=3)
    assert (peaks.amplitudes[:, 1] < 0.1 * peaks.amplitudes[:, 0]).mean() > 0.98


def test_the_lobes_of_the_masses_resemble_the_answer(rng):
    wm = lobes_along(simulation.uniform_directions(rng, 40).reshape(20, 2, 3), 45.0, 18)
    grid = hemisphere(8)
    amplitudes = refine.axis_masses(wm, concentration=45.0) @ lobes(grid, AXES, 45.0)
    for found, expected in zip(amplitudes, wm @ sh_basis(grid, 18).T, strict=True):
        assert np.corrcoef(found, expected)[0, 1] > 0.98


def test_masses_part_a_crossing_that_the_lobes_taught_hide(rng):
    first = simulation.uniform_directions(rng, 20)
    side = np.cross(first, simulation.uniform_directions(rng, 20))
    side /= np.linalg.norm(side, axis=1, keepdims=True)
    half = np.radians(9)
    pair = np.stack([np.cos(half) * first + sign * np.sin(half) * side for sign in (-1, 1)], axis=1)
    before = lobes_along(pair, 45.0, 18)
    after = refine.axis_masses(before, concentration=34.0) @ lobes_along(AXES[:, None], OUTPUT_KAPPA, 18)
    dip = []
    for c in (before, after):
        middle = np.einsum("nc,nc->n", c, sh_basis(first, 18))
        dip.append(middle / np.einsum("nc,nc->n", c, sh_basis(pair[:, 0], 18)))
    assert np.mean(dip[1]) < np.mean(dip[0]) - 0.02


@pytest.mark.parametrize("given", [15.0, 36.0, 45.0])
def test_the_concentration_assumed_is_that_of_single_fibres_and_less_the_less_they_have(rng, given):
    fibres = [simulation.uniform_directions(rng, n * 100).reshape(100, n, 3) for n in (1, 2)]
    wm = np.concatenate([rng.uniform(0.8, 1.0, size=(100, 1)) * lobes_along(axes, given, 18) for axes in fibres])
    empty = 0.05 * lobes_along(fibres[0], 80.0, 18)  # sharp, but no white matter
    found = refine.assumed_concentration(np.concatenate([wm, empty]), taught=TAUGHT)
    assert found == pytest.approx(max(given**2 / TAUGHT, 20), abs=1)


def test_without_white_matter_the_concentration_taught_is_assumed():
    assert refine.assumed_concentration(np.zeros((3, 190)), taught=TAUGHT) == TAUGHT
    assert refine.assumed_concentration(np.zeros((0, 190)), taught=TAUGHT) == TAUGHT


def test_the_data_settle_the_amplitudes_and_the_network_what_they_cannot_tell(rng):
    shape = rng.uniform(1.0, 3.0, size=(5, 40))
    basis = rng.uniform(1.0, 3.0, size=(40, 2))
    truth_s, truth_z = np.array([[0.6], [1.0], [1.3], [1.9], [1.2]]), rng.uniform(0.1, 1.0, size=(5, 2))
    signal = truth_s * shape + truth_z @ basis.T
    prior, mass = np.full((5, 2), 0.3), np.full((5, 1), 0.2)
    s, z = refine._solve(signal * 1e4, shape * 1e4, basis * 1e4, prior, mass=mass)
    np.testing.assert_allclose(s, truth_s, rtol=0.05)
    np.testing.assert_allclose(z, truth_z, rtol=0.1)
    s, z = refine._solve(signal * 1e-6, shape * 1e-6, basis * 1e-6, prior, mass=mass)
    np.testing.assert_allclose(s, 1.0, atol=1e-3)
    np.testing.assert_allclose(z, prior, atol=1e-3)


@pytest.mark.parametrize("without", ["", "gm"])
def test_calibrated_amounts_predict_the_measured_b0_exactly(subject, model, voxels, rng, without):
    gradients, _ = subject
    *_, signal = voxels
    masses = rng.random((30, refine.N_AXES))
    fod = FOD(np.zeros((30, 1)), *rng.uniform(0.05, 0.15, size=(2, 30)))
    if without:
        matrix = torch.cat([model.matrix[:, :-2], model.matrix[:, -1:]], dim=1)
        model = ForwardModel(matrix, l_max=L_MAX, tissues=("wm", "csf"))
    axes = refine._Axes.build(model, gradients)
    signal = signal / axes.scale
    found = refine._calibrated(masses, fod, signal, axes, 0.01)
    b0 = gradients.b0_indices
    predicted = found.numpy() @ axes.kernel.T
    np.testing.assert_allclose(predicted[:, b0].mean(axis=1), signal[:, b0].mean(axis=1), rtol=1e-5)


def test_masses_predict_what_their_coefficients_predict(subject, model, rng):
    gradients, _ = subject
    axes = refine._Axes.build(model, gradients)
    masses = torch.as_tensor(rng.random((5, axes.kernel.shape[1])), dtype=torch.float32)
    wm, isotropic = axes.coefficients(masses)
    expected = masses.numpy() @ axes.kernel.T * axes.scale
    np.testing.assert_allclose(np.concatenate([wm, isotropic], axis=1) @ model.matrix.numpy().T, expected, rtol=1e-4)
    np.testing.assert_allclose(wm[:, 0] * np.sqrt(4 * np.pi), masses[:, :-2].sum(dim=1), rtol=1e-5)


def test_an_answer_that_predicts_well_keeps_its_shape(subject, voxels):
    answer, truth, signal = voxels
    wm, isotropic, _ = refined(answer, signal, subject)
    assert np.linalg.norm(wm - truth[:, :-2]) < 0.15 * np.linalg.norm(truth[:, :-2])
    np.testing.assert_allclose(isotropic, truth[:, -2:], atol=0.05)


def test_a_wrong_answer_is_moved_towards_the_data_and_stays_one_of_lobes(subject, model, voxels):
    answer, truth, signal = voxels
    prior = answer.copy()
    prior[:, 1:-2] *= 0.7  # too blunt
    prior[:, -2:] *= 1.5
    wm, isotropic, times = refined(prior, signal, subject)
    clean, matrix = truth @ model.matrix.numpy().T, model.matrix.numpy()
    error = np.concatenate([wm, isotropic], axis=1) @ matrix.T - clean
    assert times > 0 and (error**2).mean() < 0.2 * ((prior @ matrix.T - clean) ** 2).mean()
    negative = [-(c @ sh_basis(hemisphere(8), L_MAX).T).clip(max=0).sum() for c in (wm, truth[:, :-2])]
    assert negative[0] < 1.2 * negative[1] and isotropic.min() >= 0  # no more than the ripples of lobes


def test_no_voxels_are_no_problem(subject, voxels):
    _, truth, signal = voxels
    wm, isotropic, times = refined(truth[:0], signal[:0], subject)
    assert (wm.shape, isotropic.shape, times) == (truth[:0, :-2].shape, (0, 2), 0)
