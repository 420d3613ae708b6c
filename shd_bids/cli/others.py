"""Series of a session that a call does not ask for: they share its page, as calls before finished them."""

import contextlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shd_bids import __version__
from shd_bids.bids.records import FINISHED, records
from shd_bids.bids.sessions import all_entities
from shd_bids.errors import ShdError
from shd_bids.files import read_text
from shd_bids.settings import values_from_toml

if TYPE_CHECKING:
    from shd_bids.report.facts import RunReport

__all__ = ["reports_of_others"]


def reports_of_others(
    output_dir: Path, subject: str, session: str | None, *, but: Collection[str]
) -> list["RunReport"]:
    """Return what the newest records of finished series of a session tell, but for some names; this version's records alone."""
    from shd_bids.report.facts import RunReport

    found: dict[str, RunReport] = {}
    for path, record in records(output_dir, subject):
        with contextlib.suppress(KeyError, TypeError, AttributeError):
            for item in record["series"].values() if record["version"] == __version__ else ():
                name = item["series"]
                if (
                    item["status"] == FINISHED
                    and all_entities(Path(f"{name}_dwi")).get("ses") == session
                    and name not in {*but, *found}
                ):
                    notes = item["seen"]["found"]["notes"]
                    found[name] = RunReport(name, item["stages"], _settings(path.parent), warnings=notes)
    return [found[name] for name in sorted(found)]


def _settings(folder: Path) -> Mapping[str, Any]:
    """Return the settings of a call, nothing where they are of another version."""
    with contextlib.suppress(ShdError, ValueError):
        return values_from_toml(read_text(folder / "shd_bids.toml"))
    return {}
