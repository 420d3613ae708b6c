import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from shd_bids.bids.dataset import describe, portable_link, write_dataset_files
from shd_bids.errors import OutputError
from tests.bids_trees import dwi_run, write_description


@pytest.fixture
def runs(tmp_path):
    return (dwi_run(write_description(tmp_path / "data" / "raw")),)


def description(output_dir):
    return json.loads((output_dir / "dataset_description.json").read_text())


def test_writing_twice_changes_nothing(tmp_path, runs):
    out = tmp_path / "out"
    out.mkdir()
    write_dataset_files(out, runs, environment={})
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.iterdir()}
    write_dataset_files(out, runs, environment={})
    assert {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.iterdir()} == before
    assert {"dataset_description.json", ".bidsignore", "descriptions.tsv", "README.md"} <= set(before)


def test_required_keys(tmp_path, runs):
    content = describe(tmp_path / "out", runs, before={}, environment={})
    assert content["DatasetType"] == "derivative"
    assert content["GeneratedBy"][0]["Name"] == "shd_bids"
    assert content["DatasetLinks"] == {"raw": "../data/raw"}
    assert "Container" not in content["GeneratedBy"][0]


def test_programs_of_the_input_are_kept_and_links_merged(tmp_path, runs):
    root = runs[0].links["raw"]
    write_description(root, pipeline="prep")
    before = {
        "Name": "mine",
        "GeneratedBy": [{"Name": "shd_bids", "Version": "0"}, {"Name": "old"}],
        "DatasetLinks": {"other": "../other"},
    }
    content = describe(tmp_path / "out", runs, before=before, environment={})
    assert [maker["Name"] for maker in content["GeneratedBy"]] == ["shd_bids", "old", "prep"]
    assert content["DatasetLinks"] == {"other": "../other", "raw": "../data/raw"}
    assert content["Name"] == "mine"


@pytest.mark.parametrize("before", [{"Name": "raw"}, {"Name": "x", "GeneratedBy": [{"Name": "fmriprep"}]}])
def test_another_data_set_is_never_touched(tmp_path, runs, before):
    out = tmp_path / "out"
    out.mkdir()
    (out / "dataset_description.json").write_text(json.dumps(before))
    with pytest.raises(OutputError, match="OUTPUT_DIR of its own"):
        write_dataset_files(out, runs, environment={})
    assert description(out) == before


def test_lines_of_the_user_stay(tmp_path, runs):
    out = tmp_path / "out"
    out.mkdir()
    (out / ".bidsignore").write_text("mine.txt\n*.html\n")
    write_dataset_files(out, runs, environment={})
    lines = (out / ".bidsignore").read_text().splitlines()
    assert lines[:2] == ["mine.txt", "*.html"]
    assert len(set(lines)) == len(lines) > 5


def test_a_container_is_named(tmp_path, runs):
    environment = {
        "APPTAINER_CONTAINER": "/x.sif",
        "SHD_BIDS_CONTAINER_TAG": "shd_bids:1",
        "SHD_BIDS_CONTAINER_URI": "u",
    }
    maker = describe(tmp_path / "out", runs, before={}, environment=environment)["GeneratedBy"][0]
    assert maker["Container"] == {"Type": "apptainer", "Tag": "shd_bids:1", "URI": "u"}


@pytest.mark.parametrize(
    ("environment", "description", "link"),
    [
        ({"SHD_BIDS_HOST_RAW": "/host/data"}, {}, "file:///host/data"),
        ({"SHD_BIDS_HOST_RAW": "https://x.org/d"}, {}, "https://x.org/d"),
        ({}, {"DatasetDOI": "doi:10.1/x"}, "https://doi.org/10.1/x"),
        ({"SHD_BIDS_CONTAINER_TYPE": "docker"}, {}, "file:///unknown/raw"),
    ],
)
def test_links_hold_outside_the_container(tmp_path, environment, description, link):
    root = write_description(tmp_path / "raw", **description)
    assert portable_link(root, Path("/out"), name="raw", environment=environment) == link


def test_links_are_relative_within_one_tree(tmp_path):
    root = write_description(tmp_path / "raw")
    inside = root / "derivatives" / "shd_bids"
    assert portable_link(root, inside, name="raw", environment={}) == "../.."


def test_jobs_at_the_same_time_do_not_undo_each_other(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    runs = [dwi_run(tmp_path, links={name: write_description(tmp_path / name)}) for name in "abcdefgh"]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda run: write_dataset_files(out, [run], environment={}), runs))
    assert set(description(out)["DatasetLinks"]) == set("abcdefgh")
    assert [path.name for path in out.iterdir() if path.name.startswith(".") and path.name.endswith("json")] == []


@pytest.mark.parametrize("text", ["[]", "null", '{"GeneratedBy": "x"}', '{"GeneratedBy": [1]}', '{"DatasetLinks": []}'])
def test_a_description_of_another_type_is_told(tmp_path, runs, text):
    (tmp_path / "dataset_description.json").write_text(text)
    with pytest.raises(OutputError, match="dataset_description"):
        write_dataset_files(tmp_path, runs, environment={})
