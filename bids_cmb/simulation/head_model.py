"""Head models: label maps that are loaded, deformed, and resampled to any grid.

Left of a head is where x is smaller (RAS+). Nothing here knows of scanners or microbleeds.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage
from scipy.spatial import KDTree
from scipy.spatial.transform import Rotation

from bids_cmb.anatomy.labels import make_mirror_table
from bids_cmb.imaging.nifti import load
from bids_cmb.imaging.volume import Volume
from bids_cmb.simulation.noise import (
    count_nodes,
    interpolation_weights,
    sample_noise,
    upsample,
    upsample_planes,
)
from bids_cmb.simulation.tissue_properties import (
    CEREBRUM,
    CHOROID,
    CSF,
    KNOWN_CODES,
    VENTRICLES,
    classify_tissues,
    is_brain,
)

MAX_DISTINCT_CODES = 400  # different values in one label map
MIN_COMPONENT_MM3 = 30.0
MIN_LIKE_NEIGHBOURS = 4  # of the 26 voxels around one; fewer, and it is a speck
MIXED_CODE = 2**16 - 1  # no code


@dataclass(frozen=True, eq=False)
class HeadModel:
    """A head as a label map.

    Attributes:
        labels: uint16, FreeSurfer codes (`resources/simulation/tissue_properties.json` lists them);
            0 is air.
        name: What to call it.
    """

    labels: Volume
    name: str


def list_head_models(folder: Path) -> list[Path]:
    """List the label maps in a folder, by name.

    Raises:
        ValueError: If there are none.
    """
    paths = sorted(folder.glob("*.nii.gz"))
    if not paths:
        raise ValueError(
            f"{folder}: a folder of anatomy needs label maps named *.nii.gz; found none."
        )
    return paths


def load_head_model(path: Path) -> HeadModel:
    """Load a label map of a head.

    Args:
        path: A NIfTI image of FreeSurfer codes, of the whole head or of the brain alone.

    Returns:
        The head, cropped to its content, without specks.

    Raises:
        ValueError: If the file cannot be opened (`imaging.nifti.load`), holds no whole numbers or
            too many of them, no cerebral cortex or white matter, or unknown codes.
    """
    volume, _ = load(path)
    labels = np.rint(volume.data)
    if (odd := labels != volume.data).any():
        raise ValueError(
            f"{path}: a label map holds whole numbers; found {volume.data[odd][0]:g}. "
            "Is this the image itself?"
        )
    codes = np.unique(labels)
    if len(codes) > MAX_DISTINCT_CODES:
        raise ValueError(
            f"{path}: a label map holds at most {MAX_DISTINCT_CODES} different values; "
            f"found {len(codes)}. Is this the image itself?"
        )
    if unknown := [f"{code:.0f}" for code in codes if code not in KNOWN_CODES]:
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
    head = crop(Volume(labels.astype(np.uint16), volume.affine))
    return HeadModel(_remove_specks(head), name)


def _remove_specks(labels: Volume) -> Volume:
    """Replace specks by the code next to them.

    Label maps of real heads have hundreds of crumbs of bone and vessel (under `MIN_COMPONENT_MM3`)
    in the fluid around the brain and single voxels of one tissue in another, which a scan would
    show as dots that nobody placed.
    """
    data = labels.data
    specks = (data > 0) & (_count_like_neighbours(classify_tissues(data)) < MIN_LIKE_NEIGHBOURS)
    for codes in ((515, 516), (514,), (502,), (507, 511)):
        pieces, count = ndimage.label(np.isin(data, codes))
        sizes = np.bincount(pieces.ravel(), minlength=count + 1) * labels.voxel_volume
        sizes[0] = np.inf
        specks |= (sizes < MIN_COMPONENT_MM3)[pieces]
    beside = np.argwhere(ndimage.binary_dilation(specks) & ~specks)
    if not len(beside):
        return labels
    _, nearest = KDTree(beside * labels.spacing).query(np.argwhere(specks) * labels.spacing)
    data = data.copy()
    data[specks] = data[tuple(beside[nearest].T)]
    return Volume(data, labels.affine)


def _count_like_neighbours(tissue: np.ndarray) -> np.ndarray:
    """Count how many of the 26 neighbours of each voxel are of its tissue, uint8."""
    count = np.zeros(tissue.shape, np.uint8)
    wide = np.pad(tissue, 1, constant_values=255)
    for corner in np.ndindex(3, 3, 3):
        if corner != (1, 1, 1):
            box = tuple(slice(k, k + n) for k, n in zip(corner, tissue.shape, strict=True))
            count += wide[box] == tissue
    return count


def crop(labels: Volume) -> Volume:
    """Crop to the box of everything that is not air, with one voxel of air around it."""
    (box,) = ndimage.find_objects((labels.data > 0).view(np.uint8))
    data = np.pad(labels.data[box], 1)
    affine = labels.affine.copy()
    affine[:3, 3] = labels.world(np.array([side.start - 1 for side in box]))
    return Volume(data, affine)


# ------------------------------------------------------------------------------------- variation


@dataclass(frozen=True, eq=False)
class Deformation:
    """One person: a head with its rotation, scaling and elastic deformation.

    Attributes:
        head: Codes, mirrored and atrophied already.
        matrix: World offset from the brain's centre, new to old, (3, 3).
        translation_mm: New position of the brain's centre, world mm, (3,).
        centre: Its position in ``head``, world mm, (3,).
        displacement_mm: Added to an old position, (3, X, Y, Z) on a lattice around ``centre``.
        node_spacing_mm: Between the nodes of that lattice.
    """

    head: HeadModel
    matrix: np.ndarray
    translation_mm: np.ndarray
    centre: np.ndarray
    displacement_mm: np.ndarray
    node_spacing_mm: float


@dataclass(frozen=True)
class DeformationLimits:
    """How much people differ from a head.

    Attributes:
        turn_deg: Largest rotation about each axis.
        scale: Largest change of size along an axis, as a share.
        bend_mm: About the largest elastic displacement.
        atrophy: 0 none, 1 as in people of 40 to 90: ventricles from a little smaller to half as
            large again, sulci up to about 1 mm wider. The cortex keeps its thickness.
        mirror: Probability that left and right change places.
        shift_mm: Largest distance along each axis of the brain's centre from the origin.
    """

    turn_deg: float = 15.0
    scale: float = 0.12
    bend_mm: float = 4.0
    atrophy: float = 1.0
    mirror: float = 0.5
    shift_mm: float = 6.0


PEOPLE = DeformationLimits()


def sample_deformation(
    head: HeadModel, rng: np.random.Generator, limits: DeformationLimits = PEOPLE
) -> Deformation:
    """Sample one person from a head.

    Args:
        head: Where to start from.
        rng: Source of chance.
        limits: How far they may differ.
    """
    labels, centre = head.labels, _find_brain_centre(head.labels)
    turns = rng.uniform(-limits.turn_deg, limits.turn_deg, 3)
    turn = Rotation.from_euler("xyz", turns, degrees=True)
    sizes = 1 + limits.scale * (rng.uniform(-0.5, 0.5) + rng.uniform(-0.5, 0.5, 3))
    shift = rng.uniform(-limits.shift_mm, limits.shift_mm, 3)
    mirrored = rng.random() < limits.mirror
    wider, sulci = limits.atrophy * rng.uniform(-12, 60), limits.atrophy * rng.uniform(0, 0.15)

    matrix = (
        np.diag([-1.0 if mirrored else 1.0, 1, 1]) @ np.diag(1 / sizes) @ turn.inv().as_matrix()
    )
    step = 6.0
    bend = _sample_elastic_displacement(
        rng, labels, step, limits.bend_mm
    ) + wider * _ventricle_gradient(labels, centre, step)
    data = _widen_sulci(labels, rng, sulci) if sulci else labels.data
    if mirrored:
        data = make_mirror_table()[data]
    person = HeadModel(Volume(data, labels.affine), head.name)
    return Deformation(person, matrix, shift, centre, bend.astype(np.float32), step)


def resample_labels(
    deformation: Deformation, affine: np.ndarray, shape: tuple[int, int, int]
) -> Volume:
    """Resample the codes of a deformed head to a grid; 0 outside.

    Among the eight voxels around a position the code with the most linear weight wins: borders
    run straight through the steps of the label map.

    Args:
        deformation: The person.
        affine: Of the grid, voxel index to scanner world mm, RAS+, (4, 4).
        shape: Of the grid.

    Returns:
        uint16 codes.
    """
    grid = Volume(np.empty(shape, np.uint16), affine)
    counts = [count_nodes(n, size, 4.0) for n, size in zip(shape, grid.spacing, strict=True)]
    positions = _find_source_voxels(
        deformation, affine, shape, counts
    )  # (3, nodes x, nodes y, nodes z)
    along = interpolation_weights(shape[0], counts[0])
    planes = np.stack([upsample_planes(position, shape[1:]) for position in positions])

    source = np.ascontiguousarray(deformation.head.labels.data)
    cells = _find_uniform_cells(source)
    for x in range(shape[0]):
        near = np.flatnonzero(along[x])
        position = sum(along[x, node] * planes[:, node] for node in near)  # (3, y, z)
        grid.data[x] = _vote(source, cells, position.reshape(3, -1)).reshape(shape[1:])
    return grid


def _find_uniform_cells(source: np.ndarray) -> np.ndarray:
    """Find the code a voxel shares with its seven further neighbours, else `MIXED_CODE`; flat."""
    cells = source.copy()
    for axis in range(3):
        further = np.roll(cells, -1, axis)
        cells[cells != further] = MIXED_CODE
    return cells.ravel()


def _vote(source: np.ndarray, cells: np.ndarray, position: np.ndarray) -> np.ndarray:
    """Vote for the code at each position, (3, N) in voxels to (N,)."""
    last = np.array(source.shape)[:, None] - 1.001  # never into the cell beyond the last voxel
    position = np.clip(position, 0, last.astype(np.float32))
    base = position.astype(np.int32)
    strides = np.array([source.shape[1] * source.shape[2], source.shape[2], 1])
    flat = strides @ base
    codes = cells[flat]
    mixed = np.flatnonzero(codes == MIXED_CODE)
    if len(mixed):
        share = position[:, mixed] - base[:, mixed]
        around, weights = _gather_corners(source.ravel(), flat[mixed], strides, share)
        scores = [(weights * (around == mine)).sum(axis=0) for mine in around]
        codes[mixed] = np.take_along_axis(around, np.argmax(scores, axis=0)[None], axis=0)[0]
    return codes


def _gather_corners(
    source: np.ndarray, flat: np.ndarray, strides: np.ndarray, share: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Gather codes of the eight voxels around each position and their linear weights, (8, N)."""
    corners = np.array(np.unravel_index(np.arange(8), (2, 2, 2))).T  # (8, 3)
    around = source[flat + (corners @ strides)[:, None]]
    parts = [np.where(corner[:, None] == 1, share, 1 - share) for corner in corners]
    return around, np.prod(parts, axis=1)


def _find_source_voxels(
    deformation: Deformation, affine: np.ndarray, shape: tuple[int, ...], counts: list[int]
) -> np.ndarray:
    """Map coarse nodes of a grid to voxels of the head, (3, *counts) float32."""
    ticks = [np.linspace(0, n - 1, count) for n, count in zip(shape, counts, strict=True)]
    index = np.stack(np.meshgrid(*ticks, indexing="ij"), axis=-1)  # (*counts, 3)
    world = Volume(index, affine).world(index)
    offset = (world - deformation.translation_mm) @ deformation.matrix.T
    middle = (np.array(deformation.displacement_mm.shape[1:]) - 1) / 2
    nodes = np.moveaxis(offset / deformation.node_spacing_mm + middle, -1, 0)
    moved = [
        ndimage.map_coordinates(part, nodes, order=1, mode="nearest")
        for part in deformation.displacement_mm
    ]
    old = deformation.centre + offset + np.stack(moved, axis=-1)
    return np.moveaxis(deformation.head.labels.index(old), -1, 0).astype(np.float32)


def _find_brain_centre(labels: Volume) -> np.ndarray:
    """Find the mean position of the brain, world mm, (3,)."""
    brain = is_brain(labels.data[::2, ::2, ::2])
    return labels.world(2 * np.argwhere(brain).mean(axis=0))


def _count_lattice_nodes(labels: Volume, step: float) -> tuple[int, ...]:
    """Count nodes, ``step`` mm apart, of a lattice over a head around its brain's centre."""
    reach = np.linalg.norm(np.array(labels.shape) * labels.spacing) * 0.6
    return (2 * int(np.ceil(reach / step)) + 1,) * 3


def _sample_elastic_displacement(
    rng: np.random.Generator, labels: Volume, step: float, bend_mm: float
) -> np.ndarray:
    """Sample a smooth displacement at two scales in mm, (3, X, Y, Z).

    Its slope stays below about 0.5, so that nothing folds.
    """
    nodes = _count_lattice_nodes(labels, step)
    wide, narrow = (
        np.stack([sample_noise(rng, nodes, width_mm / step) for _ in range(3)])
        for width_mm in (24.0, 10.0)
    )
    return bend_mm / 2.5 * (0.75 * wide + 0.25 * narrow)  # one place in a hundred goes beyond


def _ventricle_gradient(labels: Volume, centre: np.ndarray, step: float) -> np.ndarray:
    """Compute the gradient of the blurred ventricles on the lattice, 1/mm, (3, X, Y, Z).

    Adding it to a position moves that towards the nearest ventricle, so that the ventricles grow
    and push aside what lies around them: nothing is eaten. Where they are narrow, it is small.
    """
    nodes = _count_lattice_nodes(labels, step)
    half = (nodes[0] - 1) // 2 * step
    mask = np.isin(labels.data, VENTRICLES + CHOROID).astype(np.float32)
    soft = ndimage.gaussian_filter(mask, 2.0 / labels.spacing)
    index = np.stack(np.meshgrid(*[np.linspace(-half, half, n) for n in nodes], indexing="ij"), -1)
    nodes_index = np.moveaxis(labels.index(centre + index), -1, 0)
    coarse = ndimage.map_coordinates(soft, nodes_index, order=1)
    return np.stack(np.gradient(ndimage.gaussian_filter(coarse, 6.0 / step), step))


def _widen_sulci(labels: Volume, rng: np.random.Generator, amount: float) -> np.ndarray:
    """Grow fluid into cortex, and cortex as much into white matter.

    ``amount`` is taken from the half at which the blurred fluid ends; 0.2 is about half a mm.
    """
    (box,) = ndimage.find_objects(is_brain(labels.data).view(np.uint8))
    data, inside = labels.data.copy(), labels.data[box]
    width = 1.0 / labels.spacing
    local = amount * (1 + 0.5 * upsample(sample_noise(rng, (12, 12, 12), 1.0), inside.shape))
    fluid = (inside == CSF).astype(np.float32)
    outer = ndimage.gaussian_filter(fluid + np.isin(inside, (3, 42)), width, truncate=2)
    fluid = ndimage.gaussian_filter(fluid, width, truncate=2)
    for white, cortex in ((2, 3), (41, 42)):
        data[box][(inside == white) & (outer > 0.5 - local)] = cortex
        data[box][(inside == cortex) & (fluid > 0.5 - local)] = CSF
    return data
