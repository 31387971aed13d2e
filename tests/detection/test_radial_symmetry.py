"""Dark round spots are found and measured in mm, however the scan is stored."""

import numpy as np
import pytest
from nibabel.affines import from_matvec

from bids_cmb.detection.radial import find_candidates
from bids_cmb.detection.radial_symmetry import compute_radial_symmetry
from bids_cmb.imaging.volume import Volume

SPACING = np.array([0.5, 0.7, 3.0])  # mm
SHAPE = (84, 62, 13)
MARGIN = (12, 9, 1)  # voxels of nothing around the brain, a box
CENTRE = (42, 31, 6)


def turned(degrees, axis):
    a, (i, j) = np.radians(degrees), [k for k in range(3) if k != axis]
    turn = np.eye(3)
    turn[i, i] = turn[j, j] = np.cos(a)
    turn[i, j], turn[j, i] = -np.sin(a), np.sin(a)
    return turn


# Oblique, left and right swapped, anisotropic in plane too, as scanned.
AFFINE = from_matvec(turned(12, 0) @ turned(-7, 2) @ np.diag([-1, 1, 1] * SPACING), [30, -20, 10])


def position():
    """Distance in mm from the voxel CENTRE along each axis of the grid, shape (X, Y, Z, 3)."""
    return np.moveaxis(np.indices(SHAPE), 0, -1) * SPACING - CENTRE * SPACING


def soft(distance):
    """1 inside, 0 outside, over about a third of a mm."""
    return 0.5 - 0.5 * np.tanh(distance / 0.3)


def ball(diameter, *, at=(0, 0, 0)):
    return soft(np.linalg.norm(position() - at, axis=-1) - diameter / 2)


def tube(diameter, *, slices):
    where = position()
    within = np.abs(where[..., 2]) < slices * SPACING[2] / 2
    return soft(np.hypot(where[..., 0], where[..., 1]) - diameter / 2) * within


def brain():
    inside = np.zeros(SHAPE, bool)
    inside[tuple(slice(m, -m) for m in MARGIN)] = True
    return Volume(inside, AFFINE)


def scan(*things, noise=0.01):
    """A brain of brightness 500 in which each (shape, part of the signal lost) is drawn."""
    data = brain().data * (1 + noise * np.random.default_rng(0).standard_normal(SHAPE))
    for shape, loss in things:
        data = data * (1 - loss * shape)
    return Volume((500 * data).astype(np.float32), AFFINE)


def strongest(image):
    return max(find_candidates(image, brain()), key=lambda found: found.contrast)


def test_a_ball_is_found_and_measured_in_mm():
    found = strongest(scan((ball(3.6), 0.6), noise=0))
    assert found.index == CENTRE
    assert found.contrast == pytest.approx(0.6, abs=0.04)
    assert found.diameter == pytest.approx(3.6, abs=0.3)
    assert found.elongation == pytest.approx(1, abs=0.15)
    assert found.overrun == 0
    assert found.ring_low == pytest.approx(1, abs=0.05)
    assert found.ring_high == pytest.approx(1, abs=0.05)
    volume = len(found.voxels) * np.prod(SPACING)
    assert volume == pytest.approx(np.pi * 1.8**2 * SPACING[2], rel=0.2)  # in one thick slice


@pytest.mark.parametrize("diameter", [2, 3, 4, 6])
def test_symmetry_is_highest_at_the_centre_of_a_ball(diameter):
    strength = compute_radial_symmetry(scan((ball(diameter), 0.7)), brain()).data
    peak = np.unravel_index(strength.argmax(), strength.shape)
    assert np.linalg.norm((np.subtract(peak, CENTRE) * SPACING)[:2]) <= 0.75
    assert strength.min() == 0
    assert not strength[~brain().data].any()


def test_diameter_is_taken_at_half_depth():
    away = np.hypot(position()[..., 0], position()[..., 1])
    blurred = np.exp(-4 * np.log(2) * (away / 3) ** 2) * (np.abs(position()[..., 2]) < 1)
    found = strongest(scan((blurred, 0.6), noise=0))
    assert found.diameter == pytest.approx(3, abs=0.25)
    volume = len(found.voxels) * np.prod(SPACING)
    assert volume == pytest.approx(np.pi * 1.5**2 * SPACING[2], rel=0.2)


def test_a_bright_ball_is_no_candidate():
    near = [
        found
        for found in find_candidates(scan((ball(3), -1.0)), brain())
        if np.linalg.norm((np.array(found.index) - CENTRE) * SPACING) < 2
    ]
    assert near == []


def test_tissue_in_a_ring_of_bright_fluid_is_no_dark_spot():
    away = np.hypot(position()[..., 0], position()[..., 1])
    fluid = soft(np.abs(away - 2.8) - 0.8)
    one_dark = compute_radial_symmetry(scan((ball(3), 0.5)), brain()).data
    within = compute_radial_symmetry(scan((fluid, -1.0)), brain()).data
    middle = tuple(slice(c - 2, c + 3) for c in CENTRE)
    assert within[middle].max() < 0.05 * one_dark[middle].max()


def test_a_line_has_less_symmetry_than_a_ball():
    line = soft(np.abs(position()[..., 0]) - 1.5)
    of_ball = compute_radial_symmetry(scan((ball(3), 0.6)), brain()).data.max()
    assert compute_radial_symmetry(scan((line, 0.6)), brain()).data.max() < 0.03 * of_ball


def test_symmetry_is_judged_in_mm_where_pixels_are_long():
    def highest(spacing):
        where = np.moveaxis(np.indices((60, 60, 3)) - [[[[30]]], [[[30]]], [[[1]]]], 0, -1)
        away = np.linalg.norm(where * [*spacing, 3], axis=-1)
        data = (1 - 0.6 * soft(away - 2.25)).astype(np.float32)
        affine = np.diag([*spacing, 3, 1])
        strength = compute_radial_symmetry(Volume(data, affine), Volume(data > 0, affine)).data
        assert np.hypot(*(where[strength == strength.max()][0, :2] * spacing)) < 0.8
        return strength.max()

    assert highest((0.4, 1.2)) > 0.7 * highest((0.7, 0.7))


def test_an_oval_is_as_elongated_as_it_was_drawn():
    where = position()
    oval = soft((np.linalg.norm(where / [2.4, 1.2, 2], axis=-1) - 1) * 1.2)
    assert strongest(scan((oval, 0.6))).elongation == pytest.approx(2, abs=0.25)


@pytest.mark.parametrize(("slices", "length"), [(1, 0), (2, 0), (3, 6), (4, 9)])
def test_a_tube_runs_through_more_slices_than_a_ball(slices, length):
    width = 2.5
    ball_needs = width + 0.3 * SPACING[2]  # its outer slices count from 35 % on
    even = 0 if slices % 2 else SPACING[2] / 2
    drawn = np.abs(position()[..., 2] - even) < slices * SPACING[2] / 2
    image = scan((tube(width, slices=13) * drawn, 0.6))
    wanted = max(length - ball_needs, 0)
    assert strongest(image).overrun == pytest.approx(wanted, abs=0.35)


def test_depth_is_the_distance_to_the_nearest_voxel_outside():
    along_x = (SHAPE[0] - MARGIN[0] - CENTRE[0]) * SPACING[0]
    along_y = (SHAPE[1] - MARGIN[1] - CENTRE[1]) * SPACING[1]
    middle = strongest(scan((ball(3), 0.6), noise=0))
    assert middle.depth == pytest.approx(min(along_x, along_y))
    aside = strongest(scan((ball(3, at=(8, 0, 0)), 0.6), noise=0))
    assert aside.depth == pytest.approx(along_x - 8)


def test_where_the_scan_ends_is_no_surface():
    whole = Volume(np.ones(SHAPE, bool), AFFINE)
    data = np.where(brain().data, scan((ball(3), 0.6)).data, 500)
    found = find_candidates(Volume(data, AFFINE), whole)
    assert {candidate.depth for candidate in found} == {np.inf}


@pytest.mark.parametrize(("loss", "figure"), [(-1.0, "ring_high"), (0.5, "ring_low")])
def test_a_fifth_of_the_surround_shows_and_a_fifteenth_does_not(loss, figure):
    def measured(from_mm):
        beside = soft(from_mm - position()[..., 0])
        return getattr(strongest(scan((beside, loss), (ball(2.4), 0.6), noise=0)), figure)

    assert measured(2.5) == pytest.approx(1 - loss, abs=0.2)  # 22 % of the ring
    assert measured(3.5) == pytest.approx(1, abs=0.1)  # 7 % of it


def test_a_spot_is_painted_no_wider_than_a_microbleed_may_be():
    for found in find_candidates(scan((ball(14), 0.6)), brain()):
        apart = (found.voxels - np.array(found.index)) * SPACING
        assert np.linalg.norm(apart, axis=1).max() <= 5


def test_two_dots_are_two_candidates():
    image = scan((ball(3), 0.6), (ball(3, at=(6, 0, 0)), 0.6), noise=0)
    dark = [found.index for found in find_candidates(image, brain()) if found.contrast > 0.5]
    assert sorted(dark) == [CENTRE, (CENTRE[0] + 12, *CENTRE[1:])]


def stored_otherwise(volume, axes, flips):
    """The same world positions, the voxels in another order."""
    data = volume.data.transpose(axes)[tuple(slice(None, None, flip) for flip in flips)]
    order = np.zeros((4, 4))
    order[3, 3] = 1
    for new, (old, flip) in enumerate(zip(axes, flips, strict=True)):
        order[old, new] = flip
        order[old, 3] = 0 if flip > 0 else volume.shape[old] - 1
    return Volume(np.ascontiguousarray(data), volume.affine @ order)


def told(image, inside):
    return [
        (
            *np.round(image.world(np.array(found.index)), 3),
            *(found.contrast, found.diameter, found.elongation, found.overrun, found.symmetry),
            *np.round(image.world(found.voxels).mean(axis=0), 3),
        )
        for found in find_candidates(image, inside)
    ]


@pytest.mark.parametrize(
    ("axes", "flips"),
    [((0, 1, 2), (-1, 1, 1)), ((0, 1, 2), (1, -1, -1)), ((2, 0, 1), (1, 1, 1)),
     ((1, 2, 0), (-1, 1, -1))],
)  # fmt: skip
def test_candidates_do_not_depend_on_how_the_scan_is_stored(axes, flips):
    image = scan((ball(3), 0.6), (ball(4, at=(8, -5, 6)), 0.8))
    other = stored_otherwise(image, axes, flips)
    np.testing.assert_allclose(
        told(other, stored_otherwise(brain(), axes, flips)), told(image, brain()), atol=2e-3
    )


def test_a_cube_of_equal_voxels_has_its_slices_where_the_world_has_them():
    rng = np.random.default_rng(1)
    affine = from_matvec(turned(10, 1) * 1.0, [0, 0, 0])
    image = Volume(rng.uniform(0.9, 1.1, (40, 40, 40)).astype(np.float32), affine)
    inside = Volume(np.ones(image.shape, bool), affine)
    axes, flips = (2, 0, 1), (1, -1, 1)
    np.testing.assert_allclose(
        told(stored_otherwise(image, axes, flips), stored_otherwise(inside, axes, flips)),
        told(image, inside),
        atol=2e-3,
    )


def test_the_unit_of_brightness_does_not_matter():
    image = scan((ball(3), 0.6))
    brighter = Volume(image.data * np.float32(8), AFFINE)
    assert told(brighter, brain()) == told(image, brain())


def test_the_brain_must_lie_on_the_grid_of_the_image():
    with pytest.raises(ValueError, match="must lie on the grid of `image`; found"):
        find_candidates(scan(), Volume(brain().data[1:], AFFINE))
    with pytest.raises(ValueError, match="or another affine"):
        find_candidates(scan(), Volume(brain().data, np.eye(4)))


def test_an_empty_brain_is_refused():
    with pytest.raises(ValueError, match="at least one voxel; found none"):
        find_candidates(scan(), Volume(np.zeros(SHAPE, bool), AFFINE))


def test_a_brain_without_signal_is_refused():
    with pytest.raises(ValueError, match="brighter than 0 inside the brain; found a median of 0"):
        compute_radial_symmetry(Volume(np.zeros(SHAPE, np.float32), AFFINE), brain())
