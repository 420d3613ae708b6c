"""What quality numbers are expected to be, and what one outside of it means."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from shd_bids.report.facts import RunReport, dig


@dataclass(frozen=True)
class Expected:
    """Range of a column of the quality table in usable scans of a living human brain.

    Attributes
    ----------
    name : str
        Words for readers.
    low, high : float, optional
        Ends of the range; open where not given.
    unit : str
        Of all three; empty for plain numbers.
    form : str
        Format of a number.
    advice : str
        What a number outside of the range means and what to look at.
    """

    name: str
    low: float | None
    high: float | None
    unit: str
    form: str
    advice: str

    def holds(self, value: float) -> bool:
        """Whether a value lies in the range, ends included."""
        return (self.low is None or value >= self.low) and (self.high is None or value <= self.high)

    def words(self, value: float) -> str:
        """Return a value with its unit."""
        return f"{value:{self.form}}{self.unit and ' ' + self.unit}"

    @property
    def range(self) -> str:
        """Return the range as text."""
        if self.low is None or self.high is None:
            return f"at most {self.words(self.high)}" if self.low is None else f"at least {self.words(self.low)}"
        return f"{self.low:{self.form}} to {self.words(self.high)}"


EXPECTED = {
    "mask_volume_ml": Expected(
        "Volume of the mask",
        800,
        1900,
        "ml",
        ".0f",
        "Look at the outline: brain is missing, or other tissue is inside.",
    ),
    "nan_fraction": Expected(
        "Values that are not finite", None, 0, "", ".2%", "The image is damaged; look at its conversion."
    ),
    "mask_zero_signal_fraction": Expected(
        "Mask without b = 0 signal", None, 0.02, "", ".1%", "The mask reaches out of the field of view."
    ),
    "snr": Expected(
        "Signal-to-noise ratio, white matter, b = 0",
        12,
        None,
        "",
        ".0f",
        "Noisy: weak crossings are missed; denoise first.",
    ),
    "fit_r2_median": Expected(
        "Signal explained, median R²",
        0.6,
        None,
        "",
        ".3f",
        "Much noise, motion, or a wrong mask: look at the residual.",
    ),
    "fit_misfit_share": Expected(
        "Voxels with an unexplained residual", None, 0.05, "", ".1%", "Look at the misfit map for drop-out or motion."
    ),
    "nufo_mean": Expected(
        "Fibres per voxel of white matter", 1.0, 2.2, "", ".2f", "Too many mean noise, too few a high threshold."
    ),
    "n_voxels_response_wm": Expected(
        "Voxels of the white matter response",
        30,
        None,
        "",
        ",.0f",
        "The response rests on few voxels; look where they lie.",
    ),
    "streamlines_refused": Expected(
        "Streamlines refused for their ends",
        None,
        0.7,
        "",
        ".0%",
        "Streamlines end in fluid: look at the tissue fractions.",
    ),
    "streamline_length_median": Expected(
        "Median length of streamlines", 25, 120, "mm", ".0f", "Short ones mean noise or wrong directions."
    ),
    "mask_coverage": Expected(
        "Mask visited by streamlines", 0.4, None, "", ".0%", "Empty white matter: look at the density."
    ),
}
"""By column: limits outside of which a person should look; judgement, not statistics."""


@dataclass(frozen=True)
class Judged:
    """One line of the quality table of a report: what was measured, what is expected, and the judgement in words."""

    name: str
    value: str
    expected: str
    flag: str
    verdict: str
    advice: str


def judge(column: str, value: float) -> Judged:
    """Return the line of a column that has a range."""
    expected = EXPECTED[column]
    is_fine = expected.holds(value)
    return Judged(
        name=expected.name,
        value=expected.words(value),
        expected=expected.range,
        flag="fine" if is_fine else "doubt",
        verdict="as expected" if is_fine else "look at this",
        advice="" if is_fine else expected.advice,
    )


def quality_rows(run: RunReport) -> Sequence[Judged]:
    """Return the judged numbers of a run, in the order of `EXPECTED`."""
    measured = {column: measured_number(run, column) for column in EXPECTED}
    return [judge(column, float(value)) for column, value in measured.items() if isinstance(value, int | float)]


def measured_number(run: RunReport, column: str) -> Any:
    """Return a number of the quality table of any stage, ``None`` where there is none."""
    for facts in run.facts.values():
        value = dig(facts, "qc", column, "value")
        if value is not None:
            return value
    return None
