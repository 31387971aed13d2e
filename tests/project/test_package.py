"""The wheel holds what the app needs away from the repository."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WRITTEN = ("pyproject.toml", "README.md", "LICENSE", "bids_cmb/__init__.py")  # else empty
BUILD = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of a copy of the package in which most files are empty, to be quick."""
    folder = tmp_path_factory.mktemp("repository")
    for path in package_files():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).touch()
    for path in WRITTEN:
        shutil.copy(ROOT / path, folder / path)
    subprocess.run(
        [sys.executable, "-c", BUILD, "wheels"], cwd=folder, check=True, capture_output=True
    )
    (path,) = (folder / "wheels").iterdir()
    with zipfile.ZipFile(path) as archive:
        yield archive


def package_files():
    paths = (path for path in (ROOT / "bids_cmb").rglob("*") if path.is_file())
    return {p.relative_to(ROOT).as_posix() for p in paths if p.parent.name != "__pycache__"}


def test_the_wheel_holds_every_module_and_all_data_of_the_package_and_nothing_else(wheel):
    names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    kinds = {Path(name).suffix for name in names}
    assert kinds >= {".py", ".json", ".npz", ".html", ".js"}
    assert names == package_files()


def test_the_wheel_installs_the_command(wheel):
    (name,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    assert "bids-cmb = bids_cmb.cli.main:main" in wheel.read(name).decode()
