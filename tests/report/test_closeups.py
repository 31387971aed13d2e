"""Close-ups show a lesion where it is: side, slice and size, however the scan is stored."""

import nibabel as nib
import numpy as np
import pytest
from grids import oblique
from nibabel.affines import from_matvec
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

from bids_cmb.imaging.grid import Grid
from bids_cmb.imaging.preprocessing import preprocess
from bids_cmb.imaging.volume import Volume
from bids_cmb.report.closeups import PX_PER_MM, TILE_PX, draw_closeup, make_view
from bids_cmb.report.pictures import INK, annotate

HEAD_MM = np.array([120, 140, 90])  # right–left, front–back, top–bottom
TISSUE, DARK = 200, 10
THICK, THIN = (0.9, 0.7, 3.0), (0.9, 0.7, 1.2)  # mm, to the right, front and top
STORED = ["RAS", "LAS", "LPI", "SPR", "AIL"]
RIGHT_FRONT = (31.0, 28.0, 5.0)


def make_scan(spacing, axes):
    """A block of tissue about the origin, turned about the left–right axis, stored in any order."""
    shape = np.rint(HEAD_MM / spacing).astype(int)
    turn = oblique((1, 1, 1), 12, (0, 0, 0))[:3, :3] @ np.diag(spacing)
    affine = from_matvec(turn, -turn @ ((shape - 1) / 2))
    image = nib.Nifti1Image(np.full(shape, TISSUE, np.float32), affine)
    change = ornt_transform(io_orientation(affine), axcodes2ornt(axes))
    stored = image.as_reoriented(change)
    return Volume(np.array(stored.dataobj), stored.affine)


def draw_spot(image, position, side_mm, *, away=0):
    """Draw a dark square in the slice of a position, world mm, or some slices away from it.

    Returns its middle voxel as stored.
    """
    voxel = np.rint(image.index(np.array(position))).astype(int)
    voxel[image.slice_axis] += away
    reach = np.rint((side_mm / image.spacing - 1) / 2).astype(int)
    reach[image.slice_axis] = 0
    image.data[tuple(map(slice, voxel - reach, voxel + reach + 1))] = DARK
    return voxel


def show(image, voxel):
    """The tiles of a lesion at a voxel, which is all that is dark."""
    labels = Volume((image.data == DARK).astype(np.uint16), image.affine)
    brain = Volume(np.ones(image.shape, bool), image.affine)
    prepared = preprocess(image, brain, Grid(axes="slices"))
    view = make_view(image, prepared, [labels], 254.0)
    return draw_closeup(view, 1, view.grey.index(image.world(voxel)))


def middle(tile):
    return tile.picture[TILE_PX // 2 - 4 : TILE_PX // 2 + 4, TILE_PX // 2 - 4 : TILE_PX // 2 + 4]


def is_dark(tile):
    return middle(tile).max() < (TISSUE + DARK) / 2


@pytest.mark.parametrize("axes", STORED)
def test_slices_of_a_millimetre_and_a_half_are_thin_whichever_way_they_lie(axes):
    """Rounding of an oblique affine makes some of them thicker by a millionth."""
    image = make_scan((0.9, 0.7, 1.5), axes)
    image.affine[:] = image.affine.astype(np.float32) * (1 + 1e-6)
    voxel = draw_spot(image, RIGHT_FRONT, 8)
    assert any(tile.name.startswith("coronal") for tile in show(image, voxel))


@pytest.mark.parametrize("axes", STORED)
@pytest.mark.parametrize("spacing", [THICK, THIN])
@pytest.mark.parametrize("sides", [(1, 1), (1, -1), (-1, 1)])
def test_the_right_hemisphere_is_on_the_left_and_the_front_is_up(axes, spacing, sides):
    """The frame in the whole slice lies about the lesion and where the world says it is."""
    image = make_scan(spacing, axes)
    voxel = draw_spot(image, np.multiply(RIGHT_FRONT, [*sides, 1]), 8)
    (whole,) = (tile for tile in show(image, voxel) if tile.name.startswith("whole"))
    frame = np.argwhere(whole.picture == INK)
    framed = (frame.min(axis=0) + frame.max(axis=0)) / 2
    right, front = sides
    assert (framed[1] < TILE_PX / 2) == (right > 0)
    assert (framed[0] < TILE_PX / 2) == (front > 0)
    near = whole.picture[tuple(slice(round(at) - 6, round(at) + 7) for at in framed)]
    assert np.argwhere(near < 100).mean(axis=0) == pytest.approx([6, 6], abs=1)


@pytest.mark.parametrize("axes", STORED)
def test_every_tile_of_thick_slices_names_its_slice_as_stored_and_its_sides(axes):
    """A tile of even tissue is, to the pixel, what the letters and the number make of it."""
    image = make_scan(THICK, axes)
    voxel = draw_spot(image, RIGHT_FRONT, 5)
    number = voxel[image.slice_axis] + 1
    stacked_up = image.affine[2, image.slice_axis] > 0
    order = range(-2, 3) if stacked_up else range(2, -3, -1)
    tiles = show(image, voxel)
    assert [tile.name for tile in tiles[:5]] == [f"axial {number + step}" for step in order]
    assert tiles[7].name == f"axial {number}, outlined"
    assert [is_dark(tile) for tile in tiles[:5]] == [False, False, True, False, False]
    even = np.full((TILE_PX, TILE_PX), TISSUE, np.uint8)
    for tile in (tiles[0], tiles[4]):
        wanted = annotate(even, tile.name, ("R", "L", "A"), (5 * PX_PER_MM, "5 mm"))
        np.testing.assert_array_equal(tile.picture, wanted)


def test_slices_that_were_taken_from_front_to_back_say_so():
    image = make_scan((0.9, 3.0, 0.7), "LAS")
    voxel = draw_spot(image, RIGHT_FRONT, 5)
    tiles = show(image, voxel)
    assert tiles[2].name == f"coronal {voxel[1] + 1}"
    even = np.full((TILE_PX, TILE_PX), TISSUE, np.uint8)
    wanted = annotate(even, tiles[0].name, ("R", "L", "S"), (5 * PX_PER_MM, "5 mm"))
    np.testing.assert_array_equal(tiles[0].picture, wanted)


def test_thin_slices_are_shown_in_three_planes_as_they_are_stored():
    image = make_scan(THIN, "SPR")
    voxel = draw_spot(image, RIGHT_FRONT, 5)
    names = [f"{plane} {voxel[axis] + 1}" for plane, axis in
             (("axial", 0), ("coronal", 1), ("sagittal", 2))]  # fmt: skip
    tiles = show(image, voxel)
    assert [tile.name for tile in tiles[:3]] == names
    assert [tile.name for tile in tiles[5:]] == [f"{name}, outlined" for name in names]
    assert is_dark(tiles[0])


def test_a_lesion_is_as_wide_as_its_scale_bar_says():
    """5.4 by 4.9 mm of whole voxels; in depth one slice of 1.2 mm."""
    image = make_scan(THIN, "LAS")
    voxel = draw_spot(image, RIGHT_FRONT, 5)
    axial, coronal, *_ = show(image, voxel)
    for tile, across, up in ((axial, 0, 1), (coronal, 0, 2)):
        dark = tile.picture[40:135, 40:135] < (TISSUE + DARK) / 2
        wanted = [
            np.ptp(np.argwhere(image.data == DARK)[:, axis]) + 1 for axis in (up, across)
        ] * image.spacing[[up, across]]
        assert np.ptp(np.argwhere(dark), axis=0) + 1 == pytest.approx(wanted * PX_PER_MM, abs=3)


@pytest.mark.parametrize(
    ("thickness", "reach", "text"), [(3, 1, "9 mm"), (4, 1, "12 mm"), (2, 2, "10 mm")]
)
@pytest.mark.parametrize("beyond", [0, 1])
def test_the_minimum_is_over_as_many_slices_as_it_says(thickness, reach, text, beyond):
    """A wide spot in the last of its slices is seen, and in the next one it is not."""
    image = make_scan((0.9, 0.7, thickness), "LAS")
    voxel = draw_spot(image, RIGHT_FRONT, 2)
    draw_spot(image, RIGHT_FRONT, 8, away=reach + beyond)
    tile = show(image, voxel)[5]
    assert tile.name == f"minIP {voxel[2] + 1 - reach}-{voxel[2] + 1 + reach}, {text}"
    width_px = (tile.picture[TILE_PX // 2, 20:150] < 100).sum()
    assert (width_px > 7 * PX_PER_MM) == (beyond == 0)


def test_beyond_the_scan_tiles_are_black_and_not_a_slice_twice():
    image = make_scan(THICK, "LAS")
    voxel = np.rint(image.index(np.array(RIGHT_FRONT))).astype(int)
    voxel[2] = 0
    draw_spot(image, image.world(voxel), 5)
    tiles = show(image, voxel)
    assert [tile.name for tile in tiles[:3]] == ["no slice", "no slice", "axial 1"]
    assert not tiles[0].picture.any()
    assert is_dark(tiles[2])
