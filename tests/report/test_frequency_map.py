"""The cohort's map in MNI space, and prevalence by region."""

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from bids_cmb.report.frequency_map import (
    AFFINE,
    MAP_STEM,
    MAX_DISTANCE_MM,
    count_participants,
    write_map,
)
from bids_cmb.report.prevalence import compute_wilson_interval, make_region_rows
from bids_cmb.workflow.group import read_groups


def test_a_lesion_is_a_ball_about_its_place():
    place = (-31.0, 12.5, 40.2)
    found = count_participants({"sub-01": [place]})
    there = np.argwhere(found) @ AFFINE[:3, :3].T + AFFINE[:3, 3]
    assert np.linalg.norm(there - place, axis=1).max() <= MAX_DISTANCE_MM
    volume = 8 * found.sum()  # mm³
    assert volume == pytest.approx(4 / 3 * np.pi * MAX_DISTANCE_MM**3, rel=0.1)


def test_participants_are_counted_not_lesions():
    near = [(10.0, 0, 0), (11.0, 0, 0), (10.0, 1, 0)]
    found = count_participants({"sub-01": near, "sub-02": [(10.0, 0, 0)], "sub-03": []})
    assert found.max() == 2


def test_places_beyond_the_template_are_no_error():
    assert count_participants({"sub-01": [(500.0, 0, 0), (-96.0, -132, -78)]}).sum() > 0


def test_the_map_lies_in_mni_and_goes_when_there_is_nothing_to_show(tmp_path):
    write_map(tmp_path, {"sub-01": [(-20.0, 30, 40)]}, 4)
    image = nib.load(tmp_path / f"{MAP_STEM}.nii.gz")
    # tpl-MNI152NLin2009cAsym_res-02_T1w.nii.gz of TemplateFlow
    assert image.shape == (97, 115, 97)
    np.testing.assert_array_equal(
        image.affine, [[2, 0, 0, -96.5], [0, 2, 0, -132.5], [0, 0, 2, -78.5], [0, 0, 0, 1]]
    )
    i, j, k = np.rint(np.linalg.solve(image.affine, [-20, 30, 40, 1])[:3]).astype(int)
    assert image.dataobj[i, j, k] == 1
    assert (tmp_path / f"{MAP_STEM}.png").stat().st_size > 1000
    write_map(tmp_path, {"sub-01": []}, 4)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("x", [-45.0, 45.0])
def test_the_right_hemisphere_is_on_the_left_of_the_map(tmp_path, x):
    """As on every other page; the brightest pixels are the lesion."""
    write_map(tmp_path, {"sub-01": [(x, 10.0, 20.0)]}, 1)
    with Image.open(tmp_path / f"{MAP_STEM}.png") as opened:
        pixels = np.asarray(opened.convert("RGB"), int)
    panel = pixels[:, : pixels.shape[1] // 3 - 20]  # the view from below
    pale_yellow = (panel[..., 1] > 220) & (panel[..., 2] > 150) & (panel[..., 2] < 215)
    frame = (panel.min(axis=2) > 150).mean(axis=0) > 0.6  # its left and right edge
    low, high = np.flatnonzero(frame)[[0, -1]]
    columns = np.flatnonzero(pale_yellow.any(axis=0))
    assert len(columns)
    across = (columns.mean() - low) / (high - low)
    assert (across < 0.5) == (x > 0)


def test_the_map_is_dark_with_light_letters_on_every_page(tmp_path):
    """White would glare from a page in dark mode; black text would be lost on it."""
    write_map(tmp_path, {"sub-01": [(45.0, 10.0, 20.0)]}, 1)
    with Image.open(tmp_path / f"{MAP_STEM}.png") as opened:
        pixels = np.asarray(opened.convert("RGB"), int)
    edges = np.concatenate([pixels[[0, -1]].reshape(-1, 3), pixels[:, [0, -1]].reshape(-1, 3)])
    assert edges.max() < 40
    below = pixels[-40:]  # the names of the axes
    assert (below.min(axis=2) > 200).sum() > 100


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [  # Newcombe, Stat Med 1998;17:857-872, table I, method 3
        (81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)  # fmt: skip
def test_intervals_are_wilsons(successes, trials, low, high):
    assert compute_wilson_interval(successes, trials) == pytest.approx((low, high), abs=1e-4)


def row(who, **counts):
    return {"participant_id": who, "n_cmb": 0, "n_lobar": 0, "n_frontal_left": 0, **counts}


def test_prevalence_by_region_and_by_site(tmp_path):
    """Three participants, one with two scans, at two sites."""
    (tmp_path / "participants.tsv").write_text(
        "participant_id\tsite\tage\nsub-01\tA\t70\nsub-02\tA\t71\nsub-03\tB\tn/a\n"
    )
    read = [
        row("sub-01", n_cmb=1, n_frontal_left=1),
        row("sub-01", n_cmb=3, n_frontal_left=2),
        row("sub-02", n_frontal_left=None),
        row("sub-03", n_cmb=4),
    ]
    rows = make_region_rows(read, read_groups(tmp_path / "participants.tsv"))
    said = {(one["stratum_variable"], one["stratum"], one["region"]): one for one in rows}
    everyone = said["all", "all", "cmb"]
    assert (everyone["n_participants"], everyone["n_lesions"], everyone["n_positive"]) == (3, 7, 2)
    frontal = said["all", "all", "frontal_left"]
    assert (frontal["n_evaluable"], frontal["n_lesions"], frontal["prevalence"]) == (2, 2, 0.5)
    assert said["site", "A", "cmb"]["prevalence"] == 0.5
    assert said["site", "B", "cmb"]["prevalence"] == 1.0
    assert ("age", "70", "cmb") not in said


def test_a_participant_with_a_scan_of_unknown_regions_is_evaluable_only_if_another_shows_one():
    read = [
        row("sub-01", n_lobar=None),
        row("sub-01"),  # none in this scan, but perhaps in the other
        row("sub-02", n_lobar=None),
        row("sub-02", n_lobar=2),
        row("sub-03"),
    ]
    [lobar] = [one for one in make_region_rows(read, {}) if one["region"] == "lobar"]
    assert (lobar["n_evaluable"], lobar["n_positive"], lobar["n_lesions"]) == (2, 1, 2)


PEOPLE = ["sub-01", "sub-02", "sub-03"]


@pytest.mark.parametrize(
    "text",
    [
        "\ufeffparticipant_id\tsite\nsub-01\tA\nsub-02\tA\nsub-03\tB\n",
        'participant_id\tcomment\tsite\nsub-01\t"so\tA\nsub-02\tn/a\tA\nsub-03\tn/a\tB\n',
        f"participant_id\tsite\tmore\nsub-01\tA\t{'x' * 200_000}\nsub-02\tA\nsub-03\tB\n",
    ],
    ids=["byte-order mark", "quotation mark", "long cell"],
)
def test_sites_are_read_from_tables_as_spreadsheets_write_them(tmp_path, text, caplog):
    (tmp_path / "participants.tsv").write_text(text)
    groups = read_groups(tmp_path / "participants.tsv", PEOPLE)
    assert groups["site"] == {"sub-01": "A", "sub-02": "A", "sub-03": "B"}
    assert caplog.messages == []


def test_a_table_in_another_encoding_is_ignored_aloud(tmp_path, caplog):
    text = "participant_id\tsite\nsub-01\tZürich"
    (tmp_path / "participants.tsv").write_bytes(text.encode("cp1252"))
    assert read_groups(tmp_path / "participants.tsv") == {}
    assert "participants.tsv: a table must be text in UTF-8" in caplog.text


def test_participants_that_the_table_lacks_are_named(tmp_path, caplog):
    table = tmp_path / "participants.tsv"
    table.write_text("participant_id\tsite\n01\tA\n02\tA\n03\tB\n")
    read_groups(table, PEOPLE)
    assert f"{table} does not list 3 of 3 participants with results: sub-01" in caplog.text
    caplog.clear()
    table.write_text("participant_id\tsite\nsub-01\tA\nsub-03\tB\n")
    read_groups(table, PEOPLE)
    assert "does not list 1 of 3 participants with results: sub-02." in caplog.text


def test_many_sites_are_counted_in_one_pass():
    """The rows are gone through once for a column, not once for each of its values."""
    looked = []

    class Counted(dict):
        def __getitem__(self, key):
            looked.append(key)
            return super().__getitem__(key)

    read = [Counted(row(f"sub-{n}")) for n in range(60)]
    groups = {"scanner": {f"sub-{n}": f"scanner {n % 20}" for n in range(60)}}
    rows = make_region_rows(read, groups)
    assert len({one["stratum"] for one in rows if one["stratum_variable"] == "scanner"}) == 20
    few = len(looked)
    looked.clear()
    make_region_rows(read, {"scanner": {f"sub-{n}": f"scanner {n % 2}" for n in range(60)}})
    assert few == len(looked)


def test_without_participants_there_is_no_grouping(tmp_path):
    assert read_groups(None) == {}
    assert read_groups(tmp_path / "none.tsv") == {}
