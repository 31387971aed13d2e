"""Acquisition simulator: place slices through a head, scan it with and without its microbleeds."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from nibabel.affines import from_matvec
from nibabel.eulerangles import euler2mat
from scipy import ndimage

from bids_cmb.anatomy.labels import SULCUS_HALF_WIDTH_MM
from bids_cmb.imaging.resampling import resample
from bids_cmb.imaging.volume import Volume
from bids_cmb.simulation import physics
from bids_cmb.simulation.geometry import BRAINSTEM, HeadGeometry
from bids_cmb.simulation.protocols import Protocol
from bids_cmb.simulation.sources import MICROBLEED, SusceptibilitySource
from bids_cmb.simulation.tissue_properties import CSF, VENTRICLES, TissueMaps, is_brain

FIELD_OF_VIEW_MM = 230.0  # mm, in the slice
WHITE_MATTER_INTENSITY = 300.0  # intensity of white matter in a scan, about as scanners have it
MIN_REFERENCE_SIGNAL = 0.25  # of white matter; the loss of darker tissue is relative to this
TISSUE_GRID_MM, FIELD_GRID_MM = 1.0, 2.0  # of the tissues, and of the field of bone and air
TISSUE_EXTENT_MM = np.array(
    [98.0, 122.0, 112.0]
)  # mm from the brain's centre to the end of the tissues
OVERSAMPLED_FROM_MM = 0.75  # larger pixels are summed from twice as many, so that edges ring
AIR_PPM = 9.2
# mm to least and most share of the signal, by eye and by the local variance of real white matter
TEXTURE_AMPLITUDES = {1.5: (0.01, 0.05), 3.0: (0.01, 0.04), 7.0: (0.01, 0.04), 18.0: (0.01, 0.04)}
CEREBELLAR_CORTEX = (8, 47)
MAX_MISALIGNMENT_DEG = 4.0  # by which slices are laid askew
DEPTH_OFFSET_MM = 99.0
DURA_REACH_MM = 12.0  # mm; further from the brain the fluid has no sheet of dura in its middle


def define_tissue_grid(reach: np.ndarray) -> tuple[np.ndarray, tuple[int, int, int]]:
    """Define a grid of the tissues around the origin of the world: affine and shape."""
    shape = tuple((2 * reach / TISSUE_GRID_MM).astype(int))
    return from_matvec(
        np.eye(3) * TISSUE_GRID_MM, -(np.array(shape) - 1) / 2 * TISSUE_GRID_MM
    ), shape


def define_scan_grid(
    rng: np.random.Generator,
    geometry: HeadGeometry,
    protocol: Protocol,
    window_mm: Sequence[float] | None,
) -> Volume:
    """Define the grid of the scan, LAS and oblique, from below the brain to above it."""
    # Slices follow the head, but for some degrees, and lean to the front or back.
    lean = rng.uniform(-1, 1, 3) * np.radians(
        [protocol.tilt_deg, MAX_MISALIGNMENT_DEG, MAX_MISALIGNMENT_DEG]
    )
    turn = geometry.axes.T @ euler2mat(x=lean[0], y=lean[1], z=lean[2])
    codes = geometry.codes
    brain = codes.world(np.argwhere(is_brain(codes.data)))
    along = brain @ turn
    low, high = along.min(axis=0), along.max(axis=0)
    middle, size = (low + high) / 2, np.full(3, FIELD_OF_VIEW_MM)
    # A technician cuts some of the cerebellum off, or wastes some slices on the neck.
    low[2] -= np.clip(rng.normal(2, 5), -6, 15)
    high[2] += np.clip(rng.normal(6, 4), 0, 15)
    middle[2], size[2] = (low[2] + high[2]) / 2, high[2] - low[2]
    middle[:2] += rng.uniform(-4, 4, 2)
    if window_mm is not None:
        middle, size = np.zeros(3), np.minimum(size, window_mm)
    shape = tuple(2 * np.ceil(size / protocol.spacing / [2, 2, 1]).astype(int) // [1, 1, 2])
    matrix = turn @ np.diag(np.array([-1, 1, 1]) * protocol.spacing)
    affine = from_matvec(matrix, turn @ middle - matrix @ ((np.array(shape) - 1) / 2))
    return Volume(np.empty(shape, np.uint8), affine)


@dataclass(frozen=True, eq=False)
class AcquisitionModel:
    """Hold what a scanner acquires and how.

    Attributes:
        labels: Codes, at 1 mm.
        signal: Magnitude at the echo before any dephasing, white matter `WHITE_MATTER_INTENSITY`,
            at 1 mm.
        field: ppm of B0 after shimming, at 2 mm.
        grid: Of the scan; its data mean nothing.
        sampling: Pixels and slices that the signal is summed in.
        protocol: The acquisition protocol.
        rad_per_ppm: Of the phase at the echo.
        snr: Of white matter.
        phase_sign: 1 if the phase turns forwards in a higher field, -1 if backwards.
    """

    labels: Volume
    signal: Volume
    field: Volume
    grid: Volume
    sampling: physics.Sampling
    protocol: Protocol
    rad_per_ppm: float
    snr: float
    phase_sign: int

    @property
    def oversampling(self) -> np.ndarray:
        """Pixels of the sampling for one of the scan, along each axis."""
        return np.array(self.sampling.shape) // self.grid.shape


def prepare_acquisition(
    rng: np.random.Generator,
    head: tuple[Volume, HeadGeometry],
    maps: TissueMaps,
    protocol: Protocol,
    grid: Volume,
) -> AcquisitionModel:
    """Compute the signal and field of the tissues, and the sampling of the scan.

    Args:
        rng: Source of chance.
        head: Labels at 1 mm and their geometry.
        maps: Tissue properties on the grid of the labels.
        protocol: The acquisition protocol.
        grid: Of the scan, from `define_scan_grid`.
    """
    labels, geometry = head
    signal = physics.spoiled_signal(
        maps.pd, maps.t1_s, maps.r2star_hz, echo_time_s=protocol.echo_time_s,
        repetition_time_s=protocol.repetition_time_s, flip_deg=protocol.flip_deg,
    )  # fmt: skip
    white = np.isin(labels.data, (2, 41))
    signal *= WHITE_MATTER_INTENSITY / np.median(signal[white])
    _add_texture(rng, signal, labels)
    _add_cerebellar_folia(rng, signal, labels)
    _add_dura(rng, signal, labels, geometry)
    signal *= physics.coil_bias(rng, labels.shape, share=rng.uniform(0.05, 0.2))
    finer = 2 if protocol.interpolation == 1 and protocol.spacing[0] >= OVERSAMPLED_FROM_MM else 1
    shape = (grid.shape[0] * finer, grid.shape[1] * finer, grid.shape[2])
    affine = grid.affine @ np.diag([1 / finer, 1 / finer, 1, 1])
    sequence = {"field_t": protocol.field_t, "echo_time_s": protocol.echo_time_s}
    return AcquisitionModel(
        labels=labels,
        signal=Volume(signal.astype(np.float32), labels.affine),
        field=_compute_field(labels, maps.chi_ppm),
        grid=grid,
        sampling=physics.Sampling(affine, shape, protocol.thickness, protocol.kind),
        protocol=protocol,
        rad_per_ppm=physics.phase_per_ppm(**sequence),
        snr=float(rng.uniform(*protocol.snr)),
        phase_sign=int(rng.choice([-1, 1])),
    )


def _add_texture(rng: np.random.Generator, signal: np.ndarray, labels: Volume) -> None:
    """Add texture to the brain at several scales, as fibres, myelin and capillaries do."""
    rough = np.ones(labels.shape, np.float32)
    for width_mm, (least, most) in TEXTURE_AMPLITUDES.items():
        amount = np.exp(rng.uniform(np.log(least), np.log(most)))
        rough += amount * physics.smooth_noise(rng, labels.shape, width_mm / TISSUE_GRID_MM)
    inside = is_brain(labels.data)
    signal[inside] *= rough[inside]


def _add_cerebellar_folia(rng: np.random.Generator, signal: np.ndarray, labels: Volume) -> None:
    """Add the fluid between the folia, which label maps leave out, to the signal."""
    cortex = np.isin(labels.data, CEREBELLAR_CORTEX)
    stem, wet = labels.data == BRAINSTEM, np.isin(labels.data, VENTRICLES)
    if not (cortex.any() and stem.any() and wet.any()):
        return
    (box,) = ndimage.find_objects(cortex.view(np.uint8))
    index = np.argwhere(cortex)
    away = labels.world(index) - labels.world(np.argwhere(stem).mean(axis=0))
    away = np.hypot(*away[:, :2].T) + 0.3 * away[:, 2]  # steep, so that thick slices show them
    rough = physics.smooth_noise(rng, cortex[box].shape, 8.0 / TISSUE_GRID_MM)[cortex[box]]
    width = rng.uniform(3.0, 4.5) * (1 + 0.15 * rough)
    ridge = np.cos(2 * np.pi * (away + 1.5 * rough) / width)
    share = rng.uniform(0.3, 0.7) * np.clip((ridge - 0.3) / 0.7, 0, 1)
    signal[cortex] += share * (np.median(signal[wet]) - signal[cortex])


def _add_dura(
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


def _compute_field(labels: Volume, chi: np.ndarray) -> Volume:
    """Compute the field of tissue, bone and air in ppm on a coarse grid after shimming."""
    step = round(FIELD_GRID_MM / TISSUE_GRID_MM)
    count = np.array(chi.shape) // step
    blocks = chi[tuple(slice(n) for n in count * step)].reshape(
        np.column_stack([count, np.full(3, step)]).ravel()
    )
    affine = labels.affine @ np.diag([step, step, step, 1])
    affine[:3, 3] = labels.world(np.full(3, (step - 1) / 2))
    coarse = Volume(blocks.mean(axis=(1, 3, 5)) - AIR_PPM, affine)
    field = physics.dipole_field(coarse)
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


# --- What the sources do --------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Effect:
    """How one object changes the signal of the fine pixels it reaches.

    Attributes:
        object_id: Number of the object.
        is_lesion: Whether it is a microbleed.
        voxels: Flat indices, (V,).
        factor: Complex, (V,).
    """

    object_id: int
    is_lesion: bool
    voxels: np.ndarray
    factor: np.ndarray


def compute_effects(
    sources: Sequence[SusceptibilitySource], acquisition: AcquisitionModel
) -> list[Effect]:
    """Compute the effect of every object that reaches into the scan."""
    echo = acquisition.protocol.echo_time_s
    bodies: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {}
    kinds = {source.object_id: source.kind for source in sources}
    for source in sources:
        perturbation = physics.perturb_signal(
            source.points, source.radius, acquisition.sampling, rad_per_ppm=acquisition.rad_per_ppm,
            chi=source.susceptibility_ppm, water=source.spin_fraction,
            decay=echo * source.r2star_hz,
        )  # fmt: skip
        bodies.setdefault(source.object_id, []).append(perturbation)
    return [
        Effect(body, kinds[body] == MICROBLEED, *_multiply_factors(parts))
        for body, parts in bodies.items()
        if any(len(voxels) for voxels, _ in parts)
    ]


def _multiply_factors(parts: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Multiply the factors of several sources where they meet."""
    if len(parts) == 1:
        return parts[0]
    voxels, inverse = np.unique(
        np.concatenate([voxels for voxels, _ in parts]), return_inverse=True
    )
    factor = np.ones(len(voxels), np.complex64)
    np.multiply.at(factor, inverse, np.concatenate([factor for _, factor in parts]))
    return voxels, factor


def _group_by_slice(
    effects: Sequence[Effect], sampling: physics.Sampling
) -> list[tuple[np.ndarray, np.ndarray]]:
    """List for each slice the flat pixels with an effect, and the product of the factors."""
    count = sampling.shape[2]
    if not effects:
        return [(np.empty(0, int), np.empty(0, np.complex64))] * count
    voxels, factor = _multiply_factors(
        [(effect.voxels, effect.factor) for effect in effects]
        + [(np.empty(0, int), np.empty(0, np.complex64))]
    )
    pixels, slices = np.divmod(voxels, count)
    order = np.argsort(slices, kind="stable")
    ends = np.searchsorted(slices[order], np.arange(1, count))
    return list(
        zip(np.split(pixels[order], ends), np.split(factor[order], ends), strict=True)
    )  # fmt: skip


# --- Looking --------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class AcquiredImages:
    """The scan, and what its microbleeds cost it; float32 arrays on the grid.

    Attributes:
        magnitude: With noise and artefacts.
        phase: rad; None without ``with_phase``.
        swi: The susceptibility-weighted image; None without.
        loss: Share of the image a reader sees (magnitude or SWI) that is lost against a twin
            without microbleeds, both without noise, 0 to 1.
    """

    magnitude: np.ndarray
    phase: np.ndarray | None
    swi: np.ndarray | None
    loss: np.ndarray


def acquire(
    rng: np.random.Generator,
    acquisition: AcquisitionModel,
    effects: Sequence[Effect],
    *,
    with_phase: bool,
) -> AcquiredImages:
    """Acquire every slice of the person and of the twin without microbleeds."""
    shape, sampling = acquisition.grid.shape, acquisition.sampling
    weighted = acquisition.protocol.contrast == "swi"
    lesions = _group_by_slice([effect for effect in effects if effect.is_lesion], sampling)
    others = _group_by_slice([effect for effect in effects if not effect.is_lesion], sampling)
    readout = _sample_readout(rng, acquisition)
    receive = _sample_receive_phase(rng, sampling.shape[:2])
    images = AcquiredImages(
        magnitude=np.empty(shape, np.float32),
        phase=np.empty(shape, np.float32) if with_phase else None,
        swi=np.empty(shape, np.float32) if weighted else None,
        loss=np.zeros(shape, np.float32),
    )
    planes = physics.sum_background_slices(
        acquisition.signal, acquisition.field, sampling, rad_per_ppm=acquisition.rad_per_ppm
    )
    for index, background in enumerate(planes):
        plane = background * receive
        plane.reshape(-1)[others[index][0]] *= others[index][1]
        clean = readout.encode(plane)
        if len(lesions[index][0]):
            twin = readout.display(clean)
            plane.reshape(-1)[lesions[index][0]] *= lesions[index][1]
            clean = readout.encode(plane)
            images.loss[..., index] = (twin - readout.display(clean)) / np.maximum(
                twin, MIN_REFERENCE_SIGNAL * WHITE_MATTER_INTENSITY
            )
        _store_slice(images, index, readout, readout.corrupt(rng, clean), acquisition.phase_sign)
    return images


def _store_slice(
    images: AcquiredImages, index: int, readout: "_Readout", spectrum: np.ndarray, phase_sign: int
) -> None:
    """Store one measured slice in the images."""
    image = readout.reconstruct(spectrum)
    images.magnitude[..., index] = np.abs(image)
    if images.phase is not None:
        images.phase[..., index] = np.angle(image) * phase_sign
    if images.swi is not None:
        images.swi[..., index] = readout.display(spectrum)


def _sample_receive_phase(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Sample smooth phase that coils add, a turn or so over the head; complex64, (X, Y)."""
    bend = physics.coil_bias(rng, (*shape, 1), share=1.0)[..., 0] - 1
    return np.exp(1j * rng.uniform(0.5, 4) * bend).astype(np.complex64)


@dataclass(frozen=True, eq=False)
class _Readout:
    """How k-space is measured and turned into an image.

    Attributes:
        window: Filter of k-space, (lines, lines) as measured.
        size: Pixels of the image.
        noise: Standard deviation in the image.
        ghost: rad, of lines that were measured while the head moved.
        lines: Of the high-pass filter of SWI.
        weighted: Whether SWI is shown.
    """

    window: np.ndarray
    size: tuple[int, int]
    noise: float
    ghost: float
    lines: int
    weighted: bool

    def encode(self, plane: np.ndarray) -> np.ndarray:
        return physics.to_kspace(plane, self.window.shape) * self.window

    def corrupt(self, rng: np.random.Generator, spectrum: np.ndarray) -> np.ndarray:
        moved = spectrum * physics.ghost_phase(rng, spectrum.shape[0], self.ghost)[:, None]
        return moved + physics.thermal_noise(rng, self.window, self.noise)

    def reconstruct(self, spectrum: np.ndarray) -> np.ndarray:
        return physics.from_kspace(spectrum.astype(np.complex64), self.size)

    def display(self, spectrum: np.ndarray) -> np.ndarray:
        image = self.reconstruct(spectrum)
        if not self.weighted:
            return np.abs(image)
        # Phase is counted forwards here; handedness is a matter of what is written down.
        phase = physics.high_pass_phase(image, spectrum, self.lines)
        return physics.swi(np.abs(image), phase, phase_sign=1)


def _sample_readout(rng: np.random.Generator, acquisition: AcquisitionModel) -> _Readout:
    size = acquisition.grid.shape[:2]
    measured = tuple(n // acquisition.protocol.interpolation for n in size)
    restless = rng.random() < 0.15
    return _Readout(
        window=physics.tukey_window(measured, rng.uniform(0.05, 0.6)),
        size=size,
        noise=WHITE_MATTER_INTENSITY / acquisition.snr,
        ghost=float(rng.uniform(0.15, 0.5) if restless else rng.uniform(0, 0.08)),
        lines=int(rng.integers(32, 65)),
        weighted=acquisition.protocol.contrast == "swi",
    )


# --- What is kept ---------------------------------------------------------------------------------


def make_brain_mask(acquisition: AcquisitionModel) -> Volume:
    """Make a mask of brain and ventricles with the narrow sulci between, on the scan's grid."""
    inside = is_brain(acquisition.labels.data).view(np.uint8)
    wide = round(2 * SULCUS_HALF_WIDTH_MM / TISSUE_GRID_MM) + 1
    closed = ndimage.minimum_filter(ndimage.maximum_filter(inside, wide), wide)
    closed = resample(
        Volume(closed, acquisition.labels.affine),
        acquisition.grid.affine,
        acquisition.grid.shape,
        order=0,
    )
    return Volume(closed.data > 0, acquisition.grid.affine)


def simulate_masking(
    rng: np.random.Generator, acquisition: AcquisitionModel, brain: Volume, masking: str
) -> np.ndarray:  # fmt: skip
    """Mask the scan: nothing, the face, or all but a careless brain mask.

    Args:
        rng: Source of chance.
        acquisition: Labels and grid.
        brain: From `make_brain_mask`.
        masking: ``whole``, ``masked`` (the face) or ``stripped``.

    Returns:
        Where the scan is not blank, bool, on the grid of the scan.
    """
    if masking == "whole":
        return np.ones(brain.shape, bool)
    if masking == "stripped":
        depth = _compute_depth(acquisition.labels)
        depth.data[:] += 0.7 * physics.smooth_noise(rng, depth.shape, tuple(15.0 / depth.spacing))
        # Beyond the tissues the depth is 0, which is outside whatever the mask.
        return resample(depth, brain.affine, brain.shape).data > DEPTH_OFFSET_MM + rng.uniform(
            -0.5, 2.5
        )
    wave = physics.smooth_noise(rng, brain.shape, tuple(15.0 / brain.spacing))
    y = np.arange(brain.shape[1])[:, None] * brain.spacing[1]
    z = np.arange(brain.shape[2]) * brain.spacing[2]
    inside = np.argwhere(brain.data)[::50] * brain.spacing
    front, floor = np.percentile(inside[:, 1], 99.5), np.percentile(inside[:, 2], 40)
    # What defaces an image cuts along a plane that leans forwards above the eyes.
    lean = np.where(z > floor, rng.uniform(0.8, 1.5), rng.uniform(0.3, 0.8))
    return (y < front + rng.uniform(2, 9) + lean * (z - floor) + 1.5 * wave) | brain.data


def _compute_depth(labels: Volume) -> Volume:
    """Compute the depth below the surface of the fluid plus `DEPTH_OFFSET_MM`, coarse, in mm."""
    step = round(FIELD_GRID_MM / TISSUE_GRID_MM)
    codes = labels.data[::step, ::step, ::step]
    inside = ndimage.binary_opening(is_brain(codes) | (codes == CSF))
    depth = ndimage.distance_transform_edt(inside) - ndimage.distance_transform_edt(~inside)
    affine = labels.affine @ np.diag([step, step, step, 1])
    return Volume((FIELD_GRID_MM * depth + DEPTH_OFFSET_MM).astype(np.float32), affine)
