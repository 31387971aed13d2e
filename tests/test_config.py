"""Settings survive the way to a file and back, and wrong ones are refused."""

import os
from pathlib import Path

import pytest

from bids_cmb.cli.settings import configure
from bids_cmb.config import Config, read_config_file, to_toml


@pytest.mark.parametrize(
    "name",
    [
        b'with "quotes" and \\ and \xc3\xbc',
        "an emoji \U0001f9e0, \ufeff and \u2028".encode(),
        b"a tab\t, a line\n, a bell\x07 and \x7f",
        b"no UTF-8 \xff\xe4 and 100%41",
        b"file:",
    ],
)
def test_a_saved_config_gives_the_same_config_back(tmp_path, name):
    raw = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
    raw.mkdir()
    config = Config(
        bids_dir=raw,
        output_dir=tmp_path / "out",
        analysis_level=("participant", "group"),
        participant_label=("01", "02"),
        shard=(2, 5),
        threshold=0.25,
        derivatives=(raw,),
        exclude_flags=(),
        overwrite=True,
    )
    path = tmp_path / "config.toml"
    path.write_text(to_toml(config), encoding="utf-8")
    assert configure(["--config-file", str(path)]) == config


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("threshold = ", "must be TOML"),
        ("treshold = 0.5", "every setting must be one of .* found treshold"),
        ("a = " + "[" * 10_000, "must be TOML"),
    ],
)
def test_a_wrong_config_file_is_refused_in_a_sentence(tmp_path, text, sentence):
    path = tmp_path / "config.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"config.toml: .*{sentence}"):
        read_config_file(path)


def test_a_single_label_may_stand_without_brackets(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text("participant_label = '01'\nthreshold = 1\n")
    raw, out = tmp_path, tmp_path / "derivatives" / "out"
    words = [str(raw), str(out), "participant", "--config-file", str(path)]
    config = configure(words)
    assert (config.participant_label, config.threshold) == (("01",), 1)


def test_paths_are_relative_to_the_working_directory_as_those_of_flags_are(tmp_path, monkeypatch):
    (tmp_path / "config.toml").write_text(f"derivatives = ['fs', '{tmp_path / 'raw'}']\n")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fs").mkdir()
    (tmp_path / "raw").mkdir()
    config = configure(["raw", "out", "participant", "--config-file", "config.toml"])
    assert config.bids_dir == tmp_path / "raw"
    assert config.derivatives == (tmp_path / "fs", tmp_path / "raw")
