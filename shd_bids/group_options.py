"""Options of the group level."""

from dataclasses import dataclass
from pathlib import Path

from shd_bids.option import Options, option

__all__ = ["GroupOptions"]


@dataclass(frozen=True, kw_only=True)
class GroupOptions(Options):
    """With whom a series is compared, and what readers of the reports thought of it."""

    group_by: tuple[str, ...] = option(
        (),
        "columns of participants.tsv (site, scanner, sex, ...): series are compared within their protocol and these",
        flags=("--group_by",),
        metavar="COLUMN",
    )
    ratings: tuple[Path, ...] = option(
        (),
        "ratings saved from reports or the group page, besides OUTPUT_DIR/*_ratings.tsv",
        metavar="TSV",
        is_file=True,
    )
