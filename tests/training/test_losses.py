"""Loss terms: zero where they must be, and values worked out by hand."""

import pytest
import torch

from shd_bids.training import losses

SHAPE = (2, 4, 4, 4)


@pytest.fixture
def amplitudes():
    return torch.rand(*SHAPE, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.1


@pytest.fixture
def mask():
    inside = torch.ones(SHAPE, dtype=torch.float64)
    inside[:, :1] = 0
    return inside


def test_terms_vanish_at_their_optimum(amplitudes, mask):
    assert losses.reconstruction(amplitudes, amplitudes, mask) == 0
    assert losses.negativity(amplitudes, mask) == 0
    assert losses.fibre_density_error(amplitudes, amplitudes, mask) == 0
    assert losses.hellinger(amplitudes, amplitudes, mask) == 0
    assert losses.smoothness(amplitudes[:, :1, :1, :1].expand_as(amplitudes), mask) == pytest.approx(0, abs=1e-15)


def test_voxels_outside_the_mask_do_not_count(amplitudes, mask):
    moved = amplitudes.clone()
    moved[:, 0] += 100
    for term in (losses.negativity, losses.sparsity, losses.smoothness):
        torch.testing.assert_close(term(moved, mask), term(amplitudes, mask))
    assert losses.reconstruction(moved, amplitudes, mask) == 0


def test_smoothness_ignores_the_scale_of_a_voxel(amplitudes, mask):
    scaled = amplitudes * torch.linspace(1, 5, 4, dtype=torch.float64)[None, :, None, None, None]
    torch.testing.assert_close(losses.smoothness(scaled, mask), losses.smoothness(amplitudes, mask))


def test_smoothness_of_one_pair_by_hand():
    pair = torch.tensor([[3.0, 4.0], [0.0, 2.0]], dtype=torch.float64).view(1, 2, 1, 1, 2)
    mask = torch.ones(1, 2, 1, 1, dtype=torch.float64)
    change = ((0.6 - 0.0) ** 2 + (0.8 - 1.0) ** 2) / 2 / 2  # mean over the vertices, norm over both halves
    assert losses.smoothness(pair, mask).item() == pytest.approx(change)
    assert losses.smoothness(pair, mask, squared=False).item() == pytest.approx(change**0.5, rel=1e-6)


def test_smoothness_equals_the_published_one_on_the_whole_sphere(amplitudes):
    """In the middle of a volume, where the published slab of the centre holds all pairs of two layers."""
    layers = amplitudes[:, :3, :1, :1]
    both = torch.cat([layers, layers], dim=-1)  # the amplitudes of antipodes are equal
    unit = both / both.norm(dim=-1, keepdim=True)
    published = sum(((unit[:, 1] - unit[:, neighbour]) ** 2).mean() for neighbour in (0, 2)) / 2
    found = losses.smoothness(layers, torch.ones(layers.shape[:-1], dtype=torch.float64))
    torch.testing.assert_close(found, published)


def test_sparsity_and_negativity_by_hand():
    values = torch.tensor([-0.1, 0.2], dtype=torch.float64).view(1, 1, 1, 1, 2)
    mask = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    assert losses.negativity(values, mask).item() == pytest.approx(0.005)
    expected = torch.log1p(torch.tensor([0.01, 0.04], dtype=torch.float64) / 2e-5).sum()
    assert losses.sparsity(values, mask).item() == pytest.approx(expected.item())


def test_sparsity_prefers_one_direction_to_two_of_half_the_size():
    one = torch.tensor([1.0, 0.0]).view(1, 1, 1, 1, 2)
    two = torch.tensor([0.5, 0.5]).view(1, 1, 1, 1, 2)
    mask = torch.ones(1, 1, 1, 1)
    assert losses.sparsity(one, mask) < losses.sparsity(two, mask)


def test_a_missed_fibre_costs_in_proportion_to_its_volume():
    major = torch.zeros(1, 1, 1, 1, 24, dtype=torch.float64)
    major[..., 8] = 20
    mask = torch.ones(1, 1, 1, 1, dtype=torch.float64)

    def cost(term, volume):
        both = major.clone()
        both[..., 3] = 20 * volume
        return term(major, both, mask).item()

    assert cost(losses.hellinger, 0.2) == pytest.approx(2 * cost(losses.hellinger, 0.1), rel=0.15)
    assert cost(losses.fibre_density_error, 0.2) > 3 * cost(losses.fibre_density_error, 0.1)


def test_hellinger_by_hand():
    found = torch.tensor([0.0, 0.99], dtype=torch.float64).view(1, 1, 1, 1, 2)
    truth = torch.tensor([0.24, 3.99], dtype=torch.float64).view(1, 1, 1, 1, 2)
    expected = ((0.1 - 0.5) ** 2 + (1 - 2) ** 2) / 2
    assert losses.hellinger(found, truth, torch.ones(1, 1, 1, 1, dtype=torch.float64)).item() == pytest.approx(expected)
