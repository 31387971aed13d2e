"""Reference from reviews: labels and tables for training and evaluation.

Accepted and missed lesions are definite, unsure ones possible, and rejected ones are mimics;
candidates that pages show as worth a look likewise, those without a verdict are left out. A
missed lesion was marked by a point and is grown to a mask by `lesions.region_growing`.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy import ndimage

from bids_cmb.bids.description import write_description
from bids_cmb.bids.paths import locate_brain, locate_candidate_table, locate_lesion_table
from bids_cmb.bids.tables import LESION_INDEX, read_columns, write_table
from bids_cmb.files import read_json, write_json
from bids_cmb.imaging.nifti import load, load_labels, save
from bids_cmb.imaging.volume import Volume
from bids_cmb.lesions.region_growing import grow_region
from bids_cmb.lesions.table import is_candidate, read_listed
from bids_cmb.review.reviews import Consensus, Review, is_complete, merge_reviews, read_reviews

REJECTED = "rejected"
MIMIC_COLUMNS = ("index", "name", "kind", "x_mm", "y_mm", "z_mm")
MANUAL_METADATA = {"SpatialReference": "orig", "Manual": True}


def write_reference(
    derivatives: Path, raw: Path, reviews: Path, folder: Path, *, log: Callable[[str], None]
) -> int:
    """Write a reference for every scan that was reviewed completely, as a derivative dataset.

    A scan is reviewed completely if each of its counted lesions has a verdict, or a reader marked
    it complete. Others are skipped: what they lack is not known.

    Args:
        derivatives: The dataset that was reviewed.
        raw: The dataset it was made from.
        reviews: Folder of the reviews.
        folder: To write; files have the same names as in ``derivatives``.
        log: Called with a sentence on each scan that is skipped.

    Returns:
        Number of scans written.

    Raises:
        ValueError: If a review cannot be used, or no scan was reviewed completely.
        OSError: If a file cannot be read or written.
    """
    written = 0
    for mask, scan_reviews in read_reviews(reviews, derivatives).items():
        rows = read_listed(derivatives / mask)
        if not any(is_complete(review, rows) for review in scan_reviews):
            log(f"{mask}: skipped; no reader gave every lesion a verdict or marked it complete.")
            continue
        _write_scan(derivatives, raw, mask, scan_reviews, folder)
        written += 1
    if not written:
        raise ValueError(
            f"{reviews}: a reference needs a scan that was reviewed completely; found none."
        )
    write_description(folder, "Truth from reviews of bids_cmb's results")
    return written


def _write_scan(
    derivatives: Path, raw: Path, mask: str, reviews: Sequence[Review], folder: Path
) -> None:
    rows = {int(row["index"]): row for row in read_listed(derivatives / mask)}
    consensus = merge_reviews(rows, reviews)
    image = _load_image(derivatives / mask, raw)
    stored = _load_listed_labels(derivatives / mask)
    lesions, mimics, lesion_rows = _divide_lesions(stored, rows, consensus)
    for point, sure in _list_missed(consensus):
        try:
            grown = grow_region(image, point)
        except ValueError as error:
            raise ValueError(f"{mask}: {error}") from error
        grown &= lesions == 0
        if grown.any():
            index = len(lesion_rows) + 1
            lesions[grown] = index
            lesion_rows.append(_make_row(index, Volume(grown, image.affine), sure=sure))
    path = locate_lesion_table(folder / mask)
    brain = locate_brain(derivatives / mask)
    if brain.is_file():
        save(load_labels(brain), path.with_name(brain.name), dtype=np.uint8)
        write_json(path.with_name(f"{brain.name[:-7]}.json"), {"Type": "Brain", **MANUAL_METADATA})
    save(Volume(mimics, image.affine), _mimic_path(path, ".nii.gz"), dtype=np.uint16)
    mimic_rows = [
        {**{key: row.get(key) for key in MIMIC_COLUMNS}, "kind": REJECTED}
        for index, row in rows.items()
        if consensus.verdicts[index] == "reject"
    ]
    write_table(_mimic_path(path, ".tsv"), MIMIC_COLUMNS, mimic_rows)
    write_json(
        _mimic_path(path, ".json"), {"Description": "Rejected by the readers.", **MANUAL_METADATA}
    )
    write_table(path, read_columns("lesion"), lesion_rows)
    metadata = {"Description": "True microbleeds, by review.", "Readers": list(consensus.readers)}
    write_json(path.with_suffix(".json"), {**metadata, **MANUAL_METADATA, **read_columns("lesion")})
    save(Volume(lesions, image.affine), path.with_suffix(".nii.gz"), dtype=np.uint16)


def _mimic_path(table: Path, extension: str) -> Path:
    """Name a file of the rejected lesions."""
    return table.with_name(table.name.replace("_seg-CMB_", "_seg-mimics_")).with_suffix(extension)


def _load_image(mask: Path, raw: Path) -> Volume:
    """Load the scan that a result was made from; of several echoes the first."""
    sidecar = read_json(mask.with_name(f"{mask.name[:-7]}.json")) or {}
    source = str((sidecar.get("Sources") or [""])[0]).removeprefix("bids:raw:")
    path = raw / source
    if not source or not path.is_file():
        raise ValueError(f"{mask.name}: its scan must lie in {raw}; found no {source or 'source'}.")
    return load(path)[0]


def _load_listed_labels(mask: Path) -> Volume:
    """Load the labels of a scan's lesions and candidates, which share no voxel and no index."""
    labels = load_labels(locate_lesion_table(mask).with_suffix(".nii.gz"))
    candidates = locate_candidate_table(mask).with_suffix(".nii.gz")
    if not candidates.is_file():
        return labels
    return Volume(np.maximum(labels.data, load_labels(candidates).data), labels.affine)


def _divide_lesions(
    stored: Volume, rows: Mapping[int, dict], consensus: Consensus
) -> tuple[np.ndarray, np.ndarray, list[dict]]:
    """Divide detected lesions into labels of true or unsure ones, with their rows, and mimics.

    Candidates without a verdict are neither: whoever reviewed the scan let them pass.
    """
    lesions, mimics = (np.zeros(stored.shape, np.uint16) for _ in range(2))
    lesion_rows: list[dict] = []
    for old, row in rows.items():
        inside = np.rint(stored.data) == old
        if consensus.verdicts[old] == "reject":
            mimics[inside] = old
            continue
        if is_candidate(row) and consensus.verdicts[old] == "not_reviewed":
            continue
        index, sure = len(lesion_rows) + 1, consensus.verdicts[old] == "accept"
        lesions[inside] = index
        new = {"index": index, "name": f"CMB{index:03d}", **_grade(sure=sure)}
        lesion_rows.append({**{key: row.get(key) for key in read_columns("lesion")}, **new})
    return lesions, mimics, lesion_rows


def _list_missed(consensus: Consensus) -> list[tuple[np.ndarray, bool]]:
    """List the positions of missed lesions, and whether the readers are sure of them."""
    return [(point, True) for point in consensus.added] + [
        (point, False) for point in consensus.doubtful
    ]


def _grade(*, sure: bool) -> dict[str, str]:
    return {
        "certainty": "definite" if sure else "possible",
        "included": "yes" if sure else "no",
    }


def _make_row(index: int, grown: Volume, *, sure: bool) -> dict[str, object]:
    centre = grown.world(np.array(ndimage.center_of_mass(grown.data)))
    volume = float(grown.data.sum()) * grown.voxel_volume
    return {
        **dict.fromkeys(read_columns("lesion")),
        "index": index,
        "name": f"CMB{index:03d}",
        "mapping": LESION_INDEX,
        **{f"{axis}_mm": round(float(x), 2) for axis, x in zip("xyz", centre, strict=True)},
        "volume_mm3": round(volume, 3),
        "equivalent_diameter_mm": round(float(np.cbrt(6 * volume / np.pi)), 2),
        **_grade(sure=sure),
    }
