"""What made a result: software, settings, input and machine."""

import hashlib
import json
import os
import platform
import sys
from functools import cache, lru_cache
from importlib import metadata
from pathlib import Path

from bids_cmb import __version__

NAME = "bids_cmb"
ENGINES = ("numpy", "scipy", "nibabel", "keras", "openvino", "tensorflow", "simpleitk")  # compute
LIBRARIES = (*ENGINES, "pybids", "pandas")
BUILDS = {"tensorflow": ("tensorflow", "tensorflow-cpu")}  # distributions of one library
# Cards name their weights by SHA-256, and pages show what was found.
NO_CODE = ("__pycache__", "templates", "niivue")
NO_CODE_SUFFIX = ".npz"
PACKAGE = Path(__file__).parent


def software() -> dict[str, str]:
    """Versions of everything a result rests on."""
    return {
        NAME: __version__,
        "python": platform.python_version(),
        **{library: _version(library) for library in LIBRARIES},
    }


def engines() -> dict[str, str]:
    """Versions of the libraries that compute a result."""
    return {library: _version(library) for library in ENGINES}


@cache
def _version(library: str) -> str:
    for name in BUILDS.get(library, (library,)):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return "absent"


@lru_cache(maxsize=1)
def package_digest() -> str:
    """SHA-256 over the names and contents of this package's code and data, once per process."""
    total = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*")):
        inside = path.relative_to(PACKAGE)
        no_code = set(inside.parts) & set(NO_CODE) or inside.suffix == NO_CODE_SUFFIX
        if path.is_file() and not no_code:
            total.update(f"{inside.as_posix()}\0{sha256(path)}\n".encode())
    return total.hexdigest()


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
    """The ``GeneratedBy`` entry of a BIDS derivative dataset.

    An image says by its variables what it is called and where its code is; elsewhere neither is
    known.
    """
    url, image = os.environ.get("BIDS_CMB_CODE_URL"), os.environ.get("BIDS_CMB_IMAGE")
    return [
        {
            "Name": NAME,
            "Version": __version__,
            "Description": "Cerebral microbleeds found and counted on susceptibility MRI.",
            **({"CodeURL": url} if url else {}),
            **({"Container": _describe_container(image)} if image else {}),
        }
    ]


def _describe_container(image: str) -> dict[str, str]:
    """Describe the container that this runs in, in the words of BIDS."""
    is_apptainer = any(f"{name}_CONTAINER" in os.environ for name in ("APPTAINER", "SINGULARITY"))
    kind = "apptainer" if is_apptainer else "docker"
    return {"Type": kind, "Tag": image, "URI": f"docker://{image}"}


def command() -> str:
    """The command line as it was given."""
    return " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
