"""The forward operator: rotation, b=0, and the zonal convolution of a fibre along z."""

import numpy as np
import pytest
import torch
from scipy.special import eval_legendre

from shd_bids import simulation
from shd_bids.gradients.table import gradient_table
from shd_bids.response.forward import ForwardModel, forward_model
from shd_bids.response.response import Responses
from shd_bids.sphere.harmonics import n_coefficients, sh_basis

L_MAX = 8


@pytest.fixture
def gradients():
    return simulation.make_gradients(np.random.default_rng(0), {1000.0: 30, 2500.0: 60}, n_b0=3)


@pytest.fixture
def responses(gradients):
    micro = simulation.draw_microstructure(np.random.default_rng(1), 1)
    return simulation.true_responses(micro, gradients)


def test_turning_fibre_and_gradients_together_changes_nothing(gradients, responses, rng):
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    turned = gradient_table(gradients.bvals, gradients.directions @ turn.T)
    fibre = np.array([[0.6, 0.0, 0.8]])
    signals = []
    for table, direction in ((gradients, fibre), (turned, fibre @ turn.T)):
        model = forward_model(table, responses, l_max=L_MAX, dtype=torch.float64)
        wm = model.matrix[:, : n_coefficients(L_MAX)].numpy()
        signals.append(wm @ sh_basis(direction, L_MAX)[0])
    np.testing.assert_allclose(*signals, rtol=1e-10)


def test_full_voxel_of_each_tissue_gives_its_response_at_b0(gradients, responses):
    model = forward_model(gradients, responses, l_max=L_MAX, dtype=torch.float64)
    assert model.tissues == ("wm", "gm", "csf")
    first_of_tissue = [0, n_coefficients(L_MAX), n_coefficients(L_MAX) + 1]
    for column, response in zip(first_of_tissue, responses.tissues, strict=True):
        b0 = model.matrix[gradients.b0_indices[0], column] / np.sqrt(4 * np.pi)
        assert b0.item() == pytest.approx(response.coefficients[0, 0] / np.sqrt(4 * np.pi))


def test_fibre_along_z_gives_the_legendre_series_of_the_response(gradients, responses):
    model = forward_model(gradients, responses, l_max=10, dtype=torch.float64)
    signal = model.matrix[:, : n_coefficients(10)].numpy() @ sh_basis(np.array([[0.0, 0, 1]]), 10)[0]
    zonal = responses.wm.coefficients[gradients.shell_index]
    degree = np.arange(0, 11, 2)
    series = zonal * np.sqrt((2 * degree + 1) / (4 * np.pi)) * eval_legendre(degree, gradients.directions[:, 2:])
    expected = np.where(gradients.bvals > 50, series.sum(axis=1), zonal[:, 0] / np.sqrt(4 * np.pi))
    np.testing.assert_allclose(signal, expected, rtol=1e-9)


def test_degrees_the_response_lacks_are_not_seen(gradients, responses):
    matrix = forward_model(gradients, responses, l_max=18).matrix[:, : n_coefficients(18)]
    assert torch.all(matrix[:, n_coefficients(10) :] == 0)


def test_absent_tissue_has_no_column(gradients, responses):
    without = Responses(wm=responses.wm, gm=None, csf=responses.csf)
    model = forward_model(gradients, without, l_max=L_MAX)
    assert model.tissues == ("wm", "csf") and model.matrix.shape[1] == n_coefficients(L_MAX) + 1


def test_a_response_of_other_shells_is_refused(responses):
    other = simulation.make_gradients(np.random.default_rng(0), {1000.0: 30}, n_b0=1)
    with pytest.raises(ValueError, match="3 rows, expected one for each of the 2 shells"):
        forward_model(other, responses, l_max=L_MAX)


def test_a_matrix_of_the_wrong_width_is_refused():
    with pytest.raises(ValueError, match=r"expected \(N, 46\)"):
        ForwardModel(torch.zeros(10, 45), l_max=8, tissues=("wm", "csf"))
