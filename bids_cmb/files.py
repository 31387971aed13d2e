"""Files that are whole or not there: written beside their place, then renamed into it."""

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

PART, HELD = ".part", ".held"
ELSEWHERE_S = 86_400  # age from which a part of another machine may go, if nobody holds it


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Lend a path beside ``path``; what was written there takes its place if all went well.

    Readers see the old file or the new one, never half of one, and of two processes that write
    the same file the last one wins. The lent name starts with a dot, so that BIDS tools pass it by.

    Args:
        path: Where the file shall be. Its folder is made if it is missing.

    Yields:
        The path to write to.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, beside = _held_part(path)
    try:
        yield beside
        beside.chmod(0o666 & ~_umask())  # mkstemp makes files that only their owner can read
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
        os.close(handle)


def _held_part(path: Path) -> tuple[int, Path]:
    """Make a part beside a path and lock it for as long as this process lives or its handle."""
    prefix = f".{path.name[:150]}.{_kernel()}."  # a name has at most 255 bytes
    while True:
        handle, name = tempfile.mkstemp(prefix=prefix, suffix=PART, dir=path.parent)
        with suppress(OSError):  # no locks here: then `remove_leftovers` gets none either
            fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_nlink:  # else it was cleared away before it was locked
            return handle, Path(name)
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
        ours = f".{_kernel()}." in path.name
        with suppress(OSError):
            if ours or time.time() - path.stat().st_mtime > ELSEWHERE_S:
                _remove_unless_held(path)


def _is_part(name: str) -> bool:
    return name.startswith(".") and name.endswith(PART)


def _remove_unless_held(path: Path) -> None:
    handle = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises where somebody holds it
        path.unlink(missing_ok=True)
    finally:
        os.close(handle)


@contextmanager
def temporary_folder(prefix: str, parent: Path | None = None) -> Iterator[Path]:
    """Lend a folder for temporary files that is removed at the end, and those of the dead with it.

    Args:
        prefix: Of its name, the same for all processes of one kind.
        parent: Where it shall be; the system's place by default.

    Yields:
        The folder.

    Raises:
        OSError: If none can be made.
    """
    parent = Path(tempfile.gettempdir()) if parent is None else parent
    for old in parent.glob(f"{prefix}*"):
        _remove_folder_unless_held(old)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        (folder / HELD).touch()
        handle = hold_folder(folder)
        if handle is None or os.fstat(handle).st_nlink:
            break
        os.close(handle)  # it was cleared away before it was locked
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if handle is not None:
            os.close(handle)


def hold_folder(folder: Path) -> int | None:
    """Keep a `temporary_folder` from being cleared away while this process lives.

    Returns:
        The handle of the lock; None if it is no such folder, or there are no locks here.
    """
    try:
        handle = os.open(folder / HELD, os.O_RDWR)
        fcntl.flock(handle, fcntl.LOCK_SH)
    except OSError:
        return None
    return handle


def _remove_folder_unless_held(folder: Path) -> None:
    with suppress(OSError):
        handle = os.open(folder / HELD, os.O_RDWR)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(handle)


@lru_cache(maxsize=1)
def _kernel() -> str:
    """A name for the running kernel: processes that share it see each other's locks."""
    try:
        booted = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
    except OSError:
        booted = str(uuid.getnode())
    return hashlib.sha256(booted.encode()).hexdigest()[:8]


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` as UTF-8 with Unix line ends, whole or not at all."""
    with replacing(path) as beside:
        beside.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, content: dict) -> None:
    """Write an object as JSON, its keys in the order given."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict | None:
    """A file's object; None if it is not there, cannot be read or holds none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _umask() -> int:
    # The mask can only be read by setting it. Every process here has one thread that writes.
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
