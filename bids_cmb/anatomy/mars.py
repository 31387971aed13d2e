"""The Microbleed Anatomical Rating Scale: thirteen regions, which codes belong to them, patterns.

Gregoire et al., Neurology 2009;73:1759-1766. The table is ``resources/atlases/mars.json``.
"""

from collections.abc import Mapping
from functools import lru_cache

from bids_cmb.resource_files import load_resource

LOBAR_LABEL = 14  # lobar, in no lobe that is known: without an atlas, lobes are not told apart
RIGHT_OFFSET = 20  # is added to a label on the right: 3 is the left temporal lobe, 23 the right one


@lru_cache(maxsize=1)
def load_mars_table() -> dict:
    """Load the regions, and the codes of each atlas in them: ``resources/atlases/mars.json``."""
    return load_resource("atlases/mars.json")


def list_regions(territory: str | None = None) -> list[str]:
    """List the thirteen regions of MARS, lobar, deep, infratentorial; or those of a territory."""
    return [
        region["name"]
        for region in load_mars_table()["regions"]
        if territory in (None, region["territory"])
    ]


def find_label(name: str) -> int:
    """Find the label of a region on the left."""
    return next(
        region["label"] for region in load_mars_table()["regions"] if region["name"] == name
    )


@lru_cache(maxsize=1)
def index_regions() -> Mapping[int, tuple[str | None, str]]:
    """Index name and territory by label on the left."""
    known = {
        region["label"]: (region["name"], region["territory"])
        for region in load_mars_table()["regions"]
    }
    return {**known, LOBAR_LABEL: (None, "lobar")}


def list_label_rows() -> list[dict[str, object]]:
    """List every label and its name, as the rows of a BIDS label table."""
    known = [
        (label, name or "lobar, lobe not known") for label, (name, _) in index_regions().items()
    ]
    return [
        {"index": label + shift, "name": f"{side} {name}"}
        for side, shift in (("left", 0), ("right", RIGHT_OFFSET))
        for label, name in known
    ]


def classify_pattern(territories: Mapping[str, int], cerebellar: int) -> str:
    """Classify the distribution of microbleeds, in words that are no diagnosis.

    Strictly lobar: some lobar, none deep and none in the brainstem; strictly deep: the other way
    round; the cerebellum counts as neither (Charidimou et al. 2022).

    Args:
        territories: Lesions that are ``lobar``, ``deep`` and ``infratentorial``.
        cerebellar: How many of the last lie in the cerebellum.
    """
    deep = territories["deep"] + territories["infratentorial"] - cerebellar
    if territories["lobar"] and deep:
        return "mixed"
    if territories["lobar"]:
        return "strictly lobar"
    if deep:
        return "strictly deep"
    return "cerebellar only" if cerebellar else "none"
