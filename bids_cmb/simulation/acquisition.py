"""Acquisition: slices placed through a head, its signal and field, and the sampling of the scan."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from nibabel.affines import from_matvec
from nibabel.eulerangles import euler2mat

from bids_cmb.imaging.volume import Volume
from bids_cmb.simulation.background import (
    TISSUE_GRID_MM,
    WHITE_MATTER_INTENSITY,
    add_cerebellar_folia,
    add_dura,
    add_texture,
    compute_field,
)
from bids_cmb.simulation.geometry import HeadGeometry
from bids_cmb.simulation.noise import coil_bias
from bids_cmb.simulation.physics import phase_per_ppm, spoiled_signal
from bids_cmb.simulation.protocols import Protocol
from bids_cmb.simulation.slice_sampling import Sampling
from bids_cmb.simulation.tissue_properties import TissueMaps, is_brain

FIELD_OF_VIEW_MM = 230.0  # mm, in the slice
TISSUE_EXTENT_MM = np.array(
    [98.0, 122.0, 112.0]
)  # mm from the brain's centre to the end of the tissues
OVERSAMPLED_FROM_MM = 0.75  # larger pixels are summed from twice as many, so that edges ring
MAX_MISALIGNMENT_DEG = 4.0  # by which slices are laid askew


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
    sampling: Sampling
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
    tissue_rng: np.random.Generator | None = None,
) -> AcquisitionModel:
    """Compute the signal and field of the tissues, and the sampling of the scan.

    Args:
        rng: Source of chance, of the scanner's.
        head: Labels at 1 mm and their geometry.
        maps: Tissue properties on the grid of the labels.
        protocol: The acquisition protocol.
        grid: Of the scan, from `define_scan_grid`.
        tissue_rng: Source of what belongs to the head, so that it is the same in every session;
            ``rng`` without.
    """
    labels, geometry = head
    tissue_rng = rng if tissue_rng is None else tissue_rng
    signal = spoiled_signal(
        maps.pd, maps.t1_s, maps.r2star_hz, echo_time_s=protocol.echo_time_s,
        repetition_time_s=protocol.repetition_time_s, flip_deg=protocol.flip_deg,
    )  # fmt: skip
    white = np.isin(labels.data, (2, 41))
    signal *= WHITE_MATTER_INTENSITY / np.median(signal[white])
    add_texture(tissue_rng, signal, labels)
    add_cerebellar_folia(tissue_rng, signal, labels)
    add_dura(tissue_rng, signal, labels, geometry)
    signal *= coil_bias(rng, labels.shape, share=rng.uniform(0.05, 0.2))
    finer = 2 if protocol.interpolation == 1 and protocol.spacing[0] >= OVERSAMPLED_FROM_MM else 1
    shape = (grid.shape[0] * finer, grid.shape[1] * finer, grid.shape[2])
    affine = grid.affine @ np.diag([1 / finer, 1 / finer, 1, 1])
    sequence = {"field_t": protocol.field_t, "echo_time_s": protocol.echo_time_s}
    return AcquisitionModel(
        labels=labels,
        signal=Volume(signal.astype(np.float32), labels.affine),
        field=compute_field(labels, maps.chi_ppm),
        grid=grid,
        sampling=Sampling(affine, shape, protocol.thickness, protocol.kind),
        protocol=protocol,
        rad_per_ppm=phase_per_ppm(**sequence),
        snr=float(rng.uniform(*protocol.snr)),
        phase_sign=int(rng.choice([-1, 1])),
    )
