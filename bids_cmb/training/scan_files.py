"""Training scans of a BIDS dataset, found with the files of their references."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bids_cmb.bids.description import DESC_LABELS
from bids_cmb.bids.entities import DERIVATIVE_ENTITIES, parse_entities
from bids_cmb.bids.filters import Query
from bids_cmb.bids.scan import Scan
from bids_cmb.bids.selection import find_scans
from bids_cmb.imaging.phase_files import find_phase_image
from bids_cmb.provenance import sha256


@dataclass(frozen=True)
class ScanFiles:
    """The files of one scan and of its reference; those that may be missing are None."""

    name: str
    image: Path
    lesions: Path | None
    mimics: Path | None
    structures: Path | None
    brain: Path | None

    @property
    def phase(self) -> Path | None:
        """The phase image beside the scan, searched for at each call."""
        return find_phase_image(self.image).path

    @property
    def subject(self) -> str:
        """``sub-`` and the label."""
        return self.name.split("_")[0]


def find_training_scans(data: Path, truth: Path | None = None) -> list[ScanFiles]:
    """Find every scan of a BIDS dataset that has reference labels.

    A reference is of a scan if their entities are equal. Of several it is the one whose ``desc`` is
    the scan's suffix (after the scan's own ``desc``, if it has one), as the app names its results.

    Args:
        data: The dataset.
        truth: The derivative dataset with the reference; ``data/derivatives/truth`` without.

    Raises:
        ValueError: If no scan of the dataset has a reference, a scan has several, one file fits
            several scans, or a file lies in the folder of another participant.
    """
    data = data.absolute()  # as the paths of scans are
    reference_dir = truth or data / "derivatives" / "truth"
    scans = find_scans(data, Query()).scans
    same_entities: dict[tuple, list[Scan]] = {}
    for scan in scans:
        same_entities.setdefault(scan.entities, []).append(scan)
    owners: dict[Path, Scan] = {}
    matched = []
    for scan in scans:
        folder = reference_dir / scan.path.parent.relative_to(data)
        paths = _match_files(scan, _ReferenceImages(folder, scan, same_entities[scan.entities]))
        if paths.lesions is None:
            continue
        for path in (paths.lesions, paths.mimics, paths.structures, paths.brain):
            if path is not None and owners.setdefault(path, scan) is not scan:
                other = owners[path]
                raise ValueError(
                    f"{path}: a file of the truth must be of one scan; found that it fits "
                    f"{other.name} and {scan.name} (desc-{other.desc}{other.suffix} or "
                    f"desc-{scan.desc}{scan.suffix} in its name would tell)."
                )
        matched.append(paths)
    if not matched:
        raise ValueError(
            f"{reference_dir}: a truth needs label maps of microbleeds (…seg-CMB…dseg or mask); "
            f"found none for any of {len(scans)} scans."
        )
    return matched


class _ReferenceImages:
    """The reference images that belong to one scan by their names."""

    def __init__(self, folder: Path, scan: Scan, same_entities: Sequence[Scan]):
        """List them; ``same_entities`` are scans of the same entities with other suffixes."""
        self.scan, self.description = scan, scan.desc + scan.suffix
        others = {item.desc + item.suffix for item in same_entities} | DESC_LABELS.keys()
        # Beside scans of a folder swi/, which is not in the standard, our derivatives have anat/.
        folders = dict.fromkeys((folder, folder.with_name("anat")))
        self.images = []
        for path in [path for item in folders for path in sorted(item.glob("sub-*.nii*"))]:
            named, suffix = parse_entities(path.name), path.name.partition(".")[0].split("_")[-1]
            if named.get("sub") != scan.subject:
                raise ValueError(
                    f"{path}: a truth must lie in the folder of its participant; found sub-"
                    f"{named.get('sub', '')} in its name and sub-{scan.subject} in that of the "
                    "folder."
                )
            app_entities = {key: named.pop(key) for key in DERIVATIVE_ENTITIES if key in named}
            in_scan_space = app_entities.get("space", "orig").lower() in (
                "orig",
                scan.suffix.lower(),
            )
            is_described = (
                app_entities.get("desc") == self.description
                or app_entities.get("desc") not in others
            )
            if in_scan_space and is_described and named == dict(scan.entities):
                self.images.append((path, app_entities, suffix))

    def find(self, key: str, label: str, suffixes: Sequence[str]) -> Path | None:
        """Find the image whose entity ``key`` begins with ``label``, by the first suffix any has.

        Raises:
            ValueError: If there are several, none of which says that it is of this scan alone.
        """
        for suffix in suffixes:
            fitting = [
                (path, app_entities)
                for path, app_entities, image_suffix in self.images
                if image_suffix == suffix and app_entities.get(key, "").startswith(label)
            ]
            described = [
                (path, app_entities)
                for path, app_entities in fitting
                if app_entities.get("desc") == self.description
            ]
            paths = [path for path, _ in described or fitting]
            if len(paths) > 1:
                raise ValueError(
                    f"{self.scan.name}: a scan needs one truth of {key}-{label}; found "
                    f"{len(paths)}: {' and '.join(path.name for path in paths[:3])}."
                )
            if paths:
                return paths[0]
        return None


def _match_files(scan: Scan, reference: _ReferenceImages) -> ScanFiles:
    stem = scan.path.name.split(".")[0].rsplit("_", 1)[0]
    maps = ("dseg", "mask")
    return ScanFiles(
        stem,
        scan.path,
        reference.find("seg", "CMB", maps) or reference.find("label", "CMB", maps[::-1]),
        reference.find("seg", "mimics", maps),
        reference.find("seg", "structures", maps),
        reference.find("label", "brain", maps[::-1]),
    )


def digest_files(paths: ScanFiles) -> dict[str, str]:
    """Compute the SHA-256 of each file of a scan and its reference, by role; not of the phase."""
    return {name: sha256(path) for name, path in vars(paths).items() if isinstance(path, Path)}
