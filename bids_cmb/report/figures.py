"""Figures of a scan: the overview, a close-up of each lesion, and the brain mask.

They are PNG files in ``figures``; labels over them are SVG and text of the page, so that they stay
sharp, work with screen readers and follow light and dark mode. Slices are in radiological
orientation: the participant's right is on the left.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from bids_cmb.bids.paths import Output, get_figure_stem
from bids_cmb.bids.tables import POSITION_COLUMNS
from bids_cmb.files import read_json, replacing, write_json
from bids_cmb.imaging.cropping import crop, find_bounds
from bids_cmb.imaging.grid import Grid
from bids_cmb.imaging.preprocessing import Preprocessed, preprocess
from bids_cmb.imaging.resampling import transfer_labels
from bids_cmb.imaging.volume import Volume
from bids_cmb.quality.familiarity import compute_histogram, measure_intensities, measure_scan
from bids_cmb.report.viewer import MARGIN_MM, has_viewer, write_view, write_viewer

NETWORK_VIEW_PX = 300  # of each picture of what a network sees
SLAB_MM = 10.0  # thickness of the minimum-intensity projections
OVERVIEW_PX, PX_PER_MM = 300, 7
CLOSEUP_REACH_MM = 13.0  # to either side of a lesion in its close-up
RING_RADIUS_MM = 7.0  # around a lesion in its slab
WHITE, INK = 254, 255  # values of a picture; INK is drawn in `COLOUR`
COLOUR = (230, 159, 0)  # orange of a colour-blind-safe palette
PALETTE = [value for grey in range(INK) for value in (grey, grey, grey)] + [*COLOUR]
MAX_CLOSEUPS = 100  # lesions; the table has all
CLOSEUP_PX = round(2 * CLOSEUP_REACH_MM * PX_PER_MM)  # of each picture of a lesion


def draw_figures(
    output: Output,
    image: Volume,
    brain: Volume,
    labels: Volume,
    lesions: list[dict],
    *,
    network_view: tuple[str, Grid],
    interactive: bool = False,
) -> None:
    """Draw a scan's figures, and write an index of them with the positions of the lesions.

    Args:
        output: Of the scan.
        image: The scan.
        brain: Its brain mask, on the scan's grid.
        labels: Each lesion's index in its voxels, on the scan's grid.
        lesions: Rows of the lesion table.
        network_view: Name of a detector, and the grid on which it sees the scan.
        interactive: Whether to write the scan for the page, and the viewer.
    """
    prepared = preprocess(image, brain, Grid(axes="slices", margin=CLOSEUP_REACH_MM + MARGIN_MM))
    marks = transfer_labels(labels, prepared.image)
    intensities = measure_intensities(prepared.image, prepared.brain)
    grey = prepared.image.data * np.float32(WHITE / (intensities.white or 1))
    grey = np.clip(grey, 0, WHITE, out=grey).astype(np.uint8)
    # Right is left.
    grey, marks, inside = (array[::-1] for array in (grey, marks, prepared.brain.data))
    centres = {int(row["index"]): _locate_in_picture(prepared.image, row) for row in lesions}
    remove_figures(output)
    folder, stem = output.figures, get_figure_stem(output.mask())
    slabs = _draw_overview(folder, stem, grey, inside, prepared.image.spacing, centres)
    for index in list(centres)[:MAX_CLOSEUPS]:
        picture = _draw_closeup(grey, marks, index, prepared.image.spacing, centres[index])
        _save_png(folder / f"{stem}_lesion-{index:03d}.png", picture)
    _draw_brain_outline(folder / f"{stem}_quality.png", grey, inside, prepared.image.spacing)
    metadata = {
        "slabs": slabs,
        "look": _draw_network_view(
            folder / f"{stem}_look.png", image, prepared, intensities.white or 1, network_view
        ),
        "measures": measure_scan(prepared.image, prepared.brain, intensities),
        "histogram": compute_histogram(intensities),
    }
    if interactive:
        write_viewer(output.folder)
        write_view(folder / f"{stem}_view.js", prepared.image, prepared.brain, labels)
    metadata["files"] = sorted(path.name for path in folder.glob(f"{stem}_*"))
    write_json(folder / f"{stem}_overview.json", metadata)  # last: it marks the others complete


def has_figures(output: Output, *, interactive: bool) -> bool:
    """Check whether all figures of a scan exist, and with ``interactive`` its viewer's files."""
    folder, stem = output.figures, get_figure_stem(output.mask())
    names = (read_json(folder / f"{stem}_overview.json") or {}).get("files")
    if not isinstance(names, list):
        return False
    if interactive and not (f"{stem}_view.js" in names and has_viewer(output.folder)):
        return False
    try:
        return {str(name) for name in names} <= {path.name for path in folder.iterdir()}
    except OSError:
        return False


def remove_figures(output: Output) -> None:
    """Remove a scan's figures, their index first."""
    folder, stem = output.figures, get_figure_stem(output.mask())
    (folder / f"{stem}_overview.json").unlink(missing_ok=True)
    for old in folder.glob(f"{stem}_*"):
        old.unlink(missing_ok=True)  # another process may remove them, too


def _locate_in_picture(image: Volume, row: Mapping[str, object]) -> np.ndarray:
    """Locate the position of a row in the pictures, voxels (3,), not rounded; right is left."""
    voxel = image.index(np.array([float(row[axis]) for axis in POSITION_COLUMNS]))
    return np.array([image.shape[0] - 1 - voxel[0], voxel[1], voxel[2]])


def _draw_overview(
    folder: Path,
    stem: str,
    grey: np.ndarray,
    inside: np.ndarray,
    spacing: np.ndarray,
    centres: dict,
) -> list[dict]:
    """Draw minimum-intensity projections of slabs, from top to bottom.

    Returns:
        The ``file`` of each, and as ``marks`` the positions of its lesions in percent.
    """
    first, end = find_bounds(inside)
    margin = np.ceil(MARGIN_MM / spacing[:2]).astype(int)
    low = np.maximum(first[:2] - margin, 0)
    high = np.minimum(end[:2] + margin, grey.shape[:2])
    n_slices = max(1, round(SLAB_MM / spacing[2]))
    slabs = []
    for start in range(int(first[2]), int(end[2]), n_slices):
        stop = min(start + n_slices, grey.shape[2])
        slab = grey[low[0] : high[0], low[1] : high[1], start:stop].min(axis=2)
        name = f"{stem}_slab-{len(slabs) + 1:02d}.png"
        size = slab.shape * spacing[:2]
        _save_png(folder / name, _resize(slab, size * OVERVIEW_PX / size.max()))
        positions = {
            index: [round(float(x), 1) for x in (centre[:2] - low + 0.5) / slab.shape * 100]
            for index, centre in centres.items()
            if start <= round(float(centre[2])) < stop
        }
        marks = [{"index": i, "x": x, "y": round(100 - y, 1)} for i, (x, y) in positions.items()]
        slabs.append({"file": name, "marks": marks})
    return slabs[::-1]


def _draw_closeup(
    grey: np.ndarray, marks: np.ndarray, index: int, spacing: np.ndarray, voxel: np.ndarray
) -> np.ndarray:
    """Draw the close-up of a lesion.

    Above: its slice, both planes across the slices, and the minimum over ``SLAB_MM``. Below: the
    three planes with its contour, and the slab again with a ring.
    """
    centre = np.clip(np.rint(voxel).astype(int), 0, np.array(grey.shape) - 1)
    reach = np.ceil(CLOSEUP_REACH_MM / spacing).astype(int)
    box = tuple(
        np.clip(np.arange(c - r, c + r + 1), 0, n - 1)
        for c, r, n in zip(centre, reach, grey.shape, strict=True)
    )
    near, lesion = grey[np.ix_(*box)], marks[np.ix_(*box)] == index
    size = (2 * reach + 1) * spacing * PX_PER_MM
    i, j, k = reach
    half_slab = round(SLAB_MM / 2 / spacing[2])
    planes = [
        (near[:, :, k], lesion[:, :, k], size[:2]),
        (near[:, j, :], lesion[:, j, :], size[[0, 2]]),
        (near[i, :, :], lesion[i, :, :], size[1:]),
        (near[:, :, max(0, k - half_slab) : k + half_slab + 1].min(axis=2), None, size[:2]),
    ]
    images, outlined_images = [], []
    for plane, mask, plane_size in planes:
        picture = _resize(plane, plane_size)
        images.append(_crop_middle(picture))
        outlined = _draw_ring(picture) if mask is None else _draw_contour(picture, mask, plane_size)
        outlined_images.append(_crop_middle(outlined))
    return np.concatenate([np.concatenate(row, axis=1) for row in (images, outlined_images)])


def _crop_middle(picture: np.ndarray) -> np.ndarray:
    """Crop the middle ``CLOSEUP_PX`` of a picture, which is at least as large."""
    y, x = ((side - CLOSEUP_PX) // 2 for side in picture.shape[:2])
    return picture[y : y + CLOSEUP_PX, x : x + CLOSEUP_PX]


def _draw_ring(picture: np.ndarray) -> np.ndarray:
    """Draw a ring around the middle of a picture."""
    ringed = picture.copy()
    y, x = np.ogrid[: picture.shape[0], : picture.shape[1]]
    distance = np.hypot(y - picture.shape[0] / 2, x - picture.shape[1] / 2) / PX_PER_MM
    ringed[abs(distance - RING_RADIUS_MM) < 1 / PX_PER_MM] = INK
    return ringed


def _draw_brain_outline(
    path: Path, grey: np.ndarray, inside: np.ndarray, spacing: np.ndarray
) -> None:
    """Draw six slices with the outline of the brain mask."""
    heights = np.flatnonzero(inside.any(axis=(0, 1)))
    tiles = []
    for fraction in (0.1, 0.27, 0.44, 0.6, 0.77, 0.92):
        k = int(heights[int(fraction * (len(heights) - 1))])
        size = np.array(grey.shape[:2]) * spacing[:2]
        size = size * 220 / size.max()
        tiles.append(_draw_contour(_resize(grey[:, :, k], size), inside[:, :, k], size))
    _save_png(path, np.concatenate(tiles, axis=1))


def _draw_network_view(
    path: Path, image: Volume, prepared: Preprocessed, white: float, network_view: tuple[str, Grid]
) -> dict[str, object]:
    """Draw the middle slice as it is in the file, and as a network sees it, voxel by voxel.

    Left: from the lowest to the highest value of the scan. Right: from 0 to ``white``.
    """
    name, grid = network_view
    slices = np.flatnonzero(prepared.brain.data.any(axis=(0, 1)))
    middle = int(slices[len(slices) // 2])
    position = prepared.image.world(np.array([0, 0, middle]))
    axis, low, high = image.slice_axis, image.data.min(), image.data.max()
    raw = np.moveaxis(image.data, axis, 2)[..., round(float(image.index(position)[axis]))]
    resampled = _resample_slices(prepared, middle, grid)
    plane = resampled.data[::-1, :, round(float(resampled.index(position)[2]))]  # right is left
    tiles = []
    for values, size in (
        ((raw - low) / (high - low), np.array(raw.shape)),
        (plane / white, plane.shape * resampled.spacing[:2]),
    ):
        grey = np.clip(values * WHITE, 0, WHITE).astype(np.uint8)
        tiles.append(_resize(grey, size * NETWORK_VIEW_PX / size[1], smooth=False))
    _save_png(path, np.concatenate(tiles, axis=1))
    voxel = [round(float(side), 2) for side in resampled.spacing]
    return {"file": path.name, "by": name, "voxel_mm": voxel, "masked": grid.masked}


def _resample_slices(prepared: Preprocessed, middle: int, grid: Grid) -> Volume:
    """Resample a few slices around the middle one to the voxel size of a network's grid."""
    spacing = prepared.image.spacing[2]
    half = int(np.ceil(2 * (grid.spacing[2] or spacing) / spacing)) + 1
    first = max(0, middle - half)
    low, high = np.array([0, 0, first]), np.array([*prepared.image.shape[:2], middle + half + 1])
    cropped = (crop(volume, low, high) for volume in (prepared.image, prepared.brain))
    local_grid = Grid(
        grid.spacing, axes="slices", margin=MARGIN_MM, order=grid.order, masked=grid.masked
    )
    return preprocess(*cropped, local_grid).image


def _resize(plane: np.ndarray, size: Iterable[float], *, smooth: bool = True) -> np.ndarray:
    """Resize a plane (across, up) to a picture of ``size`` pixels (across, up), top row first."""
    across, up = (max(1, round(float(side))) for side in size)
    resampling = Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST
    picture = Image.fromarray(np.ascontiguousarray(plane.T[::-1]))
    return np.minimum(np.asarray(picture.resize((across, up), resampling)), WHITE)


def _draw_contour(picture: np.ndarray, mask: np.ndarray, size: Iterable[float]) -> np.ndarray:
    """Draw the outline of a plane of a mask, resized to the picture."""
    outlined = picture.copy()
    resized = _resize(mask.astype(np.uint8), size, smooth=False) > 0
    outlined[resized & ~ndimage.binary_erosion(resized)] = INK
    return outlined


def _save_png(path: Path, picture: np.ndarray) -> None:
    """Save a picture of greys and `INK`."""
    image = Image.fromarray(picture).convert("L")
    image.putpalette(PALETTE)
    with replacing(path) as temporary:
        image.save(temporary, format="PNG", compress_level=4)
