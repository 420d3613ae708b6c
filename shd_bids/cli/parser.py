"""The command line: words in, one frozen `Settings` out, or a usage line and exit code 2."""

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any

from shd_bids import __version__
from shd_bids.cli.resources import available_cpus, available_memory
from shd_bids.settings import CHOICES, SLOPPY, Settings, values_from_toml

DESCRIPTION = """\
Fibre orientation distributions (fODF), peaks and streamlines for every diffusion series of a BIDS data set, by
spherical deconvolution with an equivariant network and a total-variation prior (SHD-TV)."""

EPILOG = """\
exit codes: 0 all done; 1 some series failed, the others finished; 2 wrong call; 65 bad input data; 66 nothing matched;
69 device absent; 70 internal error; 73 cannot write; 78 bad weights; 130 and 143 interrupted (SIGINT, SIGTERM)."""

POSITIONALS = ("bids_dir", "output_dir", "analysis_level")
_UNITS = {"K": 1e-6, "M": 1e-3, "G": 1.0, "T": 1e3}
_DEFAULTS = {f.name: f.default for f in fields(Settings) if f.default is not MISSING}


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
    _check_paths(parser, settings)
    return settings


def build_parser(*, with_positionals: bool = True) -> argparse.ArgumentParser:
    """Return the parser; options that were not given are absent from its result."""
    parser = argparse.ArgumentParser(
        prog="shd_bids",
        usage="shd_bids BIDS_DIR OUTPUT_DIR {participant,group} [options]",
        description=DESCRIPTION,
        epilog=EPILOG,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
        add_help=with_positionals,
    )
    if with_positionals:
        add = parser.add_argument
        add(
            "bids_dir", metavar="BIDS_DIR", type=_path, help="data set, raw or preprocessed (QSIPrep); never written to"
        )
        add("output_dir", metavar="OUTPUT_DIR", type=_path, help="derivative data set to create or complete")
        parser.add_argument(
            "analysis_level",
            choices=CHOICES["analysis_level"],
            help="participant: every series on its own; group: adapt the weights to all of them, for --fit cohort",
        )
    parser.add_argument("--version", action="version", version=f"shd_bids {__version__}")
    _add_input_options(parser.add_argument_group("what to process"))
    _add_running_options(parser.add_argument_group("how to run"))
    _add_fit_options(parser.add_argument_group("responses and fODF"))
    _add_peak_options(parser.add_argument_group("peaks"))
    _add_tracking_options(parser.add_argument_group("tractography"))
    return parser


def _add_input_options(group: Any) -> None:
    add = group.add_argument
    add(
        "--participant-label",
        "--participant_label",
        nargs="+",
        action="extend",
        type=_label("sub-"),
        metavar="LABEL",
        help="participants, with or without sub- (default: all)",
    )
    add(
        "--session-label",
        "--session_label",
        "--session-id",
        dest="session_label",
        nargs="+",
        action="extend",
        type=_label("ses-"),
        metavar="LABEL",
        help="sessions, with or without ses- (default: all)",
    )
    add(
        "--bids-filter-file",
        type=_path,
        metavar="JSON",
        help='which files to take: {"dwi": {"acquisition": "hardi"}, "mask": {...}}; null means without, "*" any value',
    )
    add(
        "-d",
        "--derivatives",
        "--datasets",
        dest="derivatives",
        nargs="+",
        action=_AddDatasets,
        metavar="NAME=PATH",
        help="data sets that hold preprocessed images (desc-preproc) or brain masks (desc-brain_mask)",
    )
    add("--mask", type=_path, metavar="FILE", help="brain mask, on the grid of every image that is processed")
    add(
        "--input-type",
        choices=CHOICES["input_type"],
        help="whose conventions the gradients follow: bids (.bvec, FSL axes), qsiprep (.b, world axes), raw (as bids, "
        "knowing that nothing is corrected); auto looks (default: auto)",
    )
    add(
        "--bids-database-dir",
        type=_path,
        metavar="DIR",
        help="keep the index of large data sets here for the next call",
    )
    add(
        "--skip-bids-validation",
        "--skip_bids_validation",
        "--skip-bids-validator",
        "--skip_bids_validator",
        dest="skip_bids_validation",
        action="store_true",
        help="do not ask the BIDS validator (what it says never stops a run)",
    )


def _add_running_options(group: Any) -> None:
    add = group.add_argument
    add(
        "-w",
        "--work-dir",
        "--work_dir",
        dest="work_dir",
        type=_path,
        metavar="DIR",
        help="intermediate files (default: OUTPUT_DIR/.work); those of a finished series are removed",
    )
    add("--keep-work", action="store_true", help="keep intermediate files")
    add("--clean-workdir", action="store_true", help="forget intermediate files of earlier, unfinished calls")
    add(
        "--nprocs",
        "--nthreads",
        "--n-cpus",
        "--n_cpus",
        dest="nprocs",
        type=int,
        metavar="N",
        help="processors for all tasks together (default: those this process may use)",
    )
    add("--omp-nthreads", type=int, metavar="N", help="processors for one task (default: as --nprocs, at most 16)")
    add(
        "--mem",
        "--mem-mb",
        "--mem_mb",
        dest="mem",
        type=_gigabytes,
        metavar="SIZE",
        help="memory for all tasks together: 8G, 8000M, 8000 (MB) (default: 90 %% of what this process may use)",
    )
    add("--device", metavar="{auto,cpu,cuda,cuda:N}", help="where networks run (default: auto)")
    add("--precision", choices=CHOICES["precision"], help="arithmetic of the network on the device (default: float32)")
    add(
        "--use-plugin",
        "--nipype-plugin-file",
        dest="use_plugin",
        type=_path,
        metavar="YAML",
        help="Nipype plugin settings",
    )
    add("--stop-on-first-crash", action="store_true", help="stop all series when one fails")
    add("--random-seed", type=int, metavar="N", help=_default("seed of everything drawn at random", "random_seed"))
    add("--overwrite", action="store_true", help="also process series that are done with the same inputs and settings")
    add("--sloppy", action="store_true", help="coarse and fast, to try things: results are stamped and not for use")
    add(
        "--dry-run",
        choices=CHOICES["dry_run"],
        help="print what would be done and how much time, memory and disk it takes; --dry-run alone means text",
    )
    add("--config-file", type=_path, metavar="TOML", help="options from a file; the command line wins")
    add("--notrack", action="store_true", help="accepted for old scripts; nothing is ever sent anywhere")
    add("-v", "--verbose", action="count", help="say more (twice: each task)")
    add("-q", "--quiet", action="count", help="say less: warnings and errors only")


def _add_fit_options(group: Any) -> None:
    add = group.add_argument
    add("--level", choices=CHOICES["level"], help=_default("last stage", "level"))
    add(
        "--gradient-check",
        choices=CHOICES["gradient_check"],
        help=_default("what to do when another orientation of the gradients fits the anatomy better", "gradient_check"),
    )
    add("--b0-threshold", type=float, metavar="B", help=_default("largest b-value, s/mm2, of b=0", "b0_threshold"))
    add("--shell-tolerance", type=float, metavar="B", help=_default("largest gap in a shell, s/mm2", "shell_tolerance"))
    add(
        "--responses",
        nargs="+",
        action="extend",
        type=_path,
        metavar="FILE",
        help="response functions to use instead of estimating them: MRtrix3 text, names with wm, gm, csf",
    )
    add(
        "--fit",
        choices=CHOICES["fit"],
        help="amortised: the weights as they are; subject: adapted to each image; cohort: those that the group "
        "level adapted (default: amortised)",
    )
    add("--weights", type=_weights, metavar="{packaged,none,PATH}", help=_default("network weights", "weights"))
    add(
        "--fod-lmax",
        type=int,
        metavar="L",
        help=_default("harmonic degree of the stored fODF, even, to 18", "fod_lmax"),
    )
    add(
        "--lambda-tv", type=float, metavar="X", help=_default("weight of total variation in --fit subject", "lambda_tv")
    )
    add(
        "--tv-penalty",
        choices=CHOICES["tv_penalty"],
        help="of the change between neighbours: squared as published, or absolute, which keeps the edges of bundles "
        "(and weighs small changes more: lower --lambda-tv) (default: squared)",
    )
    add(
        "--max-steps",
        type=_auto(int),
        metavar="{auto,N}",
        help="training steps of --fit subject and group (default: auto)",
    )


def _add_peak_options(group: Any) -> None:
    add = group.add_argument
    add("--peak-max", type=int, metavar="N", help=_default("most peaks in a voxel", "peak_max"))
    add(
        "--peak-relative-threshold",
        type=float,
        metavar="X",
        help=_default("least amplitude, as a share of the voxel's largest", "peak_relative_threshold"),
    )
    add(
        "--peak-absolute-threshold",
        type=_auto(float),
        metavar="{auto,X}",
        help="least amplitude; auto: from the amplitudes in cerebrospinal fluid (default: auto)",
    )
    add("--peak-separation", type=float, metavar="DEG", help=_default("least angle between peaks", "peak_separation"))


def _add_tracking_options(group: Any) -> None:
    add = group.add_argument
    add(
        "--tracking-algorithm",
        choices=CHOICES["tracking_algorithm"],
        help=_default("deterministic, probabilistic or parallel transport", "tracking_algorithm"),
    )
    add("--seeds", type=int, metavar="N", help=_default("seeds per voxel of white matter", "seeds"))
    add("--select", type=int, metavar="N", help="streamlines to keep, drawn at random (default: 0, all)")
    add("--step-size", type=_auto(float), metavar="{auto,MM}", help="auto: half a voxel (default: auto)")
    add("--max-angle", type=float, metavar="DEG", help=_default("largest turn in one step", "max_angle"))
    add("--min-length", type=float, metavar="MM", help=_default("shorter streamlines are dropped", "min_length"))
    add("--max-length", type=float, metavar="MM", help=_default("longer streamlines are dropped", "max_length"))
    add(
        "--tractogram-format",
        nargs="+",
        choices=CHOICES["tractogram_format"],
        help="one or more formats of the tractogram (default: trx)",
    )


def _default(text: str, name: str) -> str:
    value = _DEFAULTS[name]
    return f"{text} (default: {value:g})" if isinstance(value, float) else f"{text} (default: {value})"


class _AddDatasets(argparse.Action):
    """Collect ``NAME=PATH`` words of one or several occurrences; a bare path is named after its folder."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        collected = dict(getattr(namespace, self.dest, {}))
        for word in values:
            name, _, path = word.rpartition("=")
            collected[name or Path(path).absolute().name] = _path(path)
        setattr(namespace, self.dest, collected)


def _path(text: str) -> Path:
    return Path(text).expanduser().absolute() if text.startswith("~/") else Path(text).absolute()


def _label(prefix: str) -> Any:
    def label(text: str) -> str:
        """Strip the prefix; what is left must be a BIDS label."""
        value = text.removeprefix(prefix)
        if not value.replace("+", "").isalnum():
            raise argparse.ArgumentTypeError(f"{text!r} is not a BIDS label (letters and digits)")
        return value

    return label


def _auto(kind: type) -> Any:
    def number(text: str) -> Any:
        try:
            return None if text == "auto" else kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"found {text!r}, expected auto or a number") from None

    return number


def _gigabytes(text: str) -> float:
    """Return GB; a number without unit is MB, as in other BIDS apps."""
    digits = text.upper().removesuffix("IB").removesuffix("B")
    unit = digits[-1:] if digits[-1:] in _UNITS else "M"
    try:
        return float(digits.rstrip("KMGT")) * _UNITS[unit]
    except ValueError:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a size like 8G or 8000M") from None


def _weights(text: str) -> str:
    return text if text in ("packaged", "none") else str(_path(text))


def _with_explicit_mode(argv: Sequence[str]) -> list[str]:
    """Give a bare ``--dry-run`` its value, so that it does not swallow the word behind it."""
    words: list[str] = []
    for word, following in zip(argv, [*argv[1:], ""], strict=True):
        words.append("--dry-run=text" if word == "--dry-run" and following not in CHOICES["dry_run"] else word)
    return words


def _config_values(parser: argparse.ArgumentParser, argv: Sequence[str]) -> dict[str, Any]:
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--config-file", type=_path)
    path = finder.parse_known_args(argv)[0].config_file
    if path is None:
        return {}
    try:
        values = values_from_toml(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        parser.error(f"--config-file {path}: {getattr(error, 'strerror', None) or error}")
    one = {name: value.absolute() for name, value in values.items() if isinstance(value, Path)}
    many = {name: tuple(path.absolute() for path in values[name]) for name in ("responses",) if name in values}
    tables = {
        name: {key: path.absolute() for key, path in values[name].items()}
        for name in ("derivatives",)
        if name in values
    }
    return values | one | many | tables


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
        parser.error(f"--fit cohort: no weights at {path}; run the group level first, or give --weights PATH")
    return replace(settings, weights=str(path.absolute()))


def _check_paths(parser: argparse.ArgumentParser, settings: Settings) -> None:
    """Stop the call where a path cannot be what it is said to be."""
    folders = {"BIDS_DIR": settings.bids_dir, **{f"--derivatives {k}": v for k, v in settings.derivatives.items()}}
    for name, folder in folders.items():
        if not folder.is_dir():
            parser.error(f"{name}: no such folder: {folder}")
    weights = Path(settings.weights) if settings.weights not in ("packaged", "none") else None
    files = {
        "--mask": settings.mask,
        "--bids-filter-file": settings.bids_filter_file,
        "--use-plugin": settings.use_plugin,
    }
    for name, file in [*files.items(), ("--weights", weights), *(("--responses", path) for path in settings.responses)]:
        if file is not None and not file.is_file():
            parser.error(f"{name}: no such file: {file}")
    bids_dir, output_dir, work_dir = (
        path.resolve() for path in (settings.bids_dir, settings.output_dir, settings.work_dir)
    )
    if output_dir == bids_dir:
        parser.error(f"OUTPUT_DIR is BIDS_DIR; use {settings.bids_dir / 'derivatives' / 'shd_bids'} or another folder")
    if work_dir.is_relative_to(bids_dir) and not work_dir.is_relative_to(output_dir):
        parser.error(f"--work-dir {settings.work_dir} lies inside BIDS_DIR; choose a folder outside")
