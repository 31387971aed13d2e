"""Lesions are counted once and measured in millimetres."""

import numpy as np
import pytest
from nibabel.affines import from_matvec

from bids_cmb.imaging.volume import Volume
from bids_cmb.lesions.measure import DetectionMap, Thresholds, find_lesions


def on(grid, *wanted, background=0.0):
    """A volume with one ball for each (centre in mm, diameter in mm, value)."""
    data = np.full(grid.shape, background, np.float32)
    where = grid.world(np.argwhere(np.ones(grid.shape)))
    for centre, diameter, value in wanted:
        inside = np.linalg.norm(where - centre, axis=1) <= diameter / 2
        data[inside.reshape(grid.shape)] = value
    return Volume(data, grid.affine)


def find(probability, *, image=None, brain=None, exclude_flags=("large",), **settings):
    image = image or Volume(100 * (1 - probability.data), probability.affine)
    brain = brain or Volume(np.ones(probability.shape, bool), probability.affine)
    maps = {name: settings.pop(name) for name in ("spread", "instances") if name in settings}
    thresholds = Thresholds(**{"threshold": 0.5, "definite": 0.8, **settings})
    return find_lesions(DetectionMap(probability, **maps), image, brain, thresholds, exclude_flags)


@pytest.fixture
def middle(blank):
    return blank.world([32, 32, 16])


def test_a_ball_is_measured_in_world_millimetres(blank, middle):
    labels, [lesion] = find(on(blank, (middle, 8, 0.9)))
    assert lesion.centre == pytest.approx(middle, abs=0.25)  # half a voxel in plane
    assert lesion.voxel == pytest.approx((32, 32, 16), abs=0.25)
    assert lesion.volume == pytest.approx(4 / 3 * np.pi * 4**3, rel=0.1)
    assert lesion.volume == pytest.approx(labels.data.astype(bool).sum() * 0.5)
    assert lesion.equivalent_diameter == pytest.approx(8, rel=0.05)
    assert lesion.in_plane_diameter == pytest.approx(8, abs=0.6)
    assert lesion.slices in (4, 5)  # 8 mm, 2 mm each
    assert lesion.elongation == pytest.approx(1, abs=0.05)
    assert lesion.probability_mean == pytest.approx(0.9)
    assert lesion.probability_max == pytest.approx(0.9)
    assert (lesion.certainty, lesion.flags, lesion.included) == ("definite", (), True)


def test_a_tube_in_the_slice_is_as_long_as_it_is_drawn(blank):
    data = blank.data.copy()
    data[20:40, 30:34, 16] = 0.6  # 10 mm long, 2 mm wide
    _, [lesion] = find(Volume(data, blank.affine))
    assert lesion.elongation == pytest.approx(5, rel=0.01)  # 10 to 2
    assert lesion.in_plane_diameter == pytest.approx(np.hypot(9.5, 1.5) + 0.5, rel=0.01)
    assert lesion.slices == 1
    assert lesion.flags == ("large", "vessel")
    assert lesion.certainty == "possible"


def test_a_lesion_of_one_thick_voxel_is_round_and_small():
    data = np.zeros((9, 9, 9), np.float32)
    data[4, 4, 4] = 0.9
    _, [lesion] = find(Volume(data, np.diag([1, 1, 4, 1])))
    assert lesion.elongation == pytest.approx(1)
    assert lesion.in_plane_diameter == pytest.approx(1)
    assert lesion.volume == pytest.approx(4)
    assert "small" in lesion.flags  # a ball of 4 mm³ has 1.97 mm


def test_slices_may_be_stacked_along_any_axis():
    data = np.zeros((9, 9, 9), np.float32)
    data[3:5, 2:6, 4] = 0.9
    _, [lesion] = find(Volume(data, np.diag([4, 1, 1, 1])))
    assert lesion.slices == 2
    assert lesion.in_plane_diameter == pytest.approx(4)


def test_the_surest_lesion_is_number_1(blank, middle):
    labels, lesions = find(on(blank, (middle, 4, 0.6), (middle + [8, 0, 0], 4, 0.8)))
    assert [lesion.index for lesion in lesions] == [1, 2]
    assert [lesion.probability_max for lesion in lesions] == pytest.approx([0.8, 0.6])
    assert [lesion.certainty for lesion in lesions] == ["definite", "possible"]
    assert set(np.unique(labels.data)) == {0, 1, 2}
    for lesion in lesions:
        assert labels.data[tuple(np.round(lesion.voxel).astype(int))] == lesion.index


def test_equals_are_numbered_from_the_top_of_the_head_down(blank, middle):
    _, lesions = find(on(blank, (middle - [0, 0, 8], 4, 0.7), (middle + [0, 0, 8], 4, 0.7)))
    assert lesions[0].centre[2] > lesions[1].centre[2]


def test_the_numbering_does_not_depend_on_how_the_axes_are_stored(blank, middle):
    balls = on(blank, *((middle + [6 * n, 5 * n, 9 * n], 4, 0.7) for n in (-1, 0, 1)))
    flip = from_matvec(np.diag([-1, 1, 1]), [blank.shape[0] - 1, 0, 0])
    flipped = Volume(balls.data[::-1], balls.affine @ flip)
    first, second = find(balls)[1], find(flipped)[1]
    for one, other in zip(first, second, strict=True):
        assert one.centre == pytest.approx(other.centre, abs=1e-4)


def test_a_lesion_leans_towards_its_surer_voxel():
    data = np.zeros((4, 4, 4))
    data[1, 1, 1], data[2, 1, 1] = 0.5, 1.0
    _, [lesion] = find(Volume(data, np.eye(4)))
    assert lesion.centre == pytest.approx((5 / 3, 1, 1))
    assert lesion.probability_mean == pytest.approx(0.75)


def test_voxels_that_meet_at_a_corner_are_one_lesion():
    data = np.zeros((4, 4, 4))
    data[1, 1, 1] = data[2, 2, 2] = 0.5  # exactly at the threshold
    assert len(find(Volume(data, np.eye(4)))[1]) == 1


def test_what_is_wider_than_a_microbleed_is_listed_and_not_counted(blank, middle):
    balls = on(blank, (middle, 14, 0.9))
    labels, [lesion] = find(balls)
    assert lesion.flags == ("large",)
    assert not lesion.included
    assert labels.data.any()
    assert find(balls, exclude_flags=())[1][0].included


def test_any_flag_can_keep_a_lesion_out_of_the_counts(blank):
    data = blank.data.copy()
    data[20:28, 30:31, 16] = 0.6
    assert find(Volume(data, blank.affine))[1][0].included
    assert not find(Volume(data, blank.affine), exclude_flags=("vessel",))[1][0].included


def test_what_is_smaller_than_the_smallest_volume_is_no_lesion(blank, middle):
    balls = on(blank, (middle, 8, 0.9), (middle + [10, 0, 0], 3, 0.95))
    labels, [lesion] = find(balls, min_volume=50)
    assert lesion.equivalent_diameter > 7
    assert set(np.unique(labels.data)) == {0, 1}


def test_contrast_is_the_share_of_the_surround_that_is_lost(blank, middle):
    image = on(blank, (middle, 5, 30), background=100)
    _, [lesion] = find(on(blank, (middle, 5, 0.9)), image=image)
    assert lesion.contrast == pytest.approx(0.7)


def test_the_surround_is_brain_and_no_other_lesion(blank, middle):
    apart = middle + [5.5, 0, 0]
    image = on(blank, (middle, 4, 30), (apart, 4, 1), background=100)
    image.data[:, 38:] = 1000  # outside the brain
    brain = Volume(np.ones(blank.shape, bool), blank.affine)
    brain.data[:, 38:] = False
    lesions = find(on(blank, (middle, 4, 0.9), (apart, 4, 0.6)), image=image, brain=brain)[1]
    assert lesions[0].contrast == pytest.approx(0.7)


def test_the_edge_is_as_far_as_the_brain_reaches(blank, middle):
    brain = on(blank, (middle, 24, 1))
    brain = Volume(brain.data > 0, blank.affine)
    off = (
        middle + 7 * blank.affine[:3, 0] / 0.5
    )  # 7 mm along the first axis, 5 mm below the surface
    _, lesions = find(on(blank, (middle, 3, 0.9), (off, 3, 0.6)), brain=brain)
    assert lesions[0].distance_to_surface == pytest.approx(12, abs=2.01)  # one slice
    assert lesions[1].distance_to_surface == pytest.approx(5, abs=1)
    outside = find(on(blank, (middle + 13.5 * blank.affine[:3, 0] / 0.5, 3, 0.9)), brain=brain)[1]
    assert outside[0].distance_to_surface == 0
    assert "edge" in outside[0].flags


def test_the_spread_is_the_mean_over_the_lesion(blank, middle):
    spread = on(blank, (middle, 4, 0.2), background=0.9)
    _, [lesion] = find(on(blank, (middle, 4, 0.9)), spread=spread)
    assert lesion.probability_sd == pytest.approx(0.2)
    assert find(on(blank, (middle, 4, 0.9)))[1][0].probability_sd is None


def test_an_empty_map_has_no_lesions(blank):
    labels, lesions = find(blank)
    assert lesions == []
    assert labels.shape == blank.shape
    assert not labels.data.any()


@pytest.mark.parametrize("bad", [-0.1, 1.1, np.nan])
def test_a_map_that_is_no_probability_is_refused(bad):
    with pytest.raises(ValueError, match="A probability map must lie between 0 and 1"):
        find(Volume(np.full((4, 4, 4), bad), np.eye(4)))


def test_more_lesions_than_a_label_map_can_number_are_refused():
    data = np.zeros((84, 84, 84), np.float32)
    data[::2, ::2, ::2] = 1
    with pytest.raises(ValueError, match=r"at most 65535 lesions; 0\.5 left 74088"):
        find(Volume(data, np.eye(4)))
