"""The brain is found in heads whose geometry is known, whatever the grid, the unit or the crop."""

from functools import cache

import numpy as np
import pytest
from nibabel.affines import from_matvec
from scipy import ndimage
from scipy.spatial.transform import Rotation

from bids_cmb.anatomy.brain_extraction import (
    PLAUSIBLE_ML,
    POSSIBLE_ML,
    cut_leaks,
    mask_stripped_brain,
    measure_volume_ml,
    segment_brain,
)
from bids_cmb.imaging.volume import Volume

OBLIQUE = Rotation.from_euler("xyz", [10, -6, 14], degrees=True).as_matrix()
THICK, THIN = (1.2, 1.2, 5.0), (1.6, 1.5, 1.6)  # mm
BRAIN = np.array([68, 85, 62])  # mm, half axes: 1501 ml
EYE = (32, 82, -48)  # mm
EDGE = (58, 0, 20)  # mm, 6 mm under the surface of the brain


def grid(spacing):
    """An oblique LAS grid around a head, and the world position of its voxels, (3, X, Y, Z)."""
    shape = np.ceil(np.array([196, 250, 220]) / spacing).astype(int)
    turn = OBLIQUE @ np.diag([-1, 1, 1]) @ np.diag(spacing)
    affine = from_matvec(turn, [0, 0, -15] - turn @ (shape - 1) / 2)
    index = np.indices(shape, np.float32)
    return affine, np.tensordot(turn, index, 1) + affine[:3, 3][:, None, None, None]


def inside(world, half_axes, centre=(0, 0, 0)):
    """Where an ellipsoid lies."""
    return sum(((w - c) / a) ** 2 for w, c, a in zip(world, centre, half_axes, strict=True)) <= 1


@cache
def phantom(spacing, scalp):
    """A T2*-weighted head, white matter 1, and its brain; ``scalp`` is its intensity, 0 stripped.

    From outside: scalp 6 mm, dark skull 8 mm, cerebrospinal fluid 2 mm, cortex; ventricles; eyes on
    nerves; a neck whose cord passes through the skull; a dark bleed; 25 % bias; noise.
    """
    rng = np.random.default_rng(7)
    affine, world = grid(spacing)
    x, y, z = world
    brain = inside(world, BRAIN)
    neck = (np.hypot(x, y + 15) < 60) & (z < -40)
    cord = (np.hypot(x, y + 15) < 11) & (z < -40)
    nerve = (np.hypot(x - 32, z + 45) < 4) & (y > 40) & (y < 82)
    eyes = inside(world, (13, 13, 13), EYE) | inside(world, (13, 13, 13), (-EYE[0], *EYE[1:]))

    data = np.zeros(brain.shape, np.float32)
    data[inside(world, BRAIN + 16) | neck] = scalp
    data[inside(world, BRAIN + 10)] = 0.1
    if scalp:
        data[cord] = 1.2
        data[eyes | nerve] = 1.6
        data[inside(world, BRAIN + 2)] = 1.5
    data[brain] = 1.2
    data[inside(world, BRAIN - 4)] = 1.0
    data[inside(world, (8, 30, 12), (12, 0, 8)) | inside(world, (8, 30, 12), (-12, 0, 8))] = 1.6
    data[inside(world, (3, 3, 3), EDGE)] = 0
    data *= 1 + 0.25 * np.sin(x / 60) * np.cos(y / 70)
    noise = rng.normal(0, 0.04, (2, *brain.shape))
    data = np.hypot(data + noise[0], noise[1]).astype(np.float32)
    return Volume(data if scalp else np.where(brain, data, 0), affine), Volume(brain, affine)


@cache
def brain_of(spacing, scalp):
    return segment_brain(phantom(spacing, scalp)[0])


def dice(found, truth):
    return 2 * (found.data & truth.data).sum() / (found.data.sum() + truth.data.sum())


def at(mask, world):
    """What ``mask`` says at a position in mm."""
    return mask.data[tuple(np.round(mask.index(np.array(world))).astype(int))]


@pytest.mark.parametrize("spacing", [THICK, THIN])
@pytest.mark.parametrize("scalp", [0.35, 1.4], ids=["dim scalp", "bright scalp"])
def test_the_brain_is_found_within_a_whole_head(spacing, scalp):
    image, truth = phantom(spacing, scalp)
    found = brain_of(spacing, scalp)
    assert found.data.dtype == bool
    assert found.shape == image.shape
    assert np.array_equal(found.affine, image.affine)
    assert dice(found, truth) >= 0.93  # the 2 mm of fluid around the brain are in the mask
    assert (truth.data & ~found.data).sum() <= 0.005 * truth.data.sum()


@pytest.mark.parametrize("spacing", [THICK, THIN])
def test_of_a_stripped_image_everything_is_brain(spacing):
    image, truth = phantom(spacing, 0)
    assert dice(brain_of(spacing, 0), truth) >= 0.999
    assert np.array_equal(brain_of(spacing, 0).data, mask_stripped_brain(image).data)


@pytest.mark.parametrize("spacing", [THICK, (0.9, 1.0, 5.0)])
def test_a_stripped_brain_on_a_noisy_background_is_found_where_it_lies(spacing):
    image, truth = phantom(spacing, 0)
    noise = np.abs(np.random.default_rng(1).normal(0, 0.05, image.shape))
    found = segment_brain(Volume(image.data + noise, image.affine))
    assert dice(found, truth) >= 0.98
    centres = [volume.world(np.argwhere(volume.data)).mean(0) for volume in (found, truth)]
    assert np.allclose(*centres, atol=0.25)  # mm


@pytest.mark.parametrize("scalp", [0.35, 1.4])
def test_eyes_scalp_and_neck_are_not_brain(scalp):
    found = brain_of(THIN, scalp)
    elsewhere = [EYE, (0, 0, 76), (81, 0, 0), (0, -15, -92), (40, -15, -92)]
    assert not any(at(found, place) for place in elsewhere)


@pytest.mark.parametrize("scalp", [0, 0.35, 1.4])
def test_a_bleed_at_the_edge_and_the_ventricles_leave_no_hole(scalp):
    found = brain_of(THIN, scalp)
    assert at(found, EDGE)
    assert at(found, (12, 0, 8))
    assert np.array_equal(ndimage.binary_fill_holes(found.data), found.data)


def test_wide_dark_ventricles_leave_no_hole():
    image, _ = phantom(THICK, 1.4)
    ventricles = inside(grid(THICK)[1], (15, 35, 16), (0, -10, 5))
    found = segment_brain(Volume(np.where(ventricles, 0.1, image.data), image.affine))
    assert found.data[ventricles].all()


def test_fat_far_brighter_than_brain_is_not_brain_even_without_a_gap():
    image, truth = phantom(THICK, 3.0)
    world = grid(THICK)[1]
    marrow = inside(world, BRAIN + 10) & ~inside(world, BRAIN + 2) & (world[2] > 0)
    found = segment_brain(Volume(np.where(marrow, np.float32(3), image.data), image.affine))
    assert dice(found, truth) >= 0.93


def test_a_dark_dropout_16_mm_wide_is_bridged():
    image, _ = phantom(THIN, 0.35)
    world = grid(THIN)[1]
    dropout = inside(world, (8, 12, 8), (0, 80, 0))  # 17 mm deep
    found = segment_brain(Volume(np.where(dropout, 0.05, image.data), image.affine))
    assert found.data[dropout & inside(world, BRAIN - 4)].mean() >= 0.95  # a dent of 4 mm is left


@pytest.mark.parametrize(("factor", "offset"), [(1e-4, 0), (3000, 0), (50, -40)])
def test_the_unit_of_the_image_does_not_matter(factor, offset):
    image, _ = phantom(THICK, 0.35)
    other = segment_brain(Volume(factor * image.data + np.float32(offset), image.affine))
    assert dice(other, brain_of(THICK, 0.35)) >= 0.999


def test_a_strong_bias_field_does_not_matter():
    image, truth = phantom(THICK, 1.4)
    fading = np.exp(np.linspace(-1.5, 1.5, image.shape[1]))[:, None]  # one end 20 times the other
    assert dice(segment_brain(Volume(image.data * fading, image.affine)), truth) >= 0.93


def test_the_order_and_direction_of_the_axes_do_not_matter():
    image, truth = phantom(THICK, 1.4)
    # axis 0 becomes Z, axis 1 is reversed, axis 2 becomes X
    turn = np.array([[0, 0, 1, 0], [0, -1, 0, image.shape[1] - 1], [1, 0, 0, 0], [0, 0, 0, 1]])
    turned = Volume(image.data.transpose(2, 1, 0)[:, ::-1], image.affine @ turn)
    found = segment_brain(turned)
    back = Volume(found.data[:, ::-1].transpose(2, 1, 0), image.affine)
    assert np.allclose(turned.world(np.zeros(3)), image.world([0, image.shape[1] - 1, 0]))
    assert dice(back, truth) >= 0.93
    assert dice(back, brain_of(THICK, 1.4)) >= 0.98


@pytest.mark.parametrize("scalp", [0, 0.35, 1.4])
def test_a_slab_through_the_head_will_do(scalp):
    image, truth = phantom(THICK, scalp)
    slab = slice(22, 30)  # 40 mm of 220
    image, truth = (Volume(volume.data[:, :, slab], image.affine) for volume in (image, truth))
    found = segment_brain(image)
    assert measure_volume_ml(found) < PLAUSIBLE_ML[0]
    assert dice(found, truth) >= 0.93


def test_the_same_image_has_the_same_brain_and_is_left_as_it_was():
    image, _ = phantom(THICK, 1.4)
    before = image.data.copy()
    assert np.array_equal(segment_brain(image).data, brain_of(THICK, 1.4).data)
    assert np.array_equal(image.data, before)


@pytest.mark.parametrize("level", [0, 100])
def test_noise_is_no_brain(level):
    noise = np.random.default_rng(3).normal(level, 1, (90, 90, 30)).astype(np.float32)
    with pytest.raises(ValueError, match=r"a brain must have 150 to 2600 ml; .* has 0 ml"):
        segment_brain(Volume(noise, np.diag([2, 2, 5, 1])))


def test_one_value_everywhere_is_no_brain():
    with pytest.raises(ValueError, match="No brain was found"):
        segment_brain(Volume(np.ones((30, 30, 30), np.float32), np.diag([5, 5, 5, 1])))


@pytest.mark.parametrize("find", [segment_brain, mask_stripped_brain])
@pytest.mark.parametrize(("radius", "ml"), [(30, "11[0-9]"), (90, "30[0-9]{2}")])
def test_a_ball_too_small_or_too_large_is_no_brain(find, radius, ml):
    affine = np.diag([2, 2, 2, 1])
    world = 2 * np.indices((100, 100, 100)) - 99
    ball = inside(world, (radius,) * 3).astype(np.float32)
    with pytest.raises(ValueError, match=f"a brain must have 150 to 2600 ml; .* has {ml} ml"):
        find(Volume(ball, affine))


def test_without_any_background_nothing_was_stripped():
    image, _ = phantom(THICK, 0.35)
    with pytest.raises(ValueError, match=r"leave some background around it; .* fills 100 % of the"):
        mask_stripped_brain(image)


def test_of_a_stripped_image_holes_are_filled_and_specks_left_out():
    image, truth = phantom(THIN, 0)
    data = image.data - 1  # the background is whatever the corners have, here -1
    where = grid(THIN)[1]
    data[inside(where, (5, 5, 5), (20, 10, 30))] = -1
    data[inside(where, (4, 4, 4), (0, 0, 90))] = 0.5
    found = mask_stripped_brain(Volume(data, image.affine))
    assert np.array_equal(found.data, truth.data)


def test_a_volume_is_in_millilitres():
    _, truth = phantom(THICK, 0)
    assert measure_volume_ml(truth) == pytest.approx(
        4 / 3 * np.pi * np.prod(BRAIN) / 1000, rel=0.01
    )


def test_a_plausible_brain_is_always_a_possible_one():
    assert POSSIBLE_ML[0] < PLAUSIBLE_ML[0] < PLAUSIBLE_ML[1] < POSSIBLE_ML[1]


def test_what_a_network_takes_for_brain_in_the_nose_is_cut_away():
    image, truth = phantom(THICK, 0.35)
    nose = inside(grid(THICK)[1], (14, 14, 20), (0, 98, -40)) & ~truth.data
    assert nose.sum() * truth.voxel_volume > 15_000
    kept = cut_leaks(Volume(truth.data | nose, truth.affine), image)
    assert (kept.data & nose).sum() * truth.voxel_volume < 6000  # a shell of 3 mm
    assert kept.data[truth.data].mean() > 0.995


def test_an_outline_that_went_wrong_cuts_nothing():
    image, truth = phantom(THICK, 0.35)
    half = Volume(np.where(grid(THICK)[1][0] > 30, 0, image.data), image.affine)
    for wrong in (half, Volume(np.ones_like(image.data), image.affine)):
        assert np.array_equal(cut_leaks(truth, wrong).data, truth.data)
