"""Settings survive the way to a file and back, and wrong ones are refused."""

from pathlib import Path

import pytest

from bids_cmb.config import Config, read_config_file, to_toml


def test_a_saved_config_gives_the_same_config_back(tmp_path):
    config = Config(
        bids_dir=tmp_path / 'with "quotes" and ü',
        output_dir=tmp_path / "out",
        analysis_level=("participant", "group"),
        participant_label=("01", "02"),
        shard=(2, 5),
        threshold=0.25,
        derivatives=(Path("/masks"),),
        overwrite=True,
    )
    path = tmp_path / "config.toml"
    path.write_text(to_toml(config), encoding="utf-8")
    assert Config(**read_config_file(path)) == config


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("threshold = ", "must be TOML"),
        ("treshold = 0.5", "every setting must be one of .* found treshold"),
        ("threshold = 'high'", "threshold must be float .* found 'high'"),
        ("overwrite = 1", "overwrite must be bool.* found 1"),
        ("n_cpus = true", "n_cpus must be int.* found True"),
        ("output_level = ['full']", "output_level must be str.* found"),
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
    assert read_config_file(path) == {"participant_label": ("01",), "threshold": 1}


def test_paths_are_relative_to_the_working_directory_as_those_of_flags_are(tmp_path, monkeypatch):
    (tmp_path / "config.toml").write_text("bids_dir = 'raw'\nderivatives = ['fs', '/seg']\n")
    monkeypatch.chdir(tmp_path)
    assert read_config_file(Path("config.toml")) == {
        "bids_dir": tmp_path / "raw",
        "derivatives": (tmp_path / "fs", Path("/seg")),
    }
