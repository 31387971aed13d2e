"""Plain phantoms of a head with microbleeds, as a BIDS dataset with its truth.

A phantom shows that the app works; it does not look like a patient. Nothing is trained on it.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from nibabel.affines import from_matvec
from nibabel.eulerangles import euler2mat
from scipy import ndimage
from scipy.special import expit

from bids_cmb.derivatives import BIDS_VERSION, write_json, write_table
from bids_cmb.files import write_text
from bids_cmb.provenance import generated_by
from bids_cmb.volume import Volume, save

TRUTH_COLUMNS = {
    "index": {"Description": "Value of the microbleed in the label map.", "Format": "integer"},
    "name": {"Description": "Name of the microbleed."},
    "x_mm": {"Description": "Centre, scanner space, RAS+.", "Units": "mm", "Format": "number"},
    "y_mm": {"Description": "Centre, scanner space, RAS+.", "Units": "mm", "Format": "number"},
    "z_mm": {"Description": "Centre, scanner space, RAS+.", "Units": "mm", "Format": "number"},
    "diameter_mm": {"Description": "Diameter.", "Units": "mm", "Format": "number"},
}
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
class Protocol:
    """What a phantom says it was scanned with: mm, T and s."""

    suffix: str
    spacing: tuple[float, float, float]
    field_t: float
    echo_time_s: float


PROTOCOLS = (
    Protocol("T2starw", (0.9, 0.9, 4.0), 3.0, 0.020),
    Protocol("swi", (0.9, 0.9, 1.5), 1.5, 0.040),
)


@dataclass(frozen=True)
class Bleed:
    """One microbleed of a phantom: centre in world mm, diameter in mm."""

    centre: tuple[float, float, float]
    diameter: float


def simulate(folder: Path, *, scans: int, seed: int) -> list[int]:
    """Write a BIDS dataset of phantoms, and the truth as a derivative dataset within it.

    Args:
        folder: Where to; must not hold anything.
        scans: How many, one participant each. Every fourth has no microbleed.
        seed: The same seed gives the same bytes.

    Returns:
        The number of microbleeds in each scan.

    Raises:
        ValueError: If ``folder`` holds something already.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder}: a simulated dataset needs an empty folder; found files in it.")
    numbers = []
    for at in range(scans):
        rng = np.random.default_rng([seed, at])
        label = f"sub-{at + 1:02d}"
        protocol = PROTOCOLS[at % len(PROTOCOLS)]
        suffix = protocol.suffix
        bleeds = 0 if at % 4 == 3 else int(rng.integers(2, 9))
        image, truth, placed = phantom(rng, bleeds=bleeds, spacing=protocol.spacing)
        stem = folder / label / "anat" / f"{label}_{suffix}"
        save(image, stem.with_name(f"{stem.name}.nii.gz"))
        write_json(
            stem.with_name(f"{stem.name}.json"),
            {"MagneticFieldStrength": protocol.field_t, "EchoTime": protocol.echo_time_s},
        )
        _write_truth(folder / "derivatives" / "truth", label, truth, placed)
        numbers.append(len(placed))
    # Written last: a dataset without its description is one that was not finished.
    _write_descriptions(folder)
    return numbers


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


def _write_truth(folder: Path, label: str, truth: Volume, bleeds: list[Bleed]) -> None:
    stem = folder / label / "anat" / f"{label}_space-orig_seg-CMB_desc-truth_dseg"
    save(truth, stem.with_name(f"{stem.name}.nii.gz"), dtype=np.uint16)
    rows = [
        {
            "index": number,
            "name": f"CMB{number:03d}",
            **dict(zip(("x_mm", "y_mm", "z_mm"), np.round(bleed.centre, 2).tolist(), strict=True)),
            "diameter_mm": round(bleed.diameter, 2),
        }
        for number, bleed in enumerate(bleeds, start=1)
    ]
    write_table(stem.with_name(f"{stem.name}.tsv"), TRUTH_COLUMNS, rows)
    said = "Where the microbleeds of the phantom are."
    about = {"Description": said, "SpatialReference": "orig", "Manual": False}
    write_json(stem.with_name(f"{stem.name}.json"), {**about, **TRUTH_COLUMNS})


def _write_descriptions(folder: Path) -> None:
    write_text(folder / ".bidsignore", "*_swi.*\n")
    write_text(folder / "README.md", "Plain phantoms with microbleeds, made by bids_cmb.\n")
    about = {
        "BIDSVersion": BIDS_VERSION,
        "License": "CC0",
        "Authors": ["bids_cmb", "The bids_cmb developers"],
        "GeneratedBy": generated_by(),
    }
    truth = {"Name": "Truth of the phantoms", "DatasetType": "derivative", **about}
    write_json(folder / "derivatives" / "truth" / "dataset_description.json", truth)
    raw = {"Name": "Phantoms with microbleeds", "DatasetType": "raw", **about}
    write_json(folder / "dataset_description.json", raw)
