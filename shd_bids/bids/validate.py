"""The official validator's opinion of the input, which never stops a run."""

import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from shd_bids.processes import die_with_parent

logger = logging.getLogger(__name__)

PROGRAM = "bids-validator-deno"
TIME_LIMIT = 600  # seconds; large data sets on slow disks take minutes, none is worth more


def validate_dataset(root: Path, subjects: Sequence[str]) -> tuple[str, ...]:
    """Validate a data set, restricted to some subjects, and return one line per kind of error.

    The validator knows no subjects and follows links for ever, so it is shown folders of links that hold the top-level
    files and only the subjects asked for, without what leads back to a folder above.

    Parameters
    ----------
    root : Path
        BIDS data set.
    subjects : sequence of str
        Labels without ``sub-``.

    Returns
    -------
    tuple of str
        Empty when there are no errors (warnings of the validator are left out) or when it is not installed.
    """
    program = shutil.which(PROGRAM) or shutil.which(PROGRAM, path=str(Path(sys.executable).parent))
    if program is None:
        logger.info("%s is not installed; the input is not validated", PROGRAM)
        return ()
    with tempfile.TemporaryDirectory(prefix="shd_bids_validate_") as folder:
        _link_subset(root, Path(folder), subjects)
        try:
            done = subprocess.run(
                [program, "--format", "json", "--ignoreWarnings", "--ignoreNiftiHeaders", folder],
                capture_output=True,
                text=True,
                timeout=TIME_LIMIT,
                check=False,
                preexec_fn=die_with_parent,
            )
            issues = json.loads(done.stdout)["issues"]["issues"]
        except (OSError, subprocess.SubprocessError, ValueError, KeyError) as error:
            logger.warning("the BIDS validator did not answer (%s); the input is not validated", type(error).__name__)
            return ()
    return tuple(_summary(issues))


def _link_subset(root: Path, folder: Path, subjects: Sequence[str]) -> None:
    wanted = {f"sub-{label}" for label in subjects}
    for path in root.iterdir():
        is_other = path.name in ("derivatives", "participants.tsv") or path.name.startswith((".", "sub-"))
        if path.name in wanted or path.name == ".bidsignore" or not is_other:
            _link(path, folder / path.name, above=(root.resolve(),))


def _link(source: Path, target: Path, *, above: tuple[Path, ...]) -> None:
    """Link a file, or make a folder of links to what a folder holds, unless it holds one of those above it."""
    real = Path(os.path.realpath(source))  # never an error, as resolve() has for a link to itself
    if not source.is_dir():
        target.symlink_to(source.absolute())
    elif not any(folder.is_relative_to(real) for folder in above):
        target.mkdir()
        for path in source.iterdir():
            _link(path, target / path.name, above=(*above, real))


def _summary(issues: Sequence[dict]) -> list[str]:
    errors = [issue for issue in issues if issue.get("severity") == "error"]
    counts = Counter((issue["code"], issue.get("subCode")) for issue in errors)
    lines = []
    for (code, detail), count in sorted(counts.items(), key=lambda item: -item[1]):
        places = [i.get("location", "") for i in errors if (i["code"], i.get("subCode")) == (code, detail)]
        more = f" and {count - 1} more" if count > 1 else ""
        lines.append(f"{code}{f' {detail}' if detail else ''}: {places[0].lstrip('/')}{more}")
    return lines
