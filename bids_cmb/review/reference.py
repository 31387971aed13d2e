"""The corridor of the readers: what they said becomes a truth to learn from and to be held against.

Accepted lesions and missed ones are true, what is unsure is marked possible, and what was rejected
stands among the mimics. A missed lesion was marked by a point and is grown to a mask by the rule of
`lesions.region_growing`.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy import ndimage

from bids_cmb.bids.paths import locate_lesion_table
from bids_cmb.bids.tables import BIDS_VERSION, LESION_INDEX, read_columns, read_table, write_table
from bids_cmb.files import read_json, write_json
from bids_cmb.imaging.volume import Volume, load, load_labels, save
from bids_cmb.lesions.region_growing import grow_region
from bids_cmb.provenance import generated_by
from bids_cmb.review.reviews import Consensus, Review, is_complete, merge_reviews, read_reviews

REJECTED = "rejected"
MIMICS = ("index", "name", "kind", "x_mm", "y_mm", "z_mm")
ABOUT = {"SpatialReference": "orig", "Manual": True}


def write_truth(
    found: Path, raw: Path, reviews: Path, folder: Path, *, say: Callable[[str], None]
) -> int:
    """Write the truth of every scan that was reviewed completely, as a derivative dataset.

    A scan is reviewed completely if each of its counted lesions has a verdict, or a reader says
    so; of others nobody knows what is missing, and they are skipped.

    Args:
        found: The derivative dataset that was reviewed.
        raw: The dataset it was made from.
        reviews: Folder of the reviews.
        folder: Where to; files have the names they have in ``found``.
        say: Told of each scan that is skipped.

    Returns:
        How many scans were written.

    Raises:
        ValueError: If a review cannot be used, or no scan was reviewed completely.
        OSError: If a file cannot be read or written.
    """
    written = 0
    for mask, own in read_reviews(reviews, found).items():
        rows = read_table(locate_lesion_table(found / mask))
        if not any(is_complete(one, rows) for one in own):
            say(f"{mask}: skipped; no reader gave every lesion a verdict or marked it complete.")
            continue
        _write_scan(found, raw, mask, own, folder)
        written += 1
    if not written:
        raise ValueError(
            f"{reviews}: a reference needs a scan that was reviewed completely; found none."
        )
    description = {
        "Name": "Truth from reviews of bids_cmb's results",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": generated_by(),
    }
    write_json(folder / "dataset_description.json", description)
    return written


def _write_scan(found: Path, raw: Path, mask: str, reviews: Sequence[Review], folder: Path) -> None:
    table = locate_lesion_table(found / mask)
    rows = {int(row["index"]): row for row in read_table(table)}
    consensus = merge_reviews(rows, reviews)
    image = _image(found / mask, raw)
    stored = load_labels(table.with_suffix(".nii.gz"))
    lesions, mimics, said = _divided(stored, rows, consensus)
    for point, sure in _points(consensus):
        try:
            grown = grow_region(image, point)
        except ValueError as error:
            raise ValueError(f"{mask}: {error}") from error
        grown &= lesions == 0
        if grown.any():
            index = len(said) + 1
            lesions[grown] = index
            said.append(_new_row(index, Volume(grown, image.affine), sure=sure))
    place = locate_lesion_table(folder / mask)
    brain = (found / mask).with_name(Path(mask).name.replace("_label-CMB_", "_label-brain_"))
    if brain.is_file():
        save(load_labels(brain), place.with_name(brain.name), dtype=np.uint8)
        write_json(place.with_name(f"{brain.name[:-7]}.json"), {"Type": "Brain", **ABOUT})
    save(Volume(mimics, image.affine), _mimics(place, ".nii.gz"), dtype=np.uint16)
    kinds = [
        {**{key: row.get(key) for key in MIMICS}, "kind": REJECTED}
        for index, row in rows.items()
        if consensus.verdicts[index] == "reject"
    ]
    write_table(_mimics(place, ".tsv"), MIMICS, kinds)
    write_json(_mimics(place, ".json"), {"Description": "Rejected by the readers.", **ABOUT})
    write_table(place, read_columns("lesion"), said)
    about = {"Description": "True microbleeds, by review.", "Readers": list(consensus.readers)}
    write_json(place.with_suffix(".json"), {**about, **ABOUT, **read_columns("lesion")})
    save(Volume(lesions, image.affine), place.with_suffix(".nii.gz"), dtype=np.uint16)


def _mimics(table: Path, extension: str) -> Path:
    return table.with_name(table.name.replace("_seg-CMB_", "_seg-mimics_")).with_suffix(extension)


def _image(mask: Path, raw: Path) -> Volume:
    """The scan that a result was made from; of several echoes the first."""
    sidecar = read_json(mask.with_name(f"{mask.name[:-7]}.json")) or {}
    source = str((sidecar.get("Sources") or [""])[0]).removeprefix("bids:raw:")
    path = raw / source
    if not source or not path.is_file():
        raise ValueError(f"{mask.name}: its scan must lie in {raw}; found no {source or 'source'}.")
    return load(path)[0]


def _divided(
    stored: Volume, rows: Mapping[int, dict], consensus: Consensus
) -> tuple[np.ndarray, np.ndarray, list[dict]]:
    """Labels of what is true or unsure, those of what is not, and a row for each of the former."""
    lesions, mimics = (np.zeros(stored.shape, np.uint16) for _ in range(2))
    said: list[dict] = []
    for old, row in rows.items():
        own = np.rint(stored.data) == old
        if consensus.verdicts[old] == "reject":
            mimics[own] = old
            continue
        index, sure = len(said) + 1, consensus.verdicts[old] == "accept"
        lesions[own] = index
        new = {"index": index, "name": f"CMB{index:03d}", **_certain(sure=sure)}
        said.append({**{key: row.get(key) for key in read_columns("lesion")}, **new})
    return lesions, mimics, said


def _points(consensus: Consensus) -> list[tuple[np.ndarray, bool]]:
    """Places of lesions that were missed, and whether the readers are sure."""
    return [(point, True) for point in consensus.added] + [
        (point, False) for point in consensus.doubtful
    ]


def _certain(*, sure: bool) -> dict[str, str]:
    return {
        "certainty": "definite" if sure else "possible",
        "included": "yes" if sure else "no",
    }


def _new_row(index: int, grown: Volume, *, sure: bool) -> dict[str, object]:
    centre = grown.world(np.array(ndimage.center_of_mass(grown.data)))
    volume = float(grown.data.sum()) * grown.voxel_volume
    return {
        **dict.fromkeys(read_columns("lesion")),
        "index": index,
        "name": f"CMB{index:03d}",
        "mapping": LESION_INDEX,
        **{f"{axis}_mm": round(float(x), 2) for axis, x in zip("xyz", centre, strict=True)},
        "volume_mm3": round(volume, 3),
        "diameter_mm": round(float(np.cbrt(6 * volume / np.pi)), 2),
        **_certain(sure=sure),
    }
