"""A protocol for the tests of gradient tables."""

import pytest

from shd_bids import simulation


@pytest.fixture
def protocol(rng):
    """Two b=0 volumes and 30 directions of b=1000."""
    return simulation.make_gradients(rng, {1000.0: 30}, n_b0=2)
