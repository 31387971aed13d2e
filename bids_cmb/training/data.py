"""Scans with their truth, as a network in training is fed: read once, kept on its grid."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from nibabel.affines import from_matvec
from scipy import ndimage

from bids_cmb.anatomy.brain_extraction import find_brain
from bids_cmb.bids.companions import OURS
from bids_cmb.bids.filters import Query
from bids_cmb.bids.selection import Scan, find_scans
from bids_cmb.bids.tables import DESCRIBED
from bids_cmb.imaging.phase import UndecidedError, find_phase, on_grid, read_phase
from bids_cmb.imaging.preprocessing import Grid, Preprocessed, cut, near, preprocess
from bids_cmb.imaging.volume import Volume, load, load_labels, resample, resample_like
from bids_cmb.lesions.label_maps import label_map

LESION, UNSURE = 1, 2  # values of `Case.truth`; 0 is neither
SHARE = 0.4  # of a voxel of the network's grid that a lesion must fill
DARK = 0.25  # of the brain's median, below the mean of the surround: could be taken for a lesion


@dataclass(frozen=True)
class Paths:
    """The files of one scan and of its truth; those that may be missing are None."""

    name: str
    image: Path
    lesions: Path | None
    mimics: Path | None
    structures: Path | None
    brain: Path | None

    @property
    def phase(self) -> Path | None:
        """The phase image beside it, looked for when it is asked for."""
        return find_phase(self.image).path

    @property
    def subject(self) -> str:
        """``sub-`` and the label."""
        return self.name.split("_")[0]


@dataclass(frozen=True, eq=False)
class Case:
    """One scan on a network's grid.

    Attributes:
        name: Subject and scan.
        image: float16, scaled by the grid's rule, (X, Y, Z).
        truth: uint8, `LESION`, `UNSURE` or 0, (X, Y, Z).
        heard: bool, where the network is told what is there: the brain and its surface, (X, Y, Z).
        centres: Voxels to draw patches around, for each kind a list of (N, 3): one for each
            lesion, one for each mimic; a single one for dark spots and one for any place.
        phase: float16, 0 to 1 as `imaging.phase.on_grid` has it, (X, Y, Z); None where there is
            none, or nobody asked for it.
    """

    name: str
    image: np.ndarray
    truth: np.ndarray
    heard: np.ndarray
    centres: dict[str, list[np.ndarray]]
    phase: np.ndarray | None = None


def find_cases(data: Path, truth: Path | None = None) -> list[Paths]:
    """Find every scan of a BIDS dataset that has a truth.

    A truth is of a scan if their entities are equal. Of several it is the one whose ``desc`` is
    the scan's suffix (behind the scan's own ``desc``, if it has one), as the app names its results.

    Args:
        data: The dataset.
        truth: The derivative dataset with the truth; ``data/derivatives/truth`` without.

    Raises:
        ValueError: If no scan of the dataset has a truth, a scan has several, one file fits
            several scans, or a file lies in the folder of another participant.
    """
    data = data.absolute()  # as the paths of scans are
    home = truth or data / "derivatives" / "truth"
    scans = find_scans(data, Query()).scans
    alike: dict[tuple, list[Scan]] = {}
    for scan in scans:
        alike.setdefault(scan.entities, []).append(scan)
    taken: dict[Path, Scan] = {}
    kept = []
    for scan in scans:
        folder = home / scan.path.parent.relative_to(data)
        paths = _paths(scan, _Shelf(folder, scan, alike[scan.entities]))
        if paths.lesions is None:
            continue
        for path in (paths.lesions, paths.mimics, paths.structures, paths.brain):
            if path is not None and taken.setdefault(path, scan) is not scan:
                other = taken[path]
                raise ValueError(
                    f"{path}: a file of the truth must be of one scan; found that it fits "
                    f"{other.name} and {scan.name} (desc-{other.desc}{other.suffix} or "
                    f"desc-{scan.desc}{scan.suffix} in its name would tell)."
                )
        kept.append(paths)
    if not kept:
        raise ValueError(
            f"{home}: a truth needs label maps of microbleeds (…seg-CMB…dseg or mask); found none "
            f"for any of {len(scans)} scans."
        )
    return kept


class _Shelf:
    """The images of the truth that are of one scan by their names."""

    def __init__(self, folder: Path, scan: Scan, alike: Sequence[Scan]):
        """``alike`` are the scans of the same entities, of which some differ in their suffix."""
        self.scan, self.own = scan, scan.desc + scan.suffix
        others = {one.desc + one.suffix for one in alike} | DESCRIBED.keys()
        # Beside scans of a folder swi/, which is not in the standard, our derivatives have anat/.
        folders = dict.fromkeys((folder, folder.with_name("anat")))
        self.images = []
        for path in [path for one in folders for path in sorted(one.glob("sub-*.nii*"))]:
            *pairs, suffix = path.name.partition(".")[0].split("_")
            named = dict(pair.partition("-")[::2] for pair in pairs)
            if named.get("sub") != scan.subject:
                raise ValueError(
                    f"{path}: a truth must lie in the folder of its participant; found sub-"
                    f"{named.get('sub', '')} in its name and sub-{scan.subject} in that of the "
                    "folder."
                )
            ours = {key: named.pop(key) for key in OURS if key in named}
            at_home = ours.get("space", "orig").lower() in ("orig", scan.suffix.lower())
            mine = ours.get("desc") == self.own or ours.get("desc") not in others
            if at_home and mine and named == dict(scan.entities):
                self.images.append((path, ours, suffix))

    def only(self, key: str, label: str, suffixes: Sequence[str]) -> Path | None:
        """Find the image whose entity ``key`` begins with ``label``, by the first suffix any has.

        Raises:
            ValueError: If there are several, none of which says that it is of this scan alone.
        """
        for suffix in suffixes:
            fitting = [
                (path, ours)
                for path, ours, of in self.images
                if of == suffix and ours.get(key, "").startswith(label)
            ]
            sure = [(path, ours) for path, ours in fitting if ours.get("desc") == self.own]
            found = [path for path, _ in sure or fitting]
            if len(found) > 1:
                raise ValueError(
                    f"{self.scan.name}: a scan needs one truth of {key}-{label}; found "
                    f"{len(found)}: {' and '.join(path.name for path in found[:3])}."
                )
            if found:
                return found[0]
        return None


def _paths(scan: Scan, shelf: _Shelf) -> Paths:
    stem = scan.path.name.split(".")[0].rsplit("_", 1)[0]
    maps = ("dseg", "mask")
    return Paths(
        stem,
        scan.path,
        shelf.only("seg", "CMB", maps) or shelf.only("label", "CMB", maps[::-1]),
        shelf.only("seg", "mimics", maps),
        shelf.only("seg", "structures", maps),
        shelf.only("label", "brain", maps[::-1]),
    )


# --- Lesions --------------------------------------------------------------------------------------


def read_case(paths: Paths, grid: Grid, *, with_phase: bool = False) -> Case:
    """A scan and its lesions on the grid of a network, and its phase if asked for.

    Raises:
        ValueError: If a file cannot be used.
        OSError: If it cannot be read.
    """
    scan = read_scan(paths)
    case = case_of(paths, preprocess(*scan, grid))
    seen = phase_on(paths, *scan, grid) if with_phase else None
    return case if seen is None else replace(case, phase=seen.astype(np.float16))


def phase_on(paths: Paths, image: Volume, brain: Volume, grid: Grid) -> np.ndarray | None:
    """The phase of a scan on the grid of a network, as `phase_of`."""
    seen = phase_of(paths, image, brain)
    return None if seen is None else on_grid(seen, brain, grid)


def phase_of(paths: Paths, image: Volume, brain: Volume) -> Volume | None:
    """The calm map of a scan's phase; None without one, or if its sign cannot be told.

    Raises:
        ValueError: If the file cannot be used.
        OSError: If it cannot be read.
    """
    path = paths.phase
    if path is None:
        return None
    try:
        return read_phase(path, image, brain)
    except UndecidedError:
        return None


def read_scan(paths: Paths) -> tuple[Volume, Volume]:
    """A scan and its brain: the true one, or the one that is found without.

    Raises:
        ValueError: If a file cannot be used.
        OSError: If it cannot be read.
    """
    image, _ = load(paths.image)
    if paths.lesions is not None:
        _must_lie_on(paths.lesions, load_labels(paths.lesions), paths.image, image)
    if paths.brain is None:
        return image, find_brain(image)
    brain = load_labels(paths.brain)
    _must_lie_on(paths.brain, brain, paths.image, image)
    return image, Volume(resample_like(brain, image, order=0).data > 0, image.affine)


def _must_lie_on(path: Path, truth: Volume, where: Path, image: Volume) -> None:
    """Refuse a truth that is not where its scan is.

    Raises:
        ValueError: If nothing that is marked lies within the scan, or the truth has the voxels of
            the scan but its affine puts them somewhere else.
    """
    if truth.shape == image.shape:
        corners = np.array(np.meshgrid(*[(0, n - 1) for n in image.shape])).reshape(3, -1).T
        away = np.linalg.norm(truth.world(corners) - image.world(corners), axis=1).max()
        if away > image.spacing.max():
            raise ValueError(
                f"{path}: a truth with as many voxels as its scan must lie where the scan lies; "
                f"found them up to {away:.1f} mm apart ({where.name})."
            )
    marked = np.argwhere(truth.data > 0)
    at = image.index(truth.world(marked))
    inside = ((at > -0.5) & (at < np.array(image.shape) - 0.5)).all(axis=1)
    if len(marked) and not inside.any():
        raise ValueError(
            f"{path}: a truth must lie within its scan; found nothing of it in {where.name}."
        )


def structures_of(paths: Paths, what: str) -> Volume:
    """The true structures of a scan, FreeSurfer's codes, which ``what`` is learnt from.

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


def case_of(paths: Paths, fed: Preprocessed) -> Case:
    """The lesions of a scan that is on the grid of a network already; see `read_case`."""
    truth, lesions = true_voxels(paths.lesions, fed.image)
    heard = near(fed.brain)
    centres = {
        "lesion": lesions,
        "mimic": _mimic_centres(paths.mimics, fed.image, heard),
        "dark": [_dark_spots(fed.image, fed.brain.data & (truth == 0))],
        "any": [_some(np.argwhere(fed.brain.data))],
    }
    return Case(paths.name, fed.image.data.astype(np.float16), truth, heard, centres)


def true_voxels(path: Path, like: Volume) -> tuple[np.ndarray, list[np.ndarray]]:
    """The lesions of a label map on the grid of ``like``: `Case.truth`, and each one's voxels."""
    stored = label_map(path)
    indices, unsure = stored.data, _unsure(path)
    truth, voxels_of = np.zeros(like.shape, np.uint8), []
    for index, box in enumerate(ndimage.find_objects(indices), start=1):
        if box is None:
            continue
        part = Volume(indices[box] == index, _moved(stored.affine, [side.start for side in box]))
        voxels = _lesion_voxels(part, like)
        if len(voxels):
            truth[tuple(voxels.T)] = UNSURE if index in unsure else LESION
            voxels_of.append(voxels.astype(np.int16))
    return truth, voxels_of


def _lesion_voxels(lesion: Volume, like: Volume) -> np.ndarray:
    """Find the voxels (N, 3) of the grid of ``like`` that a lesion fills in part, at least one.

    The lesion is sampled at the middles of those voxels, so one that lies between them is given the
    nearest; beyond the grid it has none.
    """
    padded = Volume(np.pad(lesion.data, 1).astype(np.float32), _moved(lesion.affine, (-1, -1, -1)))
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in padded.shape])).reshape(3, -1).T
    at = like.index(padded.world(corners))
    first = np.maximum(np.floor(at.min(0)).astype(int), 0)
    last = np.minimum(np.ceil(at.max(0)).astype(int) + 1, like.shape)
    if (last <= first).any():
        return np.zeros((0, 3), int)
    share = resample(padded, _moved(like.affine, first), tuple(last - first)).data
    full = share.max()
    if full <= 0:
        middle = lesion.world(np.argwhere(lesion.data).mean(axis=0)[None])
        nearest = np.rint(like.index(middle)).astype(int)
        return nearest[((nearest >= 0) & (nearest < like.shape)).all(axis=1)]
    return first + np.argwhere(share >= min(SHARE, 0.6 * full))


def _moved(affine: np.ndarray, start: Sequence[int]) -> np.ndarray:
    """The affine of a grid that begins at voxel ``start``."""
    return affine @ from_matvec(np.eye(3), start)


def _unsure(lesions: Path) -> set[int]:
    """Indices of the lesions that their table does not call definite."""
    table = lesions.with_name(lesions.name.partition(".")[0] + ".tsv")
    if not table.is_file():
        return set()
    lines = [line.split("\t") for line in table.read_text(encoding="utf-8").splitlines()]
    if not lines or "certainty" not in lines[0]:
        return set()
    at = lines[0].index("certainty")
    return {int(line[0]) for line in lines[1:] if line[at] != "definite"}


def _mimic_centres(path: Path | None, like: Volume, heard: np.ndarray) -> list[np.ndarray]:
    """For each mimic the voxels of the network's grid that lie in it and are heard of."""
    if path is None:
        return []
    mimics = load_labels(path)
    voxels = np.argwhere(mimics.data > 0)
    index = np.rint(mimics.data[tuple(voxels.T)]).astype(int)
    at = np.rint(like.index(mimics.world(voxels))).astype(int)
    inside = ((at >= 0) & (at < like.shape)).all(axis=1)
    at, index = at[inside], index[inside]
    kept = heard[tuple(at.T)]
    at, index = at[kept].astype(np.int16), index[kept]
    order = np.argsort(index, kind="stable")
    cuts = np.flatnonzero(np.diff(index[order])) + 1
    return [part for part in np.split(at[order], cuts) if len(part)]


def _dark_spots(image: Volume, where: np.ndarray) -> np.ndarray:
    """Local minima that are clearly darker than their surround of 9 mm, (N, 3)."""
    data = image.data
    around = ndimage.uniform_filter(data, np.maximum(3, np.round(9 / image.spacing)).astype(int))
    lowest = data == ndimage.minimum_filter(data, 3)
    return _some(np.argwhere(lowest & where & (data < around - DARK)))


def _some(voxels: np.ndarray, most: int = 20_000) -> np.ndarray:
    return voxels[:: max(1, len(voxels) // most)].astype(np.int16)


# --- Patches --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Drawing:
    """How patches are drawn and varied.

    Attributes:
        shape: Voxels of a patch.
        shares: How often a patch is drawn around each kind of centre.
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


def batches(
    cases: Sequence[Case], drawing: Drawing, *, size: int, seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches without end: images (B, X, Y, Z, 1) and truths with weights (B, X, Y, Z, 2).

    The same seed gives the same batches.
    """
    at = 0
    while True:
        yield batch(cases, drawing, np.random.default_rng([seed, at]), size=size)
        at += 1


def batch(
    cases: Sequence[Case], drawing: Drawing, rng: np.random.Generator, *, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """One batch; see `batches`."""
    return together(draw(cases, drawing, rng) for _ in range(size))


def together(
    drawn: Iterable[tuple[np.ndarray, np.ndarray]],
) -> tuple[np.ndarray, np.ndarray]:
    """Patches and their truths as one batch."""
    images, truths = zip(*drawn, strict=True)
    return np.stack(images), np.stack(truths)


def draw(
    cases: Sequence[Case], drawing: Drawing, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """One patch and its truth with weights, varied: (X, Y, Z, 1) and (X, Y, Z, 2)."""
    image, codes, heard = draw_codes(cases, drawing, rng)
    told = np.stack([codes == LESION, heard & (codes != UNSURE)], axis=-1)
    return image, told.astype(np.float32)


def draw_codes(
    cases: Sequence[Case], drawing: Drawing, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One patch, varied, (X, Y, Z, 1), its `Case.truth` and where it is heard of, (X, Y, Z)."""
    case, centre = drawn(cases, drawing.shares, rng)
    shape = np.array(drawing.shape)
    reach = shape // 3 if drawing.reach is None else np.array(drawing.reach)
    start = centre - shape // 2 + rng.integers(-reach, reach + 1)
    parts = [cut(data, start, shape) for data in (case.image, case.truth, case.heard)]
    stacked = np.stack([one.astype(np.float32) for one in parts], axis=-1)
    stacked = turned(stacked, rng, swaps=drawing.swaps)
    image = varied(stacked[..., :1], drawing, rng)
    return image, stacked[..., 1].astype(np.uint8), stacked[..., 2] > 0


def drawn(
    cases: Sequence[Case], shares: Mapping[str, float], rng: np.random.Generator
) -> tuple[Case, np.ndarray]:
    """A case, and a voxel of it to draw a patch around, of a kind as often as ``shares`` say."""
    case = cases[rng.integers(len(cases))]
    kinds = [kind for kind, places in case.centres.items() if any(map(len, places))]
    chances = np.array([shares.get(kind, 0) for kind in kinds]) + 1e-9
    kind = kinds[rng.choice(len(kinds), p=chances / chances.sum())]
    places = [one for one in case.centres[kind] if len(one)]
    place = places[rng.integers(len(places))]
    return case, place[rng.integers(len(place))].astype(int)


def turned(stacked: np.ndarray, rng: np.random.Generator, *, swaps: bool) -> np.ndarray:
    """A patch (X, Y, Z, C) turned around along any axes, at times with the first two swapped."""
    for axis in range(3):
        if rng.random() < 0.5:
            stacked = np.flip(stacked, axis)
    if swaps and stacked.shape[0] == stacked.shape[1] and rng.random() < 0.5:
        stacked = np.swapaxes(stacked, 0, 1)
    return stacked


def varied(image: np.ndarray, drawing: Drawing, rng: np.random.Generator) -> np.ndarray:
    """An image in brain medians with another contrast, another brightness and more noise."""
    image = np.maximum(image, 0) ** np.float32(rng.uniform(*drawing.gamma))
    image = image * np.float32(np.exp(rng.uniform(*np.log(drawing.gain))))
    noise = rng.standard_normal(image.shape, np.float32)
    strength = np.float32(rng.uniform(0, drawing.noise))
    if drawing.grain:
        noise = _smooth_noise(noise, rng.uniform(0, drawing.grain))
    return image + strength * noise * (image != 0)


def _smooth_noise(noise: np.ndarray, width: float) -> np.ndarray:
    """Smooth noise within slices by ``width`` voxels, standard deviation; its strength stays."""
    smooth = ndimage.gaussian_filter(noise, (width, width, 0, 0)[: noise.ndim])
    return smooth * np.float32(1 / max(smooth.std(), 1e-6))
