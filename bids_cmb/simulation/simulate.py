"""Simulated scans with their ground truth.

A person is sampled from a head model, microbleeds, mimics and vessels are sampled into the person,
and the scan is acquired twice: of the person, and of a twin without microbleeds. The difference
defines the ground truth.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bids_cmb.imaging.resampling import resample
from bids_cmb.imaging.volume import Volume
from bids_cmb.simulation.acquisition import (
    TISSUE_EXTENT_MM,
    define_scan_grid,
    define_tissue_grid,
    prepare_acquisition,
)
from bids_cmb.simulation.geometry import HeadGeometry, measure_geometry
from bids_cmb.simulation.head_model import (
    Deformation,
    DeformationLimits,
    HeadModel,
    resample_labels,
    sample_deformation,
)
from bids_cmb.simulation.lesions import sample_sources
from bids_cmb.simulation.masking import make_brain_mask, simulate_masking
from bids_cmb.simulation.protocols import Protocol
from bids_cmb.simulation.readout import acquire
from bids_cmb.simulation.reference import label_lesions, label_mimics
from bids_cmb.simulation.source_effects import compute_effects
from bids_cmb.simulation.sources import SusceptibilitySource, describe_objects
from bids_cmb.simulation.tissue_properties import sample_tissue_maps

MASKING_PROBABILITIES = {"whole": 0.3, "masked": 0.3, "stripped": 0.4}  # and how often
AGE_YEARS = (68.0, 9.0)  # years, mean and standard deviation
TISSUE_SPREAD = 1.4  # of people and textures, by eye against real scans
MAX_ROTATION_DEG = 5.0  # technicians lay slices along the brain, and heads straight


@dataclass(frozen=True, eq=False)
class SimulatedScan:
    """One scan with its ground truth; every volume on the grid of the scan.

    Attributes:
        image: Magnitude, float32, white matter about 300.
        swi: Susceptibility-weighted image, where the protocol makes one.
        phase: rad, -pi to pi; None without ``with_phase``.
        lesions: uint16, the visible microbleeds, each with its index.
        mimics: uint16, all that is dark and no microbleed, each with its index.
        structures: uint16, FreeSurfer codes.
        brain: bool.
        lesion_table: One row for each microbleed, in the app's columns and those of
            `simulation.reference.TRUTH_COLUMNS`.
        mimic_table: One row for each mimic, in the columns of
            `simulation.reference.MIMIC_COLUMNS`.
        protocol: How it was acquired.
        facts: ``head``, ``age``, ``sex``, ``dress`` (whole, masked, stripped), ``snr``, ``handed``
            (1 if the phase turns forwards in a higher field, -1 if backwards).
    """

    image: Volume
    swi: Volume | None
    phase: Volume | None
    lesions: Volume
    mimics: Volume
    structures: Volume
    brain: Volume
    lesion_table: list[dict]
    mimic_table: list[dict]
    protocol: Protocol
    facts: dict

    @property
    def scan(self) -> Volume:
        """The image that a reader of this protocol would open."""
        return self.image if self.swi is None else self.swi


@dataclass(frozen=True, eq=False)
class Person:
    """A person who can be scanned, once or several times, in a world in which the head is at rest.

    Attributes:
        deformation: Of the head model, from which labels are resampled.
        labels: FreeSurfer codes at 1 mm.
        geometry: Of the head.
        sources: Microbleeds, mimics and vessels.
        age: Years.
        masking: What is cut away: ``whole``, ``masked`` or ``stripped``.
        head_name: Of the head model.
    """

    deformation: Deformation
    labels: Volume
    geometry: HeadGeometry
    sources: Sequence[SusceptibilitySource]
    age: float
    masking: str
    head_name: str


def simulate_scan(
    rng: np.random.Generator, head: HeadModel, protocol: Protocol, priors: dict, *,
    with_phase: bool = False, masking: str | None = None, window_mm: Sequence[float] | None = None,
) -> SimulatedScan:  # fmt: skip
    """Simulate a scan of a person sampled from a head model.

    Args:
        rng: Source of chance.
        head: The head model.
        protocol: How to acquire the scan.
        priors: Of the lesions, from `simulation.lesion_priors.load_priors`.
        with_phase: Whether to keep the phase.
        masking: ``whole``, ``masked`` (the face removed) or ``stripped``; random if None.
        window_mm: Only this much around the middle of the brain, (3,), for tests.

    Returns:
        The scan and its ground truth.
    """
    person = sample_person(rng, head, priors, masking)
    return scan_person(rng, person, protocol, priors, with_phase=with_phase, window_mm=window_mm)


def sample_person(
    rng: np.random.Generator, head: HeadModel, priors: dict, masking: str | None = None
) -> Person:
    """Sample a person from a head model, with all susceptibility sources.

    Args:
        rng: Source of chance.
        head: The head model.
        priors: Of the lesions, from `simulation.lesion_priors.load_priors`.
        masking: ``whole``, ``masked`` (the face removed) or ``stripped``; random if None.
    """
    deformation = sample_deformation(head, rng, DeformationLimits(turn_deg=MAX_ROTATION_DEG))
    age = float(np.clip(rng.normal(*AGE_YEARS), 40, 95))
    random_masking = str(
        rng.choice(list(MASKING_PROBABILITIES), p=list(MASKING_PROBABILITIES.values()))
    )
    labels = resample_labels(deformation, *define_tissue_grid(TISSUE_EXTENT_MM))
    geometry = measure_geometry(labels)
    sources = sample_sources(rng, priors, geometry)
    return Person(deformation, labels, geometry, sources, age, masking or random_masking, head.name)


def scan_person(
    rng: np.random.Generator, person: Person, protocol: Protocol, priors: dict, *,
    with_phase: bool = False, window_mm: Sequence[float] | None = None,
    tissue_rng: np.random.Generator | None = None,
) -> SimulatedScan:  # fmt: skip
    """Scan a person.

    Args:
        rng: Source of chance.
        person: From `sample_person`.
        protocol: How to acquire the scan.
        priors: Of the lesions, from `simulation.lesion_priors.load_priors`.
        with_phase: Whether to keep the phase.
        window_mm: Only this much around the middle of the brain, (3,), for tests.
        tissue_rng: Source of the tissues' properties, in the same state for every scan of a person;
            ``rng`` without.
    """
    labels, geometry = person.labels, person.geometry
    grid = define_scan_grid(rng, geometry, protocol, window_mm)
    tissue_rng = rng if tissue_rng is None else tissue_rng
    if window_mm is not None:
        extent = np.minimum(TISSUE_EXTENT_MM, np.array(window_mm) / 2 + 30)
        labels = resample_labels(person.deformation, *define_tissue_grid(extent))
    maps = sample_tissue_maps(
        labels, protocol.field_t, tissue_rng, age=person.age, spread=TISSUE_SPREAD,
        lamina_contrast=priors["lentiform_laminae"]["log_ratio"],
    )  # fmt: skip
    acquisition = prepare_acquisition(rng, (labels, geometry), maps, protocol, grid, tissue_rng)
    effects = compute_effects(person.sources, acquisition)
    images = acquire(rng, acquisition, effects, with_phase=with_phase)
    facts = {
        "head": person.head_name,
        "age": round(person.age),
        "sex": "FM"[rng.integers(2)],
        "dress": person.masking,
        "snr": round(acquisition.snr, 1),
        "handed": acquisition.phase_sign,
    }
    structures = resample(acquisition.labels, grid.affine, grid.shape, order=0)
    brain = make_brain_mask(acquisition)
    visible = simulate_masking(rng, acquisition, brain, person.masking)
    image, swi, phase = (
        None if data is None else Volume(np.where(visible, data, 0), grid.affine)
        for data in (images.magnitude, images.swi, images.phase)
    )
    rows = describe_objects(person.sources)
    reader_view = (image if swi is None else swi, brain)
    lesions, lesion_table = label_lesions(
        rows, effects, (acquisition, images, visible), reader_view
    )
    mimics, mimic_table = label_mimics(rows, effects, acquisition, visible)
    return SimulatedScan(
        image=image,
        swi=swi,
        phase=phase,
        lesions=lesions,
        mimics=mimics,
        structures=structures,
        brain=brain,
        lesion_table=lesion_table,
        mimic_table=mimic_table,
        protocol=protocol,
        facts=facts,
    )
