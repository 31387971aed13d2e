"""The group's table of lesions over time, before and after review."""

import numpy as np
import pytest

from bids_cmb.bids.tables import write_table
from bids_cmb.files import write_json
from bids_cmb.review.reviews import Review
from bids_cmb.workflow.group_longitudinal import describe_columns, make_group_pairs

STEM = "sub-01/ses-{0}/anat/sub-01_ses-{0}_space-orig_"
MASKS = [f"{STEM.format(n)}label-CMB_desc-T2starw_mask.nii.gz" for n in (1, 2)]


@pytest.fixture
def folder(tmp_path):
    """One participant with two new lesions, 1 and 3, in its second session."""
    for number, mask in enumerate(MASKS, start=1):
        marker = {"Provenance": {"Finished": "now"}, "Microbleeds": {"n_cmb": 3}}
        write_json(tmp_path / mask.replace(".nii.gz", ".json"), marker)
        rows = [{"index": n, "included": "yes", "certainty": "definite"} for n in (1, 2, 3)]
        write_table(tmp_path / f"{STEM.format(number)}seg-CMB_desc-T2starw_dseg.tsv", rows[0], rows)
    stem = tmp_path / "sub-01/anat/sub-01_desc-longitudinalT2starw"
    visits = [{"Mask": mask, "Finished": "now"} for mask in MASKS]
    write_json(stem.with_name(f"{stem.name}_lesions.json"), {"Visits": visits})
    pair = {"participant_id": "sub-01", "filename_1": MASKS[0], "filename_2": MASKS[1],
            "consecutive": "yes", "n_new": 2}  # fmt: skip
    pairs = [pair, {**pair, "consecutive": "no"}]
    write_table(stem.with_name(f"{stem.name}_pairs.tsv"), pair, pairs)
    rows = [{"filename": MASKS[1], "index": n, "change": c}
            for n, c in ((1, "new"), (2, "persistent"), (3, "new"))]  # fmt: skip
    write_table(stem.with_name(f"{stem.name}_observations.tsv"), rows[0], rows)
    return tmp_path


def review(folder, **verdicts):
    given = {int(index[1:]): verdict for index, verdict in verdicts.items()}
    points = np.zeros((0, 3))
    return Review("A", MASKS[1], given, {}, points, complete=False, date="", file=folder)


def test_consecutive_visits_have_a_row(folder):
    [row] = make_group_pairs(folder)
    assert (row["participant_id"], row["n_new"]) == ("sub-01", "2")
    assert "n_new_reviewed" not in row


@pytest.mark.parametrize(
    ("verdicts", "left"),
    [({"_1": "reject"}, 1), ({"_1": "unsure", "_3": "accept"}, 1), ({"_2": "reject"}, 2)],
)
def test_verdicts_flow_into_the_number_of_new_lesions(folder, verdicts, left):
    [row] = make_group_pairs(folder, {MASKS[1]: [review(folder, **verdicts)]})
    assert row["n_new_reviewed"] == left
    assert set(row) <= set(describe_columns(reviewed=True))


def test_a_pair_that_nobody_reviewed_has_no_count_after_review(folder):
    [row] = make_group_pairs(folder, {MASKS[0]: []})
    assert row["n_new_reviewed"] is None


def test_a_follow_up_of_results_that_were_made_again_is_left_out(folder):
    marker = {"Provenance": {"Finished": "later"}, "Microbleeds": {"n_cmb": 3}}
    write_json(folder / MASKS[1].replace(".nii.gz", ".json"), marker)
    assert make_group_pairs(folder) == []
