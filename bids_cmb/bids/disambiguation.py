"""Choose between files with the same output names and between echoes, and make the scans."""

import os
import re
import stat
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from bids_cmb.bids.entities import SCAN_ENTITIES, join_entities
from bids_cmb.bids.filters import ImageFile, is_requested
from bids_cmb.bids.metadata import (
    Sidecars,
    compute_weighting,
    describe_read_error,
    find_other_image_type,
    get_spinal_body_part,
    merge_echo_metadata,
)
from bids_cmb.bids.scan import DATATYPES, Scan, ScanDecision, exclude

ECHO_WEIGHTING_T_MS = 60.0  # of the echo to process: 20 ms at 3 T, 40 ms at 1.5 T
ANNEX_POINTER = re.compile(rb"(\.\./)*(/|\.git/)annex/objects|version https://git-lfs")

Choice = tuple[list[ImageFile], str]  # the images of one scan, and why they were chosen


def choose_images(
    images: list[ImageFile], echo: tuple[str, ...], read: Callable[[Path], Sidecars]
) -> tuple[list[Scan], list[ScanDecision]]:
    """Choose between files with the same output names, and between echoes; make the scans."""
    images, considered = _drop_maps(images)
    images, others = _drop_by_sidecar(images, read)
    considered += others
    kept = []
    for alike in _group(images, _identify).values():
        first, *rest = sorted(alike, key=_rank)
        kept.append(first)
        why = f"gives the same output names as {first.relative_path}, which goes first"
        considered += [exclude(other.relative_path, why) for other in rest]

    scans = []
    for group in _group(kept, lambda image: _identify(image)[:-1]).values():
        sidecars = {image: read(image.path) for image in group}
        chosen, left = _choose_echoes(group, echo, sidecars)
        considered += [exclude(image.relative_path, why) for image, why in left.items()]
        for together, why in chosen:
            faults = {image: fault for image in together if (fault := _find_fault(image.path))}
            considered += _decide(together, why, faults)
            if not faults:
                scans.append(_make_scan(together, why, sidecars))
    return scans, considered


def _drop_maps(images: list[ImageFile]) -> tuple[list[ImageFile], list[ScanDecision]]:
    """Drop each T2star that has a T2starw of the same name beside it.

    BIDS had T2star for images and for maps before it split the name; beside an image it is a map.
    """
    weighted = {_identify(image)[:-1] for image in images if image.canonical_suffix == "T2starw"}
    maps = {
        image
        for image in images
        if image.canonical_suffix == "T2star"
        and _identify(replace(image, suffix="T2starw"))[:-1] in weighted
    }
    why = "is probably a map, since there is a T2starw of the same name"
    return [i for i in images if i not in maps], [exclude(i.relative_path, why) for i in maps]


def _drop_by_sidecar(
    images: list[ImageFile], read: Callable[[Path], Sidecars]
) -> tuple[list[ImageFile], list[ScanDecision]]:
    """Drop images of the spinal cord, and phase images and projections, by their sidecars."""
    kept, left = [], []
    for image in images:
        metadata = read(image.path).metadata
        if part := get_spinal_body_part(metadata):
            why = f"shows another part of the body than the brain (BodyPartExamined {part})"
        elif what := find_other_image_type(metadata):
            why = f"is {what}"
        else:
            kept.append(image)
            continue
        left.append(exclude(image.relative_path, why))
    return kept, left


def _group(items: Iterable, key: Callable[[Any], Hashable]) -> dict[Hashable, list]:
    groups = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return groups


def _identify(image: ImageFile) -> tuple:
    """Identify an image by a key that is equal for files with the same outputs; the echo last."""
    named = image.entities
    rest = [pair for pair in image.output_entities if pair[0] not in ("sub", "ses", "echo")]
    name = join_entities(rest, named.get("desc", ""), image.canonical_suffix).casefold()
    return (named["sub"], named.get("ses"), name, image.echo)


def _rank(image: ImageFile) -> tuple:
    """Rank files with the same outputs: the best is the first when sorted."""
    return (
        bool(_find_fault(image.path)),
        len(image.pairs) - len(image.output_entities),
        DATATYPES.index(image.datatype),
        image.extension != ".nii.gz",
        image.suffix != image.canonical_suffix,
        image.relative_path,
    )


def _choose_echoes(
    group: list[ImageFile], echo: tuple[str, ...], sidecars: dict[ImageFile, Sidecars]
) -> tuple[list[Choice], dict[ImageFile, str]]:
    """Choose between files that differ in their echo only.

    Returns:
        chosen: The images of each scan, and why they were chosen.
        left: The reason for each image that is left out.
    """
    echoes = sorted((image for image in group if "echo" in image.entities), key=lambda i: i.echo)
    chosen = [([i], f"is {i.canonical_suffix} in {i.datatype}/") for i in group if i not in echoes]
    numbers = [value for value in echo if value != "combined"]
    left = _reject_other_echoes(echoes, numbers)
    echoes = [image for image in echoes if image not in left]

    if not echoes:
        return chosen, left
    if "combined" in echo and chosen:
        whole = chosen[0][0][0].relative_path
        return chosen, left | dict.fromkeys(echoes, f"is an echo of {whole}, which goes first")
    if "combined" in echo and len(echoes) > 1:
        why = f"is combined with the others of echoes {_join_echoes(echoes)}, as requested"
        return [*chosen, (echoes, why)], left
    if numbers:
        return chosen + [([i], f"is echo {i.entities['echo']}, as requested") for i in echoes], left
    nearest, others = _choose_nearest_echo(echoes, sidecars)
    return [*chosen, nearest], others


def _reject_other_echoes(echoes: list[ImageFile], numbers: list[str]) -> dict[ImageFile, str]:
    if not numbers:
        return {}
    why = f"is one of the echoes {_join_echoes(echoes)}; echo {', '.join(numbers)} was requested"
    return {i: why for i in echoes if not is_requested("echo", i.entities["echo"], numbers)}


def _join_echoes(echoes: list[ImageFile]) -> str:
    return ", ".join(image.entities["echo"] for image in echoes)


def _choose_nearest_echo(
    echoes: list[ImageFile], sidecars: dict[ImageFile, Sidecars]
) -> tuple[Choice, dict[ImageFile, str]]:
    """Choose the echo nearest to 60 T·ms (field strength times echo time), the longer of equals."""
    if len(echoes) == 1:
        return (echoes, f"is echo {_join_echoes(echoes)}, the only magnitude echo"), {}
    weightings = {image: compute_weighting(sidecars[image].metadata) for image in echoes}
    distances = {
        i: abs(w - ECHO_WEIGHTING_T_MS) for i, (w, _) in weightings.items() if w is not None
    }
    if distances:
        best = min(reversed(distances), key=distances.get)
        rule = f"is nearest {ECHO_WEIGHTING_T_MS:.0f} T·ms"
    else:
        best, rule = echoes[-1], "is the last"

    descriptions = {
        image: f"is echo {image.entities['echo']} of {len(echoes)} ({words})"
        for image, (_, words) in weightings.items()
    }
    others = {
        i: f"{descriptions[i]}; echo {best.entities['echo']} {rule}" for i in echoes if i != best
    }
    return ([best], f"{descriptions[best]} and {rule}"), others


def _decide(
    together: list[ImageFile], why: str, faults: dict[ImageFile, str]
) -> Iterator[ScanDecision]:
    for image in together:
        if image in faults:
            yield exclude(image.relative_path, faults[image], unusable=True)
        elif faults:
            broken = ", ".join(sorted(other.relative_path for other in faults))
            yield exclude(image.relative_path, f"cannot be combined without {broken}")
        else:
            yield ScanDecision(image.relative_path, included=True, reason=why)


def _make_scan(together: list[ImageFile], why: str, sidecars: dict[ImageFile, Sidecars]) -> Scan:
    first, *further = together
    notes = list(dict.fromkeys(chain.from_iterable(sidecars[image].notes for image in together)))
    if "echo" in first.entities:
        notes.append(f"{first.path.name} {why}.")
    if first.canonical_suffix == "T2star":
        notes.append(f"{first.path.name}: T2star may name an image or a map; taken as an image.")
    dropped = [
        f"{name}-{value}" for name, value in first.pairs if name not in (*SCAN_ENTITIES, "desc")
    ]
    if dropped:
        notes.append(f"{first.path.name}: output names do not carry {', '.join(dropped)}.")
    return Scan(
        first.path,
        first.relative_path,
        first.datatype,
        first.canonical_suffix,
        tuple(pair for pair in first.output_entities if not (further and pair[0] == "echo")),
        first.entities.get("desc", ""),
        merge_echo_metadata([sidecars[image].metadata for image in together]),
        tuple(image.path for image in further),
        tuple(notes),
    )


def _find_fault(path: Path) -> str:
    """Find why a file cannot be used, reading no more than a pointer; empty if it can."""
    try:
        return _find_content_fault(path, path.stat())
    except FileNotFoundError:
        if path.is_symlink():
            return "is not fetched (broken git-annex or DataLad link)"
        return "is no longer there (the database is older than the dataset)"
    except OSError as error:
        return describe_read_error(error)


def _find_content_fault(path: Path, status: os.stat_result) -> str:
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would never return
        return "is not a regular file"
    if status.st_size == 0:
        return "is empty (0 bytes)"
    if not os.access(path, os.R_OK):
        return "cannot be read (permission denied)"
    if status.st_size < 2**15:  # a pointer of git-annex is never larger
        with path.open("rb") as opened:
            if ANNEX_POINTER.match(opened.read(256)):
                return "is not fetched (a git-annex or git-lfs pointer)"
    return ""
