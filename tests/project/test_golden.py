"""The golden run finds what changed in the results, and nothing else."""

import copy
import importlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bids_cmb.imaging import nifti
from bids_cmb.imaging.volume import Volume

ROOT = Path(__file__).parents[2]
TABLE = "index\tplace\tprobability_max\n1\tlobar\t0.5\n2\tdeep\t0.25\n"


@pytest.fixture
def golden(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    return importlib.import_module("benchmarks.golden")


@pytest.fixture
def results(tmp_path, blank, rng):
    """Write a folder of results: an image, a table, a sidecar and a picture."""

    def write(name, *, table=TABLE, seconds=1.5, count=3):
        folder = tmp_path / name
        (folder / "logs").mkdir(parents=True)
        (folder / "logs/run.json").write_text(str(seconds))
        labels = (rng.random(blank.shape) < 0).astype(np.uint16)
        labels[3:5, 3, 3] = 1
        nifti.save(Volume(labels, blank.affine), folder / "sub-01_dseg.nii.gz", dtype=np.uint16)
        (folder / "sub-01_dseg.tsv").write_text(table)
        about = {"Microbleeds": {"n_cmb": count}, "Provenance": {"Seconds": seconds, "Files": []}}
        about["Provenance"]["BrainMask"] = f"{folder}/mask.nii.gz"
        (folder / "sub-01_dseg.json").write_text(json.dumps(about))
        Image.new("L", (4, 3), 7).save(folder / "sub-01_overview.png")
        return folder

    return write


def described(golden, folder):
    return golden.describe_folder(folder, {str(folder): "OUTPUT"})


def test_two_runs_that_differ_in_time_and_place_do_not_differ(golden, results):
    before = described(golden, results("a"))
    after = described(golden, results("b", seconds=2.5))
    assert len(before) == 4
    assert golden.list_differences(before, after) == []


def test_what_differs_is_named_by_file_and_part(golden, results):
    before = described(golden, results("a"))
    folder = results("b", table=TABLE.replace("deep", "lobar"), count=4)
    image, _ = nifti.load(folder / "sub-01_dseg.nii.gz")
    image.data[0, 0, 0] = 2
    nifti.save(image, folder / "sub-01_dseg.nii.gz", dtype=np.uint16)
    Image.new("L", (4, 3), 8).save(folder / "sub-01_overview.png")
    assert golden.list_differences(before, described(golden, folder)) == [
        "different\tsub-01_dseg.json\t/Microbleeds/n_cmb",
        "different\tsub-01_dseg.nii.gz\tdata",
        "different\tsub-01_dseg.tsv\tcolumn:place",
        "different\tsub-01_overview.png\tdata",
    ]
    (folder / "sub-01_overview.png").rename(folder / "sub-01_view.png")
    lines = golden.list_differences(before, described(golden, folder))
    assert lines[:2] == ["missing\tsub-01_overview.png", "new\tsub-01_view.png"]


def test_a_header_that_moved_is_a_difference(golden, results):
    before = described(golden, results("a"))
    folder = results("b")
    image, _ = nifti.load(folder / "sub-01_dseg.nii.gz")
    image.affine[0, 3] += 0.5
    nifti.save(image, folder / "sub-01_dseg.nii.gz", dtype=np.uint16)
    lines = golden.list_differences(before, described(golden, folder))
    assert lines == ["different\tsub-01_dseg.nii.gz\taffine"]


def test_names_that_changed_on_purpose_are_no_difference(golden, results):
    before = described(golden, results("a"))
    kept = copy.deepcopy(before)
    folder = results("b", table=TABLE.replace("probability_max", "highest_probability"))
    sidecar = folder / "sub-01_dseg.json"
    sidecar.write_text(sidecar.read_text().replace("n_cmb", "n_microbleeds"))
    for path in sorted(folder.glob("*_dseg.*")):
        path.rename(path.with_name(path.name.replace("_dseg", "_lesions")))
    after = described(golden, folder)
    assert golden.list_differences(before, after)
    renamed = {
        "files": {"_dseg.": "_lesions."},
        "names": {"probability_max": "highest_probability", "n_cmb": "n_microbleeds"},
    }
    assert golden.list_differences(before, after, renamed) == []
    assert golden.list_differences(before, after, {"ignored": []}) != []
    assert before == kept


def test_a_comparison_ends_with_1_if_anything_differs(golden, tmp_path, monkeypatch, capsys):
    for name, digest in (("a", "1"), ("b", "1"), ("c", "2")):
        (tmp_path / f"{name}.json").write_text(json.dumps({"x.tsv": {"column:n": digest}}))
    for name, code, words in (("b", 0, "No difference in 1 files."), ("c", 1, "column:n")):
        files = [str(tmp_path / f"{one}.json") for one in ("a", name)]
        monkeypatch.setattr("sys.argv", ["golden.py", "compare", *files])
        assert golden.main() == code
        assert words in capsys.readouterr().out
