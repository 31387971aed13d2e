"""The record of a simulation in its dataset, by which one that was interrupted goes on.

It is kept in a hidden folder, which BIDS tools pass over, until the dataset is complete.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from bids_cmb.files import read_json, write_json

RECORD = ".simulation"


def open_record(folder: Path, content: Mapping) -> dict[int, list[dict]]:
    """Open the record of a simulation, or begin one.

    Args:
        folder: Of the dataset; empty, not there yet, or of the same simulation, interrupted.
        content: What the simulation is to hold, as JSON has it.

    Returns:
        The rows that `add_to_record` was given, by the index of the participant.

    Raises:
        ValueError: If the folder holds anything else.
        OSError: If the record cannot be read or written.
    """
    path = folder / RECORD / "plan.json"
    before, content = read_json(path), json.loads(json.dumps(content))
    if before is None and folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder}: a simulated dataset needs an empty folder; found files in it.")
    if before is not None and (
        other := [key for key in content if before.get(key) != content[key]]
    ):
        raise ValueError(
            f"{folder}: an interrupted simulation goes on with the same arguments only; "
            f"found other {', '.join(other)}."
        )
    write_json(path, content)
    parts = (folder / RECORD).glob("[0-9]*.json")
    records = {
        int(part.stem): read_json(part) for part in parts
    }  # one that is damaged is made anew
    return {index: record["rows"] for index, record in records.items() if record}


def add_to_record(folder: Path, index: int, rows: list[dict]) -> None:
    """Record that all files of a participant are written, with its rows, one for each session."""
    write_json(folder / RECORD / f"{index}.json", {"rows": rows})


def close_record(folder: Path) -> None:
    """Remove the record of a dataset that is complete."""
    shutil.rmtree(folder / RECORD)
