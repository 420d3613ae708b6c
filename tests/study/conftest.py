"""A derivative data set as the participant level leaves it, without images."""

import json

import pytest
from PIL import Image

from shd_bids.bids.names import figure_path, log_dir, output_path, sidecar_path
from tests.bids_trees import dwi_run, raw_dataset

COLUMNS = {
    "subject": {"Description": "Subject label"},
    "series": {"Description": "Source entities of the series"},
    "snr": {"Description": "Signal-to-noise ratio", "Units": "1"},
    "mask_volume_ml": {"Description": "Volume of the mask", "Units": "ml"},
    "device": {"Description": "Where the network ran"},
}


class Derivatives:
    """Writes what a call leaves of a series."""

    def __init__(self, root):
        self.raw = raw_dataset(root / "raw")
        self.out = root / "out"

    def run(self, **entities):
        return dwi_run(self.raw, entities=entities)

    def record(self, run, call, status="finished", stages=None, **told):
        folder = log_dir(self.out, run.subject, call)
        folder.mkdir(parents=True, exist_ok=True)
        content = {"status": status, "series": {run.prefix: {"status": status, **told}}}
        (folder / "status.json").write_text(json.dumps(content))
        if stages is not None:
            (folder / "provenance.json").write_text(json.dumps({"series": {run.key: {"stages": stages}}}))

    def finish(self, run, call="20260101-000000_a", **values):
        self.record(run, call)
        row = {
            "subject": run.subject,
            "series": run.prefix,
            "snr": 25,
            "mask_volume_ml": 1400,
            "device": "cpu",
        } | values
        table = output_path(self.out, run, "qc")
        table.parent.mkdir(parents=True, exist_ok=True)
        table.write_text("\t".join(row) + "\n" + "\t".join(map(str, row.values())) + "\n")
        sidecar_path(table).write_text(json.dumps(COLUMNS))
        picture = figure_path(self.out, run, "thumbnail", extension=".webp")
        picture.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(picture)
        (self.out / f"sub-{run.subject}.html").write_text("report")


@pytest.fixture
def derivatives(tmp_path):
    return Derivatives(tmp_path)
