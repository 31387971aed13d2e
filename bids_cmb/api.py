"""The Python API: one scan in ten lines, without a dataset. See ``docs/guide/python_api.md``."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bids_cmb.anatomy import scan_anatomy
from bids_cmb.anatomy.atlases import find_atlases
from bids_cmb.anatomy.brain_extraction import mask_stripped_brain
from bids_cmb.anatomy.mni_template import load_template
from bids_cmb.anatomy.region_map import build_region_map
from bids_cmb.anatomy.scan_anatomy import AnatomyResult
from bids_cmb.anatomy.segmentation import DEEP_WHITE_MM
from bids_cmb.anatomy.user_segmentation import load_segmentation
from bids_cmb.config import DEFAULT_DETECTOR
from bids_cmb.detection import ensemble
from bids_cmb.detection.ensemble import Probability
from bids_cmb.evaluation.evaluate import compute_evaluation
from bids_cmb.evaluation.options import EvaluationOptions
from bids_cmb.evaluation.results import Evaluation
from bids_cmb.imaging.loading import load_echoes
from bids_cmb.imaging.volume import Volume
from bids_cmb.lesions import locations
from bids_cmb.lesions.measure import Lesion, find_lesions
from bids_cmb.networks.loading import ModelOptions
from bids_cmb.networks.model_cards import ANATOMY, load_card
from bids_cmb.simulation import simulate
from bids_cmb.simulation.lesion_priors import load_priors
from bids_cmb.simulation.phantom import make_procedural_head
from bids_cmb.simulation.protocols import resolve_protocols, sample_protocol
from bids_cmb.simulation.simulate import SimulatedScan
from bids_cmb.workflow.inputs import choose_thresholds


def load_image(path: str | Path, *more_echoes: str | Path) -> Volume:
    """Load a T2*-weighted magnitude or an SWI; several echoes are combined.

    Args:
        path: A ``.nii`` or ``.nii.gz`` file with one volume.
        *more_echoes: Further echoes of the scan, combined as the root of their mean square.

    Returns:
        ``data``, float32 (X, Y, Z), on the grid of the file; ``affine``, (4, 4), voxels to world
        mm, RAS+; ``spacing``, mm.

    Raises:
        ValueError: If a file cannot be used; the sentence names it.
        OSError: If one cannot be read.
    """
    image, _ = load_echoes([Path(name) for name in (path, *more_echoes)])
    return image


def segment_anatomy(
    image: Volume, *, segmentation: str | Path | None = None, model_dir: str | Path | None = None
) -> AnatomyResult:
    """Segment the head: structures, left and right, brain, and the way to MNI space.

    Args:
        image: The scan.
        segmentation: A label map in FreeSurfer's codes in the space of the scan, used as it is;
            the network segments the scan without.
        model_dir: A folder of model cards and weights, looked at before those of the package.

    Returns:
        ``head.structures``, uint16 FreeSurfer codes on a grid of their own; ``head.to_mni``, (4, 4)
        world mm to mm of MNI152NLin2009cAsym.

    Raises:
        ValueError: If no brain is recognised, or the segmentation cannot be used.
    """
    folder = _path(model_dir)
    if segmentation is None:
        return scan_anatomy.segment_head(image, ModelOptions(folder))
    about, path = load_card(ANATOMY, folder), Path(segmentation)
    head, lobes = load_segmentation(path, about["classes"], load_template())
    return AnatomyResult(head, lobes, str(path), segmentation=path)


def extract_brain(
    image: Volume,
    anatomy: AnatomyResult | None = None,
    *,
    mask: str | Path | None = None,
    stripped: bool = False,
) -> Volume:
    """Get the brain mask of a scan.

    Args:
        image: The scan.
        anatomy: As `segment_anatomy` gives it; the brain is found by intensity and shape without.
        mask: A brain mask in the space of the scan, used instead.
        stripped: Whether the scan is skull-stripped, its non-zero voxels being the brain.

    Returns:
        Bool, (X, Y, Z), on the grid of the scan.

    Raises:
        ValueError: If no brain is found, or the scan is not brighter than 0 in it.
    """
    if stripped:
        brain = mask_stripped_brain(image)
    elif mask is not None:
        brain = scan_anatomy.load_brain_mask(Path(mask), image)
    else:
        brain = scan_anatomy.extract_brain_mask(image, anatomy).mask
    scan_anatomy.check_brightness(image, brain)
    return brain


def detect_microbleeds(
    image: Volume,
    brain: Volume,
    detector: str | Sequence[str] = DEFAULT_DETECTOR,
    *,
    anatomy: AnatomyResult | None = None,
    model_dir: str | Path | None = None,
) -> Probability:
    """Compute the probability of microbleed at every voxel.

    Args:
        image: The scan.
        brain: Its brain mask, bool, on the same grid.
        detector: Name of a detector, ``radial`` being the quick one without networks, or several,
            whose answers are averaged.
        anatomy: As `segment_anatomy` gives it, for detectors that use it.
        model_dir: A folder of model cards and weights, looked at before those of the package.

    Returns:
        ``mean``, float32 (X, Y, Z) from 0 to 1 on the grid of the scan; ``detectors``, their names.

    Raises:
        ValueError: If a detector is unknown, or the mask lies on another grid.
    """
    _check_grid("`brain`", brain, image)
    head = None if anatomy is None else anatomy.head
    return ensemble.detect(detector, image, brain, ModelOptions(_path(model_dir)), None, head)


def measure_lesions(
    probability: Probability,
    image: Volume,
    brain: Volume,
    *,
    threshold: float | None = None,
    min_volume_mm3: float | None = None,
    model_dir: str | Path | None = None,
) -> tuple[Volume, list[Lesion]]:
    """Cut a probability map into lesions and measure each one.

    Args:
        probability: As `detect_microbleeds` gives it.
        image: The scan.
        brain: Its brain mask, bool, on the same grid.
        threshold: From which a voxel is lesion, above 0 and up to 1; that of the detector without.
        min_volume_mm3: Of the smallest lesion; that of the detector without.
        model_dir: The folder of `detect_microbleeds`.

    Returns:
        Labels, uint16 (X, Y, Z), and the lesions, the surest first: ``index`` in the labels,
        ``centre`` in world mm, ``volume`` in mm³, ``size`` in mm (diameter at half depth),
        ``certainty``, ``flags`` and whether they are ``included``.

    Raises:
        ValueError: If image, mask and probability lie on different grids, or the threshold is out
            of its range.
    """
    if threshold is not None and not 0 < threshold <= 1:
        raise ValueError(f"`threshold` must be above 0 and up to 1; found {threshold}.")
    _check_grid("`brain`", brain, image)
    _check_grid("`probability`", probability.mean, image)
    cards = [load_card(name, _path(model_dir)) for name in probability.detectors]
    thresholds = choose_thresholds(cards, threshold, min_volume_mm3)
    return find_lesions(probability.as_map(), image, brain, thresholds)


def locate_lesions(
    lesions: Sequence[Lesion],
    image: Volume,
    anatomy: AnatomyResult,
    *,
    deep_wm_distance_mm: float = DEEP_WHITE_MM,
    model_dir: str | Path | None = None,
) -> list[Lesion]:
    """Give each lesion the place where its centre lies.

    Args:
        lesions: As `measure_lesions` gives them.
        image: The scan.
        anatomy: As `segment_anatomy` gives it; a network draws it on finer voxels first.
        deep_wm_distance_mm: White matter this close to a lateral ventricle is deep or
            periventricular.
        model_dir: The folder of `segment_anatomy`.

    Returns:
        The same lesions with ``region`` (structure), ``side``, ``territory``, ``mars`` (region of
        MARS), ``mni`` (mm) and the flag ``csf``. Lobes are told apart where TemplateFlow's archive
        has the Harvard-Oxford atlas.
    """
    folder, atlases = _path(model_dir), find_atlases()
    if lesions and anatomy.segmentation is None:
        anatomy = scan_anatomy.refine_anatomy(image, anatomy, ModelOptions(folder))
    anatomy = scan_anatomy.add_atlases(anatomy, atlases)
    regions = build_region_map(
        anatomy.head, anatomy.lobes, anatomy.capsule, deep_wm_distance_mm=deep_wm_distance_mm
    )  # fmt: skip
    classes = load_card(ANATOMY, folder)["classes"]
    return locations.locate_lesions(
        lesions, anatomy.head, regions, classes=classes, atlases=atlases
    )


def simulate_scan(
    seed: int,
    protocol: str = "random",
    *,
    priors: str = "default",
    window_mm: Sequence[float] | None = None,
) -> SimulatedScan:
    """Simulate a scan of a made-up head with microbleeds, mimics and their truth.

    Args:
        seed: The same seed gives the same scan.
        protocol: Name of a protocol, or ``random``.
        priors: Name of the distribution of lesions.
        window_mm: Size of the field of view about the middle of the brain, (3,); all without.

    Returns:
        ``scan``, the image; ``lesions`` and ``mimics``, uint16 labels; ``structures``; ``brain``;
        all on one grid; ``lesion_table``, a row for each microbleed.

    Raises:
        ValueError: If a name is unknown.
    """
    rng = np.random.default_rng(seed)
    [scanner] = resolve_protocols([protocol])
    scanner = scanner or sample_protocol(rng)
    head = make_procedural_head(rng)
    return simulate.simulate_scan(rng, head, scanner, load_priors(priors), window_mm=window_mm)


def evaluate(
    predictions: str | Path,
    truth: str | Path,
    *,
    match: str = "valdo",
    threshold: float = 0.0,
    seed: int = 0,
    bootstrap: int | None = None,
) -> Evaluation:
    """Compare the lesions that were found with those that are true.

    Args:
        predictions: Output folder of the app, a folder of masks or tables, or one such file.
        truth: The same; or a table of coordinates for many scans.
        match: Rule of matching.
        threshold: Probability below which a lesion that was found does not count, 0 to 1.
        seed: Of the bootstrap.
        bootstrap: Draws of scans for the 95 % intervals.

    Returns:
        ``figures``, by name, each with ``value``, ``low`` and ``high``; ``lesions`` and ``scans``,
        tables of what became of each.

    Raises:
        ValueError: If a file cannot be used, or both have no scan in common.
        OSError: If one cannot be read.
    """
    draws = EvaluationOptions.draws if bootstrap is None else bootstrap
    settings = EvaluationOptions(match=match, threshold=threshold, seed=seed, draws=draws)
    return compute_evaluation(Path(predictions), Path(truth), settings)


def _path(folder: str | Path | None) -> Path | None:
    return None if folder is None else Path(folder)


def _check_grid(name: str, volume: Volume, image: Volume) -> None:
    if not volume.shares_grid(image):
        raise ValueError(
            f"{name} must lie on the grid of the scan, {image.shape} voxels; found "
            f"{volume.shape} voxels, or another affine."
        )
