"""Simulated scans with their truth: one at a time, as an endless stream, or as a BIDS dataset.

A person is drawn from a head, bleeds and vessels are drawn into the person, and a scanner looks
twice: at the person, and at a twin without microbleeds. The difference is the truth.
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
from bids_cmb.imaging.volume import Volume, resample, save
from bids_cmb.parallel import processes
from bids_cmb.provenance import generated_by
from bids_cmb.simulation.acquisition import (
    FIELD_OF_VIEW,
    REACH,
    find_effects,
    lay_grid,
    look,
    set_scene,
    tissue_box,
    undressed,
    whole_brain,
)
from bids_cmb.simulation.geometry import find_terrain
from bids_cmb.simulation.head_model import Head, head_paths, load_head, look_up, vary
from bids_cmb.simulation.lesion_priors import law
from bids_cmb.simulation.lesions import draw_sources
from bids_cmb.simulation.phantom import procedural_head
from bids_cmb.simulation.protocols import Protocol, find_protocols, random_protocol
from bids_cmb.simulation.reference import MIMICS, lesion_columns, lesion_truth, mimic_truth
from bids_cmb.simulation.sources import truth_rows
from bids_cmb.simulation.tissue_properties import tissue_maps

DRESSES = {"whole": 0.3, "masked": 0.3, "stripped": 0.4}  # and how often
AGE = (68.0, 9.0)  # years, mean and standard deviation
PHASE_STEPS = 4096  # whole numbers from 0 to pi, as scanners write phase
BYTES_PER_VOXEL = 4.0  # on disk, all files of a scan, packed
SPREAD = 1.4  # of people and textures, by eye against real scans
TURN_DEG = 5.0  # technicians lay slices along the brain, and heads straight


@dataclass(frozen=True, eq=False)
class Simulated:
    """One scan and all that is true of it; every volume on the grid of the scan.

    Attributes:
        image: Magnitude, float32, white matter about 300.
        swi: Susceptibility-weighted image, where the protocol makes one.
        phase: rad, -pi to pi, where it was asked for.
        lesions: uint16, the microbleeds that can be seen, each with its index.
        mimics: uint16, all that is dark and no microbleed, each with its index.
        structures: uint16, FreeSurfer codes.
        brain: bool.
        lesion_table: One row for each microbleed, in the app's columns and those of `TRUTH`.
        mimic_table: One row for each other thing, in the columns of `MIMICS`.
        protocol: How it was made.
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
        """What a reader of this protocol would open."""
        return self.image if self.swi is None else self.swi


# --- One scan -------------------------------------------------------------------------------------


def simulate_scan(
    rng: np.random.Generator, head: Head, protocol: Protocol, given: dict, *,
    with_phase: bool = False, dress: str | None = None, window_mm: Sequence[float] | None = None,
) -> Simulated:  # fmt: skip
    """Scan a person drawn from a head.

    Args:
        rng: Source of chance.
        head: Whom the person is drawn from.
        protocol: How to scan.
        given: What bleeds, how much and where: `simulation.lesion_priors.law`.
        with_phase: Whether to keep the phase.
        dress: ``whole``, ``masked`` (the face cut away) or ``stripped``; by chance if None.
        window_mm: Only this much around the middle of the brain, (3,), for tests.

    Returns:
        The scan and its truth.
    """
    person = vary(head, rng, turn_deg=TURN_DEG)
    age = float(np.clip(rng.normal(*AGE), 40, 95))
    drawn = str(rng.choice(list(DRESSES), p=list(DRESSES.values())))
    labels = look_up(person, *tissue_box(REACH))
    terrain = find_terrain(labels)
    sources = draw_sources(rng, given, terrain)
    grid = lay_grid(rng, terrain, protocol, window_mm)
    if window_mm is not None:
        labels = look_up(person, *tissue_box(np.minimum(REACH, np.array(window_mm) / 2 + 30)))
    maps = tissue_maps(labels, protocol.field_t, rng, age=age, spread=SPREAD)
    scene = set_scene(rng, (labels, terrain), maps, protocol, grid)
    effects = find_effects(sources, scene)
    views = look(rng, scene, effects, with_phase=with_phase)
    facts = {
        "head": head.name,
        "age": round(age),
        "sex": "FM"[rng.integers(2)],
        "dress": dress or drawn,
        "snr": round(scene.snr, 1),
        "handed": scene.handed,
    }
    structures = resample(scene.labels, grid.affine, grid.shape, order=0)
    brain = whole_brain(scene)
    kept = undressed(rng, scene, brain, facts["dress"])
    image, swi, phase = (
        None if data is None else Volume(np.where(kept, data, 0), grid.affine)
        for data in (views.magnitude, views.swi, views.phase)
    )
    rows = truth_rows(sources)
    seen = (image if swi is None else swi, brain)
    lesions, lesion_table = lesion_truth(rows, effects, (scene, views, kept), seen)
    mimics, mimic_table = mimic_truth(rows, effects, scene, kept)
    return Simulated(
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


def _one(
    rng: np.random.Generator, at: int, paths: Sequence[Path], protocols: Sequence[Protocol | None],
    given: dict, *, with_phase: bool,
) -> Simulated:  # fmt: skip
    protocol = protocols[at % len(protocols)] if protocols else None
    protocol = protocol or random_protocol(rng)
    head = _opened(paths[at % len(paths)]) if paths else procedural_head(rng)
    return simulate_scan(rng, head, protocol, given, with_phase=with_phase)


@lru_cache(maxsize=32)  # some MB each
def _opened(path: Path) -> Head:
    return load_head(path)


@dataclass(frozen=True)
class _Job:
    folder: Path
    seed: int
    at: int
    digits: int
    paths: tuple[Path, ...]
    protocols: tuple[Protocol | None, ...]
    variant: str
    with_phase: bool


def simulate(  # noqa: PLR0913
    folder: Path, *, scans: int, seed: int, anatomy: Path | None = None,
    protocols: Sequence[str] = (), variant: str = "default", with_phase: bool = False,
    workers: int = 1, progress: Callable[[int, int, float], None] | None = None,
) -> list[int]:  # fmt: skip
    """Write a BIDS dataset of simulated scans, and the truth as a derivative dataset within it.

    Args:
        folder: Where to; must not hold anything.
        scans: How many, one participant each.
        seed: The same seed gives the same bytes, whatever the number of workers.
        anatomy: A folder of FreeSurfer-coded label maps, used in turn; made-up heads without.
        protocols: As `find_protocols` takes them, used in turn; random ones without.
        variant: Of `simulation.lesion_priors.law`.
        with_phase: Whether to write phase images too.
        workers: Processes.
        progress: Called after each scan with the scans done, all scans, and the seconds so far.

    Returns:
        The number of microbleeds that can be seen in each scan, the possible ones included.

    Raises:
        ValueError: If ``folder`` holds something already, a name is unknown, the anatomy is no
            label map, or the disk is too small.
        OSError: If something cannot be read or written.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder}: a simulated dataset needs an empty folder; found files in it.")
    if scans < 1:
        raise ValueError(f"`scans` must be at least 1; found {scans}.")
    law(variant)
    found = tuple(find_protocols(protocols))
    paths = tuple(head_paths(anatomy)) if anatomy else ()
    for path in paths:
        load_head(path)  # better refused now than after an hour
    _refuse_small_disk(folder, scans, found)
    digits = max(2, len(str(scans)))
    jobs = [
        _Job(folder, seed, at, digits, paths, found, variant, with_phase) for at in range(scans)
    ]
    rows = _done(jobs, workers, progress)
    _write_dataset(folder, rows)
    return [int(row["microbleeds"]) for row in rows]


def _refuse_small_disk(folder: Path, scans: int, protocols: Sequence[Protocol | None]) -> None:
    voxel = min((np.prod(one.spacing) for one in protocols if one), default=0.5)
    needed = scans * FIELD_OF_VIEW**2 * 150 / voxel * BYTES_PER_VOXEL / 2**20
    home = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(home).free / 2**20
    if free < needed:
        raise ValueError(
            f"{folder}: {scans} scans need about {needed:.0f} MB of disk; found {free:.0f} MB free."
        )


def _done(jobs: Sequence[_Job], workers: int, progress: Callable | None) -> list[dict]:
    """The participant rows of all jobs in their order; the first failure ends it."""
    since, rows = time.monotonic(), {}
    if workers == 1:
        outcomes = (
            processes.Outcome(at, **processes.attempt(_written, job)) for at, job in enumerate(jobs)
        )
    else:
        outcomes = processes.run(_written, jobs, workers=workers)
    for outcome in outcomes:
        if outcome.error:
            raise ValueError(f"{jobs[outcome.at].folder}: scan {outcome.at + 1}: {outcome.error}")
        rows[outcome.at] = outcome.result
        if progress:
            progress(len(rows), len(jobs), time.monotonic() - since)
    return [rows[at] for at in sorted(rows)]


def _written(job: _Job) -> dict:
    """Make and write one scan; its row of participants.tsv."""
    rng = np.random.default_rng([job.seed, job.at])
    made = _one(rng, job.at, job.paths, job.protocols, law(job.variant), with_phase=job.with_phase)
    label = f"sub-{job.at + 1:0{job.digits}d}"
    _write_scan(job.folder, label, made)
    _write_truth(job.folder / "derivatives" / "truth", label, made)
    seen = sum(row["certainty"] != "unseen" for row in made.lesion_table)
    return {
        "participant_id": label,
        "age": made.facts["age"],
        "sex": made.facts["sex"],
        "protocol": made.protocol.name,
        "head": made.facts["head"],
        "dress": made.facts["dress"],
        "snr": made.facts["snr"],
        "microbleeds": seen,
    }


# --- Files ----------------------------------------------------------------------------------------

PARTICIPANTS = {
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
IGNORED = "*_swi.*\n"


def _write_scan(folder: Path, label: str, made: Simulated) -> None:
    """The scan, its phase if it was kept, and their sidecars."""
    suffix = made.protocol.contrast
    stem = folder / label / "anat" / f"{label}_{suffix}"
    save(made.scan, stem.with_name(f"{stem.name}.nii.gz"), dtype=np.int16)
    write_json(stem.with_name(f"{stem.name}.json"), _sidecar(made))
    if made.phase is not None:
        stem = stem.with_name(f"{label}_part-phase_T2starw")
        steps = Volume(np.round(made.phase.data * (PHASE_STEPS / np.pi)), made.phase.affine)
        save(steps, stem.with_name(f"{stem.name}.nii.gz"), dtype=np.int16)
        kind = ["ORIGINAL", "PRIMARY", "P", "ND"]
        write_json(
            stem.with_name(f"{stem.name}.json"),
            {**_sidecar(made), "Units": "arbitrary", "ImageType": kind},
        )


def _sidecar(made: Simulated) -> dict:
    """What a scanner would write, and that it was none."""
    protocol = made.protocol
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


def _write_truth(folder: Path, label: str, made: Simulated) -> None:
    """Label maps and tables of microbleeds and of all else, brain and structures."""
    home = folder / label / "anat"

    def put(name: str, volume: Volume, about: dict, rows: list | None = None) -> None:
        stem = f"{label}_space-orig_{name}"
        save(volume, home / f"{stem}.nii.gz", dtype=np.uint16)
        described = about.pop("columns", {})
        if rows is not None:
            write_table(home / f"{stem}.tsv", described, rows)
        write_json(home / f"{stem}.json", {"SpatialReference": "orig", **about, **described})

    said = {"Description": "Microbleeds as they are seen.", "Manual": False}
    lesions = {**said, "columns": lesion_columns()}
    put("seg-CMB_desc-truth_dseg", made.lesions, lesions, made.lesion_table)
    other = {"Description": "What is dark and no microbleed.", "Manual": False, "columns": MIMICS}
    put("seg-mimics_desc-truth_dseg", made.mimics, other, made.mimic_table)
    codes = {"Description": "Structures, FreeSurfer's codes.", "Manual": False}
    put("seg-structures_desc-truth_dseg", made.structures, codes)
    put(
        "label-brain_desc-truth_mask",
        made.brain,
        {"Description": "The brain, its ventricles and narrow sulci.", "Type": "Brain"},
    )


def _write_dataset(folder: Path, rows: list[dict]) -> None:
    """What makes the folder a dataset; the descriptions last, so that no half of one has them."""
    write_table(folder / "participants.tsv", rows[0], rows)
    write_json(folder / "participants.json", PARTICIPANTS)
    write_text(folder / ".bidsignore", IGNORED)
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
