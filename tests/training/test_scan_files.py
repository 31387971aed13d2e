"""A scan is found with the truth that its names say is of it."""

from pathlib import Path

import numpy as np
import pytest
from grids import OBLIQUE

from bids_cmb.files import write_json
from bids_cmb.imaging import nifti
from bids_cmb.imaging.volume import Volume
from bids_cmb.training.scan_files import find_training_scans


@pytest.fixture
def scan(lessons):
    return lessons(1)


def test_a_scan_is_found_with_its_truth(scan):
    (paths,) = find_training_scans(scan)
    assert paths.subject == "sub-01"
    assert paths.lesions.name.endswith("seg-CMB_desc-truth_dseg.nii.gz")
    assert paths.brain is not None
    assert paths.mimics is None


def test_a_dataset_may_be_named_from_where_one_is(scan, monkeypatch):
    monkeypatch.chdir(scan.parent)
    assert find_training_scans(Path(scan.name)) == find_training_scans(scan)


def test_data_without_a_truth_are_refused(scan, tmp_path):
    with pytest.raises(ValueError, match="a truth needs label maps of microbleeds"):
        find_training_scans(scan, tmp_path / "nowhere")


CMB = "seg-CMB_desc-{}_dseg"


@pytest.fixture
def several(tmp_path, blank):
    """A maker of one participant with scans and files of the truth: the voxels tell their names."""

    def make(scans, truths, home="sub-01/anat"):
        write_json(tmp_path / "dataset_description.json", {"Name": "N", "BIDSVersion": "1.9.0"})
        image = Volume(np.arange(blank.data.size, dtype=np.float32).reshape(blank.shape), OBLIQUE)
        for name in scans:
            nifti.save(image, tmp_path / home / f"{name}.nii.gz")
        for name in truths:
            labels = Volume(np.zeros(blank.shape, np.uint16), OBLIQUE)
            place = tmp_path / "derivatives/truth/sub-01/anat" / f"{name}.nii.gz"
            nifti.save(labels, place, dtype=np.uint16)
        return tmp_path

    return make


def of(folder, kind="lesions"):
    """The name of each scan and that of its truth of a kind."""
    found = {
        one.image.name.split(".")[0]: getattr(one, kind) for one in find_training_scans(folder)
    }
    return {name: path and path.name.split(".")[0] for name, path in found.items()}


@pytest.mark.parametrize(
    ("kind", "file"),
    [
        ("lesions", "seg-CMB_desc-truth_dseg"),
        ("mimics", "seg-mimics_desc-truth_dseg"),
        ("structures", "seg-structures_desc-truth_dseg"),
        ("brain", "label-brain_desc-truth_mask"),
    ],
)
def test_a_scan_is_taught_the_truth_of_the_same_entities(several, kind, file):
    scans = ("sub-01", "sub-01_acq-hr", "sub-01_acq-hr_run-2")
    every = [f"{name}_seg-CMB_desc-truth_dseg" for name in scans]
    root = several([f"{name}_T2starw" for name in scans], {*every, *[f"{n}_{file}" for n in scans]})
    assert of(root, kind) == {f"{name}_T2starw": f"{name}_{file}" for name in scans}


@pytest.mark.parametrize("kind", ["seg-CMB", "seg-mimics", "seg-structures", "label-brain"])
def test_of_two_contrasts_each_is_taught_what_names_it(several, kind):
    """As reviews of the app's results are named, for a participant with both."""
    suffix = "mask" if kind == "label-brain" else "dseg"
    scans = ("T2starw", "swi")
    names = [f"sub-01_space-orig_{one}_desc-{scan}_{end}" for scan in scans
             for one, end in {("seg-CMB", "dseg"), (kind, suffix)}]  # fmt: skip
    root = several([f"sub-01_{scan}" for scan in scans], names)
    field = {"seg-CMB": "lesions", "label-brain": "brain"}.get(kind, kind.removeprefix("seg-"))
    assert of(root, field) == {
        f"sub-01_{scan}": f"sub-01_space-orig_{kind}_desc-{scan}_{suffix}" for scan in scans
    }


def test_a_truth_of_the_other_contrast_is_none(several):
    root = several(["sub-01_T2starw", "sub-01_swi"], [f"sub-01_{CMB.format('swi')}"])
    assert of(root) == {"sub-01_swi": f"sub-01_{CMB.format('swi')}"}


def test_a_lone_scan_takes_a_truth_of_any_description(several):
    root = several(["sub-01_run-1_swi"], [f"sub-01_run-1_{CMB.format('rater')}"])
    assert list(of(root).values()) == [f"sub-01_run-1_{CMB.format('rater')}"]


def test_a_truth_in_the_space_of_another_image_is_none(several):
    names = [f"sub-01_{CMB.format('a')}", f"sub-01_space-T1w_{CMB.format('b')}"]
    assert list(of(several(["sub-01_swi"], names)).values()) == [names[0]]


def test_scans_of_the_folder_swi_have_their_truth_in_anat_as_the_app_writes_it(several):
    root = several(["sub-01_swi"], [f"sub-01_space-orig_{CMB.format('swi')}"], "sub-01/swi")
    assert len(of(root)) == 1


@pytest.mark.parametrize(
    ("scans", "truths", "sentence"),
    [
        (["swi"], ["a", "b"], r"sub-01_swi: a scan needs one truth of seg-CMB; found 2: .*-a_.*-b"),
        (["swi", "T2starw"], ["a"], r"must be of one scan; found that it fits .*T2starw and .*swi"),
    ],
)
def test_a_truth_that_is_ambiguous_is_refused(several, scans, truths, sentence):
    names = [f"sub-01_{CMB.format(desc)}" for desc in truths]
    with pytest.raises(ValueError, match=sentence):
        find_training_scans(several([f"sub-01_{scan}" for scan in scans], names))


def test_a_truth_of_another_participant_is_refused(several):
    root = several(["sub-01_swi"], [f"sub-02_{CMB.format('truth')}"])
    with pytest.raises(ValueError, match=r"folder of its participant; found sub-02 .*sub-01"):
        find_training_scans(root)
