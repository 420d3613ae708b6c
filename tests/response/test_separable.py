"""Which tissues the shells tell apart."""

import numpy as np

from shd_bids import simulation
from shd_bids.response.estimate import estimate_responses
from shd_bids.response.response import Response, Responses
from shd_bids.response.separable import separable_tissues
from tests.response.heads import MICRO, head


def test_one_shell_tells_two_tissues_apart_and_says_so():
    signal, mask, table, _ = head(np.random.default_rng(7), shells={1000.0: 30}, snr=40)
    estimate = estimate_responses(signal, mask, table)
    assert estimate.separable_tissues == ("wm", "csf")
    assert estimate.responses.gm is not None and estimate.voxels["gm"].any()
    assert "one shell and b=0 cannot tell GM from them" in estimate.message


def test_tissues_that_look_alike_are_not_told_apart(multi_shell):
    table = multi_shell[2]
    truth = simulation.true_responses(MICRO, table)
    assert separable_tissues(truth, table)[0] == ("wm", "gm", "csf")
    twin = Response("gm", truth.csf.bvalues, truth.csf.coefficients * 0.7)
    assert separable_tissues(Responses(truth.wm, twin, truth.csf), table)[0] == ("wm", "csf")
    same = Response("csf", truth.wm.bvalues, truth.wm.coefficients[:, :1])
    tissues, reason = separable_tissues(Responses(truth.wm, None, same), table)
    assert tissues == ("wm",)
    assert "tells no tissue from WM" in reason
    assert separable_tissues(Responses(truth.wm), table) == (
        ("wm",),
        "the signal tells no tissue from WM: no other tissue was found",
    )
