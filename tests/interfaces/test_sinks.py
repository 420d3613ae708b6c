"""Files in their final places: whole or absent, with sidecars, without a second copy on disk."""

import csv
import json
import os

import pytest

from shd_bids.bids.parcellations import Parcellation
from shd_bids.errors import OutputError
from shd_bids.interfaces.base import qc_column, read_failure
from shd_bids.interfaces.sinks import SaveConnectomes, SaveDerivatives, SaveFigures, SaveQC, place
from tests.bids_trees import dwi_run

SIDECAR = {
    "shells": [0, 1000],
    "mask_origin": "given",
    "response": {"wm": [[2.0, 0.0], [1.0, -0.3]], "csf": [[5.0], [0.3]]},
    "model": {"Method": "conditioned", "Fit": "amortised"},
    "fod_lmax": 8,
    "peaks": {"PeakMaximumNumber": 5},
    "tractography": {"RandomSeed": 3},
}


@pytest.fixture
def facts_file(tmp_path):
    path = tmp_path / "facts.json"
    content = {"stage": "fod", "sidecar": SIDECAR, "seconds": 1.5, "peak_memory_mb": 120}
    path.write_text(json.dumps(content | {"qc": {"snr": qc_column(20.5, "Ratio", "1"), "none": qc_column(None, "x")}}))
    return path


def source(tmp_path, name, text="content"):
    path = tmp_path / "node" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return str(path)


def save(interface, tmp_path, **inputs):
    sink = interface(run=dwi_run(tmp_path / "raw"), output_dir=str(tmp_path / "out"), **inputs)
    sink.inputs.run_dir = str(tmp_path / "run")
    cwd = tmp_path / "cwd"
    cwd.mkdir(exist_ok=True)
    return sink.run(cwd=cwd).outputs.out_files


def test_derivatives_have_names_and_sidecars(tmp_path, facts_file):
    files = save(
        SaveDerivatives,
        tmp_path,
        facts_files=[str(facts_file)],
        method="prob",
        sloppy=True,
        wm=source(tmp_path, "wm.nii.gz"),
        wm_response=source(tmp_path, "wm.txt"),
        tractogram=[source(tmp_path, "tractogram.trx"), source(tmp_path, "tractogram.tck")],
    )
    folder = tmp_path / "out" / "sub-01" / "dwi"
    assert sorted(path.name for path in folder.iterdir()) == [
        "sub-01_space-orig_model-shdtv_param-wm_dwimap.json",
        "sub-01_space-orig_model-shdtv_param-wm_dwimap.nii.gz",
        "sub-01_space-orig_model-shdtv_param-wm_response.txt",
        "sub-01_space-orig_tract-wholebrain_track-prob_tractogram.json",
        "sub-01_space-orig_tract-wholebrain_track-prob_tractogram.tck",
        "sub-01_space-orig_tract-wholebrain_track-prob_tractogram.trx",
    ]
    assert len(files) == 4
    sidecar = json.loads((folder / "sub-01_space-orig_model-shdtv_param-wm_dwimap.json").read_text())
    assert sidecar["OrientationEncoding"]["SphericalHarmonicDegree"] == 8
    assert sidecar["Sloppy"] is True
    assert not (tmp_path / "run" / "facts").exists()  # a sink is no stage


def test_tissues_that_are_fitted_no_more_are_removed(tmp_path, facts_file):
    maps = {name: source(tmp_path, f"{name}.nii.gz") for name in ("wm", "csf", "vfwm")}
    inputs = {"facts_files": [str(facts_file)]}
    save(SaveDerivatives, tmp_path, **inputs, kept_as=("fod", "a"), **maps)
    folder = tmp_path / "out" / "sub-01" / "dwi"
    assert len(list(folder.glob("*_param-csf_dwimap.*"))) == 2
    save(SaveDerivatives, tmp_path, **inputs, kept_as=("response", "b"), wm_response=source(tmp_path, "wm.txt"))
    assert len(list(folder.glob("*_dwimap.*"))) == 6
    save(SaveDerivatives, tmp_path, **inputs, kept_as=("fod", "b"), wm=maps["wm"])
    assert not list(folder.glob("*_param-csf_dwimap.*"))
    assert len(list(folder.glob("*_param-wm_dwimap.*"))) == len(list(folder.glob("*_param-vfwm_dwimap.*"))) == 2


def test_connectomes_have_names_and_sidecars(tmp_path):
    regions = Parcellation(image=tmp_path / "l.nii.gz", table=None, entities={"seg": "x"}, uri="bids:raw:l.nii.gz")
    facts = tmp_path / "facts.json"
    facts.write_text(json.dumps({"sidecar": {"connectomes": {"seg-x": {"AssignmentRadius": 3.0}}}}))
    sink = SaveConnectomes(
        run=dwi_run(tmp_path / "raw", parcellations=(regions,)),
        output_dir=str(tmp_path / "out"),
        table_files=[source(tmp_path, f"seg-x.{name}.tsv") for name in ("nodes", "streamlineDensity", "meanafdtotal")],
        facts_files=[str(facts)],
        method="det",
        format="tck",
    )
    (tmp_path / "cwd").mkdir()
    assert len(sink.run(cwd=tmp_path / "cwd").outputs.out_files) == 3
    folder = tmp_path / "out" / "sub-01" / "dwi"
    names = ("nodeindices", "meas-streamlineDensity_relmat", "meas-meanafdtotal_relmat")
    assert {path.name for path in folder.iterdir()} == {
        f"sub-01_space-orig_seg-x_{name}{kind}"
        for name in names
        for kind in (".json", ".tsv" if name == "nodeindices" else ".dense.tsv")
    }
    density = json.loads((folder / f"sub-01_space-orig_seg-x_{names[1]}.json").read_text())
    assert (density["MeasureUnits"], density["AssignmentRadius"], density["Weighted"]) == ("1/mm3", 3.0, True)
    assert density["NodeFiles"] == ["bids::sub-01/dwi/sub-01_space-orig_seg-x_nodeindices.tsv"]
    assert density["Sources"] == [
        "bids::sub-01/dwi/sub-01_space-orig_tract-wholebrain_track-det_tractogram.tck",
        "bids:raw:l.nii.gz",
    ]
    mean = json.loads((folder / f"sub-01_space-orig_seg-x_{names[2]}.json").read_text())
    assert "Apparent fibre density, total" in mean["Description"]


def test_place_makes_a_link_and_replaces_what_was_there(tmp_path):
    path = tmp_path / "a" / "result"
    path.parent.mkdir()
    path.write_text("old")
    new = tmp_path / "new"
    new.write_text("new")
    place(new, path)
    assert path.samefile(new)
    assert [item.name for item in path.parent.iterdir()] == ["result"]
    place(new, path)  # nothing to do
    assert path.read_text() == "new"


def test_place_copies_where_links_do_not_work(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("another file system")

    monkeypatch.setattr(os, "link", refuse)
    new = tmp_path / "new"
    new.write_text("new")
    place(new, tmp_path / "out" / "result")
    assert (tmp_path / "out" / "result").read_text() == "new"
    assert not (tmp_path / "out" / "result").samefile(new)


def test_output_that_cannot_be_written_is_told(tmp_path, facts_file):
    (tmp_path / "out").write_text("a file where the folder should be")
    with pytest.raises(OutputError, match=r"param-wm_dwimap.nii.gz: cannot be written"):
        save(SaveDerivatives, tmp_path, facts_files=[str(facts_file)], wm=source(tmp_path, "wm.nii.gz"))
    assert read_failure(tmp_path / "run", "").exit_code == 73


def test_figures_that_came(tmp_path):
    (file,) = save(SaveFigures, tmp_path, mask=source(tmp_path, "mask.png"))  # the others could not be drawn
    assert file == str(tmp_path / "out" / "sub-01" / "figures" / "sub-01_desc-mask_dwi.png")


def test_qc_table_has_one_row_and_a_dictionary(tmp_path, facts_file):
    (file,) = save(SaveQC, tmp_path, facts_files=[str(facts_file)])
    with open(file) as handle:
        (row,) = csv.DictReader(handle, delimiter="\t")
    assert row == {
        "subject": "01",
        "session": "n/a",
        "series": "sub-01",
        "snr": "20.5",
        "none": "n/a",
        "runtime_s_fod": "1.5",
        "peak_rss_mb": "120",
    }
    dictionary = json.loads((tmp_path / "out" / "sub-01" / "dwi" / "sub-01_space-orig_desc-shdtv_qc.json").read_text())
    assert dictionary["snr"] == {"Description": "Ratio", "Units": "1"}
    assert set(dictionary) == set(row)


def test_sinks_always_run():
    """The cache knows what went in, not whether the data set still holds it."""
    assert SaveDerivatives().always_run and SaveFigures().always_run and SaveQC().always_run
