"""What the app says of its own command line to other programs."""

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from bids_cmb.cli.descriptor import make_descriptor
from bids_cmb.cli.parser import make_parser
from bids_cmb.cli.run import main
from bids_cmb.cli.settings import configure

RUN = Path(__file__).parents[2] / "run.py"
BOSH = Path(__file__).parents[2] / ".lint/bin/bosh"  # the linters' own environment, `.ci/lint`


@pytest.fixture(scope="module")
def said():
    ran = subprocess.run(
        [sys.executable, RUN, "--bids-exec-spec"], check=True, capture_output=True, text=True
    )
    return json.loads(ran.stdout)


def test_the_lone_flag_prints_what_the_parser_says(said):
    assert said == json.loads(json.dumps(make_descriptor(make_parser())))


def test_every_flag_of_a_run_is_described_and_stands_in_the_command_line(said):
    flags = {one.get("command-line-flag") for one in said["inputs"]}
    assert {"--participant-label", "--shard", "--device", "--dask-scheduler", "--verbose"} <= flags
    assert not flags & {"--help", "--version", "--bids-exec-spec"}
    keys = [one["value-key"] for one in said["inputs"]]
    assert said["command-line"].split() == ["bids-cmb", *keys]


def test_the_command_is_the_one_that_an_installation_has(said):
    """Boutiques starts it by this name within the image, past the entry point of the image."""
    [script] = metadata.entry_points(group="console_scripts", name=said["command-line"].split()[0])
    assert script.value == "bids_cmb.cli.main:main"


def test_no_two_inputs_or_outputs_share_an_id(said):
    ids = [one["id"] for one in said["inputs"] + said["output-files"]]
    assert len(set(ids)) == len(ids)


def test_a_command_that_follows_the_descriptor_is_understood(said, tmp_path):
    """Every flag with a value that its description allows, in one command line."""
    values = {"Number": "1", "File": str(tmp_path), "String": "x", "Flag": None}
    special = {"threshold": "0.5", "mem_mb": "8G", "shard": "1/2", "detector": "radial"}
    left = {"config_file", "bids_dir", "output_dir", "analysis_level"}
    words = [str(tmp_path / "raw"), str(tmp_path / "out"), "participant"]
    (tmp_path / "raw").mkdir()
    for one in said["inputs"]:
        if one["id"] in left:
            continue
        words.append(one["command-line-flag"])
        value = special.get(one["id"], one.get("value-choices", [values[one["type"]]])[0])
        words += [] if value is None else [value]
    config = configure(words)
    assert config.shard == (1, 2)
    assert config.mem_mb == 8192


@pytest.mark.skipif(not BOSH.exists(), reason="bosh is not there; `bash .ci/lint` installs it")
def test_boutiques_finds_the_descriptor_valid(said, tmp_path):
    file = tmp_path / "bids_cmb.json"
    file.write_text(json.dumps(said))
    ran = subprocess.run([BOSH, "validate", file], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_nothing_else_is_done(tmp_path, capsys):
    assert main(["--bids-exec-spec", "/no/such", str(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "bids_cmb"
    assert list(tmp_path.iterdir()) == []
