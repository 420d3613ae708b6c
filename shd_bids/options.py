"""Options of the user, each defined once with its default, bounds and help, in one dataclass for each stage.

`shd_bids.settings.Settings` joins the groups under the names of the long options, `shd_bids.cli.parser` makes the command
line of them, and each stage is given the group that it needs. Values check themselves when they are made.
"""

import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass
from pathlib import Path

from shd_bids.option import Options, option

__all__ = [
    "GROUP",
    "LEVELS",
    "ExecutionOptions",
    "FodOptions",
    "GradientOptions",
    "InputOptions",
    "PeakOptions",
    "Runtime",
    "TrackingOptions",
    "TractogramOptions",
    "is_label_file",
]

GROUP = "group"
"""Word for the responses that the group level made."""

LEVELS = ("response", "fod", "peaks", "full")
"""Stages at which a call may end, in order."""

SCALAR_MAPS = ("afdtotal", "afdmax", "afdsum", "nufo", "vfwm", "vfgm", "vfcsf", "rsquared", "misfit")
"""Maps of one volume that a call writes, by the label of ``param``."""


def is_label_file(text: str) -> bool:
    """Whether a value of ``--parcellation`` is a file, not a name."""
    return text.endswith((".nii", ".nii.gz"))


@dataclass(frozen=True, kw_only=True)
class InputOptions(Options):
    """Which files are processed, and what is known of them."""

    bids_dir: Path = option(
        MISSING,
        "data set, raw or preprocessed (QSIPrep); never written to",
        metavar="BIDS_DIR",
        is_positional=True,
    )
    output_dir: Path = option(
        MISSING, "derivative data set to create or complete", metavar="OUTPUT_DIR", is_positional=True
    )
    analysis_level: str = option(
        "participant",
        "participant: every series on its own; group: mean responses of each protocol, for --responses group, and the "
        "quality of all series; with --fit cohort instead the weights adapted to all series",
        choices=("participant", "group"),
        is_positional=True,
    )
    participant_label: tuple[str, ...] = option(
        (),
        "participants, with or without sub- (default: all)",
        flags=("--participant_label",),
        metavar="LABEL",
    )
    session_label: tuple[str, ...] = option(
        (),
        "sessions, with or without ses- (default: all)",
        flags=("--session_label", "--session-id"),
        metavar="LABEL",
    )
    bids_filter_file: Path | None = option(
        None,
        'which files to take, of dwi, mask, dseg and probseg: {"dwi": {"acquisition": "hardi"}, "mask": {...}}; null means '
        'without, "*" any value',
        metavar="JSON",
        is_file=True,
    )
    derivatives: Mapping[str, Path] = option(
        dict,
        "data sets that hold preprocessed images (desc-preproc), brain masks (desc-brain_mask), tissues or parcellations",
        flags=("-d", "--datasets"),
        metavar="NAME=PATH",
    )
    mask: Path | None = option(None, "brain mask, on the grid of every image that is processed", is_file=True)
    input_type: str = option(
        "auto",
        "whose conventions the gradients follow: bids (.bvec, FSL axes), qsiprep (.b, world axes), raw (as bids, "
        "knowing that nothing is corrected); auto looks",
        choices=("auto", "bids", "qsiprep", "raw"),
    )
    responses: tuple[Path, ...] = option(
        (),
        "response functions to use instead of estimating them: MRtrix3 text, names with wm, gm, csf; group: the means "
        "of the group level for the protocol of each series",
        words=(GROUP,),
        metavar="FILE",
        is_file=True,
    )
    bids_database_dir: Path | None = option(
        None, "keep the index of large data sets here for the next call", metavar="DIR"
    )
    skip_bids_validation: bool = option(
        False,
        "do not ask the BIDS validator (what it says never stops a run)",
        flags=("--skip_bids_validation", "--skip-bids-validator", "--skip_bids_validator"),
    )

    @property
    def has_group_responses(self) -> bool:
        """Whether each series takes the mean responses of its protocol."""
        return self.responses == (Path(GROUP),)

    def problems(self) -> list[str]:
        found = super().problems()
        if Path(GROUP) in self.responses and not self.has_group_responses:
            found.append("--responses: found group and files, expected one or the other")
        return found


@dataclass(frozen=True, kw_only=True)
class ExecutionOptions(Options):
    """How far, where and with what a call runs; ``mem`` in GB."""

    level: str = option("full", "last stage", choices=LEVELS)
    work_dir: Path | None = option(
        None,
        "intermediate files (default: OUTPUT_DIR/.work); those of a finished series are removed",
        flags=("-w", "--work_dir"),
        metavar="DIR",
    )
    keep_work: bool = option(False, "keep intermediate files")
    clean_workdir: bool = option(False, "forget intermediate files of earlier, unfinished calls")
    nprocs: int = option(
        1,
        "processors for all tasks together (default: those this process may use)",
        bounds=(1, 4096),
        flags=("--nthreads", "--n-cpus", "--n_cpus"),
    )
    omp_nthreads: int = option(1, "processors for one task (default: as --nprocs, at most 16)", bounds=(1, 4096))
    mem: float = option(
        8.0,
        "memory for all tasks together: 8G, 8000M, 8000 (MB) (default: 90 % of what this process may use)",
        bounds=(1, 1e5),
        flags=("--mem-mb", "--mem_mb"),
        metavar="SIZE",
    )
    device: str = option("auto", "where networks run", metavar="{auto,cpu,cuda,cuda:N}")
    precision: str = option(
        "auto",
        "arithmetic: auto is float32, and bf16 in one step beside the network where the processor multiplies it; bf16 is in "
        "the network too and needs such a processor or a GPU; tf32 is for GPUs",
        choices=("auto", "float32", "tf32", "bf16"),
    )
    cohort_processes: int = option(
        1,
        "processes that share the training of group --fit cohort, each with a GPU of its own where there are",
        bounds=(1, 64),
    )
    use_plugin: Path | None = option(
        None, "Nipype plugin settings", flags=("--nipype-plugin-file",), metavar="YAML", is_file=True
    )
    stop_on_first_crash: bool = option(False, "stop all series when one fails")
    random_seed: int = option(0, "seed of everything drawn at random", bounds=(0, 2**31 - 1))
    overwrite: bool = option(False, "also process series that are done with the same inputs and settings")
    sloppy: bool = option(False, "coarse and fast, to try things: results are stamped and not for use")
    dry_run: str | None = option(
        None,
        "print what would be done and how much time, memory and disk it takes; --dry-run alone means text",
        choices=("text", "json"),
    )
    verbose: int = option(0, "say more (twice: each task)", flags=("-v",))

    def problems(self) -> list[str]:
        found = super().problems()
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            found.append(f"--device: found {self.device!r}, expected auto, cpu, cuda or cuda:N")
        return found


@dataclass(frozen=True, kw_only=True)
class GradientOptions(Options):
    """How the gradient table is read and tested; b-values in s/mm2."""

    gradient_check: str = option(
        "error",
        "what to do when another orientation of the gradients fits the anatomy better",
        choices=("error", "warn", "fix", "off"),
    )
    b0_threshold: float = option(50.0, "largest b-value, s/mm2, of b=0", bounds=(0, 500), metavar="B")
    shell_tolerance: float = option(80.0, "largest gap in a shell, s/mm2", bounds=(1, 500), metavar="B")


@dataclass(frozen=True, kw_only=True)
class FodOptions(Options):
    """How fODFs are fitted, and to which degree they are stored; ``None`` lets the data decide."""

    fit: str = option(
        "amortised",
        "amortised: the weights as they are; subject: adapted to each image; cohort: adapted to all by group --fit cohort",
        choices=("amortised", "subject", "cohort"),
    )
    weights: str = option("packaged", "network weights", words=("packaged", "none"), is_file=True)
    fod_lmax: int = option(12, "harmonic degree of the stored fODF, even, to 18", bounds=(2, 18), metavar="L", sloppy=8)
    network: str = option(
        "conditioned",
        "what --weights none trains: conditioned (inputs that serve any protocol), published (SHD-TV, NeurIPS 2024), "
        "or a recipe",
        words=("conditioned", "published"),
        metavar="FILE.toml",
        is_file=True,
    )
    refinement: str = option(
        "auto",
        "of the network's result by the data; auto: on for conditioned networks, off for published ones",
        choices=("auto", "on", "off"),
    )
    normalise: str = option(
        "off",
        "make densities comparable across sites: tissues add up to one after division by one factor, or a smooth field",
        choices=("off", "global", "bias"),
    )
    lambda_tv: float | None = option(
        None,
        "weight of total variation in --fit subject and group --fit cohort; auto: of the network, 0.5 for most",
        bounds=(0, 1e6),
    )
    tv_penalty: str = option(
        "squared",
        "of the change between neighbours: squared as published, or absolute, which keeps the edges of bundles "
        "(and weighs small changes more: lower --lambda-tv)",
        choices=("squared", "absolute"),
    )
    max_steps: int | None = option(None, "training steps of --fit subject and cohort", bounds=(1, 1e7), sloppy=20)

    def problems(self) -> list[str]:
        found = super().problems()
        if self.fod_lmax % 2:
            found.append(f"--fod-lmax: found {self.fod_lmax}, expected an even degree")
        if self.network != "conditioned" and self.weights != "none":
            found.append(f"--network {self.network} is trained from nothing; add --weights none")
        return found


@dataclass(frozen=True, kw_only=True)
class PeakOptions(Options):
    """Which maxima of an fODF count as fibre directions; angles in degrees, ``None`` lets the data decide."""

    peak_max: int = option(5, "most peaks in a voxel", bounds=(1, 20), sloppy=3)
    peak_relative_threshold: float = option(
        0.1, "least height above the isotropic part of the fODF, as a share of the voxel's largest", bounds=(0, 0.99)
    )
    peak_absolute_threshold: float | None = option(
        None, "least height; auto: from the peaks in cerebrospinal fluid", bounds=(0, 1e3)
    )
    peak_separation: float = option(15.0, "least angle between peaks", bounds=(1, 90), metavar="DEG")
    peak_prominence: float | None = option(
        None,
        "least depth of the saddle between peaks, as a share of the lower one; auto: by the strongest weighting",
        bounds=(0, 0.99),
    )
    peak_interval: float = option(
        45.0,
        "widest 90 % interval of a peak's direction; the largest peak of white matter may be less sure",
        bounds=(1, 90),
        metavar="DEG",
    )


@dataclass(frozen=True, kw_only=True)
class TrackingOptions(Options):
    """How streamlines are tracked; lengths in mm, angles in degrees, ``None`` lets the data decide."""

    tracking_algorithm: str = option(
        "prob", "probabilistic, or deterministic along the lobes of the fODF", choices=("det", "prob")
    )
    seeds: int = option(2, "seeds per voxel of white matter", bounds=(1, 10_000), sloppy=1)
    seed_region: str = option(
        "white", "where they lie: all of the white matter, or its border to grey matter", choices=("white", "border")
    )
    select: int = option(0, "streamlines to keep, drawn at random (default: 0, all)", bounds=(0, 1e9), sloppy=2000)
    act: str = option(
        "auto",
        "auto: streamlines end in grey matter and keep out of fluid, by a segmentation in the space of the image that "
        "--derivatives hold (dseg, probseg, five tissues), else by this run's own signal fractions",
        choices=("auto", "off"),
    )
    tracking_cutoff: float | None = option(
        None, "least amplitude to go on; auto: above noise and a twentieth of the usual peak", bounds=(0, 1e3)
    )
    step_size: float | None = option(None, "auto: half a voxel", bounds=(0.01, 10), metavar="MM")
    max_angle: float | None = option(
        None, "largest turn in one step; auto: 20 for prob, 60 for det", bounds=(1, 90), metavar="DEG"
    )
    min_length: float | None = option(
        None,
        "shorter streamlines are dropped; auto: 20, or a sixth of the brain's diameter where that is less",
        bounds=(0, 1000),
        metavar="MM",
    )
    max_length: float = option(250.0, "longer streamlines are dropped", bounds=(1, 10_000), metavar="MM")

    def problems(self) -> list[str]:
        found = super().problems()
        if self.min_length is not None and self.min_length >= self.max_length:
            found.append(
                f"--min-length {self.min_length:g} is not below --max-length {self.max_length:g}; "
                "no streamline could pass"
            )
        return found


@dataclass(frozen=True, kw_only=True)
class TractogramOptions(Options):
    """What is made of the streamlines; lengths in mm."""

    tractogram_format: tuple[str, ...] = option(
        ("trx",), "one or more formats of the tractogram", choices=("trx", "tck", "trk")
    )
    streamline_weights: str = option(
        "on", "one for each streamline, so that their density is that of the fibres", choices=("on", "off")
    )
    parcellation: tuple[str, ...] = option(
        (),
        "regions that connectomes are made of: label images in the space of the series, or names that data sets of "
        "--derivatives give them (seg-, atlas- or desc- of a _dseg)",
        metavar="FILE|NAME",
    )
    connectome_map: tuple[str, ...] = option(
        ("afdtotal",), "maps whose mean along the streamlines of each connection is told", choices=SCALAR_MAPS
    )
    connectome_radius: float = option(
        4.0, "largest distance from the end of a streamline to its region", bounds=(0, 20), metavar="MM"
    )

    def problems(self) -> list[str]:
        found = super().problems()
        if not self.tractogram_format:
            found.append("--tractogram-format: found none, expected at least one")
        if not self.connectome_map:
            found.append("--connectome-map: found none, expected at least one")
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """Where and with what a stage computes; only ``device``, ``precision`` and ``seed`` can change its result.

    Attributes
    ----------
    device : str
        ``auto`` takes CUDA where it is; ``cpu``, ``cuda`` or ``cuda:N`` insist.
    precision : {"auto", "float32", "tf32", "bf16"}
        See :func:`shd_bids.nn.device.choose_precision`.
    memory_gb : float
        Host or device memory the network may use.
    seed : int
        Of everything drawn at random.
    """

    device: str = "auto"
    precision: str = "auto"
    memory_gb: float = 8.0
    seed: int = 0
