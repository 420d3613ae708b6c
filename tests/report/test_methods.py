"""The methods text: what was done, each reference once."""

import re

import pytest

from shd_bids.report.html import RunReport
from shd_bids.report.methods import REFERENCES, methods_text
from tests.report.facts import PREFIX


def test_methods_cite_each_listed_reference_once_in_order(facts):
    text = methods_text([RunReport(PREFIX, facts)])
    body, _, references = text.partition("<ol")
    numbers = [int(number) for group in re.findall(r"\[([\d, ]+)\]", body) for number in group.split(",")]
    assert list(dict.fromkeys(numbers)) == list(range(1, references.count("<li>") + 1))
    assert "probabilistic, second-order" in body
    assert "grey matter (75 %), edge of the mask (25 %)" in body
    assert "degree 12" in body
    assert "a weight of one is 0.125 mm²" in body
    assert "11,111 of 12,345 streamlines lie in or within 4 mm of the 4 regions of seg-four" in body


def test_methods_tell_only_what_was_done(facts):
    done = {stage: facts[stage] for stage in ("gradients", "response")}
    text = methods_text([RunReport(PREFIX, done, {"responses": ["wm.txt"]})])
    assert "taken from files" in text
    assert "fODF" not in text
    assert "tractography" not in text


@pytest.mark.parametrize(
    ("made", "said", "unsaid"),
    [
        ({}, ("supervised on simulated volumes.", "shd_bids, with the layers of", "refined by the data"), ("SHD-TV",)),
        ({"is_refined": False}, ("serve any protocol",), ("refined",)),
        ({"fit": "subject"}, ("supervised on simulated volumes, then adapted to the series",), ()),
        (
            {"method": "SHD-TV", "is_supervised": False, "is_refined": False, "fit": "subject"},
            ("SHD-TV as published", "trained on the series by its signal alone"),
            ("refined", "simulated", "shd_bids, with"),
        ),
        ({"method": "mine <b>", "is_supervised": False}, ("the recipe mine &lt;b&gt;",), ("Elaldi",)),
    ],
)
def test_methods_say_which_method_made_the_fodfs(facts, made, said, unsaid):
    text = methods_text([RunReport(PREFIX, {"fod": facts["fod"] | {"info": facts["fod"]["info"] | made}})])
    assert all(words in text for words in said)
    assert not any(words in text for words in unsaid)


def test_equal_runs_share_their_sentences(facts):
    text = methods_text([RunReport("sub-01_run-1", facts), RunReport("sub-01_run-2", facts)])
    assert text.count("refined by the data") == 1
    assert "sub-01_run-1, sub-01_run-2" in text


def test_references_have_resolvable_addresses():
    for text, url in REFERENCES.values():
        assert text.endswith(".")
        assert url == "" or url.startswith(("https://doi.org/10.", "https://arxiv.org/abs/"))
