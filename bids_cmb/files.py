"""Files that are whole or not there: written beside their place, then renamed into it."""

import errno
import json
import math
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DEEPEST = 64  # levels of JSON; those of BIDS and of model cards have a tenth of them


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
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    os.close(handle)
    beside = Path(name)
    try:
        yield beside
        beside.chmod(0o666 & ~_umask())  # mkstemp makes files that only their owner can read
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


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


def parse_json(text: str | bytes) -> object:
    """Parse JSON as `load_json` does.

    Raises:
        ValueError: If it is not JSON, or nested too deeply.
    """
    too_deep = f"found more than {DEEPEST} levels of lists and objects"
    try:
        text = text.decode("utf-8-sig") if isinstance(text, bytes) else text
        content = json.loads(text, parse_float=_finite, parse_constant=lambda _: None)
    except UnicodeDecodeError as error:
        raise ValueError(f"found the byte 0x{text[error.start]:02x}, not UTF-8") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg} in line {error.lineno}, column {error.colno}") from error
    except RecursionError as error:
        raise ValueError(too_deep) from error
    try:
        return _mended(content, DEEPEST)
    except RecursionError as error:
        raise ValueError(too_deep) from error


def _finite(digits: str) -> float | None:
    number = float(digits)
    return number if math.isfinite(number) else None


def _mended(content: object, levels: int) -> object:
    """The same with whole characters only; RecursionError below so many levels."""
    if isinstance(content, str):
        return content.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if not isinstance(content, dict | list):
        return content
    if levels == 0:
        raise RecursionError
    if isinstance(content, list):
        return [_mended(one, levels - 1) for one in content]
    return {_mended(key, 1): _mended(one, levels - 1) for key, one in content.items()}


def obstacle(folder: Path) -> str:
    """What keeps a folder from being made or written into, with its name; empty if nothing does."""
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


def _umask() -> int:
    # The mask can only be read by setting it. Every process here has one thread that writes.
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
