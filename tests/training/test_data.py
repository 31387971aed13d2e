"""What a network in training is shown: patches of scans, with lesions where the scan has them."""

from pathlib import Path

import numpy as np
import pytest
from grids import OBLIQUE
from nibabel.affines import from_matvec

from bids_cmb.files import write_json
from bids_cmb.imaging import nifti, resampling
from bids_cmb.imaging.grid import Grid
from bids_cmb.imaging.volume import Volume
from bids_cmb.training import data
from bids_cmb.training.data import (
    LESION,
    UNCERTAIN,
    PatchSampling,
    ScanFiles,
    TrainingScan,
    augment_intensity,
    find_training_scans,
    load_scan_and_brain,
    load_training_scan,
    sample_batch,
    sample_patch,
)

GRID = Grid(spacing=(1, 1, 1), margin=4, intensity="brain-median")


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


def test_a_scan_from_the_cache_is_the_scan_and_is_not_loaded_anew(scan, tmp_path, monkeypatch):
    files, loading = find_training_scans(scan), data.Loading(2, tmp_path / "cache")
    fresh = load_training_scan(files[0], GRID)
    (first,) = data.load_training_scans(files, GRID, loading)
    with monkeypatch.context() as patch:
        patch.setattr(data, "load_training_scan", None)  # what is called fails
        (again,) = data.load_training_scans(files, GRID, loading)
    for cached in (first, again):
        for name in ("image", "labels", "loss_mask"):
            np.testing.assert_array_equal(getattr(cached, name), getattr(fresh, name), strict=True)
        assert list(cached.sampling_centres) == list(fresh.sampling_centres)
        for kind, parts in fresh.sampling_centres.items():
            assert len(parts) == len(cached.sampling_centres[kind])
            for part, other in zip(parts, cached.sampling_centres[kind], strict=True):
                np.testing.assert_array_equal(part, other)


def test_a_scan_that_changed_is_not_taken_from_the_cache(scan, tmp_path):
    (files,), loading = find_training_scans(scan), data.Loading(cache=tmp_path / "cache")
    data.load_training_scans([files], GRID, loading)
    labels = nifti.load_labels(files.lesions)
    nifti.save(Volume(0 * labels.data, labels.affine), files.lesions, dtype=np.uint16)
    (changed,) = data.load_training_scans([files], GRID, loading)
    assert not changed.labels.any()
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_lesions_lie_where_the_scan_is_dark(scan):
    (paths,) = find_training_scans(scan)
    case = load_training_scan(paths, GRID)
    dark = case.image[case.labels == LESION]
    assert dark.size >= 5
    assert np.median(dark) < 0.6  # of the brain's median; spots of 2 mm slices, seen at 1 mm
    assert np.median(case.image[case.loss_mask & (case.labels == 0)]) > 0.9


@pytest.mark.parametrize("voxel", [(6, 7, 8), (7, 6, 7), (9, 9, 9), (11, 10, 6)])
def test_a_lesion_between_the_voxels_of_a_coarse_grid_is_the_nearest_of_them(voxel):
    """A lesion of one voxel of 0.2 mm, on a grid of 2 mm turned otherwise."""
    fine = Volume(np.zeros((20, 20, 20), np.float32), OBLIQUE @ np.diag([0.4, 0.4, 0.1, 1]))
    fine.data[voxel] = 1
    middle = fine.world(np.array([voxel]))[0]
    coarse = Volume(np.zeros((9, 9, 9), np.float32), np.diag([2.0, -2.0, 2.0, 1.0]))
    coarse.affine[:3, 3] = middle - coarse.affine[:3, :3] @ np.array([4.3, 3.8, 4.4])
    found = data._resample_lesion(fine, coarse)
    away = np.linalg.norm(coarse.world(np.argwhere(coarse.data == 0)) - middle, axis=1)
    assert (4, 4, 4) in set(map(tuple, found.tolist()))
    assert np.linalg.norm(coarse.world(found) - middle, axis=1).min() == pytest.approx(away.min())
    coarse.affine[:3, 3] += 100.0
    assert not len(data._resample_lesion(fine, coarse))


def test_a_possible_lesion_is_unsure_and_weighs_nothing(scan, rng):
    (paths,) = find_training_scans(scan)
    case = load_training_scan(paths, GRID)
    assert (case.labels == UNCERTAIN).any()
    only_second = {**case.sampling_centres, "lesion": case.sampling_centres["lesion"][1:]}
    drawing = PatchSampling((16, 16, 16), {"lesion": 1.0})
    about = TrainingScan(case.name, case.image, case.labels, case.loss_mask, only_second)
    _, truth = sample_patch([about], drawing, rng)
    assert (truth[..., 1] == 0).any()
    assert not truth[..., 0][truth[..., 1] == 0].any()


def test_patches_around_lesions_hold_their_lesion(scan, rng):
    (paths,) = find_training_scans(scan)
    case = load_training_scan(paths, GRID)
    first = TrainingScan(
        case.name,
        case.image,
        case.labels,
        case.loss_mask,
        {"lesion": case.sampling_centres["lesion"][:1]},
    )
    for _ in range(20):
        image, truth = sample_patch([first], PatchSampling((24, 24, 24), {"lesion": 1.0}), rng)
        assert image.shape == (24, 24, 24, 1)
        lesion = truth[..., 0] > 0
        assert lesion.any()
        assert image[..., 0][lesion].mean() < image[..., 0][~lesion & (truth[..., 1] > 0)].mean()


def test_what_is_far_from_the_brain_weighs_nothing(scan):
    (paths,) = find_training_scans(scan)
    case = load_training_scan(paths, GRID)
    assert not case.loss_mask.all()
    spacing = 1.0
    assert case.loss_mask.sum() * spacing**3 > (case.image > 0.5).sum()


def test_without_a_brain_truth_the_brain_is_found(scan):
    (paths,) = find_training_scans(scan)
    bare = ScanFiles(paths.name, paths.image, paths.lesions, None, None, None)
    with pytest.raises(ValueError, match="No brain was found"):  # 40 ml are no brain
        load_training_scan(bare, GRID)


def test_a_brain_of_another_grid_is_looked_up_in_the_world(scan):
    (paths,) = find_training_scans(scan)
    image, before = load_scan_and_brain(paths)
    whole = nifti.load_labels(paths.brain)
    affine = whole.affine @ from_matvec(np.diag([-2.0, 2, 1]), [95, 0, 0])
    coarse = resampling.resample(whole, affine, (48, 56, 36), order=0)
    nifti.save(coarse, paths.brain, dtype=np.uint16)
    image, brain = load_scan_and_brain(paths)
    assert brain.shape == image.shape
    assert (brain.data == before.data).mean() > 0.97


@pytest.mark.parametrize("kind", ["lesions", "brain"])
def test_a_truth_that_lost_its_place_is_refused(scan, kind):
    (paths,) = find_training_scans(scan)
    path = getattr(paths, kind)
    labels = nifti.load_labels(path)
    astray = from_matvec(np.diag([0.5, 0.5, 2.0]), [0, 0, 0])
    nifti.save(Volume(labels.data, astray), path, dtype=np.uint16)
    with pytest.raises(ValueError, match=rf"{path.name}: a truth with as many voxels as its scan"):
        load_training_scan(paths, GRID)
    nifti.save(Volume(labels.data[:-1], from_matvec(np.eye(3), [900, 0, 0])), path, dtype=np.uint16)
    with pytest.raises(ValueError, match=rf"{path.name}: a truth must lie within its scan; found"):
        load_training_scan(paths, GRID)


def test_the_same_seed_draws_the_same_batch(scan):
    (paths,) = find_training_scans(scan)
    case = load_training_scan(paths, GRID)
    drawing = PatchSampling((16, 16, 8), {"lesion": 0.5, "any": 0.5}, swaps=False)
    one, same, other = (
        sample_batch([case], drawing, np.random.default_rng(seed), size=3) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one[0], same[0])
    np.testing.assert_array_equal(one[1], same[1])
    assert (one[0] != other[0]).any()
    assert one[0].shape == (3, 16, 16, 8, 1)
    assert one[1].shape == (3, 16, 16, 8, 2)


@pytest.mark.parametrize("grain", [0.0, 2.0])
def test_noise_of_interpolated_pixels_is_as_strong_and_hangs_together(grain):
    drawing = PatchSampling((64, 64, 8), {"any": 1.0}, (1, 1), (1, 1), noise=0.1, grain=grain)
    alike, strength = [], []
    for seed in range(20):
        plain = np.ones((64, 64, 8, 1), np.float32)
        noise = augment_intensity(plain, drawing, np.random.default_rng(seed))[..., 0] - 1
        alike.append(np.corrcoef(noise[1:].ravel(), noise[:-1].ravel())[0, 1])
        strength.append(noise.std())
        between = np.corrcoef(noise[..., 1:].ravel(), noise[..., :-1].ravel())[0, 1]
        assert abs(between) < 0.1  # slices are measured one by one
    assert max(strength) == pytest.approx(0.1, rel=0.15)
    assert np.max(alike) == pytest.approx(0.9 if grain else 0, abs=0.1)
