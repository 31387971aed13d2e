"""Figures of a scan: the overview, a close-up of each lesion, and the brain mask.

They are WebP files in ``figures``. Every tile names its slices and the sides it shows. Slices are
in radiological orientation: the participant's right is on the left.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bids_cmb.bids.paths import Output, get_figure_stem
from bids_cmb.bids.tables import POSITION_COLUMNS, read_table
from bids_cmb.files import read_json, write_json
from bids_cmb.imaging.cropping import crop, find_bounds
from bids_cmb.imaging.grid import Grid
from bids_cmb.imaging.nifti import load_labels
from bids_cmb.imaging.preprocessing import Preprocessed, preprocess
from bids_cmb.imaging.volume import Volume
from bids_cmb.quality.familiarity import compute_histogram, measure_intensities, measure_scan
from bids_cmb.report.closeups import (
    MARGIN_MM,
    NEIGHBOURS,
    SLAB_MM,
    View,
    describe_slab,
    draw_closeup,
    join_tiles,
    make_view,
)
from bids_cmb.report.pictures import WHITE, annotate, draw_contour, resize, save_picture
from bids_cmb.report.viewer import has_viewer, write_view, write_viewer

NETWORK_VIEW_PX = 300  # of each picture of what a network sees
OVERVIEW_PX, OVERVIEW_BAR_MM = 300, 50
VIEW_MARGIN_MM = 19.0  # around the brain: more than a close-up reaches
MAX_CLOSEUPS = 100  # lesions; the table has all


@dataclass(frozen=True, eq=False)
class ShownLesions:
    """Lesions to show, or candidates.

    Attributes:
        labels: Each one's index in its voxels, on the scan's grid.
        rows: Of their table.
    """

    labels: Volume
    rows: list[dict]


def load_shown(labels: Path) -> ShownLesions:
    """Load lesions or candidates from their labels and the table of the same name.

    Raises:
        ValueError: If either cannot be used.
        OSError: If either cannot be read.
    """
    table = labels.with_name(labels.name.replace(".nii.gz", ".tsv"))
    return ShownLesions(load_labels(labels), read_table(table))


def draw_figures(
    output: Output,
    image: Volume,
    brain: Volume,
    lesions: ShownLesions,
    candidates: ShownLesions | None = None,
    *,
    network_view: tuple[str, Grid],
    interactive: bool = False,
) -> None:
    """Draw a scan's figures, and write an index of them with the positions of the lesions.

    Args:
        output: Of the scan.
        image: The scan.
        brain: Its brain mask, on the scan's grid.
        lesions: Of the scan.
        candidates: Below the threshold of lesions, which have close-ups only.
        network_view: Name of a detector, and the grid on which it sees the scan.
        interactive: Whether to write the scan for the page, and the viewer.
    """
    margin = max(VIEW_MARGIN_MM, (NEIGHBOURS + 1) * float(image.spacing.max()))
    prepared = preprocess(image, brain, Grid(axes="slices", margin=margin))
    intensities = measure_intensities(prepared.image, prepared.brain)
    shown = [lesions, *([candidates] if candidates else [])]
    view = make_view(image, prepared, [part.labels for part in shown], intensities.white or 1)
    remove_figures(output)
    folder, stem = output.figures, get_figure_stem(output.mask())
    rows = [row for part in shown for row in part.rows[:MAX_CLOSEUPS]]
    metadata = {
        "slabs": _draw_overview(folder, stem, view, _locate_rows(view, lesions.rows)),
        "closeups": _draw_closeups(folder, stem, view, _locate_rows(view, rows)),
        "thick": view.is_thick,
        "look": _draw_network_view(
            folder / f"{stem}_look.webp", image, prepared, intensities.white or 1, network_view
        ),
        "measures": measure_scan(prepared.image, prepared.brain, intensities),
        "histogram": compute_histogram(intensities),
    }
    _draw_brain_outline(folder / f"{stem}_quality.webp", view)
    if interactive:
        write_viewer(output.folder)
        view_file = folder / f"{stem}_view.js"
        write_view(
            view_file, prepared.image, prepared.brain, [part.labels for part in shown], image
        )
    metadata["files"] = sorted(
        path.name for path in folder.glob(f"{stem}_*") if not path.name.endswith("_reviewed.json")
    )
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
        if not old.name.endswith("_reviewed.json"):  # is of the result; see `review.records`
            old.unlink(missing_ok=True)  # another process may remove them, too


def _locate_rows(view: View, rows: list[dict]) -> dict[int, np.ndarray]:
    """Locate the positions of rows in a view: index → voxels (3,), not rounded."""
    return {int(row["index"]): _locate_row(view, row) for row in rows}


def _locate_row(view: View, row: Mapping[str, object]) -> np.ndarray:
    return view.grey.index(np.array([float(row[axis]) for axis in POSITION_COLUMNS]))


def _draw_closeups(
    folder: Path, stem: str, view: View, centres: dict[int, np.ndarray]
) -> dict[str, list[str]]:
    """Draw the close-ups of lesions; what the tiles of each show, by index."""
    names = {}
    for index, centre in centres.items():
        tiles = draw_closeup(view, index, centre)
        save_picture(folder / f"{stem}_lesion-{index:03d}.webp", join_tiles(tiles))
        names[str(index)] = [tile.name for tile in tiles]
    return names


def _draw_overview(
    folder: Path, stem: str, view: View, centres: dict[int, np.ndarray]
) -> list[dict]:  # fmt: skip
    """Draw minimum-intensity projections of slabs, from top to bottom.

    Returns:
        The ``file`` of each, its ``name``, and as ``marks`` the positions of its lesions in
        percent.
    """
    spacing = view.grey.spacing
    first, end = find_bounds(view.brain.data)
    margin = np.ceil(MARGIN_MM / spacing[:2]).astype(int)
    low = np.maximum(first[:2] - margin, 0)
    high = np.minimum(end[:2] + margin, view.grey.shape[:2])
    n_slices = max(1, round(SLAB_MM / spacing[2]))
    slabs = []
    for start in range(int(first[2]), int(end[2]), n_slices):
        stop = min(start + n_slices, view.grey.shape[2])
        slab = view.grey.data[low[0] : high[0], low[1] : high[1], start:stop].min(axis=2)
        file, name = f"{stem}_slab-{len(slabs) + 1:02d}.webp", describe_slab(view, start, stop)
        save_picture(folder / file, _draw_slab(view, slab, name))
        positions = {
            index: [round(float(x), 1) for x in (centre[:2] - low + 0.5) / slab.shape * 100]
            for index, centre in centres.items()
            if start <= round(float(centre[2])) < stop
        }
        marks = [{"index": i, "x": x, "y": round(100 - y, 1)} for i, (x, y) in positions.items()]
        slabs.append({"file": file, "name": name, "marks": marks})
    return slabs[::-1]


def _draw_slab(view: View, slab: np.ndarray, name: str) -> np.ndarray:
    size = slab.shape * view.grey.spacing[:2]
    px_per_mm = OVERVIEW_PX / size.max()
    (left, right), (_, top), _ = view.grey.directions
    bar = (OVERVIEW_BAR_MM * px_per_mm, f"{OVERVIEW_BAR_MM} mm")
    return annotate(resize(slab, size * px_per_mm), name, (left, right, top), bar)


def _draw_brain_outline(path: Path, view: View) -> None:
    """Draw six slices with the outline of the brain mask."""
    grey, inside = view.grey.data, view.brain.data
    heights = np.flatnonzero(inside.any(axis=(0, 1)))
    tiles = []
    for fraction in (0.1, 0.27, 0.44, 0.6, 0.77, 0.92):
        k = int(heights[int(fraction * (len(heights) - 1))])
        size = np.array(grey.shape[:2]) * view.grey.spacing[:2]
        size = size * 220 / size.max()
        tiles.append(draw_contour(resize(grey[:, :, k], size), inside[:, :, k], size))
    save_picture(path, np.concatenate(tiles, axis=1))


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
        tiles.append(resize(grey, size * NETWORK_VIEW_PX / size[1], smooth=False))
    save_picture(path, np.concatenate(tiles, axis=1), exact=True)
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
