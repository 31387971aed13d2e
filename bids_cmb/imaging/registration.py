"""A T1-weighted image brought onto a scan of the same head: a rotation and a shift.

SimpleITK looks for them by Mattes' mutual information, from coarse to fine, inside the brain of the
scan. One thread and one seed: the same images give the same transform.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from nibabel.affines import from_matvec
from nibabel.eulerangles import euler2mat
from scipy import ndimage

from bids_cmb.imaging.volume import Volume

STEPS_MM = (6.0, 3.0, 2.0)  # voxels of the images that are compared, from coarse to fine
POINTS = 30_000  # most voxels that are compared
NODS = (0.0, -0.35, 0.35)  # rad, how a head may lie otherwise than headers say, to begin with
AROUND_MM = (20.0, 8.0, 8.0)  # beyond the brain is compared too: its edge says most
BEYOND_MM = 60.0  # of nothing about the T1w image: where points leave it, information must not rise
BINS = 32
TRIES = 100  # steps of the search at each resolution
OUTLIERS = (0.5, 99.5)  # percentiles where intensities are cut
IMPROVED = 1.01  # headers are believed unless mutual information rises by this factor
SEED = 1


@dataclass(frozen=True, eq=False)
class Registration:
    """How a T1-weighted image lies on a scan.

    Attributes:
        to_scan: World mm of the T1w image to world mm of the scan, (4, 4), rigid.
        before: Mutual information, nats, if the headers are believed; 0 if the brain has no part in
            the T1w image then.
        after: The same with ``to_scan``.
    """

    to_scan: np.ndarray
    before: float
    after: float


def turn_degrees(rigid: np.ndarray) -> float:
    """The angle of a rotation."""
    return float(np.degrees(np.arccos(np.clip((np.trace(rigid[:3, :3]) - 1) / 2, -1, 1))))


def register(t1w: Volume, t1w_brain: Volume, scan: Volume, brain: Volume) -> Registration:
    """Find how a T1-weighted image lies on a scan of the same head.

    The search begins at what the headers say and at the brains' middles, nodding or not; the best
    at the coarsest resolution goes on. Where the headers are as good, they are believed.

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
        return _registered(t1w, t1w_brain, scan, brain)


def _registered(t1w: Volume, t1w_brain: Volume, scan: Volume, brain: Volume) -> Registration:
    middle, centre = (one.world(np.argwhere(one.data).mean(axis=0)) for one in (t1w_brain, brain))
    levels = [
        (fixed, _padded(moving))
        for fixed, (moving, _) in zip(_levels(scan, brain), _levels(t1w, t1w_brain), strict=True)
    ]
    coarse, fine = levels[0], levels[-1]
    tried = [_searched(*coarse, start, centre) for start in _starts(centre, middle)]
    best = max((one for one in tried if one), key=lambda one: one[0])[1]
    for level in levels[1:]:
        best = (_searched(*level, best, centre) or (0.0, best))[1]
    before, after = (_compared(*fine, start, centre) for start in (np.eye(4), best))
    if after < IMPROVED * before:
        return Registration(np.eye(4), before, before)
    return Registration(np.linalg.inv(best), before, after)


def read_transform(path: Path) -> np.ndarray:
    """A linear transform as ITK stores it, for images, as world mm of what moves to what stays.

    Args:
        path: Text, ``.mat`` or ``.h5``; what it maps are places of the fixed image, LPS.

    Returns:
        (4, 4) between RAS+ places, the other way round: as `Registration.to_scan`.

    Raises:
        ValueError: If it cannot be read, or bends.
    """
    import SimpleITK as sitk  # noqa: N813, PLC0415 slow to come

    try:
        stored = sitk.ReadTransform(str(path))
    except RuntimeError as error:
        said = str(error).strip().splitlines()[-1][:120]
        raise ValueError(f"{path}: a transform in ITK's format is expected; {said}") from error
    corners = np.vstack([np.zeros(3), 100 * np.eye(3)])
    moved = np.array([stored.TransformPoint(corner) for corner in corners.tolist()])
    matrix = from_matvec((moved[1:] - moved[0]).T / 100, moved[0])
    far = np.array([70.0, -110.0, 60.0])
    if not np.allclose(stored.TransformPoint(far.tolist()), (matrix @ [*far, 1])[:3], atol=1e-3):
        raise ValueError(f"{path}: a linear transform is expected; found one that bends.")
    if abs(np.linalg.det(matrix[:3, :3])) < 0.1:
        raise ValueError(f"{path}: a transform must keep all three dimensions; found a flat one.")
    signs = np.diag([-1.0, -1.0, 1.0, 1.0])
    return signs @ np.linalg.inv(matrix) @ signs


@contextmanager
def _one_thread() -> Iterator[None]:
    """ITK on one thread: sums of several come out differently each time."""
    import SimpleITK as sitk  # noqa: N813, PLC0415

    before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before)


# A transform here is (4, 4), world mm of the scan to world mm of the T1w image, as ITK has it.


def _starts(centre: np.ndarray, middle: np.ndarray) -> Iterator[np.ndarray]:
    yield np.eye(4)
    for nod in NODS:
        rotation = euler2mat(x=nod)
        yield from_matvec(rotation, middle - rotation @ centre)


def _levels(volume: Volume, brain: Volume) -> Iterator[tuple[Volume, np.ndarray]]:
    """The image, smoothed and thinned out to each of `STEPS_MM`, and where it is looked at.

    Of the coarsest only the brain is left, or its edge would be matched with that of the head.
    """
    low, high = np.percentile(volume.data, OUTLIERS)
    data = np.clip(volume.data, low, high).astype(np.float32)
    for step, around in zip(STEPS_MM, AROUND_MM, strict=True):
        seen = np.where(brain.data, data, low) if step == STEPS_MM[0] else data
        stride = np.maximum(1, np.floor(step / volume.spacing + 0.01)).astype(int)
        width = np.sqrt(np.maximum(0, step**2 - volume.spacing**2)) / 2 / volume.spacing
        thin = tuple(slice(None, None, n) for n in stride)
        smooth = ndimage.gaussian_filter(seen, width, truncate=3)[thin]
        beyond = ndimage.distance_transform_edt(~brain.data[thin], volume.spacing * stride)
        yield Volume(smooth, volume.affine @ np.diag([*stride, 1.0])), beyond <= around


def _padded(volume: Volume) -> Volume:
    """The image with nothing all around."""
    more = np.ceil(BEYOND_MM / volume.spacing).astype(int)
    start = from_matvec(volume.affine[:3, :3], volume.world(-more))
    data = np.pad(volume.data, [(n, n) for n in more], constant_values=volume.data.min())
    return Volume(data, start)


def _image(data: np.ndarray, affine: np.ndarray):
    """The same for SimpleITK; it is told of RAS+ places, which is all the same to it."""
    import SimpleITK as sitk  # noqa: N813, PLC0415

    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    image = sitk.GetImageFromArray(np.ascontiguousarray(data.transpose(2, 1, 0)))
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    image.SetDirection((affine[:3, :3] / spacing).ravel().tolist())
    return image


def _method(fixed: tuple[Volume, np.ndarray], start: np.ndarray, centre: np.ndarray):
    """How images are compared, and the transform to begin with."""
    import SimpleITK as sitk  # noqa: N813, PLC0415

    volume, near = fixed
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(BINS)
    method.SetMetricFixedMask(_image(near.astype(np.uint8), volume.affine))
    share = min(1.0, POINTS / max(1, int(near.sum())))
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(share, SEED)
    method.SetInterpolator(sitk.sitkLinear)
    transform = sitk.Euler3DTransform()
    transform.SetCenter(centre.tolist())
    transform.SetMatrix(start[:3, :3].ravel().tolist(), 1e-4)
    transform.SetTranslation((start[:3, 3] + start[:3, :3] @ centre - centre).tolist())
    method.SetInitialTransform(transform, inPlace=True)
    return method, transform


def _searched(
    fixed: tuple[Volume, np.ndarray], moving: Volume, start: np.ndarray, centre: np.ndarray
) -> tuple[float, np.ndarray] | None:
    """Mutual information, and the transform that has it; None without a part in common."""
    method, transform = _method(fixed, start, centre)
    step = float(moving.spacing.max())
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=step, minStep=0.02, numberOfIterations=TRIES, gradientMagnitudeTolerance=1e-8
    )
    method.SetOptimizerScalesFromPhysicalShift()
    try:
        method.Execute(*(_image(one.data, one.affine) for one in (fixed[0], moving)))
    except RuntimeError:  # all that is compared lies outside the other image
        return None
    rotation = np.array(transform.GetMatrix()).reshape(3, 3)
    shift = np.array(transform.GetTranslation()) + centre - rotation @ centre
    return -method.GetMetricValue(), from_matvec(rotation, shift)


def _compared(
    fixed: tuple[Volume, np.ndarray], moving: Volume, start: np.ndarray, centre: np.ndarray
) -> float:
    """Mutual information; 0 without a part in common."""
    method, _ = _method(fixed, start, centre)
    try:
        return -method.MetricEvaluate(*(_image(one.data, one.affine) for one in (fixed[0], moving)))
    except RuntimeError:
        return 0.0
