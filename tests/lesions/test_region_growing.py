"""Points grown to masks: balls of known volume, vessels, edges, and places without a dark spot."""

import numpy as np
import pytest
from nibabel.affines import from_matvec
from nibabel.eulerangles import euler2mat

from bids_cmb.imaging.volume import Volume
from bids_cmb.lesions.measure import MAX_DIAMETER_MM
from bids_cmb.lesions.region_growing import find_nearest_voxel, grow_from_point, grow_region

TURN = euler2mat(0.2, -0.1, 0.15)
GRIDS = {
    "fine": (TURN @ np.diag([-0.5, 0.5, 0.5]), (60, 60, 60)),
    "flat": (TURN @ np.diag([-0.5, 0.5, 2.0]), (70, 70, 24)),
    "thick": (TURN @ np.diag([0.9, -0.9, 4.0]), (50, 50, 14)),
}


def tissue(grid, rng, level=100.0, noise=2.0):
    """Grainy tissue on an oblique grid, and the world position of its middle."""
    turn, shape = GRIDS[grid]
    image = Volume(rng.normal(level, noise, shape), from_matvec(turn, [40, -60, -30]))
    return image, image.world((np.array(shape) - 1) / 2)


def share_inside(image, inside, finer=4):
    """How much of every voxel a body fills, by ``finer``³ places within it."""
    steps = (np.arange(finer) + 0.5) / finer - 0.5
    index = np.argwhere(np.ones(image.shape))
    places = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(-1, 3)
    total = sum(inside(image.world(index + place)) for place in places)
    return total.reshape(image.shape) / finer**3


def with_ball(image, centre, diameter, depth=0.8):
    """The image with a ball as a scanner shows it: every voxel the mean of what is in it."""
    share = share_inside(image, lambda at: np.linalg.norm(at - centre, axis=1) <= diameter / 2)
    return Volume(image.data * (1 - depth * share), image.affine)


@pytest.mark.parametrize(("grid", "diameter"), [("fine", 3), ("fine", 6), ("flat", 6), ("flat", 9)])
def test_a_ball_is_grown_to_its_volume(grid, diameter, rng):
    image, middle = tissue(grid, rng)
    image = with_ball(image, middle, diameter)
    mask = grow_region(image, middle + [0.6, -0.5, 0.4])
    ball = np.pi / 6 * diameter**3
    assert mask.sum() * image.voxel_volume == pytest.approx(ball, rel=0.2)
    centre = image.world(np.argwhere(mask)).mean(axis=0)
    assert np.linalg.norm(centre - middle) < image.spacing.max() / 2


def test_a_lesion_thinner_than_a_slice_is_grown_within_the_slice(rng):
    image, middle = tissue("thick", rng)
    middle = image.world(np.rint(image.index(middle)))
    image = with_ball(image, middle, 5)
    mask = grow_region(image, middle)
    (slices,) = np.flatnonzero(mask.any(axis=(0, 1))).tolist()
    assert slices == round(float(image.index(middle)[2]))
    across = 2 * np.sqrt(mask.sum() * 0.9**2 / np.pi)
    assert across == pytest.approx(5, abs=1)


def test_growth_does_not_depend_on_how_the_grid_is_stored(rng):
    image, middle = tissue("flat", rng)
    image = with_ball(image, middle, 5)
    mask = grow_region(image, middle)
    flip = np.diag([1.0, -1, 1, 1])
    flip[1, 3] = image.shape[1] - 1
    other = Volume(image.data[:, ::-1].transpose(2, 0, 1), image.affine @ flip @ ROLLED)
    again = grow_region(other, middle)
    assert np.array_equal(again.transpose(1, 2, 0)[:, ::-1], mask)


ROLLED = np.array([[0, 1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1]], float)


def test_a_lesion_on_a_vessel_does_not_run_along_it(rng):
    image, middle = tissue("fine", rng)
    way = image.affine[:3, 0] / 0.5

    def vessel(at):
        along = (at - middle) @ way
        return np.linalg.norm(at - middle - along[:, None] * way, axis=1) <= 1

    tube = share_inside(image, vessel)
    image = with_ball(Volume(image.data * (1 - 0.5 * tube), image.affine), middle, 5, depth=0.9)
    found = grow_from_point(image, middle)
    points = image.world(np.argwhere(grow_region(image, middle)))
    assert found.level < 0.5
    assert np.ptp(points @ way) <= MAX_DIAMETER_MM


def test_a_vessel_alone_becomes_a_ball(rng):
    image, middle = tissue("fine", rng)
    axis = np.abs(np.arange(60) - 29.5)
    image.data[:, axis <= 2] *= 0.2  # a sheet: dark wherever one goes in it
    found = grow_from_point(image, middle)
    assert found.level is None
    ball = np.pi / 6 * 3**3
    assert found.inside.sum() * image.voxel_volume == pytest.approx(ball, rel=0.25)


@pytest.mark.parametrize("grid", GRIDS)
def test_where_nothing_is_dark_the_mask_is_a_ball_around_the_point(grid, rng):
    image, middle = tissue(grid, rng)
    found = grow_from_point(image, middle, ball_mm=6)
    assert found.level is None
    mask = grow_region(image, middle)
    assert mask[find_nearest_voxel(image, middle)]
    away = np.linalg.norm(image.world(np.argwhere(mask)) - middle, axis=1)
    assert away.max() <= max(1.5, image.spacing.max())


def test_a_measured_diameter_bounds_the_growth(rng):
    image, middle = tissue("fine", rng)
    image = with_ball(image, middle, 8)
    points = image.world(np.argwhere(grow_region(image, middle, max_diameter_mm=4)))
    assert np.linalg.norm(points - middle, axis=1).max() <= 4


def test_the_background_of_a_stripped_brain_is_no_lesion(rng):
    image, _ = tissue("fine", rng)
    image.data[31:] = 0
    beside = image.world(np.array([28, 29.5, 29.5]))
    image = with_ball(image, image.world(np.array([25, 29.5, 29.5])), 4, depth=0.7)
    mask = grow_region(image, beside)
    assert not mask[31:].any()
    assert mask[25, 29, 29]


def test_a_lesion_at_the_rim_of_the_image_stays_in_it(rng):
    image, _ = tissue("fine", rng)
    corner = image.world(np.array([0, 0, 0]))
    image = with_ball(image, corner, 4)
    assert 8 <= grow_region(image, corner).sum() * image.voxel_volume / 0.125 <= 60


def test_a_point_outside_the_image_is_refused(rng):
    image, _ = tissue("fine", rng)
    with pytest.raises(ValueError, match=r"a point must lie in the image; .* of 60 × 60 × 60"):
        grow_region(image, image.world(np.array([60.2, 3, 3])))
    with pytest.raises(ValueError, match="a point must lie in the image"):
        grow_region(image, np.full(3, np.nan))


def test_a_diameter_beyond_a_microbleed_is_refused(rng):
    image, middle = tissue("fine", rng)
    with pytest.raises(
        ValueError, match="`max_diameter_mm` must be above 0 and at most 10 mm; found 12"
    ):
        grow_region(image, middle, max_diameter_mm=12)
