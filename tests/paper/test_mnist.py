"""Segmentation of digits: the loss is that of the truth, and every network gives a score for each class and voxel."""

import numpy as np
import pytest

pytest.importorskip("sklearn")

import torch

from tests.benchmarks.paper import digits, mnist
from tests.benchmarks.paper.digits import Digits

SIZES = mnist.Sizes(digits.Sizes(4, 1, 2, 2, nside=4), (2, 3), (4, 6), steps=2, batch=2, n_test=2)


@pytest.fixture(scope="module")
def labels():
    return torch.tensor([[[[0, 1], [2, 2]]]])  # two digits and the background


def test_loss_is_least_for_the_truth(labels):
    truth = 20.0 * torch.nn.functional.one_hot(labels, 3).movedim(-1, 1)
    assert mnist.loss(truth, labels) < 1e-5
    assert mnist.loss(-truth, labels) > 1
    assert mnist.loss(torch.zeros_like(truth), labels) == pytest.approx(0.5 * (1 - 1 / 3) + 0.5 * np.log(3), abs=0.1)


def test_each_class_weighs_as_much(labels):
    """Where half of the voxels are background."""

    def wrong(where):
        scores = 20.0 * torch.nn.functional.one_hot(torch.where(where, (labels + 1) % 3, labels), 3).movedim(-1, 1)
        return mnist.loss(scores, labels).item()

    both = wrong(labels < 2)
    assert wrong(labels == 2) == pytest.approx(both / 2, rel=0.1)
    assert wrong(labels == 0) == pytest.approx(both / 2, rel=0.1)


@pytest.mark.parametrize("method", [mnist.MIXED, mnist.CONCATENATED, mnist.HARMONIC])
def test_networks_are_trained_and_scored(method):
    torch.manual_seed(0)
    net = mnist.network(method, SIZES)
    before = [p.detach().clone() for p in net.parameters()]
    mnist.train(net, SIZES, "independent", rate=1e-2, seed=0, device="cpu")
    assert any((a != b).any() for a, b in zip(before, net.parameters(), strict=True))
    data = Digits.load(n_digits=2, test=True)
    assert 0 <= mnist.test(net.eval(), data, SIZES, "voxel", seed=0, device="cpu") <= 1
