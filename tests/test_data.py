"""The shipped weights: those of their checksum, and damage is told."""

import shutil

import pytest

from shd_bids import data
from shd_bids.errors import WeightsError


def test_checksum_is_of_the_shipped_weights():
    try:
        data.shipped_weights()
    except WeightsError as error:
        pytest.fail(f"{error}\nfor new weights: {data.__doc__.splitlines()[2]}")


@pytest.fixture
def copy(tmp_path, monkeypatch):
    original = data.shipped_weights()
    for name in (original.name, f"{original.name}.sha256"):
        shutil.copy(original.with_name(name), tmp_path)
    monkeypatch.setattr(data.resources, "files", lambda package: tmp_path)
    return tmp_path / original.name


def test_one_flipped_bit_is_told(copy):
    content = bytearray(copy.read_bytes())
    content[len(content) // 2] ^= 1
    copy.write_bytes(content)
    with pytest.raises(WeightsError, match=r"SHA-256 is \w+, expected \w+: damaged"):
        data.shipped_weights()


@pytest.mark.parametrize("text", [None, "", "\n"])
def test_a_missing_checksum_is_told(copy, text):
    checksum = copy.with_name(f"{copy.name}.sha256")
    checksum.unlink()
    if text is not None:
        checksum.write_text(text)
    with pytest.raises(WeightsError, match="install the package again"):
        data.shipped_weights()
