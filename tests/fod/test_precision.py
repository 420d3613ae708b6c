"""How well directions are told depends on the protocol."""

import pytest

from shd_bids.fod.config import PrecisionConfig
from shd_bids.fod.precision import saddle_prominence
from shd_bids.simulation import make_gradients


@pytest.mark.parametrize(
    ("shells", "prominence"),
    [({1000.0: 12}, 0.1), ({1000.0: 12, 3000.0: 12}, 0.3), ({2000.0: 12}, 0.3), ({700.0: 6, 1200.0: 12}, 0.1)],
)
def test_saddles_are_deep_where_any_weighting_is_strong(rng, shells, prominence):
    gradients = make_gradients(rng, shells, n_b0=2)
    assert saddle_prominence(gradients, PrecisionConfig(prominence=0.3, weak_prominence=0.1)) == prominence
