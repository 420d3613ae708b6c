"""The arithmetic in plain PyTorch."""

import itertools

import torch

from shd_bids.nn.backends.eager import shell_sums


def test_shell_sums_are_the_taps_at_each_distance(generator):
    x = torch.randn(2, 1, 3, 4, 5, 2, generator=generator, dtype=torch.float64)
    taps = torch.nn.functional.pad(x, (0, 0, 1, 1, 1, 1, 1, 1))
    expected = torch.zeros(*x.shape[:-1], 4, 2, dtype=torch.float64)
    for i, j, k in itertools.product(range(3), repeat=3):
        expected[..., abs(i - 1) + abs(j - 1) + abs(k - 1), :] += taps[:, :, i : i + 3, j : j + 4, k : k + 5]
    torch.testing.assert_close(shell_sums(x), expected)
