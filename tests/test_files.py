import json
from types import SimpleNamespace

import pytest

from shd_bids.errors import InputError
from shd_bids.files import (
    absence,
    atomic_path,
    lacks_space,
    number_of,
    read_json_object,
    remove_unfinished,
    write_json,
    write_text,
)


def test_a_file_appears_whole(tmp_path):
    target = tmp_path / "new" / "a.nii.gz"
    with atomic_path(target) as temporary:
        assert temporary.parent == target.parent
        assert temporary.name.endswith(".nii.gz")
        temporary.write_text("half")
        assert not target.exists()
    assert target.read_text() == "half"
    assert list(target.parent.iterdir()) == [target]


def test_an_error_leaves_what_was_there(tmp_path):
    target = tmp_path / "a.txt"
    write_text(target, "old")
    with pytest.raises(RuntimeError), atomic_path(target) as temporary:
        temporary.write_text("new")
        raise RuntimeError
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_json_has_no_nan(tmp_path):
    write_json(tmp_path / "a.json", {"µ": 1.5})
    assert json.loads((tmp_path / "a.json").read_text("utf-8")) == {"µ": 1.5}
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "b.json", float("nan"))
    assert not (tmp_path / "b.json").exists()


@pytest.mark.parametrize(
    "content", ["/annex/objects/MD5E-s5--x.nii.gz\n", "version https://git-lfs.github.com/spec/v1\n"]
)
def test_placeholders_of_git_are_told_from_files(tmp_path, content):
    path = tmp_path / "a.nii.gz"
    assert absence(path) == "no such file"
    path.write_text(content)
    assert "fetch the content" in absence(path)
    path.write_text("content")
    assert not absence(path)


def test_links_whose_content_was_not_fetched_are_told_from_files_that_never_were(tmp_path):
    path = tmp_path / "a.nii.gz"
    path.symlink_to("../.git/annex/objects/x/MD5E-s5--x.nii.gz")
    assert "fetch it (datalad get" in absence(path)
    path.unlink()
    path.symlink_to(path.name)
    assert "mend the link" in absence(path)


def test_what_a_killed_writer_left_is_removed_and_nothing_else(tmp_path):
    with pytest.raises(KeyboardInterrupt), atomic_path(tmp_path / "sub-01_space-orig_x.nii.gz") as temporary:
        left = temporary.name
        raise KeyboardInterrupt
    others = [".bidsignore", "sub-01_space-orig_x.nii.gz", left.replace("sub-01_", "sub-01_acq-b_")]
    for name in (left, *others):
        (tmp_path / name).touch()
    remove_unfinished(tmp_path, "sub-01_(space|desc)-")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(others)


def test_a_full_disk_is_known_by_the_error_or_by_the_disk(tmp_path, monkeypatch):
    assert lacks_space("OSError: [Errno 28] No space left on device", tmp_path)
    assert not lacks_space("ValueError: 2 requested and 0 written", tmp_path / "absent")
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=4096))
    assert lacks_space("ValueError: 2 requested and 0 written", tmp_path)


@pytest.mark.parametrize("word", ["1", "-0.5", "1e-3", ".5", "nan", "Infinity"])
def test_words_of_ascii_digits_are_numbers(word):
    assert str(number_of(word)) == str(float(word))


@pytest.mark.parametrize("word", ["\u0661", "1_0", "0x10", "", "1,5", "\u22121"])
def test_other_words_are_no_numbers(word):
    with pytest.raises(ValueError):
        number_of(word)


@pytest.mark.parametrize("depth", [101, 900, 100_000])
def test_json_that_is_nested_too_deeply_is_told(tmp_path, depth):
    path = tmp_path / "a.json"
    path.write_text('{"a":' * depth + "1" + "}" * depth)
    with pytest.raises(InputError, match="nested more than 100 times"):
        read_json_object(path)


def test_json_may_be_nested_as_sidecars_are(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"a":' * 100 + "1" + "}" * 100)
    assert read_json_object(path)["a"]["a"]
