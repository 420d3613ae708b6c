"""Small files: read only where they can be what they are said to be, written whole or not at all."""

import errno
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from shd_bids.errors import InputError

MOST_BYTES = 100_000_000
"""Of a file of text; more is another kind of file."""

FEW_BYTES = 10_000_000
"""Free on a disk: what fails there fails for want of space."""

_FULL = (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT))

POINTERS = (b"/annex/objects/", b"version https://git-lfs.github.com/")
MOST_POINTER_BYTES = 2000
MOST_NESTING = 100
"""Objects and lists within one another that a JSON file may have."""


def read_text(path: Path) -> str:
    """Return the text of a regular file in UTF-8, without a byte order mark.

    Raises
    ------
    InputError
        The path is no regular file (pipes and devices may never end), too large, or not UTF-8.
    """
    try:
        if reason := absence(path):
            raise InputError(f"{path}: {reason}")
        if not path.is_file():
            raise InputError(f"{path}: not a regular file; give a file of text")
        if path.stat().st_size > MOST_BYTES:
            raise InputError(f"{path}: {path.stat().st_size} bytes, expected a file of text; correct the file")
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as text ({type(error).__name__}); correct the file") from error


def number_of(word: str) -> float:
    """Return the number that a word of ASCII digits is; Python reads digits of other scripts and underscores too.

    Raises
    ------
    ValueError
        It is none.
    """
    if not word.isascii() or "_" in word:
        raise ValueError(f"{word!r} is no number")
    return float(word)


def read_json_object(path: Path) -> dict[str, Any]:
    """Return a JSON object.

    Raises
    ------
    InputError
        The file cannot be read, is not JSON, is nested too deeply, or holds another value than an object.
    """
    try:
        content = json.loads(read_text(path))
    except RecursionError:
        raise InputError(_too_deep(path)) from None
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error}); correct the file") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: found {json.dumps(content)[:30]}, expected a JSON object {{...}}; correct the file")
    if _is_deeper(content, MOST_NESTING):
        raise InputError(_too_deep(path))
    return content


def _too_deep(path: Path) -> str:
    return f"{path}: JSON nested more than {MOST_NESTING} times; correct the file"


def _is_deeper(content: Any, depth: int) -> bool:
    """Whether objects and lists are nested more than ``depth`` times."""
    level = [content]
    for _ in range(depth):
        parts = [part for part in level if isinstance(part, dict | list)]
        level = [item for part in parts for item in (part.values() if isinstance(part, dict) else part)]
        if not level:
            return False
    return any(isinstance(item, dict | list) for item in level)


def absence(path: Path) -> str:
    """Return why the content of a file is not here, nothing where it is: no file, or a placeholder of git-annex or LFS."""
    if path.is_symlink() and not path.exists():
        return f"a link to {os.readlink(path)[-60:]}, which is not here; fetch it (datalad get, git annex get) or mend the link"
    if not path.exists():
        return "no such file"
    if path.is_file() and path.stat().st_size < MOST_POINTER_BYTES and path.read_bytes().startswith(POINTERS):
        return "a placeholder of git; fetch the content (datalad get, git annex get, git lfs pull)"
    return ""


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path that becomes ``path`` when the block ends without an error.

    The temporary file lies in the folder of ``path`` (a rename is atomic only within one file system) and keeps
    all suffixes, because image writers choose the format by suffix. Folders are created.

    Parameters
    ----------
    path : Path
        Final name.

    Yields
    ------
    Path
        Hidden name to write to; removed when the block raises.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid.uuid4().hex}.{path.name}")  # as `remove_unfinished` knows it
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` in UTF-8, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Write ``content`` as indented JSON, whole or not at all; NaN is refused because JSON has no such number."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def remove_unfinished(folder: Path, pattern: str) -> None:
    """Remove what a killed writer of `atomic_path` left of files whose names begin with a regular expression."""
    for path in folder.glob(".*"):
        if re.match(rf"\.[0-9a-f]{{32}}\.{pattern}", path.name):
            path.unlink(missing_ok=True)


def lacks_space(error: str, folder: Path) -> bool:
    """Whether an error, as text, comes of a full disk or quota; libraries hide the number of the error, and some its name."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return any(reason in error for reason in _FULL) or shutil.disk_usage(existing).free < FEW_BYTES
