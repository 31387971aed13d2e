"""Geometry of a head: distances from its surfaces, its axes, and paths along both.

Lengths are mm, positions world mm (RAS+).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import ndimage

from bids_cmb.imaging.resampling import resample
from bids_cmb.imaging.volume import Volume
from bids_cmb.simulation.tissue_properties import CHOROID, CSF, VENTRICLES, is_brain

MIN_CSF_FRACTION = 0.05  # of the brain; FreeSurfer itself has less: it knows fluid in clefts only
GRID_MM = 1.5  # mm, of the distance maps; places are checked against the labels themselves
MARGIN_MM = 12.0  # mm of background kept around the head's inside
LEVEL_CORRECTION = 0.7  # share of the distance from its level that a walker corrects at a step
BILATERAL_STRUCTURES = {  # FreeSurfer's, left and right
    "white": ((2,), (41,)),
    "cortex": ((3,), (42,)),
    "ventricle": ((4, 5), (43, 44)),
    "cerebellum": ((7, 8), (46, 47)),
    "thalamus": ((10,), (49,)),
    "caudate": ((11,), (50,)),
    "putamen": ((12,), (51,)),
    "pallidum": ((13,), (52,)),
}
BRAINSTEM = 16
SINUS_CODE = 514  # some maps have the large veins of the dura
VENTRICULAR = (*VENTRICLES, *CHOROID)
TILT_RAD = np.radians(6)  # of the line from thalamus to caudate, nose up in MNI space
LESION_REGIONS = {  # of microbleeds: the codes they lie in, and their territory
    "cortex / grey-white junction": ((2, 3, 41, 42), "lobar"),
    "subcortical white matter": ((2, 41), "lobar"),
    "basal ganglia": ((11, 12, 13, 26, 50, 51, 52, 58), "deep"),
    "thalamus": ((10, 49), "deep"),
    "cerebellum": ((7, 8, 46, 47), "infratentorial"),
    "brainstem": ((BRAINSTEM,), "infratentorial"),
    "pallidum": ((13, 52), "deep"),  # so that priors can prefer it
    "hippocampus / amygdala": ((17, 18, 53, 54), "lobar"),
}


@dataclass(frozen=True, eq=False)
class HeadGeometry:
    """Hold the distances and axes by which vessels and lesions of a head are placed.

    Distances are in mm, on a grid of 1.5 mm.

    Attributes:
        labels: FreeSurfer codes as they came, int, at their own resolution.
        codes: The same on the grid of the distances.
        pial_depth: Depth below the surface of brain tissue; negative in the surrounding fluid.
        ventricle_distance: Distance from the ventricles; negative within.
        shell_depth: Depth below the outer surface of the fluid around the brain.
        tentorium_distance: Distance from the cerebellum minus that from the cerebrum.
        junction: True in cortex and in the white matter next to it.
        coordinates: Position of each voxel along the head's axes, mm from the origin, (X, Y, Z, 3).
        origin: Between the thalami, world mm, (3,).
        axes: Directions to the head's right, front and top, the rows of (3, 3).
    """

    labels: Volume
    codes: Volume
    pial_depth: Volume
    ventricle_distance: Volume
    shell_depth: Volume
    tentorium_distance: Volume
    junction: Volume
    coordinates: np.ndarray
    origin: np.ndarray
    axes: np.ndarray

    def to_world(self, right: float, front: float, top: float) -> np.ndarray:
        """Convert a position along the head's axes, mm from its origin, to world mm."""
        return self.origin + np.array([right, front, top]) @ self.axes

    def to_head(self, points: np.ndarray) -> np.ndarray:
        """Convert world positions (N, 3) to mm right, front and top of the origin, (N, 3)."""
        return (points - self.origin) @ self.axes.T

    def distance_to(self, place: Sequence[float], mask: np.ndarray) -> np.ndarray:
        """Measure distances in mm of a mask's voxels from a position along the axes.

        Returns:
            float32 (X, Y, Z); infinite outside the mask.
        """
        away = np.linalg.norm(self.coordinates - np.array(place, np.float32), axis=-1)
        away[~mask] = np.inf
        return away

    @cached_property
    def csf_mask(self) -> np.ndarray:
        """Fluid around the brain without that of the spinal canal, bool (X, Y, Z)."""
        floor = (
            self.coordinates[np.isin(self.codes.data, bilateral_codes("cerebellum")), 2].min() - 5
        )
        fluid = (self.codes.data == CSF) & (self.pial_depth.data > -12)
        return fluid & (self.coordinates[..., 2] > floor)

    @cached_property
    def regions(self) -> dict[str, np.ndarray]:
        """Mask of each of `LESION_REGIONS`, bool (X, Y, Z), without voxels that touch fluid."""
        deep = (self.pial_depth.data > GRID_MM / 2) & (self.ventricle_distance.data > GRID_MM / 2)
        masks = {
            name: np.isin(self.codes.data, codes) & deep
            for name, (codes, _) in LESION_REGIONS.items()
        }
        masks["cortex / grey-white junction"] &= self.junction.data
        masks["subcortical white matter"] &= ~self.junction.data
        return masks


# --- Measuring a head -----------------------------------------------------------------------------


def measure_geometry(labels: Volume) -> HeadGeometry:
    """Measure the distances along which vessels run and lesions are placed.

    Args:
        labels: FreeSurfer codes; 24 is all fluid around the brain, 500 and more lie outside it.

    Raises:
        ValueError: If a structure that positions refer to, or most of the fluid, is missing.
    """
    data = np.rint(labels.data).astype(np.int16)
    labels = Volume(data, labels.affine)
    _check_labels(data)
    codes = _downsample(labels)
    fluid = codes.data == CSF
    ventricle = np.isin(codes.data, VENTRICULAR)
    tissue = is_tissue(codes.data)
    origin, axes = _find_head_axes(codes)
    cerebrum = np.isin(codes.data, bilateral_codes("white", "cortex"))
    cerebellum = np.isin(codes.data, bilateral_codes("cerebellum"))
    cortex = np.isin(codes.data, bilateral_codes("cortex"))
    maps = {
        "pial_depth": _signed_distance(tissue | ventricle),
        "ventricle_distance": -_signed_distance(ventricle),
        "shell_depth": _signed_distance(
            _fill(tissue | ventricle | fluid | (codes.data == SINUS_CODE))
        ),
        "tentorium_distance": _signed_distance(cerebrum) - _signed_distance(cerebellum),
        "junction": ndimage.binary_dilation(cortex, np.ones((3, 3, 3)))
        & (cortex | np.isin(codes.data, (2, 41))),
    }
    grids = {name: Volume(data, codes.affine) for name, data in maps.items()}
    head = _head_coordinates(codes, origin, axes)
    return HeadGeometry(labels, codes, **grids, coordinates=head, origin=origin, axes=axes)


def _head_coordinates(codes: Volume, origin: np.ndarray, axes: np.ndarray) -> np.ndarray:
    start = (codes.affine[:3, 3] - origin) @ axes.T
    index = np.meshgrid(*map(np.arange, codes.shape), indexing="ij", sparse=True)
    steps = zip(index, (axes @ codes.affine[:3, :3]).T.astype(np.float32), strict=True)
    return start.astype(np.float32) + sum(ticks[..., None] * step for ticks, step in steps)


def _check_labels(data: np.ndarray) -> None:
    present = set(np.unique(data).tolist())
    missing = [
        f"{side} {name}"
        for name, sides in BILATERAL_STRUCTURES.items()
        for side, codes in zip(("left", "right"), sides, strict=True)
        if present.isdisjoint(codes)
    ]
    if BRAINSTEM not in present:
        missing.append("brainstem")
    if missing:
        raise ValueError(
            "A label map needs both halves of cerebrum and cerebellum, their nuclei and "
            f"ventricles, and the brainstem; missing: {', '.join(missing)}."
        )
    share = np.count_nonzero(data == CSF) / np.count_nonzero(is_tissue(data))
    if share < MIN_CSF_FRACTION:
        raise ValueError(
            f"A label map needs all the fluid around the brain (code {CSF}), at least "
            f"{100 * MIN_CSF_FRACTION:g} % of the brain's volume; found {100 * share:.1f} %."
        )


def is_tissue(codes: np.ndarray) -> np.ndarray:
    """Select codes of the brain without its ventricles; bool."""
    return is_brain(codes) & ~np.isin(codes, VENTRICULAR)


def bilateral_codes(*names: str) -> list[int]:
    """List the left and right codes of structures in `BILATERAL_STRUCTURES`."""
    return [code for name in names for side in BILATERAL_STRUCTURES[name] for code in side]


def _downsample(labels: Volume) -> Volume:
    """Downsample the inside of the head and its margin to a grid of 1.5 mm along the same axes."""
    [*box] = ndimage.find_objects(is_brain(labels.data).astype(np.uint8))[0]
    margin = np.ceil(MARGIN_MM / labels.spacing).astype(int)
    first = np.array([side.start for side in box]) - margin
    last = np.array([side.stop for side in box]) + margin
    step = GRID_MM / labels.spacing
    affine = labels.affine @ np.diag([*step, 1])
    affine[:3, 3] = labels.world(first)
    return resample(labels, affine, tuple(np.ceil((last - first) / step).astype(int)), order=0)


def _signed_distance(mask: np.ndarray) -> np.ndarray:
    """Compute the distance in mm from the border of a mask, positive within, float32."""
    within, without = (ndimage.distance_transform_edt(side) for side in (mask, ~mask))
    # Borders lie half a voxel from the centres on either side of them.
    away = np.where(mask, within - 0.5, 0.5 - without) * GRID_MM
    return ndimage.gaussian_filter(away.astype(np.float32), 0.5)


def _fill(inside: np.ndarray) -> np.ndarray:
    """Fill the largest component of a mask: its holes and the clefts between gyri."""
    pieces, _ = ndimage.label(inside)
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    whole = ndimage.binary_closing(pieces == sizes.argmax(), iterations=2)
    return ndimage.binary_fill_holes(whole)


def _find_head_axes(codes: Volume) -> tuple[np.ndarray, np.ndarray]:
    """Find the point between the thalami, and the right, front and top directions of the head."""
    middle = {
        name: [_find_centroid(codes, side) for side in BILATERAL_STRUCTURES[name]]
        for name in ("white", "thalamus", "caudate", "putamen", "cerebellum")
    }
    right = normalize(np.sum([normalize(right - left) for left, right in middle.values()], axis=0))
    origin, caudate = (np.mean(middle[name], axis=0) for name in ("thalamus", "caudate"))
    front = caudate - origin
    rising = normalize(front - (front @ right) * right)
    top = np.cross(right, rising)
    front, top = (
        np.cos(TILT_RAD) * rising - np.sin(TILT_RAD) * top,
        np.sin(TILT_RAD) * rising + np.cos(TILT_RAD) * top,
    )
    return origin, np.array([right, front, top])


def _find_centroid(codes: Volume, wanted: Iterable[int]) -> np.ndarray:
    return codes.world(np.argwhere(np.isin(codes.data, list(wanted))).mean(axis=0))


def normalize(vectors: np.ndarray) -> np.ndarray:
    """Scale the vectors in the last axis to length 1."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-9)


# --- Places and ways ------------------------------------------------------------------------------


def interpolate_at(field: Volume, points: np.ndarray) -> np.ndarray:
    """Interpolate a distance map at world positions, (N, 3) to (N,); its edge value beyond it."""
    index = field.index(points).T
    return ndimage.map_coordinates(field.data, index, order=1, mode="nearest")


def gradient_direction_at(field: Volume, points: np.ndarray) -> np.ndarray:
    """Find the direction in which a distance map rises, unit vectors, (N, 3)."""
    aside = np.concatenate([np.eye(3), -np.eye(3)]) * GRID_MM
    values = interpolate_at(field, (points[:, None] + aside).reshape(-1, 3)).reshape(-1, 2, 3)
    return normalize(values[:, 0] - values[:, 1])


def interpolate_along(field: Volume, paths: np.ndarray) -> np.ndarray:
    """Interpolate a distance map along paths, (N, M, 3) to (N, M)."""
    return interpolate_at(field, paths.reshape(-1, 3)).reshape(paths.shape[:2])


def project_to_level(
    field: Volume, points: np.ndarray, level: float | np.ndarray, rounds: int = 4
) -> np.ndarray:
    """Move points along the gradient of a distance map to where it equals ``level``.

    Args:
        field: Distance map in mm.
        points: World mm, (N, 3).
        level: mm, one or (N,).
        rounds: Newton steps.

    Returns:
        World mm, (N, 3).
    """
    for _ in range(rounds):
        away = np.clip(interpolate_at(field, points) - level, -4, 4)
        points = points - LEVEL_CORRECTION * away[:, None] * gradient_direction_at(field, points)
    return points


def sample_voxels(
    rng: np.random.Generator, geometry: HeadGeometry, mask: np.ndarray, count: int
) -> np.ndarray:
    """Sample positions uniformly within voxels of a mask on the coarse grid.

    Returns:
        World mm, (count, 3); (0, 3) if the mask is empty.
    """
    candidates = np.flatnonzero(mask)
    if not candidates.size:
        return np.empty((0, 3))
    chosen = np.column_stack(np.unravel_index(rng.choice(candidates, count), mask.shape))
    return geometry.codes.world(chosen + rng.uniform(-0.5, 0.5, chosen.shape))


def random_walk_on_surface(
    rng: np.random.Generator,
    field: Volume | None,
    starts: np.ndarray,
    directions: np.ndarray,
    *,
    level: np.ndarray | float = 0.0,
    steps: int,
    wobble: float,
    targets: np.ndarray | None = None,
) -> np.ndarray:
    """Walk randomly on a level surface of a distance map, (N, 3) to (N, steps + 1, 3).

    Args:
        rng: Source of chance.
        field: Distance map whose level surface is kept to; None walks freely.
        starts: World mm, (N, 3).
        directions: Initial directions, (N, 3).
        level: Distance to keep, in mm, one or (N,).
        steps: Their number, of 1.5 mm each.
        wobble: Turn at each step, 0 straight on, 1 anywhere.
        targets: Positions that attract the walkers, (N, 3).

    Returns:
        Smoothed paths, world mm.
    """
    points, path = starts, [starts]
    for _ in range(steps):
        directions = directions + wobble * rng.standard_normal(directions.shape)
        if targets is not None:
            directions = directions + 0.35 * normalize(targets - points)
        if field is not None:
            slope = gradient_direction_at(field, points)
            directions = directions - (directions * slope).sum(axis=1, keepdims=True) * slope
            away = np.clip(interpolate_at(field, points) - level, -GRID_MM, GRID_MM)
            points = points - LEVEL_CORRECTION * away[:, None] * slope
        directions = normalize(directions)
        points = points + GRID_MM * directions
        path.append(points)
    return ndimage.gaussian_filter1d(np.stack(path, axis=1), 1.0, axis=1, mode="nearest")
