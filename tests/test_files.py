"""A file is whole or not there."""

import json
import os
import resource
import signal
import stat
import subprocess
import sys

import pytest

from bids_cmb import files
from bids_cmb.files import (
    load_json,
    read_json,
    remove_leftovers,
    replacing,
    temporary_folder,
    write_text,
)
from bids_cmb.parallel.processes import describe_error


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_was_written_takes_its_place(tmp_path):
    path = tmp_path / "new" / "folder" / "table.tsv"
    with replacing(path) as beside:
        beside.write_bytes(b"a\tb\n")
        assert beside.parent == path.parent  # else renaming could cross file systems
        assert beside.name.startswith(".")  # BIDS tools pass it by
        assert not path.exists()
    assert path.read_bytes() == b"a\tb\n"
    assert names(path.parent) == ["table.tsv"]


@pytest.mark.parametrize("failure", [RuntimeError("no more disk"), KeyboardInterrupt()])
def test_a_failing_writer_leaves_the_old_file_whole_and_nothing_else(tmp_path, failure):
    path = tmp_path / "table.tsv"
    path.write_text("old")

    def write():
        with replacing(path) as beside:
            beside.write_text("half of the n")
            raise failure

    with pytest.raises(type(failure)):
        write()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["table.tsv"]


def test_a_file_that_grows_too_large_is_named(tmp_path):
    """The system names none when a write fails."""
    path = tmp_path / "mask.nii.gz"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match="File too large") as caught, replacing(path) as part:
            part.write_bytes(bytes(2000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert describe_error(caught.value) == f"{path}: file too large."
    assert not list(tmp_path.iterdir())


def test_a_signal_that_comes_while_a_file_is_begun_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(files.fcntl, "flock", interrupted)
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "status.html"):
        pass
    assert not list(tmp_path.iterdir())


def test_a_failing_first_writer_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), replacing(tmp_path / "table.tsv"):
        1 / 0  # noqa: B018
    assert names(tmp_path) == []


def test_a_reader_sees_the_old_file_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "table.tsv"
    path.write_text("old")
    with replacing(path) as beside:
        beside.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"


def test_of_two_writers_at_once_the_last_one_wins_whole(tmp_path):
    path = tmp_path / "table.tsv"
    with replacing(path) as first, replacing(path) as second:
        assert first != second
        first.write_text("first " * 1000)
        second.write_text("second")
    assert path.read_text() == "first " * 1000  # the outer one is renamed last
    assert names(tmp_path) == ["table.tsv"]


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o077])
def test_permissions_follow_the_umask(tmp_path, mask):
    path = tmp_path / "table.tsv"
    before = os.umask(mask)
    try:
        write_text(path, "a")
        assert os.umask(mask) == mask  # left as it was found
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask


def test_text_is_utf_8_with_unix_line_ends(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "5 mm³\nzwölf\n")
    assert path.read_bytes() == "5 mm³\nzwölf\n".encode()


DIES = """
import os, signal, sys
from pathlib import Path
from bids_cmb.files import replacing, temporary_folder
place = Path(sys.argv[1])
with temporary_folder("cmb-", place / "temp"), replacing(place / "a") as one:
    one.write_text("half of the n")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path):
    (tmp_path / "temp").mkdir()
    killed = subprocess.run([sys.executable, "-c", DIES, str(tmp_path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(names(tmp_path)) == 2
    assert len(names(tmp_path / "temp")) == 1
    with (
        temporary_folder("cmb-", tmp_path / "temp") as mine,
        temporary_folder("cmb-", tmp_path / "temp") as other,
        replacing(tmp_path / "b") as beside,
    ):
        assert mine.is_dir()
        assert names(tmp_path / "temp") == sorted([mine.name, other.name])
        remove_leftovers(tmp_path)
        assert names(tmp_path) == sorted([beside.name, "temp"])
        beside.write_text("whole")
    assert names(tmp_path) == ["b", "temp"]
    assert names(tmp_path / "temp") == []


def test_a_part_of_another_machine_is_left_for_a_day(tmp_path, monkeypatch):
    """Its lock may not be seen from here."""
    with replacing(tmp_path / "a") as part:
        theirs = tmp_path / part.name
    theirs.touch()
    monkeypatch.setattr(files, "_identify_kernel", lambda: "another0")
    remove_leftovers(tmp_path)
    assert theirs.exists()
    before = theirs.stat().st_mtime - 2 * files.MIN_AGE_ELSEWHERE_S
    os.utime(theirs, (before, before))
    remove_leftovers(tmp_path)
    assert not theirs.exists()


def test_leftovers_of_a_folder_that_is_not_there_are_none(tmp_path):
    remove_leftovers(tmp_path / "none")


def test_json_of_others_can_be_written_again(tmp_path):
    """What is half a character or no number in it is not passed on."""
    path = tmp_path / "x.json"
    path.write_bytes(
        b'\xef\xbb\xbf{"a": ["Sie\\ud800mens", 1e400, NaN, -Infinity, 0.5, "\\ud83d\\ude00"]}'
    )
    said = load_json(path)
    assert said == {"a": ["Sie\ufffdmens", None, None, None, 0.5, "\U0001f600"]}
    assert json.loads(json.dumps(said, allow_nan=False, ensure_ascii=False).encode()) == said


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[" * 600 + "]" * 600, "found more than 64 levels"),
        ("[" * 100_000, "found more than 64 levels"),
        ('{"a": }', "Expecting value in line 1, column 7"),
        (b"\xff", "found the byte 0xff, not UTF-8"),
    ],
)
def test_what_is_no_json_is_refused(tmp_path, text, sentence):
    path = tmp_path / "x.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=sentence):
        load_json(path)
    assert read_json(path) is None


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.json")
    with pytest.raises(OSError, match="Not a regular file"):
        load_json(tmp_path / "x.json")
    assert read_json(tmp_path / "x.json") is None
