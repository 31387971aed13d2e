"""Simulated scans with their ground truth: one, or a BIDS dataset of them.

A person is sampled from a head model, microbleeds, mimics and vessels are sampled into the person,
and the scan is acquired twice: of the person, and of a twin without microbleeds. The difference
defines the ground truth.
"""

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from bids_cmb.bids.tables import BIDS_VERSION, write_table
from bids_cmb.files import write_json, write_text
from bids_cmb.imaging.nifti import save
from bids_cmb.imaging.resampling import resample
from bids_cmb.imaging.volume import Volume
from bids_cmb.parallel import processes
from bids_cmb.provenance import generated_by
from bids_cmb.simulation.acquisition import (
    FIELD_OF_VIEW_MM,
    TISSUE_EXTENT_MM,
    acquire,
    compute_effects,
    define_scan_grid,
    define_tissue_grid,
    make_brain_mask,
    prepare_acquisition,
    simulate_masking,
)
from bids_cmb.simulation.geometry import measure_geometry
from bids_cmb.simulation.head_model import (
    HeadModel,
    list_head_models,
    load_head_model,
    resample_labels,
    sample_deformation,
)
from bids_cmb.simulation.lesion_priors import load_priors
from bids_cmb.simulation.lesions import sample_sources
from bids_cmb.simulation.phantom import make_procedural_head
from bids_cmb.simulation.protocols import Protocol, resolve_protocols, sample_protocol
from bids_cmb.simulation.reference import (
    MIMIC_COLUMNS,
    get_lesion_columns,
    label_lesions,
    label_mimics,
)
from bids_cmb.simulation.sources import describe_objects
from bids_cmb.simulation.tissue_properties import sample_tissue_maps

MASKING_PROBABILITIES = {"whole": 0.3, "masked": 0.3, "stripped": 0.4}  # and how often
AGE_YEARS = (68.0, 9.0)  # years, mean and standard deviation
PHASE_LEVELS = 4096  # whole numbers from 0 to pi, as scanners write phase
BYTES_PER_VOXEL = 4.0  # on disk, all files of a scan, packed
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


# --- One scan -------------------------------------------------------------------------------------


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
    person = sample_deformation(head, rng, turn_deg=MAX_ROTATION_DEG)
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


# --- Many scans -----------------------------------------------------------------------------------


def _simulate_nth(
    rng: np.random.Generator, index: int, paths: Sequence[Path],
    protocols: Sequence[Protocol | None], priors: dict, *, with_phase: bool,
) -> SimulatedScan:  # fmt: skip
    protocol = protocols[index % len(protocols)] if protocols else None
    protocol = protocol or sample_protocol(rng)
    head = _load_cached(paths[index % len(paths)]) if paths else make_procedural_head(rng)
    return simulate_scan(rng, head, protocol, priors, with_phase=with_phase)


@lru_cache(maxsize=32)  # some MB each
def _load_cached(path: Path) -> HeadModel:
    return load_head_model(path)


@dataclass(frozen=True)
class _Job:
    folder: Path
    seed: int
    index: int
    digits: int
    paths: tuple[Path, ...]
    protocols: tuple[Protocol | None, ...]
    priors: str
    with_phase: bool


def simulate_dataset(  # noqa: PLR0913
    folder: Path, *, scans: int, seed: int, anatomy: Path | None = None,
    protocols: Sequence[str] = (), priors: str = "default", with_phase: bool = False,
    workers: int = 1, progress: Callable[[int, int, float], None] | None = None,
) -> list[int]:  # fmt: skip
    """Write a BIDS dataset of simulated scans, with the ground truth as a derivative dataset.

    Args:
        folder: Where to; must not hold anything.
        scans: How many, one participant each.
        seed: The same seed gives the same bytes, whatever the number of workers.
        anatomy: A folder of FreeSurfer-coded label maps, used in turn; procedural heads without.
        protocols: As `simulation.protocols.resolve_protocols` takes them, used in turn; random ones
            without.
        priors: Name for `simulation.lesion_priors.load_priors`.
        with_phase: Whether to write phase images too.
        workers: Processes.
        progress: Called after each scan with the scans done, all scans, and the seconds so far.

    Returns:
        The number of visible microbleeds in each scan, the possible ones included.

    Raises:
        ValueError: If ``folder`` holds something already, a name is unknown, the anatomy is no
            label map, or the disk is too small.
        OSError: If something cannot be read or written.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder}: a simulated dataset needs an empty folder; found files in it.")
    if scans < 1:
        raise ValueError(f"`scans` must be at least 1; found {scans}.")
    load_priors(priors)
    resolved = tuple(resolve_protocols(protocols))
    paths = tuple(list_head_models(anatomy)) if anatomy else ()
    for path in paths:
        load_head_model(path)  # better refused now than after an hour
    _check_disk_space(folder, scans, resolved)
    digits = max(2, len(str(scans)))
    jobs = [
        _Job(folder, seed, index, digits, paths, resolved, priors, with_phase)
        for index in range(scans)
    ]
    rows = _run_jobs(jobs, workers, progress)
    _write_dataset(folder, rows)
    return [int(row["microbleeds"]) for row in rows]


def _check_disk_space(folder: Path, scans: int, protocols: Sequence[Protocol | None]) -> None:
    voxel = min((np.prod(protocol.spacing) for protocol in protocols if protocol), default=0.5)
    needed = scans * FIELD_OF_VIEW_MM**2 * 150 / voxel * BYTES_PER_VOXEL / 2**20
    home = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(home).free / 2**20
    if free < needed:
        raise ValueError(
            f"{folder}: {scans} scans need about {needed:.0f} MB of disk; found {free:.0f} MB free."
        )


def _run_jobs(jobs: Sequence[_Job], workers: int, progress: Callable | None) -> list[dict]:
    """Run all jobs and return their participant rows in order; the first failure ends it."""
    since, rows = time.monotonic(), {}
    if workers == 1:
        outcomes = (
            processes.Outcome(index, **processes.run_job(_simulate_and_write, job))
            for index, job in enumerate(jobs)
        )
    else:
        outcomes = processes.run(_simulate_and_write, jobs, workers=workers)
    for outcome in outcomes:
        if outcome.error:
            folder = jobs[outcome.index].folder
            raise ValueError(f"{folder}: scan {outcome.index + 1}: {outcome.error}")
        rows[outcome.index] = outcome.result
        if progress:
            progress(len(rows), len(jobs), time.monotonic() - since)
    return [rows[index] for index in sorted(rows)]


def _simulate_and_write(job: _Job) -> dict:
    """Simulate and write one scan; return its row of participants.tsv."""
    rng = np.random.default_rng([job.seed, job.index])
    scan = _simulate_nth(
        rng, job.index, job.paths, job.protocols, load_priors(job.priors), with_phase=job.with_phase
    )
    label = f"sub-{job.index + 1:0{job.digits}d}"
    _write_scan(job.folder, label, scan)
    _write_truth(job.folder / "derivatives" / "truth", label, scan)
    seen = sum(row["certainty"] != "unseen" for row in scan.lesion_table)
    return {
        "participant_id": label,
        "age": scan.facts["age"],
        "sex": scan.facts["sex"],
        "protocol": scan.protocol.name,
        "head": scan.facts["head"],
        "dress": scan.facts["dress"],
        "snr": scan.facts["snr"],
        "microbleeds": seen,
    }


# --- Files ----------------------------------------------------------------------------------------

PARTICIPANT_COLUMNS = {
    "age": {"Description": "Age that iron, atrophy and white matter go with.", "Units": "year"},
    "sex": {"Description": "Drawn by lot.", "Levels": {"F": "female", "M": "male"}},
    "protocol": {"Description": "Protocol of the scan."},
    "head": {"Description": "Label map that the person was drawn from."},
    "dress": {
        "Description": "What was cut away.",
        "Levels": {"whole": "nothing", "masked": "the face", "stripped": "all but the brain"},
    },
    "snr": {"Description": "Signal of white matter over the standard deviation of the noise."},
    "microbleeds": {"Description": "Microbleeds that can be seen, the possible ones included."},
}
BIDSIGNORE = "*_swi.*\n"


def _write_scan(folder: Path, label: str, scan: SimulatedScan) -> None:
    """Write the scan, its phase if it was kept, and their sidecars."""
    suffix = scan.protocol.contrast
    stem = folder / label / "anat" / f"{label}_{suffix}"
    save(scan.scan, stem.with_name(f"{stem.name}.nii.gz"), dtype=np.int16)
    write_json(stem.with_name(f"{stem.name}.json"), _make_sidecar(scan))
    if scan.phase is not None:
        stem = stem.with_name(f"{label}_part-phase_T2starw")
        steps = Volume(np.round(scan.phase.data * (PHASE_LEVELS / np.pi)), scan.phase.affine)
        save(steps, stem.with_name(f"{stem.name}.nii.gz"), dtype=np.int16)
        kind = ["ORIGINAL", "PRIMARY", "P", "ND"]
        write_json(
            stem.with_name(f"{stem.name}.json"),
            {**_make_sidecar(scan), "Units": "arbitrary", "ImageType": kind},
        )


def _make_sidecar(scan: SimulatedScan) -> dict:
    """Make the sidecar that a scanner would write, marked as simulated."""
    protocol = scan.protocol
    kind = ["M", "SWI"] if protocol.contrast == "swi" else ["M", "ND"]
    return {
        "Manufacturer": protocol.manufacturer,
        "ManufacturersModelName": "simulated by bids_cmb",
        "MagneticFieldStrength": protocol.field_t,
        "MRAcquisitionType": protocol.kind,
        "ScanningSequence": "GR",
        "SeriesDescription": f"simulated {protocol.name}",
        "ImageType": ["ORIGINAL", "PRIMARY", *kind],
        "EchoTime": protocol.echo_time_s,
        "RepetitionTime": protocol.repetition_time_s,
        "FlipAngle": protocol.flip_deg,
        "SliceThickness": protocol.thickness,
        "SpacingBetweenSlices": protocol.spacing[2],
    }


def _write_truth(folder: Path, label: str, scan: SimulatedScan) -> None:
    """Write label maps and tables of microbleeds and mimics, brain and structures."""
    anat = folder / label / "anat"

    def put(name: str, volume: Volume, about: dict, rows: list | None = None) -> None:
        stem = f"{label}_space-orig_{name}"
        save(volume, anat / f"{stem}.nii.gz", dtype=np.uint16)
        described = about.pop("columns", {})
        if rows is not None:
            write_table(anat / f"{stem}.tsv", described, rows)
        write_json(anat / f"{stem}.json", {"SpatialReference": "orig", **about, **described})

    shared = {"Description": "Microbleeds as they are seen.", "Manual": False}
    lesions = {**shared, "columns": get_lesion_columns()}
    put("seg-CMB_desc-truth_dseg", scan.lesions, lesions, scan.lesion_table)
    other = {
        "Description": "What is dark and no microbleed.",
        "Manual": False,
        "columns": MIMIC_COLUMNS,
    }
    put("seg-mimics_desc-truth_dseg", scan.mimics, other, scan.mimic_table)
    codes = {"Description": "Structures, FreeSurfer's codes.", "Manual": False}
    put("seg-structures_desc-truth_dseg", scan.structures, codes)
    put(
        "label-brain_desc-truth_mask",
        scan.brain,
        {"Description": "The brain, its ventricles and narrow sulci.", "Type": "Brain"},
    )


def _write_dataset(folder: Path, rows: list[dict]) -> None:
    """Write what makes the folder a dataset; descriptions last, so that no half of one has them."""
    write_table(folder / "participants.tsv", rows[0], rows)
    write_json(folder / "participants.json", PARTICIPANT_COLUMNS)
    write_text(folder / ".bidsignore", BIDSIGNORE)
    write_text(
        folder / "README.md",
        "Simulated gradient-echo scans with microbleeds, made by bids_cmb: no person was scanned. "
        "What is true of them lies in derivatives/truth.\n",
    )
    about = {
        "BIDSVersion": BIDS_VERSION,
        "License": "CC0",
        "Authors": ["bids_cmb", "The bids_cmb developers"],
        "GeneratedBy": generated_by(),
    }
    write_text(
        folder / "derivatives" / "truth" / "README.md",
        "What is true of the simulated scans: microbleeds (seg-CMB), all that is dark and no "
        "microbleed (seg-mimics), structures in FreeSurfer's codes, and the brain.\n",
    )
    truth = {"Name": "Truth of the simulated scans", "DatasetType": "derivative", **about}
    write_json(folder / "derivatives" / "truth" / "dataset_description.json", truth)
    raw = {"Name": "Simulated scans with microbleeds", "DatasetType": "raw", **about}
    write_json(folder / "dataset_description.json", raw)
