"""A glance at a dataset says what is missing; the official validator says the rest."""

import pytest

from bids_cmb import validation
from bids_cmb.validation import full_errors, quick_look


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "asks for JSON; it cannot be read"),
        ("[]", "asks for a JSON object; found list"),
        ('{"Name": "x"}', "asks for `BIDSVersion`; it is not there"),
    ],
)
def test_a_wrong_description_is_named(tmp_path, text, sentence):
    (tmp_path / "dataset_description.json").write_text(text)
    [said] = quick_look(tmp_path)
    assert sentence in said


def test_a_good_description_is_not_spoken_of(tmp_path):
    (tmp_path / "dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.11.1"}')
    assert quick_look(tmp_path) == []


def test_strict_needs_the_validator(tmp_path, monkeypatch):
    monkeypatch.setattr(validation, "VALIDATOR", "no-such-program")
    with pytest.raises(ValueError, match="needs the program no-such-program; it is not installed"):
        full_errors(tmp_path)


def test_a_validator_that_does_not_answer_is_named(tmp_path, monkeypatch):
    program = tmp_path / "silent"
    program.write_text("#!/bin/sh\necho broken >&2\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(validation, "VALIDATOR", "silent")
    with pytest.raises(ValueError, match="silent must answer in JSON; found 'broken'"):
        full_errors(tmp_path)
