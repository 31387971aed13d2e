"""A dataset is shared out over shards: each does its people, and a newcomer disturbs nobody."""

import pytest
from running import QUICK, no_other_process
from sessions import COARSE, TURNED, scanned, write_sessions

from bids_cmb.bids.filters import select_shard
from bids_cmb.bids.tables import read_table
from bids_cmb.cli.run import main

PARTS = 3
FLAGS = [*QUICK, "--threshold", "0.3", "--skip-brain-extraction", "--report", "none"]
SPOTS = [(20.0, 10.0, 5.0), (-25.0, 0.0, 15.0)]
PEOPLE = ["001", "010"]
NEWCOMER = "005"  # listed between them


def run(root, *words):
    with no_other_process():
        return main([str(root / "raw"), str(root / "out"), *words, *FLAGS])


def run_shards(root):
    return [run(root, "participant", "--shard", f"{part}/{PARTS}") for part in range(1, PARTS + 1)]


def stem(subject, session):
    return f"sub-{subject}/ses-{session}/anat/sub-{subject}_ses-{session}_T2starw"


def list_group(root):
    assert run(root, "group") == 0
    rows = read_table(root / "out" / "group_microbleeds.tsv")
    return [tuple(row[name] for name in ("participant_id", "session_id", "status")) for row in rows]


def list_times(root):
    """When each file of the first people was written."""
    files = [path for who in PEOPLE for path in (root / "out" / f"sub-{who}").rglob("*")]
    return {path: path.stat().st_mtime_ns for path in files if path.is_file()}


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A dataset, one of its people scanned twice, whose shards were run one after the other."""
    root = tmp_path_factory.mktemp("shared")
    scans = {
        stem("001", 1): scanned(1, SPOTS, **COARSE),
        stem("001", 2): scanned(1, SPOTS, motion=TURNED, noise=2, **COARSE),
        stem("010", 1): scanned(2, SPOTS, **COARSE),
    }
    write_sessions(root / "raw", scans)
    return root, run_shards(root)


def test_every_shard_does_its_people_and_one_without_anybody_is_done_at_once(shared):
    root, codes = shared
    assert [] in [select_shard(PEOPLE, (part, PARTS)) for part in range(1, PARTS + 1)]
    assert codes == [0] * PARTS
    assert list_group(root) == [
        ("sub-001", "ses-1", "ok"),
        ("sub-001", "ses-2", "ok"),
        ("sub-010", "ses-1", "ok"),
    ]


def test_the_shard_of_a_person_follows_its_lesions_over_time(shared):
    root, _ = shared
    [table] = (root / "out").glob("sub-*/anat/*_desc-longitudinal*_lesions.tsv")
    assert table.parts[-3] == "sub-001"
    assert [row["course"] for row in read_table(table)] == ["persistent"] * 2


def test_after_the_dataset_grew_every_shard_resumes_with_its_own_people(shared):
    root, _ = shared
    before = list_times(root)
    write_sessions(root / "raw", {stem(NEWCOMER, 1): scanned(3, SPOTS, **COARSE)})
    assert run_shards(root) == [0] * PARTS
    assert list_times(root) == before
    assert ("sub-005", "ses-1", "ok") in list_group(root)


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_a_shard_without_anybody_says_that_there_is_nothing_to_do(tmp_path, capsys, more):
    (tmp_path / "sub-01" / "anat").mkdir(parents=True)
    empty = "1/2" if select_shard(["01"], (2, 2)) else "2/2"
    words = [str(tmp_path), str(tmp_path / "derivatives" / "out"), "participant", *more]
    assert main([*words, "--validate", "off", "--detector", "radial", "--shard", empty]) == 0
    assert f"No participant is in shard {empty}: nothing to do." in capsys.readouterr().err
    full = "2/2" if empty == "1/2" else "1/2"
    assert main([*words, "--validate", "off", "--detector", "radial", "--shard", full]) == 18
