"""The command line as a Boutiques descriptor, as the BIDS execution draft asks for it.

It is made from the parser itself, so it cannot say anything else than --help does. Schema 0.5,
https://boutiques.github.io; BIDS execution specification 0.1.0, draft.
"""

import argparse

from bids_cmb import __version__
from bids_cmb.config import LEVELS
from bids_cmb.errors import MEANINGS

SPECIFICATION = "0.1.0"
NO_RUN = {"help", "version", "bids_exec_spec"}  # they only print
MADE = {"output_dir", "work_dir", "bids_database_dir"}  # folders that need not be there before
CORES, GIGABYTES, SECONDS = 2, 6, 60  # for one scan without a GPU, rounded up


def descriptor(parser: argparse.ArgumentParser) -> dict:
    """Everything a run can be asked, as plain data for JSON.

    Args:
        parser: Of the app.
    """
    actions = [one for one in parser._actions if one.dest not in NO_RUN]
    flags = [one for one in actions if one.option_strings]
    command = "bids_cmb [BIDS_DIR] [OUTPUT_DIR] [ANALYSIS_LEVEL]"
    return {
        "name": "bids_cmb",
        "description": parser.description,
        "tool-version": __version__,
        "schema-version": "0.5",
        "command-line": " ".join([command, *(f"[{_id(one).upper()}]" for one in flags)]),
        "container-image": {"type": "docker", "image": f"bids_cmb:{__version__}"},
        "inputs": [_input(one) for one in actions],
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
        "error-codes": [{"code": code, "description": said} for code, said in MEANINGS.items()],
        "suggested-resources": {"cpu-cores": CORES, "ram": GIGABYTES, "walltime-estimate": SECONDS},
        "tags": {"domain": ["neuroinformatics", "mri"]},
        "custom": {"BIDSAppSpecVersion": SPECIFICATION},
    }


def _input(action: argparse.Action) -> dict:
    """A positional or a flag as an input of Boutiques."""
    said = {
        "id": _id(action),
        "name": _id(action).replace("_", " "),
        "description": action.help.replace("%%", "%"),
        "value-key": f"[{_id(action).upper()}]",
        "optional": bool(action.option_strings),
        **_kind(action),
    }
    if action.option_strings:
        said["command-line-flag"] = _flag(action)
    if action.dest == "analysis_level":
        said["value-choices"] = list(LEVELS)
    elif action.choices:
        said["value-choices"] = list(action.choices)
    if action.nargs in ("+", "*"):
        said["list"] = True
    return said


def _kind(action: argparse.Action) -> dict:
    if action.nargs == 0:
        return {"type": "Flag"}
    if action.type is int:
        return {"type": "Number", "integer": True}
    if action.type is float:
        return {"type": "Number"}
    if action.type is not None and action.dest not in MADE:  # a path
        return {"type": "File"}
    return {"type": "String"}


def _flag(action: argparse.Action) -> str:
    return next(name for name in action.option_strings if name.startswith("--"))


def _id(action: argparse.Action) -> str:
    """Of the flag, not of the setting: two flags may set the same one."""
    name = _flag(action).removeprefix("--") if action.option_strings else action.dest
    return name.replace("-", "_")
