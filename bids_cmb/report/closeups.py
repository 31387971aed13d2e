"""Close-ups of lesions: tiles in a row, each with its slice, a scale bar and the sides it shows.

Of thick slices the tiles are the lesion's slice and two to either side; of thin ones the lesion in
all three planes. Then come the minimum over some slices, the whole slice with a frame where the
others lie, and the lesion with its outline. Pixels are those of the scan, enlarged by cubic
interpolation in the plane alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from bids_cmb.imaging.cropping import crop_or_pad, find_bounds
from bids_cmb.imaging.preprocessing import Preprocessed
from bids_cmb.imaging.resampling import transfer_labels
from bids_cmb.imaging.volume import Volume
from bids_cmb.report.pictures import (
    WHITE,
    annotate,
    crop_middle,
    draw_contour,
    draw_frame,
    pad_to_square,
    resize,
)

MAX_THIN_MM = 1.5  # slices up to which planes across them show more than smears
NEIGHBOURS = 2  # slices to either side of the lesion's own, where slices are thick
SLAB_MM = 10.0  # the minimum is over the odd number of slices that is nearest to it
REACH_MM, PX_PER_MM = 11.0, 8  # of a tile to either side of the lesion; its enlargement
TILE_PX = round(2 * REACH_MM * PX_PER_MM)
BAR_MM, WHOLE_BAR_MM = 5, 50  # scale bars of a tile, and of the whole slice
MARGIN_MM = 6.0  # around the brain in the whole slice
PLANES = {"S": "axial", "I": "axial", "A": "coronal", "P": "coronal"}  # by what they face


@dataclass(frozen=True, eq=False)
class View:
    """A scan as pictures show it: in-plane axes first, the participant's right on the left.

    Attributes:
        grey: The scan, uint8, up to `pictures.WHITE`.
        brain: Its brain mask, bool, on the same grid.
        marks: Each lesion's index in its voxels, likewise.
        stored: The scan as stored, whose slices have their numbers.
    """

    grey: Volume
    brain: Volume
    marks: Volume
    stored: Volume

    @cached_property
    def stored_axes(self) -> list[int]:
        """The axis of the stored scan that each axis follows."""
        to_stored = np.linalg.inv(self.stored.affine)[:3, :3] @ self.grey.affine[:3, :3]
        return np.abs(to_stored * self.stored.spacing[:, None]).argmax(axis=0).tolist()

    @property
    def is_thick(self) -> bool:
        """Whether slices are too thick for planes across them."""
        return float(self.grey.spacing[2]) > MAX_THIN_MM + 1e-3  # an oblique 1.5 mm is 1.5000001

    def number(self, axis: int, index: int) -> int:
        """Number a slice along an axis as stored, from 1."""
        voxel = np.zeros(3)
        voxel[axis] = index
        stored = self.stored.index(self.grey.world(voxel))[self.stored_axes[axis]]
        return round(float(stored)) + 1

    def has_slice(self, index: int) -> bool:
        """Check whether a slice along the last axis is one of the scan's."""
        return 1 <= self.number(2, index) <= self.stored.shape[self.stored_axes[2]]


def make_view(
    stored: Volume, prepared: Preprocessed, labels: Sequence[Volume], white: float
) -> View:
    """Make the view of a scan.

    Args:
        stored: The scan as stored.
        prepared: The same around its brain, in-plane axes first.
        labels: Each lesion's index in its voxels, on any grids; no two share a voxel.
        white: Intensity that is shown white.
    """
    grey = prepared.image.data * np.float32(WHITE / white)
    grey = np.clip(grey, 0, WHITE, out=grey).astype(np.uint8)
    marks = np.max([transfer_labels(part, prepared.image) for part in labels], axis=0)
    affine = prepared.image.affine
    parts = Volume(grey, affine), prepared.brain, Volume(marks, affine)
    return View(*(part.flip(0) for part in parts), stored=stored)


@dataclass(frozen=True, eq=False)
class Tile:
    """A tile of a close-up.

    Attributes:
        name: What it shows, in words.
        picture: Greys and ink, (`TILE_PX`, `TILE_PX`).
    """

    name: str
    picture: np.ndarray


def draw_closeup(view: View, index: int, voxel: np.ndarray) -> list[Tile]:
    """Draw the tiles of a lesion.

    Args:
        view: Of the scan.
        index: Of the lesion in the marks.
        voxel: Its centre on the grid of the view, not rounded, (3,).

    Returns:
        Eight tiles. Of thick slices: five slices, from below or as they are stacked; the minimum
        over some, the whole slice, and the middle one with the outline of the lesion. Of thin
        slices: three planes, the minimum, the whole slice, and the planes with its outline.
    """
    centre = np.clip(np.rint(voxel).astype(int), 0, np.array(view.grey.shape) - 1)
    further = [_draw_minimum(view, centre), _draw_whole_slice(view, centre)]
    if not view.is_thick:
        plain = [_draw_plane(view, centre, normal) for normal in (2, 1, 0)]
        outlined = [_draw_plane(view, centre, normal, index) for normal in (2, 1, 0)]
        return [*plain, *further, *outlined]
    steps = range(-NEIGHBOURS, NEIGHBOURS + 1)
    slices = [_draw_plane(view, centre + np.array([0, 0, step]), 2) for step in steps]
    return [*slices, *further, _draw_plane(view, centre, 2, index)]


def join_tiles(tiles: list[Tile]) -> np.ndarray:
    """Join tiles to one picture, side by side."""
    return np.concatenate([tile.picture for tile in tiles], axis=1)


def describe_slab(view: View, first: int, end: int) -> str:
    """Describe a minimum over the slices from ``first`` to before ``end``: "minIP 3-5, 9 mm"."""
    numbers = sorted(view.number(2, index) for index in (first, end - 1))
    thickness = (end - first) * float(view.grey.spacing[2])
    return f"minIP {numbers[0]}-{numbers[1]}, {thickness:.3g} mm"


def _draw_plane(view: View, centre: np.ndarray, normal: int, index: int | None = None) -> Tile:
    """Draw the plane across an axis through a voxel, with the outline of a lesion if one is named.

    Black if the scan has no such slice.
    """
    if normal == 2 and not view.has_slice(int(centre[2])):
        return Tile("no slice", np.zeros((TILE_PX, TILE_PX), np.uint8))
    grey, axes, size = _cut_plane(view.grey.data, view, centre, normal)
    picture = resize(grey, size)
    if index is not None:
        mask, _, _ = _cut_plane(view.marks.data == index, view, centre, normal)
        picture = draw_contour(picture, mask, size)
    name = f"{_name_plane(view, normal)} {view.number(normal, int(centre[normal]))}"
    picture = _annotate_tile(crop_middle(picture, TILE_PX), view, name, axes)
    return Tile(name if index is None else f"{name}, outlined", picture)


def _name_plane(view: View, normal: int) -> str:
    return PLANES.get(view.grey.directions[normal][1], "sagittal")


def _cut_plane(
    data: np.ndarray,
    view: View,
    centre: np.ndarray,
    normal: int,
    span: tuple[int, int] | None = None,
) -> tuple[np.ndarray, list[int], np.ndarray]:
    """Cut a plane around a voxel, or the minimum over a span of them.

    Returns:
        Its values, 0 beyond the scan; its two axes; and the size of its picture.
    """
    axes = [axis for axis in range(3) if axis != normal]
    reach = np.ceil(REACH_MM / view.grey.spacing).astype(int) + 1
    start, shape = centre - reach, 2 * reach + 1
    size = (shape * view.grey.spacing * PX_PER_MM)[axes]
    first, end = span or (centre[normal], centre[normal] + 1)
    start[normal], shape[normal] = first, end - first
    return crop_or_pad(data, start, shape).min(axis=normal), axes, size


def _annotate_tile(
    picture: np.ndarray, view: View, name: str, axes: list[int], mm: float = BAR_MM,
    px_per_mm: float = PX_PER_MM,
) -> np.ndarray:  # fmt: skip
    (left, right), (_, top) = (view.grey.directions[axis] for axis in axes)
    return annotate(picture, name, (left, right, top), (mm * px_per_mm, f"{mm:g} mm"))


def _draw_minimum(view: View, centre: np.ndarray) -> Tile:
    """Draw the minimum over `SLAB_MM` around a voxel, three slices at least."""
    half = max(1, round((SLAB_MM / float(view.grey.spacing[2]) - 1) / 2))
    first = max(0, int(centre[2]) - half)
    end = min(view.grey.shape[2], int(centre[2]) + half + 1)
    grey, axes, size = _cut_plane(view.grey.data, view, centre, 2, (first, end))
    name = describe_slab(view, first, end)
    picture = crop_middle(resize(grey, size), TILE_PX)
    return Tile(name, _annotate_tile(picture, view, name, axes))


def _draw_whole_slice(view: View, centre: np.ndarray) -> Tile:
    """Draw the slice through a voxel as far as the brain reaches, and frame the other tiles."""
    spacing = view.grey.spacing[:2]
    low, high = find_bounds(view.brain.data, np.ceil(MARGIN_MM / view.grey.spacing).astype(int))
    plane = view.grey.data[low[0] : high[0], low[1] : high[1], centre[2]]
    size = plane.shape * spacing
    px_per_mm = TILE_PX / float(size.max())
    picture = pad_to_square(resize(plane, size * px_per_mm), TILE_PX)
    middle = (centre[:2] - (low + high)[:2] / 2 + 0.5) * spacing * px_per_mm
    place = TILE_PX / 2 + middle * [1, -1] - 0.5
    name = f"slice {view.number(2, int(centre[2]))}"
    annotated = _annotate_tile(picture, view, name, [0, 1], WHOLE_BAR_MM, px_per_mm)
    return Tile(f"whole {name}", draw_frame(annotated, place, REACH_MM * px_per_mm))
