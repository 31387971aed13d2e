"""K-space and what is made of it: windows, noise, ghosts, high-passed phase and SWI."""

import numpy as np
from scipy import fft


def to_kspace(image: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Transform a complex image (X, Y) and keep the ``shape`` in the middle of k-space."""
    spectrum = fft.fftshift(fft.fft2(image))
    return spectrum[_central_slices(spectrum.shape, shape)] * (np.prod(shape) / image.size)


def from_kspace(spectrum: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Reconstruct an image from k-space, zero-filled to ``shape``; the mean does not change."""
    filled = np.zeros(shape, spectrum.dtype)
    filled[_central_slices(shape, spectrum.shape)] = spectrum
    return fft.ifft2(fft.ifftshift(filled)) * (np.prod(shape) / spectrum.size)


def _central_slices(outer: tuple[int, ...], inner: tuple[int, ...]) -> tuple[slice, ...]:
    """Select the part of ``outer`` whose zero frequency stays where `fftshift` puts it."""
    starts = [large // 2 - small // 2 for large, small in zip(outer, inner, strict=True)]
    return tuple(slice(start, start + n) for start, n in zip(starts, inner, strict=True))


def tukey_window(shape: tuple[int, int], rolloff: float) -> np.ndarray:
    """Make a Tukey window over k-space against Gibbs ringing, 0 none, 1 a Hann window; float32."""

    def side(count: int) -> np.ndarray:
        out = np.abs(np.arange(count) - count // 2) / (count / 2)  # 0 in the middle, 1 at the edge
        down = np.clip((out - 1 + rolloff) / max(rolloff, 1e-9), 0, 1)
        return (0.5 + 0.5 * np.cos(np.pi * down)).astype(np.float32)

    return side(shape[0])[:, None] * side(shape[1])


def thermal_noise(
    rng: np.random.Generator, window: np.ndarray, deviation: float
) -> np.ndarray:  # fmt: skip
    """Sample complex noise in k-space, coloured by ``window`` as the signal is.

    Args:
        rng: Source of chance.
        window: Filter, shape of the acquired k-space.
        deviation: Standard deviation in the image, of the real and of the imaginary part each.
    """
    real, imaginary = rng.standard_normal((2, *window.shape), np.float32)
    power = np.sqrt(np.mean(window**2))
    # The transform back divides by the number of lines: white noise shrinks by its root.
    return (real + 1j * imaginary) * window * (deviation * np.sqrt(window.size) / power)


def ghost_phase(rng: np.random.Generator, lines: int, strength: float) -> np.ndarray:
    """Sample phase errors of the lines of k-space from head motion and pulsating blood.

    Args:
        rng: Source of chance.
        lines: Along the phase-encoding axis.
        strength: rad, about 0.05 for a calm head and 0.5 for a restless one.

    Returns:
        Complex factors of modulus 1, (lines,).
    """
    pulse = np.sin(2 * np.pi * (np.arange(lines) * rng.uniform(0.05, 0.45) + rng.uniform()))
    jumps = np.zeros(lines)
    for first in rng.integers(0, lines, rng.integers(1, 4)):
        jumps[first : first + rng.integers(2, max(3, lines // 12))] += rng.normal()
    return np.exp(1j * strength * (0.3 * pulse + jumps)).astype(np.complex64)


def high_pass_phase(image: np.ndarray, spectrum: np.ndarray, lines: int) -> np.ndarray:
    """Remove the slow part of an image's phase, -pi to pi (homodyne filter).

    The image is divided by itself as the middle of k-space under a Hann window shows it.

    Args:
        image: Complex, (X, Y).
        spectrum: Its k-space, as measured.
        lines: Of k-space that count as slow, along either axis.
    """
    inner = tuple(min(lines, size) for size in spectrum.shape)
    middle = spectrum[_central_slices(spectrum.shape, inner)] * tukey_window(inner, 1.0)
    slow = from_kspace(middle.astype(image.dtype), image.shape)
    return np.angle(image * np.conj(slow)).astype(np.float32)


def phase_mask(phase: np.ndarray, *, phase_sign: int) -> np.ndarray:
    """Make the phase mask of SWI: 1 where the phase is not venous, 0 at a half turn of it.

    Args:
        phase: High-passed, rad.
        phase_sign: 1 if a higher field turns the phase forwards, -1 if backwards. Veins along B0
            have the higher field.

    Source:
        Haacke et al. 2004, doi:10.1002/mrm.20198.
    """
    return np.clip(1 - np.maximum(phase_sign * phase, 0) / np.pi, 0, 1)


def make_swi(
    magnitude: np.ndarray, phase: np.ndarray, *, phase_sign: int, power: int = 4
) -> np.ndarray:
    """Make a susceptibility-weighted image: magnitude times the phase mask, ``power`` times."""
    return magnitude * phase_mask(phase, phase_sign=phase_sign) ** power
