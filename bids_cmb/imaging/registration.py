"""Rigid registration of images of one head: a T1-weighted image, or an earlier scan, to a scan.

SimpleITK maximises Mattes' mutual information, from coarse to fine, inside the brain of the
scan. One thread and one seed: the same images give the same transform.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from nibabel.affines import from_matvec
from nibabel.eulerangles import euler2mat
from scipy import ndimage

from bids_cmb.imaging.cropping import crop, find_bounds
from bids_cmb.imaging.volume import Volume

PYRAMID_MM = (6.0, 3.0, 2.0)  # voxels of the images that are compared, from coarse to fine
SCAN_PYRAMID_MM = (6.0, 3.0, 1.2)  # the same for two scans, whose lesions are compared
SCAN_REACH_MM = 30.0  # around the brain that is kept of a scan
MAX_SAMPLES = 30_000  # most voxels that are compared
START_PITCHES_RAD = (
    0.0,
    -0.35,
    0.35,
)  # rad, how a head may lie otherwise than headers say, to begin with
MASK_MARGINS_MM = (20.0, 8.0, 8.0)  # beyond the brain is compared too: its edge says most
# Of nothing about the T1w image: where points leave it, information must not rise
PADDING_MM = 60.0
BINS = 32
MAX_ITERATIONS = 100  # steps of the search at each resolution
CLIP_PERCENTILES = (0.5, 99.5)  # percentiles where intensities are cut
MIN_IMPROVEMENT = 1.01  # headers are believed unless mutual information rises by this factor
SEED = 1
Level = tuple[tuple[Volume, np.ndarray], Volume]  # fixed image with mask, moving image


@dataclass(frozen=True, eq=False)
class Registration:
    """The rigid transform from an image to a scan of the same head.

    Attributes:
        to_scan: World mm of the image to world mm of the scan, (4, 4), rigid.
        before: Mutual information, nats, of the headers' alignment; 0 if the brain has no part in
            the image then.
        after: The same with ``to_scan``.
    """

    to_scan: np.ndarray
    before: float
    after: float


def measure_rotation_deg(rigid: np.ndarray) -> float:
    """Measure the angle of a rigid transform's rotation, degrees."""
    return float(np.degrees(np.arccos(np.clip((np.trace(rigid[:3, :3]) - 1) / 2, -1, 1))))


def register(t1w: Volume, t1w_brain: Volume, scan: Volume, brain: Volume) -> Registration:
    """Register a T1-weighted image to a scan of the same head.

    The search starts from the headers and from the brains' centres, pitched or not; the best
    at the coarsest resolution goes on. Where the headers are as good, they are kept.

    Args:
        t1w: On any grid.
        t1w_brain: Its brain, bool, on its grid.
        scan: On any grid.
        brain: Of the scan, bool, on its grid.

    Raises:
        ValueError: If one of the images has no brain.
    """
    if not (t1w_brain.data.any() and brain.data.any()):
        raise ValueError("both the T1w image and the scan must show a brain; found one without")
    with _one_thread():
        best, fine, centre = _search(t1w, t1w_brain, scan, brain, PYRAMID_MM)
        before, after = (_evaluate(*fine, start, centre) for start in (np.eye(4), best))
    if after < MIN_IMPROVEMENT * before:
        return Registration(np.eye(4), before, before)
    return Registration(np.linalg.inv(best), before, after)


def register_scans(moving: Volume, moving_brain: Volume, scan: Volume, brain: Volume) -> np.ndarray:
    """Register a scan to another one of the same head.

    As `register`, but down to finer voxels, and headers are never kept as they are: between two
    sessions a head moves.

    Args:
        moving: On any grid.
        moving_brain: Its brain, bool, on its grid.
        scan: On any grid.
        brain: Of the scan, bool, on its grid.

    Returns:
        World mm of ``moving`` to world mm of ``scan``, (4, 4), rigid.

    Raises:
        ValueError: If one of the scans has no brain.
    """
    if not (moving_brain.data.any() and brain.data.any()):
        raise ValueError("both scans must show a brain; found one without")
    cropped = [
        crop(volume, *find_bounds(mask.data, np.ceil(SCAN_REACH_MM / mask.spacing).astype(int)))
        for image, mask in ((moving, moving_brain), (scan, brain))
        for volume in (image, mask)
    ]
    with _one_thread():
        best, *_ = _search(*cropped, SCAN_PYRAMID_MM)
    return np.linalg.inv(best)


def _search(
    moving: Volume, moving_brain: Volume, scan: Volume, brain: Volume, pyramid: Sequence[float]
) -> tuple[np.ndarray, Level, np.ndarray]:
    """Search the transform, (4, 4); with it, the finest images and the centre of the brain."""
    middle, centre = (
        volume.world(np.argwhere(volume.data).mean(axis=0)) for volume in (moving_brain, brain)
    )
    levels = [
        ((fixed, _mask_compared(brain, stride, margin)), _pad(image))
        for (fixed, stride), (image, _), margin in zip(
            _build_pyramid(scan, brain, pyramid),
            _build_pyramid(moving, moving_brain, pyramid),
            MASK_MARGINS_MM,
            strict=True,
        )
    ]
    coarse, fine = levels[0], levels[-1]
    results = [_optimize(*coarse, start, centre) for start in _list_starts(centre, middle)]
    best = max((volume for volume in results if volume), key=lambda volume: volume[0])[1]
    for level in levels[1:]:
        best = (_optimize(*level, best, centre) or (0.0, best))[1]
    return best, fine, centre


def load_transform(path: Path) -> np.ndarray:
    """Load an ITK transform as a matrix from the moving image's world to the fixed image's.

    ITK maps points of the fixed image (LPS) to the moving one; the result is the inverse, in RAS+.

    Args:
        path: Text, ``.mat`` or ``.h5``.

    Returns:
        World mm to world mm, RAS+, (4, 4): as `Registration.to_scan`.

    Raises:
        ValueError: If it cannot be read, or is not linear.
    """
    import SimpleITK as sitk  # noqa: N813, PLC0415 slow to come

    try:
        transform = sitk.ReadTransform(str(path))
    except RuntimeError as error:
        message = str(error).strip().splitlines()[-1][:120]
        raise ValueError(f"{path}: a transform in ITK's format is expected; {message}") from error
    corners = np.vstack([np.zeros(3), 100 * np.eye(3)])
    moved = np.array([transform.TransformPoint(corner) for corner in corners.tolist()])
    matrix = from_matvec((moved[1:] - moved[0]).T / 100, moved[0])
    far = np.array([70.0, -110.0, 60.0])
    if not np.allclose(transform.TransformPoint(far.tolist()), (matrix @ [*far, 1])[:3], atol=1e-3):
        raise ValueError(f"{path}: a linear transform is expected; found one that bends.")
    if abs(np.linalg.det(matrix[:3, :3])) < 0.1:
        raise ValueError(f"{path}: a transform must keep all three dimensions; found a flat one.")
    signs = np.diag([-1.0, -1.0, 1.0, 1.0])
    return signs @ np.linalg.inv(matrix) @ signs


@contextmanager
def _one_thread() -> Iterator[None]:
    """Run ITK on one thread: sums of several come out differently each time."""
    import SimpleITK as sitk  # noqa: N813, PLC0415

    before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before)


# A transform here is (4, 4), world mm of the scan to world mm of the T1w image, as ITK has it.


def _list_starts(centre: np.ndarray, middle: np.ndarray) -> Iterator[np.ndarray]:
    yield np.eye(4)
    for nod in START_PITCHES_RAD:
        rotation = euler2mat(x=nod)
        yield from_matvec(rotation, middle - rotation @ centre)


def _build_pyramid(
    volume: Volume, brain: Volume, pyramid: Sequence[float]
) -> Iterator[tuple[Volume, np.ndarray]]:
    """Smooth and downsample an image to voxels of each size; with each, every how many are kept.

    Of the coarsest only the brain is left, or its edge would be matched with that of the head.
    """
    low, high = np.percentile(volume.data, CLIP_PERCENTILES)
    data = np.clip(volume.data, low, high).astype(np.float32)
    for step in pyramid:
        image = np.where(brain.data, data, low) if step == pyramid[0] else data
        stride = np.maximum(1, np.floor(step / volume.spacing + 0.01)).astype(int)
        width = np.sqrt(np.maximum(0, step**2 - volume.spacing**2)) / 2 / volume.spacing
        thin = tuple(slice(None, None, n) for n in stride)
        smooth = ndimage.gaussian_filter(image, width, truncate=3)[thin]
        yield Volume(smooth, volume.affine @ np.diag([*stride, 1.0])), stride


def _mask_compared(brain: Volume, stride: np.ndarray, margin_mm: float) -> np.ndarray:
    """Mask what is compared of a downsampled scan: its brain and a margin."""
    thin = tuple(slice(None, None, n) for n in stride)
    distance = ndimage.distance_transform_edt(~brain.data[thin], brain.spacing * stride)
    return distance <= margin_mm


def _pad(volume: Volume) -> Volume:
    """Pad an image with its lowest value all around."""
    more = np.ceil(PADDING_MM / volume.spacing).astype(int)
    start = from_matvec(volume.affine[:3, :3], volume.world(-more))
    data = np.pad(volume.data, [(n, n) for n in more], constant_values=volume.data.min())
    return Volume(data, start)


def _to_sitk(data: np.ndarray, affine: np.ndarray):
    """Convert to SimpleITK, in RAS+ coordinates: it does not depend on the convention."""
    import SimpleITK as sitk  # noqa: N813, PLC0415

    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    image = sitk.GetImageFromArray(np.ascontiguousarray(data.transpose(2, 1, 0)))
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    image.SetDirection((affine[:3, :3] / spacing).ravel().tolist())
    return image


def _set_up(fixed: tuple[Volume, np.ndarray], start: np.ndarray, centre: np.ndarray):
    """Set up the metric and the initial transform."""
    import SimpleITK as sitk  # noqa: N813, PLC0415

    volume, mask = fixed
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(BINS)
    method.SetMetricFixedMask(_to_sitk(mask.astype(np.uint8), volume.affine))
    share = min(1.0, MAX_SAMPLES / max(1, int(mask.sum())))
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(share, SEED)
    method.SetInterpolator(sitk.sitkLinear)
    transform = sitk.Euler3DTransform()
    transform.SetCenter(centre.tolist())
    transform.SetMatrix(start[:3, :3].ravel().tolist(), 1e-4)
    transform.SetTranslation((start[:3, 3] + start[:3, :3] @ centre - centre).tolist())
    method.SetInitialTransform(transform, inPlace=True)
    return method, transform


def _optimize(
    fixed: tuple[Volume, np.ndarray], moving: Volume, start: np.ndarray, centre: np.ndarray
) -> tuple[float, np.ndarray] | None:
    """Optimize the transform; return mutual information and transform, None without overlap."""
    method, transform = _set_up(fixed, start, centre)
    step = float(moving.spacing.max())
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=step,
        minStep=0.02,
        numberOfIterations=MAX_ITERATIONS,
        gradientMagnitudeTolerance=1e-8,
    )
    method.SetOptimizerScalesFromPhysicalShift()
    try:
        method.Execute(*(_to_sitk(volume.data, volume.affine) for volume in (fixed[0], moving)))
    except RuntimeError:  # all that is compared lies outside the other image
        return None
    rotation = np.array(transform.GetMatrix()).reshape(3, 3)
    shift = np.array(transform.GetTranslation()) + centre - rotation @ centre
    return -method.GetMetricValue(), from_matvec(rotation, shift)


def _evaluate(
    fixed: tuple[Volume, np.ndarray], moving: Volume, start: np.ndarray, centre: np.ndarray
) -> float:
    """Evaluate mutual information; 0 without overlap."""
    method, _ = _set_up(fixed, start, centre)
    try:
        return -method.MetricEvaluate(
            *(_to_sitk(volume.data, volume.affine) for volume in (fixed[0], moving))
        )
    except RuntimeError:
        return 0.0
