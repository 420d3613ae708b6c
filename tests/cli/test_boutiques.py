"""Configurations for platforms: valid in their schemas, and of the command line as it is."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from shd_bids import __version__
from shd_bids.cli.boutiques import EXIT_CODES, descriptor
from shd_bids.cli.parser import parse_args
from shd_bids.settings import OPTIONS
from tests.bids_trees import raw_dataset

DEPLOY = Path(__file__).parents[2] / "deploy"


def read(name):
    return json.loads((DEPLOY / name).read_text())


def invocation(name="nipoppy/invocation.json"):
    return read(name)


def command_of(values):
    """Put values into the command line as Boutiques does."""
    line = descriptor()["command-line"]
    for entry in descriptor()["inputs"]:
        value = values.get(entry["id"])
        words = [] if value is None else value if isinstance(value, list) else [value]
        separator = entry.get("command-line-flag-separator", " ")
        text = " ".join(map(str, words))
        if "command-line-flag" in entry and words:
            text = (
                entry["command-line-flag"]
                if entry["type"] == "Flag"
                else f"{entry['command-line-flag']}{separator}{text}"
            )
        line = line.replace(entry["value-key"], text)
    return line.split()


@pytest.mark.parametrize("name", ["boutiques.json", "nipoppy/descriptor.json"])
def test_the_descriptors_are_of_this_version(name):
    assert read(name) == json.loads(json.dumps(descriptor())), "run python -m shd_bids.cli.boutiques"


def test_every_option_is_an_input():
    inputs = descriptor()["inputs"]
    assert {entry["id"] for entry in inputs} == set(OPTIONS)
    assert all(f" {entry['value-key']}" in descriptor()["command-line"] for entry in inputs)


def test_the_command_line_is_understood(tmp_path):
    raw = raw_dataset(tmp_path / "raw")
    given = {
        "bids_dir": str(raw), "output_dir": str(tmp_path / "out"), "analysis_level": "participant", "sloppy": True,
        "dry_run": "json", "participant_label": ["01", "02"], "peak_max": 3, "mem": "5G", "tractogram_format": ["tck"],
    }  # fmt: skip
    settings = parse_args(command_of(given)[1:], {})
    assert settings.dry_run == "json" and settings.sloppy and settings.participant_label == ("01", "02")
    assert (settings.peak_max, settings.mem, settings.tractogram_format) == (3, 5.0, ("tck",))


def test_exit_codes_are_those_of_the_help():
    help_text = subprocess.run([sys.executable, "-m", "shd_bids", "--help"], capture_output=True, text=True).stdout
    codes = help_text.partition("exit codes:")[2].partition("\n\n")[0]
    told = {int(code) for code in re.findall(r"\d+", codes)}
    assert set(EXIT_CODES) == told - {0}


def test_boutiques_takes_it(tmp_path):
    """Its own command checks more than its schema."""
    pytest.importorskip("boutiques", reason="boutiques is not installed")
    script = "import sys; from boutiques.bosh import bosh; sys.exit(bosh(sys.argv[1:]))"
    file = tmp_path / "descriptor.json"
    for content, code in ((descriptor(), 0), ({**descriptor(), "command-line": "shd_bids"}, 1)):
        file.write_text(json.dumps(content))
        words = [sys.executable, "-c", script, "validate", str(file)]
        assert subprocess.run(words, capture_output=True, cwd=tmp_path).returncode == code


def test_nipoppy_takes_the_folder():
    validation = pytest.importorskip("nipoppy.pipeline_validation")
    config = validation.check_pipeline_bundle(DEPLOY / "nipoppy", strict=True)
    assert ("shd_bids", __version__) == (config.NAME, config.VERSION)


def test_the_invocation_of_nipoppy_names_options():
    assert set(invocation()) <= set(OPTIONS)
    assert read("nipoppy/config.json")["VERSION"] == __version__


def test_babs_has_its_sections_and_options():
    config = yaml.safe_load((DEPLOY / "babs.yaml").read_text())
    sections = {
        "input_datasets",
        "bids_app_args",
        "zip_foldernames",
        "cluster_resources",
        "script_preamble",
        "job_compute_space",
    }
    assert sections <= set(config) <= sections | {"singularity_args", "all_results_in_one_zip"}
    words = [word for word in config["bids_app_args"] if not word.startswith("$")]
    assert {word.removeprefix("--").replace("-", "_") for word in words} <= set(OPTIONS)
    assert config["bids_app_args"]["$SUBJECT_SELECTION_FLAG"] == "--participant-label"
    assert config["zip_foldernames"] == {"shd_bids": __version__.replace(".", "-")}
