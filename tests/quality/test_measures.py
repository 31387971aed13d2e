"""The quality of a scan, against geometry and known noise."""

import numpy as np
import pytest

from bids_cmb.imaging.volume import Volume
from bids_cmb.quality.measures import (
    assess_quality,
    find_truncated_side,
    measure_fov_truncation,
    measure_snr,
)


def ball(shape, centre, radius):
    away = np.linalg.norm(np.moveaxis(np.indices(shape), 0, -1) - centre, axis=-1)
    return away <= radius


def test_a_ball_covered_whole_is_not_cut():
    assert measure_fov_truncation(ball((40, 40, 40), (20, 20, 20), 15)) == 0


def test_a_ball_cut_through_its_middle_is_cut_by_all_of_its_cross_section():
    assert measure_fov_truncation(ball((40, 40, 40), (20, 20, 0), 15)) == pytest.approx(100)


def test_a_ball_cut_half_way_up_is_cut_by_three_quarters():
    assert measure_fov_truncation(ball((80, 80, 80), (40, 40, 15), 30)) == pytest.approx(75, abs=3)


def test_an_empty_mask_is_not_cut():
    assert measure_fov_truncation(np.zeros((4, 4, 4), bool)) == 0


def test_signal_to_noise_is_that_of_the_noise_put_in(rng, blank):
    image = Volume(100 + rng.normal(0, 5, blank.shape), blank.affine)
    brain = Volume(np.ones(blank.shape, bool), blank.affine)
    assert measure_snr(image, brain) == pytest.approx(20, rel=0.03)


def test_an_image_without_noise_has_no_signal_to_noise(blank):
    image = Volume(blank.data + 1, blank.affine)
    assert measure_snr(image, Volume(blank.data == 0, blank.affine)) == 0


def flags(*, radius=62, spacing=2.0, field=3.0, echo=0.02, **more):
    inside = ball((80, 80, 80), (40, 40, 40), radius / 2)
    affine = np.diag([2, 2, 2 * spacing / 2, 1])
    settings = {"header_corrected": False, "nonfinite_voxels": 0, **more}
    image = Volume(inside.astype(float), affine)
    brain = Volume(inside, affine)
    return assess_quality(image, brain, field_strength_t=field, echo_time_s=echo, **settings).flags


def test_an_ordinary_scan_has_no_flags():
    assert flags() == ()  # a ball of 62 mm radius has 998 ml


def test_what_is_out_of_the_ordinary_is_flagged():
    assert flags(radius=40) == ("brain_volume",)
    assert flags(spacing=6.0, radius=46) == ("thick_slices",)
    assert flags(echo=0.005) == ("short_echo",)
    assert flags(echo=None) == ()
    assert flags(field=None) == ()
    assert flags(header_corrected=True) == ("header_corrected",)
    assert flags(nonfinite_voxels=3) == ("nonfinite",)


def test_ghosts_beside_a_head_are_measured_and_nothing_where_the_background_is_blank(rng):
    inside = ball((110, 110, 24), (55, 55, 12), 30)
    affine = np.diag([2, 2, 4, 1])
    noise = rng.normal(0, 4, (2, *inside.shape))
    ghost = 20 * np.roll(inside, 45, axis=1)  # a tenth of the brain beside the head
    image = np.hypot(200 * inside + ghost * ~inside + noise[0], noise[1])
    given = {"field_strength_t": 3, "echo_time_s": 0.02}
    given |= {"header_corrected": False, "nonfinite_voxels": 0}
    brain = Volume(inside, affine)
    assert 3 < assess_quality(Volume(image, affine), brain, **given).ghost_percent < 10
    blank = Volume(image * inside, affine)
    assert assess_quality(blank, brain, **given).ghost_percent is None


def test_the_brain_is_measured_in_millilitres():
    inside = ball((80, 80, 80), (40, 40, 40), 31)
    brain = Volume(inside, np.diag([-2, 2, 2, 1]))
    settings = {"field_strength_t": 3, "echo_time_s": 0.02}
    image = Volume(inside.astype(float), brain.affine)
    found = assess_quality(image, brain, **settings, header_corrected=False, nonfinite_voxels=0)
    assert found.brain_ml == pytest.approx(4 / 3 * np.pi * 6.2**3, rel=0.01)


def test_the_side_on_which_a_brain_is_cut_is_that_of_the_participant(blank):
    """The grid is oblique and flipped: which axis and end that is follows from the affine alone."""
    away = blank.world(np.argwhere(np.ones(blank.shape))) - blank.world([32, 32, 16])
    for direction, side in (
        ((0, 0, -1), "inferior"),
        ((0, 1, 0), "anterior"),
        ((-1, 0, 0), "left"),
    ):
        along = away @ direction  # a rod of 8 mm from the middle to the edge
        across = np.linalg.norm(away - along[:, None] * direction, axis=1)
        rod = ((along > 0) & (across < 4)).reshape(blank.shape)
        assert find_truncated_side(Volume(rod, blank.affine)) == side
    assert find_truncated_side(Volume(np.zeros(blank.shape, bool), blank.affine)) is None
