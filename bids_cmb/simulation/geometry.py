"""Where in a head things can lie: distances from its surfaces, axes, and ways along both.

Lengths are mm, positions world mm (RAS+).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import ndimage

from bids_cmb.imaging.volume import Volume, resample
from bids_cmb.simulation.tissue_properties import CHOROID, CSF, VENTRICLES, is_brain

LEAST_FLUID = 0.05  # of the brain; FreeSurfer itself has less: it knows fluid in clefts only
GRID = 1.5  # mm, of the distance maps; places are checked against the labels themselves
MARGIN = 12.0  # mm of background kept around the head's inside
FOLLOW = 0.7  # share of its distance from the wanted level that a walker makes good at each step
STRUCTURES = {  # FreeSurfer's, left and right
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
SINUS = 514  # some maps have the large veins of the dura
HOLLOW = (*VENTRICLES, *CHOROID)
TILT = np.radians(6)  # of the line from thalamus to caudate, nose up in MNI space
REGIONS = {  # of microbleeds: the codes they lie in, and their territory
    "cortex / grey-white junction": ((2, 3, 41, 42), "lobar"),
    "subcortical white matter": ((2, 41), "lobar"),
    "basal ganglia": ((11, 12, 13, 26, 50, 51, 52, 58), "deep"),
    "thalamus": ((10, 49), "deep"),
    "cerebellum": ((7, 8, 46, 47), "infratentorial"),
    "brainstem": ((BRAINSTEM,), "infratentorial"),
}


@dataclass(frozen=True, eq=False)
class Terrain:
    """What vessels and lesions of a head go by: distances in mm, on a grid of 1.5 mm, and axes.

    Attributes:
        labels: The head's codes as they came, int, at their own resolution.
        codes: The same on the grid of the distances.
        pia: Depth below the surface of brain tissue; below 0 in the fluid around it.
        wall: Distance from the ventricles; below 0 within.
        shell: Depth below the outer surface of the fluid that surrounds the brain.
        tentorium: Distance from the cerebellum less that from the cerebrum.
        junction: True in cortex and in the white matter next to it.
        head: Each voxel's place along the axes, mm from the origin, shape (X, Y, Z, 3).
        origin: Between the thalami, world mm, shape (3,).
        axes: To the head's right, front and top, the rows of shape (3, 3).
    """

    labels: Volume
    codes: Volume
    pia: Volume
    wall: Volume
    shell: Volume
    tentorium: Volume
    junction: Volume
    head: np.ndarray
    origin: np.ndarray
    axes: np.ndarray

    def world(self, right: float, front: float, top: float) -> np.ndarray:
        """World mm of a place given in mm along the head's axes from its origin."""
        return self.origin + np.array([right, front, top]) @ self.axes

    def along(self, points: np.ndarray) -> np.ndarray:
        """Right, front and top of world positions, in mm from the origin, shape (N, 3)."""
        return (points - self.origin) @ self.axes.T

    def away(self, place: Sequence[float], mask: np.ndarray) -> np.ndarray:
        """Distance in mm of a mask's voxels from a place along the axes; infinite elsewhere."""
        away = np.linalg.norm(self.head - np.array(place, np.float32), axis=-1)
        away[~mask] = np.inf
        return away

    @cached_property
    def around(self) -> np.ndarray:
        """Where fluid is around the brain, without that of the spinal canal; bool (X, Y, Z)."""
        floor = self.head[np.isin(self.codes.data, both_sides("cerebellum")), 2].min() - 5
        fluid = (self.codes.data == CSF) & (self.pia.data > -12)
        return fluid & (self.head[..., 2] > floor)

    @cached_property
    def regions(self) -> dict[str, np.ndarray]:
        """Where each of ``REGIONS`` is, bool (X, Y, Z); the voxels that touch fluid left out."""
        deep = (self.pia.data > GRID / 2) & (self.wall.data > GRID / 2)
        found = {
            name: np.isin(self.codes.data, codes) & deep for name, (codes, _) in REGIONS.items()
        }
        found["cortex / grey-white junction"] &= self.junction.data
        found["subcortical white matter"] &= ~self.junction.data
        return found


# --- Measuring a head -----------------------------------------------------------------------------


def find_terrain(labels: Volume) -> Terrain:
    """Measure the distances along which vessels run and lesions are placed.

    Args:
        labels: FreeSurfer codes; 24 is all fluid around the brain, 500 and more its surround.

    Raises:
        ValueError: If a structure that places are measured from is missing, or most of the fluid.
    """
    data = np.rint(labels.data).astype(np.int16)
    labels = Volume(data, labels.affine)
    _refuse_gaps(data)
    codes = _coarse(labels)
    fluid = codes.data == CSF
    ventricle = np.isin(codes.data, HOLLOW)
    tissue = is_tissue(codes.data)
    origin, axes = _frame(codes)
    cerebrum = np.isin(codes.data, both_sides("white", "cortex"))
    cerebellum = np.isin(codes.data, both_sides("cerebellum"))
    cortex = np.isin(codes.data, both_sides("cortex"))
    maps = {
        "pia": _signed(tissue | ventricle),
        "wall": -_signed(ventricle),
        "shell": _signed(_filled(tissue | ventricle | fluid | (codes.data == SINUS))),
        "tentorium": _signed(cerebrum) - _signed(cerebellum),
        "junction": ndimage.binary_dilation(cortex, np.ones((3, 3, 3)))
        & (cortex | np.isin(codes.data, (2, 41))),
    }
    grids = {name: Volume(data, codes.affine) for name, data in maps.items()}
    head = _along_axes(codes, origin, axes)
    return Terrain(labels, codes, **grids, head=head, origin=origin, axes=axes)


def _along_axes(codes: Volume, origin: np.ndarray, axes: np.ndarray) -> np.ndarray:
    start = (codes.affine[:3, 3] - origin) @ axes.T
    index = np.meshgrid(*map(np.arange, codes.shape), indexing="ij", sparse=True)
    steps = zip(index, (axes @ codes.affine[:3, :3]).T.astype(np.float32), strict=True)
    return start.astype(np.float32) + sum(at[..., None] * step for at, step in steps)


def _refuse_gaps(data: np.ndarray) -> None:
    present = set(np.unique(data).tolist())
    missing = [
        f"{side} {name}"
        for name, sides in STRUCTURES.items()
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
    if share < LEAST_FLUID:
        raise ValueError(
            f"A label map needs all the fluid around the brain (code {CSF}), at least "
            f"{100 * LEAST_FLUID:g} % of the brain's volume; found {100 * share:.1f} %."
        )


def is_tissue(codes: np.ndarray) -> np.ndarray:
    """Where codes are those of the brain without its ventricles; bool."""
    return is_brain(codes) & ~np.isin(codes, HOLLOW)


def both_sides(*names: str) -> list[int]:
    """The codes of ``STRUCTURES``, left and right."""
    return [code for name in names for side in STRUCTURES[name] for code in side]


def _coarse(labels: Volume) -> Volume:
    """The inside of the head and a little around it, on a grid of 1.5 mm along the same axes."""
    [*box] = ndimage.find_objects(is_brain(labels.data).astype(np.uint8))[0]
    margin = np.ceil(MARGIN / labels.spacing).astype(int)
    first = np.array([side.start for side in box]) - margin
    last = np.array([side.stop for side in box]) + margin
    step = GRID / labels.spacing
    affine = labels.affine @ np.diag([*step, 1])
    affine[:3, 3] = labels.world(first)
    return resample(labels, affine, tuple(np.ceil((last - first) / step).astype(int)), order=0)


def _signed(mask: np.ndarray) -> np.ndarray:
    """Distance in mm from the border of a mask, above 0 within, float32."""
    within, without = (ndimage.distance_transform_edt(side) for side in (mask, ~mask))
    # Borders lie half a voxel from the centres on either side of them.
    away = np.where(mask, within - 0.5, 0.5 - without) * GRID
    return ndimage.gaussian_filter(away.astype(np.float32), 0.5)


def _filled(inside: np.ndarray) -> np.ndarray:
    """The largest piece of a mask, its holes and the clefts between gyri closed."""
    pieces, _ = ndimage.label(inside)
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    whole = ndimage.binary_closing(pieces == sizes.argmax(), iterations=2)
    return ndimage.binary_fill_holes(whole)


def _frame(codes: Volume) -> tuple[np.ndarray, np.ndarray]:
    """The point between the thalami, and the directions right, front and top of the head."""
    middle = {
        name: [_centre(codes, side) for side in STRUCTURES[name]]
        for name in ("white", "thalamus", "caudate", "putamen", "cerebellum")
    }
    right = unit(np.sum([unit(right - left) for left, right in middle.values()], axis=0))
    origin, caudate = (np.mean(middle[name], axis=0) for name in ("thalamus", "caudate"))
    front = caudate - origin
    rising = unit(front - (front @ right) * right)
    top = np.cross(right, rising)
    front, top = (
        np.cos(TILT) * rising - np.sin(TILT) * top,
        np.sin(TILT) * rising + np.cos(TILT) * top,
    )
    return origin, np.array([right, front, top])


def _centre(codes: Volume, wanted: Iterable[int]) -> np.ndarray:
    return codes.world(np.argwhere(np.isin(codes.data, list(wanted))).mean(axis=0))


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors in the last axis, made 1 long."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-9)


# --- Places and ways ------------------------------------------------------------------------------


def value_at(field: Volume, points: np.ndarray) -> np.ndarray:
    """A distance map at world positions, shape (N, 3) to (N,); its edge value beyond it."""
    index = field.index(points).T
    return ndimage.map_coordinates(field.data, index, order=1, mode="nearest")


def slope_at(field: Volume, points: np.ndarray) -> np.ndarray:
    """The direction in which a distance map rises, unit vectors, shape (N, 3)."""
    aside = np.concatenate([np.eye(3), -np.eye(3)]) * GRID
    values = value_at(field, (points[:, None] + aside).reshape(-1, 3)).reshape(-1, 2, 3)
    return unit(values[:, 0] - values[:, 1])


def value_along(field: Volume, paths: np.ndarray) -> np.ndarray:
    """A distance map along paths, shape (N, M, 3) to (N, M)."""
    return value_at(field, paths.reshape(-1, 3)).reshape(paths.shape[:2])


def settle(
    field: Volume, points: np.ndarray, level: float | np.ndarray, rounds: int = 4
) -> np.ndarray:
    """Move points to where a distance map has the value ``level``, along its slope."""
    for _ in range(rounds):
        away = np.clip(value_at(field, points) - level, -4, 4)
        points = points - FOLLOW * away[:, None] * slope_at(field, points)
    return points


def pick(rng: np.random.Generator, terrain: Terrain, mask: np.ndarray, count: int) -> np.ndarray:
    """Random places within voxels of a mask on the coarse grid, world mm, (count or 0, 3)."""
    found = np.flatnonzero(mask)
    if not found.size:
        return np.empty((0, 3))
    chosen = np.column_stack(np.unravel_index(rng.choice(found, count), mask.shape))
    return terrain.codes.world(chosen + rng.uniform(-0.5, 0.5, chosen.shape))


def walk(
    rng: np.random.Generator,
    field: Volume | None,
    starts: np.ndarray,
    ways: np.ndarray,
    *,
    level: np.ndarray | float = 0.0,
    steps: int,
    wobble: float,
    targets: np.ndarray | None = None,
) -> np.ndarray:
    """Let points wander on a surface of equal distance; (N, 3) to (N, steps + 1, 3).

    Args:
        rng: Source of chance.
        field: The distance map whose surface they keep to; None: through open space.
        starts: Where, world mm, (N, 3).
        ways: Where to at first, (N, 3).
        level: The distance to keep, in mm, one or (N,).
        steps: How many, of 1.5 mm each.
        wobble: Turn at each step, 0 straight on, 1 anywhere.
        targets: Places that draw them nearer, (N, 3).
    """
    points, path = starts, [starts]
    for _ in range(steps):
        ways = ways + wobble * rng.standard_normal(ways.shape)
        if targets is not None:
            ways = ways + 0.35 * unit(targets - points)
        if field is not None:
            slope = slope_at(field, points)
            ways = ways - (ways * slope).sum(axis=1, keepdims=True) * slope
            away = np.clip(value_at(field, points) - level, -GRID, GRID)
            points = points - FOLLOW * away[:, None] * slope
        ways = unit(ways)
        points = points + GRID * ways
        path.append(points)
    return ndimage.gaussian_filter1d(np.stack(path, axis=1), 1.0, axis=1, mode="nearest")
