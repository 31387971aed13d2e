"""What readers marked in a scan, masks or points, as labels and a table of lesions."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy import ndimage

from bids_cmb.anatomy.brain_extraction import segment_brain
from bids_cmb.bids.tables import read_columns
from bids_cmb.datasets.base import Point
from bids_cmb.imaging.volume import Volume, load_labels
from bids_cmb.lesions.label_maps import MAX_COVERED
from bids_cmb.lesions.measure import CONNECTIVITY_26, MAX_DIAMETER_MM
from bids_cmb.lesions.region_growing import GrownRegion, find_nearest_voxel, grow_from_point
from bids_cmb.simulation.reference import measure_labels

CORNER_VOXELS = 0.5  # how far the grids of scan and mask may lie apart
MADE = {
    "certainty": {
        "Description": "How sure the source's readers were.",
        "Levels": {
            "definite": "As marked; in a mask of several raters, seen by all.",
            "possible": "Marked as possible, or seen by some of the raters only: neither finding "
            "nor missing it is an error.",
        },
    },
    "included": {
        "Description": "Whether it has to be found.",
        "Levels": {"yes": "Definite.", "no": "Possible."},
    },
    "agreement": {"Description": "Share of raters who saw it, from the mask.", "Format": "number"},
    "made_by": {
        "Description": "How its voxels came about: the source's mask; growth from its point, to "
        "this part of the way from the darkest voxel to the surround; or a ball around the point."
    },
    "marks": {"Description": "Points of the source that are this lesion.", "Format": "integer"},
    **{
        f"marked_{axis}_mm": {
            "Description": f"Where the source marked it, scanner space, {axis} (RAS+); the mean "
            "of several marks.",
            "Units": "mm",
            "Format": "number",
        }
        for axis in "xyz"
    },
}


def labels_from_mask(path: Path, image: Volume) -> tuple[Volume, list[dict]]:
    """Lesions of a mask, what touches (26 neighbours) is one; and what is known of each.

    Raises:
        ValueError: If it is no mask of microbleeds, or not on the grid of the scan.
        OSError: If it cannot be read.
    """
    mask = load_labels(path)
    _refuse_grid(path, mask, image)
    low, high = float(mask.data.min()), float(mask.data.max())
    covered = float((mask.data > 0).mean())
    if low < 0 or high > 1 or covered > MAX_COVERED:
        raise ValueError(
            f"{path}: a mask of microbleeds has values from 0 to 1 and covers at most "
            f"{100 * MAX_COVERED:g} % of an image; found {low:g} to {high:g} and "
            f"{100 * covered:.0f} %."
        )
    labels, count = ndimage.label(mask.data > 0, structure=CONNECTIVITY_26)
    agreed = ndimage.maximum(mask.data, labels, np.arange(1, count + 1)) if count else []
    facts = [
        {
            "certainty": "definite" if share > 0.999 else "possible",
            "agreement": round(float(share), 3),
            "made_by": "mask",
        }
        for share in agreed
    ]
    return Volume(labels.astype(np.uint16), image.affine), facts


def _refuse_grid(path: Path, mask: Volume, image: Volume) -> None:
    size = " × ".join(map(str, mask.shape))
    if mask.shape != image.shape:
        wanted = " × ".join(map(str, image.shape))
        raise ValueError(
            f"{path}: a mask must lie on the grid of its scan, {wanted} voxels; found {size}."
        )
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in mask.shape])).reshape(3, -1).T
    apart = np.linalg.norm(mask.world(corners) - image.world(corners), axis=1).max()
    if apart > CORNER_VOXELS * image.spacing.min():
        raise ValueError(
            f"{path}: a mask must lie on the grid of its scan; their corners are {apart:.1f} mm "
            "apart."
        )


def labels_from_points(
    points: Sequence[Point], world: np.ndarray, image: Volume, *, merged: bool
) -> tuple[Volume, list[dict]]:
    """Points grown to lesions; and what is known of each.

    A voxel that two lesions grew to goes to the nearer point.

    Args:
        points: As marked.
        world: Where they lie, mm, (N, 3).
        image: The scan.
        merged: Whether points in one dark spot are one lesion; those in one voxel always are.

    Raises:
        ValueError: If a point lies outside the image.
    """
    grown = [_grown(image, at, point) for at, point in zip(world, points, strict=True)]
    groups = _groups(image, world, grown, merged=merged)
    labels = np.zeros(image.shape, np.uint16)
    nearest = np.full(image.shape, np.inf, np.float32)
    facts = []
    for number, members in enumerate(groups, start=1):
        for at in members:
            box, inside = grown[at].box, grown[at].inside
            away = _away(image, box, world[at])
            mine = inside & (away < nearest[box])
            labels[box][mine], nearest[box][mine] = number, away[mine]
        own = [points[at] for at in members], [grown[at] for at in members]
        facts.append(_facts(*own, world[members].mean(axis=0)))
    _settle(labels, [find_nearest_voxel(image, world[members[0]]) for members in groups])
    return Volume(labels, image.affine), facts


def _settle(labels: np.ndarray, own: Sequence[tuple[int, int, int]]) -> None:
    """Leave every lesion one piece, its largest; what was lost to others gets its own voxel."""
    for _ in own:  # which may have been the last of another lesion's
        lost = set(range(1, len(own) + 1)) - set(np.unique(labels).tolist())
        for number in lost:
            labels[own[number - 1]] = number
    for number, box in enumerate(ndimage.find_objects(labels), start=1):
        pieces, count = ndimage.label(labels[box] == number, structure=CONNECTIVITY_26)
        if count > 1:
            largest = 1 + np.bincount(pieces.ravel())[1:].argmax()
            labels[box][(pieces > 0) & (pieces != largest)] = 0


def _grown(image: Volume, at: np.ndarray, point: Point) -> GrownRegion:
    try:
        if point.diameter_mm is None:
            return grow_from_point(image, at)
        known = min(point.diameter_mm, MAX_DIAMETER_MM)
        return grow_from_point(image, at, max_diameter_mm=known, ball_mm=known)
    except ValueError as error:
        raise ValueError(f"{point.where}: {error}") from None


def _groups(
    image: Volume, world: np.ndarray, grown: Sequence[GrownRegion], *, merged: bool
) -> list[list[int]]:
    """Points that mark one lesion: those in one voxel, and if ``merged`` those in one dark spot."""
    groups: list[tuple[list[int], set]] = []
    for at, place in enumerate(world):
        own = {find_nearest_voxel(image, place)}
        if merged:
            first = [side.start for side in grown[at].box]
            own |= set(map(tuple, (np.argwhere(grown[at].inside) + first).tolist()))
        joined = [group for group in groups if group[1] & own]
        groups = [group for group in groups if not group[1] & own]
        members = sorted([at, *(one for group in joined for one in group[0])])
        groups.append((members, own.union(*(group[1] for group in joined))))
    return sorted(members for members, _ in groups)


def _away(image: Volume, box: tuple[slice, ...], place: np.ndarray) -> np.ndarray:
    index = np.stack(np.mgrid[box], axis=-1)
    apart = image.world(index.reshape(-1, 3)) - place
    return np.linalg.norm(apart, axis=1).reshape(index.shape[:3]).astype(np.float32)


def _facts(points: Sequence[Point], grown: Sequence[GrownRegion], middle: np.ndarray) -> dict:
    sure = any(point.certainty == "definite" for point in points)
    levels = [one.level for one in grown if one.level is not None]
    return {
        "certainty": "definite" if sure else "possible",
        "made_by": f"growth to {max(levels):g}" if levels else "ball",
        "marks": len(points),
        **{f"marked_{axis}_mm": round(float(v), 2) for axis, v in zip("xyz", middle, strict=True)},
    }


def truth_columns() -> dict[str, dict]:
    """The app's columns of lesions, and what only an imported truth has."""
    return {**read_columns("lesion"), **MADE}


def lesion_table(labels: Volume, image: Volume, facts: Sequence[dict]) -> list[dict]:
    """A row for each label, measured as the app measures what it finds."""
    if not facts:
        return []
    try:
        brain, known = segment_brain(image), True
    except ValueError:
        brain, known = Volume(np.ones(image.shape, bool), image.affine), False
    rows = measure_labels(labels, image, brain)
    empty = dict.fromkeys(truth_columns())
    table = []
    for index, fact in enumerate(facts, start=1):
        row = {**empty, **rows[index], **fact}
        row["included"] = "yes" if fact["certainty"] == "definite" else "no"
        row["name"] = f"CMB{index:03d}"
        if not known:
            row["distance_to_brain_surface_mm"] = row["flags"] = None
        table.append(row)
    return table
