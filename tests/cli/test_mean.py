"""Mean responses of a study of two sites: what is written, taken up, refused and renewed."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from shd_bids.bids.names import group_path, output_path
from shd_bids.bids.response_sets import read_sets, with_responses
from shd_bids.bids.stages import facts_path
from shd_bids.cli.mean import run_mean_responses
from shd_bids.errors import InputError, NoInputError
from shd_bids.files import write_json
from shd_bids.response.mrtrix import format_response, parse_response
from shd_bids.response.response import Response
from shd_bids.settings import Settings
from tests.bids_trees import dwi_run, raw_dataset

ROWS = {
    "wm": np.array([[900.0, 0, 0], [500, -120, 20]]),
    "gm": np.array([[1100.0], [500]]),
    "csf": np.array([[3000.0], [150]]),
}
GAINS = {"A": 1.0, "B": 1.7}


@pytest.fixture
def study(tmp_path):
    """Five series of each of two sites with their responses: (runs, settings)."""
    raw = raw_dataset(tmp_path / "raw")
    settings = Settings(bids_dir=raw, output_dir=tmp_path / "out", work_dir=tmp_path / "work", analysis_level="group")
    rng = np.random.default_rng(4)
    runs = [
        dwi_run(raw, entities={"sub": f"{site}{number}"}, sidecar={"StationName": site})
        for site in GAINS
        for number in range(5)
    ]
    for run in runs:
        write(run, settings, GAINS[run.sidecar["StationName"]] * np.exp(0.02 * rng.normal()))
    return runs, settings


def write(run, settings, gain=1.0, **rows):
    for tissue, own in (ROWS | rows).items():
        path = output_path(settings.output_dir, run, f"{tissue}_response")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(format_response(Response(tissue, np.array([0.0, 1000]), gain * own)))


def mean_of(runs, settings):
    return run_mean_responses(runs, settings, argv=["raw", "out", "group"])


def participant(settings):
    return replace(settings, analysis_level="participant", responses=(Path("group"),))


def test_each_site_has_a_set_in_its_own_unit(study):
    runs, settings = study
    assert mean_of(runs, settings) == 0
    sets = read_sets(settings.output_dir)
    assert [item.label for item in sets] == ["protocol1", "protocol2"]
    for tissue, rows in ROWS.items():
        paths = [group_path(settings.output_dir, f"{tissue}_response", item.label) for item in sets]
        one, two = (parse_response(path.read_text(), tissue).coefficients for path in paths)
        np.testing.assert_allclose(two / 1.7, one, rtol=0.06)
        np.testing.assert_allclose(one / one[0, 0], rows / rows[0, 0], rtol=1e-9)
    sidecar = json.loads((settings.output_dir / "group_acq-protocol2_model-shdtv_param-wm_response.json").read_text())
    assert sidecar["Protocol"]["StationName"] == "B" and sidecar["LeftOut"] == []
    assert sidecar["Members"] == [f"sub-B{number}_space-orig" for number in range(5)]
    assert sidecar["Sources"][0].startswith("bids::sub-B0/dwi/sub-B0_space-orig_model-shdtv_param-wm_response.txt")


def test_each_series_takes_the_set_of_its_site_and_another_is_refused_in_one_line(study):
    runs, settings = study
    mean_of(runs, settings)
    served = with_responses(runs, participant(settings))
    assert {run.responses[0].name.split("_")[1] for run in served if "B" in run.subject} == {"acq-protocol2"}
    assert all(len(run.responses) == 3 for run in served)
    other = replace(runs[0], shells=((0.0, 2), (3000.0, 12)))
    with pytest.raises(InputError, match=r"no set for its protocol \(b=3000: 12.*\), found protocol1") as caught:
        with_responses([*runs, other], participant(settings))
    assert len(caught.value.problems) == 1


def test_outliers_and_gains_are_told_and_outliers_left_out(study, caplog):
    runs, settings = study
    write(runs[2], settings, wm=ROWS["wm"] * [[1, 1, 1], [1.7, 0.1, 0]], csf=ROWS["csf"] * [[1], [9]])
    write(runs[3], settings, gain=1.7)
    assert mean_of(runs, settings) == 0
    (first, _) = read_sets(settings.output_dir)
    assert first.sidecars["wm"]["LeftOut"] == ["sub-A2_space-orig"]
    np.testing.assert_allclose(first.sidecars["csf"]["Series"]["sub-A3_space-orig"]["Gain"], 1.7, rtol=0.05)
    rows = np.array(first.sidecars["wm"]["ResponseFunction"]["Coefficients"])
    np.testing.assert_allclose(rows / rows[0, 0], ROWS["wm"] / 900, rtol=1e-9)
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert [text[:22] for text in warnings] == ["sub-A2_space-orig: lef", "sub-A3_space-orig: 1.7"]


def take(runs, settings):
    """Leave the means of the group as a call with them does."""
    for run in with_responses(runs, participant(settings)):
        for path in run.responses:
            tissue = path.name.partition("param-")[2].partition("_")[0]
            output_path(settings.output_dir, run, f"{tissue}_response").write_text(path.read_text())
        names = [path.name for path in run.responses]
        write_json(facts_path(settings.output_dir, run, "response"), {"given": names})


def test_former_means_are_no_estimates(study, caplog):
    """Series that were processed with a set keep it while the set is renewed with others, more than once."""
    runs, settings = study
    mean_of(runs[:3], settings)
    take(runs[:3], settings)
    assert mean_of(runs[:4], settings) == mean_of(runs[:5], settings) == 0
    renewed = read_sets(settings.output_dir)[0].sidecars
    for path in settings.output_dir.glob("group*"):
        path.unlink()
    assert mean_of(runs[:5], settings) == 1
    assert caplog.text.count("are means of the group level") == 3
    for number, run in enumerate(runs[:3]):
        for tissue in ROWS:
            rows = np.array(renewed[tissue]["Series"][f"sub-A{number}_space-orig"]["Coefficients"])
            text = format_response(Response(tissue, np.array([0.0, 1000]), rows))
            output_path(settings.output_dir, run, f"{tissue}_response").write_text(text)
        facts_path(settings.output_dir, run, "response").unlink()
    assert mean_of(runs[:5], settings) == 0
    assert read_sets(settings.output_dir)[0].sidecars == renewed


def test_a_set_is_renewed_from_the_estimates_that_it_replaced(study):
    runs, settings = study
    mean_of(runs[:5], settings)
    before = read_sets(settings.output_dir)[0]
    take(runs[:5], settings)
    assert mean_of(runs, settings) == 0
    after, new = read_sets(settings.output_dir)
    assert after.sidecars == before.sidecars
    assert new.label == "protocol2"


def test_means_taken_for_a_series_that_is_not_in_them_are_no_estimate(study, caplog):
    runs, settings = study
    mean_of(runs[:4], settings)
    (found,) = with_responses(runs[4:5], participant(settings))
    output_path(settings.output_dir, runs[4], "wm_response").write_text(found.responses[0].read_text())
    assert mean_of(runs, settings) == 1
    assert "sub-A4: its responses are means of the group level, which were made without it" in caplog.text
    assert "sub-A4_space-orig" not in read_sets(settings.output_dir)[0].sidecars["wm"]["Series"]


def test_series_without_responses_are_told_and_the_others_averaged(study, caplog):
    runs, settings = study
    late = dwi_run(settings.bids_dir, entities={"sub": "C"})
    assert mean_of([*runs, late], settings) == 1
    assert "sub-C: no responses" in caplog.text and "--level response" in caplog.text
    with pytest.raises(NoInputError, match="sub-C: no responses"):
        mean_of([late], settings)


def test_a_dry_run_writes_nothing(study, capsys):
    runs, settings = study
    assert mean_of(runs, replace(settings, dry_run="json")) == 0
    plan = json.loads(capsys.readouterr().out)
    assert [len(item["series"]) for item in plan["sets"]] == [5, 5] and plan["missing"] == []
    assert mean_of(runs, replace(settings, dry_run="text")) == 0
    assert "protocol2: b=1000: 12; 2 x 2 x 2 mm; B: wm, gm, csf of 5 series" in capsys.readouterr().out
    assert not list(settings.output_dir.glob("group*"))


def test_a_tissue_that_most_lack_leaves_the_set(study):
    runs, settings = study
    mean_of(runs, settings)
    for run in runs[:4]:
        output_path(settings.output_dir, run, "csf_response").unlink()
    mean_of(runs, settings)
    assert [len(item.files) for item in read_sets(settings.output_dir)] == [2, 3]
    assert not list(settings.output_dir.glob("group_acq-protocol1*param-csf*"))


def test_a_damaged_set_is_one_line(study):
    runs, settings = study
    mean_of(runs, settings)
    path = settings.output_dir / "group_acq-protocol1_model-shdtv_param-wm_response.json"
    path.write_text("{}")
    with pytest.raises(InputError, match="no protocol as the group level writes it"):
        with_responses(runs, participant(settings))
