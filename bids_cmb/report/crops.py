"""Crops of followed lesions: the same place and window at every visit, side by side."""

from pathlib import Path

import numpy as np
from scipy import ndimage

from bids_cmb.files import write_json
from bids_cmb.imaging.volume import Volume, map_points
from bids_cmb.lesions.table import get_position
from bids_cmb.longitudinal.evidence import LOST, NEW, NOT_COMPARABLE, PERSISTENT, UNCERTAIN
from bids_cmb.longitudinal.follow_up import FollowedLesion, FollowUp
from bids_cmb.report.pictures import WHITE, annotate, save_picture

ORDER = (NEW, UNCERTAIN, LOST, NOT_COMPARABLE, PERSISTENT)  # of lesions on the page
REACH_MM, PX_PER_MM = 11.0, 8  # of a crop to either side of the lesion; its enlargement
CROP_PX = round(2 * REACH_MM * PX_PER_MM)
BAR_MM = 5
WHITE_MEDIANS = 1.8  # medians of the brain that are shown white
MAX_DRAWN = 60  # lesions; the table has all
CROPS = "_crops.json"  # ending of the index of pictures


def draw_crops(follow_up: FollowUp, figures: Path, stem: str) -> None:
    """Draw a picture for each followed lesion, and an index of them.

    A picture shows the slice plane of the visit at which the lesion was found first, at all visits,
    each divided by the median of its brain.

    Args:
        follow_up: Its lesions.
        figures: Folder of the participant's pictures.
        stem: What the names of the files begin with.
    """
    remove_crops(figures, stem)
    medians = {
        number: float(np.median(images.image.data[images.brain.data])) or 1.0
        for number, images in follow_up.images.items()
    }
    numbered = list(enumerate(follow_up.lesions, start=1))
    numbered.sort(key=lambda item: (ORDER.index(item[1].course), item[0]))
    files = {}
    for index, lesion in numbered[:MAX_DRAWN]:
        tiles = [_draw_tile(follow_up, lesion, number, medians) for number in follow_up.aligned]
        files[str(index)] = f"{stem}_lesion-{index:03d}.webp"
        save_picture(figures / files[str(index)], np.concatenate(tiles, axis=1))
    visits = [follow_up.series.visits[number].name for number in follow_up.aligned]
    write_json(figures / f"{stem}{CROPS}", {"visits": visits, "files": files})


def remove_crops(figures: Path, stem: str) -> None:
    """Remove the pictures of a follow-up, the index first."""
    (figures / f"{stem}{CROPS}").unlink(missing_ok=True)
    for path in figures.glob(f"{stem}_lesion-*.webp"):
        path.unlink(missing_ok=True)


def _draw_tile(
    follow_up: FollowUp, lesion: FollowedLesion, number: int, medians: dict[int, float]
) -> np.ndarray:
    seen = lesion.first_seen
    points, directions = _define_plane(follow_up.images[seen].image, _get_centre(follow_up, lesion))
    image = follow_up.images[number].image
    moved = map_points(follow_up.transform(seen, number), points.reshape(-1, 3))
    values = ndimage.map_coordinates(image.data, image.index(moved).T, order=1, cval=0.0)
    grey = np.clip(values * (WHITE / (WHITE_MEDIANS * medians[number])), 0, WHITE)
    picture = grey.astype(np.uint8).reshape(points.shape[:2])
    title = follow_up.series.visits[number].name
    return annotate(picture, title, directions, (BAR_MM * PX_PER_MM, f"{BAR_MM} mm"))


def _get_centre(follow_up: FollowUp, lesion: FollowedLesion) -> np.ndarray:
    """Get where a lesion lies in the scan that it was found in first, world mm, (3,)."""
    visit = follow_up.series.visits[lesion.first_seen]
    return np.array(get_position(visit.find_lesion(lesion.identity.indices[lesion.first_seen])))


def _define_plane(
    image: Volume, centre: np.ndarray
) -> tuple[np.ndarray, tuple[str, str, str]]:  # fmt: skip
    """Define the points of a crop in a scan's slice plane, and the sides that it shows.

    Returns:
        World mm, (`CROP_PX`, `CROP_PX`, 3), top row first, the participant's right on the left
        where the plane has a left and right; and the letters at its left, right and top.
    """
    unit = image.affine[:3, :3] / image.spacing
    axes = [axis for axis in range(3) if axis != image.slice_axis]
    letters = [image.directions[axis] for axis in axes]
    if letters[0][0] not in "LR" and letters[1][0] in "LR":
        axes, letters = axes[::-1], letters[::-1]
    across = _point(unit[:, axes[0]], letters[0], "L" if letters[0][0] in "LR" else "P")
    up = _point(unit[:, axes[1]], letters[1], "A" if letters[1][0] in "AP" else "S")
    steps = (np.arange(CROP_PX) + 0.5) / PX_PER_MM - REACH_MM
    points = centre + steps[::-1, None, None] * up[0] + steps[None, :, None] * across[0]
    return points, (across[1], across[2], up[2])


def _point(
    direction: np.ndarray, ends: tuple[str, str], towards: str
) -> tuple[np.ndarray, str, str]:  # fmt: skip
    """Point an axis towards a side; return its direction and the letters of its start and end."""
    start, end = ends
    return (direction, start, end) if end == towards else (-direction, end, start)
