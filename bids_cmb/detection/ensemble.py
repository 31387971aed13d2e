"""Detection: the probability of microbleed at every voxel of a scan, by one or several detectors.

A detector is a model card (`networks.model_cards`). One whose card has members and no design is an
ensemble of networks, each on its own grid; the others are in `detection.designs`.
"""

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from bids_cmb.anatomy.segmentation import Anatomy
from bids_cmb.detection.calibration import COMMON_THRESHOLD, calibrate, map_to_common_scale
from bids_cmb.detection.designs import DESIGNS, FUNCTIONS, WITH_ANATOMY, card_uses_phase
from bids_cmb.detection.members import (
    dilate_by_voxel,
    locate_member,
    resample_around,
    resample_within_brain,
)
from bids_cmb.detection.outputs import DetectorOutputs, merge_outputs
from bids_cmb.detection.two_stage import OPINION_DISTANCE_MM, read_opinion
from bids_cmb.imaging.grid import Grid
from bids_cmb.imaging.preprocessing import Preprocessed, preprocess
from bids_cmb.imaging.volume import Volume
from bids_cmb.lesions.measure import DetectionMap
from bids_cmb.networks.backend import release_memory
from bids_cmb.networks.inference import Network, predict, predict_around
from bids_cmb.networks.loading import ModelOptions, load_network
from bids_cmb.networks.model_cards import load_card, select_members

OPINION_REACH_MM = 4.0  # around a proposal: `two_stage.OPINION_DISTANCE_MM`, and interpolation
# Beyond it, that the networks see; docs/notes/training.md has by how much it moves the opinion
OPINION_CONTEXT_MM = 16.0
STEPS = 10_000  # that a probability is rounded to: far more than threads or processors change


@dataclass(frozen=True, eq=False)
class Probability:
    """Probability of microbleed by one or several detectors.

    Attributes:
        mean: At each voxel, 0 to 1, float32, on the scan's grid; of several detectors the mean on
            their common scale.
        detectors: Their names.
        spread: Standard deviation over the detectors, or over the members of the only one, float32;
            None if there was one map only.
        outputs: Of the detectors besides the probability.
    """

    mean: Volume
    detectors: tuple[str, ...]
    spread: Volume | None = None
    outputs: DetectorOutputs = field(default_factory=DetectorOutputs)

    def as_map(self) -> DetectionMap:
        """Return what lesions are measured from."""
        return DetectionMap(self.mean, self.spread, self.outputs.instances)

    @property
    def description(self) -> str:
        """Describe the map in a sentence for its sidecar."""
        if len(self.detectors) == 1:
            return f"Probability of cerebral microbleed, by {self.detectors[0]}."
        names = f"{', '.join(self.detectors[:-1])} and {self.detectors[-1]}"
        return (
            f"Mean of the probabilities of cerebral microbleed by {names}, each on a common scale "
            f"where the threshold of its model card is {COMMON_THRESHOLD}."
        )


def detect(
    names: str | Sequence[str], image: Volume, brain: Volume, models: ModelOptions | None = None,
    phase: Volume | None = None, anatomy: Anatomy | None = None,
) -> Probability:  # fmt: skip
    """Compute the probability of microbleed at every voxel by one or several detectors.

    Args:
        names: A detector, or several, whose probabilities are averaged with equal weight.
        image: T2*-weighted magnitude or SWI, as acquired.
        brain: True inside the brain, on the grid of ``image``.
        models: Which networks, and how; those of the package without.
        phase: From `imaging.phase.load_phase_map`, for detectors that use it.
        anatomy: Of the scan, for detectors that use it.

    Returns:
        On the grid of ``image``; 0 outside the brain, for detectors of two stages 0 beyond the
        lesions that they see up to `imaging.preprocessing.BRAIN_SHELL_MM` outside it. The
        spread is that of the detectors, or of the members if there is one detector. Several
        detectors are averaged on a common scale (`detection.calibration.map_to_common_scale`),
        where a voxel is lesion from `COMMON_THRESHOLD` on.

    Raises:
        ValueError: If a name is unknown, comes twice or none is given, or weights are not those of
            their card, or a detector returns anything but probabilities; or as
            `detection.radial.run_radial`.
    """
    names = (names,) if isinstance(names, str) else tuple(names)
    if not names or len(set(names)) < len(names):
        raise ValueError(f"Detectors must be named once each; found {list(names)}.")
    models = models or ModelOptions()
    results = [run_detector(name, image, brain, models, phase, anatomy) for name in names]
    maps = [member_maps for member_maps, _ in results]
    for name, member_maps in zip(names, maps, strict=True):
        _check_probabilities(name, member_maps)
    outputs = merge_outputs(outputs for _, outputs in results)
    cards = [load_card(name, models.folder) for name in names]
    curves = [card.get("calibration") for card in cards]
    probabilities = [
        calibrate(_average(part), curve) for part, curve in zip(maps, curves, strict=True)
    ]
    if len(names) > 1:
        thresholds = [card["threshold"] for card in cards]
        probabilities = list(map(map_to_common_scale, probabilities, thresholds))
    mean = np.round(_average(probabilities) * STEPS) / np.float32(STEPS)
    if len(names) == 1:
        probabilities = [calibrate(part, curves[0]) for part in maps[0]]
    spread = None
    if len(probabilities) > 1:
        spread = Volume(np.std(probabilities, axis=0), image.affine)
    return Probability(Volume(mean, image.affine), names, spread, outputs)


def _check_probabilities(name: str, maps: Iterable[np.ndarray]) -> None:
    """Refuse maps of a detector that are no probabilities."""
    for data in maps:
        low, high = data.min(), data.max()
        if not (low >= 0 and high <= 1):  # also true of NaN
            raise ValueError(
                f"The detector {name} must give probabilities from 0 to 1; found "
                f"{low:.3g} to {high:.3g}."
            )


def _average(maps: Sequence[np.ndarray]) -> np.ndarray:
    return np.mean(maps, axis=0, dtype=np.float32)


def predict_second_opinion(
    card: Mapping, image: Volume, brain: Volume, models: ModelOptions, positions: np.ndarray
) -> np.ndarray:
    """Predict the probability of proposals by the bundled ensemble, the ``second_opinion``.

    Args:
        card: With a ``second_opinion``. ``second_opinion_members`` are those of the ensemble that
            give it; all without.
        image: T2*-weighted magnitude or SWI, as acquired.
        brain: True inside the brain, on the grid of ``image``.
        models: How to compute; the ensemble is that of the package, whatever folder this names.
        positions: Of the proposals, world mm, (N, 3); the networks see no more than their surround
            if they are few.

    Returns:
        The mean of these members, as `two_stage.read_opinion` reads it, (N,).
    """
    if not len(positions):
        return np.zeros(0)
    members = tuple(card.get("second_opinion_members", ()))
    bundled = replace(models, folder=None, members=members)
    maps = _run_ensemble(load_card(card["second_opinion"]), image, brain, bundled, positions)
    return read_opinion(Volume(_average(maps), image.affine), positions)


def run_detector(
    name: str, image: Volume, brain: Volume, models: ModelOptions, phase: Volume | None,
    anatomy: Anatomy | None,
) -> tuple[list[np.ndarray], DetectorOutputs]:  # fmt: skip
    """Run a detector, before any calibration.

    Returns:
        The probability of microbleed by each member, 0 to 1, float32, on the grid of ``image``, a
        single map of a detector whose members run one after the other; and its further outputs.
    """
    card = load_card(name, models.folder)
    if "members" not in card:
        return [FUNCTIONS[name](image, brain, card["parameters"]).data], DetectorOutputs()
    if "design" in card:
        probability, outputs = _run_design(card, image, brain, models, phase, anatomy)
        return [probability], outputs
    return _run_ensemble(card, image, brain, models), DetectorOutputs()


def _run_ensemble(
    card: dict, image: Volume, brain: Volume, models: ModelOptions,
    positions: np.ndarray | None = None,
) -> list[np.ndarray]:  # fmt: skip
    """Run the members of an ensemble, each on its own grid, everywhere or around positions."""
    maps, grid, fed = [], None, None
    members = select_members(card, models.members)
    with ThreadPoolExecutor(1) as loader:  # a member predicts while the next one is loaded
        loading = [
            loader.submit(
                load_network,
                member,
                locate_member(card, member, models),
                precision=models.precision,
            )
            for member in members
        ]
        for member, network in zip(members, loading, strict=True):
            if Grid.from_card(member["grid"]) != grid:  # members of one grid share their input
                grid = Grid.from_card(member["grid"])
                fed = preprocess(image, brain, grid)
            prediction = _predict_member(network.result(), fed, positions)
            probability = Volume(prediction, fed.image.affine)
            resampled = (
                resample_within_brain(probability, image, brain)
                if positions is None
                else resample_around(probability, image, positions, OPINION_DISTANCE_MM)
            )
            maps.append(np.where(brain.data, resampled, np.float32(0)))
            release_memory()
    return maps


def _predict_member(
    network: Network, fed: Preprocessed, positions: np.ndarray | None
) -> np.ndarray:  # fmt: skip
    """Predict with a member everywhere in the brain, or around positions, world mm (N, 3)."""
    if positions is None:
        return predict(network, fed.image.data, dilate_by_voxel(fed.brain))
    voxels = np.rint(fed.image.index(positions)).astype(int)
    reach, context = (
        np.ceil(length / fed.image.spacing).astype(int)
        for length in (OPINION_REACH_MM, OPINION_CONTEXT_MM)
    )
    return predict_around(network, fed.image.data, voxels, reach, context)


def _run_design(
    card: dict, image: Volume, brain: Volume, models: ModelOptions, phase: Volume | None,
    anatomy: Anatomy | None,
) -> tuple[np.ndarray, DetectorOutputs]:  # fmt: skip
    """Run a detector whose members run one after the other, by its design."""
    if card["design"] not in DESIGNS:
        raise ValueError(
            f"The design of a detector must be one of {', '.join(DESIGNS)}; "
            f"found {card['design']!r} for {card['name']}."
        )
    select_members(card, models.members)  # none can be left out
    more = (phase,) if card_uses_phase(card) else ()
    beyond = card["design"] in WITH_ANATOMY  # its proposals may lie in a shell around the brain
    if beyond:
        opinion = partial(predict_second_opinion, card, image, brain, models)
        more = (anatomy, opinion if "second_opinion" in card else None)
    probability, outputs = DESIGNS[card["design"]](image, brain, card, models, *more)
    release_memory()
    if beyond:
        return probability.data, outputs
    return np.where(brain.data, probability.data, 0).astype(np.float32), outputs
