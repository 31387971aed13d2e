"""Training scans: loaded once, kept on a network's grid."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from bids_cmb.anatomy.brain_extraction import segment_brain
from bids_cmb.files import replacing
from bids_cmb.imaging.grid import Grid
from bids_cmb.imaging.nifti import load, load_labels
from bids_cmb.imaging.phase import UndecidedError, load_phase_map, resample_phase
from bids_cmb.imaging.preprocessing import Preprocessed, dilate_brain, preprocess
from bids_cmb.imaging.resampling import resample_like
from bids_cmb.imaging.volume import Volume
from bids_cmb.provenance import fingerprint, package_digest, sha256
from bids_cmb.training.reference_labels import (
    find_dark_spots,
    find_mimic_voxels,
    resample_lesions,
    subsample,
)
from bids_cmb.training.scan_files import ScanFiles, digest_files

_Item, _Result = TypeVar("_Item"), TypeVar("_Result")


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


def describe_scans(scans: Sequence[TrainingScan]) -> str:
    """Say how many scans there are, with how many lesions."""
    lesions = sum(len(scan.sampling_centres["lesion"]) for scan in scans)
    return f"{len(scans)} scans with {lesions} lesions"


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
        away = reference.max_corner_distance(image)
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
        "mimic": find_mimic_voxels(paths.mimics, fed.image, loss_mask),
        "dark": [find_dark_spots(fed.image, fed.brain.data & (labels == 0))],
        "any": [subsample(np.argwhere(fed.brain.data))],
    }
    return TrainingScan(paths.name, fed.image.data.astype(np.float16), labels, loss_mask, centres)
