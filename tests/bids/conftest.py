"""A small data set."""

import pytest

from tests.bids_trees import raw_dataset


@pytest.fixture
def raw(tmp_path):
    return raw_dataset(tmp_path / "raw")
