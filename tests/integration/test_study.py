"""A study of two sites with other protocols and gains: one subject is broken, one has two sessions, one was scanned twice."""

import csv
import json

import nibabel as nib
import numpy as np
import pytest

from tests.bids_trees import write_description
from tests.integration.app import call, call_group
from tests.phantoms import RAS, head

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("study")]  # one worker, so that the study runs once

PROTOCOLS = {"A": {1000.0: 16, 2500.0: 24}, "B": {1000.0: 20, 2000.0: 20}}
GAINS = {"A": 1.0, "B": 1.7}
NAMES = {
    "A": ["sub-A1", "sub-A2", "sub-A3", "sub-A4", "sub-A5", "sub-A6/ses-1", "sub-A6/ses-2"],
    "B": ["sub-B1", "sub-B2", "sub-B3", "sub-B4", "sub-B5", "sub-B6_run-1", "sub-B6_run-2"],
}
BROKEN, NOISY, BRIGHT = "sub-B2", "sub-A2", "sub-B4"


def write_study(raw):
    """Write twelve subjects; each site has a head of its own, with its own noise in every scan."""
    write_description(raw, Name="two sites")
    rows = ["participant_id\tsite"]
    for number, site in enumerate(PROTOCOLS):
        rng = np.random.default_rng(number)
        clean, table, _ = head(rng, size=10, snr=1e6, shells=PROTOCOLS[site])
        for name in NAMES[site]:
            subject = name[:6]
            sigma = 500 / (6 if subject == NOISY else 40)
            gain = GAINS[site] * (1.7 if subject == BRIGHT else np.exp(0.01 * rng.normal()))
            signal = gain * np.abs(clean + sigma * rng.normal(size=clean.shape))
            write_scan(raw, name, signal, table, site)
            rows += [f"{subject}\t{site}"]
    (raw / "participants.tsv").write_text("\n".join(dict.fromkeys(rows)) + "\n")


def write_scan(raw, name, signal, table, site):
    folder, _, rest = name.partition("/")
    folder, run = folder.partition("_")[::2]
    entities = "_".join(filter(None, (folder, rest, run, "dwi")))
    stem = raw.joinpath(folder, *filter(None, [rest]), "dwi") / entities
    stem.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(signal.astype(np.float32), RAS), f"{stem}.nii.gz")
    np.savetxt(f"{stem}.bval", table.bvals[None], fmt="%.1f")
    directions = table.directions * [-1, 1, 1]  # as FSL, the image being right-handed
    np.savetxt(f"{stem}.bvec", directions.T, fmt="%.8f")
    stem.with_name(stem.name + ".json").write_text(json.dumps({"StationName": site}))


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Root of the study after the participant level and the group level, with what they returned and told."""
    root = tmp_path_factory.mktemp("study")
    write_study(root / "raw")
    (root / "raw" / BROKEN / "dwi" / f"{BROKEN}_dwi.bvec").write_text("0 0\n0 0\n0 0\n")
    codes = (
        call(root / "raw", root / "out", level="response"),
        call_group(root / "raw", root / "out", "--group-by", "site"),
    )
    return root, codes


def rows(out):
    text = (out / "group_desc-shdtv_qc.tsv").read_text()
    return {row["series"]: row for row in csv.DictReader(text.splitlines(), delimiter="\t")}


def test_one_command_does_the_rest_of_a_study_with_a_broken_subject(study):
    root, codes = study
    assert codes == (1, 1)
    found = rows(root / "out")
    assert len(found) == 14
    assert {name for name, row in found.items() if row["status"] != "finished"} == {BROKEN}


def test_the_broken_subject_is_one_line_in_the_table_the_page_and_its_report(study):
    out = study[0] / "out"
    reason = rows(out)[BROKEN]["reason"]
    assert f"{BROKEN}_dwi.bvec" in reason and "\n" not in reason
    assert reason in (out / f"{BROKEN}.html").read_text().replace("&#39;", "'")
    assert f'<a href="{BROKEN}.html">' in (out / "group_desc-shdtv_qc.html").read_text()


def test_outliers_are_those_that_were_made(study):
    found = rows(study[0] / "out")
    assert {name for name, row in found.items() if row["outlier_in"] != "n/a"} == {BRIGHT, NOISY}
    assert "response_wm_b0:high" in found[BRIGHT]["outlier_in"]
    assert "response_wm_l2_share_b2500:high" in found[NOISY]["outlier_in"]  # noise makes it look round


def test_protocols_have_sets_of_their_own(study):
    out = study[0] / "out"
    groups = {name: row["group"] for name, row in rows(out).items() if name != BROKEN}
    assert {group: sum(other == group for other in groups.values()) for group in groups.values()} == {
        "protocol1, A": 7,
        "protocol2, B": 6,
    }
