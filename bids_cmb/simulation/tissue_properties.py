"""What a head is made of: codes of structures, their tissues, and what a scan sees of those.

The codes are FreeSurfer's; `resources/simulation/tissue_properties.json` lists them.
"""

import json
from dataclasses import dataclass
from importlib import resources

import numpy as np
from scipy import ndimage

from bids_cmb.imaging.volume import Volume
from bids_cmb.simulation.noise import node_count, noise_lattice, stretch

_TABLE = json.loads(
    resources.files("bids_cmb")
    .joinpath("resources/simulation/tissue_properties.json")
    .read_text("utf-8")
)
TISSUES = tuple(_TABLE["tissues"])
CODES = frozenset(code for row in _TABLE["tissues"].values() for code in row["codes"])
FIRST_OUTSIDE = 500  # codes from here on lie outside the brain
CSF = 24
CEREBRUM = (2, 3, 41, 42)
VENTRICLES = (4, 5, 14, 15, 43, 44, 72)
CHOROID = (31, 63, 136, 137, 163, 164)


def is_brain(labels: np.ndarray) -> np.ndarray:
    """Where the brain is, ventricles included, the fluid around it not; bool."""
    return (labels > 0) & (labels < FIRST_OUTSIDE) & (labels != CSF)


@dataclass(frozen=True, eq=False)
class TissueMaps:
    """What the signal of a scan depends on, float32 arrays on the grid of a label map.

    Attributes:
        pd: Protons relative to water, 0 to about 1.
        t1_s: T1 in s.
        r2star_hz: 1 / T2* in 1/s.
        chi_ppm: Susceptibility in ppm relative to the tissue average; air is about 9.
    """

    pd: np.ndarray
    t1_s: np.ndarray
    r2star_hz: np.ndarray
    chi_ppm: np.ndarray


def tissue_of(labels: np.ndarray) -> np.ndarray:
    """The tissue of each code, uint8, an index into `TISSUES`.

    Raises:
        ValueError: If a code has no tissue.
    """
    table = np.full(2**16, 255, np.uint8)
    for at, row in enumerate(_TABLE["tissues"].values()):
        table[row["codes"]] = at
    tissue = table[labels]
    if (tissue == 255).any():
        found = np.unique(labels[tissue == 255])[:5]
        raise ValueError(
            "`labels` must hold codes that resources/simulation/tissue_properties.json lists; "
            f"found {', '.join(map(str, found))}."
        )
    return tissue


def tissue_constants(field_t: float) -> dict[str, np.ndarray]:
    """What each tissue is at a field strength, in the order of `TISSUES`.

    R2* and T1 run straight between 1.5, 3 and 7 T and on beyond them, R2* never under a tenth of
    its value at 1.5 T.

    Args:
        field_t: Field strength in T.

    Returns:
        ``pd``, ``t1_s``, ``r2star_hz`` and ``chi_ppm``, each (tissues,).

    Raises:
        ValueError: If the field is not between 0.2 and 12 T.
    """
    if not 0.2 <= field_t <= 12:
        raise ValueError(
            f"`field_t` must be a field strength between 0.2 and 12 T; found {field_t:g}."
        )
    rows = _TABLE["tissues"].values()
    t1 = np.array([row["t1_s"] for row in rows])
    r2star = 1 / np.array([row["t2star_s"] for row in rows])
    return {
        "pd": np.array([row["pd"] for row in rows], float),
        "t1_s": np.maximum(_at_field(t1, field_t), 0.3 * t1[:, 0]),
        "r2star_hz": np.maximum(_at_field(r2star, field_t), 0.1 * r2star[:, 0]),
        "chi_ppm": np.array([row["chi_ppm"] for row in rows], float),
    }


def _at_field(values: np.ndarray, field_t: float) -> np.ndarray:
    """Straight lines through values at the fields of the table, (tissues, 3) to (tissues,)."""
    fields = _TABLE["field_t"]
    low = 0 if field_t < fields[1] else 1
    share = (field_t - fields[low]) / (fields[low + 1] - fields[low])
    return (1 - share) * values[:, low] + share * values[:, low + 1]


def tissue_maps(
    labels: Volume,
    field_t: float,
    rng: np.random.Generator,
    *,
    age: float = 65.0,
    spread: float = 1.0,
    blur_mm: float = 0.4,
) -> TissueMaps:
    """What the tissues of one person are: no two people and no two voxels alike.

    Args:
        labels: Codes, on any grid.
        field_t: Field strength in T.
        rng: Source of chance.
        age: In years. White matter hyperintensity, perivascular spaces and the iron of the deep
            grey nuclei grow with it.
        spread: How far people and scanners differ from the table and tissues from themselves; 0
            not at all, then only ``age`` and the labels count.
        blur_mm: Sigma of the blur that stands for tissues which share a voxel; a label map has
            steps. Axes with voxels over four times as large are left alone.

    Returns:
        Maps on the grid of ``labels``.

    Source:
        Iron and age: Hallgren and Sourander 1958, doi:10.1111/j.1471-4159.1958.tb12607.x.
    """
    tissue = tissue_of(labels.data)
    constants = _of_one_person(tissue_constants(field_t), rng, age, spread)
    maps = {name: values.astype(np.float32)[tissue] for name, values in constants.items()}
    steps = np.array(labels.spacing)
    if spread:
        _vary_white(maps, labels, rng, constants, age)
        _mottle(maps, tissue, steps, rng, age)
        _mix_soft_tissue(maps, tissue, steps, rng, constants)
        _texture(maps, labels.shape, steps, rng, spread)
    if spread and age:
        _paint_perivascular_spaces(maps, labels, rng, constants, age)
    sigma = np.where(steps > 4 * blur_mm, 0, blur_mm / steps)
    for part in maps.values():
        if sigma.any():
            ndimage.gaussian_filter(part, sigma, truncate=2, output=part)
    return TissueMaps(**maps)


def _of_one_person(
    constants: dict[str, np.ndarray], rng: np.random.Generator, age: float, spread: float
) -> dict[str, np.ndarray]:
    """Constants with a person's iron and with the differences between people and scanners."""
    iron = np.array([_iron(name, age) for name in TISSUES])
    constants = dict(constants)
    constants["r2star_hz"] = constants["r2star_hz"] * (0.35 + 0.65 * iron)
    constants["chi_ppm"] = constants["chi_ppm"] * iron
    for name, width in (("pd", 0.03), ("t1_s", 0.06), ("r2star_hz", 0.08)):
        constants[name] = constants[name] * np.exp(spread * width * rng.standard_normal(len(iron)))
    constants["chi_ppm"] = constants["chi_ppm"] + spread * 0.005 * rng.standard_normal(len(iron))
    return constants


def _iron(tissue: str, age: float) -> float:
    """Non-haem iron at an age over that at 45 years, about the age of the table's volunteers."""
    growth = {  # mg per 100 g: the rise, its rate per year, and what is there at birth
        "putamen": (14.62, 0.04, 0.46),
        "pallidum": (21.41, 0.09, 0.37),
        "caudate": (9.66, 0.05, 0.33),
        "accumbens": (9.66, 0.05, 0.33),
    }
    if tissue not in growth:
        return 1.0
    rise, rate, birth = growth[tissue]
    level = [rise * (1 - np.exp(-rate * years)) + birth for years in (age, 45)]
    return level[0] / level[1]


def _lattice_noise(
    rng: np.random.Generator, shape: tuple[int, ...], steps: np.ndarray, width_mm: float
) -> np.ndarray:
    """Smooth noise over a grid, unit variance on its lattice, details about ``width_mm`` wide."""
    nodes = tuple(node_count(n, size, width_mm) for n, size in zip(shape, steps, strict=True))
    return stretch(noise_lattice(rng, nodes, 0.7), shape)


def _texture(
    maps: dict, shape: tuple[int, ...], steps: np.ndarray, rng: np.random.Generator, spread: float
) -> None:
    """Protons and R2* vary at two scales by 1 to 5 %."""
    for width_mm in (2.0, 8.0):
        noise = _lattice_noise(rng, shape, steps, width_mm)
        maps["pd"] *= 1 + spread * rng.uniform(0.005, 0.02) * noise
        maps["r2star_hz"] *= 1 + spread * rng.uniform(0.01, 0.05) * noise


def _mottle(
    maps: dict, tissue: np.ndarray, steps: np.ndarray, rng: np.random.Generator, age: float
) -> None:
    """Iron lies in clumps in the lentiform nucleus, the more the older."""
    lentiform = np.isin(tissue, (TISSUES.index("putamen"), TISSUES.index("pallidum")))
    if not lentiform.any():
        return
    (box,) = ndimage.find_objects(lentiform.view(np.uint8))
    inside = lentiform[box]
    amount = rng.uniform(0.05, 0.35) * np.clip(age / 80, 0, 1.2)
    clumps = np.exp(amount * _lattice_noise(rng, inside.shape, steps, 2.0)[inside])
    for name in ("r2star_hz", "chi_ppm"):
        maps[name][box][inside] *= clumps


def _mix_soft_tissue(
    maps: dict, tissue: np.ndarray, steps: np.ndarray, rng: np.random.Generator, constants: dict
) -> None:
    """What the codes call other soft tissue is fat here and muscle there."""
    soft = tissue == TISSUES.index("soft tissue")
    noise = _lattice_noise(rng, tissue.shape, steps, 7.0)[soft]
    fat = np.clip(0.5 + 1.5 * noise, 0, 1)
    for name, values in constants.items():
        ends = values[TISSUES.index("fat")], values[TISSUES.index("muscle")]
        maps[name][soft] = fat * ends[0] + (1 - fat) * ends[1]


def _vary_white(
    maps: dict, labels: Volume, rng: np.random.Generator, constants: dict, age: float
) -> None:
    """White matter hyperintensity: a rim and caps at the ventricles, patches deeper in."""
    step = 2.5
    coarse = _coarse(labels, step)
    away = _distance(np.isin(coarse.data, VENTRICLES + CHOROID), step)
    burden = rng.normal(-1.2, 0.8) + (age - 60) / 20
    rim = burden + 1 - away / 3
    patches = 1.8 * noise_lattice(rng, coarse.shape, 1.2) + 0.6 * burden - 2.6 - away / 15
    score = stretch(np.maximum(rim, patches).astype(np.float32), labels.shape)
    white = np.isin(labels.data, (2, 41))
    ill = np.clip(score[white], 0, 1)
    for name, values in constants.items():
        lesion = values[TISSUES.index("white lesion")]
        maps[name][white] += ill * (lesion - values[TISSUES.index("white")])


def _coarse(labels: Volume, step: float) -> Volume:
    """Codes at nodes about ``step`` mm apart, those at the corners of the grid included."""
    counts = [
        node_count(n, size, step) for n, size in zip(labels.shape, labels.spacing, strict=True)
    ]
    ticks = [np.linspace(0, n - 1, m) for n, m in zip(labels.shape, counts, strict=True)]
    data = labels.data[np.ix_(*[np.rint(tick).astype(int) for tick in ticks])]
    affine = labels.affine.copy()
    affine[:3, :3] *= [(n - 1) / (m - 1) for n, m in zip(labels.shape, counts, strict=True)]
    return Volume(data, affine)


def _distance(there: np.ndarray, step: float | np.ndarray) -> np.ndarray:
    """Distance in mm to where something is, float32; 999 if it is nowhere."""
    if not there.any():
        return np.full(there.shape, 999, np.float32)
    steps = np.broadcast_to(step, 3)
    return ndimage.distance_transform_edt(~there, sampling=steps).astype(np.float32)


def _paint_perivascular_spaces(
    maps: dict, labels: Volume, rng: np.random.Generator, constants: dict, age: float
) -> None:
    """Tubes of fluid, under 1.5 mm wide, in white matter and at the base of the lentiform nucleus.

    A voxel takes the share of fluid that the tubes fill of it.
    """
    coarse = _coarse(labels, 2.5)
    sites_ = np.argwhere(np.isin(coarse.data, (2, 41, 12, 51)))
    count = int(rng.uniform(20, 120) * np.clip(age / 60, 0.3, 1.5))
    if not len(sites_):
        return
    starts = coarse.world(sites_[rng.integers(len(sites_), size=count)])
    centre = starts.mean(axis=0)
    ways = starts - centre + 12 * rng.standard_normal(starts.shape)  # towards the cortex
    ways /= np.linalg.norm(ways, axis=1, keepdims=True)
    fluid = np.zeros(labels.data.size, np.float32)
    for start, way in zip(starts, ways, strict=True):
        radius, length = rng.uniform(0.25, 0.7), rng.uniform(3, 14)
        points = start + np.arange(0, length, 0.25)[:, None] * way
        index = labels.index(points + 0.15 * rng.standard_normal(points.shape))
        at = np.rint(index).astype(int)
        at = at[((at >= 0) & (at < labels.shape)).all(axis=1)]
        flat = np.ravel_multi_index(tuple(at.T), labels.shape)
        np.add.at(fluid, flat, np.pi * radius**2 * 0.25 / labels.voxel_volume)
    wet = np.flatnonzero(fluid)
    wet = wet[np.isin(labels.data.ravel()[wet], (2, 41, 12, 51, 13, 52))]
    share = np.minimum(fluid[wet], 1)
    for name, values in constants.items():
        flat = maps[name].reshape(-1)
        flat[wet] += share * (values[TISSUES.index("csf")] - flat[wet])
