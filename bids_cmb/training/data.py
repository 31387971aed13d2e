"""Training scans: found with their reference labels, loaded once, kept on a network's grid."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from nibabel.affines import from_matvec
from scipy import ndimage

from bids_cmb.anatomy.brain_extraction import segment_brain
from bids_cmb.bids.companions import DERIVATIVE_ENTITIES
from bids_cmb.bids.filters import Query
from bids_cmb.bids.scan import Scan
from bids_cmb.bids.selection import find_scans
from bids_cmb.bids.tables import DESC_LABELS
from bids_cmb.files import replacing
from bids_cmb.imaging.cropping import crop_or_pad
from bids_cmb.imaging.grid import Grid
from bids_cmb.imaging.nifti import load, load_labels
from bids_cmb.imaging.phase import UndecidedError, load_phase_map, resample_phase
from bids_cmb.imaging.phase_files import find_phase_image
from bids_cmb.imaging.preprocessing import Preprocessed, dilate_brain, preprocess
from bids_cmb.imaging.resampling import resample, resample_like
from bids_cmb.imaging.volume import Volume
from bids_cmb.lesions.label_maps import load_label_map
from bids_cmb.provenance import fingerprint, package_digest, sha256

_Item, _Result = TypeVar("_Item"), TypeVar("_Result")
LESION, UNCERTAIN = 1, 2  # values of `Case.labels`; 0 is neither
MIN_LESION_FRACTION = 0.4  # of a voxel of the network's grid that a lesion must fill
MIN_DARKNESS = (
    0.25  # of the brain's median, below the mean of the surround: could be taken for a lesion
)


@dataclass(frozen=True)
class ScanFiles:
    """The files of one scan and of its reference; those that may be missing are None."""

    name: str
    image: Path
    lesions: Path | None
    mimics: Path | None
    structures: Path | None
    brain: Path | None

    @property
    def phase(self) -> Path | None:
        """The phase image beside the scan, searched for at each call."""
        return find_phase_image(self.image).path

    @property
    def subject(self) -> str:
        """``sub-`` and the label."""
        return self.name.split("_")[0]


@dataclass(frozen=True, eq=False)
class TrainingScan:
    """One scan on a network's grid.

    Attributes:
        name: Subject and scan.
        image: float16, scaled by the grid's rule, (X, Y, Z).
        labels: uint8, `LESION`, `UNCERTAIN` or 0, (X, Y, Z).
        loss_mask: bool, where the loss is computed: the brain and its surface, (X, Y, Z).
        sampling_centres: Voxels to sample patches around, for each kind a list of (N, 3): one for
            each lesion, one for each mimic; a single one for dark spots and one for any place.
        phase: float16, 0 to 1 as `imaging.phase.resample_phase` has it, (X, Y, Z); None where
            there is none, or it was not requested.
    """

    name: str
    image: np.ndarray
    labels: np.ndarray
    loss_mask: np.ndarray
    sampling_centres: dict[str, list[np.ndarray]]
    phase: np.ndarray | None = None


@dataclass(frozen=True)
class Loading:
    """How training scans are loaded.

    Attributes:
        threads: How many are loaded at a time.
        cache: Folder where they are kept on a network's grid, about 20 MB each, so that the next
            training loads them in a twentieth of the time; None keeps none.
    """

    threads: int = 1
    cache: Path | None = None


def find_training_scans(data: Path, truth: Path | None = None) -> list[ScanFiles]:
    """Find every scan of a BIDS dataset that has reference labels.

    A reference is of a scan if their entities are equal. Of several it is the one whose ``desc`` is
    the scan's suffix (after the scan's own ``desc``, if it has one), as the app names its results.

    Args:
        data: The dataset.
        truth: The derivative dataset with the reference; ``data/derivatives/truth`` without.

    Raises:
        ValueError: If no scan of the dataset has a reference, a scan has several, one file fits
            several scans, or a file lies in the folder of another participant.
    """
    data = data.absolute()  # as the paths of scans are
    reference_dir = truth or data / "derivatives" / "truth"
    scans = find_scans(data, Query()).scans
    same_entities: dict[tuple, list[Scan]] = {}
    for scan in scans:
        same_entities.setdefault(scan.entities, []).append(scan)
    owners: dict[Path, Scan] = {}
    matched = []
    for scan in scans:
        folder = reference_dir / scan.path.parent.relative_to(data)
        paths = _match_files(scan, _ReferenceImages(folder, scan, same_entities[scan.entities]))
        if paths.lesions is None:
            continue
        for path in (paths.lesions, paths.mimics, paths.structures, paths.brain):
            if path is not None and owners.setdefault(path, scan) is not scan:
                other = owners[path]
                raise ValueError(
                    f"{path}: a file of the truth must be of one scan; found that it fits "
                    f"{other.name} and {scan.name} (desc-{other.desc}{other.suffix} or "
                    f"desc-{scan.desc}{scan.suffix} in its name would tell)."
                )
        matched.append(paths)
    if not matched:
        raise ValueError(
            f"{reference_dir}: a truth needs label maps of microbleeds (…seg-CMB…dseg or mask); "
            f"found none for any of {len(scans)} scans."
        )
    return matched


class _ReferenceImages:
    """The reference images that belong to one scan by their names."""

    def __init__(self, folder: Path, scan: Scan, same_entities: Sequence[Scan]):
        """List them; ``same_entities`` are scans of the same entities with other suffixes."""
        self.scan, self.description = scan, scan.desc + scan.suffix
        others = {item.desc + item.suffix for item in same_entities} | DESC_LABELS.keys()
        # Beside scans of a folder swi/, which is not in the standard, our derivatives have anat/.
        folders = dict.fromkeys((folder, folder.with_name("anat")))
        self.images = []
        for path in [path for item in folders for path in sorted(item.glob("sub-*.nii*"))]:
            *pairs, suffix = path.name.partition(".")[0].split("_")
            named = dict(pair.partition("-")[::2] for pair in pairs)
            if named.get("sub") != scan.subject:
                raise ValueError(
                    f"{path}: a truth must lie in the folder of its participant; found sub-"
                    f"{named.get('sub', '')} in its name and sub-{scan.subject} in that of the "
                    "folder."
                )
            app_entities = {key: named.pop(key) for key in DERIVATIVE_ENTITIES if key in named}
            in_scan_space = app_entities.get("space", "orig").lower() in (
                "orig",
                scan.suffix.lower(),
            )
            is_described = (
                app_entities.get("desc") == self.description
                or app_entities.get("desc") not in others
            )
            if in_scan_space and is_described and named == dict(scan.entities):
                self.images.append((path, app_entities, suffix))

    def find(self, key: str, label: str, suffixes: Sequence[str]) -> Path | None:
        """Find the image whose entity ``key`` begins with ``label``, by the first suffix any has.

        Raises:
            ValueError: If there are several, none of which says that it is of this scan alone.
        """
        for suffix in suffixes:
            fitting = [
                (path, app_entities)
                for path, app_entities, image_suffix in self.images
                if image_suffix == suffix and app_entities.get(key, "").startswith(label)
            ]
            described = [
                (path, app_entities)
                for path, app_entities in fitting
                if app_entities.get("desc") == self.description
            ]
            paths = [path for path, _ in described or fitting]
            if len(paths) > 1:
                raise ValueError(
                    f"{self.scan.name}: a scan needs one truth of {key}-{label}; found "
                    f"{len(paths)}: {' and '.join(path.name for path in paths[:3])}."
                )
            if paths:
                return paths[0]
        return None


def _match_files(scan: Scan, shelf: _ReferenceImages) -> ScanFiles:
    stem = scan.path.name.split(".")[0].rsplit("_", 1)[0]
    maps = ("dseg", "mask")
    return ScanFiles(
        stem,
        scan.path,
        shelf.find("seg", "CMB", maps) or shelf.find("label", "CMB", maps[::-1]),
        shelf.find("seg", "mimics", maps),
        shelf.find("seg", "structures", maps),
        shelf.find("label", "brain", maps[::-1]),
    )


# --- Lesions --------------------------------------------------------------------------------------


def load_training_scan(paths: ScanFiles, grid: Grid, *, with_phase: bool = False) -> TrainingScan:
    """Load a scan and its lesions on the grid of a network, with its phase if requested.

    Raises:
        ValueError: If a file cannot be used.
        OSError: If it cannot be read.
    """
    scan = load_scan_and_brain(paths)
    training_scan = make_training_scan(paths, preprocess(*scan, grid))
    phase = load_phase_on_grid(paths, *scan, grid) if with_phase else None
    return (
        training_scan if phase is None else replace(training_scan, phase=phase.astype(np.float16))
    )


def load_training_scans(
    files: Sequence[ScanFiles], grid: Grid, loading: Loading, *, with_phase: bool = False
) -> list[TrainingScan]:
    """Load several scans in their order; see `load_training_scan`.

    Raises:
        ValueError: If a file cannot be used.
        OSError: If it cannot be read, or the cache cannot be written.
    """

    def load_or_make(paths: ScanFiles) -> TrainingScan:
        if loading.cache is None:
            return load_training_scan(paths, grid, with_phase=with_phase)
        key = fingerprint(
            grid=asdict(grid), with_phase=with_phase, code=package_digest(),
            files=digest_files(paths) | ({"phase": _digest(paths.phase)} if with_phase else {}),
        )  # fmt: skip
        arrays = load_or_make_arrays(
            loading.cache / f"{key[:16]}.npz",
            lambda: _to_arrays(load_training_scan(paths, grid, with_phase=with_phase)),
        )
        return _from_arrays(paths.name, arrays)

    return run_in_threads(load_or_make, files, loading.threads)


def run_in_threads(
    function: Callable[[_Item], _Result], items: Sequence[_Item], threads: int
) -> list[_Result]:
    """Call a function with each item, ``threads`` at a time; results in the order of the items."""
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(function, items))


def digest_files(paths: ScanFiles) -> dict[str, str]:
    """Compute the SHA-256 of each file of a scan and its reference, by role; not of the phase."""
    return {name: sha256(path) for name, path in vars(paths).items() if isinstance(path, Path)}


def _digest(path: Path | None) -> str:
    return "none" if path is None else sha256(path)


def _to_arrays(scan: TrainingScan) -> dict[str, np.ndarray]:
    """Convert a training scan to named arrays; voxels of one kind are joined, with their counts."""
    arrays = {"image": scan.image, "labels": scan.labels, "loss_mask": scan.loss_mask}
    if scan.phase is not None:
        arrays["phase"] = scan.phase
    for kind, parts in scan.sampling_centres.items():
        arrays[f"{kind} voxels"] = np.concatenate([np.zeros((0, 3), np.int16), *parts])
        arrays[f"{kind} counts"] = np.array([len(part) for part in parts], int)
    return arrays


def _from_arrays(name: str, arrays: Mapping[str, np.ndarray]) -> TrainingScan:
    kinds = [key.removesuffix(" counts") for key in arrays if key.endswith(" counts")]
    centres = {
        kind: np.split(arrays[f"{kind} voxels"], np.cumsum(arrays[f"{kind} counts"])[:-1])
        if len(arrays[f"{kind} counts"])
        else []
        for kind in kinds
    }
    return TrainingScan(
        name, arrays["image"], arrays["labels"], arrays["loss_mask"], centres, arrays.get("phase")
    )


def load_or_make_arrays(
    path: Path, make: Callable[[], Mapping[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """Load named arrays from a file; where it is missing, make and write them first.

    Args:
        path: Of the ``.npz``; its name tells all that the arrays depend on.
        make: Makes them.

    Raises:
        OSError: If the file cannot be read or written.
    """
    if not path.is_file():
        arrays = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as beside, beside.open("wb") as file:
            np.savez(file, **arrays)
    with np.load(path, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def load_phase_on_grid(
    paths: ScanFiles, image: Volume, brain: Volume, grid: Grid
) -> np.ndarray | None:
    """Load the phase of a scan on the grid of a network; None as in `load_phase`."""
    phase = load_phase(paths, image, brain)
    return None if phase is None else resample_phase(phase, brain, grid)


def load_phase(paths: ScanFiles, image: Volume, brain: Volume) -> Volume | None:
    """Load the normalized phase of a scan; None without one, or if its sign is undecided.

    Raises:
        ValueError: If the file cannot be used.
        OSError: If it cannot be read.
    """
    path = paths.phase
    if path is None:
        return None
    try:
        return load_phase_map(path, image, brain)
    except UndecidedError:
        return None


def load_scan_and_brain(paths: ScanFiles) -> tuple[Volume, Volume]:
    """Load a scan and its brain mask: the reference one, or an extracted one without.

    Raises:
        ValueError: If a file cannot be used.
        OSError: If it cannot be read.
    """
    image, _ = load(paths.image)
    if paths.lesions is not None:
        _check_overlap(paths.lesions, load_labels(paths.lesions), paths.image, image)
    if paths.brain is None:
        return image, segment_brain(image)
    brain = load_labels(paths.brain)
    _check_overlap(paths.brain, brain, paths.image, image)
    return image, Volume(resample_like(brain, image, order=0).data > 0, image.affine)


def _check_overlap(path: Path, reference: Volume, scan_path: Path, image: Volume) -> None:
    """Check that a reference overlaps its scan.

    Raises:
        ValueError: If nothing that is marked lies within the scan, or the reference has the voxels
            of the scan but its affine puts them somewhere else.
    """
    if reference.shape == image.shape:
        corners = np.array(np.meshgrid(*[(0, n - 1) for n in image.shape])).reshape(3, -1).T
        away = np.linalg.norm(reference.world(corners) - image.world(corners), axis=1).max()
        if away > image.spacing.max():
            raise ValueError(
                f"{path}: a truth with as many voxels as its scan must lie where the scan lies; "
                f"found them up to {away:.1f} mm apart ({scan_path.name})."
            )
    marked = np.argwhere(reference.data > 0)
    index = image.index(reference.world(marked))
    inside = ((index > -0.5) & (index < np.array(image.shape) - 0.5)).all(axis=1)
    if len(marked) and not inside.any():
        raise ValueError(
            f"{path}: a truth must lie within its scan; found nothing of it in {scan_path.name}."
        )


def load_structures(paths: ScanFiles, what: str) -> Volume:
    """Load the reference structures of a scan, FreeSurfer codes, to learn ``what`` from.

    Raises:
        ValueError: If it has none, or they cannot be used.
        OSError: If they cannot be read.
    """
    if paths.structures is None:
        raise ValueError(
            f"{paths.image}: {what} is learnt from a truth of structures "
            "(…seg-structures…dseg.nii.gz); found none."
        )
    return load_labels(paths.structures)


def make_training_scan(paths: ScanFiles, fed: Preprocessed) -> TrainingScan:
    """Make a training scan of a preprocessed image; see `load_training_scan`."""
    labels, lesions = resample_lesions(paths.lesions, fed.image)
    loss_mask = dilate_brain(fed.brain)
    centres = {
        "lesion": lesions,
        "mimic": _find_mimic_voxels(paths.mimics, fed.image, loss_mask),
        "dark": [_find_dark_spots(fed.image, fed.brain.data & (labels == 0))],
        "any": [_subsample(np.argwhere(fed.brain.data))],
    }
    return TrainingScan(paths.name, fed.image.data.astype(np.float16), labels, loss_mask, centres)


def resample_lesions(path: Path, like: Volume) -> tuple[np.ndarray, list[np.ndarray]]:
    """Resample the lesions of a label map to the grid of ``like``.

    Returns:
        labels: As `TrainingScan.labels`.
        voxels: Of each lesion, int16 (N, 3).
    """
    stored = load_label_map(path)
    indices, uncertain = stored.data, _find_uncertain(path)
    labels, voxels_of = np.zeros(like.shape, np.uint8), []
    for index, box in enumerate(ndimage.find_objects(indices), start=1):
        if box is None:
            continue
        part = Volume(
            indices[box] == index, _shift_affine(stored.affine, [side.start for side in box])
        )
        voxels = _resample_lesion(part, like)
        if len(voxels):
            labels[tuple(voxels.T)] = UNCERTAIN if index in uncertain else LESION
            voxels_of.append(voxels.astype(np.int16))
    return labels, voxels_of


def _resample_lesion(lesion: Volume, like: Volume) -> np.ndarray:
    """Find the voxels (N, 3) of the grid of ``like`` that a lesion fills in part, at least one.

    The lesion is sampled at the middles of those voxels, so one that lies between them is given the
    nearest; beyond the grid it has none.
    """
    padded = Volume(
        np.pad(lesion.data, 1).astype(np.float32), _shift_affine(lesion.affine, (-1, -1, -1))
    )
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in padded.shape])).reshape(3, -1).T
    index = like.index(padded.world(corners))
    first = np.maximum(np.floor(index.min(0)).astype(int), 0)
    last = np.minimum(np.ceil(index.max(0)).astype(int) + 1, like.shape)
    if (last <= first).any():
        return np.zeros((0, 3), int)
    share = resample(padded, _shift_affine(like.affine, first), tuple(last - first)).data
    full = share.max()
    if full <= 0:
        middle = lesion.world(np.argwhere(lesion.data).mean(axis=0)[None])
        nearest = np.rint(like.index(middle)).astype(int)
        return nearest[((nearest >= 0) & (nearest < like.shape)).all(axis=1)]
    return first + np.argwhere(share >= min(MIN_LESION_FRACTION, 0.6 * full))


def _shift_affine(affine: np.ndarray, start: Sequence[int]) -> np.ndarray:
    """Shift an affine to a grid that begins at voxel ``start``."""
    return affine @ from_matvec(np.eye(3), start)


def _find_uncertain(lesions: Path) -> set[int]:
    """List the indices of lesions that their table does not call definite."""
    table = lesions.with_name(lesions.name.partition(".")[0] + ".tsv")
    if not table.is_file():
        return set()
    lines = [line.split("\t") for line in table.read_text(encoding="utf-8").splitlines()]
    if not lines or "certainty" not in lines[0]:
        return set()
    column = lines[0].index("certainty")
    return {int(line[0]) for line in lines[1:] if line[column] != "definite"}


def _find_mimic_voxels(path: Path | None, like: Volume, loss_mask: np.ndarray) -> list[np.ndarray]:
    """List for each mimic its voxels on the network's grid within the loss mask."""
    if path is None:
        return []
    mimics = load_labels(path)
    voxels = np.argwhere(mimics.data > 0)
    label = np.rint(mimics.data[tuple(voxels.T)]).astype(int)
    voxel = np.rint(like.index(mimics.world(voxels))).astype(int)
    inside = ((voxel >= 0) & (voxel < like.shape)).all(axis=1)
    voxel, label = voxel[inside], label[inside]
    kept = loss_mask[tuple(voxel.T)]
    voxel, label = voxel[kept].astype(np.int16), label[kept]
    order = np.argsort(label, kind="stable")
    cuts = np.flatnonzero(np.diff(label[order])) + 1
    return [part for part in np.split(voxel[order], cuts) if len(part)]


def _find_dark_spots(image: Volume, mask: np.ndarray) -> np.ndarray:
    """Find local minima that are clearly darker than their surround of 9 mm, (N, 3)."""
    data = image.data
    surround = ndimage.uniform_filter(data, np.maximum(3, np.round(9 / image.spacing)).astype(int))
    lowest = data == ndimage.minimum_filter(data, 3)
    return _subsample(np.argwhere(lowest & mask & (data < surround - MIN_DARKNESS)))


def _subsample(voxels: np.ndarray, max_count: int = 20_000) -> np.ndarray:
    return voxels[:: max(1, len(voxels) // max_count)].astype(np.int16)


# --- Patches --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PatchSampling:
    """How patches are sampled and augmented.

    Attributes:
        shape: Voxels of a patch.
        shares: Sampling weight of each kind of centre.
        gain: Least and most that a patch is multiplied by.
        gamma: Least and most exponent of its values.
        noise: Most noise that is added, in brain medians.
        grain: Most standard deviation, in voxels of a slice, that the noise is smoothed by:
            noise of scans whose pixels are finer than what was measured. Its strength stays.
        swaps: Whether the first two axes may change places.
        reach: Voxels by which the middle may lie off the centre along each axis; a third of the
            shape without.
    """

    shape: tuple[int, int, int]
    shares: dict[str, float]
    gain: tuple[float, float] = (0.8, 1.25)
    gamma: tuple[float, float] = (0.75, 1.35)
    noise: float = 0.03
    grain: float = 0.0
    swaps: bool = True
    reach: tuple[int, int, int] | None = None


def sample_batch(
    scans: Sequence[TrainingScan], sampling: PatchSampling, rng: np.random.Generator, *, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Sample a batch: images (B, X, Y, Z, 1), and labels with weights (B, X, Y, Z, 2)."""
    return collate(sample_patch(scans, sampling, rng) for _ in range(size))


def collate(
    samples: Iterable[tuple[np.ndarray, np.ndarray]],
) -> tuple[np.ndarray, np.ndarray]:
    """Collate patches and their labels into one batch."""
    images, truths = zip(*samples, strict=True)
    return np.stack(images), np.stack(truths)


def sample_patch(
    scans: Sequence[TrainingScan], sampling: PatchSampling, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Sample and augment a patch (X, Y, Z, 1) and its labels with weights (X, Y, Z, 2)."""
    image, codes, loss_mask = sample_patch_labels(scans, sampling, rng)
    labels = np.stack([codes == LESION, loss_mask & (codes != UNCERTAIN)], axis=-1)
    return image, labels.astype(np.float32)


def sample_patch_labels(
    scans: Sequence[TrainingScan], sampling: PatchSampling, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sample and augment a patch with its labels and loss mask.

    Returns:
        image: float32, (X, Y, Z, 1).
        labels: As `TrainingScan.labels`, (X, Y, Z).
        loss_mask: bool, (X, Y, Z).
    """
    scan, centre = sample_centre(scans, sampling.shares, rng)
    shape = np.array(sampling.shape)
    reach = shape // 3 if sampling.reach is None else np.array(sampling.reach)
    start = centre - shape // 2 + rng.integers(-reach, reach + 1)
    parts = [crop_or_pad(data, start, shape) for data in (scan.image, scan.labels, scan.loss_mask)]
    stacked = np.stack([part.astype(np.float32) for part in parts], axis=-1)
    stacked = flip_randomly(stacked, rng, swaps=sampling.swaps)
    image = augment_intensity(stacked[..., :1], sampling, rng)
    return image, stacked[..., 1].astype(np.uint8), stacked[..., 2] > 0


def sample_centre(
    scans: Sequence[TrainingScan], shares: Mapping[str, float], rng: np.random.Generator
) -> tuple[TrainingScan, np.ndarray]:
    """Sample a scan, and a voxel of it to centre a patch on, its kind weighted by ``shares``."""
    scan = scans[rng.integers(len(scans))]
    kinds = [
        kind for kind, candidates in scan.sampling_centres.items() if any(map(len, candidates))
    ]
    chances = np.array([shares.get(kind, 0) for kind in kinds]) + 1e-9
    kind = kinds[rng.choice(len(kinds), p=chances / chances.sum())]
    candidates = [voxels for voxels in scan.sampling_centres[kind] if len(voxels)]
    chosen = candidates[rng.integers(len(candidates))]
    return scan, chosen[rng.integers(len(chosen))].astype(int)


def flip_randomly(stacked: np.ndarray, rng: np.random.Generator, *, swaps: bool) -> np.ndarray:
    """Flip a patch (X, Y, Z, C) along random axes, at times swapping the first two."""
    for axis in range(3):
        if rng.random() < 0.5:
            stacked = np.flip(stacked, axis)
    if swaps and stacked.shape[0] == stacked.shape[1] and rng.random() < 0.5:
        stacked = np.swapaxes(stacked, 0, 1)
    return stacked


def augment_intensity(
    image: np.ndarray, sampling: PatchSampling, rng: np.random.Generator
) -> np.ndarray:
    """Vary contrast, brightness and noise of an image in brain medians."""
    image = np.maximum(image, 0) ** np.float32(rng.uniform(*sampling.gamma))
    image = image * np.float32(np.exp(rng.uniform(*np.log(sampling.gain))))
    noise = rng.standard_normal(image.shape, np.float32)
    strength = np.float32(rng.uniform(0, sampling.noise))
    if sampling.grain:
        noise = _smooth_noise(noise, rng.uniform(0, sampling.grain))
    return image + strength * noise * (image != 0)


def _smooth_noise(noise: np.ndarray, width: float) -> np.ndarray:
    """Smooth noise within slices by ``width`` voxels (standard deviation), keeping its strength."""
    smooth = ndimage.gaussian_filter(noise, (width, width, 0, 0)[: noise.ndim])
    return smooth * np.float32(1 / max(smooth.std(), 1e-6))
