"""Plain phantoms of a head with microbleeds: shells, balls and tubes, made in a second.

A phantom shows that the app works; it does not look like a patient.
"""

from dataclasses import dataclass

import numpy as np
from nibabel.affines import from_matvec
from nibabel.eulerangles import euler2mat
from scipy import ndimage
from scipy.special import expit

from bids_cmb.imaging.resampling import resample
from bids_cmb.imaging.volume import Volume
from bids_cmb.simulation.head_model import HeadModel

# Half axes in mm (left-right, front-back, up-down) and centre of what a phantom is made of, from
# the outside in, with its intensity; each is painted over the last.
SHELLS = (
    ("scalp", (80, 97, 96), (0, 0, 0), 0.9),
    ("skull", (74, 91, 90), (0, 0, 0), 0.12),
    ("fluid", (66, 81, 68), (0, 0, 8), 1.5),
    ("grey matter", (64, 79, 66), (0, 0, 8), 1.15),
    ("white matter", (58, 73, 60), (0, 0, 8), 1.0),
    ("right ventricle", (6, 26, 9), (11, 2, 16), 1.5),
    ("left ventricle", (6, 26, 9), (-11, 2, 16), 1.5),
)
WHITE = 4
DEEP_IN_WHITE = 0.8  # of the white matter's half axes; microbleeds lie within
FLUID_NEAR_MM = 8.0
VESSELS = 12
LAYERS = 5


@dataclass(frozen=True)
class Bleed:
    """One microbleed of a phantom: centre in world mm, diameter in mm."""

    centre: tuple[float, float, float]
    diameter: float


def phantom(
    rng: np.random.Generator, *, bleeds: int, spacing: tuple[float, float, float]
) -> tuple[Volume, Volume, list[Bleed]]:
    """One head: shells of scalp, skull, fluid and brain, vessels, microbleeds and noise.

    Args:
        rng: Source of chance.
        bleeds: How many microbleeds.
        spacing: Voxel size in mm, the distance between slices last. The grid is oblique and LAS.

    Returns:
        image: Magnitude, float32; white matter is about 300.
        truth: uint16, each microbleed with its number from 1.
        bleeds: The same in mm.
    """
    shape = tuple(np.ceil(np.array([180, 216, 208]) / spacing).astype(int))
    turn = euler2mat(*rng.uniform(-0.15, 0.15, 3)) @ np.diag(np.array([-1, 1, 1]) * spacing)
    grid = from_matvec(turn, -turn @ ((np.array(shape) - 1) / 2))
    world = _world(grid, shape)

    data = np.zeros(shape, np.float32)
    for _, axes, centre, intensity in SHELLS:
        data[_ellipsoid(world, axes, centre) <= 1] = intensity
    data *= 1 + 0.3 * ndimage.gaussian_filter(rng.standard_normal(shape), 2)

    for _ in range(VESSELS):
        _vessel(rng, data, world, turn[:, 2])
    placed = _places(rng, bleeds)
    truth = np.zeros(shape, np.uint16)
    for number, bleed in enumerate(placed, start=1):
        centre, radius = np.array(bleed.centre), bleed.diameter / 2
        box = _near(world, centre, radius + 3)
        away = _away(world[box] - centre, turn[:, 2])
        data[box] *= 1 - 0.85 * expit((radius - away) / 0.25)
        truth[box][away <= radius] = number
    real, imaginary = 0.03 * rng.standard_normal((2, *shape))
    magnitude = 300 * np.hypot(data + real, imaginary)
    return Volume(magnitude.astype(np.float32), grid), Volume(truth, grid), placed


def part_of_brain(image: Volume) -> Volume:
    """What holds a phantom's microbleeds, 4 mm around it, and a cap of the frontal bone; bool.

    Half of a brain, for tests whose detectors need not look at all of it. Bone is dark and
    no microbleed.
    """
    _, axes, middle, _ = SHELLS[WHITE]
    world = _world(image.affine, image.shape)
    deep = _ellipsoid(world, DEEP_IN_WHITE * np.array(axes) + 4, middle) <= 1
    bone = (_ellipsoid(world, *SHELLS[1][1:3]) <= 1) & (world[..., 1] > 87)
    return Volume(deep | bone, image.affine)


def stripped(seed):
    """A ball of brain of some 1200 ml with dark spots, nothing around it, oblique and flipped."""
    rng = np.random.default_rng(seed)
    turn = euler2mat(0.1, -0.1, 0.05) @ np.diag([-3.0, 3.0, 6.0])
    shape = np.array([50, 50, 26])
    image = Volume(np.zeros(shape, np.float32), from_matvec(turn, -turn @ ((shape - 1) / 2)))
    away = np.linalg.norm(image.world(np.argwhere(np.ones(shape))), axis=1).reshape(shape)
    brain = away < 66
    image.data[brain] = rng.normal(300, 9, brain.sum())
    for x, y, z in rng.integers((18, 18, 10), (32, 32, 16), (4, 3)):
        image.data[x, y, z] = 40
    return image


def _world(affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """World position of every voxel, float32, shape (X, Y, Z, 3)."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    return (index @ affine[:3, :3].T + affine[:3, 3]).astype(np.float32)


def _ellipsoid(world: np.ndarray, axes: tuple, centre: tuple) -> np.ndarray:
    """Distance from the centre in half axes, shape (X, Y, Z); 1 is the surface."""
    offset = (world - np.array(centre, np.float32)) / np.array(axes, np.float32)
    return np.sqrt((offset**2).sum(axis=-1))


def _near(world: np.ndarray, place: np.ndarray, reach: float) -> tuple[slice, ...]:
    """The voxels that hold everything within ``reach`` mm of a place in the grid."""
    close = np.argwhere((np.abs(world - place) <= reach).all(axis=-1))
    return tuple(map(slice, close.min(axis=0), close.max(axis=0) + 1))


def _away(offset: np.ndarray, slice_step: np.ndarray) -> np.ndarray:
    """Distance from a centre, a quarter slice up or down free: blooming fills a thick slice."""
    thickness = np.linalg.norm(slice_step)
    normal = slice_step / thickness
    free = np.clip(offset @ normal, -thickness / 4, thickness / 4)
    return np.linalg.norm(offset - free[..., None] * normal, axis=-1)


def _vessel(
    rng: np.random.Generator, data: np.ndarray, world: np.ndarray, slice_step: np.ndarray
) -> None:
    """Darken a straight tube of 20 to 40 mm that begins in the white matter."""
    start, length, radius = _white_place(rng), rng.uniform(20, 40), rng.uniform(0.5, 0.9)
    way = rng.standard_normal(3)
    way /= np.linalg.norm(way)
    box = _near(world, start + way * length / 2, length / 2 + 5)
    loss = np.zeros(world[box].shape[:-1])
    for height in np.linspace(-0.5, 0.5, LAYERS):  # a slice shows the mean of what crosses it
        place = world[box] + height * slice_step - start
        along = np.clip(place @ way, 0, length)
        away = np.linalg.norm(place - along[..., None] * way, axis=-1)
        loss += expit((radius - away) / 0.2) / LAYERS
    data[box] *= 1 - rng.uniform(0.5, 0.8) * loss


def _places(rng: np.random.Generator, count: int) -> list[Bleed]:
    """Microbleeds in white matter, 12 mm apart or more and clear of the ventricles."""
    placed: list[Bleed] = []
    while len(placed) < count:
        centre = _white_place(rng)
        apart = all(np.linalg.norm(centre - other.centre) > 12 for other in placed)
        if apart:
            placed.append(Bleed(tuple(centre.tolist()), float(rng.uniform(4, 7))))
    return placed


def _white_place(rng: np.random.Generator) -> np.ndarray:
    """A random position in white matter, clear of the ventricles, in mm."""
    _, axes, middle, _ = SHELLS[WHITE]
    deep = DEEP_IN_WHITE * np.array(axes)
    while True:
        place = middle + deep * rng.uniform(-1, 1, 3)
        dry = all(
            _ellipsoid(place, np.array(axes) + FLUID_NEAR_MM, centre) > 1
            for _, axes, centre, _ in SHELLS[WHITE + 1 :]
        )
        if dry and _ellipsoid(place, deep, middle) <= 1:
            return place


def centred_grid(spacing=2.0, half=(90, 110, 100)):
    """A grid that is symmetric about the origin of the world."""
    shape = tuple(int(2 * h / spacing) for h in half)
    affine = np.diag([spacing, spacing, spacing, 1])
    affine[:3, 3] = -(np.array(shape) - 1) / 2 * spacing
    return affine, shape


def ball_head(affine=None):
    """Three shells around the origin: white matter to 30 mm, cortex to 34, fluid to 40, bone.

    A ventricle of 8 mm lies in the middle; left is where x is smaller.
    """
    shape = (96, 96, 96)
    if affine is None:
        affine = np.eye(4)
        affine[:3, 3] = -47.3
    labels = Volume(np.zeros(shape, np.uint16), affine)
    where = labels.world(np.argwhere(np.ones(shape)))
    away = np.linalg.norm(where, axis=1).reshape(shape)
    left = (where[:, 0] < 0).reshape(shape)
    for radius, sides in (
        (44, (515, 515)),
        (40, (24, 24)),
        (34, (3, 42)),
        (30, (2, 41)),
        (8, (4, 43)),
    ):
        inside = away < radius
        labels.data[inside] = np.where(left[inside], *sides)
    return HeadModel(labels, "ball")


def codes_at(labels: Volume, points: np.ndarray) -> np.ndarray:
    """The codes of the voxels that world positions lie in, (N, 3) to (N,)."""
    return labels.data[tuple(np.rint(labels.index(points)).astype(int).T)]


T1W = {0: 0.0, 2: 1.0, 3: 0.65, 24: 0.2, 4: 0.2, 10: 0.75, 12: 0.72, 13: 0.85, 16: 0.9, 8: 0.62}
T2STAR = {0: 0.0, 2: 0.5, 3: 0.6, 24: 0.95, 4: 0.9, 10: 0.52, 12: 0.45, 13: 0.3, 16: 0.5, 8: 0.58}
TWINS = {41: 2, 42: 3, 43: 4, 49: 10, 51: 12, 52: 13, 47: 8, 11: 12, 50: 12, 7: 2, 46: 2}


def painted(codes: Volume, shades: dict, affine, shape, rng) -> Volume:
    """A head as a scan of a contrast shows it on a grid: blurred, biased and noisy."""
    table = np.full(2**16, 0.4, np.float32)
    for code, shade in shades.items():
        table[[code, *(twin for twin, of in TWINS.items() if of == code)]] = shade
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    axes = np.abs(np.linalg.inv(codes.affine)[:3, :3] @ affine[:3, :3]).argmax(axis=1)
    width = np.sqrt(np.maximum(0, spacing[axes] ** 2 - codes.spacing**2)) / 2.4 / codes.spacing
    soft = ndimage.gaussian_filter(table[codes.data.astype(int)], width)
    seen = resample(Volume(soft, codes.affine), affine, shape).data
    bias = np.exp(0.3 * np.linspace(-1, 1, shape[1]))[:, None]
    noise = 0.03 * rng.standard_normal((2, *shape))
    return Volume(np.hypot(seen * bias + noise[0], noise[1]).astype(np.float32), affine)


def shaken(model, rng):
    """The model with normalisations and biases as after a training."""
    for weight in model.weights:
        if weight.path.endswith(("gamma", "moving_variance")):
            weight.assign(rng.uniform(0.5, 2, weight.shape))
        elif weight.path.endswith(("beta", "moving_mean", "bias")):
            weight.assign(rng.normal(0, 0.3, weight.shape))
    return model
