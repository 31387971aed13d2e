"""A scan is learnt from as it lies in the world, with its truth, from the cache as anew."""

import numpy as np
import pytest
from grids import OBLIQUE
from nibabel.affines import from_matvec

from bids_cmb.imaging import nifti, resampling
from bids_cmb.imaging.grid import Grid
from bids_cmb.imaging.volume import Volume
from bids_cmb.training import reference_labels, scan_loading
from bids_cmb.training.reference_labels import LESION
from bids_cmb.training.scan_files import ScanFiles, find_training_scans
from bids_cmb.training.scan_loading import load_scan_and_brain, load_training_scan

GRID = Grid(spacing=(1, 1, 1), margin=4, intensity="brain-median")


@pytest.fixture
def scan(lessons):
    return lessons(1)


def test_a_scan_from_the_cache_is_the_scan_and_is_not_loaded_anew(scan, tmp_path, monkeypatch):
    files, loading = find_training_scans(scan), scan_loading.Loading(2, tmp_path / "cache")
    fresh = load_training_scan(files[0], GRID)
    (first,) = scan_loading.load_training_scans(files, GRID, loading)
    with monkeypatch.context() as patch:
        patch.setattr(scan_loading, "load_training_scan", None)  # what is called fails
        (again,) = scan_loading.load_training_scans(files, GRID, loading)
    for cached in (first, again):
        for name in ("image", "labels", "loss_mask"):
            np.testing.assert_array_equal(getattr(cached, name), getattr(fresh, name), strict=True)
        assert list(cached.sampling_centres) == list(fresh.sampling_centres)
        for kind, parts in fresh.sampling_centres.items():
            assert len(parts) == len(cached.sampling_centres[kind])
            for part, other in zip(parts, cached.sampling_centres[kind], strict=True):
                np.testing.assert_array_equal(part, other)


def test_a_scan_that_changed_is_not_taken_from_the_cache(scan, tmp_path):
    (files,), loading = find_training_scans(scan), scan_loading.Loading(cache=tmp_path / "cache")
    scan_loading.load_training_scans([files], GRID, loading)
    labels = nifti.load_labels(files.lesions)
    nifti.save(Volume(0 * labels.data, labels.affine), files.lesions, dtype=np.uint16)
    (changed,) = scan_loading.load_training_scans([files], GRID, loading)
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
    found = reference_labels._resample_lesion(fine, coarse)
    away = np.linalg.norm(coarse.world(np.argwhere(coarse.data == 0)) - middle, axis=1)
    assert (4, 4, 4) in set(map(tuple, found.tolist()))
    assert np.linalg.norm(coarse.world(found) - middle, axis=1).min() == pytest.approx(away.min())
    coarse.affine[:3, 3] += 100.0
    assert not len(reference_labels._resample_lesion(fine, coarse))


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
