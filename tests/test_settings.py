from pathlib import Path

import pytest

from shd_bids.options import FodOptions, PeakOptions, Runtime, TrackingOptions
from shd_bids.settings import OPTIONS, SLOPPY, Settings, values_from_toml

DIRS = {"bids_dir": Path("/data"), "output_dir": Path("/out")}
CHANGED = {
    "participant_label": ("01", "02"),
    "session_label": ("a",),
    "derivatives": {"qsiprep": Path("/d e"), "masks": Path("/m")},
    "mask": Path('/a "b"/m.nii.gz'),
    "responses": (Path("/r/wm.txt"), Path("/r/csf.txt")),
    "tractogram_format": ("trx", "tck"),
    "parcellation": ("/labels.nii.gz", "aparcaseg"),
    "device": "cuda:3",
    "max_steps": 10,
    "step_size": 0.5,
    "peak_absolute_threshold": 0.05,
    "mem": 3,
    "sloppy": True,
    "dry_run": "json",
    "verbose": -1,
}


@pytest.mark.parametrize("changed", [{}, CHANGED], ids=["defaults", "changed"])
def test_toml_and_back_is_the_same(changed):
    settings = Settings(**DIRS, **changed)
    assert Settings.from_toml(settings.to_toml()) == settings


def test_hyphens_do_as_well():
    assert values_from_toml("fod-lmax = 8") == {"fod_lmax": 8}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("unknown = 1", "unknown setting unknown"),
        ('nprocs = "4"', "expected int"),
        ("nprocs = 1.5", "expected int"),
        ("seeds = true", "expected int"),
        ("sloppy = 1", "expected bool"),
        ("derivatives = ['/a']", "a table of name = path"),
        ("participant_label = '01'", "a list of text"),
        ("nprocs = ", "Invalid value"),
    ],
)
def test_what_is_wrong_in_a_file_is_told(text, told):
    with pytest.raises(ValueError, match=told):
        values_from_toml(text)


@pytest.mark.parametrize("name", sorted(name for name, known in OPTIONS.items() if known.choices))
def test_values_outside_a_list_are_refused(name):
    value = ("bogus",) if name in ("tractogram_format", "connectome_map") else "bogus"
    with pytest.raises(ValueError, match="found 'bogus'"):
        Settings(**DIRS, **{name: value})


@pytest.mark.parametrize("name", sorted(name for name, known in OPTIONS.items() if known.bounds))
@pytest.mark.parametrize("end", [0, 1])
def test_numbers_outside_their_bounds_are_refused(name, end):
    value = OPTIONS[name].bounds[end] + (1 if end else -1)
    with pytest.raises(ValueError, match=f"--{name.replace('_', '-')}: found"):
        Settings(**DIRS, **{name: value})


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"fod_lmax": 7}, "even degree"),
        ({"network": "published"}, "add --weights none"),
        ({"fit": "amortised", "weights": "none"}, "needs weights"),
        ({"fit": "cohort", "weights": "none"}, "--fit cohort needs weights"),
        ({"min_length": 100.0, "max_length": 50.0}, "no streamline could pass"),
        ({"tractogram_format": ()}, "at least one"),
        ({"device": "gpu"}, "cuda:N"),
        ({"parcellation": ("a",), "level": "peaks"}, "--parcellation.*found --level peaks, expected full"),
    ],
)
def test_contradictions_are_told(changed, told):
    with pytest.raises(ValueError, match=told):
        Settings(**DIRS, **changed)


def test_all_problems_are_told_together():
    with pytest.raises(ValueError, match=r"--level.*--fod-lmax.*even"):
        Settings(**DIRS, level="x", fod_lmax=21)


def test_sloppy_values_are_allowed():
    assert SLOPPY
    Settings(**DIRS, **SLOPPY)


def test_groups_hold_the_values_of_their_stage():
    settings = Settings(**DIRS, lambda_tv=0.1, peak_max=2, seeds=7, device="cpu", random_seed=3, mem=4.0)
    assert settings.fod == FodOptions(lambda_tv=0.1)
    assert settings.peaks == PeakOptions(peak_max=2)
    assert settings.tracking == TrackingOptions(seeds=7)
    assert settings.runtime == Runtime(device="cpu", memory_gb=4.0, seed=3)
    assert settings.gradients.b0_threshold == settings.b0_threshold
