"""Label maps rendered with random contrast, so that anatomy is learnt without scans.

After Billot et al. 2023 (SynthSeg, doi:10.1016/j.media.2023.102789): what is random in training
(contrast, bias, resolution, noise, what was cut away) is ignored in use.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

from bids_cmb.anatomy.labels import ClassTable, make_mirror_table
from bids_cmb.imaging.cropping import crop_or_pad
from bids_cmb.imaging.grid import Grid
from bids_cmb.imaging.nifti import load
from bids_cmb.imaging.preprocessing import preprocess
from bids_cmb.imaging.resampling import resample_like
from bids_cmb.imaging.volume import Volume
from bids_cmb.simulation.head_model import (
    DeformationLimits,
    load_head_model,
    resample_labels,
    sample_deformation,
)
from bids_cmb.simulation.noise import sample_noise, upsample
from bids_cmb.training.patches import collate
from bids_cmb.training.scan_files import ScanFiles
from bids_cmb.training.scan_loading import load_structures

BOX_MM = (192, 232, 216)  # of a head, about its brain's centre
T2STAR_PROBABILITY = 0.5  # how often a label map is painted like a T2* scan
SKULL_STRIP_PROBABILITY = 0.35  # how often all but the brain is blank
TRUNCATION_PROBABILITY = 0.2  # how often the field of view ends within the part that is shown
THICK_SLICE_PROBABILITY = 0.6  # how often a painted head is seen in thick slices


@dataclass(frozen=True, eq=False)
class Subject:
    """A head to train on, its axes in the order and direction of RAS+.

    Attributes:
        codes: uint16, FreeSurfer codes, (X, Y, Z).
        image: float16, if it was scanned; None if it is to be rendered.
        spacing: mm between voxels.
    """

    codes: np.ndarray
    image: np.ndarray | None
    spacing: float = 1.0


def sample_subject(path: Path, rng: np.random.Generator, spacing: float = 1.0) -> Subject:
    """Sample a person from a label map, on voxels of ``spacing`` mm.

    Raises:
        ValueError: If the file is no label map of a head.
        OSError: If it cannot be read.
    """
    limits = DeformationLimits(scale=0.2, bend_mm=5.0, atrophy=1.3)
    person = sample_deformation(load_head_model(path), rng, limits)
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = -np.array(BOX_MM) / 2 - (0, 0, 20)  # the neck is longer than the vertex
    shape = tuple(int(side / spacing) for side in BOX_MM)
    return Subject(resample_labels(person, affine, shape).data.astype(np.uint16), None, spacing)


def load_subject(paths: ScanFiles, grid: Grid) -> Subject:
    """Load a simulated scan and its structures on the network's grid.

    Raises:
        ValueError: If the scan has no reference structures, or a file cannot be used.
        OSError: If a file cannot be read.
    """
    stored = load_structures(paths, "anatomy")
    image, _ = load(paths.image)
    whole = Volume(np.ones(image.shape, bool), image.affine)
    fed = preprocess(image, whole, grid).image
    codes = resample_like(stored, fed, order=0).data
    return Subject(np.rint(codes).astype(np.uint16), fed.data.astype(np.float16), fed.spacing[0])


def sample_batch(
    subjects: Sequence[Subject], known: ClassTable, shape: Sequence[int],
    rng: np.random.Generator, *, size: int,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Sample a batch: images (B, X, Y, Z, 1), and classes and sides (B, X, Y, Z, 2)."""
    images, truths = collate(
        sample_patch(subjects[rng.integers(len(subjects))], known, shape, rng) for _ in range(size)
    )
    return images[..., None], truths


def sample_patch(
    subject: Subject, known: ClassTable, shape: Sequence[int], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Sample a patch of a head: its image (X, Y, Z), and classes and sides (X, Y, Z, 2)."""
    size, shape = np.array(subject.codes.shape), np.array(shape)
    low = np.minimum(0, size - shape)
    start = rng.integers(low, np.maximum(size - shape, 0) + 1)
    codes = crop_or_pad(subject.codes, start, shape)
    image = None if subject.image is None else crop_or_pad(subject.image, start, shape)
    if rng.random() < 0.5:
        codes = make_mirror_table()[codes[::-1]]
        image = None if image is None else image[::-1]
    if image is None:
        image = degrade(paint_labels(codes, rng), rng, subject.spacing)
    image, codes = _truncate_field_of_view(
        _augment_gamma(image.astype(np.float32), rng), codes, rng
    )
    truth = np.stack([known.classes[codes].astype(np.float32), known.sides[codes]], axis=-1)
    return _scale_intensity(image, rng).astype(np.float32), truth


def paint_labels(codes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Render a label map with random contrast and texture, perhaps stripped, float32 (X, Y, Z)."""
    present = np.unique(codes)
    table = np.zeros(2**16, np.float32)
    shades = _sample_t2star_shades(rng) if rng.random() < T2STAR_PROBABILITY else {}
    twin = make_mirror_table()
    for code in present[present > 0]:
        other = twin[code]
        if table[other] > 0:
            table[code] = table[other] * rng.uniform(0.97, 1.03)
        else:
            table[code] = rng.uniform(0.05, 1.0) if code not in shades else shades[code]
    image = table[codes]
    coarse = upsample(sample_noise(rng, (20, 20, 20), rng.uniform(0.6, 2.0)), codes.shape)
    fine = rng.standard_normal(codes.shape, np.float32)
    image *= 1 + rng.uniform(0, 0.1) * coarse + rng.uniform(0, 0.15) * fine
    if rng.random() < SKULL_STRIP_PROBABILITY:
        inside = (codes > 0) & (codes < 500)
        if rng.random() < 0.5:
            inside &= codes != 24
        image *= ndimage.binary_dilation(inside, iterations=int(rng.integers(1, 3)))
    elif rng.random() < 0.3:  # bright or dark, nothing is known of what lies outside
        image *= np.where(codes >= 500, np.float32(rng.uniform(0, 2)), 1)
    return np.maximum(image, 0)


def _sample_t2star_shades(rng: np.random.Generator) -> dict[int, float]:
    """Sample intensities as in gradient-echo scans: fluid bright or dark, deep nuclei darker."""
    white, grey = 0.5, 0.5 * rng.uniform(0.95, 1.4)
    fluid = 0.5 * float(np.exp(rng.uniform(np.log(0.4), np.log(2.5))))
    iron = rng.uniform(0.5, 1.0)
    shades = dict.fromkeys((2, 41, 7, 46, 16, 28, 60), white) | dict.fromkeys((3, 42), grey)
    shades |= dict.fromkeys((8, 47, 17, 53, 18, 54), grey * rng.uniform(0.85, 1.1))
    shades |= dict.fromkeys((4, 43, 5, 44, 14, 15, 24), fluid)
    shades |= dict.fromkeys((11, 50, 12, 51, 26, 58), grey * (0.4 + 0.6 * iron))
    shades |= dict.fromkeys((13, 52), grey * iron**2) | dict.fromkeys((10, 49), white * 1.05)
    return {code: shade * rng.uniform(0.93, 1.07) for code, shade in shades.items()}


def degrade(
    image: np.ndarray, rng: np.random.Generator, spacing: float = 1.0, *, thick: bool = True
) -> np.ndarray:
    """Add blur, bias, perhaps thick slices, and noise; float32 (X, Y, Z), ``spacing`` in mm."""
    image = ndimage.gaussian_filter(image, rng.uniform(0.2, 0.9) / spacing, truncate=2)
    bias = upsample(sample_noise(rng, (6, 6, 6), 1.0), image.shape)
    image = image * np.exp(rng.uniform(0, 0.35) * bias)
    if thick and rng.random() < THICK_SLICE_PROBABILITY:
        axis = int(rng.choice(3, p=[0.15, 0.2, 0.65]))
        image = _average_slices(image, axis, max(1.0, rng.uniform(1.5, 6.5) / spacing), rng)
    if thick and rng.random() < 0.3:
        for axis in range(3):
            image = _average_slices(image, axis, max(1.0, rng.uniform(1.0, 3.0) / spacing), rng)
    level = rng.uniform(0, 0.06) * float(image.max() + 1e-6)
    noise = level * rng.standard_normal(image.shape, np.float32)
    blank = image <= 1e-4 if rng.random() < 0.5 else False
    return np.where(blank, 0, np.abs(image + noise))


def _average_slices(
    image: np.ndarray, axis: int, thickness: float, rng: np.random.Generator
) -> np.ndarray:
    """Average an image over slices of a thickness in voxels, and interpolate back."""
    count = image.shape[axis]
    middles = np.arange(rng.uniform(0, thickness), count, thickness)
    place = np.arange(count)
    share = np.clip((thickness + 1) / 2 - np.abs(place - middles[:, None]), 0, 1)
    share /= share.sum(axis=1, keepdims=True)  # (slices, voxels)
    back = np.stack([np.interp(place, middles, unit) for unit in np.eye(len(middles))], axis=1)
    whole = (back @ share).astype(np.float32)  # (voxels, voxels)
    return np.moveaxis(np.tensordot(whole, image, axes=(1, axis)), 0, axis)


def _augment_gamma(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Raise an image to a random gamma."""
    top = float(image.max()) or 1.0
    return top * (image / top) ** np.float32(rng.uniform(0.7, 1.4))


def _truncate_field_of_view(
    image: np.ndarray, codes: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Perhaps truncate the field of view, in image and labels."""
    if rng.random() > TRUNCATION_PROBABILITY:
        return image, codes
    axis = int(rng.integers(1, 3))
    kept = np.arange(image.shape[axis]) >= rng.integers(image.shape[axis] // 2)
    kept = kept[::-1] if rng.random() < 0.5 else kept
    kept = np.expand_dims(kept, [other for other in range(3) if other != axis])
    return image * kept, codes * kept


def _scale_intensity(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Scale an image about as the rule ``foreground`` does it for a whole head."""
    bright = image[image > image.mean()]
    level = float(bright.mean()) if len(bright) else 1.0
    return image / max(level, 1e-6) * np.float32(np.exp(rng.uniform(-0.3, 0.3)))
