"""Responses as text: without loss, as MRtrix3 writes it, and refused."""

import numpy as np
import pytest

from shd_bids.errors import InputError
from shd_bids.response.mrtrix import format_response, parse_response


def test_text_holds_the_response_without_loss(estimate):
    for first in estimate.responses.tissues:
        again = parse_response(format_response(first), first.tissue, first.bvalues)
        np.testing.assert_allclose(again.coefficients, first.coefficients, rtol=1e-14)
    assert format_response(estimate.responses.gm).startswith("# Shells: 0,1000,2000,3000\n")


def test_text_of_mrtrix_is_read():
    text = "# Shells: 0,999\n# command_history: amp2response 'x' (version=3.0.3)\n2130.7 0 0\n1190.2 -328.5 71.8\n"
    wm = parse_response(text, "wm")
    assert wm.bvalues.tolist() == [0, 999]
    assert wm.coefficients.tolist() == [[2130.7, 0, 0], [1190.2, -328.5, 71.8]]
    assert wm.l_max == 4
    assert parse_response(text, "wm", [0, 1000]).bvalues.tolist() == [0, 1000]


@pytest.mark.parametrize(
    ("text", "bvalues", "message"),
    [
        ("", [0, 1000], "found 0 rows"),
        ("600 0\n300 abc\n", [0, 1000], "found '300 abc', expected rows of numbers"),
        ("600 0\n300\n", [0, 1000], "of equal length"),
        ("# Shells: 0,1000\n600 0\n300 -50\n", [0, 1000, 2000], "2 rows, expected 3, one for each shell"),
        ("# Shells: 0,1000\n600 0\n300 -50\n", [0, 3000], "made for the shells 0, 1000 .* has 0, 3000"),
        ("600 0\n300 -50\n", None, "no line '# Shells"),
        ("600 0\n300 -50\n", [0, 1000], "no line '# Shells: ...' with the b-values of its 2 rows; add it"),
        ("600 0\n-300 -50\n", [0, 1000], "expected all above 0"),
        ("600 0\nnan -50\n", [0, 1000], "expected finite"),
    ],
)
def test_text_that_is_no_response_for_this_image_is_refused(text, bvalues, message):
    with pytest.raises(InputError, match=message):
        parse_response(text, "wm", bvalues)
