"""Data sets: labels, filters, the index, and images by session."""

import json
import os
import shutil

import numpy as np
import pytest

from shd_bids.errors import InputError, NoInputError
from tests.bids_trees import SHAPE, collect, keys, raw_dataset, write_description, write_dwi, write_image


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"participant_label": ("02",)}, ["sub-02_ses-a"]),
        ({"session_label": ("a",)}, ["sub-01_ses-a", "sub-02_ses-a"]),
        ({"participant_label": ("01",), "session_label": ("b",)}, ["sub-01_ses-b"]),
    ],
)
def test_labels_restrict(tmp_path, options, expected):
    root = raw_dataset(tmp_path / "raw", "sub-01_ses-a_dwi", "sub-01_ses-b_dwi", "sub-02_ses-a_dwi", "sub-021_dwi")
    (root / "sub-021" / "dwi" / "sub-021_dwi.bval").unlink()  # broken, and not asked for
    if "participant_label" not in options:
        shutil.rmtree(root / "sub-021")
    assert keys(root, **options) == expected


def test_only_asked_subjects_are_indexed(tmp_path, monkeypatch):
    import bids.layout.index as index

    root = raw_dataset(tmp_path / "raw", "sub-01_dwi", "sub-02_dwi")
    write_image(root / "sub-01" / "anat" / "sub-01_T1w.nii.gz", np.ones(SHAPE, np.int16))
    seen = []
    original = index.BIDSLayoutIndexer._index_file
    monkeypatch.setattr(
        index.BIDSLayoutIndexer,
        "_index_file",
        lambda self, path, ents: seen.append(path.name) or original(self, path, ents),
    )
    collect(root, participant_label=("02",))
    assert {name for name in seen if name.startswith("sub-")} == {f"sub-02_dwi.{e}" for e in ("nii.gz", "bval", "bvec")}


@pytest.mark.parametrize(
    ("options", "told"),
    [({"participant_label": ("01", "99")}, "99 not found"), ({"session_label": ("z",)}, "z not found")],
)
def test_unknown_labels_are_told_with_those_that_exist(raw, options, told):
    with pytest.raises(NoInputError, match=told) as caught:
        collect(raw, **options)
    assert "it has" in str(caught.value)


def test_nothing_at_all_is_told(tmp_path):
    root = write_description(tmp_path / "raw")
    with pytest.raises(NoInputError, match="no diffusion image"):
        collect(root)


class TestFilters:
    @pytest.mark.parametrize(
        ("query", "expected"),
        [
            ({"acquisition": "x"}, ["sub-01_acq-x"]),
            ({"acquisition": None}, ["sub-01"]),
            ({"acquisition": "*"}, ["sub-01_acq-x", "sub-01_acq-y"]),
            ({"acquisition": ["x", "y"]}, ["sub-01_acq-x", "sub-01_acq-y"]),
        ],
    )
    def test_values_and_special_values(self, tmp_path, query, expected):
        root = raw_dataset(tmp_path / "raw", "sub-01_acq-x_dwi", "sub-01_acq-y_dwi", "sub-01_dwi")
        filters = tmp_path / "filters.json"
        filters.write_text(json.dumps({"dwi": query}))
        assert sorted(keys(root, bids_filter_file=filters)) == expected

    @pytest.mark.parametrize("text", ["{", "[1]", '{"dwi": 3}'])
    def test_what_is_not_a_filter_is_told(self, raw, tmp_path, text):
        filters = tmp_path / "filters.json"
        filters.write_text(text)
        with pytest.raises(InputError, match=r"filters\.json"):
            collect(raw, bids_filter_file=filters)


def test_an_index_kept_on_disk_gives_the_same(tmp_path):
    root = raw_dataset(tmp_path / "raw", "sub-01_dwi", "sub-02_dwi")
    options = {"bids_database_dir": tmp_path / "index", "participant_label": ("02",)}
    assert collect(root, **options) == collect(root, **options) == collect(root, participant_label=("02",))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"dwi": {"acq": "hardi"}}, "entity 'acq' is not known, expected acquisition"),
        ({"dwi": {"nonsense": "x"}}, "entity 'nonsense' is not known"),
        ({"dwi": {"acquisition": {"a": 1}}}, "acquisition is {'a': 1}, expected text"),
        ({"dwi": {"run": 2**70}}, "run is 1180591620717411303424, expected text, a number"),
        ({"mask": [1]}, r"mask: found \[1\], expected entities"),
        (None, "expected a JSON object"),
    ],
)
def test_filters_that_cannot_be_asked_are_told(raw, tmp_path, content, told):
    filters = tmp_path / "filters.json"
    filters.write_text(json.dumps(content))
    with pytest.raises(InputError, match=told):
        collect(raw, bids_filter_file=filters)


@pytest.mark.parametrize("text", ["null", "[]", "3", "[" * 100_000, '{"GeneratedBy": "x"}', '{"GeneratedBy": ["x"]}'])
def test_descriptions_of_another_type_are_told(raw, text):
    (raw / "dataset_description.json").write_text(text)
    with pytest.raises(InputError, match=r"dataset_description\.json: "):
        collect(raw)


@pytest.mark.parametrize("text", ["null", "[]", "3", "[" * 100_000])
def test_sidecars_of_another_type_are_told(raw, text):
    (raw / "sub-01" / "dwi" / "sub-01_dwi.json").write_text(text)
    with pytest.raises(InputError, match=r"sub-01_dwi\.json: "):
        collect(raw)


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_tables_that_never_end_are_told(raw, kind):
    path = raw / "sub-01" / "dwi" / "sub-01_dwi.bval"
    path.unlink()
    os.mkfifo(path) if kind == "pipe" else path.symlink_to("/dev/zero")
    with pytest.raises(InputError, match=r"sub-01_dwi\.bval: not a regular file"):
        collect(raw)


def test_names_that_are_not_utf8_are_told(raw):
    path = raw / "sub-01" / "dwi" / "sub-01_acq-\udce9_dwi.json"
    path.write_text("{}")
    with pytest.raises(InputError, match="not UTF-8"):
        collect(raw)


@pytest.mark.parametrize(
    "link",
    ["loop", "sub-loop", "sub-01/loop", "sub-01/ses-loop", "sub-01/sub-01", "sub-01/dwi/loop", "sub-01/dwi/sub-x"],
)
def test_links_to_the_root_are_not_followed_for_ever(tmp_path, link):
    root = raw_dataset(tmp_path / "raw", "sub-01_dwi", "sub-02_ses-1_dwi")
    (root / link).symlink_to(root)
    (root / "sub-02" / "ses-loop").symlink_to(root / "sub-02")
    assert keys(root) == ["sub-01", "sub-02_ses-1"]


def test_a_database_of_other_images_is_told(tmp_path):
    """Those of participants that are not asked for do not matter."""
    root = raw_dataset(tmp_path / "raw")
    options = {"bids_database_dir": tmp_path / "index"}
    for name in (
        "sub-01_seg-x_dseg.nii.gz",
        "._sub-01_dwi.nii.gz",
        "sub-01_acq-x_desc-a_dwi.nii.gz.part",
        "notes.nii",
    ):
        (root / "sub-01" / "dwi" / name).touch()
    assert len(collect(root, **options)) == 1 == len(collect(root, **options))
    write_dwi(root, "sub-02_ses-1_dwi")
    assert len(collect(root, participant_label=("01",), **options)) == 1
    with pytest.raises(InputError, match=r"1 came or went, such as sub-02/ses-1/dwi/.*; remove it"):
        collect(root, **options)


def test_a_damaged_database_is_told(tmp_path):
    root = raw_dataset(tmp_path / "raw")
    index = tmp_path / "database" / "raw" / "layout_index.sqlite"
    index.parent.mkdir(parents=True)
    index.write_text("x")
    with pytest.raises(InputError, match=r"--bids-database-dir .* cannot be read .*; remove it"):
        collect(root, bids_database_dir=tmp_path / "database")


def test_an_image_that_links_to_itself_is_told(tmp_path):
    path = raw_dataset(tmp_path / "raw") / "sub-01" / "dwi" / "sub-01_dwi.nii.gz"
    path.unlink()
    path.symlink_to(path.name)
    with pytest.raises(InputError, match=r"sub-01_dwi\.nii\.gz"):
        collect(tmp_path / "raw")
