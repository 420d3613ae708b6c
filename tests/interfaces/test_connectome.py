"""Connectomes of a stage, from files to tables, against the same by hand."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nipype.interfaces.base import isdefined

from shd_bids.images import load_volume
from shd_bids.interfaces.base import read_json
from shd_bids.interfaces.connectome import ConnectRegions
from shd_bids.interfaces.report import DrawConnectome
from shd_bids.tractography.density import means_along
from shd_bids.tractography.files import read_each, read_trx
from tests.interfaces.stages import run
from tests.interfaces.streamlines import track

MU = 0.25


@pytest.fixture
def files(true_fod, tmp_path):
    """Weighted streamlines, their facts, a map, and labels of eight blocks and of the left half only."""
    tracked = Path(track(true_fod, tmp_path / "track").tracks_file)
    n = len(read_trx(tracked))
    np.save(tmp_path / "weights.npy", np.linspace(0, 2, n).astype(np.float32))
    facts = tmp_path / "weights.json"
    facts.write_text(json.dumps({"sidecar": {"weights": {"StreamlineWeights": {"ProportionalityCoefficient": MU}}}}))
    mask = load_volume(Path(true_fod["mask_file"]))
    places = np.indices(mask.shape) >= np.array(mask.shape)[:, None, None, None] // 2
    blocks = 1 + np.tensordot([4, 2, 1], places, 1)
    for name, data in (("blocks", blocks), ("left", np.where(places[0], 0, 9))):
        nib.save(nib.Nifti1Image(data.astype(np.int16), mask.affine), tmp_path / f"{name}.nii.gz")
    (tmp_path / "left.tsv").write_text("index\tname\n9\tleft half\n11\tabsent\n")
    return {
        "tracks_file": str(tracked),
        "streamline_weights_file": str(tmp_path / "weights.npy"),
        "weights_facts_file": str(facts),
        "map_files": [true_fod["vfwm_file"]],
        "map_names": ["vfwm"],
        "image_files": [str(tmp_path / f"{name}.nii.gz") for name in ("blocks", "left")],
        "labels": ["seg-blocks", "seg-left"],
        "table_files": [str(tmp_path / "left.tsv")],
        "table_labels": ["seg-left"],
        "radius": 2.0,
    }


def read(folder: Path, name: str) -> np.ndarray:
    return np.genfromtxt(folder / name, delimiter="\t", missing_values="n/a", filling_values=np.nan)


def test_tables_are_those_of_the_streamlines(files, true_fod, tmp_path):
    outputs = run(ConnectRegions, tmp_path / "connect", **files)
    kinds = ("streamlineCount", "fibreBundleCapacity", "streamlineDensity", "meanLength", "meanvfwm", "nodes")
    names = {f"{label}.{kind}.tsv" for label in files["labels"] for kind in kinds}
    assert {Path(path).name for path in outputs.table_files} == names
    tracked = Path(files["tracks_file"])
    lines, each = read_trx(tracked), read_each(tracked)
    blocks = load_volume(Path(files["image_files"][0]))
    ends = np.array([[line[0], line[-1]] for line in lines])
    voxels = np.rint(nib.affines.apply_affine(np.linalg.inv(blocks.affine), ends)).astype(int)
    nodes = blocks.data[tuple(np.moveaxis(voxels, -1, 0))].astype(int) - 1
    vfwm = load_volume(Path(true_fod["vfwm_file"]))
    along = means_along(lines, vfwm.data, vfwm.affine)
    a, b = max({tuple(sorted(pair)) for pair in nodes.tolist() if pair[0] != pair[1]})
    own = (np.sort(nodes, axis=1) == [a, b]).all(axis=1)
    weight, folder = np.load(files["streamline_weights_file"])[own], tmp_path / "connect"
    expected = {
        "streamlineCount": own.sum(),
        "fibreBundleCapacity": MU * weight.sum(),
        "meanLength": np.average(each["length"][own], weights=weight),
        "meanvfwm": np.average(along[own], weights=weight),
    }
    for kind, value in expected.items():
        matrix = read(folder, f"seg-blocks.{kind}.tsv")
        assert matrix.shape == (8, 8)
        assert matrix[a, b] == matrix[b, a] == pytest.approx(value, rel=1e-4), kind
    assert read(folder, "seg-blocks.streamlineCount.tsv").sum() >= len(lines)
    about = read_json(folder / "facts.json")
    told = about["sidecar"]["connectomes"]["seg-blocks"]
    assert told["StreamlinesAssigned"] == told["Streamlines"] == len(lines)
    assert about["qc"]["connectome_assigned_seg-blocks"]["value"] == 1
    figure = run(DrawConnectome, tmp_path / "draw", matrices_file=outputs.matrices_file)
    assert figure.figure_file.endswith("connectome.png")


def test_regions_keep_names_and_rows_though_the_image_lacks_them(files, tmp_path):
    run(ConnectRegions, tmp_path / "connect", **files)
    folder = tmp_path / "connect"
    rows = (folder / "seg-left.nodes.tsv").read_text().splitlines()
    assert rows[0].split("\t") == ["matrix_index", "node_file", "node_index", "name", "volume"]
    assert rows[1].split("\t")[:4] == ["0", "left.nii.gz", "9", "left half"]
    assert rows[2].split("\t")[2:] == ["11", "absent", "0"]
    assert not read(folder, "seg-left.streamlineCount.tsv")[1].any()
    assert (folder / "seg-left.meanLength.tsv").read_text().splitlines()[1] == "n/a\tn/a"


def test_streamlines_that_end_nowhere_are_told(files, tmp_path, caplog):
    run(ConnectRegions, tmp_path / "connect", **files)
    told = read_json(tmp_path / "connect" / "facts.json")["sidecar"]["connectomes"]["seg-left"]
    assert told["StreamlinesAssigned"] < told["Streamlines"]
    assert told["StreamlinesOneEndAssigned"] > 0
    assert "seg-left: only " in caplog.text and "seg-blocks: only" not in caplog.text


def test_without_weights_streamlines_are_counted(files, tmp_path):
    own = {name: value for name, value in files.items() if "weights" not in name}
    outputs = run(ConnectRegions, tmp_path / "connect", **own)
    assert not any("fibreBundleCapacity" in path for path in outputs.table_files)
    assert isdefined(outputs.matrices_file)
    shown = np.load(outputs.matrices_file)["seg-blocks"]
    np.testing.assert_array_equal(shown, read(tmp_path / "connect", "seg-blocks.streamlineCount.tsv"))
