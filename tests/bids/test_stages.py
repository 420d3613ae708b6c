"""What each stage depends on, and what is used again."""

import json
from dataclasses import replace

import pytest

from shd_bids.bids import provenance
from shd_bids.bids.names import stage_folder
from shd_bids.bids.parcellations import Parcellation
from shd_bids.bids.stages import (
    STAGES,
    Kept,
    drop_stage,
    facts_path,
    keep_stage,
    outdated_files,
    plan_stages,
    stages_of,
)
from shd_bids.options import LEVELS
from shd_bids.settings import Settings
from tests.bids_trees import dwi_run, raw_dataset

ALL = tuple(stage.name for stage in STAGES)


@pytest.fixture
def settings(tmp_path):
    return Settings(bids_dir=raw_dataset(tmp_path / "raw"), output_dir=tmp_path / "out")


@pytest.fixture
def run(settings):
    return dwi_run(settings.bids_dir)


def digests(run, settings):
    return plan_stages(run, settings, provenance.hash_inputs(run, settings)).digests


def first_changed(run, settings, changed_run=None, **change):
    """Return the first stage whose digest a change touches; all that follow must change too."""
    before, after = digests(run, settings), digests(changed_run or run, replace(settings, **change))
    changed = [name for name in before if before[name] != after.get(name)]
    after_first = [stage.name for stage in STAGES if changed and stage.name in before and depends(stage, changed[0])]
    assert changed == after_first
    return changed[0] if changed else None


def depends(stage, name):
    """Whether a stage is another or reads what it made, or what was made of that."""
    by_name = {stage.name: stage for stage in STAGES}
    return stage.name == name or any(depends(by_name[before], name) for before in stage.after)


@pytest.mark.parametrize(
    ("change", "stage"),
    [
        ({"nprocs": 7, "verbose": 1, "keep_work": True, "device": "cuda", "cohort_processes": 2}, None),
        ({"max_steps": 7, "lambda_tv": 0.1}, None),  # of adaptations only
        ({"sloppy": True}, "gradients"),
        ({"b0_threshold": 10.0}, "gradients"),
        ({"fod_lmax": 8}, "fod"),
        ({"precision": "bf16"}, "fod"),
        ({"peak_relative_threshold": 0.2}, "peaks"),
        ({"seeds": 3}, "tractography"),
        ({"random_seed": 1}, "tractography"),
        ({"tractogram_format": ("tck",)}, "conversion"),
        ({"connectome_radius": 2.0}, None),  # without a parcellation
    ],
)
def test_a_setting_changes_the_stages_that_read_it_and_those_after(run, settings, change, stage):
    assert first_changed(run, settings, **change) == stage


@pytest.mark.parametrize("change", [{"max_steps": 7}, {"random_seed": 1}])
def test_an_adaptation_reads_more(run, settings, change):
    assert first_changed(run, replace(settings, fit="subject"), **change) == "fod"


def test_inputs_change_the_stage_that_reads_them(run, settings, tmp_path):
    response = tmp_path / "wm.txt"
    response.write_text("1")
    assert first_changed(run, settings, replace(run, responses=(response,))) == "response"
    assert first_changed(run, settings, replace(run, mask_origin="given")) == "gradients"
    weights = tmp_path / "other.safetensors"
    weights.write_bytes(b"abc")
    assert first_changed(run, settings, weights=str(weights)) == "fod"
    before = digests(run, settings)
    run.bvec.write_text(run.bvec.read_text() + "\n")
    assert not set(before.values()) & set(digests(run, settings).values())


def test_files_that_exchange_their_contents_are_others(run, settings, tmp_path):
    gm, csf = tmp_path / "gm.txt", tmp_path / "csf.txt"
    gm.write_text("1")
    csf.write_text("2")
    given = replace(run, responses=(gm, csf))
    before = digests(given, settings)
    gm.write_text("2")
    csf.write_text("1")
    assert digests(given, settings)["response"] != before["response"]


def test_every_setting_that_changes_results_is_read_by_a_stage():
    read = {name for stage in STAGES for name in (*stage.settings, *stage.adapting)}
    assert set(provenance.IN_DIGEST) - read == {"level", "cohort_processes"}


def test_regions_are_read_by_the_connectome_alone(run, settings, tmp_path):
    image = tmp_path / "labels.nii.gz"
    image.write_bytes(b"a")
    regions = Parcellation(image=image, table=None, entities={"seg": "x"}, uri="labels.nii.gz")
    with_regions = replace(run, parcellations=(regions,))
    before = digests(with_regions, settings)
    assert digests(run, settings) == {name: value for name, value in before.items() if name != "connectome"}
    assert first_changed(with_regions, settings, connectome_radius=2.0) == "connectome"
    image.write_bytes(b"b")
    after = digests(with_regions, settings)
    assert [name for name in before if before[name] != after[name]] == ["connectome"]


def test_without_weights_there_is_no_such_stage(run, settings):
    found = digests(run, replace(settings, streamline_weights="off"))
    assert "weights" not in found and found["conversion"] != digests(run, settings)["conversion"]


@pytest.mark.parametrize("level", LEVELS)
def test_levels_have_their_stages(level):
    names = [stage.name for stage in stages_of(level)]
    assert names == list(ALL if level == "full" else ALL[: 2 + LEVELS.index(level)])
    assert all(set(stage.after) <= set(names) for stage in stages_of(level))


class TestKept:
    @pytest.fixture
    def plan(self, run, settings):
        """Keep the fit as a call would, and return what another call plans."""
        out = settings.output_dir
        files = {"wm_file": out / "sub-01" / "wm.nii.gz", "response_files": [stage_folder(out, run) / "wm.txt"]}
        written = (out / "sub-01" / "wm.json", facts_path(out, run, "fod"))
        for path in (files["wm_file"], *files["response_files"], *written):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("abc")
        keep_stage(out, run, "fod", digest=digests(run, settings)["fod"], outputs=files)
        return lambda **change: plan_stages(run, replace(settings, **change), provenance.hash_inputs(run, settings))

    def test_whole_files_of_the_same_digest_are_used_again(self, plan, run, settings):
        out = settings.output_dir
        files = {"wm_file": str(out / "sub-01" / "wm.nii.gz"), "response_files": [f"{stage_folder(out, run)}/wm.txt"]}
        assert plan().kept == {"fod": Kept(files, facts_path(out, run, "fod"))}
        assert plan().computed == ("gradients", "response", "peaks", "tractography", "weights", "conversion")
        assert plan(seeds=5).kept and plan(level="fod").kept

    def test_others_are_not(self, plan, run, settings):
        assert not plan(fod_lmax=8).kept and not plan(overwrite=True).kept and not plan(level="response").kept
        (settings.output_dir / "sub-01" / "wm.nii.gz").write_text("abcd")
        assert not plan().kept

    def test_a_lost_sidecar_is_written_again(self, plan, settings):
        (settings.output_dir / "sub-01" / "wm.json").unlink()
        assert not plan().kept

    def test_damaged_records_are_not(self, plan, run, settings):
        record = stage_folder(settings.output_dir, run) / "fod_stage.json"
        for content in ("{", "[]", json.dumps({"digest": digests(run, settings)["fod"]})):
            record.write_text(content)
            assert not plan().kept

    def test_files_that_are_being_replaced_are_not_what_an_earlier_call_left(self, plan, run, settings):
        assert not plan().is_replaced and plan(fod_lmax=8).is_replaced
        drop_stage(settings.output_dir, run, "fod")
        assert not plan().kept and plan().is_replaced


class TestOutdated:
    @pytest.fixture
    def record(self, run, settings):
        """Record calls: digests of some stages, and the files that they left."""
        numbers = iter(range(9))

        def write(digests, *names, status="finished"):
            series = {"status": status, "digests": digests, "outputs": {name: {"bytes": 0} for name in names}}
            folder = settings.output_dir / "sub-01" / "log" / f"2026_{next(numbers)}"
            folder.mkdir(parents=True)
            (folder / "provenance.json").write_text(json.dumps({"series": {run.key: series}}))
            for name in names:
                (settings.output_dir / name).touch()

        return write

    def test_what_came_of_a_stage_that_is_another_now_is_outdated(self, record, run, settings):
        record({"fod": "a", "tractography": "t"}, "wm", "tracks")
        out = settings.output_dir
        assert outdated_files(out, run, {"fod": "b"}, made=["wm"]) == ["tracks"]
        assert outdated_files(out, run, {"fod": "a"}, made=["wm"]) == []
        assert outdated_files(out, run, {"response": "b"}, made=["wm"]) == []
        (out / "tracks").unlink()
        assert outdated_files(out, run, {"fod": "b"}, made=["wm"]) == []

    def test_another_format_of_the_same_streamlines_is_not(self, record, run, settings):
        record({"tractography": "t", "conversion": "a"}, "tracks.tck")
        now = {"tractography": "t", "conversion": "b"}
        assert outdated_files(settings.output_dir, run, now, made=["tracks.trx"]) == []

    def test_the_last_call_that_made_a_file_counts(self, record, run, settings):
        record({"fod": "a"}, "tracks", "peaks")
        record({"fod": "b"}, "tracks")
        record({"fod": "b"}, "peaks", status="failed")
        assert outdated_files(settings.output_dir, run, {"fod": "b"}, made=[]) == ["peaks"]
        assert outdated_files(settings.output_dir, run, {"fod": "a"}, made=[]) == ["tracks"]
