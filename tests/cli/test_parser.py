import argparse
import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from shd_bids import __version__
from shd_bids.cli.parser import EPILOG, build_parser, parse_args
from shd_bids.settings import SLOPPY, Settings


@pytest.fixture
def dirs(tmp_path):
    (tmp_path / "data").mkdir()
    return [str(tmp_path / "data"), str(tmp_path / "out"), "participant"]


def parse(dirs, *words, environment=None):
    return parse_args([*dirs, *words], environment or {})


def refused(capsys, dirs, *words):
    with pytest.raises(SystemExit) as caught:
        parse(dirs, *words)
    assert caught.value.code == 2
    message = capsys.readouterr().err.strip().splitlines()
    assert message[0].startswith("usage: shd_bids BIDS_DIR OUTPUT_DIR")
    assert len(message) == 2
    return message[1]


def test_every_setting_is_an_option_and_every_option_a_setting():
    actions = {action.dest for action in build_parser()._actions} - {
        "help",
        "version",
        "config_file",
        "notrack",
        "quiet",
    }
    assert actions == {f.name for f in fields(Settings)}


def test_defaults_are_those_of_the_settings(dirs):
    settings = parse(dirs)
    plain = Settings(bids_dir=settings.bids_dir, output_dir=settings.output_dir)
    of_machine = {"nprocs", "omp_nthreads", "mem", "work_dir"}
    assert all(
        getattr(settings, f.name) == getattr(plain, f.name) for f in fields(Settings) if f.name not in of_machine
    )
    assert settings.work_dir == settings.output_dir / ".work"


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        (["--participant-label", "sub-01", "02"], "participant_label", ("01", "02")),
        (["--participant_label", "01", "--participant-label", "02"], "participant_label", ("01", "02")),
        (["--session-label", "ses-a"], "session_label", ("a",)),
        (["--session_label", "a"], "session_label", ("a",)),
        (["--session-id", "a"], "session_label", ("a",)),
        (["--skip-bids-validation"], "skip_bids_validation", True),
        (["--skip_bids_validation"], "skip_bids_validation", True),
        (["--skip_bids_validator"], "skip_bids_validation", True),
        (["--skip-bids-validator"], "skip_bids_validation", True),
        (["--nthreads", "3"], "nprocs", 3),
        (["--n_cpus", "3"], "nprocs", 3),
        (["--n-cpus", "3"], "nprocs", 3),
        (["--mem", "8G"], "mem", 8.0),
        (["--mem_mb", "8000"], "mem", 8.0),
        (["--mem-mb", "8000M"], "mem", 8.0),
        (["--mem", "0.5TB"], "mem", 500.0),
        (["--device", "cuda:1"], "device", "cuda:1"),
        (["--max-steps", "auto"], "max_steps", None),
        (["--max-steps", "7"], "max_steps", 7),
        (["--step-size", "0.5"], "step_size", 0.5),
        (["--peak-absolute-threshold", "auto"], "peak_absolute_threshold", None),
        (["--tractogram-format", "trx", "tck"], "tractogram_format", ("trx", "tck")),
        (["--parcellation", "a", "--parcellation", "B1"], "parcellation", ("a", "B1")),
        (["--streamline-weights", "off"], "streamline_weights", "off"),
        (["--connectome-map", "vfwm", "nufo"], "connectome_map", ("vfwm", "nufo")),
        (["--dry-run"], "dry_run", "text"),
        (["--dry-run=json"], "dry_run", "json"),
        (["--dry-run", "json"], "dry_run", "json"),
        (["-vv"], "verbose", 2),
        (["-q"], "verbose", -1),
        (["--notrack"], "verbose", 0),
        (["--weights", "none", "--fit", "subject"], "weights", "none"),
        (["--network", "published", "--weights", "none", "--fit", "subject"], "network", "published"),
        (["--refinement", "off"], "refinement", "off"),
        (["--lambda-tv", "auto"], "lambda_tv", None),
    ],
)
def test_spellings(dirs, words, name, value):
    assert getattr(parse(dirs, *words), name) == value


def test_a_parcellation_is_a_file_or_a_name(dirs, tmp_path, monkeypatch, capsys):
    (tmp_path / "labels.nii.gz").touch()
    monkeypatch.chdir(tmp_path)
    assert parse(dirs, "--parcellation", "labels.nii.gz", "x").parcellation == (str(tmp_path / "labels.nii.gz"), "x")
    for words, told in ((("none.nii.gz",), "--parcellation: no such file"), (("a/b",), "not a BIDS label")):
        with pytest.raises(SystemExit, match="2"):
            parse(dirs, "--parcellation", *words)
        assert told in capsys.readouterr().err


def test_a_bare_dry_run_does_not_swallow_what_follows(dirs):
    settings = parse_args(["--dry-run", *dirs], {})
    assert (settings.dry_run, settings.bids_dir) == ("text", Path(dirs[0]))


def test_derivatives_may_be_named_or_not_and_repeated(dirs, tmp_path):
    for name in ("a", "b", "c=d"):
        (tmp_path / name).mkdir()
    settings = parse(dirs, "-d", f"x={tmp_path / 'a'}", str(tmp_path / "b"), "--datasets", f"y={tmp_path / 'a'}")
    assert settings.derivatives == {"x": tmp_path / "a", "b": tmp_path / "b", "y": tmp_path / "a"}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--bogus"], "unrecognized arguments: --bogus"),
        (["--particip", "01"], "unrecognized arguments"),
        (["--level", "all"], "invalid choice: 'all'"),
        (["--fod-lmax", "7"], "even degree"),
        (["--fod-lmax", "x"], "invalid int value"),
        (["--nprocs", "0"], "--nprocs: found 0"),
        (["--mem", "8"], "--mem: found 0.008"),
        (["--mem", "lots"], "expected a size like 8G"),
        (["--device", "tpu"], "expected auto, cpu, cuda"),
        (["--participant-label", "sub-0_1"], "not a BIDS label"),
        (["--mask", "/no/such"], "--mask: no such file"),
        (["--weights", "/no/such"], "--weights: no such file"),
        (["--responses", "/no/such"], "--responses: no such file"),
        (["-d", "x=/no/such"], "no such folder: /no/such"),
        (["--config-file", "/no/such"], "--config-file /no/such"),
        (["--network", "published"], "--network published is trained from nothing; add --weights none"),
        (["--network", "/no/such.toml", "--weights", "none", "--fit", "subject"], "--network: no such file"),
        (["--refinement", "maybe"], "invalid choice: 'maybe'"),
        (["--max-steps", "many"], "expected auto or a number"),
    ],
)
def test_wrong_calls_are_told_in_one_line(capsys, dirs, words, told):
    assert told in refused(capsys, dirs, *words)


def test_words_that_are_not_utf8_are_told(capsys, dirs):
    assert "'/x/\\udcff' is not UTF-8" in refused(capsys, dirs, "--mask", os.fsdecode(b"/x/\xff"))


def test_folders_must_make_sense(capsys, dirs, tmp_path):
    data, out, level = dirs
    assert "no such folder" in refused(capsys, [str(tmp_path / "none"), out, level])
    assert "OUTPUT_DIR is BIDS_DIR" in refused(capsys, [data, data, level])
    assert "inside BIDS_DIR" in refused(capsys, dirs, "-w", f"{data}/inside")
    inside = parse([data, f"{data}/derivatives/shd_bids", level])
    assert inside.work_dir == Path(data) / "derivatives" / "shd_bids" / ".work"


def test_fit_cohort_takes_the_weights_of_the_group_level(capsys, dirs, tmp_path):
    data, out, _ = dirs
    path = Path(out) / "group_desc-cohort_weights.safetensors"
    assert f"no weights at {path}; run group --fit cohort first" in refused(capsys, dirs, "--fit", "cohort")
    path.parent.mkdir(exist_ok=True)
    path.touch()
    assert parse(dirs, "--fit", "cohort").weights == str(path)
    other = tmp_path / "own.safetensors"
    other.touch()
    assert parse(dirs, "--fit", "cohort", "--weights", str(other)).weights == str(other)
    assert parse([data, out, "group"], "--fit", "cohort").weights == "packaged"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("colour = 'red'", "unknown training settings ['colour']"),
        ("method = 'x'\n[network]\n[training]\n[loss]\nhue = 1", "unknown training settings ['hue']"),
        ("method = 'x'\n[network]\nsides = 3\n[training]\n[loss]", "describes no network"),
        ("method = ", "no TOML file"),
    ],
)
def test_a_recipe_that_cannot_be_used_is_told_before_anything_runs(capsys, dirs, tmp_path, text, told):
    path = tmp_path / "own.toml"
    path.write_text(text)
    message = refused(capsys, dirs, "--fit", "subject", "--weights", "none", "--network", str(path))
    assert f"--network {path}: " in message and told in message


class TestConfigFile:
    def config(self, tmp_path, text):
        path = tmp_path / "c.toml"
        path.write_text(text)
        return ["--config-file", str(path)]

    def test_the_command_line_wins_over_the_file_over_sloppy_over_defaults(self, dirs, tmp_path):
        words = self.config(tmp_path, "seeds = 7\nfod-lmax = 6\nsloppy = true")
        settings = parse(dirs, *words, "--seeds", "3")
        assert (settings.seeds, settings.fod_lmax, settings.peak_max) == (3, 6, SLOPPY["peak_max"])

    def test_what_a_call_wrote_runs_it_again(self, dirs, tmp_path):
        settings = parse(dirs, "--seeds", "3", "--participant-label", "01", "--mem", "4G", "--nprocs", "1", "-v")
        words = self.config(tmp_path, settings.to_toml())
        assert parse_args(words, {}) == settings
        assert parse(dirs, *words) == settings

    def test_labels_and_paths_are_read_as_on_the_command_line(self, dirs, tmp_path, monkeypatch):
        for name in ("own.safetensors", "regions.nii.gz", "mask.nii.gz"):
            (tmp_path / name).write_bytes(b"")
        monkeypatch.chdir(tmp_path)
        text = 'participant_label = ["sub-01"]\nparcellation = ["regions.nii.gz", "name"]\n'
        words = self.config(
            tmp_path, text + 'weights = "own.safetensors"\nmask = "mask.nii.gz"\nnetwork = "conditioned"'
        )
        settings = parse(dirs, *words)
        assert settings.participant_label == ("01",)
        assert settings.parcellation == (str(tmp_path / "regions.nii.gz"), "name")
        assert (settings.weights, settings.network) == (str(tmp_path / "own.safetensors"), "conditioned")
        assert settings.mask == tmp_path / "mask.nii.gz"

    @pytest.mark.parametrize(
        "text", ["nope = 1", "seeds = 'x'", "seeds = ", "seeds = -1", 'session_label = ["ses-a_b"]']
    )
    def test_what_is_wrong_in_it_is_told(self, capsys, dirs, tmp_path, text):
        assert "found" in (told := refused(capsys, dirs, *self.config(tmp_path, text))) or "c.toml" in told


def test_limits_of_the_batch_system_are_kept(dirs):
    settings = parse(dirs, environment={"SLURM_CPUS_PER_TASK": "1", "SLURM_MEM_PER_NODE": "4096"})
    assert (settings.nprocs, settings.omp_nthreads, settings.mem) == (1, 1, 3.6)


def test_help_ends_with_examples_that_parse():
    assert build_parser().format_help().endswith(EPILOG + "\n")
    lines = EPILOG.partition("examples:\n")[2].splitlines()
    calls = [re.split(r"\s{2,}", line.strip())[0].removeprefix("shd_bids ").split() for line in lines]
    assert len(calls) >= 6
    for words in calls:
        chosen = ["--dry-run=text" if word == "--dry-run" else word for word in words]
        assert build_parser(with_positionals=words[0] != "--config-file").parse_args(chosen)


@pytest.mark.parametrize("words", [["--version"], ["--help"]])
def test_help_and_version_load_nothing_heavy(words):
    heavy = "torch numpy nibabel nipype bids dipy matplotlib"
    code = (
        "import sys; from shd_bids.cli.main import main\n"
        f"try: main({words!r})\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        f"assert not [name for name in {heavy!r}.split() if name in sys.modules]"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (done.stdout.strip() == f"shd_bids {__version__}") == (words == ["--version"])


def test_help_names_every_exit_code():
    text = build_parser().format_help()
    for code in ("65", "66", "69", "70", "73", "78", "130", "143"):
        assert code in text


@pytest.mark.parametrize("words", [[], ["--dry-run"]])
def test_a_call_without_folders_is_told_in_one_line(capsys, words):
    with pytest.raises(SystemExit) as caught:
        parse_args(words, {})
    assert caught.value.code == 2
    usage, told = capsys.readouterr().err.strip().splitlines()
    assert usage.startswith("usage: shd_bids BIDS_DIR OUTPUT_DIR")
    assert "required: BIDS_DIR, OUTPUT_DIR, analysis_level" in told


def test_no_two_options_share_a_spelling():
    parser = build_parser()
    assert isinstance(parser, argparse.ArgumentParser)
    spellings = [text for action in parser._actions for text in action.option_strings]
    assert len(set(spellings)) == len(spellings)


def test_a_database_that_is_a_file_is_refused(dirs, tmp_path, capsys):
    (tmp_path / "db").write_text("x")
    assert "expected a folder" in refused(capsys, dirs, "--bids-database-dir", str(tmp_path / "db"))


def test_a_config_file_without_an_end_is_refused(dirs, tmp_path, capsys):
    (tmp_path / "deep.toml").write_text("a = " + "[" * 100_000)
    for path in (tmp_path / "deep.toml", "/dev/zero"):
        assert f"--config-file {path}: " in refused(capsys, dirs, "--config-file", str(path))


def test_the_group_level_has_no_level(dirs, capsys):
    told = refused(capsys, [*dirs[:2], "group"], "--level", "response")
    assert "--level: the group level has no stages" in told


def test_responses_of_the_group_are_a_word_and_no_file(dirs, tmp_path, capsys):
    for words in (["--responses", "group"], ["--config-file", str(tmp_path / "c.toml")]):
        (tmp_path / "c.toml").write_text('responses = ["group"]\n')
        assert parse(dirs, *words).has_group_responses
    assert "found group and files" in refused(capsys, dirs, "--responses", "group", str(tmp_path / "c.toml"))
    assert "makes the means" in refused(capsys, [*dirs[:2], "group"], "--responses", "group")
    assert parse([*dirs[:2], "group"], "--responses", "group", "--fit", "cohort").has_group_responses
