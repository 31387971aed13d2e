"""The contrast of the scan that lesions were marked in, by its BIDS suffix."""

from collections.abc import Mapping
from pathlib import PurePosixPath

from bids_cmb.bids.entities import parse_entities
from bids_cmb.bids.filters import CANONICAL_SUFFIXES, find_contrast

RENAMED = {"T2star": "T2starw"}  # suffixes of images that BIDS has renamed


def find_contrast_of_scan(name: str, sidecar: Mapping) -> str:
    """Find the contrast by the name of a mask or table, else by the ``Sources`` in its sidecar.

    Args:
        name: Of the file; its ``desc`` may end with the suffix of the scan.
        sidecar: Content of the sidecar.

    Returns:
        A suffix, such as ``swi``; empty if nothing tells.
    """
    sources = sidecar.get("Sources")
    names = [name, *map(str, sources if isinstance(sources, list) else ())]
    return next(filter(None, (_read_contrast(PurePosixPath(each).name) for each in names)), "")


def _read_contrast(name: str) -> str:
    """Read the contrast in a file's name: its suffix, or the end of its ``desc``."""
    suffix = name.partition(".")[0].rpartition("_")[2].casefold()
    of_desc = find_contrast(parse_entities(name).get("desc", ""))
    contrast = max(CANONICAL_SUFFIXES.get(suffix, ""), of_desc, key=len)
    return RENAMED.get(contrast, contrast)
