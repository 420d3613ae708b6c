"""Masks and rows: every number stands where its voxel does."""

import numpy as np
import pytest

from shd_bids.boxes import chunks, row_numbers


@pytest.mark.parametrize("margin", [0, 2])
def test_rows_are_numbered_in_mask_order(margin):
    mask = np.random.default_rng(0).random((3, 4, 5)) < 0.4
    inner = row_numbers(mask, margin=margin)[tuple(slice(margin, n + margin) for n in mask.shape)]
    assert inner.shape == mask.shape
    np.testing.assert_array_equal(inner[mask], np.arange(mask.sum()))
    assert (inner[~mask] == -1).all()


def test_margin_lies_outside():
    numbers = row_numbers(np.ones((2, 2, 2), bool), margin=1)
    assert numbers.shape == (4, 4, 4)
    assert (numbers >= 0).sum() == 8 and numbers[1, 1, 1] == 0


@pytest.mark.parametrize(("n", "size", "lengths"), [(0, 3, []), (6, 3, [3, 3]), (7, 3, [3, 3, 1])])
def test_chunks_cover_all_rows_in_order(n, size, lengths):
    parts = chunks(n, size)
    assert [len(range(n)[part]) for part in parts] == lengths
    assert [row for part in parts for row in range(n)[part]] == list(range(n))
