"""One diffusion series as the report sees it: the facts of its stages, and the words for them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

STAGES = {
    "gradients": ("Gradients and mask", "#74859a"),
    "response": ("Responses", "#2f9e44"),
    "fod": ("fODF", "#2563a8"),
    "peaks": ("Peaks", "#9c36b5"),
    "tractography": ("Tractography", "#e8590c"),
    "weights": ("Weights", "#f59f00"),
    "conversion": ("Formats of the tractogram", "#868e96"),
    "connectome": ("Connectomes", "#0c8599"),
}
"""Stages with facts, in order: heading and colour of the time bar."""

TISSUE_NAMES = {"wm": "white matter", "gm": "grey matter", "csf": "CSF"}


@dataclass(frozen=True)
class Problem:
    """What stopped a run.

    Attributes
    ----------
    stage : str
        Where: the name of the stage, or empty.
    message : str
        What was found and expected and what to do.
    """

    stage: str
    message: str


@dataclass(frozen=True)
class RunReport:
    """One DWI run of the page.

    Attributes
    ----------
    prefix : str
        Source entities as in the file names, ``sub-01_ses-1_acq-x``.
    facts : mapping stage -> mapping
        What each finished stage wrote into its facts file; stages that were not reached are absent.
    settings : mapping
        Options of the execution, by name.
    problem : Problem, optional
        Present when the run failed.
    warnings : sequence of str
        Shown besides those found in the facts.
    """

    prefix: str
    facts: Mapping[str, Mapping[str, Any]]
    settings: Mapping[str, Any] = field(default_factory=dict)
    problem: Problem | None = None
    warnings: Sequence[str] = ()


def dig(content: Any, *path: str) -> Any:
    """Return the value below keys of nested mappings; ``None`` where one is absent, as after a failure."""
    for key in path:
        if not isinstance(content, Mapping):
            return None
        content = content.get(key)
    return content


def html_value(value: Any) -> str:
    """Return a value as HTML text; a dash where there is none."""
    if value is None or value == "":
        return "–"
    return escape(
        f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
    )


def listed(items: Sequence[str]) -> str:
    """Return words joined with commas and a last "and"."""
    return " and ".join(filter(None, [", ".join(items[:-1]), *items[-1:]]))


def connectome_texts(run: RunReport) -> list[str]:
    """Return the main numbers of each connectome as text."""
    found = dig(run.facts, "connectome", "sidecar", "connectomes") or {}
    return [_connectome_text(label, about) for label, about in found.items()]


def _connectome_text(label: str, about: Mapping[str, Any]) -> str:
    assigned, n = about["StreamlinesAssigned"], max(about["Streamlines"], 1)
    return (
        f"{label}, {about['Regions']} regions, {about['RegionsConnected']} of them connected, {about['ConnectedPairs']:,} pairs "
        f"({about['ConnectedPairsShare']:.0%} of all) by {assigned:,} streamlines ({assigned / n:.0%})"
    )


def shells(gradients: Mapping[str, Any] | None) -> str:
    """Return the number of volumes of each shell as text."""
    found = dig(gradients, "shells")
    if not found:
        return html_value(None)
    total = sum(shell["n_volumes"] for shell in found)
    by_shell = listed([f"{shell['n_volumes']} at b = {shell['bvalue']:.0f}" for shell in found])
    return f"{total} volumes: {escape(by_shell)} s/mm²"


def voxel_size(gradients: Mapping[str, Any] | None) -> str:
    """Return the size along the three image axes as text."""
    sizes = [dig(gradients, "qc", f"voxel_size_{axis}", "value") for axis in "xyz"]
    return html_value(None) if None in sizes else escape(" × ".join(f"{size:.3g}" for size in sizes)) + " mm"


def fit_mode(run: RunReport) -> Any:
    """Return the mode that the fit recorded, else that of the options."""
    return dig(run.facts, "fod", "info", "fit") or run.settings.get("fit")
