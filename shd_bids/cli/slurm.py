"""A script for SLURM: one task of an array for each participant, which goes on where it was when it is submitted again."""

import argparse
import math
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import Any, NoReturn

from shd_bids.cli.console import code_of
from shd_bids.cli.parser import files_given, parse_args
from shd_bids.errors import NoInputError, ShdError
from shd_bids.option import flag
from shd_bids.settings import OPTIONS, Settings

__all__ = ["Job", "format_script", "main", "run"]

DESCRIPTION = """\
Print a job script for SLURM: shd_bids-slurm BIDS_DIR OUTPUT_DIR participant [options of shd_bids] > job.sh; sbatch job.sh.
Each task of its array processes one participant. Submitting it again goes on where tasks were stopped, and skips what is
done."""

OF_THE_TASK = ("participant_label", "nprocs", "omp_nthreads", "mem", "work_dir", "dry_run")
"""Settings that each task has of its own."""

SECONDS_TO_END = 120
"""Between SIGTERM and the end of the time limit."""

LONGEST_ARRAY = 1001
"""Tasks of an array that SLURM takes unless it is configured for more (``MaxArraySize``)."""

SAFETY = 2.0
"""Times the estimates of time and memory."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a job asks of the cluster.

    Attributes
    ----------
    cpus, memory_gb, minutes : int
        Of one task.
    image : Path, optional
        Apptainer image to run in; this installation where there is none.
    local_dir : str
        Folder on the node for the work folder, as a shell writes it.
    at_once : int, optional
        Most tasks at a time.
    partition, account : str, optional
    """

    cpus: int
    memory_gb: int
    minutes: int
    image: Path | None = None
    local_dir: str = "${SLURM_TMPDIR:-${TMPDIR:-/tmp}}"
    at_once: int | None = None
    partition: str | None = None
    account: str | None = None


def run() -> NoReturn:
    """Run the command ``shd_bids-slurm``."""
    sys.exit(main(sys.argv[1:]))


def main(argv: Sequence[str]) -> int:
    """Print the script of a call and return the exit code.

    Parameters
    ----------
    argv : sequence of str
        Words after the program's name.
    """
    parser = build_parser()
    own, words = parser.parse_known_args(argv)
    if not words:
        parser.error("BIDS_DIR OUTPUT_DIR participant and options of shd_bids are needed")
    settings = parse_args(words)
    if settings.analysis_level != "participant":
        parser.error("the group level is one task: submit it by sbatch --wrap")
    try:
        labels = participants(settings)
        print(format_script(_job(own, settings, labels), settings, labels), end="")
    except ShdError as error:
        print(*str(error).splitlines(), sep="\n", file=sys.stderr)
        return code_of(error)
    return 0


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the options of the script; the others are those of `shd_bids`."""
    parser = argparse.ArgumentParser(prog="shd_bids-slurm", description=DESCRIPTION, allow_abbrev=False)
    parser.add_argument(
        "--image", type=Path, metavar="SIF", help="Apptainer image to run in (default: this installation)"
    )
    parser.add_argument("--cpus", type=int, default=4, help="processors of a task (default: 4)")
    parser.add_argument(
        "--memory-gb", type=int, help="memory of a task (default: twice the estimate for the first series)"
    )
    parser.add_argument("--minutes", type=int, help="time limit of a task (default: twice the estimate, at least 60)")
    parser.add_argument(
        "--local-dir",
        default=Job.local_dir,
        help="folder on the node for work folders (default: $SLURM_TMPDIR, else $TMPDIR, else /tmp)",
    )
    parser.add_argument("--at-once", type=int, metavar="N", help="most tasks at a time")
    parser.add_argument("--partition", help="as of sbatch")
    parser.add_argument("--account", help="as of sbatch")
    return parser


def participants(settings: Settings) -> list[str]:
    """Return the labels of the participants that are asked for, or of all that have a folder.

    Raises
    ------
    NoInputError
        There are none.
    """
    if settings.participant_label:
        return list(settings.participant_label)
    roots = [settings.bids_dir, *settings.derivatives.values()]
    labels = {path.name.removeprefix("sub-") for root in roots for path in root.glob("sub-*") if path.is_dir()}
    if not labels:
        raise NoInputError(f"no folder sub-* in {settings.bids_dir}")
    return sorted(labels)


def _job(own: argparse.Namespace, settings: Settings, labels: Sequence[str]) -> Job:
    """Return what the user asks for, and estimates for what is left open."""
    values = {name: value for name, value in vars(own).items() if value is not None}
    if own.image is not None:
        values["image"] = own.image.absolute()
    if own.memory_gb is None or own.minutes is None:
        values = _estimated(settings, labels, n_cpus=own.cpus) | values
    return Job(**values)


def _estimated(settings: Settings, labels: Sequence[str], *, n_cpus: int) -> dict[str, int]:
    """Return memory and time of a task, from the series of the first participant that has any."""
    from shd_bids.bids.collect import collect_runs
    from shd_bids.bids.stages import StagePlan, stages_of
    from shd_bids.cli.plan import make_plan

    for label in labels:
        one = replace(settings, participant_label=(label,), nprocs=n_cpus, omp_nthreads=n_cpus)
        try:
            runs = collect_runs(one)
        except NoInputError:
            continue
        plan = StagePlan(dict.fromkeys(stage.name for stage in stages_of(settings.level)))
        told = make_plan(runs, one, device=settings.device, plans={run.key: plan for run in runs})["expected"]
        minutes = 30 * math.ceil(SAFETY * told["minutes"] / 30)
        return {"memory_gb": max(4, math.ceil(SAFETY * told["memory_gb"])), "minutes": max(60, minutes)}
    raise NoInputError(f"no participant of {settings.bids_dir} has a diffusion series")


def format_script(job: Job, settings: Settings, labels: Sequence[str]) -> str:
    """Return the script.

    Parameters
    ----------
    job : Job
    settings : Settings
        Of the call; those of `OF_THE_TASK` are set by each task.
    labels : sequence of str
        Participants, one a task.
    """
    return "\n".join([
        "#!/bin/bash",
        *(f"#SBATCH {line}" for line in _directives(job, settings, len(labels))),
        "",
        "# Submit it again after tasks were stopped: they go on, and skip what is done.",
        "set -u",
        f"participants=({' '.join(map(shlex.quote, labels))})",
        'participant=${participants[$SLURM_ARRAY_TASK_ID]}',
        f'work={_work(job)}',
        f"mkdir -p {shlex.join(map(str, _written(settings)))}",
        'mkdir -p -m 700 "$work"',
        "",
        "# SIGTERM comes before the time limit; the program then ends in order and keeps the stages that are done.",
        f"{_command(job, settings)} &",
        "program=$!",
        "trap 'kill -TERM \"$program\"' TERM",
        'wait "$program"; code=$?',
        'while kill -0 "$program" 2>/dev/null; do wait "$program"; code=$?; done  # a signal ends a wait early',
        'rm -rf "$work"',
        'exit "$code"',
        "",
    ])  # fmt: skip


def _directives(job: Job, settings: Settings, n_tasks: int) -> Iterator[str]:
    yield "--job-name=shd_bids"
    yield f"--array=0-{n_tasks - 1}" + (f"%{job.at_once}" if job.at_once else "")
    if n_tasks > LONGEST_ARRAY:
        yield f" {n_tasks} tasks: more than SLURM takes by default, see MaxArraySize of: scontrol show config"
    yield "--output=shd_bids-%A_%a.log"
    yield f"--cpus-per-task={job.cpus}"
    yield f"--mem={job.memory_gb}G"
    yield f"--time={job.minutes // 60:02d}:{job.minutes % 60:02d}:00"
    yield f"--signal=B:TERM@{SECONDS_TO_END}"
    if settings.device.startswith("cuda"):
        yield "--gres=gpu:1"
    for name in ("partition", "account"):
        if value := getattr(job, name):
            yield f"--{name}={value}"


def _work(job: Job) -> str:
    return f'"{job.local_dir}/shd_bids_${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID"'


def _command(job: Job, settings: Settings) -> str:
    """Return the command of a task, as a shell reads it."""
    paths = [settings.bids_dir, settings.output_dir]
    program = [sys.executable, "-m", "shd_bids"] if job.image is None else _container(job.image, settings)
    own = (
        ' --participant-label "$participant" --nprocs "$SLURM_CPUS_PER_TASK" --mem "${SLURM_MEM_PER_NODE}M"'
        ' --work-dir "$work"'
    )
    binds = ' -B "$work"' if job.image else ""
    words = shlex.join([*map(str, paths), "participant", *_words(settings)])
    image = f" {shlex.quote(str(job.image))}" if job.image else ""
    return f"{shlex.join(program)}{binds}{image} {words}{own}"


def _container(image: Path, settings: Settings) -> list[str]:
    """Return the call of a container in which all paths are those of the host, what is read being read-only."""
    read = dict.fromkeys([settings.bids_dir, *settings.derivatives.values(), *_files(settings)])
    inside = [path for path in read if path != settings.bids_dir and path.is_relative_to(settings.bids_dir)]
    binds = [f"{path}:{path}:ro" for path in read if path not in inside]
    gpu = ["--nv"] if settings.device.startswith("cuda") else []
    start = ["apptainer", "run", "--containall", "--cleanenv", *gpu]
    return [*start, *(word for bind in (*binds, *map(str, _written(settings))) for word in ("-B", bind))]


def _written(settings: Settings) -> list[Path]:
    """Return the folders that a call writes to, besides its work folder."""
    return [path for path in (settings.output_dir, settings.bids_database_dir) if path is not None]


def _files(settings: Settings) -> Iterator[Path]:
    """Yield the files that options name, and the tables of label images."""
    from shd_bids.bids.parcellations import table_beside

    for name, path in files_given(settings):
        yield path
        if name == "parcellation" and (table := table_beside(path)):
            yield table


def _words(settings: Settings) -> Iterator[str]:
    """Yield the options that are not the defaults."""
    for item in fields(settings):
        value = getattr(settings, item.name)
        default = item.default if item.default_factory is MISSING else item.default_factory()
        if value != default and not OPTIONS[item.name].is_positional and item.name not in OF_THE_TASK:
            yield from _option_words(item.name, value)


def _option_words(name: str, value: Any) -> Iterator[str]:
    match value:
        case True:
            yield flag(name)
        case int() if name == "verbose":
            yield from ["-v"] * value
        case tuple():
            yield from (flag(name), *map(str, value))
        case Mapping():
            yield from (flag(name), *(f"{key}={path}" for key, path in value.items()))
        case _:
            yield from (flag(name), str(value))


if __name__ == "__main__":
    run()
