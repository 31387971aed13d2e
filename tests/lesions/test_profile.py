"""A lesion is as large as its own dark profile, not as a detector outlines it."""

import numpy as np
import pytest
from scipy import ndimage

from bids_cmb.imaging.volume import Volume
from bids_cmb.lesions.measure import DetectionMap, Thresholds, find_lesions

FINE = 5  # parts of a voxel in which balls are drawn


def draw(spacing, diameter, *, axis=2, depth=0.7, centre=(0.2, -0.3, 0.1)):
    """A ball in a brain of intensity 100, averaged over voxels; slices along ``axis``."""
    shape = np.ceil(36 / np.array(spacing)).astype(int)
    fine = np.array(spacing) / FINE
    x, y, z = (
        ((np.arange(n) - (n - 1) / 2) * step - at) ** 2
        for n, step, at in zip(shape * FINE, fine, centre, strict=True)
    )
    inside = x[:, None, None] + y[:, None] + z <= diameter**2 / 4
    parts = inside.reshape(*np.stack([shape, [FINE] * 3], 1).ravel())
    data = 100 * (1 - depth * parts.mean(axis=(1, 3, 5)))
    turned = np.moveaxis(data, 2, axis)
    affine = np.diag([*np.insert(spacing[:2], axis, spacing[2]), 1.0])
    return Volume(turned.astype(np.float32), affine)


def measure(image, outline, brain=None):
    brain = brain or Volume(np.ones(image.shape, bool), image.affine)
    probability = Volume(outline * np.float32(0.9), image.affine)
    _, [lesion] = find_lesions(DetectionMap(probability), image, brain, Thresholds(0.5, 0.8))
    return lesion


@pytest.mark.parametrize("diameter", [3, 5, 8])
@pytest.mark.parametrize("axis", [0, 2])
def test_a_ball_has_its_own_diameter_at_half_depth(diameter, axis):
    image = draw((0.5, 0.5, 0.5), diameter, axis=axis)
    lesion = measure(image, image.data < 60)
    assert lesion.half_depth_diameter == pytest.approx(diameter, rel=0.05)
    assert lesion.half_depth_in_plane == pytest.approx(diameter, rel=0.05)


def test_it_does_not_depend_on_how_much_of_it_a_detector_outlines():
    """A network that is sure of the core alone makes the outline small, and not the size.

    Its centre lies between two slices of 3 mm: half of one is ball 2.6 mm off its axis.
    """
    image = draw((1, 1, 3), 6)
    core, whole = image.data <= np.sort(image.data.ravel())[3], image.data < 90
    small, large = measure(image, core), measure(image, whole)
    assert large.equivalent_diameter > 1.5 * small.equivalent_diameter
    assert small.half_depth_diameter == large.half_depth_diameter
    assert small.half_depth_in_plane == pytest.approx(2 * np.sqrt(3**2 - 1.5**2), rel=0.06)


def test_what_is_thinner_than_its_slice_counts_with_the_whole_slice():
    """A ball of 3 mm within a slice of 4 mm is half as deep 1.3 mm off its axis."""
    image = draw((0.5, 0.5, 4), 3, centre=(0, 0, 0.1))
    lesion = measure(image, image.data < 80)
    assert lesion.half_depth_in_plane == pytest.approx(3 * np.sqrt(0.75), rel=0.06)
    assert lesion.half_depth_diameter == pytest.approx(
        np.cbrt(1.5 * lesion.half_depth_in_plane**2 * 4), rel=0.01
    )


def test_dark_that_goes_on_has_no_size_and_classes_go_by_the_outline():
    """A vessel runs into the lesion; or nothing is dark at all."""
    image = draw((1, 1, 3), 4)
    outline = image.data < 60
    image.data[18:20] = 20
    lesion = measure(image, outline)
    assert lesion.half_depth_diameter is lesion.half_depth_in_plane is None
    assert lesion.size == lesion.equivalent_diameter
    flat = Volume(np.full(image.shape, 100, np.float32), image.affine)
    assert measure(flat, outline).half_depth_diameter is None


def test_the_surround_is_brain_alone():
    """Fluid or air beside the lesion, brighter than the brain, does not make it larger."""
    image = draw((1, 1, 3), 4)
    image.data[:] = ndimage.gaussian_filter(image.data, (0.5, 0.5, 0))
    outline, brain = image.data < 70, Volume(np.ones(image.shape, bool), image.affine)
    inside = measure(image, outline)
    bright = Volume(image.data.copy(), image.affine)
    bright.data[22:], brain.data[22:] = 900, False
    assert measure(bright, outline, brain).half_depth_diameter == pytest.approx(
        inside.half_depth_diameter, rel=1e-6
    )
