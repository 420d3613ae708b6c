"""The HTML page of a subject: what was found and made, with a sentence on how to read each picture.

The page is assembled from the figures that lie in the output folder and the facts that the stages left, so it can be
made after a failure as well. It holds its pictures and asks the network for nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import quote

from markupsafe import Markup

from shd_bids import __version__
from shd_bids.bids.names import report_path
from shd_bids.files import write_text
from shd_bids.report.expected import Judged, quality_rows
from shd_bids.report.facts import STAGES, Problem, RunReport, dig, listed
from shd_bids.report.methods import methods_text
from shd_bids.report.pages import render_page
from shd_bids.report.pictures import Picture, alternative, embed
from shd_bids.report.summary import summary_table

VIEWER = [
    f"viewer/{name}.js"
    for name in (
        "unpack", "harmonics", "mesh", "places", "shaders", "graphics", "glyphs", "scene", "painter", "controls", "viewer",
    )
]  # fmt: skip
"""Scripts of the view, each after those that it imports."""

VIEW_PIECES = ("fodview", "peaksview", "tracksview")
"""``desc`` labels of what the view shows, by stage."""

MOST_BYTES = 9_500_000
"""Of a page with its pictures and views; mail and browsers take ten million."""

__all__ = ["SECTIONS", "Problem", "RunReport", "Section", "Status", "write_report"]


@dataclass(frozen=True)
class Section:
    """One figure of the report.

    Attributes
    ----------
    desc : str
        Its ``desc`` label in the file name.
    name : str
        Short name for the navigation.
    title, right, wrong : str
        Heading, what a right picture shows, and what a wrong one means.
    optional : bool
        True where not every finished run makes it.
    """

    desc: str
    name: str
    title: str
    right: str
    wrong: str
    optional: bool = False


SECTIONS = (
    Section(
        "gradients",
        "Gradients",
        "Gradient directions",
        "each shell covers the half sphere evenly, and the table as given has the highest fibre coherence.",
        "clusters or gaps mean lost volumes; another bar on top means that the directions are flipped or permuted.",
    ),
    Section(
        "mask",
        "Mask",
        "Brain mask",
        "the outline follows the edge of the brain in every slice, and the letters fit the anatomy.",
        "missing cortex is lost to all that follows; skull or eyes inside the outline disturb the responses.",
    ),
    Section(
        "response",
        "Responses",
        "Response functions",
        "white matter is flat across the fibre (wide to the sides) and more so at high b, CSF falls fastest with b; "
        "the voxels lie in the corpus callosum and deep tracts, in cortex, and in the ventricles.",
        "a round white matter response or voxels in the wrong tissue mean a bad mask, low quality or wrong gradients.",
    ),
    Section(
        "fodf",
        "fODF",
        "Fibre orientation distributions",
        "the corpus callosum is red and crosses the midline, the corticospinal tract is blue and runs up and down, "
        "the cingulum is green; lobes of neighbours point into each other.",
        "other colours there, or lobes that do not join up, mean wrong gradient directions.",
    ),
    Section(
        "training",
        "Training",
        "Fit of the network",
        "training and held-out loss fall together and level off.",
        "a held-out loss that rises again means overfitting; one that still falls at the end asks for more steps.",
        optional=True,
    ),
    Section(
        "tissue",
        "Tissues",
        "Tissue fractions",
        "deep white matter is blue, cortex green (where grey matter was fitted), ventricles and sulci red.",
        "white matter that turns green or red means responses taken from the wrong voxels.",
    ),
    Section(
        "residual",
        "Residual",
        "Fit to the signal",
        "R² is high and even in white matter, and the residual looks like noise without anatomy.",
        "bright slices or edges point to motion or distortion; look at a volume that stands out, or leave it out.",
    ),
    Section(
        "peaks",
        "Peaks",
        "Fibre peaks",
        "sticks of neighbours line up along the tracts and cross where tracts cross.",
        "sticks at random in white matter mean noise or too low a threshold; many in the ventricles mean the same.",
    ),
    Section(
        "tractogram",
        "Streamlines",
        "Streamlines",
        "the large bundles can be recognised and stay within the outline of the brain.",
        "short, broken or mirrored bundles mean wrong directions or too high a stopping threshold.",
    ),
    Section(
        "tdi",
        "Density",
        "Streamline density",
        "the deep tracts are brightest and white matter is filled.",
        "empty white matter or a bright rim means that seeds or stopping rules do not suit the data.",
    ),
    Section(
        "connectome",
        "Connectome",
        "Connections between regions",
        "neighbours and mirrored regions of the two halves connect most strongly, most regions connect to several others; "
        "fibre bundle capacity in mm², or numbers where streamlines have no weights.",
        "empty rows mean regions that no streamline reaches: the labels lie elsewhere, or tracking ends before them.",
        optional=True,
    ),
)


@dataclass(frozen=True)
class Status:
    """How the execution ended, for the whole page.

    Attributes
    ----------
    state : str
        ``ok``, ``failed`` or ``interrupted``.
    message : str
        What happened and what to do, where it concerns no single run.
    is_sloppy : bool
        Made with the settings of a quick test.
    command : str
        As typed.
    started : str
        ISO 8601.
    versions : mapping
        Software and version.
    """

    state: str
    message: str = ""
    is_sloppy: bool = False
    command: str = ""
    started: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)


def write_report(
    output_dir: Path, subject: str, session: str | None, runs: Sequence[RunReport], status: Status
) -> Path:
    """Write ``sub-<label>[_ses-<label>].html`` from the figures and facts that are there.

    Parameters
    ----------
    output_dir : Path
        Root of the derivative data set; figures are looked for in ``sub-<label>/figures``.
    subject : str
        Label without ``sub-``.
    session : str, optional
        Label without ``ses-``; one page for all sessions when not given.
    runs : sequence of RunReport
        In the order of the page.
    status : Status
        How it ended.

    Returns
    -------
    Path
        The page.
    """
    path = report_path(Path(output_dir), subject, session)
    figures_dir = Path(output_dir) / f"sub-{subject}" / "figures"
    shown = _shown_runs(runs, figures_dir)
    text = render_page(
        "subject.html",
        styles=["page.css", "viewer.css", "rating.css"],
        scripts=["ratings.js", "rate.js", *(VIEWER if any(run.view for run in shown) else ())],
        title=path.stem,
        subtitle=status.started.replace("T", " ")[:16],
        navigation=_navigation(runs, shown),
        banners=_banners(runs, status),
        summary=Markup(summary_table(runs)),
        runs=shown,
        methods=Markup(methods_text(runs)),
        status=status,
        versions={"shd_bids": __version__} | dict(status.versions),
    )
    write_text(path, text)
    return path


def _navigation(runs: Sequence[RunReport], shown: Sequence["ShownRun"]) -> list[tuple[str, str]]:
    """Return (anchor, text) of the links at the top."""
    links = [("summary", "Summary")]
    if len(runs) == 1:
        links += [(f"{run.anchor}_view", "View") for run in shown if run.view]
        links += [(f"{_anchor(runs[0])}_{section.desc}", section.name) for section in SECTIONS if not section.optional]
    else:
        links += [(_anchor(run), run.prefix) for run in runs]
    return [*links, ("methods", "Methods"), ("about", "Execution")]


@dataclass(frozen=True)
class Banner:
    """A notice at the top: ``ok``, ``warning`` or ``failed``, with its heading and text."""

    kind: str
    head: str
    text: str


def _banners(runs: Sequence[RunReport], status: Status) -> list[Banner]:
    """Return how it ended: one banner for the page, one for each failed run, one for warnings."""
    failed = [run for run in runs if run.problem]
    finished = len(runs) - len(failed)
    rest = "What was finished before is shown below." if any(run.facts for run in runs) else ""
    banners = []
    if status.state == "interrupted":
        cut_short = [run for run in failed if not run.problem.stage]  # stopped from outside, nothing wrong with them
        failed = [run for run in failed if run.problem.stage]
        messages = dict.fromkeys([status.message, *(run.problem.message for run in cut_short)])
        banners.append(Banner("failed", "Interrupted before the end", _lines(*messages, rest)))
    elif status.state != "ok" and not failed:
        elsewhere = "Another subject or session of the same call failed; its own page says why." if finished else ""
        kind, head = ("warning", f"{_runs(finished)} finished") if finished else ("failed", "Failed")
        banners.append(Banner(kind, head, _lines(status.message or elsewhere)))
    elif not failed:
        head = f"{_runs(finished)} finished" if runs else "Nothing was processed"
        banners.append(Banner("ok" if runs else "warning", head, status.message))
    elif len(runs) > 1:
        banners.append(Banner("failed", f"{len(failed)} of {_runs(len(runs))} failed", _lines(status.message, rest)))
    for run in failed:
        stage = STAGES.get(run.problem.stage, (run.problem.stage or "before the first stage", ""))[0]
        text = run.problem.message if len(runs) > 1 else _lines(run.problem.message, status.message, rest)
        banners.append(Banner("failed", f"{run.prefix} failed at: {stage}", text))
    if status.is_sloppy:
        banners.append(
            Banner(
                "warning",
                "Quick test (--sloppy)",
                "The settings were lowered for speed. Do not use these results in a study.",
            )
        )
    noted = [(run, warning) for run in runs for warning in _warnings(run)]
    if noted:
        lines = [f"{run.prefix}: {warning}" if len(runs) > 1 else warning for run, warning in noted]
        banners.append(Banner("warning", f"{len(lines)} warning{'s' if len(lines) != 1 else ''}", "\n".join(lines)))
    return banners


def _runs(count: int) -> str:
    return f"{count} run{'' if count == 1 else 's'}"


def _lines(*texts: str) -> str:
    return "\n".join(filter(None, texts))


def _warnings(run: RunReport) -> tuple[str, ...]:
    """Return the warnings and notes of the stages, in order, each once."""
    found = list(run.warnings)
    check = dig(run.facts, "gradients", "orientation_check") or {}
    is_failure = bool(check.get("stop"))  # shown as such
    is_fine = all(check.get(name, True) for name in ("is_given_best", "is_linear", "is_conclusive"))
    if check and not is_failure and not is_fine:
        found.append(str(check.get("message", "the orientation check failed")))
    for facts in run.facts.values():
        found += [str(note) for note in facts.get("notes") or ()]
    return tuple(dict.fromkeys(found))


@dataclass(frozen=True)
class ShownFigure:
    """A figure as the template sees it: its section, the picture, words for it, and where the file lies."""

    section: Section
    picture: Picture
    alt: str
    link: str


@dataclass(frozen=True)
class ShownRun:
    """A run as the template sees it."""

    prefix: str
    anchor: str
    quality: Sequence[Judged]
    figures: Sequence[ShownFigure]
    missing: Sequence[Section]
    missing_names: str
    missing_reason: str
    view: Sequence[Markup]
    view_note: str

    @property
    def n_bytes(self) -> int:
        """Size of its pictures and its view."""
        return sum(len(shown.picture.data) for shown in self.figures) + sum(map(len, self.view))


def _shown_runs(runs: Sequence[RunReport], figures_dir: Path) -> list[ShownRun]:
    """Return what the page shows of each run; views from the first run on, as long as the page stays small enough."""
    plain = [_shown_run(run, figures_dir) for run in runs]
    left = MOST_BYTES - sum(run.n_bytes for run in plain)
    shown = []
    for run, reported in zip(plain, runs, strict=True):
        pieces = _view_pieces(reported, figures_dir)
        size = sum(map(len, pieces))
        if size <= left:
            shown.append(replace(run, view=pieces))
            left -= size
        else:
            note = "The interactive view of this run is left out, for the page would grow too large with it."
            shown.append(replace(run, view_note=note))
    return shown


def _view_pieces(run: RunReport, figures_dir: Path) -> list[Markup]:
    """Return what the stages left for the view, as the content of script elements."""
    paths = [figures_dir / f"{run.prefix}_desc-{desc}_dwi.json" for desc in VIEW_PIECES]
    texts = [path.read_text(encoding="utf-8") for path in paths if path.is_file()]
    return [Markup(text.replace("<", "\\u003c")) for text in texts]


def _shown_run(run: RunReport, figures_dir: Path) -> ShownRun:
    """Return the figures of one run in the order of the stages, and which are missing; no view."""
    found = {section: _figure_file(run, section, figures_dir) for section in SECTIONS}
    missing = [section for section, path in found.items() if path is None and not section.optional]
    return ShownRun(
        prefix=run.prefix,
        anchor=_anchor(run),
        quality=quality_rows(run),
        figures=[_shown_figure(run, section, path) for section, path in found.items() if path is not None],
        missing=missing,
        missing_names=listed([section.title.lower() for section in missing]),
        missing_reason="the run stopped before" if run.problem else "not asked for, or not finished",
        view=(),
        view_note="",
    )


def _figure_file(run: RunReport, section: Section, figures_dir: Path) -> Path | None:
    path = figures_dir / f"{run.prefix}_desc-{section.desc}_dwi.png"
    return path if path.is_file() else None


def _shown_figure(run: RunReport, section: Section, path: Path) -> ShownFigure:
    link = quote("/".join(path.parts[-3:]))
    return ShownFigure(section, embed(path), alternative(section.desc, section.title, run), link)


def _anchor(run: RunReport) -> str:
    return f"run-{run.prefix}"
