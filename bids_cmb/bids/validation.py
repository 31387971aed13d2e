"""Check whether a dataset is valid BIDS: its description only, or the whole by the validator."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

from bids_cmb.files import load_json

VALIDATOR = "bids-validator-deno"


def check_quickly(bids_dir: Path) -> list[str]:
    """Check the description of a dataset; a sentence for each fault, none of which stops a run."""
    path = bids_dir / "dataset_description.json"
    try:
        description = load_json(path)
    except FileNotFoundError:
        return [f"{path}: BIDS asks for this file; it is not there."]
    except (OSError, ValueError) as error:
        return [f"{path}: BIDS asks for JSON; it cannot be read ({error})."]
    if not isinstance(description, dict):
        return [f"{path}: BIDS asks for a JSON object; found {_describe_type(description)}."]
    return [
        f"{path}: BIDS asks for `{key}`; it is not there."
        for key in ("Name", "BIDSVersion")
        if not description.get(key)
    ]


def check_description(bids_dir: Path) -> None:
    """Refuse a description that pybids would wait for or crash on.

    One that is missing, or not JSON, is ignored, as by pybids.

    Raises:
        ValueError: If it is a pipe or device, no object, nested too deeply, or holds half a
            character.
    """
    path = bids_dir / "dataset_description.json"
    if path.exists() and not path.is_file():
        raise ValueError(f"{path}: BIDS asks for a file; found a folder, a pipe or a device.")
    try:
        text = path.read_text(encoding="utf-8")
        description = json.loads(text)
    except (OSError, ValueError):
        return
    except RecursionError:
        description = None  # `load_json` describes the fault
    try:
        load_json(path)
        if not isinstance(description, dict):
            raise ValueError(f"found {_describe_type(description)}")
        json.dumps(description, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{path}: a dataset description must be Unicode; found half a character "
            f"(a lone surrogate, {error.object[error.start]!a})."
        ) from error
    except ValueError as error:
        raise ValueError(
            f"{path}: a dataset description must be a JSON object; {error}."
        ) from error


def _describe_type(content: object) -> str:
    """Describe the type of a JSON value."""
    kinds = {list: "a list", str: "a text", bool: "a truth value", type(None): "null"}
    return kinds.get(type(content), "a number")


def run_validator(bids_dir: Path) -> list[str]:
    """Run the official validator; return the errors that it finds, a line each.

    Raises:
        ValueError: If the validator is not installed or does not answer.
    """
    beside = Path(sys.executable).with_name(VALIDATOR)
    program = str(beside) if beside.is_file() else shutil.which(VALIDATOR)
    if not program:
        raise ValueError(f"`--validate strict` needs the program {VALIDATOR}; it is not installed.")
    result = subprocess.run(
        [program, "--format", "json", "--ignoreWarnings", str(bids_dir)],
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        issues = json.loads(result.stdout)["issues"]["issues"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{VALIDATOR} must answer in JSON; found {result.stderr.strip()[:200]!r}."
        ) from error
    return [
        f"{issue.get('location', bids_dir)}: {issue['code']}"
        for issue in issues
        if issue.get("severity") == "error"
    ]
