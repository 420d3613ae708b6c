"""A series that an earlier call finished is known without reading its files."""

import json
from dataclasses import replace

import pytest

from shd_bids.bids import collect, provenance
from shd_bids.bids.recall import remembered
from shd_bids.settings import Settings
from tests.bids_trees import raw_dataset, write_dwi, write_mask


@pytest.fixture
def study(tmp_path):
    """A data set, settings, and its series as a call that finished it recorded it."""
    settings = Settings(bids_dir=raw_dataset(tmp_path / "raw"), output_dir=tmp_path / "out")
    write_mask(settings.bids_dir, "sub-01_desc-brain_mask")
    (run,) = collect.collect_runs(settings)
    hashes = {path: provenance.sha256(path) for path in run.files}
    record = {"status": "finished", "seen": remembered(run, settings, hashes)}
    path = settings.output_dir / "sub-01" / "log" / "1" / "provenance.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"series": {run.key: record}}))
    return settings, run, path


@pytest.fixture
def read(monkeypatch):
    """Return a list of the images that are read."""
    images = []
    load = collect.load_volume
    monkeypatch.setattr(collect, "load_volume", lambda path, **words: images.append(path) or load(path, **words))
    monkeypatch.setattr(provenance, "sha256", lambda path: images.append(path) or "0" * 64)
    return images


def test_files_that_did_not_change_are_not_read(study, read):
    settings, run, _ = study
    (known,) = collect.collect_runs(settings)
    assert replace(known, hashes={}) == run
    hashes = provenance.hash_inputs(known, replace(settings, fit="subject", weights="none"))
    assert len(hashes) == 4 and "0" * 64 not in hashes.values()
    assert read == []


@pytest.mark.parametrize("change", ["image", "table", "mask", "no mask", "threshold", "overwrite", "record"])
def test_what_changed_is_read(study, read, change):
    settings, run, record = study
    match change:
        case "image":
            write_dwi(settings.bids_dir, "sub-01_dwi", gradients=False)
        case "table":
            run.bval.write_text(run.bval.read_text())
        case "mask":
            write_mask(settings.bids_dir, "sub-01_desc-brain_mask")
        case "no mask":
            run.mask.unlink()
        case "threshold":
            settings = replace(settings, b0_threshold=20.0)
        case "overwrite":
            settings = replace(settings, overwrite=True)
        case "record":
            record.write_text('{"series": {"sub_01": {"status": "finished", "seen": 1}}}')
    collect.collect_runs(settings)
    assert read == [run.dwi]
