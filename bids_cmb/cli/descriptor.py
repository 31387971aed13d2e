"""Describe the command line as a Boutiques descriptor, as the BIDS execution draft requires.

It is made from the parser, so it always agrees with --help. Schema 0.5,
https://boutiques.github.io; BIDS execution specification 0.1.0, draft.
"""

import argparse

from bids_cmb import __version__
from bids_cmb.config import LEVELS
from bids_cmb.errors import MEANINGS

SPECIFICATION = "0.1.0"
PRINTING_FLAGS = {"help", "version", "bids_exec_spec"}  # they only print
CREATED_FOLDERS = {
    "output_dir",
    "work_dir",
    "bids_database_dir",
}  # folders that need not be there before
CORES, GIGABYTES, SECONDS = 2, 4, 60  # for one scan without a GPU, rounded up


def make_descriptor(parser: argparse.ArgumentParser) -> dict:
    """Make the descriptor of the command line, as plain data for JSON.

    Args:
        parser: The parser of the app.
    """
    actions = [action for action in parser._actions if action.dest not in PRINTING_FLAGS]
    flags = [action for action in actions if action.option_strings]
    command = "bids-cmb [BIDS_DIR] [OUTPUT_DIR] [ANALYSIS_LEVEL]"
    return {
        "name": "bids_cmb",
        "description": parser.description,
        "tool-version": __version__,
        "schema-version": "0.5",
        "command-line": " ".join([command, *(f"[{_make_id(action).upper()}]" for action in flags)]),
        "container-image": {"type": "docker", "image": f"bids_cmb:{__version__}"},
        "inputs": [_describe_input(action) for action in actions],
        "output-files": [
            {
                "id": "results",
                "name": "BIDS derivatives: masks, lesion tables, counts",
                "path-template": "[OUTPUT_DIR]",
            },
            {
                "id": "group_table",
                "name": "Every scan in one table",
                "path-template": "[OUTPUT_DIR]/group_microbleeds.tsv",
                "optional": True,
            },
        ],
        "error-codes": [
            {"code": code, "description": meaning} for code, meaning in MEANINGS.items()
        ],
        "suggested-resources": {"cpu-cores": CORES, "ram": GIGABYTES, "walltime-estimate": SECONDS},
        "tags": {"domain": ["neuroinformatics", "mri"]},
        "custom": {"BIDSAppSpecVersion": SPECIFICATION},
    }


def _describe_input(action: argparse.Action) -> dict:
    """Describe a positional or a flag as an input of Boutiques."""
    description = {
        "id": _make_id(action),
        "name": _make_id(action).replace("_", " "),
        "description": action.help.replace("%%", "%"),
        "value-key": f"[{_make_id(action).upper()}]",
        "optional": bool(action.option_strings),
        **_describe_type(action),
    }
    if action.option_strings:
        description["command-line-flag"] = _get_flag(action)
    if action.dest == "analysis_level":
        description["value-choices"] = list(LEVELS)
    elif action.choices:
        description["value-choices"] = list(action.choices)
    if action.nargs in ("+", "*"):
        description["list"] = True
    return description


def _describe_type(action: argparse.Action) -> dict:
    if action.nargs == 0:
        return {"type": "Flag"}
    if action.type is int:
        return {"type": "Number", "integer": True}
    if action.type is float:
        return {"type": "Number"}
    if action.type is not None and action.dest not in CREATED_FOLDERS:  # a path
        return {"type": "File"}
    return {"type": "String"}


def _get_flag(action: argparse.Action) -> str:
    return next(name for name in action.option_strings if name.startswith("--"))


def _make_id(action: argparse.Action) -> str:
    """Make the id of a flag, not of its setting: two flags may have the same setting."""
    name = _get_flag(action).removeprefix("--") if action.option_strings else action.dest
    return name.replace("-", "_")
