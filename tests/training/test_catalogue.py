"""The recipes of the package as they are listed; the package's own files are the truth."""

import json
import re
import shlex
from importlib.resources import files
from pathlib import Path

import pytest

from bids_cmb.cli.commands import main
from bids_cmb.training.catalogue import find_part, list_next_commands, list_recipes

RESOURCES = files("bids_cmb") / "resources"


def test_the_list_names_every_recipe_once_and_what_it_needs(capsys):
    with pytest.raises(SystemExit) as end:
        main(["train", "--list"])
    assert end.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    names = sorted(path.name[:-5] for path in (RESOURCES / "recipes").iterdir())
    assert sorted(line.split()[0] for line in lines[1 : 1 + len(names)]) == names
    (patches,) = [line for line in lines if line.startswith("cascade-patches ")]
    assert "--pretrained boxes=" in patches
    recipe = json.loads((RESOURCES / "recipes/cascade-patches.json").read_text())
    assert f"{recipe['batch']} x {recipe['steps']} x {recipe['epochs']}" in patches


def test_what_is_said_of_size_and_cost_is_what_the_cards_hold(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--list"])
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "proposal-1 " in line[:12]]
    card = json.loads((RESOURCES / "models/two-stage.json").read_text())
    entry = next(member for member in card["members"] if member["name"] == "proposal-1")
    megabytes, hours = re.search(r"([\d.]+) +([\d.]+) +nothing else", line).groups()
    assert float(hours) == pytest.approx(entry["training"]["core_hours"], abs=0.05)
    size = (RESOURCES / "models" / entry["weights"]).stat().st_size
    assert float(megabytes) == pytest.approx(size / 2**20, abs=0.05)


@pytest.mark.parametrize("recipe", ["ensemble-c", "proposal-1", "cascade-boxes"])
def test_the_next_command_makes_a_card_of_what_was_trained(recipe, tmp_path):
    """With the package's own network in place of a trained one."""
    part = find_part(recipe)
    entry = tmp_path / f"{recipe}.json"
    weights = Path(str(RESOURCES / "models" / part.entry["weights"]))
    (tmp_path / weights.name).write_bytes(weights.read_bytes())
    entry.write_text(json.dumps({**part.entry, "name": recipe}))
    words = shlex.split(list_next_commands(recipe, entry)[0])
    assert words[:4] == ["bids-cmb", "models", "create", "NAME"]
    words = [str(tmp_path / "models") if word == "MODELS" else word for word in words[1:]]
    assert main(words) == 0
    assert json.loads((tmp_path / "models/NAME.json").read_text())["members"]


def test_a_network_that_is_no_detector_has_no_command(tmp_path):
    assert list_next_commands("anatomy", tmp_path / "anatomy.json") == []
    assert set(list_recipes()) >= {"anatomy", "ensemble-c"}
