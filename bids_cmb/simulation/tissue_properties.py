"""MR properties of the tissues of a head: proton density, T1, R2* and susceptibility.

The codes are FreeSurfer's; `resources/simulation/tissue_properties.json` lists them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy import ndimage

from bids_cmb.imaging.volume import Volume
from bids_cmb.resource_files import load_resource
from bids_cmb.simulation.noise import count_nodes, sample_noise, upsample

_TABLE = load_resource("simulation/tissue_properties.json")
TISSUES = tuple(_TABLE["tissues"])
KNOWN_CODES = frozenset(code for row in _TABLE["tissues"].values() for code in row["codes"])
FIRST_EXTRACEREBRAL_CODE = 500  # codes from here on lie outside the brain
CSF = 24
CEREBRUM = (2, 3, 41, 42)
VENTRICLES = (4, 5, 14, 15, 43, 44, 72)
CHOROID = (31, 63, 136, 137, 163, 164)


def is_brain(labels: np.ndarray) -> np.ndarray:
    """Select codes of the brain, ventricles included, the fluid around it not; bool."""
    return (labels > 0) & (labels < FIRST_EXTRACEREBRAL_CODE) & (labels != CSF)


@dataclass(frozen=True, eq=False)
class TissueMaps:
    """Maps of what the signal of a scan depends on, float32 arrays on the grid of a label map.

    Attributes:
        pd: Proton density relative to water, 0 to about 1.
        t1_s: T1 in s.
        r2star_hz: 1 / T2* in 1/s.
        chi_ppm: Susceptibility in ppm relative to the tissue average; air is about 9.
    """

    pd: np.ndarray
    t1_s: np.ndarray
    r2star_hz: np.ndarray
    chi_ppm: np.ndarray


def classify_tissues(labels: np.ndarray) -> np.ndarray:
    """Classify codes by tissue, uint8, an index into `TISSUES`.

    Raises:
        ValueError: If a code has no tissue.
    """
    table = np.full(2**16, 255, np.uint8)
    for index, row in enumerate(_TABLE["tissues"].values()):
        table[row["codes"]] = index
    tissue = table[labels]
    if (tissue == 255).any():
        unknown = np.unique(labels[tissue == 255])[:5]
        raise ValueError(
            "`labels` must hold codes that resources/simulation/tissue_properties.json lists; "
            f"found {', '.join(map(str, unknown))}."
        )
    return tissue


def get_tissue_constants(field_t: float) -> dict[str, np.ndarray]:
    """Return the MR properties of each tissue at a field strength, in the order of `TISSUES`.

    R2* and T1 are interpolated linearly between 1.5, 3 and 7 T and extrapolated beyond, R2* never
    below a tenth of its value at 1.5 T.

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
        "t1_s": np.maximum(_interpolate_to_field(t1, field_t), 0.3 * t1[:, 0]),
        "r2star_hz": np.maximum(_interpolate_to_field(r2star, field_t), 0.1 * r2star[:, 0]),
        "chi_ppm": np.array([row["chi_ppm"] for row in rows], float),
    }


def _interpolate_to_field(values: np.ndarray, field_t: float) -> np.ndarray:
    """Interpolate values at the fields of the table linearly, (tissues, 3) to (tissues,)."""
    fields = _TABLE["field_t"]
    low = 0 if field_t < fields[1] else 1
    share = (field_t - fields[low]) / (fields[low + 1] - fields[low])
    return (1 - share) * values[:, low] + share * values[:, low + 1]


def sample_tissue_maps(
    labels: Volume,
    field_t: float,
    rng: np.random.Generator,
    *,
    age: float = 65.0,
    spread: float = 1.0,
    blur_mm: float = 0.4,
    lamina_contrast: Sequence[float] = (),
) -> TissueMaps:
    """Sample maps of the tissue properties of one person.

    Args:
        labels: Codes, on any grid.
        field_t: Field strength in T.
        rng: Source of chance.
        age: In years. White matter hyperintensity, perivascular spaces and the iron of the deep
            grey nuclei grow with it.
        spread: How far people and scanners differ from the table and tissues from themselves;
            with 0 only ``age`` and the labels count.
        blur_mm: Sigma of the blur that stands for tissues which share a voxel; a label map has
            steps. Axes with voxels over four times as large are not blurred.
        lamina_contrast: Range of the log ratio by which the iron of the lentiform nucleus rises in
            thin layers parallel to its surface; none of them if empty.

    Returns:
        Maps on the grid of ``labels``.

    Source:
        Iron and age: Hallgren and Sourander 1958, doi:10.1111/j.1471-4159.1958.tb12607.x.
    """
    tissue = classify_tissues(labels.data)
    constants = _vary_constants(get_tissue_constants(field_t), rng, age, spread)
    maps = {name: values.astype(np.float32)[tissue] for name, values in constants.items()}
    steps = np.array(labels.spacing)
    if spread:
        _add_white_matter_hyperintensities(maps, labels, rng, constants, age)
        _redistribute_iron(
            maps, tissue, partial(_sample_iron_clumps, steps=steps, rng=rng, age=age)
        )
        if lamina_contrast:
            _redistribute_iron(
                maps, tissue,
                partial(_sample_iron_laminae, steps=steps, rng=rng, contrast=lamina_contrast),
            )  # fmt: skip
        _mix_soft_tissue(maps, tissue, steps, rng, constants)
        _add_texture(maps, labels.shape, steps, rng, spread)
    if spread and age:
        count = int(rng.uniform(20, 120) * np.clip(age / 60, 0.3, 1.5))
        _add_perivascular_spaces(maps, labels, rng, constants, (count, (2, 41, 12, 51)))
    if spread and lamina_contrast:
        crowd = int(rng.uniform(0, 60)), (12, 13, 51, 52)
        _add_perivascular_spaces(maps, labels, rng, constants, crowd)
    sigma = np.where(steps > 4 * blur_mm, 0, blur_mm / steps)
    for part in maps.values():
        if sigma.any():
            ndimage.gaussian_filter(part, sigma, truncate=2, output=part)
    return TissueMaps(**maps)


def _vary_constants(
    constants: dict[str, np.ndarray], rng: np.random.Generator, age: float, spread: float
) -> dict[str, np.ndarray]:
    """Vary the constants by a person's iron and by differences between people and scanners."""
    iron = np.array([_relative_iron(name, age) for name in TISSUES])
    constants = dict(constants)
    constants["r2star_hz"] = constants["r2star_hz"] * (0.35 + 0.65 * iron)
    constants["chi_ppm"] = constants["chi_ppm"] * iron
    for name, width in (("pd", 0.03), ("t1_s", 0.06), ("r2star_hz", 0.08)):
        constants[name] = constants[name] * np.exp(spread * width * rng.standard_normal(len(iron)))
    constants["chi_ppm"] = constants["chi_ppm"] + spread * 0.005 * rng.standard_normal(len(iron))
    return constants


def _relative_iron(tissue: str, age: float) -> float:
    """Compute non-haem iron at an age over that at 45 years, the age of the table's volunteers."""
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


def _sample_texture_noise(
    rng: np.random.Generator, shape: tuple[int, ...], steps: np.ndarray, width_mm: float
) -> np.ndarray:
    """Sample noise of unit variance on its lattice, details about ``width_mm`` wide."""
    nodes = tuple(count_nodes(n, size, width_mm) for n, size in zip(shape, steps, strict=True))
    return upsample(sample_noise(rng, nodes, 0.7), shape)


def _add_texture(
    maps: dict, shape: tuple[int, ...], steps: np.ndarray, rng: np.random.Generator, spread: float
) -> None:
    """Vary proton density and R2* at two scales by 1 to 5 %."""
    for width_mm in (2.0, 8.0):
        noise = _sample_texture_noise(rng, shape, steps, width_mm)
        maps["pd"] *= 1 + spread * rng.uniform(0.005, 0.02) * noise
        maps["r2star_hz"] *= 1 + spread * rng.uniform(0.01, 0.05) * noise


def _redistribute_iron(
    maps: dict, tissue: np.ndarray, sample_ratio: Callable[[np.ndarray], np.ndarray]
) -> None:
    """Multiply the iron of the lentiform nucleus by a ratio, which is sampled inside its box."""
    lentiform = np.isin(tissue, (TISSUES.index("putamen"), TISSUES.index("pallidum")))
    if not lentiform.any():
        return
    (box,) = ndimage.find_objects(lentiform.view(np.uint8))
    inside = lentiform[box]
    ratio = sample_ratio(inside)
    for name in ("r2star_hz", "chi_ppm"):
        maps[name][box][inside] *= ratio


def _sample_iron_clumps(
    inside: np.ndarray, steps: np.ndarray, rng: np.random.Generator, age: float
) -> np.ndarray:
    """Sample clumps of iron, the more the older; ratio (N,) at the voxels of ``inside``."""
    amount = rng.uniform(0.05, 0.35) * np.clip(age / 80, 0, 1.2)
    return np.exp(amount * _sample_texture_noise(rng, inside.shape, steps, 2.0)[inside])


def _sample_iron_laminae(
    inside: np.ndarray, steps: np.ndarray, rng: np.random.Generator, contrast: Sequence[float]
) -> np.ndarray:
    """Sample thin, interrupted layers of iron parallel to the sides of the lentiform nucleus.

    They stand upright, so that axial slices show dark streaks about 1 mm wide, as medullary laminae
    and striate veins are.

    Returns:
        Ratio (N,) at the voxels of ``inside``.
    """
    amount = rng.uniform(*contrast)
    upright = steps * (1, 1, 4)
    depth = ndimage.distance_transform_edt(np.pad(inside, 1), sampling=upright)[1:-1, 1:-1, 1:-1]
    upright = steps * (1, 1, 0.25)
    depth += 1.5 * _sample_texture_noise(rng, inside.shape, upright, 6.0)
    layers = sample_noise(rng, (80,), 0.7)  # nodes 0.5 mm apart
    streaks = np.interp(depth[inside], np.arange(80) * 0.5 - 5, layers)
    breaks = _sample_texture_noise(rng, inside.shape, upright, 3.0)[inside]
    return np.exp(amount * np.maximum(streaks, -0.5) * np.clip(0.7 + breaks, 0, 1.5))


def _mix_soft_tissue(
    maps: dict, tissue: np.ndarray, steps: np.ndarray, rng: np.random.Generator, constants: dict
) -> None:
    """Mix fat and muscle where the codes know only other soft tissue."""
    soft = tissue == TISSUES.index("soft tissue")
    noise = _sample_texture_noise(rng, tissue.shape, steps, 7.0)[soft]
    fat = np.clip(0.5 + 1.5 * noise, 0, 1)
    for name, values in constants.items():
        ends = values[TISSUES.index("fat")], values[TISSUES.index("muscle")]
        maps[name][soft] = fat * ends[0] + (1 - fat) * ends[1]


def _add_white_matter_hyperintensities(
    maps: dict, labels: Volume, rng: np.random.Generator, constants: dict, age: float
) -> None:
    """Add white matter hyperintensity: a rim and caps at the ventricles, patches deeper in."""
    step = 2.5
    coarse = _downsample(labels, step)
    away = _distance_to(np.isin(coarse.data, VENTRICLES + CHOROID), step)
    burden = rng.normal(-1.2, 0.8) + (age - 60) / 20
    rim = burden + 1 - away / 3
    patches = 1.8 * sample_noise(rng, coarse.shape, 1.2) + 0.6 * burden - 2.6 - away / 15
    score = upsample(np.maximum(rim, patches).astype(np.float32), labels.shape)
    white = np.isin(labels.data, (2, 41))
    ill = np.clip(score[white], 0, 1)
    for name, values in constants.items():
        lesion = values[TISSUES.index("white lesion")]
        maps[name][white] += ill * (lesion - values[TISSUES.index("white")])


def _downsample(labels: Volume, step: float) -> Volume:
    """Sample codes at nodes about ``step`` mm apart, the corners of the grid included."""
    counts = [
        count_nodes(n, size, step) for n, size in zip(labels.shape, labels.spacing, strict=True)
    ]
    ticks = [np.linspace(0, n - 1, m) for n, m in zip(labels.shape, counts, strict=True)]
    data = labels.data[np.ix_(*[np.rint(tick).astype(int) for tick in ticks])]
    affine = labels.affine.copy()
    affine[:3, :3] *= [(n - 1) / (m - 1) for n, m in zip(labels.shape, counts, strict=True)]
    return Volume(data, affine)


def _distance_to(mask: np.ndarray, step: float | np.ndarray) -> np.ndarray:
    """Compute the distance in mm to a mask, float32; 999 if it is empty."""
    if not mask.any():
        return np.full(mask.shape, 999, np.float32)
    steps = np.broadcast_to(step, 3)
    return ndimage.distance_transform_edt(~mask, sampling=steps).astype(np.float32)


def _add_perivascular_spaces(
    maps: dict, labels: Volume, rng: np.random.Generator, constants: dict,
    crowd: tuple[int, tuple[int, ...]],
) -> None:  # fmt: skip
    """Add tubes of fluid, under 1.5 mm wide, in white matter and the base of the lentiform nucleus.

    A voxel takes the share of fluid that the tubes fill of it. ``crowd`` is their number and the
    codes in which they begin.
    """
    coarse = _downsample(labels, 2.5)
    count, codes = crowd
    sites = np.argwhere(np.isin(coarse.data, codes))
    if not len(sites):
        return
    starts = coarse.world(sites[rng.integers(len(sites), size=count)])
    centre = starts.mean(axis=0)
    ways = starts - centre + 12 * rng.standard_normal(starts.shape)  # towards the cortex
    ways /= np.linalg.norm(ways, axis=1, keepdims=True)
    fluid = np.zeros(labels.data.size, np.float32)
    for start, way in zip(starts, ways, strict=True):
        radius, length = rng.uniform(0.25, 0.7), rng.uniform(3, 14)
        points = start + np.arange(0, length, 0.25)[:, None] * way
        voxels, inside = labels.nearest_voxels(points + 0.15 * rng.standard_normal(points.shape))
        flat = np.ravel_multi_index(tuple(voxels[inside].T), labels.shape)
        np.add.at(fluid, flat, np.pi * radius**2 * 0.25 / labels.voxel_volume)
    filled = np.flatnonzero(fluid)
    filled = filled[np.isin(labels.data.ravel()[filled], (2, 41, 12, 51, 13, 52))]
    share = np.minimum(fluid[filled], 1)
    for name, values in constants.items():
        flat = maps[name].reshape(-1)
        flat[filled] += share * (values[TISSUES.index("csf")] - flat[filled])
