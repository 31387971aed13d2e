"""What the user gave is found by its name, in the order that the README promises."""

from pathlib import Path

import pytest

from bids_cmb.bids.companions import Segmentation, find_mask, find_segmentation
from bids_cmb.bids.scan import Scan

SCAN = Scan(
    Path("raw/sub-01/ses-2/anat/sub-01_ses-2_T2starw.nii.gz"),
    "sub-01/ses-2/anat/sub-01_ses-2_T2starw.nii.gz",
    "anat",
    "T2starw",
    (("sub", "01"), ("ses", "2")),
)
PREPROC = "prep/sub-01/ses-2/anat/sub-01_ses-2_desc-preproc_T1w.nii.gz"
PARCELS = "prep/sub-01/ses-2/anat/sub-01_ses-2_desc-aparcaseg_dseg.nii.gz"
ASEG = "prep/sub-01/ses-2/anat/sub-01_ses-2_desc-aseg_dseg.nii.gz"


@pytest.fixture
def found(tmp_path):
    """What is found when these files are there, as names."""

    def look(*names, folders=("prep",)):
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        given = find_segmentation([tmp_path / one for one in folders], SCAN, tmp_path / "raw")
        if given is None:
            return None
        return tuple(
            path and path.relative_to(tmp_path).as_posix()
            for path in (given.path, given.t1w, given.transform)
        )

    return look


def test_fmripreps_names_lie_on_the_t1w_image_beside_them(found, tmp_path):
    """They have no space-; parcels come before plain structures."""
    assert found(ASEG, PREPROC) == (ASEG, PREPROC, None)
    assert found(PARCELS) == (PARCELS, PREPROC, None)
    mask = tmp_path / PREPROC.replace("desc-preproc_T1w", "desc-brain_mask")
    mask.touch()
    assert find_mask([tmp_path / "prep"], SCAN, "brain") is None


def test_without_a_t1w_image_beside_it_the_same_name_lies_on_the_scan(found):
    assert found(ASEG) == (ASEG, None, None)
    other = PREPROC.replace("_desc", "_acq-fast_desc")
    assert found(other) == (ASEG, None, None)


def test_what_lies_on_the_scan_comes_first_in_whatever_folder(found):
    own = "other/sub-01/ses-2/anat/sub-01_ses-2_space-T2starw_desc-aseg_dseg.nii.gz"
    assert found(PARCELS, PREPROC, own, folders=("prep", "other")) == (own, None, None)


def test_the_scans_session_comes_before_none_and_others(found):
    elsewhere = [one.replace("ses-2", "ses-1") for one in (ASEG, PREPROC)]
    assert found(*elsewhere) == (*elsewhere, None)
    shared = [one.replace("ses-2/", "").replace("_ses-2", "") for one in (ASEG, PREPROC)]
    assert found(*shared) == (*shared, None)
    assert found(PARCELS, PREPROC) == (PARCELS, PREPROC, None)


def test_the_raw_datasets_t1w_image_serves_where_none_is_beside(found):
    segmentation = ASEG.replace("_desc", "_space-T1w_desc")
    assert found(segmentation) == (segmentation, None, None)
    first = "raw/sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz"
    assert found(first) == (segmentation, first, None)
    acquired = "raw/sub-01/ses-2/anat/sub-01_ses-2_acq-mprage_T1w.nii.gz"
    assert found(acquired) == (segmentation, acquired, None)
    same = "raw/sub-01/ses-2/anat/sub-01_ses-2_T1w.nii.gz"
    assert found(same) == (segmentation, same, None)


def test_the_users_transform_makes_a_t1w_image_needless(found):
    stem = "prep/sub-01/ses-2/anat/sub-01_ses-2_from-T1w_to-"
    assert found(ASEG, PREPROC, f"{stem}bold_mode-image_xfm.txt")[2] is None
    assert found(f"{stem}orig_mode-image_desc-swi_xfm.txt")[2] is None
    assert found(f"{stem}orig_mode-points_xfm.txt")[2] is None
    own = f"{stem}T2starw_mode-image_xfm.txt"
    assert found(own) == (ASEG, None, own)


def test_freesurfers_folder_of_subjects_is_known(found):
    names = ("prep/sub-01/mri/aseg.mgz", "prep/sub-01/mri/orig.mgz")
    assert found(*names) == (*names, None)
    parcels, t1w = "prep/sub-01/mri/aparc+aseg.mgz", "prep/sub-01/mri/T1.mgz"
    assert found(parcels, t1w) == (parcels, t1w, None)
    session = [name.replace("sub-01", "sub-01_ses-2") for name in (parcels, t1w)]
    assert found(*session) == (*session, None)


def test_what_synthseg_made_of_a_t1w_image_lies_on_it(found):
    made = "prep/sub-01/ses-2/anat/sub-01_ses-2_T1w_synthseg.nii.gz"
    raw = "raw/sub-01/ses-2/anat/sub-01_ses-2_T1w.nii.gz"
    assert found(made) == (made, None, None)
    assert found("raw/sub-01/ses-2/anat/sub-01_ses-2_acq-b_T1w.nii.gz", raw) == (made, raw, None)


def test_of_other_participants_and_in_other_spaces_nothing_is_found(found):
    assert found(ASEG.replace("sub-01", "sub-02"), PREPROC.replace("sub-01", "sub-02")) is None
    assert found(PREPROC, ASEG.replace("_desc", "_space-MNI152NLin6Asym_desc")) is None


def test_all_files_of_a_segmentation_are_named(tmp_path):
    given = Segmentation(tmp_path / "a", in_t1w_space=True, t1w=tmp_path / "b")
    assert [path for _, path in given.roles] == [tmp_path / "a", tmp_path / "b"]


def touch(root, *names):
    for name in names:
        path = root / "prep/sub-01/ses-2" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_the_mask_of_another_contrast_is_not_the_scans(tmp_path):
    """An earlier output, given back with masks corrected by hand, has one for each contrast."""
    ours = "anat/sub-01_ses-2_space-orig_label-brain_desc-{}_mask.nii.gz"
    touch(tmp_path, ours.format("swi"), ours.format("GRE"))
    assert find_mask([tmp_path / "prep"], SCAN, "brain") is None
    touch(tmp_path, ours.format("T2starw"), "anat/sub-01_ses-2_label-brain_desc-manual_mask.nii.gz")
    mask = find_mask([tmp_path / "prep"], SCAN, "brain")
    assert mask.name == Path(ours).name.format("T2starw")


def test_the_segmentation_of_another_contrast_is_not_the_scans(tmp_path, found):
    touch(tmp_path, "anat/sub-01_ses-2_space-orig_seg-aseg_desc-swi_dseg.nii.gz")
    assert found() is None
    own = "anat/sub-01_ses-2_space-orig_seg-aseg_desc-T2starw_dseg.nii.gz"
    assert found(f"prep/sub-01/ses-2/{own}")[0].endswith(own)


@pytest.mark.parametrize("datatype", ["perf", "dwi", "pet", "func"])
def test_a_mask_of_another_image_is_not_the_scans_unless_it_says_so(datatype, tmp_path):
    """ASLPrep's mask of the perfusion image has no space- in its name."""
    touch(tmp_path, f"{datatype}/sub-01_ses-2_desc-brain_mask.nii.gz")
    assert find_mask([tmp_path / "prep"], SCAN, "brain") is None
    named = f"{datatype}/sub-01_ses-2_space-T2starw_desc-brain_mask.nii.gz"
    touch(tmp_path, named)
    assert find_mask([tmp_path / "prep"], SCAN, "brain").name == Path(named).name
