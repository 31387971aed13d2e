"""The bundle for nipoppy says what this version of the app takes and writes."""

import json
import subprocess
from pathlib import Path

import pytest
from running import QUICK

import bids_cmb
from bids_cmb.cli.run import main
from bids_cmb.cli.settings import configure

ROOT = Path(__file__).parents[2]
BUNDLE = ROOT / "docs" / "hpc" / "nipoppy"
BOSH = ROOT / ".lint/bin/bosh"  # the linters' own environment, `.ci/lint`
INVOCATIONS = {"participant": "invocation.json", "group": "invocation-group.json"}


def load(name):
    return json.loads((BUNDLE / name).read_text(encoding="utf-8"))


def fill_in(text, **values):
    """Replace ``[[NAME]]`` by the value of NAME, as nipoppy does."""
    for name, value in values.items():
        text = text.replace(f"[[{name}]]", str(value))
    assert "[[" not in text
    return text


def invocation(level, root):
    """What nipoppy would ask the app of participant 01 in a study."""
    names = {
        "NIPOPPY_DPATH_BIDS": root / "bids",
        "NIPOPPY_DPATH_PIPELINE_OUTPUT": root / "out",
        "NIPOPPY_DPATH_PIPELINE_WORK": root / "work",
        "NIPOPPY_PARTICIPANT_ID": "01",
    }
    return json.loads(fill_in((BUNDLE / INVOCATIONS[level]).read_text("utf-8"), **names))


def make_command(asked):
    """The words after the program's name, as Boutiques makes them of the descriptor."""
    words = []
    for entry in load("descriptor.json")["inputs"]:
        value = asked.pop(entry["id"], None)
        values = value if isinstance(value, list) else [value] * (value is not None)
        flag = entry.get("command-line-flag")
        words += [*([flag] if flag and values else []), *map(str, values)]
    assert not asked, "no input of the descriptor"
    return words


def track(out, participant, session):
    """Whether nipoppy finds the results of a session."""
    names = {
        "NIPOPPY_BIDS_PARTICIPANT_ID": f"sub-{participant}",
        "NIPOPPY_BIDS_SESSION_ID": f"ses-{session}",
    }
    return all(list(out.glob(fill_in(path, **names))) for path in load("tracker.json")["PATHS"])


def test_the_bundle_is_of_this_version():
    config = load("config.json")
    descriptor = load("descriptor.json")
    assert (config["NAME"], config["VERSION"]) == ("bids_cmb", bids_cmb.__version__)
    assert descriptor["tool-version"] == bids_cmb.__version__


def test_every_file_of_the_bundle_is_named_by_a_step_and_there():
    named = {value for step in load("config.json")["STEPS"] for key, value in step.items()
             if key.endswith("_FILE")}  # fmt: skip
    assert named | {"config.json"} == {path.name for path in BUNDLE.iterdir()}


def test_one_job_has_all_sessions_of_a_participant():
    """Else two jobs would follow the same lesions over time at once."""
    levels = {step["NAME"]: step["ANALYSIS_LEVEL"] for step in load("config.json")["STEPS"]}
    assert levels == {"participant": "participant", "group": "group"}


@pytest.mark.parametrize("level", INVOCATIONS)
def test_the_app_understands_what_nipoppy_asks_of_it(tmp_path, level):
    (tmp_path / "bids").mkdir()
    config = configure(make_command(invocation(level, tmp_path)))
    assert config.analysis_level == (level,)
    assert (config.bids_dir, config.output_dir) == (tmp_path / "bids", tmp_path / "out")
    assert config.work_dir == tmp_path / "work"
    assert config.participant_label == (("01",) if level == "participant" else ())


def test_the_job_has_the_cores_and_the_memory_that_the_app_is_told(tmp_path):
    asked, granted = invocation("participant", tmp_path), load("hpc.json")
    assert granted["CORES"] == str(asked["n_cpus"])
    assert granted["MEMORY"] == asked["mem_mb"]


@pytest.mark.usefixtures("one_process")
def test_a_session_is_tracked_when_its_scan_is_done_and_not_when_it_failed(dataset, tmp_path):
    raw = dataset(
        {f"sub-01/ses-{number}/anat/sub-01_ses-{number}_acq-a_T2starw": "ball" for number in (1, 2)}
    )
    (raw / "sub-01/ses-2/anat/sub-01_ses-2_acq-a_T2starw.nii.gz").write_bytes(b"no image")
    raw.rename(tmp_path / "bids")
    words = make_command(invocation("participant", tmp_path))
    assert main([*words, *QUICK, "--skip-brain-extraction", "--report", "none"]) == 1
    assert track(tmp_path / "out", "01", 1)
    assert not track(tmp_path / "out", "01", 2)


@pytest.mark.skipif(not BOSH.exists(), reason="bosh is not there; `bash .ci/lint` installs it")
@pytest.mark.parametrize("name", INVOCATIONS.values())
def test_boutiques_finds_the_invocations_valid(name):
    words = [BOSH, "invocation", "-i", BUNDLE / name, BUNDLE / "descriptor.json"]
    ran = subprocess.run(words, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
