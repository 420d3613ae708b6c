"""Every form of layer and network is measured on the input that it takes, and one that computes something else is refused."""

import numpy as np
import pytest

from shd_bids.sphere import graph
from tests.benchmarks.paper import efficiency
from tests.benchmarks.paper.efficiency import Sizes, measure

SIZES = Sizes(2, (2, 3), (2, 3, 4, 5))


@pytest.mark.parametrize("nside", [1, 2])
@pytest.mark.parametrize("method", efficiency._METHODS)
def test_layers_are_measured(method, nside):
    values = measure(method, nside, SIZES, seed=0, device="cpu").values
    assert values["time_share"] > 0
    assert values["seconds"] < 5


@pytest.mark.slow
def test_network_of_another_function_is_refused(monkeypatch):
    monkeypatch.setitem(efficiency._FORMS, efficiency._HALF, "dense")
    assert measure(efficiency._HALF, 0, SIZES, seed=0, device="cpu").values["time_share"] > 0
    layer = efficiency.published.layer
    monkeypatch.setattr(
        efficiency.published, "layer", lambda x, conv, *, form: layer(x, conv, form=form) * (1 + (form == "dense"))
    )
    with pytest.raises(SystemExit, match="outputs differ"):
        measure(efficiency._HALF, 0, SIZES, seed=0, device="cpu")


def test_dense_forms_multiply_zeros_on_fine_grids():
    """Why the paper's second and third step, which pay on a GPU, do not on a processor from 768 vertices on."""
    work = {}
    for nside in (1, 2, 4, 8):
        matrix = graph.rescaled_laplacian(nside, hemisphere_only=True)
        work[nside] = matrix.size / np.sum(np.abs(matrix) > 1e-12)
    assert work[1] == 1
    assert work[2] < 3
    assert 9 < work[4] < 11
    assert 40 < work[8] < 43
