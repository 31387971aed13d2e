"""Records of reviews beside the figures of a scan, for its page.

Reviews lie where their readers keep them. The group level leaves what they come to with the scans,
so that a page that is written later still shows it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from bids_cmb.bids.markers import read_marker
from bids_cmb.bids.paths import locate_review_record
from bids_cmb.files import read_json, write_json
from bids_cmb.lesions.table import read_listed
from bids_cmb.review.merging import make_added_rows
from bids_cmb.review.reviews import Review, count_verdicts, merge_reviews


def update_records(derivatives: Path, reviews: Mapping[str, Sequence[Review]]) -> list[str]:
    """Write a record of every reviewed scan, and remove the others.

    Args:
        derivatives: The dataset that was reviewed.
        reviews: Of each scan, by its lesion mask, as `read_reviews` gives them; empty for none.

    Returns:
        Labels of the participants whose records changed, without ``sub-``.

    Raises:
        OSError: If a file cannot be read or written.
    """
    records = {
        locate_review_record(derivatives / mask): make_record(derivatives / mask, scan_reviews)
        for mask, scan_reviews in reviews.items()
    }
    gone = set(derivatives.glob("sub-*/figures/*_reviewed.json")) - records.keys()
    for path in gone:
        path.unlink(missing_ok=True)
    changed = {path for path, record in records.items() if read_json(path) != record}
    for path in changed:
        write_json(path, records[path])
    return sorted({path.name.partition("_")[0].removeprefix("sub-") for path in gone | changed})


def make_record(mask: Path, reviews: Sequence[Review]) -> dict[str, object]:
    """Make the record of a scan: its readers, their verdicts, and the lesions that they added."""
    rows = read_listed(mask)
    consensus = merge_reviews([int(row["index"]) for row in rows], reviews)
    return {
        "Result": identify_result(read_marker(_locate_marker(mask)) or {}),
        "Date": max(review.date for review in reviews),
        "Counts": count_verdicts(rows, consensus),
        "Verdicts": {str(index): verdict for index, verdict in consensus.verdicts.items()},
        "Added": make_added_rows(mask, consensus.added),
    }


def read_record(mask: Path) -> dict | None:
    """Read the record of a scan; None without one, or if it is of an earlier result."""
    record = read_json(locate_review_record(mask))
    if record is None:
        return None
    marker = read_marker(_locate_marker(mask)) or {}
    return record if record.get("Result") == identify_result(marker) else None


def identify_result(sidecar: Mapping) -> list[object]:
    """Identify the result that a sidecar describes."""
    provenance = sidecar.get("Provenance", {})
    return [provenance.get("Fingerprint"), provenance.get("Finished")]


def _locate_marker(mask: Path) -> Path:
    return mask.with_name(mask.name.replace(".nii.gz", ".json"))
