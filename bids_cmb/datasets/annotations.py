"""Convert masks or points that readers marked in a scan to labels and a table of lesions."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy import ndimage

from bids_cmb.anatomy.brain_extraction import segment_brain
from bids_cmb.bids.tables import read_columns
from bids_cmb.datasets.base import Point
from bids_cmb.imaging.nifti import load_labels
from bids_cmb.imaging.volume import Volume
from bids_cmb.lesions.label_maps import MAX_COVERED
from bids_cmb.lesions.measure import CONNECTIVITY_26, MAX_DIAMETER_MM
from bids_cmb.lesions.region_growing import GrownRegion, find_nearest_voxel, grow_from_point
from bids_cmb.simulation.reference import measure_labels

MAX_CORNER_DISTANCE_VOXELS = 0.5  # how far the grids of scan and mask may lie apart
TRUTH_COLUMNS = {
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
    """Label the lesions of a mask (26-connected); return the labels and facts on each lesion.

    Raises:
        ValueError: If it is no mask of microbleeds, or not on the grid of the scan.
        OSError: If it cannot be read.
    """
    mask = load_labels(path)
    _check_grid(path, mask, image)
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


def _check_grid(path: Path, mask: Volume, image: Volume) -> None:
    size = " × ".join(map(str, mask.shape))
    if mask.shape != image.shape:
        wanted = " × ".join(map(str, image.shape))
        raise ValueError(
            f"{path}: a mask must lie on the grid of its scan, {wanted} voxels; found {size}."
        )
    apart = mask.max_corner_distance(image)
    if apart > MAX_CORNER_DISTANCE_VOXELS * image.spacing.min():
        raise ValueError(
            f"{path}: a mask must lie on the grid of its scan; their corners are {apart:.1f} mm "
            "apart."
        )


def labels_from_points(
    points: Sequence[Point], world: np.ndarray, image: Volume, *, merged: bool
) -> tuple[Volume, list[dict]]:
    """Grow points to lesions; return the labels and facts on each lesion.

    A voxel that two lesions grew to goes to the nearer point.

    Args:
        points: As marked.
        world: Their positions, mm, (N, 3).
        image: The scan.
        merged: Whether points in one dark spot are one lesion; those in one voxel always are.

    Raises:
        ValueError: If a point lies outside the image.
    """
    grown = [_grow(image, index, point) for index, point in zip(world, points, strict=True)]
    groups = _group_points(image, world, grown, merged=merged)
    labels = np.zeros(image.shape, np.uint16)
    nearest = np.full(image.shape, np.inf, np.float32)
    facts = []
    for number, members in enumerate(groups, start=1):
        for index in members:
            box, inside = grown[index].box, grown[index].inside
            distances = _measure_distances(image, box, world[index])
            mine = inside & (distances < nearest[box])
            labels[box][mine], nearest[box][mine] = number, distances[mine]
        sources = [points[index] for index in members], [grown[index] for index in members]
        facts.append(_describe_lesion(*sources, world[members].mean(axis=0)))
    _keep_largest_pieces(
        labels, [find_nearest_voxel(image, world[members[0]]) for members in groups]
    )
    return Volume(labels, image.affine), facts


def _keep_largest_pieces(labels: np.ndarray, voxels: Sequence[tuple[int, int, int]]) -> None:
    """Keep the largest piece of every lesion; one lost to others gets the voxel of its point."""
    for _ in voxels:  # again, since that may have been the last voxel of another lesion
        lost = set(range(1, len(voxels) + 1)) - set(np.unique(labels).tolist())
        for number in lost:
            labels[voxels[number - 1]] = number
    for number, box in enumerate(ndimage.find_objects(labels), start=1):
        pieces, count = ndimage.label(labels[box] == number, structure=CONNECTIVITY_26)
        if count > 1:
            largest = 1 + np.bincount(pieces.ravel())[1:].argmax()
            labels[box][(pieces > 0) & (pieces != largest)] = 0


def _grow(image: Volume, position: np.ndarray, point: Point) -> GrownRegion:
    try:
        if point.diameter_mm is None:
            return grow_from_point(image, position)
        diameter = min(point.diameter_mm, MAX_DIAMETER_MM)
        return grow_from_point(image, position, max_diameter_mm=diameter, ball_mm=diameter)
    except ValueError as error:
        raise ValueError(f"{point.origin}: {error}") from None


def _group_points(
    image: Volume, world: np.ndarray, grown: Sequence[GrownRegion], *, merged: bool
) -> list[list[int]]:
    """Group points of one lesion: in one voxel, and if ``merged`` in one dark spot."""
    groups: list[tuple[list[int], set]] = []
    for index, position in enumerate(world):
        voxels = {find_nearest_voxel(image, position)}
        if merged:
            first = [side.start for side in grown[index].box]
            voxels |= set(map(tuple, (np.argwhere(grown[index].inside) + first).tolist()))
        touching = [group for group in groups if group[1] & voxels]
        groups = [group for group in groups if not group[1] & voxels]
        members = sorted([index, *(member for group in touching for member in group[0])])
        groups.append((members, voxels.union(*(group[1] for group in touching))))
    return sorted(members for members, _ in groups)


def _measure_distances(image: Volume, box: tuple[slice, ...], position: np.ndarray) -> np.ndarray:
    """Measure the distance of each voxel of a box to a position, mm."""
    index = np.stack(np.mgrid[box], axis=-1)
    offsets = image.world(index.reshape(-1, 3)) - position
    return np.linalg.norm(offsets, axis=1).reshape(index.shape[:3]).astype(np.float32)


def _describe_lesion(
    points: Sequence[Point], grown: Sequence[GrownRegion], middle: np.ndarray
) -> dict:
    sure = any(point.certainty == "definite" for point in points)
    levels = [region.level for region in grown if region.level is not None]
    return {
        "certainty": "definite" if sure else "possible",
        "made_by": f"growth to {max(levels):g}" if levels else "ball",
        "marks": len(points),
        **{f"marked_{axis}_mm": round(float(v), 2) for axis, v in zip("xyz", middle, strict=True)},
    }


def list_truth_columns() -> dict[str, dict]:
    """List the columns of lesions, and those that only an imported truth has."""
    return {**read_columns("lesion"), **TRUTH_COLUMNS}


def make_lesion_table(labels: Volume, image: Volume, facts: Sequence[dict]) -> list[dict]:
    """Make a row for each label, measured as the app measures lesions."""
    if not facts:
        return []
    try:
        brain, known = segment_brain(image), True
    except ValueError:
        brain, known = Volume(np.ones(image.shape, bool), image.affine), False
    rows = measure_labels(labels, image, brain)
    empty = dict.fromkeys(list_truth_columns())
    table = []
    for index, fact in enumerate(facts, start=1):
        row = {**empty, **rows[index], **fact}
        row["included"] = "yes" if fact["certainty"] == "definite" else "no"
        row["name"] = f"CMB{index:03d}"
        if not known:
            row["distance_to_brain_surface_mm"] = row["flags"] = None
        table.append(row)
    return table
