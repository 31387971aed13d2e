"""A scanner: lays slices through a head, and sees it with and without its microbleeds."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from nibabel.affines import from_matvec
from nibabel.eulerangles import euler2mat
from scipy import ndimage

from bids_cmb.anatomy.labels import SULCUS_HALF_WIDTH_MM
from bids_cmb.imaging.volume import Volume, resample
from bids_cmb.simulation import physics
from bids_cmb.simulation.geometry import BRAINSTEM, Terrain
from bids_cmb.simulation.protocols import Protocol
from bids_cmb.simulation.sources import MICROBLEED, Source
from bids_cmb.simulation.tissue_properties import CSF, VENTRICLES, TissueMaps, is_brain

FIELD_OF_VIEW = 230.0  # mm, in the slice
WHITE = 300.0  # intensity of white matter in a scan, about as scanners have it
DARK = 0.25  # of white matter: the loss of what is darker already is measured against this
HEAD_MM, COARSE_MM = 1.0, 2.0  # of the tissues, and of the field of bone and air
REACH = np.array([98.0, 122.0, 112.0])  # mm from the brain's centre to the end of the tissues
DOUBLED_FROM = 0.75  # mm; pixels from here on are summed from twice as many, so that edges ring
AIR_PPM = 9.2
# mm to least and most share of the signal, by eye and by the local variance of real white matter
ROUGH = {1.5: (0.01, 0.05), 3.0: (0.01, 0.04), 7.0: (0.01, 0.04), 18.0: (0.01, 0.04)}
CEREBELLAR_CORTEX = (8, 47)
CARELESS_DEG = 4.0  # by which slices are laid askew
OUTSIDE_MM = 99.0
DURA_REACH = 12.0  # mm; further from the brain the fluid has no sheet of dura in its middle


def tissue_box(reach: np.ndarray) -> tuple[np.ndarray, tuple[int, int, int]]:
    """A grid of the tissues around the origin of the world: affine and shape."""
    shape = tuple((2 * reach / HEAD_MM).astype(int))
    return from_matvec(np.eye(3) * HEAD_MM, -(np.array(shape) - 1) / 2 * HEAD_MM), shape


def lay_grid(
    rng: np.random.Generator,
    terrain: Terrain,
    protocol: Protocol,
    window_mm: Sequence[float] | None,
) -> Volume:
    """The empty grid of the scan, LAS and oblique, from below the brain to above it."""
    # Slices follow the head, but for some degrees, and lean to the front or back.
    lean = rng.uniform(-1, 1, 3) * np.radians([protocol.tilt_deg, CARELESS_DEG, CARELESS_DEG])
    turn = terrain.axes.T @ euler2mat(x=lean[0], y=lean[1], z=lean[2])
    codes = terrain.codes
    brain = codes.world(np.argwhere(is_brain(codes.data)))
    along = brain @ turn
    low, high = along.min(axis=0), along.max(axis=0)
    middle, size = (low + high) / 2, np.full(3, FIELD_OF_VIEW)
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
class Scene:
    """What a scanner sees and how it looks.

    Attributes:
        labels: Codes, at 1 mm.
        signal: Magnitude at the echo before any dephasing, white matter `WHITE`, at 1 mm.
        field: ppm of B0 after shimming, at 2 mm.
        grid: Of the scan; its data mean nothing.
        sampling: Pixels and slices that the signal is summed in.
        protocol: As asked for.
        rad_per_ppm: Of the phase at the echo.
        snr: Of white matter.
        handed: Which way the phase turns, 1 or -1.
    """

    labels: Volume
    signal: Volume
    field: Volume
    grid: Volume
    sampling: physics.Sampling
    protocol: Protocol
    rad_per_ppm: float
    snr: float
    handed: int

    @property
    def finer(self) -> np.ndarray:
        """Pixels of the sampling for one of the scan, along each axis."""
        return np.array(self.sampling.shape) // self.grid.shape


def set_scene(
    rng: np.random.Generator,
    seen: tuple[Volume, Terrain],
    maps: TissueMaps,
    protocol: Protocol,
    grid: Volume,
) -> Scene:
    """Tissues at a field and a time, and the pixels they will be seen through."""
    labels, terrain = seen
    signal = physics.spoiled_signal(
        maps.pd, maps.t1_s, maps.r2star_hz, echo_time_s=protocol.echo_time_s,
        repetition_time_s=protocol.repetition_time_s, flip_deg=protocol.flip_deg,
    )  # fmt: skip
    white = np.isin(labels.data, (2, 41))
    signal *= WHITE / np.median(signal[white])
    _roughen(rng, signal, labels)
    _fold_cerebellum(rng, signal, labels)
    _stretch_dura(rng, signal, labels, terrain)
    signal *= physics.coil_bias(rng, labels.shape, share=rng.uniform(0.05, 0.2))
    finer = 2 if protocol.interpolation == 1 and protocol.spacing[0] >= DOUBLED_FROM else 1
    shape = (grid.shape[0] * finer, grid.shape[1] * finer, grid.shape[2])
    affine = grid.affine @ np.diag([1 / finer, 1 / finer, 1, 1])
    known = {"field_t": protocol.field_t, "echo_time_s": protocol.echo_time_s}
    return Scene(
        labels=labels,
        signal=Volume(signal.astype(np.float32), labels.affine),
        field=_field(labels, maps.chi_ppm),
        grid=grid,
        sampling=physics.Sampling(affine, shape, protocol.thickness, protocol.kind),
        protocol=protocol,
        rad_per_ppm=physics.phase_per_ppm(**known),
        snr=float(rng.uniform(*protocol.snr)),
        handed=int(rng.choice([-1, 1])),
    )


def _roughen(rng: np.random.Generator, signal: np.ndarray, labels: Volume) -> None:
    """Mottle the brain at several scales, as fibres, myelin and capillaries do."""
    rough = np.ones(labels.shape, np.float32)
    for width_mm, (least, most) in ROUGH.items():
        amount = np.exp(rng.uniform(np.log(least), np.log(most)))
        rough += amount * physics.smooth_noise(rng, labels.shape, width_mm / HEAD_MM)
    inside = is_brain(labels.data)
    signal[inside] *= rough[inside]


def _fold_cerebellum(rng: np.random.Generator, signal: np.ndarray, labels: Volume) -> None:
    """Draw the fluid between the folia, which label maps leave out, into the signal."""
    cortex = np.isin(labels.data, CEREBELLAR_CORTEX)
    stem, wet = labels.data == BRAINSTEM, np.isin(labels.data, VENTRICLES)
    if not (cortex.any() and stem.any() and wet.any()):
        return
    (box,) = ndimage.find_objects(cortex.view(np.uint8))
    index = np.argwhere(cortex)
    away = labels.world(index) - labels.world(np.argwhere(stem).mean(axis=0))
    away = np.hypot(*away[:, :2].T) + 0.3 * away[:, 2]  # steep, so that thick slices show them
    rough = physics.smooth_noise(rng, cortex[box].shape, 8.0 / HEAD_MM)[cortex[box]]
    width = rng.uniform(3.0, 4.5) * (1 + 0.15 * rough)
    ridge = np.cos(2 * np.pi * (away + 1.5 * rough) / width)
    share = rng.uniform(0.3, 0.7) * np.clip((ridge - 0.3) / 0.7, 0, 1)
    signal[cortex] += share * (np.median(signal[wet]) - signal[cortex])


def _stretch_dura(
    rng: np.random.Generator, signal: np.ndarray, labels: Volume, terrain: Terrain
) -> None:
    """Darken the fluid where falx and tentorium are, half-way between what they keep apart."""
    codes = terrain.codes
    sides = [
        ndimage.distance_transform_edt(~np.isin(codes.data, side)) * codes.spacing[0]
        for side in ((2, 3), (41, 42))
    ]
    falx = np.where(np.minimum(*sides) < DURA_REACH, sides[0] - sides[1], 99)
    tent = np.where(np.abs(terrain.tentorium.data) < DURA_REACH, terrain.tentorium.data, 99)
    fluid = np.flatnonzero(labels.data == CSF)
    world = labels.world(np.column_stack(np.unravel_index(fluid, labels.shape)))
    at = codes.index(world).T
    for apart in (falx, tent):
        between = ndimage.map_coordinates(apart.astype(np.float32), at, order=1, cval=99) / 2
        thick = rng.uniform(0.4, 0.8)
        signal.reshape(-1)[fluid] *= 1 - rng.uniform(0.6, 0.9) * np.exp(-((between / thick) ** 2))


def _field(labels: Volume, chi: np.ndarray) -> Volume:
    """Field of tissue, bone and air in ppm on a coarse grid, as a scanner leaves it: shimmed."""
    step = round(COARSE_MM / HEAD_MM)
    count = np.array(chi.shape) // step
    blocks = chi[tuple(slice(n) for n in count * step)].reshape(
        np.column_stack([count, np.full(3, step)]).ravel()
    )
    affine = labels.affine @ np.diag([step, step, step, 1])
    affine[:3, 3] = labels.world(np.full(3, (step - 1) / 2))
    coarse = Volume(blocks.mean(axis=(1, 3, 5)) - AIR_PPM, affine)
    seen = physics.dipole_field(coarse)
    brain = is_brain(labels.data[tuple(slice(0, n * step, step) for n in count)])
    return Volume(_shimmed(seen, brain).astype(np.float32), affine)


def _shimmed(seen: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """A field without the second-order surface that fits it best in the brain."""
    axes = [np.linspace(-1, 1, n, dtype=np.float32) for n in seen.shape]
    x, y, z = np.meshgrid(*axes, indexing="ij", sparse=True)
    terms = [x**0, x, y, z, x * y, x * z, y * z, x * x, y * y, z * z]
    table = np.stack([np.broadcast_to(term, seen.shape)[brain] for term in terms], axis=1)
    weights, *_ = np.linalg.lstsq(table, seen[brain], rcond=None)
    return seen - sum(weight * term for weight, term in zip(weights, terms, strict=True))


# --- What the sources do --------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Effect:
    """What one body does to the fine pixels it reaches: flat indices and complex factors."""

    body: int
    lesion: bool
    voxels: np.ndarray
    factor: np.ndarray


def find_effects(sources: Sequence[Source], scene: Scene) -> list[Effect]:
    """The effect of every body that reaches into the scan."""
    echo = scene.protocol.echo_time_s
    bodies: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {}
    kinds = {source.body: source.kind for source in sources}
    for source in sources:
        found = physics.disturbance(
            source.points, source.radius, scene.sampling, rad_per_ppm=scene.rad_per_ppm,
            chi=source.chi, water=source.water, decay=echo * source.r2star,
        )  # fmt: skip
        bodies.setdefault(source.body, []).append(found)
    return [
        Effect(body, kinds[body] == MICROBLEED, *_product(parts))
        for body, parts in bodies.items()
        if any(len(voxels) for voxels, _ in parts)
    ]


def _product(parts: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Factors of several sources, multiplied where they meet."""
    if len(parts) == 1:
        return parts[0]
    voxels, at = np.unique(np.concatenate([voxels for voxels, _ in parts]), return_inverse=True)
    factor = np.ones(len(voxels), np.complex64)
    np.multiply.at(factor, at, np.concatenate([factor for _, factor in parts]))
    return voxels, factor


def _by_slice(
    effects: Sequence[Effect], sampling: physics.Sampling
) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each slice the flat pixels that some effect reaches, and the product of the factors."""
    count = sampling.shape[2]
    if not effects:
        return [(np.empty(0, int), np.empty(0, np.complex64))] * count
    voxels, factor = _product(
        [(effect.voxels, effect.factor) for effect in effects]
        + [(np.empty(0, int), np.empty(0, np.complex64))]
    )
    pixels, at = np.divmod(voxels, count)
    order = np.argsort(at, kind="stable")
    ends = np.searchsorted(at[order], np.arange(1, count))
    return list(
        zip(np.split(pixels[order], ends), np.split(factor[order], ends), strict=True)
    )  # fmt: skip


# --- Looking --------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Views:
    """The scan, and what its microbleeds cost it; float32 arrays on the grid.

    Attributes:
        magnitude: With noise and all.
        phase: rad; None if it was not asked for.
        swi: The susceptibility-weighted image; None without.
        loss: Share of what a reader sees (magnitude or SWI) that is lost against a twin without
            microbleeds, both without noise, 0 to 1.
    """

    magnitude: np.ndarray
    phase: np.ndarray | None
    swi: np.ndarray | None
    loss: np.ndarray


def look(
    rng: np.random.Generator, scene: Scene, effects: Sequence[Effect], *, with_phase: bool
) -> Views:
    """Look at every slice of the person and of the twin."""
    shape, sampling = scene.grid.shape, scene.sampling
    weighted = scene.protocol.contrast == "swi"
    lesions = _by_slice([effect for effect in effects if effect.lesion], sampling)
    others = _by_slice([effect for effect in effects if not effect.lesion], sampling)
    readout = _readout(rng, scene)
    receive = _receive_phase(rng, sampling.shape[:2])
    views = Views(
        magnitude=np.empty(shape, np.float32),
        phase=np.empty(shape, np.float32) if with_phase else None,
        swi=np.empty(shape, np.float32) if weighted else None,
        loss=np.zeros(shape, np.float32),
    )
    planes = physics.backgrounds(scene.signal, scene.field, sampling, rad_per_ppm=scene.rad_per_ppm)
    for at, still in enumerate(planes):
        plane = still * receive
        plane.reshape(-1)[others[at][0]] *= others[at][1]
        clean = readout.measured(plane)
        if len(lesions[at][0]):
            twin = readout.shown(clean)
            plane.reshape(-1)[lesions[at][0]] *= lesions[at][1]
            clean = readout.measured(plane)
            views.loss[..., at] = (twin - readout.shown(clean)) / np.maximum(twin, DARK * WHITE)
        _keep(views, at, readout, readout.disturbed(rng, clean), scene.handed)
    return views


def _keep(views: Views, at: int, readout: "_Readout", spectrum: np.ndarray, handed: int) -> None:
    """Write one slice, as it was measured, into the views."""
    image = readout.image(spectrum)
    views.magnitude[..., at] = np.abs(image)
    if views.phase is not None:
        views.phase[..., at] = np.angle(image) * handed
    if views.swi is not None:
        views.swi[..., at] = readout.shown(spectrum)


def _receive_phase(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Smooth phase that coils add, a turn or so over the head; complex64, shape (X, Y)."""
    bend = physics.coil_bias(rng, (*shape, 1), share=1.0)[..., 0] - 1
    return np.exp(1j * rng.uniform(0.5, 4) * bend).astype(np.complex64)


@dataclass(frozen=True, eq=False)
class _Readout:
    """How k-space is measured and turned into an image.

    Attributes:
        window: Filter of k-space, shape (lines, lines) as measured.
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

    def measured(self, plane: np.ndarray) -> np.ndarray:
        return physics.to_kspace(plane, self.window.shape) * self.window

    def disturbed(self, rng: np.random.Generator, spectrum: np.ndarray) -> np.ndarray:
        moved = spectrum * physics.ghost_phase(rng, spectrum.shape[0], self.ghost)[:, None]
        return moved + physics.thermal_noise(rng, self.window, self.noise)

    def image(self, spectrum: np.ndarray) -> np.ndarray:
        return physics.from_kspace(spectrum.astype(np.complex64), self.size)

    def shown(self, spectrum: np.ndarray) -> np.ndarray:
        image = self.image(spectrum)
        if not self.weighted:
            return np.abs(image)
        # Phase is counted forwards here; handedness is a matter of what is written down.
        phase = physics.high_pass_phase(image, spectrum, self.lines)
        return physics.swi(np.abs(image), phase, handed=1)


def _readout(rng: np.random.Generator, scene: Scene) -> _Readout:
    size = scene.grid.shape[:2]
    measured = tuple(n // scene.protocol.interpolation for n in size)
    restless = rng.random() < 0.15
    return _Readout(
        window=physics.edge_window(measured, rng.uniform(0.05, 0.6)),
        size=size,
        noise=WHITE / scene.snr,
        ghost=float(rng.uniform(0.15, 0.5) if restless else rng.uniform(0, 0.08)),
        lines=int(rng.integers(32, 65)),
        weighted=scene.protocol.contrast == "swi",
    )


# --- What is kept ---------------------------------------------------------------------------------


def whole_brain(scene: Scene) -> Volume:
    """Brain and ventricles with the narrow sulci between, bool, on the grid of the scan."""
    inside = is_brain(scene.labels.data).view(np.uint8)
    wide = round(2 * SULCUS_HALF_WIDTH_MM / HEAD_MM) + 1
    closed = ndimage.minimum_filter(ndimage.maximum_filter(inside, wide), wide)
    closed = resample(
        Volume(closed, scene.labels.affine), scene.grid.affine, scene.grid.shape, order=0
    )
    return Volume(closed.data > 0, scene.grid.affine)


def undressed(
    rng: np.random.Generator, scene: Scene, brain: Volume, dress: str
) -> np.ndarray:  # fmt: skip
    """Where the scan is not blank: everywhere, without the face, or within a careless mask."""
    if dress == "whole":
        return np.ones(brain.shape, bool)
    if dress == "stripped":
        depth = _depth(scene.labels)
        depth.data[:] += 0.7 * physics.smooth_noise(rng, depth.shape, tuple(15.0 / depth.spacing))
        # Beyond the tissues the depth is 0, which is outside whatever the mask.
        return resample(depth, brain.affine, brain.shape).data > OUTSIDE_MM + rng.uniform(-0.5, 2.5)
    wave = physics.smooth_noise(rng, brain.shape, tuple(15.0 / brain.spacing))
    y = np.arange(brain.shape[1])[:, None] * brain.spacing[1]
    z = np.arange(brain.shape[2]) * brain.spacing[2]
    inside = np.argwhere(brain.data)[::50] * brain.spacing
    front, floor = np.percentile(inside[:, 1], 99.5), np.percentile(inside[:, 2], 40)
    # What defaces an image cuts along a plane that leans forwards above the eyes.
    lean = np.where(z > floor, rng.uniform(0.8, 1.5), rng.uniform(0.3, 0.8))
    return (y < front + rng.uniform(2, 9) + lean * (z - floor) + 1.5 * wave) | brain.data


def _depth(labels: Volume) -> Volume:
    """Depth below the surface of the fluid around the brain plus `OUTSIDE_MM`, coarse, in mm."""
    step = round(COARSE_MM / HEAD_MM)
    codes = labels.data[::step, ::step, ::step]
    inside = ndimage.binary_opening(is_brain(codes) | (codes == CSF))
    depth = ndimage.distance_transform_edt(inside) - ndimage.distance_transform_edt(~inside)
    affine = labels.affine @ np.diag([step, step, step, 1])
    return Volume((COARSE_MM * depth + OUTSIDE_MM).astype(np.float32), affine)
