"""Which way voxels were counted, told by where it is dark."""

import numpy as np
import pytest
from grids import OBLIQUE

from bids_cmb.datasets.index_convention import (
    Darkness,
    IndexConvention,
    candidate_conventions,
    infer_convention,
    measure_darkness,
)
from bids_cmb.imaging.volume import Volume

SHAPE = (64, 60, 32)
EVERY = candidate_conventions((0, 1), ("", "x", "y", "z", "xy", "xz", "yz", "xyz"), ("xyz", "yxz"))


@pytest.fixture
def spotted(rng):
    """Grainy tissue with four dark spots; and the voxels they are in."""
    image = Volume(rng.normal(100, 3, SHAPE), OBLIQUE)
    spots = np.array([[12, 40, 9], [50, 22, 7], [26, 45, 26], [30, 13, 20]])
    world = image.world(np.argwhere(np.ones(SHAPE)))
    for spot in image.world(spots):
        away = np.linalg.norm(world - spot, axis=1).reshape(SHAPE)
        image.data[away < 2] *= 0.3
    return image, spots


def counted_by(way, index):
    """How voxels are counted by another convention, (N, 3)."""
    origin = way.index(np.zeros((1, 3)), SHAPE)
    steps = np.concatenate([way.index(np.eye(3)[[axis]], SHAPE) - origin for axis in range(3)])
    return (index - origin) @ np.linalg.inv(steps)


@pytest.mark.parametrize("way", EVERY[::5])
def test_a_way_and_back_again_is_where_one_was(way, rng):
    index = rng.uniform(0, 30, (5, 3))
    np.testing.assert_allclose(way.index(counted_by(way, index), SHAPE), index)


@pytest.mark.parametrize("true", [EVERY[0], EVERY[9], EVERY[19], EVERY[30]])
def test_the_way_is_told_among_all(spotted, true):
    image, spots = spotted
    counted = counted_by(true, spots)
    found = infer_convention(EVERY, [measure_darkness(image, counted, EVERY)])
    assert found.convention == true
    assert found.points == 4
    assert found.darkness > 0.4 > found.next_best > -0.1
    assert abs(found.chance) < 0.1


def test_grainy_tissue_is_no_microbleed(rng):
    image = Volume(rng.normal(100, 3, SHAPE), OBLIQUE)
    counted = rng.uniform(10, 20, (6, 3)).round()
    with pytest.raises(ValueError, match="microbleeds are dark, and the 6 points are not"):
        infer_convention(
            [IndexConvention()], [measure_darkness(image, counted, [IndexConvention()])]
        )


def test_two_scans_that_need_two_ways_are_refused():
    one, other = np.array([[0.5], [np.nan]]), np.array([[np.nan], [0.5]])
    seen = [Darkness(points, np.zeros((2, 5))) for points in (one, other)]
    with pytest.raises(ValueError, match="all points must lie in their images; 1 of 2"):
        infer_convention([IndexConvention(0), IndexConvention(1)], seen)


def test_equals_are_refused_and_so_are_near_ones():
    chance = np.tile([-0.02, 0.02], (2, 20))
    for second in (0.5, 0.46):
        seen = Darkness(np.array([[0.5] * 3, [second] * 3]), chance)
        with pytest.raises(ValueError, match=r"first voxel 0, .* and first voxel 1, .* too near"):
            infer_convention([IndexConvention(0), IndexConvention(1)], [seen])
    seen = Darkness(np.array([[0.5] * 3, [0.4] * 3]), chance)
    assert infer_convention(
        [IndexConvention(0), IndexConvention(1)], [seen]
    ).convention == IndexConvention(0)
