"""Read the sidecars of an image by the inheritance principle, and check their values."""

import json
import os
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

ASSUMED_FIELD_T = 3.0  # where no sidecar gives one
# Levels of objects and lists within a value; worker processes cannot pass on 500
MAX_VALUE_LEVELS = 20
SPINE_WORDS = re.compile(  # in BodyPartExamined, in the languages of consoles; ä, ö, ü written out
    r"spin(e|al)|neck|hals|nacken|cervical|thoracic|lumbar|rueckenmark|ruckenmark|myelon|moelle|"
    r"wirbels|rachis|medul[ae]|columna|\b[hbl]ws\b"
)
MAGNITUDE_TYPES = {"M", "MAGNITUDE", "M_FFE", "M_SE"}  # in ImageType, as scanners write it
OTHER_TYPES = (
    ({"P", "PHASE", "PHASE MAP", "PHASE_MAP"}, "a phase image"),
    ({"R", "REAL", "I", "IMAGINARY"}, "a real or imaginary part"),
)
PROJECTION_TYPES = {"MNIP", "MINIP", "MIN IP", "MIN_IP", "MIP"}
HEAD_WORDS = re.compile(r"head|brain|skull|kopf|schaedel|schadel|hirn|cereb|crani|encephal|tete")


@dataclass(frozen=True)
class Sidecars:
    """The metadata of one image.

    Attributes:
        metadata: As in the sidecars, but EchoTime in s where it was in ms, and without values that
            no JSON file can hold, such as NaN.
        notes: A sentence for each file or value that cannot be right.
    """

    metadata: dict[str, Any]
    notes: tuple[str, ...]


def make_sidecar_reader(bids_dir: Path) -> Callable[[Path], Sidecars]:
    """Make a function from an image of the dataset to its `Sidecars`, by the inheritance principle.

    A file applies if it lies in the image's folder or above, has the image's suffix, and names no
    entity that the image's name does not have too. The deeper one wins; in one folder, the one
    that names more entities. Each folder is listed once, and each file read once.
    """
    list_json_files, read_object = cache(_list_json_files), cache(_read_object)

    def read(image_path: Path) -> Sidecars:
        words, suffix = _split_stem(image_path.name.removesuffix(".gz").removesuffix(".nii"))
        metadata, notes = {}, []
        for folder in reversed([p for p in image_path.parents if p.is_relative_to(bids_dir)]):
            applying = [
                (len(named), path)
                for path, named, file_suffix in list_json_files(folder)
                if file_suffix == suffix and named <= words
            ]
            for _, path in sorted(applying):
                content, fault = read_object(path)
                metadata |= content
                if fault:
                    notes.append(f"{path.relative_to(bids_dir).as_posix()} {fault}.")
        faults = {
            key: fault for key, value in metadata.items() if (fault := _find_fault(key, value))
        }
        for key, fault in faults.items():
            notes.append(f"{image_path.name}: {ascii(key)[1:-1]:.40} {fault} and was ignored.")
        metadata = {key: value for key, value in metadata.items() if key not in faults}
        notes += _find_oddities(image_path.name, metadata)
        return Sidecars(_convert_to_seconds(metadata), tuple(notes))

    return read


def get_echo_time_s(metadata: dict[str, Any]) -> float | None:
    """Get the echo time in s, if there is a possible one."""
    return _parse_positive(metadata.get("EchoTime"), highest=1)


def get_field_strength_t(metadata: dict[str, Any]) -> float | None:
    """Get the field strength in T, if there is a possible one."""
    return _parse_positive(metadata.get("MagneticFieldStrength"), highest=25)


def compute_weighting(metadata: dict) -> tuple[float | None, str]:
    """Compute field strength times echo time, T·ms, or None; and the same in words."""
    time = get_echo_time_s(metadata)
    strength = get_field_strength_t(metadata)
    if time is None:
        return None, "echo time unknown"
    value = 1000 * time * (strength or ASSUMED_FIELD_T)
    assumed = "" if strength else f", field strength unknown, {ASSUMED_FIELD_T:g} T assumed"
    return value, f"{value:.0f} T·ms{assumed}"


def get_spinal_body_part(metadata: dict[str, Any]) -> str:
    """Get BodyPartExamined if it names the spine or neck and no part of the head, else empty."""
    value = metadata.get("BodyPartExamined")
    if not isinstance(value, str):
        return ""
    words = re.sub(r"[\W_]+", " ", value.casefold())
    for letter, written in (("ä", "ae"), ("ö", "oe"), ("ü", "ue")):
        words = words.replace(letter, written)
    return value if SPINE_WORDS.search(words) and not HEAD_WORDS.search(words) else ""


def find_other_image_type(metadata: dict[str, Any]) -> str:
    """Find in ImageType what an image is instead of a magnitude, and the words that say so.

    Converters add words to those of the scanner: an image that is called a magnitude, too, stays,
    unless it is a projection, which is one of magnitudes. Empty for what may be a magnitude.
    """
    value = metadata.get("ImageType")
    listed = value if isinstance(value, list) else [value]
    words = {word.strip().upper() for word in listed if isinstance(word, str)}
    kinds = [(PROJECTION_TYPES, "an intensity projection")]
    kinds += [] if words & MAGNITUDE_TYPES else OTHER_TYPES
    telling = ((what, ", ".join(sorted(words & types))) for types, what in kinds)
    return next((f"{what} (ImageType {named})" for what, named in telling if named), "")


def merge_echo_metadata(metadata: list[dict]) -> dict:
    """Merge the metadata of echoes: what they agree on, and the mean of their echo times."""
    first, *others = metadata
    shared = {k: v for k, v in first.items() if all(k in o and o[k] == v for o in others)}
    times = [get_echo_time_s(each) for each in metadata]
    if others and all(times):
        shared["EchoTime"] = sum(times) / len(times)
    return shared


def describe_read_error(error: OSError) -> str:
    """Describe why the system cannot read a file, as the end of a sentence."""
    return f"cannot be read ({(error.strerror or str(error)).lower()})"


def _split_stem(stem: str) -> tuple[frozenset[str], str]:
    *words, suffix = stem.split("_")
    return frozenset(words), suffix


def _list_json_files(folder: Path) -> list[tuple[Path, frozenset[str], str]]:
    """List path, entities and suffix of each JSON file in a folder; none if it cannot be listed."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if entry.name.endswith(".json")]
    except OSError:
        return []
    return [(folder / name, *_split_stem(name.removesuffix(".json"))) for name in names]


def _read_object(path: Path) -> tuple[dict[str, Any], str]:
    """Read a JSON object, and say what is wrong with it as the end of a sentence (else empty)."""
    try:
        if stat.S_ISFIFO(path.stat().st_mode):  # opening it would never return
            return {}, "is not a regular file and is ignored"
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        return {}, "is not fetched (broken git-annex or DataLad link) and is ignored"
    except OSError as error:
        return {}, f"{describe_read_error(error)} and is ignored"
    except (ValueError, RecursionError):
        return {}, "is not valid JSON and is ignored"
    if not isinstance(content, dict):
        return {}, "is not a JSON object and is ignored"
    return content, ""


def _parse_positive(value: Any, *, highest: float) -> float | None:
    """Return the value as a number if it is one above 0 and not above ``highest``."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 < value <= highest else None  # also NaN


def _convert_to_seconds(metadata: dict[str, Any]) -> dict[str, Any]:
    milliseconds = _get_milliseconds(metadata)
    return metadata if milliseconds is None else {**metadata, "EchoTime": milliseconds / 1000}


def _get_milliseconds(metadata: dict[str, Any]) -> float | None:
    """Get EchoTime if it can only be in ms: no echo time is longer than a second."""
    value = _parse_positive(metadata.get("EchoTime"), highest=1000)
    return value if value is not None and value > 1 else None


def _find_oddities(name: str, metadata: dict[str, Any]) -> Iterator[str]:
    milliseconds = _get_milliseconds(metadata)
    if milliseconds is not None:
        yield (
            f"{name}: EchoTime {milliseconds:g} looks like ms, not s; "
            f"taken as {milliseconds / 1000:g} s."
        )
    for key, highest, unit in (("EchoTime", 1000, "s"), ("MagneticFieldStrength", 25, "T")):
        if key in metadata and _parse_positive(metadata[key], highest=highest) is None:
            most = 1 if unit == "s" else highest
            yield (
                f"{name}: {key} must be a number in {unit}, above 0 and up to {most}; found "
                f"{metadata[key]!r:.40}, which was ignored."
            )


def _find_fault(key: str, value: Any) -> str:
    """Find why a value cannot be written to a sidecar of the app; empty if it can."""
    if not _is_shallow(value, MAX_VALUE_LEVELS):
        return f"is nested more than {MAX_VALUE_LEVELS} levels deep"
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
