"""Whether a dataset is BIDS: a quick look, or the whole of the standard."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

VALIDATOR = "bids-validator-deno"


def quick_look(bids_dir: Path) -> list[str]:
    """What a glance at a dataset finds wrong, a sentence each. None of it stops a run."""
    path = bids_dir / "dataset_description.json"
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return [f"{path}: BIDS asks for this file; it is not there."]
    except (OSError, ValueError) as error:
        return [f"{path}: BIDS asks for JSON; it cannot be read ({error})."]
    if not isinstance(description, dict):
        return [f"{path}: BIDS asks for a JSON object; found {type(description).__name__}."]
    return [
        f"{path}: BIDS asks for `{key}`; it is not there."
        for key in ("Name", "BIDSVersion")
        if not description.get(key)
    ]


def full_errors(bids_dir: Path) -> list[str]:
    """The errors that the official validator finds, a line each; empty if there are none.

    Raises:
        ValueError: If the validator is not installed or does not answer.
    """
    beside = Path(sys.executable).with_name(VALIDATOR)
    program = str(beside) if beside.is_file() else shutil.which(VALIDATOR)
    if not program:
        raise ValueError(f"`--validate strict` needs the program {VALIDATOR}; it is not installed.")
    answer = subprocess.run(
        [program, "--format", "json", "--ignoreWarnings", str(bids_dir)],
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        issues = json.loads(answer.stdout)["issues"]["issues"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{VALIDATOR} must answer in JSON; found {answer.stderr.strip()[:200]!r}."
        ) from error
    return [
        f"{issue.get('location', bids_dir)}: {issue['code']}"
        for issue in issues
        if issue.get("severity") == "error"
    ]
