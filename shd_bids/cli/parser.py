"""The command line: words in, one frozen `Settings` out, or a usage line and exit code 2."""

import argparse
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from shd_bids import __version__
from shd_bids.cli.arguments import TYPES, absolute, add_options, add_positionals
from shd_bids.cli.resources import available_cpus, available_memory
from shd_bids.errors import ShdError, TrainingError
from shd_bids.files import absence, read_text
from shd_bids.group_options import GroupOptions
from shd_bids.option import flag
from shd_bids.options import (
    ExecutionOptions,
    FodOptions,
    GradientOptions,
    InputOptions,
    PeakOptions,
    TrackingOptions,
    TractogramOptions,
    is_label_file,
)
from shd_bids.settings import OPTIONS, SLOPPY, Settings, values_from_toml

DESCRIPTION = """\
Fibre orientation distributions (fODF), peaks and streamlines for every diffusion series of a BIDS data set, by
spherical deconvolution with an equivariant network: one for all protocols, or SHD-TV as published."""

EPILOG = """\
exit codes: 0 all done; 1 some series failed, the others finished; 2 wrong call; 65 bad input data; 66 nothing matched;
69 device or compiled part absent; 70 internal error; 73 cannot write; 78 bad weights; 129, 130 and 143 ended by SIGHUP,
SIGINT and SIGTERM.

examples:
  shd_bids bids out participant --dry-run                         what would be done, and how long it takes
  shd_bids bids out participant --participant-label 01 02         two participants, all stages
  shd_bids qsiprep out participant --level peaks                  preprocessed images; no streamlines
  shd_bids bids out participant -d qsiprep=/data/qsiprep          the same from elsewhere
  shd_bids bids out participant --level response                  a study: responses of all series,
  shd_bids bids out group                                         their means by protocol,
  shd_bids bids out participant --responses group                 and everything else with them
  shd_bids bids out participant --device cuda --mem 32G           on a GPU
  shd_bids --config-file out/sub-01/log/RUN/shd_bids.toml         the same call again"""

CONFIG_HELP = "options from a file; the command line wins"
NOTRACK_HELP = "accepted for old scripts; nothing is ever sent anywhere"

SECTIONS = {
    "what to process": InputOptions,
    "how to run": ExecutionOptions,
    "gradients": GradientOptions,
    "fODF": FodOptions,
    "peaks": PeakOptions,
    "tractography": TrackingOptions,
    "streamlines and connectomes": TractogramOptions,
    "group level": GroupOptions,
}
"""Headings of ``--help``."""

POSITIONALS = tuple(name for name, known in OPTIONS.items() if known.is_positional)


def parse_args(argv: Sequence[str], environment: Mapping[str, str] = os.environ) -> Settings:
    """Return the settings of a call.

    The command line wins over ``--config-file``, that over what ``--sloppy`` implies, that over the defaults; numbers
    of processors and memory come from what the process may use.

    Parameters
    ----------
    argv : sequence of str
        Words after the program's name.
    environment : mapping
        Environment variables, read for limits of the batch system.

    Raises
    ------
    SystemExit
        With code 2 and one line for a wrong call, with 0 after ``--help`` and ``--version``.
    """
    parser = build_parser()
    for word in (*argv, str(Path.cwd())):
        if not _is_utf8(word):
            parser.error(f"{word!a} is not UTF-8, which records and sidecars are written in; give another name")
    argv = _with_explicit_mode(argv)
    from_file = _config_values(parser, argv)
    if all(name in from_file for name in POSITIONALS) and not _has_positionals(argv):
        argv = [*(str(from_file[name]) for name in POSITIONALS), *argv]
    from_cli = vars(parser.parse_args(argv))
    verbose = from_cli.pop("verbose", 0) - from_cli.pop("quiet", 0)
    if verbose:
        from_cli["verbose"] = verbose
    for name in ("config_file", "notrack"):
        from_cli.pop(name, None)
    from_cli = {name: tuple(value) if isinstance(value, list) else value for name, value in from_cli.items()}
    chosen = {**from_file, **from_cli}
    sloppy = SLOPPY if chosen.get("sloppy") else {}
    try:
        settings = Settings(**_machine_values(chosen, environment), **{**sloppy, **chosen})
    except ValueError as error:
        parser.error(str(error))
    settings = _with_cohort_weights(parser, settings)
    if settings.analysis_level == "group" and "level" in from_cli:
        parser.error("--level: the group level has no stages; leave the option out")
    _check_paths(parser, settings)
    _check_network(parser, settings)
    return settings


def build_parser(*, with_positionals: bool = True) -> argparse.ArgumentParser:
    """Return the parser; options that were not given are absent from its result."""
    parser = argparse.ArgumentParser(
        prog="shd_bids",
        usage="shd_bids BIDS_DIR OUTPUT_DIR {participant,group} [options]",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
        add_help=with_positionals,
    )
    if with_positionals:
        add_positionals(parser, InputOptions)
    parser.add_argument("--version", action="version", version=f"shd_bids {__version__}")
    for title, options in SECTIONS.items():
        group = parser.add_argument_group(title)
        add_options(group, options)
        if options is ExecutionOptions:
            group.add_argument("--config-file", type=absolute, metavar="TOML", help=CONFIG_HELP)
            group.add_argument("--notrack", action="store_true", help=NOTRACK_HELP)
            group.add_argument("-q", "--quiet", action="count", help="say less: warnings and errors only")
    return parser


def _is_utf8(word: str) -> bool:
    try:
        word.encode()
    except UnicodeEncodeError:
        return False
    return True


def _with_explicit_mode(argv: Sequence[str]) -> list[str]:
    """Give a bare ``--dry-run`` its value, so that it does not swallow the word behind it."""
    followers = (*argv[1:], "")[: len(argv)]
    return [
        "--dry-run=text" if word == "--dry-run" and following not in OPTIONS["dry_run"].choices else word
        for word, following in zip(argv, followers, strict=True)
    ]


def _config_values(parser: argparse.ArgumentParser, argv: Sequence[str]) -> dict[str, Any]:
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--config-file", type=absolute)
    path = finder.parse_known_args(argv)[0].config_file
    if path is None:
        return {}
    try:
        return {name: _as_typed(name, value) for name, value in values_from_toml(read_text(path)).items()}
    except RecursionError:
        parser.error(f"--config-file {path}: nested too deeply")
    except (OSError, ValueError, ShdError, argparse.ArgumentTypeError) as error:
        parser.error(f"--config-file {path}: {getattr(error, 'strerror', None) or error}")


def _as_typed(name: str, value: Any) -> Any:
    """Return a value of a file as the command line reads it: labels without prefix, paths absolute, words as they are."""
    match value:
        case str() if name in TYPES:
            return TYPES[name](value)
        case Path() | str() if isinstance(value, Path) or OPTIONS[name].is_file:
            return value if str(value) in OPTIONS[name].words else type(value)(absolute(str(value)))
        case tuple():
            return tuple(_as_typed(name, item) for item in value)
        case Mapping():
            return {key: _as_typed(name, item) for key, item in value.items()}
    return value


def _has_positionals(argv: Sequence[str]) -> bool:
    _, rest = build_parser(with_positionals=False).parse_known_args(
        [word for word in argv if word not in ("-h", "--help")]
    )
    return any(not word.startswith("-") for word in rest)


def _machine_values(chosen: Mapping[str, Any], environment: Mapping[str, str]) -> dict[str, Any]:
    """Return the values that depend on the machine and were not chosen."""
    nprocs = chosen.get("nprocs") or available_cpus(environment)
    values = {
        "nprocs": nprocs,
        "omp_nthreads": min(nprocs, 16),
        "mem": available_memory(environment, n_cpus=nprocs),
        "work_dir": chosen["output_dir"] / ".work",
    }
    return {name: value for name, value in values.items() if name not in chosen}


def _with_cohort_weights(parser: argparse.ArgumentParser, settings: Settings) -> Settings:
    """Take the weights of the group level for ``--fit cohort`` unless others were given."""
    if settings.analysis_level == "group" or settings.fit != "cohort" or settings.weights != "packaged":
        return settings
    from shd_bids.bids.names import cohort_path

    path = cohort_path(settings.output_dir)
    if not path.is_file():
        parser.error(f"--fit cohort: no weights at {path}; run group --fit cohort first, or give --weights PATH")
    return replace(settings, weights=str(path.absolute()))


def _check_paths(parser: argparse.ArgumentParser, settings: Settings) -> None:
    """Stop the call where a path cannot be what it is said to be."""
    folders = {"BIDS_DIR": settings.bids_dir, **{f"--derivatives {k}": v for k, v in settings.derivatives.items()}}
    for name, folder in folders.items():
        if not folder.is_dir():
            parser.error(f"{name}: no such folder: {folder}")
    for name, file in files_given(settings):
        if not file.is_file():
            parser.error(f"{flag(name)}: {absence(file) or 'not a regular file'}: {file}")
    database = settings.bids_database_dir
    if database is not None and database.exists() and not database.is_dir():
        parser.error(f"--bids-database-dir: a file, expected a folder: {database}")
    bids_dir, output_dir, work_dir = (
        path.resolve() for path in (settings.bids_dir, settings.output_dir, settings.work_dir)
    )
    if output_dir == bids_dir:
        parser.error(f"OUTPUT_DIR is BIDS_DIR; use {settings.bids_dir / 'derivatives' / 'shd_bids'} or another folder")
    if work_dir.is_relative_to(bids_dir) and not work_dir.is_relative_to(output_dir):
        parser.error(f"--work-dir {settings.work_dir} lies inside BIDS_DIR; choose a folder outside")


def _check_network(parser: argparse.ArgumentParser, settings: Settings) -> None:
    """Stop the call where the recipe of a network cannot be used."""
    if settings.network in OPTIONS["network"].words:
        return
    from shd_bids.training.config import load_network_recipe  # with torch, which other calls need not load here

    try:
        load_network_recipe(settings.network)
    except (TrainingError, TypeError, ValueError) as error:
        parser.error(f"--network {settings.network}: {error}")


def files_given(settings: Settings) -> Iterator[tuple[str, Path]]:
    """Yield option and path of every file that the user named."""
    for name, known in OPTIONS.items():
        value = getattr(settings, name)
        if known.is_file and value is not None:
            values = value if isinstance(value, tuple) else (value,)
            yield from ((name, Path(path)) for path in values if str(path) not in known.words)
    yield from (("parcellation", Path(text)) for text in settings.parcellation if is_label_file(text))
