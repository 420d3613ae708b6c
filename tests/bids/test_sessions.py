"""Data sets: labels, filters, the index, and images by session."""

import json
import shutil

import numpy as np
import pytest

from shd_bids.errors import InputError, NoInputError
from tests.bids_trees import SHAPE, collect, keys, raw_dataset, write_description, write_image


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
