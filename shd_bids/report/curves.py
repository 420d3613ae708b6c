"""Plots without anatomy: gradient directions, orientation check, responses, losses, residuals."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.patches import Circle
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import ArrayLike

from shd_bids.report.facts import TISSUE_NAMES
from shd_bids.report.view import FAINT, INK, frame_panel, note_empty
from shd_bids.response.response import zonal_basis

TISSUE_COLOURS = {"wm": "#0072b2", "gm": "#cc6600", "csf": "#9900ff"}
GREY = np.array([0.55, 0.6, 0.65, 1.0])
GOOD, BAD = "#0072b2", "#d55e00"


def tidy_plot(ax: Axes, *, x: str = "", y: str = "", is_counted: bool = False) -> None:
    """Style a curve plot with light spines, a faint grid and axis labels; whole numbers along x where it counts."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color("#cbd2d9")
    ax.tick_params(colors=INK, labelsize=9.5, length=3)
    ax.grid(color="#e4e7eb", linewidth=0.7)
    ax.set_axisbelow(True)
    ax.set_xlabel(x, color=INK)
    ax.set_ylabel(y, color=INK)
    if is_counted:
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))


def scale_log(ax: Axes) -> None:
    """Make the vertical axis logarithmic with plain numbers at 1, 2 and 5."""
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=8))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())


def shell_colours(n: int) -> np.ndarray:
    """Return one colour per shell, shape (n, 4): grey for b = 0, then dark to light."""
    return np.vstack([GREY, colormaps["viridis"](np.linspace(0.15, 0.85, max(n - 1, 1)))])[:n]


def draw_sphere(ax: Axes, directions: np.ndarray) -> None:
    """Draw directions in an equal-area projection of the half sphere seen from above; those below are open circles.

    Lambert's azimuthal projection, rho = sqrt(2) sin(polar angle / 2), keeps density: an even scheme looks even.

    Parameters
    ----------
    directions : array, shape (n, 3)
        Unit, world axes.
    """
    frame_panel(ax)
    for angle in (30, 60, 90):
        radius = float(np.sqrt(2) * np.sin(np.radians(angle) / 2))
        ax.add_patch(Circle((0, 0), radius, fill=angle == 90, fc="#f5f7fa", ec="#cbd2d9", lw=0.8, zorder=angle / -90))
    ax.plot([-1, 1, np.nan, 0, 0], [0, 0, np.nan, -1, 1], color="#cbd2d9", lw=0.8, zorder=1)
    below = directions[:, 2] < 0
    upper = np.where(below[:, None], -directions, directions)
    radii = np.sqrt(2) * np.sin(np.arccos(np.clip(upper[:, 2], 0, 1)) / 2)
    flat = np.hypot(upper[:, 0], upper[:, 1])
    place = upper[:, :2] * (radii / np.where(flat > 0, flat, 1))[:, None]
    colours = np.clip(np.abs(directions), 0, 1)
    size = float(np.clip(2600 / max(len(directions), 1), 16, 70))
    ax.scatter(*place[~below].T, s=size, c=colours[~below], edgecolors=INK, linewidths=0.4, zorder=3)
    ax.scatter(*place[below].T, s=size, facecolors="white", edgecolors=colours[below], linewidths=1.6, zorder=3)
    for letter, x, y in (("L", -1.12, 0), ("R", 1.12, 0), ("P", 0, -1.12), ("A", 0, 1.12)):
        ax.text(x, y, letter, ha="center", va="center", color=INK, fontweight="bold", fontsize=10)
    ax.set(xlim=(-1.22, 1.22), ylim=(-1.22, 1.22), aspect="equal")


def draw_scheme(ax: Axes, bvals: np.ndarray, shell_index: np.ndarray) -> None:
    """Draw the b-value of each volume, coloured by shell."""
    shells = np.unique(shell_index)
    volumes = np.arange(len(bvals))
    tidy_plot(ax, x="volume", y="b-value (s/mm²)", is_counted=True)
    for shell, colour in zip(shells, shell_colours(len(shells)), strict=True):
        chosen = shell_index == shell
        count = int(np.count_nonzero(chosen))
        label = f"b = {bvals[chosen].mean():.0f}: {count} volume{'' if count == 1 else 's'}"
        ax.vlines(volumes[chosen], 0, bvals[chosen], colors=colour[None], linewidth=0.8, alpha=0.5)
        ax.plot(volumes[chosen], bvals[chosen], "o", ms=4.5, color=colour, label=label, clip_on=False)
    ax.set(xlim=(-1, max(len(bvals), 2)), ylim=(0, 1.12 * max(float(np.max(bvals, initial=0)), 1.0)))
    if len(shells):
        legend_above(ax, ncols=min(len(shells), 4))


def draw_scores(ax: Axes, scores: Sequence[tuple[str, np.ndarray, float]]) -> None:
    """Draw the candidates of the orientation check by score; the table as given is the identity and is marked.

    Parameters
    ----------
    scores : sequence of (label, matrix (3, 3), score)
    """
    ranked = sorted(scores, key=lambda entry: -entry[2])
    values = [float(score) for _, _, score in ranked]
    given = [bool(np.isclose(abs(np.trace(matrix)), 3)) for _, matrix, _ in ranked]  # x and -x are one direction
    is_best = given[0]
    colours = ["#cbd2d9" if not is_identity else GOOD if is_best else BAD for is_identity in given]
    ax.bar(np.arange(len(ranked)), values, color=colours, width=0.75)
    labels = [label for label, _, _ in ranked]
    ax.set_xticks(np.arange(len(ranked)), labels, rotation=60, ha="right", rotation_mode="anchor")
    tidy_plot(ax, y="fibre coherence")
    ax.grid(axis="x", visible=False)
    low, high = min(0.0, *values), max(0.0, *values)
    margin = 0.15 * ((high - low) or 1.0)
    ax.set(xlim=(-0.6, max(len(ranked), 12) - 0.4), ylim=(low and low - 0.3 * margin, high + margin))
    if not any(given):
        return
    rank = given.index(True)
    label = "as given: the best" if is_best else f"as given: place {rank + 1} of {len(ranked)}"
    colour = GOOD if is_best else BAD
    ax.get_xticklabels()[rank].set(color=colour, fontweight="bold")
    side = {"ha": "left" if rank <= max(len(ranked), 12) - 6 else "right"}  # to the right the bars are lower
    place = (rank - 0.4 if side["ha"] == "left" else rank + 0.4, max(values[rank], 0.0))
    ax.annotate(label, place, (0, 4), textcoords="offset points", color=colour, fontweight="bold", **side)


def draw_response(ax: Axes, coefficients: np.ndarray) -> None:
    r"""Draw a zonal response by the angle to the fibre, which stands upright, one curve per shell.

    .. math:: S_b(\theta) = \sum_l r_{bl} \sqrt{(2l+1)/4\pi} \, P_l(\cos\theta)

    Parameters
    ----------
    coefficients : array, shape (S, L)
        Degrees 0, 2, 4, ... in MRtrix normalisation, shells in ascending order.
    """
    angle = np.linspace(0, 2 * np.pi, 361)
    signal = coefficients @ zonal_basis(np.cos(angle), 2 * (coefficients.shape[1] - 1)).T  # (S, angle)
    limit = max(float(np.max(np.abs(np.nan_to_num(signal)))), np.finfo(np.float64).tiny)
    frame_panel(ax)
    for fraction in (0.25, 0.5, 0.75, 1.0):
        ax.add_patch(Circle((0, 0), fraction * limit, fill=False, ec="#e4e7eb", lw=0.8))
    for row, colour in zip(signal, shell_colours(len(signal)), strict=True):
        ax.plot(row * np.sin(angle), row * np.cos(angle), color=colour, lw=2)
    for fraction in (0.5, 1.0):
        place = fraction * limit / np.sqrt(2)
        text = ax.text(place, place, _short(fraction * limit), fontsize=8.5, color=FAINT, ha="center", va="center")
        text.set_bbox({"fc": "white", "ec": "none", "pad": 0.8})
    ax.set(xlim=(-1.08 * limit, 1.08 * limit), ylim=(-1.08 * limit, 1.08 * limit), aspect="equal")


def draw_decay(ax: Axes, responses: Mapping[str, tuple[ArrayLike, ArrayLike]]) -> None:
    """Draw the mean signal of each tissue by b-value on a logarithmic scale, white matter at b = 0 being 1.

    Parameters
    ----------
    responses : mapping tissue -> (bvalues (S,), coefficients (S, L))
    """
    tidy_plot(ax, x="b-value (s/mm²)", y="mean signal")
    if not responses:
        note_empty(ax, "no response functions", on_black=False)
        return
    first = responses.get("wm") or next(iter(responses.values()))
    reference = float(np.atleast_2d(first[1])[0, 0]) or 1.0
    drawn = 0
    for tissue, colour in TISSUE_COLOURS.items():
        if tissue in responses:
            bvalues, coefficients = responses[tissue]
            mean = np.atleast_2d(np.asarray(coefficients, float))[:, 0] / reference
            ax.plot(
                np.asarray(bvalues),
                np.where(mean > 0, mean, np.nan),
                "o-",
                color=colour,
                lw=2,
                label=TISSUE_NAMES[tissue],
            )
            drawn += int((mean > 0).sum())
    if drawn:
        scale_log(ax)
    legend_above(ax, ncols=3)


def draw_courses(ax: Axes, courses: Mapping[str, tuple[np.ndarray, np.ndarray, str]]) -> None:
    """Draw the course of one loss term.

    Parameters
    ----------
    courses : mapping label -> (steps (n,), values (n,), colour)
    """
    tidy_plot(ax, x="step", is_counted=True)
    for label, (steps, values, colour) in courses.items():
        marker = "o" if len(values) < 30 else ""
        ax.plot(steps, values, color=colour, label=label, lw=1.6, marker=marker, ms=3.5)
    drawn = np.concatenate([np.empty(0), *(values for _, values, _ in courses.values())])
    drawn = drawn[np.isfinite(drawn)]
    if not drawn.size:
        note_empty(ax, "no training was done", on_black=False)
        return
    if drawn.min() > 0 and drawn.max() > 5 * drawn.min():
        scale_log(ax)
    ax.legend(frameon=False, fontsize=9.5, labelcolor=INK)


def draw_shell_residuals(ax: Axes, residuals: Mapping[str, ArrayLike]) -> None:
    """Draw the residual of each shell: voxel values as histograms, single numbers as bars."""
    values = {str(label): np.asarray(entry, float).ravel() for label, entry in residuals.items()}
    values = {label: entry[np.isfinite(entry)] for label, entry in values.items()}
    values = {label: entry for label, entry in values.items() if entry.size}
    if not values:
        note_empty(ax, "no residuals", on_black=False)
        return
    colours = shell_colours(len(values))
    if all(entry.size == 1 for entry in values.values()):
        tidy_plot(ax, y="residual")
        ax.grid(axis="x", visible=False)
        ax.bar(list(values), [entry[0] for entry in values.values()], color=list(colours), width=0.5)
        ax.set_xlim(-0.75, len(values) - 0.25)
        return
    tidy_plot(ax, x="residual", y="density of voxels")
    top = max(float(np.percentile(entry, 99)) for entry in values.values()) or 1.0
    for (label, entry), colour in zip(values.items(), colours, strict=True):
        ax.hist(entry, bins=np.linspace(0, top, 60), histtype="step", color=colour, lw=1.8, density=True, label=label)
    ax.set_xlim(0, top)
    ax.legend(frameon=False, fontsize=9.5, labelcolor=INK)


def draw_volume_residuals(ax: Axes, residuals: np.ndarray) -> None:
    """Draw the residual of each volume; up to three that stand out (median + 3 scaled MAD) are numbered."""
    tidy_plot(ax, x="volume", y="residual", is_counted=True)
    finite = residuals[np.isfinite(residuals)]
    if not finite.size:
        note_empty(ax, "no residuals", on_black=False)
        return
    ax.plot(residuals, "o", ms=4, color=GOOD)
    middle = float(np.median(finite))
    limit = middle + 3 * 1.4826 * float(np.median(np.abs(finite - middle)))
    ax.axhline(middle, color=FAINT, lw=1)
    for volume in np.argsort(-np.nan_to_num(residuals))[:3]:
        if residuals[volume] > limit:
            ax.plot(volume, residuals[volume], "o", ms=6, color=BAD)
            place = (int(volume), float(residuals[volume]))
            ax.annotate(str(volume), place, (-6, 0), textcoords="offset points", fontsize=9, color=BAD, ha="right")


def legend_above(ax: Axes, *, ncols: int) -> None:
    """Draw the legend above the plot, where it hides nothing."""
    style = {"frameon": False, "fontsize": 9.5, "labelcolor": INK, "borderaxespad": 0.2, "columnspacing": 1.4}
    ax.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=ncols, **style)


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
