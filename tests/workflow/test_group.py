"""The group table tells of every scan, and only from what the participants wrote."""

import json

import pytest

from bids_cmb.bids.attempts import FAILED, SELECTED, forget_attempt, note_attempt
from bids_cmb.bids.tables import read_table
from bids_cmb.files import write_json
from bids_cmb.workflow.group import write_group


def finish(folder, source, at, performance=None, **counts):
    path = folder / source.replace("_T2starw.nii.gz", "_label-CMB_desc-T2starw_mask.json")
    about = {"Sources": [f"bids:raw:{source}"], "Provenance": {"Finished": at}}
    about |= {"Performance": performance} if performance else {}
    write_json(path, {**about, "Microbleeds": counts})


def say(folder, run, *events):
    path = folder / "logs" / run / "status.jsonl"
    path.parent.mkdir(parents=True)
    keys = ("time", "source", "status", "reason")
    lines = [json.dumps(dict(zip(keys, event, strict=True))) for event in events]
    path.write_text("\n".join([*lines, "no json", ""]))


ONE, TWO, THREE = (f"sub-0{n}/ses-a/anat/sub-0{n}_ses-a_T2starw.nii.gz" for n in (1, 2, 3))


@pytest.fixture
def cohort(tmp_path):
    finish(tmp_path, ONE, "2026-01-01T10:00:05+00:00", n_cmb=4)
    say(
        tmp_path,
        "first",
        ("2026-01-01T10:00:00+00:00", ONE, "selected", ""),
        ("2026-01-01T10:00:00+00:00", TWO, "selected", ""),
        ("2026-01-01T10:00:00+00:00", THREE, "selected", ""),
        ("2026-01-01T10:00:05+00:00", ONE, "ok", ""),
        ("2026-01-01T10:00:05+00:00", TWO, "failed", "it is\ttruncated."),
    )
    return tmp_path


def statuses(folder):
    write_group(folder)
    rows = read_table(folder / "group_microbleeds.tsv")
    return [(row["participant_id"], row["status"], row["n_cmb"]) for row in rows]


def test_read_failed_and_forgotten_scans_have_a_row_each(cohort):
    told = {"ok": 1, "failed": 1, "missing": 1, "outdated": 0, "gone": 0}
    assert write_group(cohort) == told
    assert statuses(cohort) == [
        ("sub-01", "ok", "4"),
        ("sub-02", "failed", None),
        ("sub-03", "missing", None),
    ]
    rows = read_table(cohort / "group_microbleeds.tsv")
    assert rows[1]["reason"] == "it is truncated."
    assert rows[0]["session_id"] == "ses-a"


def test_every_column_of_the_table_is_described_beside_it(cohort):
    write_group(cohort)
    described = json.loads((cohort / "group_microbleeds.json").read_text())
    assert list(described) == list(read_table(cohort / "group_microbleeds.tsv")[0])


def reason_of(folder, source):
    rows = read_table(folder / "group_microbleeds.tsv")
    return next(row["reason"] for row in rows if row["source"] == source)


def test_what_failed_last_shows_no_old_count_and_says_that_a_result_stands(cohort):
    note_attempt(cohort, ONE, FAILED, "the input broke")
    assert statuses(cohort)[0] == ("sub-01", "outdated", None)
    assert "the input broke" in reason_of(cohort, ONE)
    assert "earlier result" in reason_of(cohort, ONE)
    forget_attempt(cohort, ONE)
    assert statuses(cohort)[0] == ("sub-01", "ok", "4")


@pytest.mark.parametrize("year", ["1999", "2099"])
def test_no_clock_decides_what_is_current(cohort, year):
    """A failure that was mended, on a machine whose clock was years off."""
    say(cohort, "second", (f"{year}-01-02T10:00:00+00:00", ONE, "failed", "the input broke"))
    assert statuses(cohort)[0] == ("sub-01", "ok", "4")
    finish(cohort, TWO, f"{year}-01-03T10:00:00+00:00", n_cmb=5)
    assert statuses(cohort)[1] == ("sub-02", "ok", "5")


def test_a_result_that_a_later_run_set_out_to_replace_is_not_current(cohort):
    note_attempt(cohort, ONE, SELECTED)
    assert statuses(cohort)[0] == ("sub-01", "outdated", None)
    assert "did not reach it" in reason_of(cohort, ONE)


def test_a_scan_that_left_the_dataset_is_gone_and_counted_nowhere(cohort, tmp_path):
    raw = tmp_path / "raw"
    (raw / TWO).parent.mkdir(parents=True)
    (raw / TWO).symlink_to("../.git/annex/objects/not-fetched")
    write_group(cohort, raw=raw)
    rows = read_table(cohort / "group_microbleeds.tsv")
    assert [(row["source"], row["status"], row["n_cmb"]) for row in rows] == [
        (ONE, "gone", None),
        (TWO, "failed", None),
    ]
    everywhere = read_table(cohort / "group_regions.tsv")[0]
    assert everywhere["n_participants"] == "0"
    (raw / TWO).parent.parent.parent.rename(tmp_path / "elsewhere")
    write_group(cohort, raw=raw)  # an empty folder tells of no scan
    assert statuses(cohort)[0] == ("sub-01", "ok", "4")


@pytest.mark.parametrize(
    "marker",
    [
        {"Microbleeds": {"n_cmb": 1}, "Provenance": [1]},
        {"Microbleeds": {"n_cmb": "many"}},
        {"Microbleeds": {"n_cmb": 1, "detector": ["radial"]}},
        {"Microbleeds": {"n_cmb": 1}, "Sources": "sub-02"},
        {"Microbleeds": [4]},
    ],
)
def test_json_of_another_shape_is_no_result(cohort, marker):
    place = cohort / "sub-02/anat/sub-02_label-CMB_desc-T2starw_mask.json"
    write_json(place, marker)
    assert statuses(cohort)[1] == ("sub-02", "failed", None)


def test_results_of_mixed_settings_are_told(cohort, caplog):
    for source, threshold in ((ONE, 0.7), (TWO, 0.7), (THREE, 0.2)):
        finish(cohort, source, "2026-01-03T10:00:00+00:00", n_cmb=1)
        path = cohort / source.replace("_T2starw.nii.gz", "_label-CMB_desc-T2starw_mask.json")
        said = json.loads(path.read_text())
        said["Provenance"]["Settings"] = {"threshold": threshold, "detector": ["radial"]}
        write_json(path, said)
    write_group(cohort)
    [said] = [one.getMessage() for one in caplog.records if "different ways" in one.getMessage()]
    assert "threshold (0.2: 1, 0.7: 2)" in said
    assert "detector" not in said
    caplog.clear()
    note_attempt(cohort, THREE, SELECTED)
    write_group(cohort)
    assert "different ways" not in caplog.text


def test_a_result_outlives_a_later_selection(cohort):
    say(cohort, "second", ("2026-01-02T10:00:00+00:00", ONE, "selected", ""))
    assert statuses(cohort)[0] == ("sub-01", "ok", "4")


def test_several_results_of_a_scan_have_a_row_each(cohort):
    """Of one echo and of all combined."""
    name = ONE.replace("_T2starw.nii.gz", "_echo-1_label-CMB_desc-T2starw_mask.json")
    about = {
        "Sources": [f"bids:raw:{ONE}"],
        "Provenance": {"Finished": "2026-01-02T10:00:00+00:00"},
    }
    write_json(cohort / name, {**about, "Microbleeds": {"n_cmb": 9}})
    assert statuses(cohort)[:2] == [("sub-01", "ok", "9"), ("sub-01", "ok", "4")]
    rows = read_table(cohort / "group_microbleeds.tsv")
    assert rows[0]["source"] == rows[1]["source"] == ONE
    assert rows[0]["filename"] != rows[1]["filename"]


def test_a_damaged_status_log_is_named_and_stops_nothing(cohort, caplog):
    """A byte that is no UTF-8, a folder in the place of a log, and what is no status."""
    before = statuses(cohort)
    log = cohort / "logs/first/status.jsonl"
    log.write_bytes(log.read_bytes() + b'{"reason": "\xff"}\n' + b"[" * 100_000 + b"\n[1]\n")
    (cohort / "logs/second/status.jsonl").mkdir(parents=True)
    with caplog.at_level("WARNING", "bids_cmb"):
        assert statuses(cohort) == before
    assert f"{log}: 4 of 9 lines are damaged and were ignored." in caplog.messages
    assert any("second/status.jsonl cannot be read" in said for said in caplog.messages)


def test_half_a_character_in_a_status_log_stops_no_table(cohort):
    """Valid JSON, but no table can hold it."""
    said = {"time": "2026-01-03T10:00:00+00:00", "source": "sub-09/anat/sub-09_T2starw.nii.gz"}
    log = cohort / "logs/first/status.jsonl"
    line = json.dumps({**said, "status": "failed", "reason": "no \ud800"})
    log.write_text(log.read_text() + line + "\n")
    assert statuses(cohort)[-1] == ("sub-09", "failed", None)
    assert read_table(cohort / "group_microbleeds.tsv")[-1]["reason"] == "no \ufffd"


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="needs what the participant level wrote; found no result"):
        write_group(tmp_path)


def test_the_page_says_once_what_each_detector_found_and_missed_on_real_scans(tmp_path):
    """And, of a contrast that was never tried, just that."""
    entry = {
        "Data": "real", "Contrast": "T2starw", "Scans": 5, "Microbleeds": 21, "Found": 8,
        "FalsePerScan": 0.0, "Threshold": 0.2,
    }  # fmt: skip
    for number, (source, contrast) in enumerate(
        zip((ONE, TWO, THREE), ("T2starw", "swi", "swi"), strict=True)
    ):
        performance = {"Contrast": contrast, "Measured": [entry], "Limits": []}
        at = f"2026-01-01T10:00:0{number}+00:00"
        finish(tmp_path, source, at, performance, n_cmb=0, threshold=0.2)
    write_group(tmp_path)
    page = (tmp_path / "group_microbleeds.html").read_text()
    assert page.count("found 8 of 21 microbleeds, with 0.0 false per scan.") == 1
    assert page.count("never tried on real SWI scans") == 1
    assert page.count("A count of 0 does not exclude microbleeds") == 1


def test_a_table_of_lesions_that_is_gone_is_told(cohort, caplog):
    write_group(cohort)
    said = [record.getMessage() for record in caplog.records if "is missing" in record.getMessage()]
    assert len(said) == 1
    assert "sub-01_ses-a_seg-CMB_desc-T2starw_dseg.tsv is missing: its lesions are in no" in said[0]
