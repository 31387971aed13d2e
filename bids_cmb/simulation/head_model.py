"""A head as a map of its structures: opened, varied, and looked up on any grid.

Left of a head is where x is smaller (RAS+). Nothing here knows of scanners or microbleeds.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage
from scipy.spatial import KDTree
from scipy.spatial.transform import Rotation

from bids_cmb.anatomy.labels import mirrored_codes
from bids_cmb.imaging.volume import Volume, load
from bids_cmb.simulation.noise import (
    node_count,
    node_weights,
    noise_lattice,
    stretch,
    stretch_planes,
)
from bids_cmb.simulation.tissue_properties import (
    CEREBRUM,
    CHOROID,
    CODES,
    CSF,
    VENTRICLES,
    is_brain,
    tissue_of,
)

MOST_VALUES = 400  # different values in one label map
SPECK_MM3 = 30.0
FEWEST_ALIKE = 4  # of the 26 voxels around one; fewer, and it is a speck
MIXED = 2**16 - 1  # no code


@dataclass(frozen=True, eq=False)
class Head:
    """A head as a label map.

    Attributes:
        labels: uint16, FreeSurfer codes (`resources/simulation/tissue_properties.json` lists them);
            0 is air.
        name: What to call it.
    """

    labels: Volume
    name: str


def head_paths(folder: Path) -> list[Path]:
    """The label maps in a folder, by name.

    Raises:
        ValueError: If there are none.
    """
    paths = sorted(folder.glob("*.nii.gz"))
    if not paths:
        raise ValueError(
            f"{folder}: a folder of anatomy needs label maps named *.nii.gz; found none."
        )
    return paths


def load_head(path: Path) -> Head:
    """Open a label map of a head.

    Args:
        path: A NIfTI image of FreeSurfer codes, of the whole head or of the brain alone.

    Returns:
        The head, cut to what is in it.

    Raises:
        ValueError: If the file cannot be opened (`imaging.volume.load`), holds no whole numbers or
            too many of them, no cerebral cortex or white matter, or codes that nobody knows.
    """
    volume, _ = load(path)
    labels = np.rint(volume.data)
    if (odd := labels != volume.data).any():
        raise ValueError(
            f"{path}: a label map holds whole numbers; found {volume.data[odd][0]:g}. "
            "Is this the image itself?"
        )
    codes = np.unique(labels)
    if len(codes) > MOST_VALUES:
        raise ValueError(
            f"{path}: a label map holds at most {MOST_VALUES} different values; "
            f"found {len(codes)}. Is this the image itself?"
        )
    if unknown := [f"{code:.0f}" for code in codes if code not in CODES]:
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        raise ValueError(
            f"{path}: every code must be one of FreeSurfer's that "
            "resources/simulation/tissue_properties.json lists; "
            f"found {', '.join(unknown[:5])}{more}."
        )
    if not np.isin(codes, CEREBRUM).any():
        raise ValueError(
            f"{path}: a head needs cerebral white matter or cortex (codes 2, 3, 41, 42); "
            f"found only {', '.join(f'{code:.0f}' for code in codes[:8])}."
        )
    name = path.name.removesuffix(".gz").removesuffix(".nii")
    head = cut(Volume(labels.astype(np.uint16), volume.affine))
    return Head(_without_specks(head), name)


def _without_specks(labels: Volume) -> Volume:
    """Specks become what lies beside them.

    Label maps of real heads have hundreds of crumbs of bone and vessel (under `SPECK_MM3`) in the
    fluid around the brain and single voxels of one tissue in another, which a scan would show as
    dots that nobody placed.
    """
    data = labels.data
    specks = (data > 0) & (_alike(tissue_of(data)) < FEWEST_ALIKE)
    for codes in ((515, 516), (514,), (502,), (507, 511)):
        pieces, count = ndimage.label(np.isin(data, codes))
        sizes = np.bincount(pieces.ravel(), minlength=count + 1) * labels.voxel_volume
        sizes[0] = np.inf
        specks |= (sizes < SPECK_MM3)[pieces]
    beside = np.argwhere(ndimage.binary_dilation(specks) & ~specks)
    if not len(beside):
        return labels
    _, nearest = KDTree(beside * labels.spacing).query(np.argwhere(specks) * labels.spacing)
    data = data.copy()
    data[specks] = data[tuple(beside[nearest].T)]
    return Volume(data, labels.affine)


def _alike(tissue: np.ndarray) -> np.ndarray:
    """How many of the 26 voxels around each are of its tissue, uint8."""
    count = np.zeros(tissue.shape, np.uint8)
    wide = np.pad(tissue, 1, constant_values=255)
    for corner in np.ndindex(3, 3, 3):
        if corner != (1, 1, 1):
            box = tuple(slice(k, k + n) for k, n in zip(corner, tissue.shape, strict=True))
            count += wide[box] == tissue
    return count


def cut(labels: Volume) -> Volume:
    """The box that holds everything that is not air, and one voxel of air around it."""
    (box,) = ndimage.find_objects((labels.data > 0).view(np.uint8))
    data = np.pad(labels.data[box], 1)
    affine = labels.affine.copy()
    affine[:3, 3] = labels.world(np.array([side.start - 1 for side in box]))
    return Volume(data, affine)


# ------------------------------------------------------------------------------------- variation


@dataclass(frozen=True, eq=False)
class Variant:
    """A head and how it is turned, scaled and bent: one person, to be looked up on any grid.

    Attributes:
        head: Codes, mirrored and atrophied already.
        matrix: World offset from the brain's centre, new to old, shape (3, 3).
        shift: Where the centre of the brain comes to lie, world mm, shape (3,).
        centre: Where it lies in ``head``, world mm, shape (3,).
        bend: mm to add to an old position, (3, X, Y, Z) on a lattice around ``centre``.
        step: mm between the nodes of that lattice.
    """

    head: Head
    matrix: np.ndarray
    shift: np.ndarray
    centre: np.ndarray
    bend: np.ndarray
    step: float


def vary(
    head: Head,
    rng: np.random.Generator,
    *,
    turn_deg: float = 15.0,
    scale: float = 0.12,
    bend_mm: float = 4.0,
    atrophy: float = 1.0,
    mirror: float = 0.5,
    shift_mm: float = 6.0,
) -> Variant:
    """Draw one person from a head.

    Args:
        head: Where to start from.
        rng: Source of chance.
        turn_deg: Largest rotation about each axis.
        scale: Largest change of size along an axis, as a share.
        bend_mm: About how far elastic bending moves a place at most.
        atrophy: 0 none, 1 as in people of 40 to 90: ventricles from a little smaller to half as
            large again, sulci up to about 1 mm wider. The cortex keeps its thickness.
        mirror: Chance that left and right change places.
        shift_mm: Largest distance along each axis of the brain's centre from the origin.
    """
    labels, centre = head.labels, _brain_centre(head.labels)
    turn = Rotation.from_euler("xyz", rng.uniform(-turn_deg, turn_deg, 3), degrees=True)
    sizes = 1 + scale * (rng.uniform(-0.5, 0.5) + rng.uniform(-0.5, 0.5, 3))
    shift = rng.uniform(-shift_mm, shift_mm, 3)
    flips = rng.random() < mirror
    wider, sulci = atrophy * rng.uniform(-12, 60), atrophy * rng.uniform(0, 0.15)

    matrix = np.diag([-1.0 if flips else 1.0, 1, 1]) @ np.diag(1 / sizes) @ turn.inv().as_matrix()
    step = 6.0
    bend = _elastic(rng, labels, step, bend_mm) + wider * _towards_ventricles(labels, centre, step)
    data = _wider_sulci(labels, rng, sulci) if sulci else labels.data
    if flips:
        data = mirrored_codes()[data]
    person = Head(Volume(data, labels.affine), head.name)
    return Variant(person, matrix, shift, centre, bend.astype(np.float32), step)


def look_up(variant: Variant, affine: np.ndarray, shape: tuple[int, int, int]) -> Volume:
    """A variant's codes on a grid; 0 outside.

    Between the eight voxels around a place the code with the most linear weight wins: borders
    run straight through the steps of the label map.

    Args:
        variant: Who.
        affine: Of the grid, voxel index to scanner world mm, RAS+, shape (4, 4).
        shape: Of the grid.

    Returns:
        uint16 codes.
    """
    grid = Volume(np.empty(shape, np.uint16), affine)
    counts = [node_count(n, size, 4.0) for n, size in zip(shape, grid.spacing, strict=True)]
    places = _sources(variant, affine, shape, counts)  # (3, nodes x, nodes y, nodes z)
    along = node_weights(shape[0], counts[0])
    planes = np.stack([stretch_planes(place, shape[1:]) for place in places])

    source = np.ascontiguousarray(variant.head.labels.data)
    cells = _cells(source)
    for x in range(shape[0]):
        near = np.flatnonzero(along[x])
        place = sum(along[x, node] * planes[:, node] for node in near)  # (3, y, z)
        grid.data[x] = _vote(source, cells, place.reshape(3, -1)).reshape(shape[1:])
    return grid


def _cells(source: np.ndarray) -> np.ndarray:
    """The code that a voxel and its seven neighbours further on share, else `MIXED`; flat."""
    cells = source.copy()
    for axis in range(3):
        further = np.roll(cells, -1, axis)
        cells[cells != further] = MIXED
    return cells.ravel()


def _vote(source: np.ndarray, cells: np.ndarray, place: np.ndarray) -> np.ndarray:
    """The code at each place, (3, N) in voxels to (N,)."""
    last = np.array(source.shape)[:, None] - 1.001  # never into the cell beyond the last voxel
    place = np.clip(place, 0, last.astype(np.float32))
    base = place.astype(np.int32)
    strides = np.array([source.shape[1] * source.shape[2], source.shape[2], 1])
    flat = strides @ base
    codes = cells[flat]
    mixed = np.flatnonzero(codes == MIXED)
    if len(mixed):
        share = place[:, mixed] - base[:, mixed]
        around, weights = _corners(source.ravel(), flat[mixed], strides, share)
        scores = [(weights * (around == mine)).sum(axis=0) for mine in around]
        codes[mixed] = np.take_along_axis(around, np.argmax(scores, axis=0)[None], axis=0)[0]
    return codes


def _corners(
    source: np.ndarray, flat: np.ndarray, strides: np.ndarray, share: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Codes of the eight voxels around each place and their linear weights, both (8, N)."""
    corners = np.array(np.unravel_index(np.arange(8), (2, 2, 2))).T  # (8, 3)
    around = source[flat + (corners @ strides)[:, None]]
    parts = [np.where(corner[:, None] == 1, share, 1 - share) for corner in corners]
    return around, np.prod(parts, axis=1)


def _sources(
    variant: Variant, affine: np.ndarray, shape: tuple[int, ...], counts: list[int]
) -> np.ndarray:
    """Where in the variant's map coarse nodes of a grid look, in voxels, (3, *counts) float32."""
    ticks = [np.linspace(0, n - 1, count) for n, count in zip(shape, counts, strict=True)]
    index = np.stack(np.meshgrid(*ticks, indexing="ij"), axis=-1)  # (*counts, 3)
    world = Volume(index, affine).world(index)
    offset = (world - variant.shift) @ variant.matrix.T
    middle = (np.array(variant.bend.shape[1:]) - 1) / 2
    nodes = np.moveaxis(offset / variant.step + middle, -1, 0)
    moved = [ndimage.map_coordinates(part, nodes, order=1, mode="nearest") for part in variant.bend]
    old = variant.centre + offset + np.stack(moved, axis=-1)
    return np.moveaxis(variant.head.labels.index(old), -1, 0).astype(np.float32)


def _brain_centre(labels: Volume) -> np.ndarray:
    """Mean position of the brain, world mm, shape (3,)."""
    brain = is_brain(labels.data[::2, ::2, ::2])
    return labels.world(2 * np.argwhere(brain).mean(axis=0))


def _lattice(labels: Volume, step: float) -> tuple[int, ...]:
    """Nodes of a lattice, ``step`` mm apart, that reaches over a head from its brain's centre."""
    reach = np.linalg.norm(np.array(labels.shape) * labels.spacing) * 0.6
    return (2 * int(np.ceil(reach / step)) + 1,) * 3


def _elastic(rng: np.random.Generator, labels: Volume, step: float, bend_mm: float) -> np.ndarray:
    """A smooth displacement at two scales in mm, (3, X, Y, Z).

    Its slope stays below about 0.5, so that nothing folds.
    """
    nodes = _lattice(labels, step)
    wide, narrow = (
        np.stack([noise_lattice(rng, nodes, width_mm / step) for _ in range(3)])
        for width_mm in (24.0, 10.0)
    )
    return bend_mm / 2.5 * (0.75 * wide + 0.25 * narrow)  # one place in a hundred goes beyond


def _towards_ventricles(labels: Volume, centre: np.ndarray, step: float) -> np.ndarray:
    """Slope of the blurred ventricles on the lattice of `vary`, 1/mm, (3, X, Y, Z).

    Adding it to a position moves that towards the nearest ventricle, so that the ventricles grow
    and push what lies around them aside: nothing is eaten. Where they are narrow, it is small.
    """
    nodes = _lattice(labels, step)
    half = (nodes[0] - 1) // 2 * step
    mask = np.isin(labels.data, VENTRICLES + CHOROID).astype(np.float32)
    soft = ndimage.gaussian_filter(mask, 2.0 / labels.spacing)
    index = np.stack(np.meshgrid(*[np.linspace(-half, half, n) for n in nodes], indexing="ij"), -1)
    at = np.moveaxis(labels.index(centre + index), -1, 0)
    coarse = ndimage.map_coordinates(soft, at, order=1)
    return np.stack(np.gradient(ndimage.gaussian_filter(coarse, 6.0 / step), step))


def _wider_sulci(labels: Volume, rng: np.random.Generator, amount: float) -> np.ndarray:
    """Codes in which fluid has grown into cortex, and cortex as much into white matter.

    ``amount`` is taken from the half at which the blurred fluid ends; 0.2 is about half a mm.
    """
    (box,) = ndimage.find_objects(is_brain(labels.data).view(np.uint8))
    data, inside = labels.data.copy(), labels.data[box]
    width = 1.0 / labels.spacing
    local = amount * (1 + 0.5 * stretch(noise_lattice(rng, (12, 12, 12), 1.0), inside.shape))
    fluid = (inside == CSF).astype(np.float32)
    outer = ndimage.gaussian_filter(fluid + np.isin(inside, (3, 42)), width, truncate=2)
    fluid = ndimage.gaussian_filter(fluid, width, truncate=2)
    for white, cortex in ((2, 3), (41, 42)):
        data[box][(inside == white) & (outer > 0.5 - local)] = cortex
        data[box][(inside == cortex) & (fluid > 0.5 - local)] = CSF
    return data
