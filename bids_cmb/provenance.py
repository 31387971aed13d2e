"""What made a result: software, settings, input and machine."""

import hashlib
import json
import os
import platform
import sys
from importlib import metadata
from pathlib import Path

from bids_cmb import __version__

NAME = "bids_cmb"
LIBRARIES = ("numpy", "scipy", "nibabel", "pybids", "pandas", "keras", "simpleitk")


def software() -> dict[str, str]:
    """Versions of everything a result rests on."""
    versions = {NAME: __version__, "python": platform.python_version()}
    for library in LIBRARIES:
        try:
            versions[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            versions[library] = "absent"
    return versions


def machine() -> dict[str, object]:
    """The machine in words, without its name or its user."""
    return {
        "System": f"{platform.system()} {platform.machine()}",
        "Cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0,
        "Device": "CPU",
    }


def sha256(path: Path) -> str:
    """SHA-256 of a file's content, as hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(**parts: object) -> str:
    """One SHA-256 over plain data; equal parts give equal digits, whatever their order."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def generated_by() -> list[dict]:
    """The ``GeneratedBy`` entry of a BIDS derivative dataset."""
    return [
        {
            "Name": NAME,
            "Version": __version__,
            "Description": "Cerebral microbleeds found and counted on susceptibility MRI.",
        }
    ]


def command() -> str:
    """The command line as it was given."""
    return " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
