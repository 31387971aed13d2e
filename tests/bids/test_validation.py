"""A glance at a dataset says what is missing; the official validator says the rest."""

import os

import pytest

from bids_cmb.bids import validation
from bids_cmb.bids.validation import check_description, check_quickly, run_validator


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "asks for JSON; it cannot be read"),
        ("[]", "asks for a JSON object; found a list"),
        ('{"Name": "x"}', "asks for `BIDSVersion`; it is not there"),
    ],
)
def test_a_wrong_description_is_named(tmp_path, text, sentence):
    (tmp_path / "dataset_description.json").write_text(text)
    [said] = check_quickly(tmp_path)
    assert sentence in said


def test_a_good_description_is_not_spoken_of(tmp_path):
    (tmp_path / "dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.11.1"}')
    assert check_quickly(tmp_path) == []


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[1, 2]", "must be a JSON object; found a list"),
        ("[]", "must be a JSON object; found a list"),
        ('{"x": ' + "[" * 100_000, "must be a JSON object; found more than 64 levels"),
        ('{"x": ' + "[" * 600 + "]" * 600 + "}", "found more than 64 levels"),
        (r'{"Authors": ["Sie\ud800"]}', r"must be Unicode; found half a character .*'\\ud800'"),
    ],
)
def test_a_description_that_pybids_stumbles_over_is_refused(tmp_path, text, sentence):
    (tmp_path / "dataset_description.json").write_text(text)
    with pytest.raises(ValueError, match=rf"dataset_description\.json: .*{sentence}"):
        check_description(tmp_path)


@pytest.mark.parametrize("text", ["{", "", '{"Name": "x"}', None])
def test_a_description_that_is_broken_or_missing_stops_nobody(tmp_path, text):
    if text is not None:
        (tmp_path / "dataset_description.json").write_text(text)
    check_description(tmp_path)


def test_a_description_that_is_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "dataset_description.json")
    with pytest.raises(ValueError, match="asks for a file; found a folder, a pipe or a device"):
        check_description(tmp_path)
    (said,) = check_quickly(tmp_path)
    assert "cannot be read" in said


def test_strict_needs_the_validator(tmp_path, monkeypatch):
    monkeypatch.setattr(validation, "VALIDATOR", "no-such-program")
    with pytest.raises(ValueError, match="needs the program no-such-program; it is not installed"):
        run_validator(tmp_path)


def test_a_validator_that_does_not_answer_is_named(tmp_path, monkeypatch):
    program = tmp_path / "silent"
    program.write_text("#!/bin/sh\necho broken >&2\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(validation, "VALIDATOR", "silent")
    with pytest.raises(ValueError, match="silent must answer in JSON; found 'broken'"):
        run_validator(tmp_path)
