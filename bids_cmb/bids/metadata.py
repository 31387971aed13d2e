"""What the JSON files of a BIDS dataset say about an image, and what of it can be believed."""

import json
import os
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

ASSUMED_FIELD = 3.0  # T, where no sidecar says
DEEPEST = 20  # levels of objects and lists within a value; worker processes cannot pass on 500
SPINE = re.compile(  # in BodyPartExamined, in the languages of consoles; ä, ö, ü written out
    r"spin(e|al)|neck|hals|nacken|cervical|thoracic|lumbar|rueckenmark|ruckenmark|myelon|moelle|"
    r"wirbels|rachis|medul[ae]|columna|\b[hbl]ws\b"
)
HEAD = re.compile(r"head|brain|skull|kopf|schaedel|schadel|hirn|cereb|crani|encephal|tete")


@dataclass(frozen=True)
class Sidecars:
    """What the sidecars of one image say.

    Attributes:
        metadata: As written, but EchoTime in s where it was in ms, and without values that no
            JSON file can hold, such as NaN.
        notes: A sentence for each file or value that cannot be believed.
    """

    metadata: dict[str, Any]
    notes: tuple[str, ...]


def sidecar_reader(bids_dir: Path) -> Callable[[Path], Sidecars]:
    """A function from an image of the dataset to its `Sidecars`, by the inheritance principle.

    A file applies if it lies in the image's folder or above, has the image's suffix, and names no
    entity that the image's name does not have too. The deeper one wins; in one folder, the one
    that names more entities. Each folder is listed once, and each file read once.
    """
    jsons_in, read_object = cache(_jsons_in), cache(_read_object)

    def read(image_path: Path) -> Sidecars:
        words, suffix = _split(image_path.name.removesuffix(".gz").removesuffix(".nii"))
        metadata, notes = {}, []
        for folder in reversed([p for p in image_path.parents if p.is_relative_to(bids_dir)]):
            applying = [
                (len(named), path)
                for path, named, of in jsons_in(folder)
                if of == suffix and named <= words
            ]
            for _, path in sorted(applying):
                content, complaint = read_object(path)
                metadata |= content
                if complaint:
                    notes.append(f"{path.relative_to(bids_dir).as_posix()} {complaint}.")
        faults = {key: fault for key, value in metadata.items() if (fault := _fault(key, value))}
        for key, fault in faults.items():
            notes.append(f"{image_path.name}: {ascii(key)[1:-1]:.40} {fault} and was ignored.")
        metadata = {key: value for key, value in metadata.items() if key not in faults}
        notes += _oddities(image_path.name, metadata)
        return Sidecars(_in_seconds(metadata), tuple(notes))

    return read


def echo_time_s(metadata: dict[str, Any]) -> float | None:
    """Echo time in s, if there is one that can be."""
    return _within(metadata.get("EchoTime"), highest=1)


def field_strength_t(metadata: dict[str, Any]) -> float | None:
    """Field strength in T, if there is one that can be."""
    return _within(metadata.get("MagneticFieldStrength"), highest=25)


def weighting(metadata: dict) -> tuple[float | None, str]:
    """Field strength times echo time, T·ms, or None; and the same in words."""
    time = echo_time_s(metadata)
    strength = field_strength_t(metadata)
    if time is None:
        return None, "echo time unknown"
    value = 1000 * time * (strength or ASSUMED_FIELD)
    assumed = "" if strength else f", field strength unknown, {ASSUMED_FIELD:g} T assumed"
    return value, f"{value:.0f} T·ms{assumed}"


def of_spine(metadata: dict[str, Any]) -> str:
    """BodyPartExamined if it names the spine or the neck and no part of the head, else empty."""
    value = metadata.get("BodyPartExamined")
    if not isinstance(value, str):
        return ""
    words = re.sub(r"[\W_]+", " ", value.casefold())
    for letter, written in (("ä", "ae"), ("ö", "oe"), ("ü", "ue")):
        words = words.replace(letter, written)
    return value if SPINE.search(words) and not HEAD.search(words) else ""


def common(metadata: list[dict]) -> dict:
    """What the echoes agree on, and the mean of their echo times, which stands for them all."""
    first, *others = metadata
    shared = {k: v for k, v in first.items() if all(k in o and o[k] == v for o in others)}
    times = [echo_time_s(each) for each in metadata]
    if others and all(times):
        shared["EchoTime"] = sum(times) / len(times)
    return shared


def unreadable(error: OSError) -> str:
    """What the system says of a file that it will not read, as the end of a sentence."""
    return f"cannot be read ({(error.strerror or str(error)).lower()})"


def _split(stem: str) -> tuple[frozenset[str], str]:
    *words, suffix = stem.split("_")
    return frozenset(words), suffix


def _jsons_in(folder: Path) -> list[tuple[Path, frozenset[str], str]]:
    """Path, entities and suffix of each JSON file in a folder; none if it cannot be listed."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if entry.name.endswith(".json")]
    except OSError:
        return []
    return [(folder / name, *_split(name.removesuffix(".json"))) for name in names]


def _read_object(path: Path) -> tuple[dict[str, Any], str]:
    """A JSON object, or an empty one and what is wrong, as the end of a sentence."""
    try:
        if stat.S_ISFIFO(path.stat().st_mode):  # to open it would wait for ever
            return {}, "is not a regular file and is ignored"
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        return {}, "is not fetched (broken git-annex or DataLad link) and is ignored"
    except OSError as error:
        return {}, f"{unreadable(error)} and is ignored"
    except (ValueError, RecursionError):
        return {}, "is not valid JSON and is ignored"
    if not isinstance(content, dict):
        return {}, "is not a JSON object and is ignored"
    return content, ""


def _within(value: Any, *, highest: float) -> float | None:
    """The value as a number if it is one above 0 and not above ``highest``."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 < value <= highest else None  # also NaN


def _in_seconds(metadata: dict[str, Any]) -> dict[str, Any]:
    milliseconds = _milliseconds(metadata)
    return metadata if milliseconds is None else {**metadata, "EchoTime": milliseconds / 1000}


def _milliseconds(metadata: dict[str, Any]) -> float | None:
    """EchoTime, if it can only be in ms: no echo is read after a second."""
    value = _within(metadata.get("EchoTime"), highest=1000)
    return value if value is not None and value > 1 else None


def _oddities(name: str, metadata: dict[str, Any]) -> Iterator[str]:
    milliseconds = _milliseconds(metadata)
    if milliseconds is not None:
        yield (
            f"{name}: EchoTime {milliseconds:g} looks like ms, not s; "
            f"taken as {milliseconds / 1000:g} s."
        )
    for key, highest, unit in (("EchoTime", 1000, "s"), ("MagneticFieldStrength", 25, "T")):
        if key in metadata and _within(metadata[key], highest=highest) is None:
            most = 1 if unit == "s" else highest
            yield (
                f"{name}: {key} must be a number in {unit}, above 0 and up to {most}; found "
                f"{metadata[key]!r:.40}, which was ignored."
            )


def _fault(key: str, value: Any) -> str:
    """Why a value cannot be written to a sidecar of ours; empty if it can."""
    if not _is_shallow(value, DEEPEST):
        return f"is nested more than {DEEPEST} levels deep"
    try:
        json.dumps({key: value}, allow_nan=False, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return "holds half a character (a lone surrogate)"
    except ValueError:
        return "holds a number that is not finite"
    return ""


def _is_shallow(value: Any, levels: int) -> bool:
    parts = list(value.values()) if isinstance(value, dict) else value
    if not isinstance(parts, list):
        return True
    return levels > 0 and all(_is_shallow(part, levels - 1) for part in parts)
