"""The visits of a participant: its current results, in order of time, like with like."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path

import numpy as np
from scipy import ndimage

from bids_cmb.bids.attempts import describe_open_attempt
from bids_cmb.bids.entities import parse_entities
from bids_cmb.bids.paths import (
    get_figure_stem,
    list_dirs_of_participant,
    locate_brain,
    locate_lesion_table,
    locate_probability,
)
from bids_cmb.bids.tables import get_source, read_results, read_table
from bids_cmb.imaging.cropping import crop, find_bounds
from bids_cmb.imaging.loading import load_echoes
from bids_cmb.imaging.nifti import load_labels
from bids_cmb.imaging.volume import Volume

MARGIN_MM = 15.0  # around the brain that is kept of a scan
MIXED = "mixed"  # a series of scans that differ in contrast or acquisition
TIME_ENTITIES = ("ses", "run")  # what may differ between scans that are like each other
OWN_ENTITIES = ("space", "label", "desc")  # of the lesion mask, not of the scan


@dataclass(frozen=True, eq=False)
class Visit:
    """A scan of a participant with its current result.

    Attributes:
        mask: Its lesion mask.
        sidecar: Of the mask, the completion marker.
        images: The scan, or its echoes.
        entities: Of the scan, without ``sub``.
        contrast: ``desc`` and suffix of the scan, such as ``T2starw``.
        acquired: When, where the dataset tells; else None.
    """

    mask: Path
    sidecar: Mapping
    images: tuple[Path, ...]
    entities: Mapping[str, str]
    contrast: str
    acquired: datetime | None = None

    @property
    def session(self) -> str | None:
        """Label of the session, with ``ses-``."""
        label = self.entities.get("ses")
        return f"ses-{label}" if label else None

    @property
    def name(self) -> str:
        """What tells it from the other visits: session, run, and the other entities of the scan."""
        return "_".join([*(f"{k}-{v}" for k, v in self.entities.items()), self.contrast])

    @property
    def kind(self) -> tuple[str, tuple[tuple[str, str], ...]]:
        """What scans that are like each other share: contrast and entities, without time."""
        kept = (item for item in self.entities.items() if item[0] not in TIME_ENTITIES)
        return self.contrast, tuple(kept)

    @property
    def row(self) -> Mapping:
        """Its row in the table of scans."""
        return self.sidecar["Microbleeds"]

    @property
    def threshold(self) -> float:
        """The lowest probability of its lesions' voxels."""
        return float(self.row["threshold"])

    @property
    def weighting(self) -> float | None:
        """Field strength times echo time, T·ms; None if one is not known."""
        field_t, echo_ms = self.row.get("field_strength_t"), self.row.get("echo_time_ms")
        return float(field_t) * float(echo_ms) if field_t and echo_ms else None

    @cached_property
    def lesions(self) -> list[dict]:
        """Rows of its counted lesions."""
        rows = read_table(locate_lesion_table(self.mask))
        return [row for row in rows if row["included"] == "yes"]

    def find_lesion(self, index: int) -> dict:
        """Find the row of a counted lesion by its index."""
        return next(row for row in self.lesions if int(row["index"]) == index)


@dataclass(frozen=True, eq=False)
class VisitImages:
    """What was found in a scan, all on its grid and around its brain.

    Attributes:
        image: The scan.
        brain: Its brain mask, bool.
        probability: Of a microbleed.
        labels: Index of each lesion in its voxels.
    """

    image: Volume
    brain: Volume
    probability: Volume
    labels: Volume

    @cached_property
    def boxes(self) -> list[tuple[slice, ...]]:
        """The box of each lesion in the labels, by index from 1."""
        return ndimage.find_objects(self.labels.data)


@dataclass(frozen=True, eq=False)
class Series:
    """Scans of a participant that are followed, in order of time.

    Attributes:
        subject: Label, without ``sub-``.
        visits: Two or more.
        mixed: Whether they differ in contrast or acquisition.
    """

    subject: str
    visits: tuple[Visit, ...]
    mixed: bool = False

    @property
    def entities(self) -> dict[str, str]:
        """What all scans share besides the participant."""
        return {} if self.mixed else dict(self.visits[0].kind[1])

    @property
    def contrast(self) -> str:
        """The contrast of all scans, or `MIXED`."""
        return MIXED if self.mixed else self.visits[0].contrast


@dataclass
class VisitList:
    """Visits of a participant, and sentences on results that are left out."""

    visits: list[Visit] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def list_visits(folder: Path, raw: Path, subject: str) -> VisitList:
    """List the current results of a participant that can be followed, in order of time.

    Left out with a note are results that are not current, whose image is gone from the raw dataset,
    or that were written without probability map and brain mask (``--output-level minimal``).

    Args:
        folder: Output folder of the participant level.
        raw: The raw dataset.
        subject: Label, without ``sub-``.
    """
    listed = VisitList()
    times = _read_acquisition_times(raw, subject)
    for home in list_dirs_of_participant(folder / f"sub-{subject}"):
        for sidecar, row in read_results(home):
            visit = _make_visit(home / str(row["filename"]), sidecar, raw, times)
            problem = _find_problem(folder, visit)
            if problem:
                listed.notes.append(f"{visit.mask.name}: not followed over time: {problem}.")
            else:
                listed.visits.append(visit)
    listed.visits = sort_visits(listed.visits)
    return listed


def sort_visits(visits: Iterable[Visit]) -> list[Visit]:
    """Sort visits by time: as their labels go, but those with a date among themselves by date."""
    by_label = sorted(visits, key=_get_sort_key)
    dated = [visit for visit in by_label if visit.acquired]
    by_date = iter(sorted(dated, key=lambda visit: visit.acquired))
    return [next(by_date) if visit.acquired else visit for visit in by_label]


def _make_visit(
    mask: Path, sidecar: Mapping, raw: Path, times: Mapping[str, datetime]
) -> Visit:  # fmt: skip
    sources = [source.removeprefix("bids:raw:") for source in sidecar.get("Sources", [])]
    sources = [source for source in sources if "_part-phase_" not in source]
    entities = parse_entities(get_figure_stem(mask))
    contrast = entities.get("desc", "")
    scan_entities = {
        key: value for key, value in entities.items() if key not in ("sub", *OWN_ENTITIES)
    }
    acquired = times.get(sources[0]) if sources else None
    session = scan_entities.get("ses")
    if acquired is None and session:
        acquired = times.get(f"ses-{session}")
    images = tuple(raw / source for source in sources)
    return Visit(mask, sidecar, images, scan_entities, contrast, acquired)


def _find_problem(folder: Path, visit: Visit) -> str:
    """Find why a result cannot be followed, as the end of a sentence; empty if it can."""
    open_attempt = describe_open_attempt(folder, get_source(dict(visit.sidecar)))
    if open_attempt:
        return open_attempt.rstrip(".")
    if not visit.images or not all(path.is_file() for path in visit.images):
        return "its image is not in the dataset"
    if not (locate_probability(visit.mask).is_file() and locate_brain(visit.mask).is_file()):
        return "it was written without probability map and brain mask (--output-level minimal)"
    return ""


def load_images(visit: Visit) -> VisitImages:
    """Load what was found in a scan, cropped to its brain and `MARGIN_MM` around it.

    Raises:
        ValueError: If a file cannot be used, or does not lie on the grid of the scan.
        OSError: If one cannot be read.
    """
    image, _ = load_echoes(visit.images)
    labels = locate_lesion_table(visit.mask).with_suffix(".nii.gz")
    files = [locate_brain(visit.mask), locate_probability(visit.mask), labels]
    volumes = [load_labels(path) for path in files]
    for path, volume in zip(files, volumes, strict=True):
        if not volume.shares_grid(image, tolerance=1e-2):
            raise ValueError(
                f"{path}: what was found in a scan must lie on its grid; found {volume.shape} "
                f"voxels, and {image.shape} in {visit.images[0].name}, or another affine."
            )
    brain, probability, labels = volumes
    brain = Volume(brain.data > 0, image.affine)
    if not brain.data.any():
        raise ValueError(f"{files[0]}: a brain mask must not be empty.")
    bounds = find_bounds(brain.data, np.ceil(MARGIN_MM / image.spacing).astype(int))
    parts = (Volume(volume.data, image.affine) for volume in (image, brain, probability, labels))
    cropped = [crop(part, *bounds) for part in parts]
    cropped[3] = replace(cropped[3], data=np.rint(cropped[3].data).astype(np.uint16))
    return VisitImages(*(Volume(np.ascontiguousarray(v.data), v.affine) for v in cropped))


def group_into_series(subject: str, visits: Sequence[Visit]) -> list[Series]:
    """Group the visits of a participant into series, like with like.

    Scans of one contrast and acquisition make a series. What is left makes one that is mixed: there
    lesions that were found in two scans are recognized, and none is new between two contrasts.

    Args:
        subject: Label, without ``sub-``.
        visits: In order of time.

    Returns:
        Series of two visits or more.
    """
    by_kind: dict[tuple, list[Visit]] = {}
    for visit in visits:
        by_kind.setdefault(visit.kind, []).append(visit)
    series = [Series(subject, tuple(group)) for group in by_kind.values() if len(group) > 1]
    single = {id(group[0]) for group in by_kind.values() if len(group) == 1}
    left = [visit for visit in visits if id(visit) in single]
    sessions = {visit.session for visit in left}
    if len(left) > 1 and (len(sessions) > 1 or sessions == {None}):
        series.append(Series(subject, tuple(left), mixed=True))
    return series


def _get_sort_key(visit: Visit) -> tuple:
    return tuple(_split_digits(visit.entities.get(name, "")) for name in TIME_ENTITIES)


def _split_digits(label: str) -> list[tuple[int, int, str]]:
    """Split a label into words and numbers, so that ses-2 comes before ses-10."""
    return [
        (0, int(part), "") if part.isdecimal() else (1, 0, part)
        for part in re.findall(r"\d+|\D+", label)
    ]


def _read_acquisition_times(raw: Path, subject: str) -> dict[str, datetime]:
    """Read when scans were acquired: by scan, relative to the raw dataset, and by session."""
    home = raw / f"sub-{subject}"
    times: dict[str, datetime] = {}
    sessions = home / f"sub-{subject}_sessions.tsv"
    _add_times(times, _read_rows(sessions), "session_id", "")
    for place in (home, *sorted(home.glob("ses-*"))):
        label = home.name if place == home else f"{home.name}_{place.name}"
        prefix = f"{place.relative_to(raw).as_posix()}/"
        _add_times(times, _read_rows(place / f"{label}_scans.tsv"), "filename", prefix)
    return times


def _read_rows(path: Path) -> list[dict[str, str | None]]:
    try:
        return read_table(path)
    except (OSError, ValueError):  # what cannot be read tells no time
        return []


def _add_times(times: dict[str, datetime], rows: Iterable[Mapping], key: str, prefix: str) -> None:
    for row in rows:
        name, text = row.get(key), row.get("acq_time")
        if name and text:
            try:
                times[f"{prefix}{name}"] = datetime.fromisoformat(text).replace(tzinfo=None)
            except ValueError:
                continue


def measure_interval_days(first: Visit, second: Visit) -> float | None:
    """Measure the days between two visits; None where the dataset does not tell."""
    if first.acquired is None or second.acquired is None:
        return None
    return round((second.acquired - first.acquired).total_seconds() / 86_400, 1)
