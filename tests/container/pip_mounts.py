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
SOURCES = ("find-links", "index-url", "extra-index-url")


def main(directory: Path) -> None:
    settings = pip_settings()
    mounts = []
    certificates = os.environ.get("SSL_CERT_FILE") or "/etc/ssl/certs/ca-certificates.crt"
    if os.path.exists(certificates):
        settings["cert"] = CERTIFICATES
        mounts.append((certificates, CERTIFICATES))
    pip_conf = directory / "pip.conf"
    pip_conf.write_text("[global]\n" + "".join(f"{key} = {value}\n" for key, value in settings.items()))
    mounts.append((str(pip_conf), "/etc/pip.conf"))
    mounts += [(folder, folder) for folder in sorted(local_folders(settings))]
    for source, target in mounts:
        print(f"{source}:{target}:ro")


def pip_settings() -> dict[str, str]:
    """What ``pip config list`` says, the environment's settings before those of files."""
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
    """Folders that pip installs from; of an index, the folder that also holds its files."""
    folders = set()
    for key in SOURCES:
        for token in settings.get(key, "").split():
            path = re.sub(r"^file://", "", token).rstrip("/")
            if path.startswith("/") and os.path.exists(path):
                folders.add(os.path.dirname(path) if key.endswith("index-url") else path)
    return folders


if __name__ == "__main__":
    main(Path(sys.argv[1]))
