"""Lesions are followed as part of a run, in whatever pieces and processes it is done."""

import shutil

import numpy as np
import pytest
from running import QUICK, no_other_process
from sessions import COARSE, scanned, write_sessions

from bids_cmb.bids.tables import read_table
from bids_cmb.cli.run import main
from bids_cmb.workflow import longitudinal

STAYS, COMES = (20.0, 10.0, 5.0), (5.0, -30.0, -10.0)
FLAGS = [word for word in QUICK if word != "-q"]
FLAGS += ["--report", "none", "--threshold", "0.3", "--skip-brain-extraction", "--n-cpus", "2"]
SESSIONS = "session_id\tacq_time\nses-1\t2001-01-01\nses-2\t2002-01-01\nses-3\t2003-01-01\n"


def run(raw, out, *flags, code=0):
    assert main([str(raw), str(out), "participant", *FLAGS, *flags]) == code


def read_follow_ups(out, subject=""):
    """Read every table and transform of follow-ups, by path, as bytes."""
    paths = [
        *out.rglob(f"*{subject}_*desc-longitudinal*.tsv"),
        *out.rglob(f"*{subject}_*longitudinal_xfm.txt"),
    ]
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in paths}


def read_pairs(out, subject, contrast="T2starw"):
    return read_table(out / subject / "anat" / f"{subject}_desc-longitudinal{contrast}_pairs.tsv")


@pytest.fixture(scope="module")
def apart(tmp_path_factory):
    """A dataset, and its results without follow-ups.

    A microbleed comes between the sessions of the T2*w scans; the SWI of the first shows it.
    The second participant has no scan of session 2.
    """
    root = tmp_path_factory.mktemp("apart")
    before = scanned(1, [STAYS], **COARSE)
    early = scanned(1, [STAYS, COMES], noise=2, **COARSE)
    late = scanned(1, [STAYS, COMES], noise=3, **COARSE)
    stem = "sub-01/ses-{0}/anat/sub-01_ses-{0}_{1}"
    scans = {
        stem.format(1, "T2starw"): before,
        stem.format(2, "T2starw"): late,
        stem.format(1, "swi"): early,
        stem.format(2, "swi"): late,
        "sub-02/ses-1/anat/sub-02_ses-1_T2starw": before,
        "sub-02/ses-2/anat/sub-02_ses-2_T1w": late,
        "sub-02/ses-3/anat/sub-02_ses-3_T2starw": late,
    }
    raw = write_sessions(root / "raw", scans, **{"sub-02/sub-02_sessions.tsv": SESSIONS})
    with no_other_process():
        run(raw, root / "out", "--longitudinal", "off")
    return raw, root / "out"


@pytest.fixture(scope="module")
def followed(apart, tmp_path_factory):
    """The same after a run that follows them."""
    out = tmp_path_factory.mktemp("followed") / "out"
    shutil.copytree(apart[1], out)
    with no_other_process():
        run(apart[0], out)
    return out


@pytest.fixture
def raw(apart):
    return apart[0]


@pytest.fixture
def out(followed, tmp_path):
    """A copy of the followed results."""
    return shutil.copytree(followed, tmp_path / "out")


def test_off_leaves_it_out(apart):
    assert not list(apart[1].rglob("*longitudinal*"))
    assert len(list(apart[1].rglob("*_label-CMB_*_mask.nii.gz"))) == 6


def test_two_contrasts_of_a_session_are_compared_like_with_like(followed):
    [plain], [swi] = (read_pairs(followed, "sub-01", contrast) for contrast in ("T2starw", "swi"))
    assert (plain["n_new"], plain["n_persistent"]) == ("1", "1")
    assert (swi["n_new"], swi["n_persistent"]) == ("0", "2")
    assert "_T2starw_" not in swi["filename_1"] + swi["filename_2"]
    assert not list(followed.rglob("*longitudinalmixed*"))
    [new] = [
        row
        for row in read_table(followed / "sub-01/anat/sub-01_desc-longitudinalT2starw_lesions.tsv")
        if row["course"] == "new"
    ]
    position = [float(new[f"{axis}_mm"]) for axis in "xyz"]
    assert np.linalg.norm(np.subtract(position, COMES)) < 3


def test_over_a_missing_session_its_neighbours_are_compared(followed):
    [pair] = read_pairs(followed, "sub-02")
    assert (pair["session_1"], pair["session_2"]) == ("ses-1", "ses-3")
    assert (pair["consecutive"], pair["interval_days"]) == ("yes", "730.0")
    assert (pair["n_new"], pair["new_per_year"]) == ("1", "0.5")


@pytest.mark.usefixtures("one_process")
def test_shards_follow_each_its_own_participants(followed, raw, tmp_path):
    out = tmp_path / "out"
    run(raw, out, "--shard", "1/4")
    assert read_follow_ups(out) == read_follow_ups(followed, "sub-01")
    run(raw, out, "--shard", "3/4")
    assert read_follow_ups(out) == read_follow_ups(followed)


def test_several_processes_write_the_same_files_as_one(apart, followed, tmp_path, capsys):
    out = shutil.copytree(apart[1], tmp_path / "out")
    run(apart[0], out)
    log = capsys.readouterr().err
    assert "6 of 6 scans already complete." in log
    assert "Lesions of 2 participants to follow over time." in log
    assert read_follow_ups(out) == read_follow_ups(followed)


@pytest.mark.usefixtures("one_process")
def test_a_run_that_was_broken_off_is_resumed(raw, out, capsys):
    whole = read_follow_ups(out)
    marker = out / "sub-01/anat/sub-01_desc-longitudinalswi_lesions.json"
    marker.unlink()  # it is written last
    marker.with_name("sub-01_desc-longitudinalswi_pairs.tsv").write_text("participant_id\n")
    times = {path: (out / path).stat().st_mtime_ns for path in whole}
    run(raw, out)
    assert "0 scans processed, 6 already complete" in capsys.readouterr().err
    assert read_follow_ups(out) == whole
    remade = {path for path in whole if (out / path).stat().st_mtime_ns != times[path]}
    assert remade == {path for path in whole if "swi" in path}
    times = {path: path.stat().st_mtime_ns for path in out.glob("sub-*/**/*.*")}
    run(raw, out)
    assert "to follow over time" not in capsys.readouterr().err
    assert times == {path: path.stat().st_mtime_ns for path in out.glob("sub-*/**/*.*")}


@pytest.mark.usefixtures("one_process")
def test_a_participant_that_cannot_be_followed_does_not_stop_the_others(
    raw, out, monkeypatch, capsys
):
    follow = longitudinal.follow

    def refuse(series):
        if series.subject == "01":
            raise ValueError("x.nii.gz: a brain mask must not be empty.")
        return follow(series)

    monkeypatch.setattr(longitudinal, "follow", refuse)
    whole = read_follow_ups(out, "sub-02")
    for marker in out.rglob("*_desc-longitudinal*_lesions.json"):
        marker.unlink()
    run(raw, out, code=1)
    line = "sub-01: not followed over time: x.nii.gz: a brain mask must not be empty."
    assert line in capsys.readouterr().err
    assert read_follow_ups(out, "sub-02") == whole
    assert list(out.glob("sub-02/anat/*longitudinal*_lesions.json"))


@pytest.mark.usefixtures("one_process")
def test_results_that_are_taken_away_are_followed_no_longer(raw, out):
    shutil.rmtree(out / "sub-02/ses-3")
    only = shutil.copytree(raw, out.parent / "raw")
    shutil.rmtree(only / "sub-02/ses-3")
    run(only, out)
    assert not read_follow_ups(out, "sub-02")
    assert read_follow_ups(out, "sub-01")
