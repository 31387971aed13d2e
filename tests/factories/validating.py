"""The BIDS validator, where it is installed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(sys.executable).with_name("bids-validator-deno")
needs_validator = pytest.mark.skipif(
    not PROGRAM.exists(), reason="bids-validator-deno is not installed"
)


def find_issues(dataset, derivatives):
    """What the validator finds in a dataset and in so many derivatives of it."""
    answer = subprocess.run(
        [PROGRAM, "--format", "json", "-r", dataset], capture_output=True, text=True, check=False
    )
    report = json.loads(answer.stdout)
    parts = [report, *report.get("derivativesSummary", {}).values()]
    assert len(parts) == 1 + derivatives
    return [issue for part in parts for issue in part["issues"]["issues"]]


def find_errors(dataset, derivatives=1):
    """Those of its findings that are errors."""
    return [issue for issue in find_issues(dataset, derivatives) if issue["severity"] == "error"]
