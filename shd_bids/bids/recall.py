"""What an earlier call found in the files of a series, so that files that did not change are not read again."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from shd_bids.bids.records import last_finished, signature
from shd_bids.bids.run import DWIRun
from shd_bids.settings import Settings

__all__ = ["recalled", "remembered"]

FOUND = (
    "shape", "voxel_size", "shells", "mask", "mask_origin", "mask_uri", "anatomy", "anatomy_uris", "links", "n_mask", "notes",
)  # fmt: skip
"""Fields of a series that are known only after its files were read."""

READ_BY = ("b0_threshold", "shell_tolerance", "input_type", "level", "act")
"""Settings on which they depend."""


def remembered(run: DWIRun, settings: Settings, hashes: Mapping[Path, str]) -> dict[str, Any]:
    """Return what `recalled` needs, as JSON holds it; ``hashes`` are the SHA-256 of the files of the series."""
    seen = _look(run, settings)
    return seen | {"sha256": {str(path): digest for path, digest in hashes.items() if str(path) in seen["files"]}}


def _look(run: DWIRun, settings: Settings) -> dict[str, Any]:
    """Return what decides whether files have to be read again, and what was found in them."""
    content = run.to_dict()
    files = [path for path in (run.dwi, run.bval, run.bvec, run.grad_b, run.mask) if path is not None]
    return {
        "files": signature((*files, *run.masks)),
        "settings": {name: getattr(settings, name) for name in READ_BY},
        "found": {name: content[name] for name in FOUND},
    }


def recalled(run: DWIRun, settings: Settings, masks: Sequence[Path]) -> "DWIRun | None":
    """Return a series as an earlier call that finished it found it; ``None`` where files or settings are others.

    Parameters
    ----------
    run : DWIRun
        With its image and tables, which are not read.
    settings : Settings
    masks : sequence of Path
        All masks among which one would be chosen.
    """
    if settings.parcellation:  # what is found by name may change while these files do not
        return None
    last = last_finished(settings.output_dir, run.subject, run.key)
    try:
        seen = dict(last["seen"])
        hashes = seen.pop("sha256")
        known = type(run).from_dict(run.to_dict() | {name: seen["found"][name] for name in FOUND})
        known = replace(known, masks=tuple(masks), hashes=hashes)
        return known if _look(known, settings) == seen else None
    except (KeyError, TypeError, ValueError, AttributeError, OSError):  # no record, or one of another form
        return None
