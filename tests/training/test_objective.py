"""The objective: what a dense computation gives with the truth fed in, whichever tissues are fitted."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from shd_bids.response.forward import ForwardModel
from shd_bids.sphere.harmonics import sh_inverse
from shd_bids.sphere.healpix import hemisphere
from shd_bids.training.config import TrainingConfig
from shd_bids.training.objective import Case, LossWeights, Objective, Truth, interpret
from shd_bids.training.simulated import draw_case

PAPER = LossWeights(0.0, 0.0, 0.0, 1.0, 0.1, 5e-5, 0.5)
CONFIG = TrainingConfig(nside=4, channels=(4, 4), l_max=8, size=5, batch=1, pool=1, protocol={"1000": 30})


def with_tissues(*tissues):
    """Return the first simulated case that fits these isotropic tissues."""
    cases = (draw_case((n,), CONFIG) for n in range(40))
    return next(case for case in cases if case.forward.tissues[1:] == tissues)


def output_of(truth):
    """Return the network output that is read as a truth, up to the least positive number of softplus."""
    n_vertices = truth.density.shape[-1]
    maps = torch.stack([truth.density.float(), *truth.fractions[..., None].expand(*[-1] * 4, n_vertices).unbind(3)])
    return torch.log(torch.expm1(maps.clamp_min(1e-4).double()))[None].float()


def dense_misfit(case):
    """Evaluate the reconstruction term voxel by voxel from the equations."""
    wanted = interpret(output_of(case.truth))
    density, fractions = wanted[0][0].double().numpy(), wanted[1][0].double().numpy()
    matrix, measured = case.forward.matrix.double().numpy(), case.signal.double().numpy()
    wm = density @ sh_inverse(hemisphere(CONFIG.nside), CONFIG.l_max).T
    predicted = wm @ matrix[:, : wm.shape[-1]].T
    for column, tissue in enumerate(case.forward.tissues[1:], wm.shape[-1]):
        fraction = fractions[..., 0 if tissue == "gm" else 1]
        predicted += fraction[..., None] / np.sqrt(4 * np.pi) * matrix[:, column]
    predicted *= (measured[..., case.b0].mean(-1) / predicted[..., case.b0].mean(-1))[..., None]
    return ((predicted - measured) ** 2)[case.mask.numpy()].mean()


@pytest.mark.parametrize("tissues", [("gm", "csf"), ("csf",), ("gm",)])
def test_reconstruction_of_the_truth_is_that_of_a_dense_computation(tissues):
    case = with_tissues(*tissues)
    term = Objective(replace(PAPER, smoothness=0.0))(output_of(case.truth), [case])["reconstruction"]
    assert term.item() == pytest.approx(dense_misfit(case), rel=1e-3)


def test_each_isotropic_tissue_has_its_own_column():
    case, errors = with_tissues("csf"), []
    for swapped in (False, True):
        fractions = case.truth.fractions.flip(-1) if swapped else case.truth.fractions
        output = output_of(replace(case.truth, fractions=fractions))
        errors.append(Objective(PAPER)(output, [case])["reconstruction"].item())
    assert errors[0] < 0.8 * errors[1], "grey matter predicts the signal of free water as well as CSF does"


def flat_case(signal, *, volumes=None):
    """Return a case of two voxels whose signal is two volumes, the first without weighting."""
    forward = ForwardModel(torch.tensor([[3.545, 3.545], [1.0, 0.2]]), l_max=0, tissues=("wm", "csf"))
    return Case(
        channels=torch.zeros(1, 2, 1, 1, 6),
        mask=torch.ones(2, 1, 1, dtype=torch.bool),
        signal=torch.tensor(signal).view(2, 1, 1, 2),
        forward=forward,
        b0=np.array([0]),
        volumes=np.arange(2) if volumes is None else volumes,
    )


def test_the_signal_without_weighting_is_matched():
    output = torch.randn(1, 3, 2, 1, 1, 6, generator=torch.Generator().manual_seed(1))
    objective = Objective(replace(PAPER, smoothness=0.0))
    b0_alone = objective(output, [flat_case([[1.0, 0.2], [0.7, 0.4]], volumes=np.array([0]))])
    assert b0_alone["reconstruction"].item() == pytest.approx(0, abs=1e-12)
    both = objective(output, [flat_case([[1.0, 0.2], [0.7, 0.4]])])
    assert both["reconstruction"].item() > 1e-4


def test_the_terms_of_the_paper_do_not_depend_on_the_scale_of_the_output():
    """Otherwise a network that scales its output down would evade the sparsity."""
    case = with_tissues("gm", "csf")
    halved = replace(case, truth=Truth(case.truth.density / 2, case.truth.fractions / 2))
    terms, small = (Objective(PAPER)(output_of(c.truth).double(), [case]) for c in (case, halved))
    for name in ("reconstruction", "sparsity", "negativity", "smoothness"):
        torch.testing.assert_close(small[name], terms[name], rtol=2e-2, atol=1e-7, msg=name)


def test_terms_without_weight_are_left_out_and_the_total_is_their_weighted_sum():
    case = with_tissues("gm", "csf")
    output = output_of(case.truth)
    assert set(Objective(LossWeights())(output, [case])) == {"hellinger", "fibre_density", "fractions"}
    terms = Objective(PAPER)(output, [replace(case, truth=None)])
    assert set(terms) == {"reconstruction", "negativity", "sparsity", "smoothness"}
    expected = (
        terms["reconstruction"] + 0.1 * terms["negativity"] + 5e-5 * terms["sparsity"] + 0.5 * terms["smoothness"]
    )
    torch.testing.assert_close(Objective(PAPER).total(terms), expected)


def test_a_truth_fed_in_has_no_supervised_loss():
    case = with_tissues("gm", "csf")
    terms = Objective(LossWeights())(output_of(case.truth), [case])
    assert terms["hellinger"].item() < 1e-6 and terms["fractions"].item() < 1e-6
    wrong = replace(case, truth=Truth(case.truth.density.flip(0), case.truth.fractions.flip(0)))
    assert Objective(LossWeights())(output_of(case.truth), [wrong])["hellinger"].item() > 1e-3
