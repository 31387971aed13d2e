"""Pictures within a page, so that a page that is sent alone is whole."""

import base64
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote

MAX_EMBEDDED_BYTES = 2_300_000  # of pictures in a page, as text: a page that can be sent by mail
MEDIA_TYPES = {".webp": "image/webp", ".png": "image/png"}


def embed_pictures(
    folder: Path, names: Iterable[str], *, limit: float = MAX_EMBEDDED_BYTES
) -> dict[str, str]:
    """Turn pictures into the addresses by which a page shows them.

    Args:
        folder: Of the page.
        names: Of the pictures, relative to it, the most important first. Those that are not there
            have no address.
        limit: Bytes of all addresses that hold a picture. The first picture that would exceed it,
            and all that come after it, are linked.

    Returns:
        By name: a ``data:`` address that holds the picture, or the relative address of its file.
    """
    addresses: dict[str, str] = {}
    total = 0
    for name in dict.fromkeys(names):
        path = folder / name
        try:
            total += 4 * -(-path.stat().st_size // 3)  # base64
            addresses[name] = _encode(path) if total <= limit else quote(name)
        except OSError:  # not there, or another process is replacing it
            continue
    return addresses


def is_linked(address: str) -> bool:
    """Check whether a picture lies beside its page, not in it."""
    return not address.startswith("data:")


def _encode(path: Path) -> str:
    text = base64.b64encode(path.read_bytes()).decode("ascii")
    return f"data:{MEDIA_TYPES[path.suffix]};base64,{text}"
