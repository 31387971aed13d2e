"""The page shows what became of each lesion, and takes verdicts on it by the same keys."""

import re

import pytest
from browser import CHROMIUM, WHY_NOT, browsing

from bids_cmb.bids.tables import read_columns, write_table
from bids_cmb.files import write_json
from bids_cmb.report.html import shows_follow_ups, write_page

STEM = "sub-01/ses-{0}/anat/sub-01_ses-{0}_space-orig_"
MASKS = [f"{STEM.format(n)}label-CMB_desc-T2starw_mask.nii.gz" for n in (1, 2)]
LESIONS = {"F001": "persistent", "F002": "new", "F003": "new"}


def make_counts(number):
    counts = {"n_cmb": number, "n_definite": 0, "n_possible": number, "slice_spacing_mm": 4.0}
    sizes = {"voxel_size_1_mm": 1.0, "voxel_size_2_mm": 1.0, "brain_ml": 1200.0}
    return counts | sizes | {"fov_truncation_percent": 0.0, "brain_snr": 20.0}


def make_observation(name, session, index, state, change=None):
    row = {"lesion": name, "filename": MASKS[session - 1], "session_id": f"ses-{session}"}
    return {**row, "index": index, "state": state, "change": change, "probability": 0.9}


@pytest.fixture
def folder(tmp_path):
    """Two sessions: lesion 1 of both is one, lesions 2 and 3 of the second are new."""
    for number, mask in enumerate(MASKS, start=1):
        marker = {"Provenance": {"Finished": "now"}, "Microbleeds": make_counts(number)}
        write_json(tmp_path / mask.replace(".nii.gz", ".json"), marker)
        rows = [
            {
                "index": n,
                "x_mm": n,
                "y_mm": 0,
                "z_mm": 0,
                "included": "yes",
                "certainty": "possible",
            }
            for n in range(1, 2 * number)
        ]
        write_table(tmp_path / f"{STEM.format(number)}seg-CMB_desc-T2starw_dseg.tsv", rows[0], rows)
    stem = tmp_path / "sub-01/anat/sub-01_desc-longitudinalT2starw"
    about = {
        "Visits": [{"Mask": mask, "Finished": "now"} for mask in MASKS],
        "Provenance": {"Fingerprint": "f" * 64},
        "Notes": ["sub-01: ses-3 is not compared: Is it the same person?"],
    }
    write_json(stem.with_name(f"{stem.name}_lesions.json"), about)
    lesions = [
        {"index": n, "name": name, "course": course}
        for n, (name, course) in enumerate(LESIONS.items(), start=1)
    ]
    observations = [
        make_observation("F001", 1, 1, "seen"),
        make_observation("F001", 2, 1, "seen", "persistent"),
        *(make_observation(name, 1, None, "absent") for name in ("F002", "F003")),
        make_observation("F002", 2, 2, "seen", "new"),
        make_observation("F003", 2, 3, "seen", "new"),
    ]
    pair = {"session_1": "ses-1", "session_2": "ses-2", "n_new": 2, "status": "ok"}
    for name, rows in (("lesion", lesions), ("observation", observations), ("pair", [pair])):
        columns = dict.fromkeys(read_columns(f"followed_{name}"))
        path = stem.with_name(f"{stem.name}_{name}s.tsv")
        write_table(path, columns, [columns | row for row in rows])
    return tmp_path


def test_new_lesions_come_first_and_the_page_says_what_was_left_out(folder):
    page = write_page(folder, "01").read_text()
    assert re.findall(r"<h3>(F\d+) · ([a-z ]+)</h3>", page) == [
        ("F002", "new"),
        ("F003", "new"),
        ("F001", "persistent"),
    ]
    assert "Is it the same person?" in page
    assert "Not current" not in page
    assert shows_follow_ups(folder, "01")


def test_a_follow_up_of_results_that_were_made_again_is_called_not_current(folder):
    marker = folder / MASKS[1].replace(".nii.gz", ".json")
    write_json(marker, {"Provenance": {"Finished": "later"}, "Microbleeds": make_counts(3)})
    assert "Not current" in write_page(folder, "01").read_text()


@pytest.mark.skipif(CHROMIUM is None, reason=WHY_NOT)
def test_a_verdict_on_a_new_lesion_is_that_on_its_lesion_and_is_counted(folder, tmp_path):
    write_page(folder, "01")
    with browsing(tmp_path / "profile") as chromium, chromium.tab(downloads=tmp_path) as page:
        page.go((folder / "sub-01.html").as_uri())
        page.run("document.querySelector('.followed[data-lesion=\"2\"]').focus()")
        page.press("r")
        scan = f'document.querySelector(\'[data-scan="{MASKS[1]}"] [data-index="2"]\')'
        assert page.run(f"{scan}.dataset.verdict") == "reject"
        assert page.run("document.querySelector('.new-after').textContent") == (
            "After your review: 1 new."
        )
        page.press("j")
        page.press("a")
        other = "document.querySelector('.followed[data-lesion=\"3\"]').dataset.verdict"
        assert page.run(other) == "accept"
        assert not page.complaints
