"""A scan reaches a network as its card says, and what the network finds comes back in place."""

import itertools
import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from nibabel import Nifti1Image
from nibabel.affines import apply_affine, from_matvec, voxel_sizes
from nibabel.processing import conform
from scipy import ndimage

from bids_cmb.imaging.grid import SHIVA, Grid
from bids_cmb.imaging.intensity import INTENSITIES
from bids_cmb.imaging.preprocessing import MAX_SEARCHES, measure_distances, preprocess
from bids_cmb.imaging.resampling import resample_to_scan
from bids_cmb.imaging.volume import Volume

ISOTROPIC = Grid(spacing=(1.0, 1.0, 1.0), multiple=(16, 16, 16), margin=5.0)
FINE = Grid(spacing=(0.5, 0.5, 0.5), multiple=(8, 8, 8), margin=3.0)
IN_PLANE = Grid(spacing=(0.6, 0.6, 2.0), axes="slices", multiple=(8, 8, 4), margin=4.0)
SLICES = Grid(spacing=(0.6, 0.6, None), axes="slices", shape=(96, 96, 48))
CUBIC = Grid(spacing=(0.8, 0.8, 0.8), order=3)
OWN = Grid()
GRIDS = [SHIVA, ISOTROPIC, FINE, IN_PLANE, SLICES, CUBIC, OWN]


def turned(spacing, *, axes=(0, 1, 2), flips=(-1, 1, 1), degrees=20.0, origin=(31.0, -47.0, 12.0)):
    """An affine whose voxel axis i runs along world axis ``axes[i]``, then turned obliquely."""
    a, b = np.radians([degrees, degrees / 2])
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_z = np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]])
    straight = np.zeros((3, 3))
    for axis, (world, flip) in enumerate(zip(axes, flips, strict=True)):
        straight[world, axis] = flip * spacing[axis]
    return from_matvec(about_z @ about_x @ straight, origin)


def named(grid):
    return f"{'x'.join(map(str, grid.spacing))}-order{grid.order}-{grid.axes}-{grid.intensity}"


SCANS = {  # shape, affine
    "clinical 2D": ((100, 110, 12), turned((0.45, 0.45, 4.0))),
    "VALDO-like": ((52, 60, 16), turned((1.0, 1.0, 3.0), degrees=11.0)),
    "sagittal": ((14, 56, 60), turned((3.5, 0.9, 0.8), axes=(0, 1, 2), flips=(1, -1, 1))),
    "coronal": ((54, 60, 15), turned((0.9, 0.8, 3.0), axes=(0, 2, 1), flips=(1, -1, -1))),
    "permuted": ((50, 16, 60), turned((1.1, 3.0, 0.9), axes=(2, 0, 1), flips=(-1, -1, 1))),
    "straight 3D": ((60, 56, 44), turned((0.8, 0.8, 1.2), degrees=0.0)),
}
DEFAULT = SCANS["clinical 2D"]


def ball(shape, affine, *, share=0.4):
    """A brain: a ball about the middle of the field of view, ``share`` of its narrowest side."""
    world = apply_affine(affine, np.moveaxis(np.indices(shape), 0, -1))
    middle = apply_affine(affine, (np.array(shape) - 1) / 2)
    radius = share * (np.array(shape) * voxel_sizes(affine)).min()
    return Volume(np.linalg.norm(world - middle, axis=-1) <= radius, affine)


def blob(shape, affine, centre, width):
    """A bell of standard deviation ``width`` mm about the world position ``centre``."""
    world = apply_affine(affine, np.moveaxis(np.indices(shape), 0, -1))
    distance = np.linalg.norm(world - centre, axis=-1)
    return Volume(np.exp(-((distance / width) ** 2) / 2).astype(np.float32), affine)


def textured(shape, affine, rng, *, lowest=0.0):
    """A scan with something in every voxel."""
    smooth = ndimage.gaussian_filter(rng.normal(size=shape), 1.0)
    return Volume((lowest + 300 + 900 * smooth).astype(np.float32), affine)


# SHIVA, told a second time and otherwise: in world coordinates, point by point


def told_again(image, brain):
    """The SHIVA input by its description: no matrix per axis, no ndimage, no code of ours."""
    source, size = image.affine, np.array(image.shape)
    directions = source[:3, :3] / np.linalg.norm(source[:3, :3], axis=0)
    # Which voxel axis lies nearest to each world axis, of all six ways to pair them.
    paired = max(
        itertools.permutations(range(3)),
        key=lambda p: sum(abs(directions[world, p[world]]) for world in range(3)),
    )
    signs = [np.sign(directions[world, paired[world]]) for world in range(3)]
    conformed = np.eye(4)
    middle = np.zeros(3)
    for world, (axis, sign) in enumerate(zip(paired, signs, strict=True)):
        conformed[:3, world] = sign * directions[:, axis]
        lower = (size[axis] - 1) // 2
        middle[axis] = lower if sign > 0 else size[axis] - 1 - lower
    centre = source[:3, :3] @ middle + source[:3, 3]
    conformed[:3, 3] = centre - conformed[:3, :3] @ (127, 127, 127)

    corners = np.array(list(itertools.product(*[(0, n - 1) for n in size]))).T
    forth, back = (
        np.linalg.inv(conformed) @ source,
        np.linalg.inv(source) @ conformed,
    )
    reached = forth[:3, :3] @ corners + forth[:3, 3:]
    first, end = reached.min(axis=1).astype(int) - 1, reached.max(axis=1).astype(int) + 2
    voxels = np.array(np.meshgrid(*map(np.arange, first, end), indexing="ij")).reshape(3, -1)
    where = back[:3, :3] @ voxels + back[:3, 3:]
    held = ((where >= 0) & (where <= (size - 1)[:, None])).all(axis=0)
    where, voxels = where[:, held], tuple(voxels[:, held])
    there = np.zeros((256, 256, 256), np.float32)
    there[voxels] = cubic_spline(image.data, where)
    there = np.clip(there, image.data.min(), image.data.max())
    mask = np.zeros((256, 256, 256), bool)
    mask[voxels] = brain.data[tuple(np.floor(where + 0.5).astype(int))] != 0

    x, y, z = (int(np.ceil(axis.mean())) for axis in np.nonzero(mask))
    top = np.nonzero(mask)[2].max()
    low, high = z - 88, z + 88
    if high <= top:
        low, high = low + top + 5 - high, top + 5
    out = np.zeros((160, 214, 176))
    inside = np.zeros((160, 214, 176), bool)
    for i, j in itertools.product(range(160), range(214)):
        if 0 <= x - 80 + i < 256 and 0 <= y - 107 + j < 256:
            first, end = max(low, 0), min(high, 256)
            out[i, j, first - low : end - low] = there[x - 80 + i, y - 107 + j, first:end]
            inside[i, j, first - low : end - low] = mask[x - 80 + i, y - 107 + j, first:end]
    out[out < 0] = 0
    ranked = np.sort(out[inside])
    place = 0.99 * (len(ranked) - 1)
    below = int(place)
    p99 = ranked[below] + (place - below) * (ranked[below + 1] - ranked[below])
    out = out / p99
    out[out > 1.3] = 1.3
    corner = conformed[:3, :3] @ (x - 80, y - 107, low) + conformed[:3, 3]
    return out / 1.3, inside, from_matvec(conformed[:3, :3], corner)


def cubic_spline(data, where):
    """The interpolating cubic B-spline, mirrored at its ends, at ``where``, shape (3, N)."""
    coefficients = data.astype(float)
    for axis, size in enumerate(data.shape):
        basis = np.zeros((size, size))
        for i in range(size):
            for neighbour, weight in ((i - 1, 1 / 6), (i, 4 / 6), (i + 1, 1 / 6)):
                basis[i, mirrored(neighbour, size)] += weight
        solved = np.linalg.solve(basis, np.moveaxis(coefficients, axis, 0).reshape(size, -1))
        rest = np.moveaxis(coefficients, axis, 0).shape
        coefficients = np.moveaxis(solved.reshape(rest), 0, axis)
    base = np.floor(where).astype(int)
    value = np.zeros(where.shape[1])
    for offset in itertools.product((-1, 0, 1, 2), repeat=3):
        at = base + np.array(offset)[:, None]
        value += coefficients[
            tuple(mirrored(i, n) for i, n in zip(at, data.shape, strict=True))
        ] * np.prod(b_spline(where - at), axis=0)
    return value


def mirrored(index, size):
    index = np.abs(index)
    return np.where(index >= size, 2 * (size - 1) - index, index)


def b_spline(distance):
    d = np.abs(distance)
    return np.where(d < 1, 2 / 3 - d**2 + d**3 / 2, np.where(d < 2, (2 - d) ** 3 / 6, 0))


TALL = ((12, 11, 50), turned((2.3, 2.1, 4.1)))
LONG = ((9, 58, 10), turned((2.7, 3.3, 3.1), axes=(2, 1, 0), flips=(1, -1, -1)))
HEADS = {  # shape and affine, and the slices along the longest axis that hold brain
    "in the middle": (TALL, slice(20, 32), None),
    "poking out of the box": (TALL, slice(10, 30), slice(30, 50)),
    "at the bottom, box below the volume": (TALL, slice(0, 10), None),
    "at the top, box above the volume": (TALL, slice(40, 50), None),
    "behind, box behind the volume": (LONG, slice(42, 57), None),
}


def head(where, bulk, tower):
    """A brain in the slices ``bulk``, and a thin thing on it in the slices ``tower``."""
    shape, affine = where
    brain = np.zeros(shape, bool)
    along = np.moveaxis(brain, int(np.argmax(shape)), 0)
    along[bulk, 2:-3, 3:-2] = True
    if tower:
        along[tower, 5:7, 4:6] = True
    return Volume(brain, affine)


@pytest.mark.parametrize("name", HEADS)
def test_the_shiva_grid_is_what_its_description_says_voxel_by_voxel(name, rng):
    where, bulk, tower = HEADS[name]
    image, brain = textured(*where, rng), head(where, bulk, tower)
    expected, inside, affine = told_again(image, brain)
    got = preprocess(image, brain, SHIVA)
    np.testing.assert_array_equal(got.brain.data, inside)
    np.testing.assert_allclose(got.image.data, expected, atol=1e-6, rtol=0)
    np.testing.assert_allclose(got.image.affine, affine, atol=1e-9)
    assert got.image.data.dtype == np.float32
    assert inside.any()
    assert image.data.min() < 0  # else nothing was asked of the floor


def test_a_brain_that_pokes_out_of_the_box_gets_headroom():
    (shape, affine), bulk, tower = HEADS["poking out of the box"]
    brain = head((shape, affine), bulk, tower)
    image = Volume(np.ones(shape, np.float32), affine)
    heights = np.argwhere(preprocess(image, brain, SHIVA).brain.data)[:, 2]
    assert heights.max() == 176 - 5
    assert heights.mean() < 87  # it was moved
    unmoved = preprocess(image, brain, replace(SHIVA, headroom=None)).brain.data
    assert unmoved[:, :, -1].any()  # cut off


@pytest.mark.parametrize(("topmost", "its_place"), [(14, 7), (15, 3), (17, 3)])
def test_headroom_is_given_when_the_first_slice_is_lost_and_not_before(topmost, its_place):
    shape, affine = (20, 20, 30), turned((1.0, 1.0, 1.0), flips=(1, 1, 1))
    brain = np.zeros(shape, bool)
    brain[5:15, 5:15, 10] = True  # centre at 10.05, so the box is 7 to 14
    brain[9, 9, topmost] = True
    grid = Grid(shape=(16, 16, 8), headroom=5)
    got = preprocess(Volume(np.ones(shape), affine), Volume(brain, affine), grid).brain
    assert np.argwhere(got.data)[:, 2].max() == its_place


@pytest.mark.parametrize("lowest", [0.0, 2000.0])
@pytest.mark.parametrize("name", SCANS)
def test_conforming_is_what_nibabel_does(name, lowest, rng):
    shape, affine = SCANS[name]
    view = (96, 121, 128)  # smaller than 256³ to be quick; odd and even
    image = textured(shape, affine, rng, lowest=lowest)
    grid = replace(SHIVA, conform=view, shape=None, headroom=None, intensity="none")
    got = preprocess(image, ball(shape, affine), grid).image
    reference = conform(Nifti1Image(image.data, affine), out_shape=view)  # cubic, 1 mm, RAS
    expected = np.clip(reference.get_fdata(), image.data.min(), image.data.max())
    np.testing.assert_allclose(got.affine, reference.affine, atol=1e-9)
    # Exactly on the outermost centres of the scan, nibabel's rounding decides what is outside.
    index = image.index(got.world(np.indices(view).reshape(3, -1).T)).T.reshape(3, *view)
    last = np.array(shape).reshape(3, 1, 1, 1) - 1
    on_edge = ((abs(index) < 1e-6) | (abs(index - last) < 1e-6)).any(axis=0)
    np.testing.assert_allclose(got.data[~on_edge], expected[~on_edge], rtol=1e-6, atol=1e-4)
    assert on_edge.mean() < 0.1


def test_a_scan_that_is_1_mm_already_reaches_shiva_unfiltered(rng):
    shape, affine = (40, 50, 45), turned((1.0, 1.0, 1.0), flips=(1, 1, 1))
    image, brain = textured(shape, affine, rng), ball(shape, affine)
    got = preprocess(image, brain, replace(SHIVA, intensity="none")).image
    first = np.rint(got.index(image.world(np.zeros(3)))).astype(int)
    inside = tuple(slice(start, start + n) for start, n in zip(first, shape, strict=True))
    np.testing.assert_array_equal(got.data[inside], image.data)


def test_the_99th_percentile_of_the_brain_is_0_769_for_shiva_and_1_by_its_readme(rng):
    image, brain = textured(*DEFAULT, rng), ball(*DEFAULT)
    for rule, expected in (("shiva", 1 / 1.3), ("shiva-readme", 1.0)):
        got = preprocess(image, brain, replace(SHIVA, intensity=rule))
        assert np.percentile(got.image.data[got.brain.data], 99) == pytest.approx(expected, 1e-3)
        assert got.image.data.min() == 0
        assert got.image.data.max() == 1
        assert got.image.data[~got.brain.data].any()  # the background is kept


# Every grid


@pytest.mark.parametrize("grid", GRIDS, ids=named)
@pytest.mark.parametrize("name", SCANS)
def test_a_lesion_is_back_within_half_a_voxel(name, grid, rng):
    shape, affine = SCANS[name]
    brain = ball(shape, affine)
    middle = apply_affine(affine, (np.array(shape) - 1) / 2)
    scan = blob(shape, affine, middle + rng.uniform(-5, 5, 3), width=1.6)
    there = preprocess(scan, brain, replace(grid, intensity="none")).image
    back = resample_to_scan(there, scan)
    was = np.array(ndimage.center_of_mass(scan.data))
    came = scan.index(there.world(ndimage.center_of_mass(there.data)))
    assert abs(came - was).max() < 0.25
    assert abs(ndimage.center_of_mass(back.data) - was).max() < 0.25
    assert back.data.max() > 0.2


@pytest.mark.parametrize("grid", GRIDS, ids=named)
@pytest.mark.parametrize("name", SCANS)
def test_the_brain_stays_where_it_is_in_the_world(name, grid, rng):
    shape, affine = SCANS[name]
    brain = ball(shape, affine, share=0.35)
    got = preprocess(textured(shape, affine, rng), brain, grid).brain
    centre = brain.world(ndimage.center_of_mass(brain.data))
    moved = got.world(ndimage.center_of_mass(got.data)) - centre
    assert np.linalg.norm(moved) < 0.25 * brain.spacing.max()
    volumes = [mask.data.sum() * mask.voxel_volume for mask in (got, brain)]
    assert volumes[0] == pytest.approx(volumes[1], rel=0.15)


@pytest.mark.parametrize("name", SCANS)
def test_axes_point_right_anterior_superior_and_slices_come_last_when_asked(name):
    shape, affine = SCANS[name]
    scan = Volume(np.ones(shape, np.float32), affine)
    brain = ball(shape, affine)
    got = preprocess(scan, brain, OWN).image.affine[:3, :3]
    assert list(np.argmax(abs(got), axis=0)) == [0, 1, 2]
    assert (np.diag(got) > 0).all()
    stacked = preprocess(scan, brain, replace(OWN, axes="slices")).image
    assert stacked.spacing.argmax() == 2
    world = np.argmax(abs(stacked.affine[:3, :3]), axis=0)
    assert world[0] < world[1]
    assert (stacked.affine[world, range(3)] > 0).all()


@pytest.mark.parametrize("order", [0, 1, 3])
@pytest.mark.parametrize("spacing", [(None, None, None), (0.45, 0.45, 4.0), (0.4515, 0.449, 4.03)])
def test_a_scan_that_fits_is_not_touched(spacing, order, rng):
    image = textured(*DEFAULT, rng)
    got = preprocess(image, ball(*DEFAULT), Grid(spacing=spacing, order=order)).image
    assert got.shape == image.shape
    np.testing.assert_array_equal(got.data[::-1], image.data)  # only pointed to the right


def test_downsampling_averages_instead_of_picking(rng):
    shape, affine = (64, 64, 16), turned((0.5, 0.5, 2.0))
    noise = Volume(rng.normal(10, 1, shape).astype(np.float32), affine)
    got = preprocess(noise, ball(shape, affine), Grid(spacing=(2.0, 2.0, 2.0))).image
    blocks = noise.data[::-1].reshape(16, 4, 16, 4, 16).mean(axis=(1, 3))
    np.testing.assert_allclose(got.data, blocks, atol=1e-5)


def test_downsampling_by_no_whole_number_keeps_the_mean_and_loses_no_voxel(rng):
    shape, affine = (64, 60, 16), turned((0.45, 0.45, 4.0))
    for _ in range(20):
        single = np.zeros(shape, np.float32)
        single[rng.integers(6, 54), rng.integers(6, 54), 8] = 1
        scan = Volume(single, affine)
        got = preprocess(scan, ball(shape, affine), Grid(spacing=(1.0, 1.0, None))).image
        mass = got.data.sum() * got.voxel_volume
        assert mass == pytest.approx(scan.voxel_volume, rel=1e-4)


def test_a_voxel_that_reaches_out_of_the_scan_is_the_mean_of_what_is_in_it():
    shape, affine = (21, 23, 10), turned((0.7, 0.7, 3.0))
    scan = Volume(np.full(shape, 7, np.float32), affine)
    got = preprocess(scan, ball(shape, affine), Grid(spacing=(1.6, 1.6, 5.0))).image
    assert (np.array(got.shape) * got.spacing >= np.array(shape) * scan.spacing).all()
    np.testing.assert_allclose(got.data, 7, rtol=1e-6)


def test_thick_slices_reach_to_their_edges_on_a_finer_grid():
    shape, affine = (20, 20, 5), turned((1.0, 1.0, 4.0), degrees=0)
    scan = Volume(np.full(shape, 7, np.float32), affine)
    got = preprocess(scan, Volume(np.ones(shape), affine), Grid(spacing=(1.0, 1.0, 1.0)))
    assert got.image.shape == (20, 20, 20)
    np.testing.assert_allclose(got.image.data, 7, rtol=1e-6)
    assert got.brain.data.all()


# The box


def test_the_box_holds_the_brain_its_margin_and_a_multiple():
    shape, affine = (60, 64, 20), turned((1.0, 1.0, 3.0))
    brain = ball(shape, affine, share=0.3)
    grid = Grid(multiple=(16, 8, 4), margin=4.0)
    got = preprocess(Volume(np.ones(shape), affine), brain, grid)
    assert got.brain.data.sum() == brain.data.sum()
    assert all(n % m == 0 for n, m in zip(got.image.shape, (16, 8, 4), strict=True))
    where = np.argwhere(got.brain.data)
    spare = np.minimum(where.min(axis=0), np.array(got.image.shape) - 1 - where.max(axis=0))
    assert (spare * got.image.spacing >= 4).all()
    assert (got.image.data == 1).all()  # the field of view had room for the multiple


def test_only_axes_left_as_they_are_and_finer_than_the_finest_are_widened():
    shape, affine = (30, 28, 40), turned((0.5, 0.5, 0.8))
    scan, brain = Volume(np.ones(shape), affine), ball(shape, affine)
    grid = Grid(spacing=(1.0, 1.0, None), axes="slices", finest=1.5)
    assert preprocess(scan, brain, grid).image.spacing == pytest.approx([1, 1, 1.5])
    thick = replace(grid, finest=0.7)
    assert preprocess(scan, brain, thick).image.spacing == pytest.approx([1, 1, 0.8])


@pytest.mark.parametrize(("margin", "voxels"), [(0.0, (9, 10, 5)), (1.5, (13, 14, 7))])
def test_a_margin_is_in_mm_and_on_both_sides(margin, voxels):
    shape, affine = (40, 40, 20), turned((1.0, 1.0, 3.0), flips=(1, 1, 1))
    brain = np.zeros(shape, bool)
    brain[12:21, 10:20, 8:13] = True
    got = preprocess(Volume(np.ones(shape), affine), Volume(brain, affine), Grid(margin=margin))
    assert got.brain.shape == voxels
    assert np.argwhere(got.brain.data).min(axis=0).tolist() == [2 * (margin > 0)] * 2 + [margin > 0]


def test_a_margin_stops_at_the_field_of_view():
    shape, affine = (30, 32, 10), turned((1.0, 1.0, 3.0))
    got = preprocess(Volume(np.ones(shape), affine), ball(shape, affine), Grid(margin=500.0))
    assert got.image.shape == shape


def test_a_brain_at_the_edge_takes_the_multiple_from_the_other_side():
    shape, affine = (40, 40, 20), turned((1.0, 1.0, 3.0), flips=(1, 1, 1))
    brain = np.zeros(shape, bool)
    brain[:9, 10:20, 14:] = True
    grid = Grid(multiple=(16, 16, 8), margin=0.0)
    got = preprocess(Volume(np.ones(shape), affine), Volume(brain, affine), grid)
    assert got.image.shape == (16, 16, 8)
    assert (got.image.data == 1).all()
    assert got.brain.data.sum() == brain.sum()


def test_a_multiple_beyond_the_field_of_view_is_filled_with_0_on_both_sides():
    shape, affine = (30, 32, 10), turned((1.0, 1.0, 3.0))
    brain = ball(shape, affine)
    got = preprocess(Volume(np.ones(shape), affine), brain, Grid(multiple=(32, 32, 16)))
    assert got.image.shape == (32, 32, 16)
    assert got.image.data[1:31, :, 3:13].all()
    assert got.image.data.sum() == 30 * 32 * 10
    centre = brain.world(ndimage.center_of_mass(brain.data))
    np.testing.assert_allclose(
        got.brain.world(ndimage.center_of_mass(got.brain.data)), centre, atol=1e-9
    )


def test_masked_means_0_outside_the_brain(rng):
    grid = replace(ISOTROPIC, masked=True, intensity="zscore")
    got = preprocess(textured(*DEFAULT, rng), ball(*DEFAULT), grid)
    assert not got.image.data[~got.brain.data].any()
    assert got.image.data[got.brain.data].all()


def test_a_brain_on_another_grid_is_looked_up():
    shape, affine = DEFAULT
    scan = Volume(np.ones(shape), affine)
    coarse = (40, 44, 44), affine @ from_matvec(np.diag([1.2, 1.2, 0.3]), (-1, -2, -0.4))
    other = blob(*coarse, scan.world((np.array(shape) - 1) / 2), width=4.0)
    brain = Volume(other.data > 0.1, other.affine)
    got = preprocess(scan, brain, OWN).brain
    assert got.data.sum() * got.voxel_volume == pytest.approx(
        brain.data.sum() * brain.voxel_volume, rel=0.1
    )


# Intensity


def test_each_rule_does_what_its_name_says(rng):
    image, brain = textured(*DEFAULT, rng), ball(*DEFAULT)
    inside = {}
    for rule in INTENSITIES:
        got = preprocess(image, brain, replace(OWN, intensity=rule))
        inside[rule] = got.image.data[got.brain.data].astype(float)
        assert got.image.data.dtype == np.float32
    assert np.median(inside["brain-median"]) == pytest.approx(1, abs=1e-6)
    assert inside["zscore"].mean() == pytest.approx(0, abs=1e-5)
    assert inside["zscore"].std() == pytest.approx(1, abs=1e-5)
    bright = np.percentile(inside["none"], 99)
    np.testing.assert_allclose(
        inside["shiva"], np.clip(inside["none"] / bright, 0, 1.3) / 1.3, atol=1e-6
    )
    np.testing.assert_allclose(
        inside["shiva-readme"], np.clip(inside["none"] / bright, 0, 1), atol=1e-6
    )


@pytest.mark.parametrize("rule", sorted(set(INTENSITIES) - {"none"}))
def test_a_scanner_gain_changes_nothing(rule, rng):
    image, brain = textured(*DEFAULT, rng), ball(*DEFAULT)
    louder = Volume(image.data * 37, image.affine)
    grid = replace(OWN, intensity=rule)
    np.testing.assert_allclose(
        preprocess(louder, brain, grid).image.data,
        preprocess(image, brain, grid).image.data,
        atol=1e-5,
    )


@pytest.mark.parametrize(
    ("rule", "sentence"),
    [
        ("shiva", r"The 99th percentile .* within the brain must be above 0\. Received: 0\."),
        ("brain-median", r"The median .* within the brain must be above 0\. Received: -3\."),
        ("zscore", r"The standard deviation .* must be above 0\. Received: 0\."),
    ],
)
def test_a_brain_that_is_dark_or_even_is_refused(rule, sentence):
    shape, affine = DEFAULT
    image = Volume(np.full(shape, -3, np.float32), affine)
    with pytest.raises(ValueError, match=sentence):
        preprocess(image, ball(shape, affine), replace(OWN, intensity=rule))


def test_a_brain_without_voxels_is_refused():
    shape, affine = DEFAULT
    image = Volume(np.ones(shape, np.float32), affine)
    with pytest.raises(ValueError, match=r"must have voxels .* Received: 0 voxels"):
        preprocess(image, Volume(np.zeros(shape), affine), SHIVA)


def test_the_caller_keeps_what_it_lent(rng):
    image, brain = textured(*DEFAULT, rng), ball(*DEFAULT)
    before = image.data.copy(), brain.data.copy()
    for grid in GRIDS:
        got = preprocess(image, brain, grid)
        got.image.data[...] = 5
        got.brain.data[...] = True
    np.testing.assert_array_equal(image.data, before[0])
    np.testing.assert_array_equal(brain.data, before[1])


# The way back


def test_where_the_network_did_not_look_nothing_is_found():
    shape, affine = DEFAULT
    scan = Volume(np.ones(shape, np.float32), affine)
    brain = ball(shape, affine, share=0.25)
    there = preprocess(scan, brain, replace(ISOTROPIC, margin=0.0))
    sure = Volume(np.ones(there.image.shape, np.float32), there.image.affine)
    back = resample_to_scan(sure, scan)
    np.testing.assert_allclose(back.data[brain.data], 1, atol=1e-6)
    away = scan.world(np.argwhere(np.ones(shape)))
    outside = there.image.index(away)
    beyond = (outside < -1.01) | (outside > np.array(there.image.shape) + 0.01)
    assert not back.data.reshape(-1)[beyond.any(axis=1)].any()
    assert beyond.any()


def test_a_probability_stays_one():
    shape, affine = DEFAULT
    odd = Volume(np.tile(np.float32([-0.2, 1.2]), (100, 110, 6)), affine)
    back = resample_to_scan(odd, Volume(np.ones(shape), affine))
    assert back.data.min() == 0
    assert back.data.max() == 1
    assert back.data.dtype == np.float32


# Cards


def test_a_card_survives_json():
    for grid in GRIDS:
        assert Grid.from_card(json.loads(json.dumps(asdict(grid)))) == grid


@pytest.mark.parametrize("part", [slice(None), slice(None, None, 90)])
def test_distances_of_many_and_of_a_few_voxels_are_those_of_the_distance_transform(rng, part):
    mask = Volume(rng.random((40, 50, 12)) > 0.997, turned((0.5, 0.7, 3.0)))
    distance = ndimage.distance_transform_edt(~mask.data, mask.spacing)
    voxels = np.argwhere(rng.random(mask.shape) > 0.9)[part]
    assert (len(voxels) > MAX_SEARCHES) == (part.step is None)
    known = distance[tuple(voxels.T)]
    assert (known > 4).any()
    found = measure_distances(mask, voxels, 4.0)
    np.testing.assert_allclose(found, np.where(known <= 4, known, np.inf), atol=1e-6)
