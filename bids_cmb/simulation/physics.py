"""MR physics of tissue: phase of a field, spoiled gradient echo, field of susceptibility.

No anatomy and no files here. Lengths are mm, susceptibilities ppm, fields ppm of B0, which points
along +z of the world.
"""

import numpy as np
from scipy import fft

from bids_cmb.imaging.volume import Volume

GYROMAGNETIC_MHZ_PER_T = 42.577  # MHz/T, of the proton, over 2 pi


def phase_per_ppm(*, field_t: float, echo_time_s: float) -> float:
    """Compute the phase in rad of 1 ppm at the echo, 2π·γ·B0·TE; 16.05 at 3 T and 20 ms."""
    return 2 * np.pi * GYROMAGNETIC_MHZ_PER_T * field_t * echo_time_s


def spoiled_signal(
    density: float, t1_s: float, r2star: float, *, echo_time_s: float, repetition_time_s: float,
    flip_deg: float,
) -> float:  # fmt: skip
    """Compute the steady-state magnitude of a spoiled gradient echo (Ernst equation).

    M = PD · sin α · (1 - E1) / (1 - E1 · cos α) · exp(-TE · R2*), with E1 = exp(-TR / T1).

    Args:
        density: Of protons, 1 for water; arrays work too, here and in the next two.
        t1_s: s.
        r2star: 1/s.
        echo_time_s: s.
        repetition_time_s: s.
        flip_deg: Degrees.
    """
    flip = np.radians(flip_deg)
    recovered = np.exp(-repetition_time_s / t1_s)
    steady = np.sin(flip) * (1 - recovered) / (1 - np.cos(flip) * recovered)
    return density * steady * np.exp(-echo_time_s * r2star)


def dipole_field(chi: Volume) -> np.ndarray:
    """Compute the field of a susceptibility map along B0, whatever the orientation of its grid.

    Args:
        chi: ppm relative to what lies around the map, (X, Y, Z).

    Returns:
        ppm of B0, float32, (X, Y, Z), with the Lorentz sphere removed: 0 in a sphere.

    Source:
        Marques & Bowtell 2005, doi:10.1002/cmr.b.20034.
    """
    padded = tuple(fft.next_fast_len(2 * size, real=True) for size in chi.shape)
    spectrum = fft.rfftn(chi.data.astype(np.float32, copy=False), padded)
    spectrum *= _dipole(chi.affine, padded)
    field = fft.irfftn(spectrum, padded)
    return field[tuple(map(slice, chi.shape))]


def _dipole(affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Compute 1/3 - kz²/k² with kz along B0, half spectrum, float32; 0 where k is 0."""
    steps = [*map(fft.fftfreq, shape[:2]), fft.rfftfreq(shape[2])]
    steps = np.meshgrid(*(step.astype(np.float32) for step in steps), indexing="ij", sparse=True)
    # An index frequency f belongs to the world frequency inv(A)' f, of sheared grids too.
    turn = np.linalg.inv(affine[:3, :3]).T.astype(np.float32)
    kx, ky, kz = (sum(turn[row, axis] * steps[axis] for axis in range(3)) for row in range(3))
    square = kx**2 + ky**2 + kz**2
    square[0, 0, 0] = 1
    kernel = np.float32(1 / 3) - kz**2 / square
    kernel[0, 0, 0] = 0
    return kernel
