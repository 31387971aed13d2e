"""The completion marker of a scan: what it must hold, and whether the files it names are whole.

The marker is the sidecar of the lesion mask. It is written after every image, table and picture of
the scan, and names each file with its size and SHA-256.
"""

import errno
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from bids_cmb.files import read_json
from bids_cmb.provenance import sha256

# Of a file system that has no fsync
NO_SYNC = {errno.EINVAL, errno.EBADF, errno.EROFS, errno.ENOTSUP, errno.ENOSYS}


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
    """Whether a value may stand in a table: a plain one, and in a column of counts a number."""
    if name.startswith("n_"):
        return value is None or (isinstance(value, int) and not isinstance(value, bool))
    return value is None or isinstance(value, str | int | float)


def names_in(marker: Mapping | None) -> list[str]:
    """List the names of the files that a marker names, those of older versions included."""
    made = (marker or {}).get("Provenance")
    files = made.get("Files") if isinstance(made, dict) else None
    if not isinstance(files, list):
        return []
    names = (one.get("Path") if isinstance(one, dict) else one for one in files)
    return [name for name in names if isinstance(name, str) and name and Path(name).name == name]


def is_whole(folder: Path, marker: Mapping) -> bool:
    """Check whether every file that a marker names lies in a folder with the content noted."""
    files = marker.get("Provenance", {}).get("Files")
    if not isinstance(files, list) or len(names_in(marker)) != len(files) or not files:
        return False
    for one in files:
        place = folder / str(one.get("Path")) if isinstance(one, dict) else None
        if place is None or not place.is_file() or digest(place, one) != one.get("SHA256"):
            return False
    return True


def file_signature(path: Path, **more: object) -> dict[str, object]:
    """Describe a file by its name, size, time of modification and SHA-256.

    Args:
        path: Of the file.
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


def input_signature(path: Path, **more: object) -> dict[str, object]:
    """Describe an input by `file_signature` and its time of status change.

    That time cannot be set: a file that was replaced by one of equal size and time differs in it.
    """
    changed = path.stat().st_ctime_ns
    return {**file_signature(path, **more), "Changed": changed}


def output_signatures(paths: Iterable[Path]) -> list[dict[str, object]]:
    """Describe files that were just written, in order of their names, once they are on the disc.

    Raises:
        OSError: If one cannot be read, or not be brought to the disc.
    """
    return [_synced_signature(path) for path in sorted(set(paths), key=lambda path: path.name)]


def _synced_signature(path: Path) -> dict[str, object]:
    with path.open("rb") as file:
        try:
            os.fsync(file.fileno())
        except OSError as error:
            if error.errno not in NO_SYNC:
                raise OSError(error.errno, error.strerror, str(path)) from error
    return file_signature(path)


def digest(path: Path, known: Mapping) -> str:
    """Take the SHA-256 of a file, from an earlier signature where size and times are those noted.

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
