"""Name the files and folders of the derivatives."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from glob import escape
from pathlib import Path

from bids_cmb.bids.entities import read_entities
from bids_cmb.bids.scan import Scan

MNI_SPACE = "MNI152NLin2009cAsym"
MARKER_ENDING = "_lesions.json"  # of the sidecar that is written last of a follow-up
LONGITUDINAL = "longitudinal"  # what the desc- labels of follow-ups begin with


@dataclass(frozen=True)
class Output:
    """The derivatives of one scan.

    Attributes:
        folder: The derivative dataset.
        scan: The scan that they are made from.
    """

    folder: Path
    scan: Scan

    @property
    def participant_dir(self) -> Path:
        """The participant's (and session's) folder."""
        entities = dict(self.scan.entities)
        home = self.folder / f"sub-{entities['sub']}"
        return home / f"ses-{entities['ses']}" if "ses" in entities else home

    def path(self, suffix: str, extension: str, **entities: str) -> Path:
        """Build the path of a result: the entities of the scan and of the result, in BIDS order.

        Args:
            suffix: ``mask``, ``dseg``, ``probseg`` or the suffix of the scan.
            extension: With its dot.
            **entities: Of the result; ``desc`` is the suffix of the scan unless it is given.
        """
        entities = {**dict(self.scan.entities), "desc": self.desc, **entities}
        parts = [f"{key}-{entities[key]}" for key in read_entities().values() if key in entities]
        # Always in anat/: the folder swi/ of some datasets is not in the standard.
        return self.participant_dir / "anat" / ("_".join([*parts, suffix]) + extension)

    @property
    def desc(self) -> str:
        """The suffix of the scan, after its ``desc`` label if it has one."""
        return self.scan.desc + self.scan.suffix

    def sources(self, phase: Path | None = None) -> list[str]:
        """List the images of the scan, and its phase image if that was used, as BIDS URIs."""
        home = Path(self.scan.relative_path).parent
        images = [self.scan.path, *self.scan.more_echoes, *([phase] if phase else [])]
        names = [path.name for path in images]
        return [f"bids:raw:{(home / name).as_posix()}" for name in names]

    def mask(self, extension: str = ".nii.gz") -> Path:
        """Return the path of the lesion mask, whose sidecar is the completion marker."""
        return self.path("mask", extension, space="orig", label="CMB")

    def labels(self, extension: str = ".nii.gz") -> Path:
        """Return the path of the lesion labels, and with ``.tsv`` of the lesion table."""
        return self.path("dseg", extension, space="orig", seg="CMB")

    def candidates(self, extension: str = ".nii.gz") -> Path:
        """Return the path of the labels of candidates, and with ``.tsv`` of their table."""
        return self.path("dseg", extension, space="orig", seg="candidates")

    def probability(self, extension: str = ".nii.gz") -> Path:
        """Return the path of the mean probability."""
        return self.path("probseg", extension, space="orig", label="CMB")

    def brain(self, extension: str = ".nii.gz") -> Path:
        """Return the path of the brain mask."""
        return self.path("mask", extension, space="orig", label="brain")

    def structures(self, extension: str = ".nii.gz") -> Path:
        """Return the path of the structures of the brain."""
        return self.path("dseg", extension, space="orig", seg="structures")

    def regions(self, extension: str = ".nii.gz") -> Path:
        """Return the path of the regions of MARS, and with ``.tsv`` of their names."""
        return self.path("dseg", extension, space="orig", seg="regions")

    def evidence(self, kind: str, extension: str = ".tsv") -> Path:
        """Return the path of a table of `tabulate_outputs`: ``boxes`` or ``gate``."""
        return self.path(kind, extension, space="orig")

    def to_mni(self) -> Path:
        """Return the path of the transform to MNI space."""
        parts = [f"{key}-{value}" for key, value in self.scan.entities]
        parts += [f"from-{self.scan.suffix}", f"to-{MNI_SPACE}", "mode-image"]
        parts += [f"desc-{self.scan.desc}"] if self.scan.desc else []
        return self.participant_dir / "anat" / "_".join([*parts, "xfm.txt"])

    def from_t1w(self) -> Path:
        """Return the path of the transform from the T1w image of a segmentation."""
        parts = [f"{key}-{value}" for key, value in self.scan.entities]
        parts += ["from-T1w", "to-orig", "mode-image", f"desc-{self.desc}", "xfm.txt"]
        return self.participant_dir / "anat" / "_".join(parts)

    @property
    def figures(self) -> Path:
        """The folder of the participant's pictures."""
        return locate_figures(self.folder, self.scan.subject)

    def preprocessed(self, extension: str = ".nii.gz") -> Path:
        """Return the path of the preprocessed scan."""
        return self.path(self.scan.suffix, extension, space="orig", desc=f"{self.scan.desc}preproc")


def locate_follow_up(
    folder: Path, subject: str, entities: Mapping[str, str], contrast: str
) -> Path:
    """Locate what the names of a follow-up's tables begin with, before ``_lesions.tsv`` and others.

    Args:
        folder: The derivative dataset.
        subject: Label, without ``sub-``.
        entities: That all followed scans share, without ``sub``.
        contrast: Of these scans.
    """
    known = {"sub": subject, **entities, "desc": f"{LONGITUDINAL}{contrast}"}
    parts = [f"{key}-{known[key]}" for key in read_entities().values() if key in known]
    return folder / f"sub-{subject}" / "anat" / "_".join(parts)


def list_follow_ups(folder: Path, subject: str) -> list[Path]:
    """List the markers of a participant's follow-ups, by name."""
    home = folder / f"sub-{subject}" / "anat"
    return sorted(home.glob(f"*_desc-{LONGITUDINAL}*{MARKER_ENDING}"))


def locate_follow_up_marker(stem: Path) -> Path:
    """Locate the marker of a follow-up, the sidecar of its first table, from `locate_follow_up`."""
    return stem.with_name(f"{stem.name}{MARKER_ENDING}")


def get_follow_up_stem(marker: Path) -> str:
    """Get what the names of a follow-up's tables begin with, from its marker."""
    return marker.name.removesuffix(MARKER_ENDING)


def locate_lesion_table(mask: Path) -> Path:
    """Locate the lesion table of a lesion mask."""
    name = mask.name.replace("_label-CMB_", "_seg-CMB_")
    return mask.with_name(name.replace("_mask.nii.gz", "_dseg.tsv"))


def locate_brain(mask: Path) -> Path:
    """Locate the brain mask of a lesion mask."""
    return mask.with_name(mask.name.replace("_label-CMB_", "_label-brain_"))


def locate_probability(mask: Path) -> Path:
    """Locate the probability map of a lesion mask."""
    return mask.with_name(mask.name.replace("_mask.nii.gz", "_probseg.nii.gz"))


def locate_candidate_table(mask: Path) -> Path:
    """Locate the table of candidates of a lesion mask; a scan may have none."""
    table = locate_lesion_table(mask)
    return table.with_name(table.name.replace("_seg-CMB_", "_seg-candidates_"))


def get_figure_stem(mask: Path) -> str:
    """Get what the names of a scan's figures begin with, from its lesion mask."""
    return mask.name.removesuffix("_mask.nii.gz").replace("_label-CMB", "")


def list_session_pages(folder: Path, subject: str) -> list[Path]:
    """List the pages of a participant's sessions, also of sessions that are gone."""
    stem = f"sub-{escape(subject)}"
    return [*folder.glob(f"{stem}_ses-*.html"), *folder.glob(f"{stem}_other.html")]


def locate_figures(folder: Path, subject: str) -> Path:
    """Locate the folder of a participant's figures in a derivative dataset."""
    return folder / f"sub-{subject}" / "figures"


def locate_review_record(mask: Path) -> Path:
    """Locate the record of the review of a scan, beside its figures, from its lesion mask."""
    subject = mask.name.partition("_")[0].removeprefix("sub-")
    participant = next(parent for parent in mask.parents if parent.name == f"sub-{subject}")
    return locate_figures(participant.parent, subject) / f"{get_figure_stem(mask)}_reviewed.json"


def locate_scans_table(home: Path) -> Path:
    """Locate the ``_scans.tsv`` of a participant's (and session's) folder."""
    label = f"{home.parent.name}_{home.name}" if home.name.startswith("ses-") else home.name
    return home / f"{label}_scans.tsv"


def list_participant_dirs(folder: Path) -> Iterator[Path]:
    """List every participant's (and session's) folder of a derivative dataset, by name."""
    for subject in sorted(folder.glob("sub-*")):
        yield from list_dirs_of_participant(subject)


def list_dirs_of_participant(subject: Path) -> Iterator[Path]:
    """List a participant's folder and those of its sessions, by name; none if it is missing."""
    if subject.is_dir():
        yield subject
        yield from sorted(path for path in subject.glob("ses-*") if path.is_dir())
