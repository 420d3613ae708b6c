"""The methods text: what was done, each reference once."""

import re

from shd_bids.report.html import RunReport
from shd_bids.report.methods import REFERENCES, methods_text
from tests.report.facts import PREFIX


def test_methods_cite_each_listed_reference_once_in_order(facts):
    text = methods_text([RunReport(PREFIX, facts)])
    body, _, references = text.partition("<ol")
    numbers = [int(number) for group in re.findall(r"\[([\d, ]+)\]", body) for number in group.split(",")]
    assert list(dict.fromkeys(numbers)) == list(range(1, references.count("<li>") + 1))
    assert "parallel transport" in body
    assert "degree 12" in body


def test_methods_tell_only_what_was_done(facts):
    done = {stage: facts[stage] for stage in ("gradients", "response")}
    text = methods_text([RunReport(PREFIX, done, {"responses": ["wm.txt"]})])
    assert "taken from files" in text
    assert "SHD-TV" not in text
    assert "tractography" not in text


def test_equal_runs_share_their_sentences(facts):
    text = methods_text([RunReport("sub-01_run-1", facts), RunReport("sub-01_run-2", facts)])
    assert text.count("SHD-TV") == 1
    assert "sub-01_run-1, sub-01_run-2" in text


def test_references_have_resolvable_addresses():
    for text, url in REFERENCES.values():
        assert text.endswith(".")
        assert url == "" or url.startswith(("https://doi.org/10.", "https://arxiv.org/abs/"))
