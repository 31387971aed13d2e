"""The app follows lesions over sessions; the truth is which dark spots each scan was given."""

import json
import re

import numpy as np
import pytest
from nibabel.affines import apply_affine
from running import QUICK, no_other_process
from sessions import COARSE, TURNED, scanned, write_sessions
from validating import find_issues, needs_validator

from bids_cmb.bids.tables import read_table
from bids_cmb.cli.run import main
from bids_cmb.imaging.registration import load_transform
from bids_cmb.longitudinal.visits import list_visits

STAYS, FADES, COMES = (20.0, 10.0, 5.0), (-25.0, 0.0, 15.0), (5.0, -30.0, -10.0)
HALF_SLICE_MM = COARSE["spacing"][2] / 2
FLAGS = [*QUICK, "--threshold", "0.3", "--skip-brain-extraction"]


def name(subject, session, run=None):
    run = f"_run-{run}" if run else ""
    return f"{subject}/{session}/anat/{subject}_{session}{run}_T2starw"


def run(raw, out, *flags, code=0):
    with no_other_process():
        assert main([str(raw), str(out), "participant", "group", *FLAGS, *flags]) == code
    return out


def tables(out, subject, kind):
    return read_table(out / subject / "anat" / f"{subject}_desc-longitudinalT2starw_{kind}.tsv")


@pytest.fixture(scope="module")
def followed(tmp_path_factory):
    """A dataset and its output: after a first run, and once a late session has come."""
    root = tmp_path_factory.mktemp("followed")
    both, later = scanned(1, [STAYS, FADES], **COARSE), [STAYS, FADES, COMES]
    second = scanned(1, later, motion=TURNED, noise=2, **COARSE)
    raw = write_sessions(
        root / "raw",
        {
            name("sub-01", "ses-1"): both,
            name("sub-01", "ses-2"): second,
            name("sub-02", "ses-1", 1): both,
            name("sub-02", "ses-1", 2): second,
            name("sub-03", "ses-1"): both,
            name("sub-03", "ses-2"): scanned(2, later, motion=TURNED, noise=3, **COARSE),
            name("sub-04", "ses-1"): both,
            name("sub-04", "ses-3"): second,
            name("sub-05", "ses-1"): both,
        },
    )
    broken = raw / f"{name('sub-04', 'ses-2')}.nii.gz"
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"no image")
    run(raw, root / "out", code=1)
    before = {
        path.relative_to(root / "out").as_posix(): path.read_bytes()
        for path in (root / "out").rglob("*_desc-longitudinal*.tsv")
    }
    third = scanned(1, [STAYS, COMES], noise=4, **COARSE)
    text = "session_id\tacq_time\n" + "".join(
        f"ses-{number}\t{2000 + number}-01-01T00:00:00\n" for number in (1, 2, 3)
    )
    write_sessions(raw, {name("sub-01", "ses-3"): third}, **{"sub-01/sub-01_sessions.tsv": text})
    run(raw, root / "out", code=1)
    return raw, root / "out", before


def test_lesions_stay_come_and_fade_over_three_sessions(followed):
    _, out, _ = followed
    courses = {
        row["course"]: [float(row[f"{axis}_mm"]) for axis in "xyz"]
        for row in tables(out, "sub-01", "lesions")
    }
    for course, spot in (("persistent", STAYS), ("not seen again", FADES), ("new", COMES)):
        assert np.linalg.norm(np.subtract(courses[course], spot)) < HALF_SLICE_MM + 0.5
    assert len(courses) == 3


def test_each_pair_has_its_counts_and_the_interval_that_the_dataset_tells(followed):
    _, out, _ = followed
    pairs = {(row["session_1"], row["session_2"]): row for row in tables(out, "sub-01", "pairs")}
    counts = {
        pair: [row[f"n_{change}"] for change in ("new", "persistent", "not_seen_again")]
        for pair, row in pairs.items()
    }
    assert counts == {
        ("ses-1", "ses-2"): ["1", "2", "0"],
        ("ses-2", "ses-3"): ["0", "2", "1"],
        ("ses-1", "ses-3"): ["1", "1", "1"],
    }
    first = pairs["ses-1", "ses-2"]
    assert (first["interval_days"], first["new_per_year"]) == ("365.0", "1.0")
    assert (first["aria_h_class"], first["consecutive"]) == ("mild", "yes")
    assert pairs["ses-1", "ses-3"]["consecutive"] == "no"


def test_a_late_session_updates_its_participant_and_nobody_else(followed):
    _, out, before = followed
    changed = {
        path.split("/")[0]
        for path, content in before.items()
        if (out / path).read_bytes() != content
    }
    assert {path.split("/")[0] for path in before} == {"sub-01", "sub-02", "sub-03", "sub-04"}
    assert changed == {"sub-01"}


def test_observations_name_the_row_in_the_table_of_each_session(followed):
    _, out, _ = followed
    rows = tables(out, "sub-01", "observations")
    seen = [row for row in rows if row["state"] == "seen"]
    assert len(rows) == 9
    assert len(seen) == 7
    for row in seen:
        table = row["filename"].replace("_label-", "_seg-").replace("mask.nii.gz", "dseg.tsv")
        [lesion] = [each for each in read_table(out / table) if each["index"] == row["index"]]
        assert lesion["volume_mm3"] == row["volume_mm3"]


def test_two_runs_in_one_session_are_compared(followed):
    _, out, _ = followed
    [pair] = tables(out, "sub-02", "pairs")
    assert (pair["session_1"], pair["session_2"]) == ("ses-1", "ses-1")
    assert (pair["n_new"], pair["n_persistent"], pair["interval_days"]) == ("1", "2", None)


def test_a_session_of_another_person_is_refused_in_a_sentence(followed):
    _, out, _ = followed
    [pair] = tables(out, "sub-03", "pairs")
    assert (pair["status"], pair["n_new"], pair["aria_h_class"]) == ("refused", None, None)
    assert pair["reason"].endswith("Is it the same person?")
    assert "Is it the same person?" in (out / "sub-03.html").read_text()


def test_a_failed_scan_in_the_middle_leaves_the_others_to_be_compared(followed):
    _, out, _ = followed
    [pair] = tables(out, "sub-04", "pairs")
    assert (pair["session_1"], pair["session_2"]) == ("ses-1", "ses-3")
    assert (pair["n_new"], pair["n_persistent"]) == ("1", "2")


def test_a_participant_with_one_scan_has_nothing_to_follow(followed):
    _, out, _ = followed
    assert not list((out / "sub-05").rglob("*longitudinal*"))
    assert "Over time" not in (out / "sub-05.html").read_text()


def test_the_transform_brings_points_of_a_later_scan_to_the_first(followed):
    _, out, _ = followed
    path = out / "sub-01/ses-2/anat"
    [file] = path.glob("*_from-ses2T2starw_to-ses1T2starw_mode-image_desc-longitudinal_xfm.txt")
    moved = apply_affine(load_transform(file) @ TURNED, np.array([STAYS, FADES, COMES]))
    np.testing.assert_allclose(moved, [STAYS, FADES, COMES], atol=1.0)


def test_every_column_is_described(followed):
    _, out, _ = followed
    for path in out.rglob("*_desc-longitudinal*.tsv"):
        columns = set(path.read_text().splitlines()[0].split("\t"))
        assert columns <= set(json.loads(path.with_suffix(".json").read_text()))


def test_the_page_shows_new_lesions_first_each_with_its_crops(followed):
    _, out, _ = followed
    page = (out / "sub-01.html").read_text()
    order = re.findall(r"<h3>F\d+ · ([a-z ]+)</h3>", page)
    assert order == ["new", "not seen again", "persistent"]
    pictures = re.findall(r'class="crops" src="([^"]+)"', page)
    assert len(pictures) == 3
    assert all(picture.startswith("data:image/webp") for picture in pictures)


@needs_validator
def test_the_output_is_valid_bids(followed):
    _, out, _ = followed
    assert find_issues(out, derivatives=0) == []


def test_results_without_their_image_are_left_out_with_a_note(followed, tmp_path):
    _, out, _ = followed
    listed = list_visits(out, tmp_path, "01")
    assert not listed.visits
    assert all("its image is not in the dataset" in note for note in listed.notes)
    assert len(listed.notes) == 3
