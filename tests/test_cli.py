"""The command line: what it understands, and the sentence and code with which it refuses."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import bids_cmb
from bids_cmb.cli import configure, main
from bids_cmb.exits import ExitError

RUN = Path(__file__).parents[1] / "run.py"


@pytest.fixture
def words(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    return [str(raw), str(tmp_path / "out"), "participant"]


def refused(words):
    with pytest.raises(ExitError) as end:
        configure(words)
    assert "\n" not in str(end.value)
    return end.value.code, str(end.value)


def test_hyphens_and_underscores_say_the_same(words):
    hyphens = configure([*words, "--participant-label", "01", "--n-cpus=2", "--mem-mb", "8G"])
    underscores = configure([*words, "--participant_label", "01", "--n_cpus=2", "--mem_mb", "8192"])
    assert hyphens == underscores
    assert hyphens.participant_label == ("01",)
    assert hyphens.mem_mb == 8192


def test_a_value_keeps_its_underscores(words):
    assert configure([*words, "--mask-desc=my_brain"]).mask_desc == "my_brain"
    assert configure([*words, "--acq", "a_b"]).acq == ("a_b",)


def test_other_apps_names_of_a_flag_are_understood(words):
    config = configure([*words, "--nprocs", "3", "--session-id", "a", "--mem", "2G", "--notrack"])
    assert (config.n_cpus, config.session_label, config.mem_mb) == (3, ("a",), 2048)


def test_both_levels_may_be_named_together(words):
    assert configure([*words, "group"]).analysis_level == ("participant", "group")


def test_flags_may_stand_before_and_between(words):
    config = configure(["-v", words[0], "--n-cpus", "2", words[1], "participant", "--overwrite"])
    assert (config.verbosity, config.n_cpus, config.overwrite) == (1, 2, True)


def test_skip_bids_validation_is_validate_off(words):
    assert configure([*words, "--skip_bids_validation"]).validate == "off"


def test_a_flag_wins_over_the_config_file(words, tmp_path):
    path = tmp_path / "config.toml"
    path.write_text("threshold = 0.3\nmin_volume = 2\noverwrite = true\n")
    config = configure([*words, "--config-file", str(path), "--threshold", "0.4", "--resume"])
    assert (config.threshold, config.min_volume, config.overwrite) == (0.4, 2, False)


def test_a_config_file_may_name_the_folders(words, tmp_path):
    path = tmp_path / "config.toml"
    path.write_text(
        f'bids_dir = "{words[0]}"\noutput_dir = "{words[1]}"\nanalysis_level = "group"\n'
    )
    assert configure(["--config-file", str(path)]).analysis_level == ("group",)


def test_a_shard_is_read_from_the_command_line_or_from_slurm(words, monkeypatch):
    assert configure([*words, "--shard", "2/7"]).shard == (2, 7)
    for name, value in {"ID": "14", "MIN": "10", "MAX": "18", "STEP": "2"}.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", value)
    assert configure([*words, "--shard", "auto"]).shard == (3, 5)
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "5")
    assert configure([*words, "--shard", "auto"]).shard == (3, 5)


def test_a_slurm_array_with_gaps_is_refused_since_scans_would_be_left_out(words, monkeypatch):
    """``sbatch --array=1,3,4``: Slurm tells first, last and count, not which are missing."""
    for name, value in {"ID": "3", "MIN": "1", "MAX": "4", "COUNT": "3"}.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", value)
    with pytest.raises(ExitError, match="4 places and 3 tasks"):
        configure([*words, "--shard", "auto"])


def test_overwrite_wins_over_resume(words):
    assert configure([*words, "--resume", "--overwrite"]).overwrite
    assert not configure([*words, "--resume"]).overwrite


@pytest.mark.parametrize(
    ("flags", "code", "sentence"),
    [
        (["--no-such-flag"], 64, "unrecognized arguments: --no-such-flag"),
        (["--participant-label"], 64, "expected at least one argument"),
        (["--particip", "01"], 64, "unrecognized"),
        (["session"], 17, "must be participant or group; found session"),
        (["--shard", "3/2"], 64, "I from 1 to N, or auto; found 3/2"),
        (["--shard", "0/2"], 64, "found 0/2"),
        (["--shard", "auto"], 64, "needs a Slurm array job; SLURM_ARRAY_TASK_ID is not set"),
        (["--n-cpus", "0"], 64, "--n-cpus must be at least 1; found 0"),
        (["--n-cpus", "two"], 64, "invalid int value: 'two'"),
        (["--mem-mb", "much"], 64, "amount of memory like 8000 or 8G; found much"),
        (["--threshold", "1.5"], 64, "--threshold must lie above 0 and up to 1; found 1.5"),
        (["--threshold", "nan"], 64, "found nan"),
        (["--min-volume", "-1"], 64, "--min-volume must be 0 mm³ or more; found -1"),
        (["--detector", "radial", "radial"], 64, "each name once; found radial radial"),
        (["--output-level", "huge"], 64, "invalid choice: 'huge'"),
        (["--config-file", "/no/such.toml"], 66, "/no/such.toml: the config file cannot be read"),
        (["--derivatives", "/no/such"], 66, "/no/such: --derivatives must be a folder"),
    ],
)
def test_what_makes_no_sense_is_refused(words, monkeypatch, flags, code, sentence):
    monkeypatch.delenv("SLURM_ARRAY_TASK_ID", raising=False)
    found, said = refused([*words, *flags])
    assert (found, sentence in said) == (code, True), said


def test_a_malformed_config_file_is_bad_data(words, tmp_path):
    path = tmp_path / "config.toml"
    path.write_text("threshold =")
    assert refused([*words, "--config-file", str(path)])[0] == 65


def test_the_levels_and_the_folders_are_needed(words):
    assert refused(words[:2]) == (
        64,
        "bids_dir, output_dir and a level are needed; analysis_level is missing.",
    )


def test_an_output_within_the_input_is_refused_but_for_its_derivatives(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    for out in (raw, raw / "sub-01", raw / "derivatives" / ".."):
        assert refused([str(raw), str(out), "participant"])[0] == 64
    link = tmp_path / "link"
    link.symlink_to(raw)
    assert refused([str(raw), str(link), "participant"])[0] == 64
    assert configure([str(raw), str(raw / "derivatives" / "bids_cmb"), "participant"])


def test_a_work_folder_within_the_input_is_refused(words):
    code, said = refused([*words, "-w", f"{words[0]}/work"])
    assert (code, "--work-dir must lie outside bids_dir" in said) == (64, True)


def test_a_missing_dataset_is_refused_but_the_group_level_needs_none(tmp_path):
    words = [str(tmp_path / "none"), str(tmp_path / "out")]
    code, said = refused([*words, "participant"])
    assert (code, "bids_dir must be a folder; there is none" in said) == (66, True)
    assert configure([*words, "group"])


def test_help_tells_the_most_used_flags_first_and_does_not_wait(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert text.index("most used") < text.index("--participant-label") < text.index("which scans")
    # What makes help slow are imports; none of the heavy ones may happen before it is printed.
    code = (
        "import sys; sys.argv = ['run.py', '--help']\n"
        "from bids_cmb.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'numpy', 'scipy', 'nibabel', 'bids', 'pandas', 'keras', 'tensorflow'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=RUN.parent)


def test_version_is_that_of_the_package():
    ran = subprocess.run(
        [sys.executable, RUN, "--version"], capture_output=True, text=True, check=True
    )
    assert ran.stdout == f"bids_cmb {bids_cmb.__version__}\n"


def test_a_refusal_is_one_line_on_stderr(words, capsys):
    assert main([*words, "--shard", "9"]) == 64
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == "bids_cmb: --shard must be I/N with I from 1 to N, or auto; found 9.\n"


def test_the_environment_is_left_as_it_was(words, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    before = dict(os.environ)
    assert main([*words, "--dry-run", "-q"]) == 18
    assert dict(os.environ) == before


ASKED_TO_END = """
import os, signal, sys
from pathlib import Path
from bids_cmb.cli import _environment
from bids_cmb.config import Config
with _environment(Config(Path(), Path(), (), work_dir=Path(sys.argv[1]))):
    os.kill(os.getpid(), int(sys.argv[2]))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_asked_to_end_by_a_signal_no_temporary_folder_is_left(tmp_path, number):
    """From the very beginning, before anything of the app is imported."""
    words = [sys.executable, "-c", ASKED_TO_END, tmp_path, str(int(number))]
    ran = subprocess.run([*map(str, words)], capture_output=True, text=True, check=False)
    assert ran.returncode == 128 + number
    assert "the same command goes on where this one stopped" in ran.stderr
    assert not list(tmp_path.iterdir())
