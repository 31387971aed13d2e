"""A release is of one version, and its images are built from what is pinned here."""

import re
from pathlib import Path

import pytest
import yaml

from bids_cmb import __version__

ROOT = Path(__file__).parents[2]
PLACES = {  # where the version stands beside the package, and around what
    "CITATION.cff": r"^version: (.+)$",
    "Dockerfile": r"^ARG VERSION=(.+)$",
    "docs/hpc/nipoppy/config.json": r'"VERSION": "(.+)"',
    "docs/hpc/README.md": r"bids_cmb[_-]([0-9][0-9.]*[0-9])[./]",
    "docs/hpc/babs.yaml": r'bids_cmb: "(.+)"',
}
TENSORFLOW = re.compile(r"^tensorflow(-cpu)?==.*?(?=^\S)", re.MULTILINE | re.DOTALL)


def read(path):
    return (ROOT / path).read_text(encoding="utf-8")


def read_matrix():
    jobs = yaml.safe_load(read(".github/workflows/image.yml"))["jobs"]
    return jobs["image"]["strategy"]["matrix"]["include"]


@pytest.mark.parametrize("path", PLACES)
def test_every_file_that_names_the_version_names_this_one(path):
    named = {
        version.replace("-", ".") for version in re.findall(PLACES[path], read(path), re.MULTILINE)
    }
    assert named == {__version__}


def test_the_citation_has_the_date_of_the_release_and_none_before():
    heading = re.search(r"^## (.+)$", read("CHANGELOG.md"), re.MULTILINE)[1]
    citation = yaml.safe_load(read("CITATION.cff"))
    dated = re.fullmatch(rf"\[{re.escape(__version__)}\](?: -|:) (\d{{4}}-\d\d-\d\d)", heading)
    if dated is None:
        assert heading == f"[Unreleased]: {__version__}"
        assert "date-released" not in citation
    else:
        assert str(citation["date-released"]) == dated[1]


def test_the_image_of_arm_processors_has_the_same_libraries_but_for_the_build_of_tensorflow():
    """TensorFlow's CPU build is made for x86-64 alone; the other one is that of the GPU image."""
    x86, arm, gpu = (read(f".ci/{name}.lock") for name in ("cpu", "cpu-arm64", "gpu"))
    assert TENSORFLOW.sub("", x86).replace("tensorflow-cpu", "tensorflow") == TENSORFLOW.sub(
        "", arm
    )
    pinned = [TENSORFLOW.search(lock)[0].split(" ")[0].split("==") for lock in (x86, arm)]
    assert [name for name, _ in pinned] == ["tensorflow-cpu", "tensorflow"]
    assert pinned[0][1] == pinned[1][1]
    assert set(TENSORFLOW.search(arm)[0].split("\n")) == set(TENSORFLOW.search(gpu)[0].split("\n"))


def test_an_image_is_built_for_each_processor_and_for_the_gpu_from_a_lock_that_is_here():
    matrix = {each["name"]: each for each in read_matrix()}
    assert set(matrix) == {"gpu", "cpu-amd64", "cpu-arm64"}
    assert all((ROOT / ".ci" / f"{each['lock']}.lock").is_file() for each in matrix.values())
    assert matrix["cpu-arm64"]["runner"].endswith("-arm")
    default = re.search(r"^ARG BASE=(.+)$", read("Dockerfile"), re.MULTILINE)[1]
    assert matrix["gpu"]["base"] == default
    suffixes = [each["suffix"] for each in matrix.values()]
    assert len(set(suffixes)) == len(suffixes)
