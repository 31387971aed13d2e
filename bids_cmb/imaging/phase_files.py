"""The phase image of a scan, found by name."""

import re
from dataclasses import dataclass
from pathlib import Path

from bids_cmb.bids.entities import list_index_entities
from bids_cmb.bids.filters import (
    PHASE_LABELS,
    PHASE_PATTERN,
    ImageFile,
    Query,
    find_rejection_reason,
    parse_image_path,
)
from bids_cmb.bids.metadata import get_echo_time_s, make_sidecar_reader

# Of names: SWI has no `part` in BIDS' draft, so its phase often goes by the gradient echo's suffix.
SWI_PHASE_SUFFIXES = ("T2starw", "T2star", "GRE")
ECHO_TOLERANCE_S = 0.0005  # s


@dataclass(frozen=True)
class PhaseMatch:
    """The phase image that belongs to a scan.

    Attributes:
        path: None if there is none, or several fit equally well.
        note: A sentence on those that do.
    """

    path: Path | None = None
    note: str = ""


def find_phase_image(scan: Path) -> PhaseMatch:
    """Find the phase image beside a scan, by names alone (and echo times, between equals).

    It has the entities of the scan, but ``part-phase`` for ``part-mag`` or none; the same suffix,
    for SWI also one of `SWI_PHASE_SUFFIXES`. Instead of ``part-phase`` it may be labelled as phase
    in ``acq``, ``rec`` or ``desc`` (``acq-phase``, ``rec-filteredphase``, as discovery knows them),
    the scan having any label there, unless that makes it the phase of several scans. It may lack
    the scan's ``rec``, and beside SWI it may have an ``echo``. What differs least is taken.

    Args:
        scan: The magnitude or SWI, within a BIDS dataset.
    """
    root = _find_dataset_root(scan)
    scan_image = parse_image_path(scan, root)
    neighbours = {}  # the packed one of two files of one name
    for path in sorted(scan.parent.iterdir(), key=lambda path: (path.suffix != ".gz", path.name)):
        if path.name.endswith((".nii", ".nii.gz")) and path != scan:
            image = parse_image_path(path, root)
            neighbours.setdefault(path.name.removesuffix(image.extension), image)
    ranks = {
        image: rank
        for image in neighbours.values()
        if (rank := _rank_name(scan_image, image)) is not None
    }
    best = [image for image, rank in ranks.items() if rank == min(ranks.values())]
    if len(best) > 1:
        best = _select_same_echo(scan_image, best, root) or best
    if not best:
        return PhaseMatch()
    names = " and ".join(image.path.name for image in best)
    if len(best) > 1:
        return PhaseMatch(
            note=f"{scan.name}: {names} fit equally well as its phase; none was taken."
        )
    [chosen] = best
    rivals = [
        image.path.name
        for image in neighbours.values()
        if ranks[chosen][0]
        and image.canonical_suffix == scan_image.canonical_suffix
        and not find_rejection_reason(image, Query(suffixes=(scan_image.canonical_suffix,)))
        and _rank_name(image, chosen) == ranks[chosen]
    ]
    if rivals:
        also = " and ".join(rivals)
        return PhaseMatch(note=f"{scan.name}: {names} may be the phase of {also} too; not taken.")
    return PhaseMatch(chosen.path)


def _find_dataset_root(path: Path) -> Path:
    """Find the dataset: the folder that holds the participant's."""
    participant = next((parent for parent in path.parents if parent.name.startswith("sub-")), path)
    return participant.parent


def _rank_name(scan: ImageFile, other: ImageFile) -> tuple[int, int, int] | None:
    """Rank how far a name is from that of the scan's phase, the least first; None if it is none."""
    same_suffix, swi = (
        other.canonical_suffix == scan.canonical_suffix,
        scan.canonical_suffix == "swi",
    )
    part = other.entities.get("part")
    labels = [key for key in PHASE_LABELS if _is_phase_label(other.entities.get(key, ""))]
    if other.invalid_words or part not in (None, "phase") or not (part or labels):
        return None
    scan_entities, other_entities = _normalize_entities(scan), _normalize_entities(other)
    lacking = [key for key in ("rec",) if key in scan_entities and key not in other_entities]
    additional = [
        key for key in ("echo",) if swi and key in other_entities and key not in scan_entities
    ]
    different = {
        key
        for key in (scan_entities.keys() | other_entities.keys())
        - {"part", *labels, *lacking, *additional}
        if scan_entities.get(key) != other_entities.get(key)
    }
    if different or not (same_suffix or (swi and other.canonical_suffix in SWI_PHASE_SUFFIXES)):
        return None
    return (len(labels), len(lacking) + len(additional), int(not same_suffix))


def _is_phase_label(label: str) -> bool:
    return re.fullmatch(PHASE_PATTERN, label, re.IGNORECASE) is not None


def _normalize_entities(image: ImageFile) -> dict[str, str]:
    """Normalize entities: run-01 and run-1 are the same."""
    return {
        key: str(int(value)) if key in list_index_entities() and value.isdecimal() else value
        for key, value in image.entities.items()
    }


def _select_same_echo(scan: ImageFile, images: list[ImageFile], root: Path) -> list[ImageFile]:
    """Select images of the scan's echo time, by their sidecars."""
    read = make_sidecar_reader(root)
    times = {image: get_echo_time_s(read(image.path).metadata) for image in (scan, *images)}
    return [
        image
        for image in images
        if times[scan] and times[image] and abs(times[scan] - times[image]) < ECHO_TOLERANCE_S
    ]


def read_units(path: Path) -> object:
    """Read the ``Units`` of a phase image from its sidecars; None where there are none."""
    return make_sidecar_reader(_find_dataset_root(path))(path).metadata.get("Units")
