"""New lesions are scored against the truth of simulated sessions, by two rules."""

import json

import pytest

from bids_cmb.bids.tables import read_table, write_table
from bids_cmb.cli.commands import main
from bids_cmb.evaluation.identities import score_identities, summarize_identities

SESSIONS = ("ses-1", "ses-2")


def mask(session):
    return f"sub-01/{session}/anat/sub-01_{session}_space-orig_label-CMB_desc-T2starw_mask.nii.gz"


def lesion(index, x, **more):
    return {"index": index, "x_mm": x, "y_mm": 0, "z_mm": 0, **more}


@pytest.fixture
def folders(tmp_path):
    """Two sessions. True lesions: 1 stays, 2 came, 3 came and can hardly be seen, 4 faded.

    Found are 1 at both, 2, 3, and at x = 80 a mimic that was as dark before.
    """
    found, truth = tmp_path / "found", tmp_path / "truth"
    certainties = {
        "ses-1": {1: "definite", 4: "definite"},
        "ses-2": {1: "definite", 2: "definite", 3: "possible", 4: "unseen"},
    }
    for session in SESSIONS:
        known = [
            lesion(
                n, 20 * n, identity=n, certainty=certainty, included="yes", equivalent_diameter_mm=3
            )
            for n, certainty in certainties[session].items()
        ]
        stem = f"{session}/anat/sub-01_{session}_space-orig_seg-CMB"
        path = truth / "sub-01" / f"{stem}_desc-truth_dseg.tsv"
        write_table(path, known[0], known)
    places = {"ses-1": [20, 80], "ses-2": [21, 41, 61, 150]}
    for session, xs in places.items():
        rows = [
            lesion(
                n,
                x,
                equivalent_diameter_mm=3,
                probability_max=0.9,
                certainty="definite",
                included="yes",
            )
            for n, x in enumerate(xs, start=1)
        ]
        stem = f"{session}/anat/sub-01_{session}_space-orig_seg-CMB_desc-T2starw_dseg.tsv"
        write_table(found / "sub-01" / stem, rows[0], rows)
        marker = found / mask(session).replace(".nii.gz", ".json")
        content = {"Sources": [], "Provenance": {}, "Microbleeds": {"n_cmb": len(rows)}}
        marker.write_text(json.dumps(content))
    stem = found / "sub-01/anat/sub-01_desc-longitudinalT2starw"
    stem.parent.mkdir(parents=True)
    states = {
        "F1": (("seen", 1, None), ("seen", 1, "persistent")),
        "F2": (("seen", 2, None), ("absent", None, "not seen again")),
        "F3": (("absent", None, None), ("seen", 2, "new")),
        "F4": (("absent", None, None), ("seen", 3, "new")),
        "F5": (("uncertain", None, None), ("seen", 4, "uncertain")),
    }
    rows = [
        {
            "lesion": name,
            "filename": mask(session),
            "index": index,
            "state": state,
            "change": change,
        }
        for name, course in states.items()
        for session, (state, index, change) in zip(SESSIONS, course, strict=True)
    ]
    write_table(stem.with_name(f"{stem.name}_observations.tsv"), rows[0], rows)
    pair = {"consecutive": "yes", "status": "ok"}
    pair |= {f"filename_{n}": mask(session) for n, session in enumerate(SESSIONS, start=1)}
    write_table(stem.with_name(f"{stem.name}_pairs.tsv"), pair, [pair])
    return found, truth


def test_new_lesions_are_counted_by_both_rules(folders):
    [row] = score_identities(*folders)
    assert row["true_new"] == row["true_new_detected"] == 1
    assert row["new_by_threshold"] == row["new_by_evidence"] == 1
    assert row["false_by_threshold"] == 1  # the mimic, which the image has shown before
    assert row["false_by_evidence"] == 0
    assert row["in_both"] == row["identified"] == 1


def test_new_lesions_are_counted_with_the_truth_within_a_dataset(folders, tmp_path):
    """As a simulated dataset has it, which has a table of sessions too."""
    found, truth = folders
    raw, out = tmp_path / "raw", tmp_path / "result"
    write_table(
        raw / "sub-01/sub-01_sessions.tsv", ["session_id"], [{"session_id": s} for s in SESSIONS]
    )
    (raw / "derivatives").mkdir()
    truth.rename(raw / "derivatives/truth")
    assert main(["evaluate", str(found), str(raw), str(out), "--bootstrap", "0"]) == 0
    [row] = read_table(out / "identities.tsv")
    assert (row["true_new"], row["new_by_evidence"]) == ("1", "1")


def test_the_summary_divides_what_is_counted(folders):
    total = summarize_identities(score_identities(*folders) * 2)
    assert total["pairs"] == 2
    assert total["sensitivity_by_evidence"] == 1
    assert total["false_per_pair_by_threshold"] == 1
    assert total["identities_right"] == 1


def test_a_truth_without_sessions_has_no_identities_to_score(folders, tmp_path):
    found, _ = folders
    assert score_identities(found, tmp_path / "nothing") == []
