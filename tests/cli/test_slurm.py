"""The job script: what it asks for, what its tasks call, and what a signal does to them."""

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shd_bids.cli.parser import parse_args
from shd_bids.cli.slurm import Job, format_script, main, participants
from tests.bids_trees import raw_dataset

JOB = {"cpus": 2, "memory_gb": 6, "minutes": 90}


@pytest.fixture
def raw(tmp_path):
    return raw_dataset(tmp_path / "raw data", "sub-01_dwi", "sub-02_dwi")


def settings_of(raw, *words):
    return parse_args([str(raw), str(raw.parent / "out"), "participant", *words], {})


def script(raw, *words, **job):
    settings = settings_of(raw, *words)
    return format_script(Job(**JOB | job), settings, participants(settings))


def command(text):
    """Return the words of the program that a task starts, its variables as they are written."""
    (line,) = [line for line in text.splitlines() if line.endswith(" &")]
    return shlex.split(line)[:-1]


def test_directives(raw):
    lines = script(raw, at_once=5, partition="long", account="lab").splitlines()
    assert lines[0] == "#!/bin/bash"
    asked = {line.removeprefix("#SBATCH --") for line in lines if line.startswith("#SBATCH")}
    assert asked == {
        "job-name=shd_bids", "array=0-1%5", "output=shd_bids-%A_%a.log", "cpus-per-task=2", "mem=6G", "time=01:30:00",
        "signal=B:TERM@120", "partition=long", "account=lab",
    }  # fmt: skip
    assert "#SBATCH --gres=gpu:1" in script(raw, "--device", "cuda")


@pytest.mark.parametrize(
    "words",
    [
        ("--seeds", "3", "--tractogram-format", "trx", "tck", "--skip-bids-validation", "-v", "-v"),
        ("--level", "peaks", "--peak-absolute-threshold", "0.2", "--session-label", "a", "b"),
    ],
)
def test_tasks_call_the_program_with_the_same_options(raw, words):
    called = command(script(raw, *words))
    assert called[:3] == [sys.executable, "-m", "shd_bids"]
    tail = [
        "--participant-label",
        "$participant",
        "--nprocs",
        "$SLURM_CPUS_PER_TASK",
        "--mem",
        "${SLURM_MEM_PER_NODE}M",
    ]
    assert called[-8:] == [*tail, "--work-dir", "$work"]
    repeated, given = parse_args(called[3:-8], {}), settings_of(raw, *words)
    assert repeated == given


def test_a_container_sees_what_the_call_names_and_no_more(raw, tmp_path):
    mask = tmp_path / "mask.nii.gz"
    mask.touch()
    called = command(script(raw, "--mask", str(mask), "--device", "cuda:0", image=Path("/images/shd.sif")))
    assert called[:5] == ["apptainer", "run", "--containall", "--cleanenv", "--nv"]
    inside = called.index("/images/shd.sif")
    assert called[5:inside:2] == ["-B"] * 4
    assert called[6:inside:2] == [f"{raw}:{raw}:ro", f"{mask}:{mask}:ro", str(tmp_path / "out"), "$work"]
    assert called[inside + 1 : inside + 4] == [str(raw), str(tmp_path / "out"), "participant"]


def test_a_container_sees_label_images_and_their_tables(raw, tmp_path):
    for name in ("labels.nii.gz", "labels.tsv", "plain.nii.gz"):
        (tmp_path / name).touch()
    words = ("--parcellation", str(tmp_path / "labels.nii.gz"), str(tmp_path / "plain.nii.gz"), "aparc")
    called = command(script(raw, *words, image=Path("/images/shd.sif")))
    bound = {word.partition(":")[0] for word in called if word.endswith(":ro")}
    assert bound == {str(raw), *(f"{tmp_path}/{name}" for name in ("labels.nii.gz", "labels.tsv", "plain.nii.gz"))}


def test_folders_that_a_container_is_given_exist(raw, tmp_path):
    words = ("--bids-database-dir", str(tmp_path / "index"))
    lines = script(raw, *words, image=Path("/images/shd.sif")).splitlines()
    assert f"-B {tmp_path}/index" in "\n".join(lines)
    made = [line for line in lines if line.startswith(("work=", "mkdir"))]
    environment = {"SLURM_TMPDIR": str(tmp_path), "SLURM_ARRAY_JOB_ID": "8", "SLURM_ARRAY_TASK_ID": "1"}
    subprocess.run(["bash", "-euc", "\n".join(made)], env=os.environ | environment, check=True)
    assert all((tmp_path / name).is_dir() for name in ("out", "index", "shd_bids_8_1"))


def test_participants_are_those_asked_for_or_all(raw):
    assert participants(settings_of(raw)) == ["01", "02"]
    assert participants(settings_of(raw, "--participant-label", "sub-02")) == ["02"]


def test_time_and_memory_are_estimated(raw, capsys):
    out = str(raw.parent / "out")
    assert main([str(raw), out, "participant", "--cpus", "2", "--level", "response"]) == 0
    text = capsys.readouterr().out
    assert "--mem=4G" in text and "--time=01:00:00" in text
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)


def test_no_participants(tmp_path, capsys):
    (tmp_path / "raw").mkdir()
    assert main([str(tmp_path / "raw"), str(tmp_path / "out"), "participant"]) == 66
    assert "no folder sub-*" in capsys.readouterr().err


@pytest.mark.parametrize("stop", [False, True])
def test_a_signal_reaches_the_program_and_its_code_is_that_of_the_task(raw, tmp_path, stop):
    program = tmp_path / "program"
    program.write_text(
        f"#!/bin/bash\ntrap 'touch {tmp_path}/ended; exit 143' TERM\ntouch {tmp_path}/begun\n"
        'for i in {1..100}; do sleep 0.1; [ $i = 3 ] && [ -z "$STOP" ] && exit 7; done\n'
    )
    program.chmod(0o755)
    text = script(raw).replace(f"{sys.executable} -m shd_bids", str(program))
    job = tmp_path / "job.sh"
    job.write_text(text)
    environment = os.environ | {
        "SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_JOB_ID": "5", "SLURM_CPUS_PER_TASK": "2", "SLURM_MEM_PER_NODE": "4000",
        "SLURM_TMPDIR": str(tmp_path), "STOP": "1" if stop else "",
    }  # fmt: skip
    task = subprocess.Popen(["bash", str(job)], env=environment)
    while not (tmp_path / "begun").exists():
        time.sleep(0.05)
    if stop:
        task.send_signal(signal.SIGTERM)
    assert task.wait(timeout=60) == (143 if stop else 7)
    assert (tmp_path / "ended").exists() == stop
    assert not (tmp_path / "shd_bids_5_1").exists()
