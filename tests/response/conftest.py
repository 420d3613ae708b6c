"""A scan of several shells and the responses estimated from it, once for all tests."""

import numpy as np
import pytest

from shd_bids.response.estimate import estimate_responses
from tests.response.heads import head


@pytest.fixture(scope="session")
def multi_shell():
    return head(np.random.default_rng(5), shells={1000.0: 16, 2000.0: 24, 3000.0: 32}, snr=40)


@pytest.fixture(scope="session")
def estimate(multi_shell):
    signal, mask, table, _ = multi_shell
    return estimate_responses(signal, mask, table)
