"""Visits are followed like with like, in order of time."""

from datetime import datetime
from pathlib import Path

import pytest

from bids_cmb.files import write_json
from bids_cmb.longitudinal.visits import (
    Visit,
    group_into_series,
    list_visits,
    measure_interval_days,
)


def visit(contrast="T2starw", acquired=None, **entities):
    return Visit(Path("x"), {}, (), entities, contrast, acquired)


def names(series):
    return [[each.name for each in group.visits] for group in series]


def test_each_contrast_makes_a_series_of_its_own():
    visits = [visit(c, ses=str(n)) for n in (1, 2) for c in ("T2starw", "swi")]
    assert names(group_into_series("01", visits)) == [
        ["ses-1_T2starw", "ses-2_T2starw"],
        ["ses-1_swi", "ses-2_swi"],
    ]


def test_an_acquisition_is_compared_with_itself_and_what_is_left_is_mixed():
    visits = [visit(ses="1", acq="a"), visit(ses="2", acq="a"), visit(ses="2", acq="b"),
              visit("swi", ses="3")]  # fmt: skip
    like, mixed = group_into_series("01", visits)
    assert (like.entities, like.mixed) == ({"acq": "a"}, False)
    assert [each.name for each in mixed.visits] == ["ses-2_acq-b_T2starw", "ses-3_swi"]
    assert (mixed.contrast, mixed.mixed) == ("mixed", True)


def test_two_contrasts_of_one_session_are_no_series():
    assert group_into_series("01", [visit(ses="1"), visit("swi", ses="1")]) == []


def test_runs_without_a_session_are_a_series():
    [series] = group_into_series("01", [visit(run="1"), visit(run="2")])
    assert [each.name for each in series.visits] == ["run-1_T2starw", "run-2_T2starw"]


def test_days_are_known_only_where_both_visits_have_a_time():
    first, second = datetime(2001, 3, 1, 12), datetime(2002, 3, 1)
    assert measure_interval_days(visit(acquired=first), visit(acquired=second)) == 364.5
    assert measure_interval_days(visit(acquired=first), visit()) is None


@pytest.fixture
def dataset(tmp_path):
    """Results of sessions 2 and 10, and of 3, whose times are the other way round if told."""
    raw, out = tmp_path / "raw", tmp_path / "out"
    for session in ("2", "3", "10"):
        stem = f"sub-01/ses-{session}/anat/sub-01_ses-{session}"
        image = raw / f"{stem}_T2starw.nii.gz"
        image.parent.mkdir(parents=True)
        image.touch()
        source = image.relative_to(raw).as_posix()
        content = {"Sources": [f"bids:raw:{source}"], "Provenance": {}, "Microbleeds": {}}
        write_json(out / f"{stem}_space-orig_label-CMB_desc-T2starw_mask.json", content)
        for part in ("label-CMB_desc-T2starw_probseg", "label-brain_desc-T2starw_mask"):
            (out / f"{stem}_space-orig_{part}.nii.gz").touch()
    return out, raw


def test_sessions_are_in_the_order_of_their_numbers(dataset):
    sessions = [each.session for each in list_visits(*dataset, "01").visits]
    assert sessions == ["ses-2", "ses-3", "ses-10"]


def test_times_of_the_dataset_come_before_labels(dataset):
    out, raw = dataset
    (raw / "sub-01/ses-10/sub-01_ses-10_scans.tsv").write_text(
        "filename\tacq_time\nanat/sub-01_ses-10_T2starw.nii.gz\t2001-05-01T10:00:00\n"
    )
    (raw / "sub-01/sub-01_sessions.tsv").write_text(
        "session_id\tacq_time\nses-2\t2003-05-01\nses-3\t2002-05-01\nses-10\t2009-05-01\n"
    )
    visits = list_visits(out, raw, "01").visits
    assert [each.session for each in visits] == ["ses-10", "ses-3", "ses-2"]


def test_dated_visits_are_in_the_order_of_their_dates_also_beside_one_without(dataset):
    """By their labels alone, the interval would be -365 days, and new and lost swapped."""
    out, raw = dataset
    (raw / "sub-01/sub-01_sessions.tsv").write_text(
        "session_id\tacq_time\nses-2\t2003-05-01\nses-3\tn/a\nses-10\t2002-05-01\n"
    )
    visits = list_visits(out, raw, "01").visits
    assert [each.session for each in visits] == ["ses-10", "ses-3", "ses-2"]


def test_a_result_without_probability_map_is_left_out_with_a_reason(dataset):
    out, raw = dataset
    next(out.rglob("*ses-3*_probseg.nii.gz")).unlink()
    listed = list_visits(out, raw, "01")
    assert len(listed.visits) == 2
    [note] = listed.notes
    assert "without probability map" in note
