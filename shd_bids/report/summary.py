"""The table at the top of a report: the main facts of each run."""

from collections.abc import Callable, Mapping, Sequence
from html import escape

from shd_bids.report.expected import measured_number
from shd_bids.report.facts import (
    STAGES,
    RunReport,
    connectome_texts,
    dig,
    fit_mode,
    html_value,
    listed,
    shells,
    voxel_size,
)


def summary_table(runs: Sequence[RunReport]) -> str:
    """Return the main facts as a table in HTML, one column per run; a row that no run has is left out."""
    if not runs:
        return '<section class="card"><p>No diffusion run was found for this subject.</p></section>'
    head = ""
    if len(runs) > 1:
        head = (
            "<thead><tr><td></td>"
            + "".join(f'<th scope="col">{escape(run.prefix)}</th>' for run in runs)
            + "</tr></thead>"
        )
    body = ""
    for title, cell in ROWS.items():
        cells = [cell(run) for run in runs]
        if any(text != html_value(None) for text in cells):
            body += f'<tr><th scope="row">{title}</th>' + "".join(f"<td>{text}</td>" for text in cells) + "</tr>"
    empty = "<p>The run stopped before anything could be measured.</p>"
    table = f"<table>{head}<tbody>{body}</tbody></table>" if body else empty
    return f'<section class="card wide" tabindex="0" aria-label="Main facts">{table}</section>'


def _mask(run: RunReport) -> str:
    volume, origin = measured_number(run, "mask_volume_ml"), dig(run.facts, "gradients", "sidecar", "mask_origin")
    if volume is None:
        return html_value(None)
    origins = {"given": "given", "derivative": "from the derivatives", "estimated": "estimated here, look at it"}
    return f"{volume:,.0f} ml" + (f", {escape(origins.get(origin, str(origin)))}" if origin else "")


def _tissues(run: RunReport) -> str:
    return html_value(listed([tissue.upper() for tissue in dig(run.facts, "response", "fitted_tissues") or ()]) or None)


def _orientation(run: RunReport) -> str:
    check = dig(run.facts, "gradients", "orientation_check")
    return html_value(check.get("message")) if check else html_value(None)


def _fit(run: RunReport) -> str:
    """Return the mode, the device with the arithmetic, and the weights."""
    info = dig(run.facts, "fod", "info")
    if info is None:
        return html_value(None)
    used, asked = fit_mode(run), run.settings.get("fit")
    kept = f" (kept: --fit {asked} was not better)" if asked and asked != used else ""
    arithmetic = "float32 and bf16" if info.get("precision") == "mixed" else info.get("precision")
    where = " in ".join(filter(None, (info.get("device"), arithmetic)))
    parts = [f"{used or 'fitted'}{kept}", f"on {where}" if where else ""]
    text = escape(", ".join(filter(None, parts)))
    if not (sha256 := info.get("weights_sha256")):
        return text
    name = f"{info['weights']} " if info.get("weights") else ""
    return f'{text}, weights {escape(name)}<code title="SHA-256 {escape(sha256)}">{escape(sha256[:12])}</code>'


def _normalisation(run: RunReport) -> str:
    """Return what the amplitudes were divided by."""
    found = dig(run.facts, "fod", "info", "normalisation")
    if not found:
        return html_value(None)
    low, high = found["FieldRange"]
    field = f", bias field {low:.2f} to {high:.2f} times that" if found["Mode"] == "bias" else ""
    return escape(f"{found['Mode']}: amplitudes divided by {found['Factor']:.3f}{field}")


def _quality(run: RunReport, column: str, form: str) -> str:
    value = measured_number(run, column)
    return escape(form.format(value)) if isinstance(value, int | float) else html_value(None)


def _streamlines(run: RunReport) -> str:
    count, length = measured_number(run, "n_streamlines"), measured_number(run, "streamline_length_median")
    if count is None:
        return html_value(None)
    return html_value(count) + (f", median length {length:.0f} mm" if isinstance(length, int | float) else "")


def _connectomes(run: RunReport) -> str:
    return "<br>".join(map(escape, connectome_texts(run))) or html_value(None)


def _time(run: RunReport) -> str:
    """Return the share of each stage as a bar with its duration."""
    seconds = {stage: dig(run.facts, stage, "seconds") for stage in STAGES}
    seconds = {stage: float(value) for stage, value in seconds.items() if isinstance(value, int | float)}
    if not seconds:
        return html_value(None)
    total = max(sum(seconds.values()), 1e-9)
    legend = "".join(
        f"<span>{_swatch(STAGES[stage][1])}{STAGES[stage][0]} {_duration(value)}</span>"
        for stage, value in seconds.items()
    )
    return f'{_duration(total)}{_bar(seconds, total)}<div class="legend">{legend}</div>'


def _bar(seconds: Mapping[str, float], total: float) -> str:
    """Return the shares of the stages as a bar; the legend holds the numbers."""
    parts, left = "", 0.0
    for stage, value in seconds.items():
        width = 100 * value / total
        parts += f'<rect x="{left:.2f}" width="{width:.2f}" height="12" fill="{STAGES[stage][1]}"></rect>'
        left += width
    return f'<svg class="time" viewBox="0 0 100 12" preserveAspectRatio="none" aria-hidden="true">{parts}</svg>'


def _swatch(colour: str) -> str:
    return f'<svg viewBox="0 0 1 1" aria-hidden="true"><rect width="1" height="1" fill="{colour}"></rect></svg>'


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if seconds < 3600 else f"{minutes // 60} h {minutes % 60:02d} min"


def _memory(run: RunReport) -> str:
    peaks = [dig(facts, "peak_memory_mb") for facts in run.facts.values()]
    peaks = [value for value in peaks if isinstance(value, int | float)]
    if not peaks:
        return html_value(None)
    gpu = dig(run.facts, "fod", "info", "peak_gpu_mb")
    return f"{max(peaks) / 1000:.1f} GB" + (
        f", {gpu / 1000:.1f} GB on the GPU" if isinstance(gpu, int | float) and gpu else ""
    )


ROWS: dict[str, Callable[[RunReport], str]] = {
    "Shells": lambda run: shells(run.facts.get("gradients")),
    "Voxel size": lambda run: voxel_size(run.facts.get("gradients")),
    "Mask": _mask,
    "Orientation check": _orientation,
    "Tissues fitted": _tissues,
    "Fit": _fit,
    "Signal-to-noise": lambda run: _quality(run, "snr", "{:.0f} in white matter at b = 0"),
    "Signal explained": lambda run: _quality(run, "fit_r2_median", "median R² {:.3f}"),
    "Normalisation": _normalisation,
    "Fibres per voxel": lambda run: _quality(run, "nufo_mean", "{:.2f} on average in white matter"),
    "Streamlines": _streamlines,
    "Connectomes": _connectomes,
    "Time": _time,
    "Peak memory": _memory,
}
"""Heading and content of each row."""
