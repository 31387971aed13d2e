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
from bids_cmb.simulation.geometry import measure_geometry
from bids_cmb.simulation.head_model import (
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
from bids_cmb.simulation.sources import describe_objects
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
    person = sample_deformation(head, rng, DeformationLimits(turn_deg=MAX_ROTATION_DEG))
    age = float(np.clip(rng.normal(*AGE_YEARS), 40, 95))
    random_masking = str(
        rng.choice(list(MASKING_PROBABILITIES), p=list(MASKING_PROBABILITIES.values()))
    )
    labels = resample_labels(person, *define_tissue_grid(TISSUE_EXTENT_MM))
    geometry = measure_geometry(labels)
    sources = sample_sources(rng, priors, geometry)
    grid = define_scan_grid(rng, geometry, protocol, window_mm)
    if window_mm is not None:
        labels = resample_labels(
            person, *define_tissue_grid(np.minimum(TISSUE_EXTENT_MM, np.array(window_mm) / 2 + 30))
        )
    maps = sample_tissue_maps(
        labels, protocol.field_t, rng, age=age, spread=TISSUE_SPREAD,
        lamina_contrast=priors["lentiform_laminae"]["log_ratio"],
    )  # fmt: skip
    acquisition = prepare_acquisition(rng, (labels, geometry), maps, protocol, grid)
    effects = compute_effects(sources, acquisition)
    images = acquire(rng, acquisition, effects, with_phase=with_phase)
    facts = {
        "head": head.name,
        "age": round(age),
        "sex": "FM"[rng.integers(2)],
        "dress": masking or random_masking,
        "snr": round(acquisition.snr, 1),
        "handed": acquisition.phase_sign,
    }
    structures = resample(acquisition.labels, grid.affine, grid.shape, order=0)
    brain = make_brain_mask(acquisition)
    visible = simulate_masking(rng, acquisition, brain, facts["dress"])
    image, swi, phase = (
        None if data is None else Volume(np.where(visible, data, 0), grid.affine)
        for data in (images.magnitude, images.swi, images.phase)
    )
    rows = describe_objects(sources)
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
