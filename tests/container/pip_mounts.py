"""Print the build-time mounts that give a container build the package sources this machine's pip is set to.

Only RUN steps see them, so nothing of them enters the image. Where pip has no settings of its own, only the
certificates are handed in. Usage: ``pip_mounts.py DIR``; the generated pip.conf is written to DIR, and one line
``SOURCE:TARGET:ro`` is printed for each mount.
"""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

CERTIFICATES = "/run/build-ca.crt"  # not over the system's bundle, which the build must be able to rewrite
CONSTRAINTS = "/run/build-constraints-{}.txt"  # not named as the project's own, which lies beside it in some builds
SOURCES = ("find-links", "index-url", "extra-index-url")


def main(directory: Path) -> None:
    settings = pip_settings()
    mounts = certificates(settings) + constraints(settings)
    mounts += [(folder, folder) for folder in sorted(local_folders(settings))]
    pip_conf = directory / "pip.conf"
    pip_conf.write_text("[global]\n" + "".join(f"{key} = {value}\n" for key, value in settings.items()))
    for source, target in [(str(pip_conf), "/etc/pip.conf"), *mounts]:
        print(f"{source}:{target}:ro")


def certificates(settings: dict[str, str]) -> list[tuple[str, str]]:
    """Let pip read the certificates at a path of their own, and return their mount."""
    file = os.environ.get("SSL_CERT_FILE") or "/etc/ssl/certs/ca-certificates.crt"
    if not os.path.exists(file):
        return []
    settings["cert"] = CERTIFICATES
    return [(file, CERTIFICATES)]


def constraints(settings: dict[str, str]) -> list[tuple[str, str]]:
    """Let pip read each local file of constraints at a path of its own, and return their mounts."""
    files = [word.removeprefix("file://") for word in settings.get("constraint", "").split()]
    targets = {file: CONSTRAINTS.format(number) for number, file in enumerate(files) if os.path.exists(file)}
    if files:
        settings["constraint"] = " ".join(targets.get(file, file) for file in files)
    return [(os.path.abspath(file), target) for file, target in targets.items()]


def pip_settings() -> dict[str, str]:
    """Return what ``pip config list`` says, the environment's settings before those of files."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False
    ).stdout
    settings: dict[str, str] = {}
    for line in listed.splitlines():
        key, _, value = line.partition("=")
        if value:
            settings.setdefault(key.split(".", 1)[1].lstrip("."), ast.literal_eval(value))
    return settings


def local_folders(settings: dict[str, str]) -> set[str]:
    """Return the folders that pip installs from; of an index, the folder that also holds its files."""
    folders = set()
    for key in SOURCES:
        for token in settings.get(key, "").split():
            path = re.sub(r"^file://", "", token).rstrip("/")
            if path.startswith("/") and os.path.exists(path):
                folders.add(os.path.dirname(path) if key.endswith("index-url") else path)
    return folders


if __name__ == "__main__":
    main(Path(sys.argv[1]))
