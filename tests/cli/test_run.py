"""The command line: what it understands, and the sentence and code with which it refuses."""

import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import bids_cmb
from bids_cmb.bids.filters import read_filter_file
from bids_cmb.cli.main import main as one_command
from bids_cmb.cli.parser import COMMANDS, make_parser
from bids_cmb.cli.run import main
from bids_cmb.cli.settings import configure
from bids_cmb.config import RESEARCH_DETECTORS
from bids_cmb.errors import MEANINGS, ExitError
from bids_cmb.networks.model_cards import DETECTION, list_cards

RUN = Path(__file__).parents[2] / "run.py"


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
        (["--scan-time-limit", "0"], 64, "--scan-time-limit must be above 0 minutes; found 0"),
        (["--scan-time-limit", "inf"], 64, "above 0 minutes; found inf"),
        (["--threshold", "1.5"], 64, "--threshold must lie above 0 and up to 1; found 1.5"),
        (["--threshold", "nan"], 64, "found nan"),
        (["--min-volume", "inf"], 64, "--min-volume must be 0 mm³ or more; found inf"),
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


@pytest.mark.parametrize(
    ("text", "code", "sentence"),
    [
        ("anatomy = 'nonee'", 65, 'anatomy must be one of network, none; found "nonee"'),
        ("report = 'pdf'", 65, 'report must be one of static, interactive, none; found "pdf"'),
        ("output_level = 'huge'", 65, "output_level must be one of minimal, standard, full"),
        ("device = 'tpu'", 65, 'device must be one of auto, gpu, cpu; found "tpu"'),
        ("engine = 'onnx'", 65, 'engine must be one of auto, openvino, tensorflow; found "onnx"'),
        ("validate = 'strictly'", 65, "validate must be one of off, warn, strict"),
        ("precision = 'half'", 65, "precision must be one of auto, full, mixed"),
        ("output_level = ['full']", 65, "output_level must be one of"),
        ("detector = []", 65, "detector must name at least one; found an empty list"),
        ("suffix = []", 65, "suffix must name at least one"),
        ("detector = [true]", 65, "detector must be a text, or a list of these; found [true]"),
        ("threshold = 'high'", 65, 'threshold must be a number; found "high"'),
        ("overwrite = 1", 65, "overwrite must be true or false; found 1"),
        ("n_cpus = true", 65, "n_cpus must be a whole number; found true"),
        ("n_cpus = 1.5", 65, "n_cpus must be a whole number; found 1.5"),
        ("derivatives = 3", 65, "derivatives must be a path, as a text, or a list of these"),
        ("model_dir = {a = 1}", 65, 'model_dir must be a path, as a text; found {"a": 1}'),
        ("verbosity = 'high'", 65, "verbosity must be a whole number"),
        ("gpu_id = 2026-01-01", 65, 'gpu_id must be a text; found "2026-01-01"'),
        ("mem_mb = -5", 64, "--mem-mb must be an amount of memory like 8000 or 8G; found -5"),
        ("shard = [1]", 64, "--shard must be I/N with I from 1 to N, or auto; found 1"),
        ("shard = [3, 2]", 64, "I from 1 to N, or auto; found 3/2"),
        ("n_cpus = 0", 64, "--n-cpus must be at least 1; found 0"),
        ("threshold = nan", 64, "--threshold must lie above 0 and up to 1; found nan"),
        ("deep_wm_distance_mm = -1", 64, "--deep-wm-distance-mm must be 0 to 50 mm"),
        ("detector = ['radial', 'radial']", 64, "each name once"),
        ("analysis_level = 'session'", 17, "must be participant or group; found session"),
    ],
)
def test_a_config_file_is_checked_as_flags_are(words, tmp_path, text, code, sentence):
    """In words of a config file: nothing of Python's types, and the file where it is to blame."""
    path = tmp_path / "config.toml"
    path.write_text(text)
    given = words[: 2 if "analysis_level" in text else 3]
    found, said = refused([*given, "--config-file", str(path)])
    assert (found, sentence in said) == (code, True), said
    assert code != 65 or said.startswith(f"{path}: ")


def test_settings_of_a_config_file_are_understood_as_flags_are(words, tmp_path, monkeypatch):
    path = tmp_path / "config.toml"
    path.write_text(
        "mem_mb = '8G'\nshard = '2/4'\ngpu_id = 0\nparticipant_label = []\n"
        "exclude_flags = []\ndetector = 'radial'\nderivatives = 'masks'\n"
        "verbosity = -1\nthreshold = 1\n"
    )
    (tmp_path / "masks").mkdir()
    monkeypatch.chdir(tmp_path)
    config = configure([*words, "--config-file", str(path)])
    flags = "--mem-mb 8G --shard 2/4 --gpu-id 0 --exclude-flags --detector radial --threshold 1 -q"
    assert config.derivatives == (tmp_path / "masks",)
    expected = configure([*words, *flags.split()])
    assert replace(config, derivatives=()) == expected


def test_a_malformed_config_file_is_bad_data(words, tmp_path):
    path = tmp_path / "config.toml"
    path.write_text("threshold =")
    assert refused([*words, "--config-file", str(path)])[0] == 65


def test_the_levels_and_the_folders_are_needed(words):
    assert refused(words[:2]) == (
        64,
        "bids_dir, output_dir and a level are needed; analysis_level is missing. "
        "See bids-cmb --help.",
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
        "from bids_cmb.cli.run import main\n"
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
from bids_cmb.cli.run import _environment
from bids_cmb.config import Config
signal.signal(int(sys.argv[2]), signal.SIG_DFL)  # the tests may run under nohup
with _environment(Config(Path(), Path(), (), work_dir=Path(sys.argv[1]))):
    os.kill(os.getpid(), int(sys.argv[2]))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_asked_to_end_by_a_signal_no_temporary_folder_is_left(tmp_path, number):
    """From the very beginning, before anything of the app is imported."""
    words = [sys.executable, "-c", ASKED_TO_END, tmp_path, str(int(number))]
    ran = subprocess.run([*map(str, words)], capture_output=True, text=True, check=False)
    assert ran.returncode == 128 + number
    assert "run the same command again to resume" in ran.stderr
    assert not list(tmp_path.iterdir())


def app(*words, **streams):
    """The app in a process of its own; its exit code and what it wrote to stderr."""
    environment = {**os.environ, **streams.pop("env", {})}
    ran = subprocess.run(
        [sys.executable, RUN, *words], stderr=subprocess.PIPE, env=environment, check=False,
        **streams,
    )  # fmt: skip
    return ran.returncode, ran.stderr.decode()


@pytest.fixture
def dry_run(tmp_path):
    """Words for a dry run of a small dataset."""
    for number in range(3):
        folder = tmp_path / f"raw/sub-{number:04d}/anat"
        folder.mkdir(parents=True)
        (folder / f"sub-{number:04d}_T2starw.nii.gz").touch()
    return [str(tmp_path / "raw"), str(tmp_path / "out"), "participant", "--dry-run", "-q"]


@pytest.mark.parametrize("flag", ["--help", "--bids-exec-spec", "--dry-run"])
def test_whoever_reads_a_line_and_leaves_is_told_nothing(dry_run, flag):
    words = dry_run if flag == "--dry-run" else [flag]
    reader, writer = os.pipe()
    os.close(reader)  # has left already
    try:
        code, said = app(*words, stdout=writer)
        assert code in ((0, 141) if flag == "--help" else (141,))  # argparse does not mind
        assert "Error" not in said
        assert flag == "--dry-run" or not said
    finally:
        os.close(writer)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_an_output_that_is_full_is_one_sentence():
    with Path("/dev/full").open("w") as full:
        code, said = app("--bids-exec-spec", stdout=full)
    assert (code, said) == (
        74,
        "bids_cmb: standard output cannot be written; no space left on device.\n",
    )


@pytest.mark.parametrize(
    "env",
    [
        {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
        {"PYTHONIOENCODING": "ascii"},
    ],
)
def test_help_is_printed_on_a_terminal_that_knows_ascii_only(env):
    code, said = app("--help", stdout=subprocess.PIPE, env=env)
    assert (code, said) == (0, "")


def test_help_takes_less_than_a_second():
    """On a busy machine too: processor time is measured, not time."""
    code = (
        "import resource, subprocess, sys\n"
        "subprocess.run([sys.executable, sys.argv[1], '--help'], stdout=subprocess.DEVNULL)\n"
        "used = resource.getrusage(resource.RUSAGE_CHILDREN)\n"
        "print(used.ru_utime + used.ru_stime)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, RUN], capture_output=True, text=True, check=True
    )
    assert float(ran.stdout) < 1


def test_help_names_every_exit_code():
    text = make_parser().format_help()
    for code in MEANINGS:
        assert re.search(rf"\b{code}\b", text.partition("Exit codes")[2]), code


def test_help_names_every_detector_and_sets_those_for_research_apart():
    text = " ".join(make_parser().format_help().split())
    known, _, research = text.partition("for research: ")
    for name in list_cards(DETECTION):
        assert (name in RESEARCH_DETECTORS) == (name in research.partition(")")[0]), name
        assert name in RESEARCH_DETECTORS or name in known.rpartition("--detector NAME")[2], name


def test_every_byte_of_a_name_can_be_printed(tmp_path):
    """A dataset below a folder whose name is no UTF-8."""
    raw = os.fsdecode(os.fsencode(tmp_path) + b"/r\xe4w")
    folder = Path(raw, "sub-01", "anat")
    folder.mkdir(parents=True)
    (folder / "sub-01_T2starw.nii.gz").touch()
    code, said = app(raw, str(tmp_path / "out"), "participant", "--dry-run", stdout=subprocess.PIPE)
    assert code == 18
    assert "Traceback" not in said
    assert "Logging error" not in said


def test_a_folder_for_temporary_files_that_cannot_be_made_names_what_is_in_the_way(
    words, tmp_path, capsys
):
    (tmp_path / "file").touch()
    assert main([*words, "-w", str(tmp_path / "file" / "work"), "--dry-run"]) == 73
    assert f"must be writable ({tmp_path / 'file'} is a file, no folder)" in capsys.readouterr().err


def test_one_command_does_everything(tmp_path):
    """The words of a BIDS App, or a command's name before all else; a folder may bear that name."""
    ran = [
        subprocess.run(
            [sys.executable, "-m", "bids_cmb", *words],
            cwd=tmp_path, capture_output=True, text=True, check=False,
        )
        for words in (["--help"], ["simulate", "--help"], ["./simulate", "out", "participant"])
    ]  # fmt: skip
    assert [one.returncode for one in ran] == [0, 0, 66]
    listed = ran[0].stdout.partition("commands:")[2]
    assert all(f"\n  {name} " in listed for name in COMMANDS)
    assert ran[1].stdout.startswith("usage: bids-cmb simulate ")


def test_the_example_of_a_filter_in_the_help_is_one(tmp_path):
    (tmp_path / "filter.json").write_text(re.search(r"\{.*\}\}", make_parser().format_help())[0])
    filters, notes = read_filter_file(tmp_path / "filter.json")
    assert filters["T2starw"] == {"suffix": ("T2starw",), "acq": ("highres",)}
    assert not notes


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name, capsys):
    with pytest.raises(SystemExit) as end:
        one_command([name, "--help"])
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: bids-cmb {name} ")


@pytest.mark.parametrize(
    "flag", ["--folds=c", "--uncounted=csf", "--deep-white-mm=9", "--models=m", "--member=c"]
)
def test_a_setting_has_one_name(words, flag):
    """Neither an earlier name nor the beginning of a name is understood."""
    code, sentence = refused([*words, flag])
    assert code == 64
    assert sentence.startswith(f"unrecognized arguments: {flag}.")


@pytest.mark.parametrize(
    ("line", "refusal"),
    [
        ("simulate OUT --n=2", "unrecognized arguments: --n=2"),
        ("simulate OUT --variant=crowded", "unrecognized arguments: --variant=crowded"),
        ("train RECIPE DATA OUT --given=a=b", "unrecognized arguments: --given=a=b"),
        ("train RECIPE DATA OUT --pre=a=b", "unrecognized arguments: --pre=a=b"),
        ("evaluate FOUND TRUTH OUT --unsure=count", "unrecognized arguments: --unsure=count"),
        ("compare A B TRUTH OUT --unsure=count", "unrecognized arguments: --unsure=count"),
        ("import-labels dou SRC OUT --leave-out", "unrecognized arguments: --leave-out"),
        ("models list --models=m", "unrecognized arguments: --models=m"),
        ("models card mine JSON", "invalid choice: 'card'"),
    ],
)
def test_a_flag_of_a_command_has_one_name(line, refusal, capsys):
    with pytest.raises(SystemExit) as end:
        one_command(line.split())
    assert end.value.code == 2
    assert refusal in capsys.readouterr().err
