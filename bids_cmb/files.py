"""Write files whole or not at all (beside their place, then renamed into it), and read JSON."""

import errno
import fcntl
import hashlib
import json
import math
import os
import shutil
import stat
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

PART_ENDING, LOCK_NAME = ".part", ".held"
MIN_AGE_ELSEWHERE_S = 86_400  # of a part of another machine, which no lock may show to be in use
MAX_JSON_LEVELS = 64  # of lists and objects; BIDS and model cards have a tenth of them


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Replace a file: lend a path beside it, and rename that to it if all went well.

    Readers see the old file or the new one, never half of one, and of two processes that write
    the same file the last one wins. The lent name starts with a dot, so that BIDS tools pass it by.

    Args:
        path: The file. Its folder is made if it is missing.

    Yields:
        The path to write to.

    Raises:
        OSError: If it cannot be written; it names ``path``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unique = f"{_identify_kernel()}.{uuid.uuid4().hex[:8]}"
    name = f".{path.name[:150]}.{unique}{PART_ENDING}"  # at most 255 bytes
    beside, handle = path.with_name(name), None
    try:  # begun before there is a part: a signal may come at any moment
        handle = _open_locked(beside)
        yield beside
        beside.chmod(0o666 & ~_get_umask())  # parts can be read by their owner only
        beside.replace(path)
    except OSError as error:  # a full disk names no file, other errors the part
        if error.errno and error.filename in (None, str(beside)):
            error.filename = str(path)
        raise
    finally:
        beside.unlink(missing_ok=True)
        if handle is not None:
            os.close(handle)


def _open_locked(part: Path) -> int:
    """Make a part, and lock it until its handle is closed or this process ends."""
    while True:
        handle = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        with suppress(OSError):  # no locks here: then `remove_leftovers` gets none either
            fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_nlink:  # else it was cleared away before it was locked
            return handle
        os.close(handle)


def remove_leftovers(folder: Path) -> None:
    """Remove the parts that processes which died left in a folder, never one in use.

    A process holds a lock on its part, which ends with it. Locks of other machines may not be seen
    here, so a part of theirs must be a day old too.

    Args:
        folder: Where to look, not in folders within; it may be missing.
    """
    try:
        parts = [path for path in folder.iterdir() if _is_part(path.name)]
    except OSError:
        return
    for path in parts:
        ours = f".{_identify_kernel()}." in path.name
        with suppress(OSError):
            if ours or time.time() - path.stat().st_mtime > MIN_AGE_ELSEWHERE_S:
                _remove_unless_locked(path)


def _is_part(name: str) -> bool:
    return name.startswith(".") and name.endswith(PART_ENDING)


def _remove_unless_locked(path: Path) -> None:
    handle = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises where somebody holds it
        path.unlink(missing_ok=True)
    finally:
        os.close(handle)


@contextmanager
def temporary_folder(prefix: str, parent: Path | None = None) -> Iterator[Path]:
    """Lend a folder for temporary files, removed at the end; remove those of dead processes.

    Args:
        prefix: Start of its name, the same for all processes of one kind.
        parent: Its parent folder; by default the system's for temporary files.

    Yields:
        The folder.

    Raises:
        OSError: If none can be made.
    """
    parent = Path(tempfile.gettempdir()) if parent is None else parent
    for old in parent.glob(f"{prefix}*"):
        _remove_folder_unless_locked(old)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        (folder / LOCK_NAME).touch()
        handle = lock_folder(folder)
        if handle is None or os.fstat(handle).st_nlink:
            break
        os.close(handle)  # it was cleared away before it was locked
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if handle is not None:
            os.close(handle)


def lock_folder(folder: Path) -> int | None:
    """Keep a `temporary_folder` from being cleared away while this process lives.

    Returns:
        The handle of the lock; None if it is no such folder, or there are no locks here.
    """
    try:
        handle = os.open(folder / LOCK_NAME, os.O_RDWR)
        fcntl.flock(handle, fcntl.LOCK_SH)
    except OSError:
        return None
    return handle


def _remove_folder_unless_locked(folder: Path) -> None:
    with suppress(OSError):
        handle = os.open(folder / LOCK_NAME, os.O_RDWR)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(handle)


@lru_cache(maxsize=1)
def _identify_kernel() -> str:
    """Name the running kernel: processes that share it see each other's locks."""
    try:
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
    except OSError:
        boot_id = str(uuid.getnode())
    return hashlib.sha256(boot_id.encode()).hexdigest()[:8]


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` as UTF-8 with Unix line ends, whole or not at all."""
    with replacing(path) as beside:
        beside.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, content: dict) -> None:
    """Write an object as JSON, its keys in the order given."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict | None:
    """Read a file's JSON object; None if it is not there, cannot be read or holds none."""
    try:
        content = load_json(path)
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def load_json(path: Path) -> object:
    """Read a JSON file that anybody may have written.

    What comes back can be pickled and written as JSON again: it is at most `DEEPEST` levels deep,
    every number in it is finite (others are None), and every text is Unicode (half characters
    become U+FFFD).

    Args:
        path: In UTF-8, with or without a byte-order mark.

    Raises:
        ValueError: If it is not JSON, or nested too deeply. The sentence is the end of one.
        OSError: If it cannot be read, or is a pipe or a device, which might never end.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "Not a regular file", str(path))
    return parse_json(path.read_bytes())


def is_number(value: object) -> bool:
    """Check whether a value of JSON is a finite number, no truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def load_object(path: Path, what: str) -> dict:
    """Read a JSON object that anybody may have written, as `load_json` does.

    Args:
        path: In UTF-8, with or without a byte-order mark.
        what: What the file is, as the subject of a sentence: ``a recipe``.

    Raises:
        ValueError: If it is not JSON, nested too deeply, or no object. The sentence names the file.
        OSError: If it cannot be read, or is a pipe or a device.
    """
    try:
        content = load_json(path)
    except ValueError as error:
        raise ValueError(f"{path}: {what} must be JSON; {error}.") from error
    if not isinstance(content, dict):
        shown = json.dumps(content, ensure_ascii=False)
        raise ValueError(f"{path}: {what} must be a JSON object; found {shown:.60}.")
    return content


def parse_json(text: str | bytes) -> object:
    """Parse JSON as `load_json` does.

    Raises:
        ValueError: If it is not JSON, or nested too deeply.
    """
    too_deep = f"found more than {MAX_JSON_LEVELS} levels of lists and objects"
    try:
        text = text.decode("utf-8-sig") if isinstance(text, bytes) else text
        content = json.loads(text, parse_float=_parse_finite, parse_constant=lambda _: None)
    except UnicodeDecodeError as error:
        raise ValueError(f"found the byte 0x{text[error.start]:02x}, not UTF-8") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg} in line {error.lineno}, column {error.colno}") from error
    except RecursionError as error:
        raise ValueError(too_deep) from error
    try:
        return _repair(content, MAX_JSON_LEVELS)
    except RecursionError as error:
        raise ValueError(too_deep) from error


def _parse_finite(digits: str) -> float | None:
    number = float(digits)
    return number if math.isfinite(number) else None


def _repair(content: object, levels: int) -> object:
    """Replace half characters; RecursionError below so many levels."""
    if isinstance(content, str):
        return content.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if not isinstance(content, dict | list):
        return content
    if levels == 0:
        raise RecursionError
    if isinstance(content, list):
        return [_repair(item, levels - 1) for item in content]
    return {_repair(key, 1): _repair(item, levels - 1) for key, item in content.items()}


def find_obstacle(folder: Path) -> str:
    """Find what keeps a folder from being made or written into; empty if nothing does."""
    place = folder.absolute()
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    if place.is_symlink() and not place.exists():
        return f"{place} is a broken link"
    if not place.is_dir():
        return f"{place} is a file, no folder"
    if not os.access(place, os.W_OK | os.X_OK):
        return f"nothing may be written into {place}"
    return ""


def _get_umask() -> int:
    # The mask can only be read by setting it. Every process here has one thread that writes.
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
