"""A scan of a BIDS dataset, and the decision whether to process a file."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bids_cmb.bids.entities import join_entities
from bids_cmb.bids.metadata import get_echo_time_s, get_field_strength_t

DATATYPES = ("anat", "swi")


@dataclass(frozen=True)
class Scan:
    """One image to process, or several echoes to combine.

    Attributes:
        path: The magnitude image; the first echo if several are combined.
        relative_path: The same from the root of the dataset, with ``/``.
        datatype: ``anat`` or ``swi``, the folder.
        suffix: In the letter case of BIDS (``swi`` also for ``SWI``); unknown ones as written.
        entities: (name, value) from the file name, in BIDS order, values as written; without
            ``echo`` if echoes are combined, and without ``desc``, since outputs have their own.
        desc: The label of the file's ``desc``, nearly always empty.
        metadata: From the sidecars, inheritance applied; EchoTime in s.
        more_echoes: Images to combine with ``path``; nearly always none.
        notes: A sentence for each thing that was decided or looks odd.
    """

    path: Path
    relative_path: str
    datatype: str
    suffix: str
    entities: tuple[tuple[str, str], ...]
    desc: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)
    more_echoes: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def subject(self) -> str:
        """The subject's label, without ``sub-``."""
        return dict(self.entities)["sub"]

    @property
    def session(self) -> str | None:
        """The session's label, without ``ses-``, if there are sessions."""
        return dict(self.entities).get("ses")

    @property
    def name(self) -> str:
        """Entities and suffix, unique in the dataset: ``sub-01_ses-1_acq-x_T2starw``."""
        return join_entities(self.entities, self.desc, self.suffix)

    @property
    def echo_time_s(self) -> float | None:
        """Echo time in s, if a sidecar has a possible one."""
        return get_echo_time_s(self.metadata)

    @property
    def field_strength_t(self) -> float | None:
        """Field strength in T, if a sidecar has a possible one."""
        return get_field_strength_t(self.metadata)


@dataclass(frozen=True)
class ScanDecision:
    """A decision whether to process a file that looks like a susceptibility image.

    Attributes:
        relative_path: From the root of the dataset, with ``/``.
        included: Whether it is processed.
        reason: Why it is included, or not.
        unusable: Whether it was requested and cannot be used (not fetched, empty, unreadable).
    """

    relative_path: str
    included: bool
    reason: str
    unusable: bool = False


def exclude(relative_path: str, reason: str, *, unusable: bool = False) -> ScanDecision:
    """Decide not to process a file."""
    return ScanDecision(relative_path, included=False, reason=reason, unusable=unusable)
