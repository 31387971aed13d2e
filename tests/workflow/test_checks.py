"""What cannot work is refused before the first scan is read."""

import pytest

from bids_cmb.config import Config
from bids_cmb.errors import USAGE, ExitError
from bids_cmb.workflow.checks import check_detectors


@pytest.fixture
def config(tmp_path):
    return lambda **settings: Config(
        tmp_path, tmp_path / "out", ("participant",), anatomy="none", **settings
    )


@pytest.mark.parametrize(
    ("detectors", "member", "found"),
    [
        ("two-stage", "classifier-1", "two-stage, whose networks work one after the other"),
        ("two-stage", "nonsense", "two-stage, whose networks work one after the other"),
        ("ensemble two-stage", "a", "two-stage, whose networks work one after the other"),
        ("radial", "a", "radial, which has none"),
    ],
)
def test_members_are_those_of_an_ensemble(config, detectors, member, found):
    with pytest.raises(ExitError) as end:
        check_detectors(config(detector=tuple(detectors.split()), members=(member,)))
    rule = "--members must name members of an ensemble"
    assert (end.value.code, str(end.value)) == (USAGE, f"{rule}; found {member} for {found}.")


@pytest.mark.parametrize("detectors", [("ensemble",), ("radial", "ensemble")])
def test_members_of_an_ensemble_may_be_asked(config, detectors):
    check_detectors(config(detector=detectors, members=("a",)))
