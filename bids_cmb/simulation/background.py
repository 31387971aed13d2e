"""Signal and field of the tissues, before any source: texture, folia, dura, bone, air and shim."""

import numpy as np
from scipy import ndimage

from bids_cmb.imaging.volume import Volume
from bids_cmb.simulation.geometry import BRAINSTEM, HeadGeometry
from bids_cmb.simulation.noise import smooth_noise
from bids_cmb.simulation.physics import dipole_field
from bids_cmb.simulation.tissue_properties import CSF, VENTRICLES, is_brain

WHITE_MATTER_INTENSITY = 300.0  # intensity of white matter in a scan, about as scanners have it
TISSUE_GRID_MM, FIELD_GRID_MM = 1.0, 2.0  # of the tissues, and of the field of bone and air
AIR_PPM = 9.2
# mm to least and most share of the signal, by eye and by the local variance of real white matter
TEXTURE_AMPLITUDES = {1.5: (0.01, 0.05), 3.0: (0.01, 0.04), 7.0: (0.01, 0.04), 18.0: (0.01, 0.04)}
CEREBELLAR_CORTEX = (8, 47)
DURA_REACH_MM = 12.0  # mm; further from the brain the fluid has no sheet of dura in its middle


def add_texture(rng: np.random.Generator, signal: np.ndarray, labels: Volume) -> None:
    """Add texture to the brain at several scales, as fibres, myelin and capillaries do."""
    rough = np.ones(labels.shape, np.float32)
    for width_mm, (least, most) in TEXTURE_AMPLITUDES.items():
        amount = np.exp(rng.uniform(np.log(least), np.log(most)))
        rough += amount * smooth_noise(rng, labels.shape, width_mm / TISSUE_GRID_MM)
    inside = is_brain(labels.data)
    signal[inside] *= rough[inside]


def add_cerebellar_folia(rng: np.random.Generator, signal: np.ndarray, labels: Volume) -> None:
    """Add the fluid between the folia, which label maps leave out, to the signal."""
    cortex = np.isin(labels.data, CEREBELLAR_CORTEX)
    stem, wet = labels.data == BRAINSTEM, np.isin(labels.data, VENTRICLES)
    if not (cortex.any() and stem.any() and wet.any()):
        return
    (box,) = ndimage.find_objects(cortex.view(np.uint8))
    index = np.argwhere(cortex)
    away = labels.world(index) - labels.world(np.argwhere(stem).mean(axis=0))
    away = np.hypot(*away[:, :2].T) + 0.3 * away[:, 2]  # steep, so that thick slices show them
    rough = smooth_noise(rng, cortex[box].shape, 8.0 / TISSUE_GRID_MM)[cortex[box]]
    width = rng.uniform(3.0, 4.5) * (1 + 0.15 * rough)
    ridge = np.cos(2 * np.pi * (away + 1.5 * rough) / width)
    share = rng.uniform(0.3, 0.7) * np.clip((ridge - 0.3) / 0.7, 0, 1)
    signal[cortex] += share * (np.median(signal[wet]) - signal[cortex])


def add_dura(
    rng: np.random.Generator, signal: np.ndarray, labels: Volume, geometry: HeadGeometry
) -> None:
    """Darken the fluid at falx and tentorium, half-way between what they separate."""
    codes = geometry.codes
    sides = [
        ndimage.distance_transform_edt(~np.isin(codes.data, side)) * codes.spacing[0]
        for side in ((2, 3), (41, 42))
    ]
    falx = np.where(np.minimum(*sides) < DURA_REACH_MM, sides[0] - sides[1], 99)
    tent = np.where(
        np.abs(geometry.tentorium_distance.data) < DURA_REACH_MM,
        geometry.tentorium_distance.data,
        99,
    )
    fluid = np.flatnonzero(labels.data == CSF)
    world = labels.world(np.column_stack(np.unravel_index(fluid, labels.shape)))
    index = codes.index(world).T
    for midline in (falx, tent):
        distance = ndimage.map_coordinates(midline.astype(np.float32), index, order=1, cval=99) / 2
        width = rng.uniform(0.4, 0.8)
        signal.reshape(-1)[fluid] *= 1 - rng.uniform(0.6, 0.9) * np.exp(-((distance / width) ** 2))


def compute_field(labels: Volume, chi: np.ndarray) -> Volume:
    """Compute the field of tissue, bone and air in ppm on a coarse grid after shimming."""
    step = round(FIELD_GRID_MM / TISSUE_GRID_MM)
    count = np.array(chi.shape) // step
    blocks = chi[tuple(slice(n) for n in count * step)].reshape(
        np.column_stack([count, np.full(3, step)]).ravel()
    )
    affine = labels.affine @ np.diag([step, step, step, 1])
    affine[:3, 3] = labels.world(np.full(3, (step - 1) / 2))
    coarse = Volume(blocks.mean(axis=(1, 3, 5)) - AIR_PPM, affine)
    field = dipole_field(coarse)
    brain = is_brain(labels.data[tuple(slice(0, n * step, step) for n in count)])
    return Volume(_shim(field, brain).astype(np.float32), affine)


def _shim(field: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """Subtract the second-order surface that fits a field best in the brain."""
    axes = [np.linspace(-1, 1, n, dtype=np.float32) for n in field.shape]
    x, y, z = np.meshgrid(*axes, indexing="ij", sparse=True)
    terms = [x**0, x, y, z, x * y, x * z, y * z, x * x, y * y, z * z]
    table = np.stack([np.broadcast_to(term, field.shape)[brain] for term in terms], axis=1)
    weights, *_ = np.linalg.lstsq(table, field[brain], rcond=None)
    return field - sum(weight * term for weight, term in zip(weights, terms, strict=True))
