"""From k-space to images: each slice with and without its microbleeds."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bids_cmb.simulation.acquisition import AcquisitionModel
from bids_cmb.simulation.background import WHITE_MATTER_INTENSITY
from bids_cmb.simulation.kspace import (
    from_kspace,
    ghost_phase,
    high_pass_phase,
    make_swi,
    thermal_noise,
    to_kspace,
    tukey_window,
)
from bids_cmb.simulation.noise import coil_bias
from bids_cmb.simulation.slice_sampling import sum_background_slices
from bids_cmb.simulation.source_effects import Effect, group_by_slice

MIN_REFERENCE_SIGNAL = 0.25  # of white matter; the loss of darker tissue is relative to this


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
    lesions = group_by_slice([effect for effect in effects if effect.is_lesion], sampling)
    others = group_by_slice([effect for effect in effects if not effect.is_lesion], sampling)
    readout = _sample_readout(rng, acquisition)
    receive = _sample_receive_phase(rng, sampling.shape[:2])
    images = AcquiredImages(
        magnitude=np.empty(shape, np.float32),
        phase=np.empty(shape, np.float32) if with_phase else None,
        swi=np.empty(shape, np.float32) if weighted else None,
        loss=np.zeros(shape, np.float32),
    )
    planes = sum_background_slices(
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
    bend = coil_bias(rng, (*shape, 1), share=1.0)[..., 0] - 1
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
        return to_kspace(plane, self.window.shape) * self.window

    def corrupt(self, rng: np.random.Generator, spectrum: np.ndarray) -> np.ndarray:
        moved = spectrum * ghost_phase(rng, spectrum.shape[0], self.ghost)[:, None]
        return moved + thermal_noise(rng, self.window, self.noise)

    def reconstruct(self, spectrum: np.ndarray) -> np.ndarray:
        return from_kspace(spectrum.astype(np.complex64), self.size)

    def display(self, spectrum: np.ndarray) -> np.ndarray:
        image = self.reconstruct(spectrum)
        if not self.weighted:
            return np.abs(image)
        # Phase is counted forwards here; handedness is a matter of what is written down.
        phase = high_pass_phase(image, spectrum, self.lines)
        return make_swi(np.abs(image), phase, phase_sign=1)


def _sample_readout(rng: np.random.Generator, acquisition: AcquisitionModel) -> _Readout:
    size = acquisition.grid.shape[:2]
    measured = tuple(n // acquisition.protocol.interpolation for n in size)
    restless = rng.random() < 0.15
    return _Readout(
        window=tukey_window(measured, rng.uniform(0.05, 0.6)),
        size=size,
        noise=WHITE_MATTER_INTENSITY / acquisition.snr,
        ghost=float(rng.uniform(0.15, 0.5) if restless else rng.uniform(0, 0.08)),
        lines=int(rng.integers(32, 65)),
        weighted=acquisition.protocol.contrast == "swi",
    )
