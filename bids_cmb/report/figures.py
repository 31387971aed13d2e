"""A scan's pictures: the overview, each lesion from near, and the brain mask.

They are PNG files in ``figures``; what is written over them is SVG and text of the page, so that it
stays sharp, can be read aloud and follows light and dark. Slices are shown as radiologists do: the
participant's right is on the left.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from bids_cmb.bids.paths import Output, get_figure_stem
from bids_cmb.files import read_json, replacing, write_json
from bids_cmb.imaging.preprocessing import Grid, Preprocessed, find_bounds, preprocess
from bids_cmb.imaging.volume import Volume, crop, transfer_labels
from bids_cmb.quality.familiarity import brain_intensities, histogram, measures
from bids_cmb.report.overlays import overlays, place_in
from bids_cmb.report.viewer import has_viewer, write_view, write_viewer

LOOK_PX = 300  # of each picture of what a network sees
SLAB_MM = 10.0  # of the overview's minimum-intensity pictures
MARGIN_MM = 6.0  # that is kept around the brain
OVERVIEW_PX, PX_PER_MM = 300, 7
REACH_MM = 13.0  # to either side of a lesion in its pictures
RING_MM = 7.0  # about a lesion in its slab
WHITE, INK = 254, 255  # values of a picture; INK is drawn in a colour
COLOUR = (230, 159, 0)  # orange of a palette that the colour-blind tell apart
PALETTE = [value for grey in range(INK) for value in (grey, grey, grey)] + [*COLOUR]
MOST_PICTURED = 100  # lesions; the table has all
CLOSE_PX = round(2 * REACH_MM * PX_PER_MM)  # of each picture of a lesion


def draw(
    output: Output,
    image: Volume,
    brain: Volume,
    labels: Volume,
    lesions: list[dict],
    *,
    look: tuple[str, Grid],
    evidence: Mapping[str, list[dict]] | None = None,
    interactive: bool = False,
) -> None:
    """Draw a scan's pictures into the ``figures`` of its participant, and what lies where in them.

    Args:
        output: Of the scan.
        image: The scan.
        brain: Its brain mask, on the scan's grid.
        labels: Each lesion's index in its voxels, on the scan's grid.
        lesions: Rows of the lesion table.
        look: Who sought lesions, in words, and on what grid.
        evidence: Rows of the tables that the detectors leave behind: ``boxes`` and ``gate``.
        interactive: Whether the page shall carry the scan, and the dataset the viewer.
    """
    seen = preprocess(image, brain, Grid(axes="slices", margin=REACH_MM + MARGIN_MM))
    marks = transfer_labels(labels, seen.image)
    intensities = brain_intensities(seen.image, seen.brain)
    grey = seen.image.data * np.float32(WHITE / (intensities.white or 1))
    grey = np.clip(grey, 0, WHITE, out=grey).astype(np.uint8)
    grey, marks, inside = (part[::-1] for part in (grey, marks, seen.brain.data))  # right is left
    places = {int(row["index"]): place_in(seen.image, row) for row in lesions}
    remove_pictures(output)
    folder, stem = output.figures, get_figure_stem(output.mask())
    slabs = _overview(folder, stem, grey, inside, seen.image.spacing, places)
    for index in list(places)[:MOST_PICTURED]:
        picture = _close(grey, marks, index, seen.image.spacing, places[index])
        _save(folder / f"{stem}_lesion-{index:03d}.png", picture)
    _quality(folder / f"{stem}_quality.png", grey, inside, seen.image.spacing)
    about = {
        "slabs": slabs,
        "look": _look(folder / f"{stem}_look.png", image, seen, intensities.white or 1, look),
        "measures": measures(seen.image, seen.brain, intensities),
        "histogram": histogram(intensities),
        **overlays(seen.image, places, evidence or {}, reach=REACH_MM),
    }
    if interactive:
        write_viewer(output.folder)
        write_view(folder / f"{stem}_view.js", seen.image, seen.brain, labels)
    about["files"] = sorted(path.name for path in folder.glob(f"{stem}_*"))
    write_json(folder / f"{stem}_overview.json", about)  # last: it says that all are there


def are_drawn(output: Output, *, interactive: bool) -> bool:
    """Whether all pictures of a scan are there, and with ``interactive`` what its page carries."""
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


def remove_pictures(output: Output) -> None:
    """Remove a scan's pictures, the word that all are there first."""
    folder, stem = output.figures, get_figure_stem(output.mask())
    (folder / f"{stem}_overview.json").unlink(missing_ok=True)
    for old in folder.glob(f"{stem}_*"):
        old.unlink(missing_ok=True)  # another process may clear away too


def _overview(
    folder: Path, stem: str, grey: np.ndarray, inside: np.ndarray, spacing: np.ndarray, places: dict
) -> list[dict]:
    """Minimum-intensity slabs from top to bottom, and where the lesions lie in them, in percent."""
    first, end = find_bounds(inside)
    margin = np.ceil(MARGIN_MM / spacing[:2]).astype(int)
    low = np.maximum(first[:2] - margin, 0)
    high = np.minimum(end[:2] + margin, grey.shape[:2])
    thick = max(1, round(SLAB_MM / spacing[2]))
    found = []
    for start in range(int(first[2]), int(end[2]), thick):
        stop = min(start + thick, grey.shape[2])
        part = grey[low[0] : high[0], low[1] : high[1], start:stop].min(axis=2)
        name = f"{stem}_slab-{len(found) + 1:02d}.png"
        size = part.shape * spacing[:2]
        _save(folder / name, _sized(part, size * OVERVIEW_PX / size.max()))
        here = {
            index: [round(float(x), 1) for x in (at[:2] - low + 0.5) / part.shape * 100]
            for index, at in places.items()
            if start <= round(float(at[2])) < stop
        }
        marks = [{"index": i, "x": x, "y": round(100 - y, 1)} for i, (x, y) in here.items()]
        found.append({"file": name, "marks": marks})
    return found[::-1]


def _close(
    grey: np.ndarray, marks: np.ndarray, index: int, spacing: np.ndarray, at: np.ndarray
) -> np.ndarray:
    """A lesion from near, in one picture.

    Above: its slice, both planes across the slices, and the minimum over ``SLAB_MM``. Below: the
    three planes with its contour, and the slab once more with a ring.
    """
    centre = np.clip(np.rint(at).astype(int), 0, np.array(grey.shape) - 1)
    reach = np.ceil(REACH_MM / spacing).astype(int)
    box = tuple(
        np.clip(np.arange(c - r, c + r + 1), 0, n - 1)
        for c, r, n in zip(centre, reach, grey.shape, strict=True)
    )
    near, own = grey[np.ix_(*box)], marks[np.ix_(*box)] == index
    size = (2 * reach + 1) * spacing * PX_PER_MM
    i, j, k = reach
    half = round(SLAB_MM / 2 / spacing[2])
    planes = [
        (near[:, :, k], own[:, :, k], size[:2]),
        (near[:, j, :], own[:, j, :], size[[0, 2]]),
        (near[i, :, :], own[i, :, :], size[1:]),
        (near[:, :, max(0, k - half) : k + half + 1].min(axis=2), None, size[:2]),
    ]
    above, below = [], []
    for plane, mask, across in planes:
        picture = _sized(plane, across)
        above.append(_middle(picture))
        outlined = _ringed(picture) if mask is None else _contoured(picture, mask, across)
        below.append(_middle(outlined))
    return np.concatenate([np.concatenate(row, axis=1) for row in (above, below)])


def _middle(picture: np.ndarray) -> np.ndarray:
    """The middle ``CLOSE_PX`` of a picture, which is at least as large."""
    y, x = ((side - CLOSE_PX) // 2 for side in picture.shape[:2])
    return picture[y : y + CLOSE_PX, x : x + CLOSE_PX]


def _ringed(picture: np.ndarray) -> np.ndarray:
    """A picture with a ring about its middle."""
    made = picture.copy()
    y, x = np.ogrid[: picture.shape[0], : picture.shape[1]]
    away = np.hypot(y - picture.shape[0] / 2, x - picture.shape[1] / 2) / PX_PER_MM
    made[abs(away - RING_MM) < 1 / PX_PER_MM] = INK
    return made


def _quality(path: Path, grey: np.ndarray, inside: np.ndarray, spacing: np.ndarray) -> None:
    """Six slices with the outline of the brain mask."""
    heights = np.flatnonzero(inside.any(axis=(0, 1)))
    tiles = []
    for share in (0.1, 0.27, 0.44, 0.6, 0.77, 0.92):
        k = int(heights[int(share * (len(heights) - 1))])
        size = np.array(grey.shape[:2]) * spacing[:2]
        size = size * 220 / size.max()
        tiles.append(_contoured(_sized(grey[:, :, k], size), inside[:, :, k], size))
    _save(path, np.concatenate(tiles, axis=1))


def _look(
    path: Path, image: Volume, seen: Preprocessed, white: float, look: tuple[str, Grid]
) -> dict[str, object]:
    """The middle slice as it lies in the file, and as a network sees it, voxel by voxel.

    Left: black to white is the lowest to the highest value of the scan. Right: 0 to ``white``.
    """
    name, grid = look
    heights = np.flatnonzero(seen.brain.data.any(axis=(0, 1)))
    middle = int(heights[len(heights) // 2])
    place = seen.image.world(np.array([0, 0, middle]))
    axis, low, high = image.slice_axis, image.data.min(), image.data.max()
    raw = np.moveaxis(image.data, axis, 2)[..., round(float(image.index(place)[axis]))]
    after = _sampled(seen, middle, grid)
    plane = after.data[::-1, :, round(float(after.index(place)[2]))]  # right is left
    tiles = []
    for shown, size in (
        ((raw - low) / (high - low), np.array(raw.shape)),
        (plane / white, plane.shape * after.spacing[:2]),
    ):
        grey = np.clip(shown * WHITE, 0, WHITE).astype(np.uint8)
        tiles.append(_sized(grey, size * LOOK_PX / size[1], smooth=False))
    _save(path, np.concatenate(tiles, axis=1))
    voxel = [round(float(one), 2) for one in after.spacing]
    return {"file": path.name, "by": name, "voxel_mm": voxel, "masked": grid.masked}


def _sampled(seen: Preprocessed, middle: int, grid: Grid) -> Volume:
    """A few slices about one, in voxels of the size that a network asks for."""
    own = seen.image.spacing[2]
    reach = int(np.ceil(2 * (grid.spacing[2] or own) / own)) + 1
    first = max(0, middle - reach)
    low, high = np.array([0, 0, first]), np.array([*seen.image.shape[:2], middle + reach + 1])
    part = (crop(one, low, high) for one in (seen.image, seen.brain))
    like = Grid(grid.spacing, axes="slices", margin=MARGIN_MM, order=grid.order, masked=grid.masked)
    return preprocess(*part, like).image


def _sized(plane: np.ndarray, size: Iterable[float], *, smooth: bool = True) -> np.ndarray:
    """A plane (across, up) as a picture of so many pixels (across, up), its top row first."""
    across, up = (max(1, round(float(side))) for side in size)
    how = Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST
    flat = Image.fromarray(np.ascontiguousarray(plane.T[::-1]))
    return np.minimum(np.asarray(flat.resize((across, up), how)), WHITE)


def _contoured(picture: np.ndarray, mask: np.ndarray, size: Iterable[float]) -> np.ndarray:
    """A picture with the outline of a plane of a mask that is made as large."""
    made = picture.copy()
    made[_edge(_sized(mask.astype(np.uint8), size, smooth=False))] = INK
    return made


def _edge(mask: np.ndarray) -> np.ndarray:
    """The outermost pixels of a mask."""
    own = np.zeros(np.add(mask.shape, 2), bool)
    own[1:-1, 1:-1] = mask > 0
    inner = own[1:-1, 1:-1] & own[:-2, 1:-1] & own[2:, 1:-1] & own[1:-1, :-2] & own[1:-1, 2:]
    return own[1:-1, 1:-1] & ~inner


def _save(path: Path, picture: np.ndarray) -> None:
    """Write a picture of greys and `INK`."""
    made = Image.fromarray(picture).convert("L")
    made.putpalette(PALETTE)
    with replacing(path) as beside:
        made.save(beside, format="PNG", compress_level=4)
