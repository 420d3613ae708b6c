import hashlib
import json
from dataclasses import replace

import pytest

from shd_bids.bids import provenance
from shd_bids.settings import Settings
from tests.bids_trees import dwi_run, raw_dataset, write_mask


@pytest.fixture
def settings(tmp_path):
    return Settings(bids_dir=raw_dataset(tmp_path / "raw"), output_dir=tmp_path / "out")


@pytest.fixture
def run(settings):
    return dwi_run(settings.bids_dir)


def digest(run, settings):
    return provenance.digest(settings, provenance.hash_inputs(run, settings))


def test_hash_of_a_known_text(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert provenance.sha256(tmp_path / "a").startswith("ba7816bf")


def test_inputs_are_named_by_uri(run, settings, tmp_path):
    files = {f"bids:raw:sub-01/dwi/sub-01_dwi.{e}" for e in ("nii.gz", "bval", "bvec")}
    assert set(provenance.hash_inputs(run, replace(settings, fit="subject", weights="none"))) == files
    weights = tmp_path / "own.safetensors"
    weights.write_bytes(b"abc")
    hashes = provenance.hash_inputs(replace(run, responses=(run.bval,)), replace(settings, weights=str(weights)))
    assert set(hashes) == {*files, "weights/own.safetensors", "responses/sub-01_dwi.bval"}
    assert hashes["weights/own.safetensors"] == provenance.sha256(weights)


@pytest.mark.parametrize(
    ("change", "is_same"),
    [
        ({"nprocs": 7, "verbose": 1, "keep_work": True, "device": "cuda"}, True),
        ({"fod_lmax": 8}, False),
        ({"random_seed": 1}, False),
        ({"tractogram_format": ("tck",)}, False),
        ({"streamline_weights": "off"}, False),
        ({"parcellation": ("other",)}, False),
        ({"max_steps": 7}, False),
        ({"cohort_processes": 2}, False),
        ({"b0_threshold": 10.0}, False),
    ],
)
def test_digest_knows_what_matters(run, settings, change, is_same):
    assert (digest(run, settings) == digest(run, replace(settings, **change))) is is_same


def test_of_a_recipe_the_content_counts_and_of_a_network_the_name(run, settings, tmp_path):
    def digest_with(network):
        return digest(run, replace(settings, fit="subject", weights="none", network=str(network)))

    first, same, other = (tmp_path / name for name in ("a.toml", "b.toml", "c.toml"))
    first.write_text("x = 1")
    same.write_text("x = 1")
    other.write_text("x = 2")
    assert digest_with(first) == digest_with(same)
    assert len({digest_with(network) for network in (first, other, "conditioned", "published")}) == 4


def test_digest_knows_the_content_of_inputs_not_their_place(run, settings, tmp_path):
    before = digest(run, settings)
    mask = write_mask(tmp_path, "sub-x_mask")
    with_mask = replace(run, mask=mask)
    moved = replace(run, mask=mask.rename(mask.with_name("other.nii.gz")))
    assert digest(moved, settings) != before
    mask.write_bytes(moved.mask.read_bytes())
    assert digest(with_mask, settings) == digest(moved, settings)
    run.bvec.write_text(run.bvec.read_text() + "\n")
    assert digest(run, settings) != before


def test_every_setting_of_the_digest_is_one():
    assert all(hasattr(Settings, name) for name in provenance.IN_DIGEST)


class TestDone:
    @pytest.fixture
    def out(self, run, settings):
        out = settings.output_dir
        (out / "sub-01").mkdir(parents=True)
        (out / "sub-01" / "a.txt").write_text("abc")
        (out / "sub-01.html").touch()
        record = {
            "status": "finished",
            "digests": {"fod": "d", "peaks": "p"},
            "outputs": provenance.outputs_record(out, [out / "sub-01" / "a.txt"]),
        }
        self.write(out, "2026_1", {run.key: record})
        return out

    def write(self, out, uuid, series):
        folder = out / "sub-01" / "log" / uuid
        folder.mkdir(parents=True)
        (folder / "provenance.json").write_text(json.dumps({"series": series}))

    def test_same_inputs_and_whole_files(self, out, run):
        assert provenance.find_done(out, run, {"fod": "d"})["status"] == "finished"

    def test_other_inputs(self, out, run):
        assert provenance.find_done(out, run, {"fod": "e", "peaks": "p"}) is None

    def test_changed_file(self, out, run):
        (out / "sub-01" / "a.txt").write_text("abcd")
        assert provenance.find_done(out, run, {"fod": "d"}) is None

    def test_missing_file(self, out, run):
        (out / "sub-01" / "a.txt").unlink()
        assert provenance.find_done(out, run, {"fod": "d"}) is None

    def test_missing_page(self, out, run):
        (out / "sub-01.html").unlink()
        assert provenance.find_done(out, run, {"fod": "d"}) is None

    def test_a_later_failure_does_not_hide_it_but_a_later_success_does(self, out, run):
        self.write(out, "2026_2", {run.key: {"status": "failed", "digests": {"fod": "d"}}})
        assert provenance.find_done(out, run, {"fod": "d"})
        self.write(out, "2026_3", {run.key: {"status": "finished", "digests": {"fod": "e"}, "outputs": {}}})
        assert provenance.find_done(out, run, {"fod": "d"}) is None

    def test_damaged_records_are_passed_over(self, out, run):
        (out / "sub-01" / "log" / "2026_4").mkdir()
        (out / "sub-01" / "log" / "2026_4" / "provenance.json").write_text("{")
        assert provenance.find_done(out, run, {"fod": "d"})


def test_outputs_are_recorded_with_size_and_hash(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert provenance.outputs_record(tmp_path, [tmp_path / "a"]) == {
        "a": {"bytes": 3, "sha256": hashlib.sha256(b"abc").hexdigest()}
    }


def test_software_names_the_app_and_what_it_stands_on():
    names = provenance.software()
    assert {"python", "shd_bids", "numpy", "torch", "nipype"} <= set(names)
    assert "pytest" not in names


def test_names_of_calls_sort_and_never_repeat():
    names = [provenance.new_run_uuid() for _ in range(100)]
    assert len(set(names)) == 100
    times = [name[: len("20260101-000000_000000")] for name in names]
    assert times == sorted(times) and len(set(times)) > 1  # also within a second


def test_commands_are_quoted():
    assert provenance.command_line(["/a b", "participant"]) == "shd_bids '/a b' participant"
