"""Read the completion marker of a scan, and check the files that it names.

The marker is the sidecar of the lesion mask. It is written after every image, table and picture of
the scan, and names each file with its size and SHA-256.
"""

import errno
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from bids_cmb.files import read_json
from bids_cmb.provenance import sha256

# From a file system that has no fsync
NO_SYNC_ERRNOS = {errno.EINVAL, errno.EBADF, errno.EROFS, errno.ENOTSUP, errno.ENOSYS}


def read_marker(path: Path) -> dict | None:
    """Read a marker; None if it is not there, cannot be read or is not shaped like one."""
    content = read_json(path)
    return content if content is not None and _is_marker(content) else None


def _is_marker(content: Mapping) -> bool:
    counts, made = content.get("Microbleeds"), content.get("Provenance", {})
    sources, notes = content.get("Sources", []), content.get("Notes", [])
    if not (isinstance(counts, dict) and isinstance(made, dict)):
        return False
    lists = all(
        isinstance(items, list) and all(isinstance(item, str) for item in items)
        for items in (sources, notes)
    )
    return (
        lists
        and isinstance(made.get("Settings", {}), dict)
        and all(_is_cell(name, value) for name, value in counts.items())
    )


def _is_cell(name: str, value: object) -> bool:
    """Check whether a value may stand in a table: a plain one; in a column of counts, a number."""
    if name.startswith("n_"):
        return value is None or (isinstance(value, int) and not isinstance(value, bool))
    return value is None or isinstance(value, str | int | float)


def list_file_names(marker: Mapping | None) -> list[str]:
    """List the names of the files that a marker names, those of older versions included."""
    made = (marker or {}).get("Provenance")
    files = made.get("Files") if isinstance(made, dict) else None
    if not isinstance(files, list):
        return []
    names = (entry.get("Path") if isinstance(entry, dict) else entry for entry in files)
    return [name for name in names if isinstance(name, str) and name and Path(name).name == name]


def is_whole(folder: Path, marker: Mapping) -> bool:
    """Check whether every file that a marker names lies in a folder with the content noted."""
    files = marker.get("Provenance", {}).get("Files")
    if not isinstance(files, list) or len(list_file_names(marker)) != len(files) or not files:
        return False
    for entry in files:
        path = folder / str(entry.get("Path")) if isinstance(entry, dict) else None
        if path is None or not path.is_file() or compute_digest(path, entry) != entry.get("SHA256"):
            return False
    return True


def describe_file(path: Path, **more: object) -> dict[str, object]:
    """Describe a file by its name, size, time of modification and SHA-256.

    Args:
        path: The file.
        **more: Further keys, such as what it was used for.

    Raises:
        OSError: If it cannot be read.
    """
    status = path.stat()
    return {
        **more,
        "Path": path.name,
        "Size": status.st_size,
        "Modified": status.st_mtime_ns,
        "SHA256": sha256(path),
    }


def describe_input(path: Path, **more: object) -> dict[str, object]:
    """Describe an input by `describe_file` and its time of status change.

    That time cannot be set: it differs if a file was replaced by one of equal size and time.
    """
    changed = path.stat().st_ctime_ns
    return {**describe_file(path, **more), "Changed": changed}


def describe_outputs(paths: Iterable[Path]) -> list[dict[str, object]]:
    """Describe files that were just written, by name, once they are on the disc.

    Raises:
        OSError: If one cannot be read, or not be written to the disc.
    """
    return [_describe_synced(path) for path in sorted(set(paths), key=lambda path: path.name)]


def _describe_synced(path: Path) -> dict[str, object]:
    with path.open("rb") as file:
        try:
            os.fsync(file.fileno())
        except OSError as error:
            if error.errno not in NO_SYNC_ERRNOS:
                raise OSError(error.errno, error.strerror, str(path)) from error
    return describe_file(path)


def compute_digest(path: Path, known: Mapping) -> str:
    """Compute the SHA-256 of a file, or take the known one if size and times are unchanged.

    Raises:
        OSError: If it cannot be read.
    """
    status = path.stat()
    now = {
        "Size": status.st_size,
        "Modified": status.st_mtime_ns,
        "Changed": status.st_ctime_ns,
    }
    noted = {key: known[key] for key in now if key in known}
    same = {"Size", "Modified"} <= set(noted) and all(now[key] == noted[key] for key in noted)
    if same and isinstance(known.get("SHA256"), str):
        return known["SHA256"]
    if noted.get("Size", now["Size"]) != now["Size"] and "Role" not in known:
        return ""  # an output of another size need not be read
    return sha256(path)
