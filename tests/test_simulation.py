"""Phantoms are valid BIDS, the same for the same seed, and true to their truth."""

import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bids_cmb.__main__ import main
from bids_cmb.derivatives import read_table
from bids_cmb.simulation import phantom

VALIDATOR = Path(sys.executable).with_name("bids-validator-deno")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("simulated") / "bids"
    assert main(["simulate", str(folder), "--n", "2", "--seed", "3"]) == 0
    return folder


def test_the_dataset_is_valid_bids(dataset):
    answer = subprocess.run(
        [VALIDATOR, "--format", "json", "-r", dataset], capture_output=True, text=True, check=False
    )
    issues = json.loads(answer.stdout)["issues"]["issues"]
    assert [issue for issue in issues if issue["severity"] == "error"] == []


def test_microbleeds_are_dark_where_the_truth_says(dataset):
    image = nib.load(dataset / "sub-01/anat/sub-01_T2starw.nii.gz")
    truth = dataset / "derivatives/truth/sub-01/anat/sub-01_space-orig_seg-CMB_desc-truth_dseg"
    labels = np.asarray(nib.load(f"{truth}.nii.gz").dataobj)
    rows = read_table(Path(f"{truth}.tsv"))
    assert set(np.unique(labels)) == set(range(len(rows) + 1))
    data = image.get_fdata()
    for row in rows:
        centre = np.linalg.inv(image.affine) @ [*(float(row[f"{a}_mm"]) for a in "xyz"), 1]
        assert data[tuple(np.round(centre[:3]).astype(int))] < 0.6 * np.median(data[data > 200])


def test_the_same_seed_gives_the_same_phantom(rng):
    one, other = (
        phantom(np.random.default_rng(5), bleeds=2, spacing=(1.4, 1.4, 4.0)) for _ in range(2)
    )
    np.testing.assert_array_equal(one[0].data, other[0].data)
    assert one[2] == other[2]
    assert phantom(rng, bleeds=2, spacing=(1.4, 1.4, 4.0))[2] != one[2]


def test_a_folder_that_holds_something_is_refused(dataset, capsys):
    assert main(["simulate", str(dataset)]) == 1
    assert "needs an empty folder; found files in it" in capsys.readouterr().err
