"""BIDS datasets of simulated scans, with the ground truth as a derivative dataset."""

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path

import numpy as np

from bids_cmb import __version__
from bids_cmb.bids.description import RAW_BIDSIGNORE, write_description
from bids_cmb.bids.tables import write_table
from bids_cmb.files import write_json, write_text
from bids_cmb.imaging.nifti import save
from bids_cmb.imaging.volume import Volume
from bids_cmb.parallel import processes
from bids_cmb.simulation.acquisition import FIELD_OF_VIEW_MM
from bids_cmb.simulation.head_model import HeadModel, list_head_models, load_head_model
from bids_cmb.simulation.lesion_priors import load_priors
from bids_cmb.simulation.phantom import make_procedural_head
from bids_cmb.simulation.progress import add_to_record, close_record, open_record
from bids_cmb.simulation.protocols import Protocol, resolve_protocols, sample_protocol
from bids_cmb.simulation.reference import MIMIC_COLUMNS, get_lesion_columns
from bids_cmb.simulation.sessions import (
    change_microbleeds,
    choose_other_protocol,
    move_scan,
    sample_motion,
)
from bids_cmb.simulation.simulate import (
    SimulatedScan,
    sample_person,
    scan_person,
    simulate_scan,
)

PHASE_LEVELS = 4096  # whole numbers from 0 to pi, as scanners write phase
TISSUE_STREAM = 1  # of chance, of what belongs to a head in all its sessions
SESSION_INTERVAL_DAYS = 365
BYTES_PER_VOXEL = 4.0  # on disk, all files of a scan, packed


def _simulate_sessions(rng: np.random.Generator, job: "_Job") -> Iterator[SimulatedScan]:
    """Simulate the sessions of a participant, one after the other.

    Every second participant changes to another protocol after the first session.
    """
    index, protocols, plan = job.index, job.protocols, job.plan
    priors = load_priors(plan.priors)
    protocol = protocols[index % len(protocols)] if protocols else None
    protocol = protocol or sample_protocol(rng)
    paths = job.paths
    head = _load_cached(paths[index % len(paths)]) if paths else make_procedural_head(rng)
    if plan.sessions == 1:
        yield simulate_scan(rng, head, protocol, priors, with_phase=plan.with_phase)
        return
    person = sample_person(rng, head, priors)
    for session in range(plan.sessions):
        if session:
            person, _ = change_microbleeds(rng, person, priors)
        if session and index % 2:
            others = [other for other in protocols if other is not None]
            protocol = choose_other_protocol(rng, protocol, others)
        tissue_rng = np.random.default_rng([plan.seed, index, TISSUE_STREAM])
        scan = scan_person(
            rng, person, protocol, priors, with_phase=plan.with_phase, tissue_rng=tissue_rng
        )
        yield move_scan(scan, sample_motion(rng))


@lru_cache(maxsize=32)  # some MB each
def _load_cached(path: Path) -> HeadModel:
    return load_head_model(path)


@dataclass(frozen=True)
class DatasetPlan:
    """What a simulated dataset holds.

    Attributes:
        scans: How many participants, with one scan in each session.
        seed: The same seed gives the same bytes, whatever the number of workers.
        anatomy: A folder of FreeSurfer-coded label maps, used in turn; procedural heads without.
        protocols: As `simulation.protocols.resolve_protocols` takes them, used in turn; random ones
            without.
        priors: Name for `simulation.lesion_priors.load_priors`.
        with_phase: Whether to write phase images too.
        sessions: Of each participant: the same head moved, microbleeds that stay, come and fade,
            and for every second participant another protocol of the same contrast.
    """

    scans: int
    seed: int
    anatomy: Path | None = None
    protocols: Sequence[str] = ()
    priors: str = "default"
    with_phase: bool = False
    sessions: int = 1


@dataclass(frozen=True)
class _Job:
    folder: Path
    plan: DatasetPlan
    index: int
    paths: tuple[Path, ...]
    protocols: tuple[Protocol | None, ...]


def simulate_dataset(
    folder: Path,
    plan: DatasetPlan,
    *,
    workers: int = 1,
    progress: Callable[[int, int, float], None] | None = None,
) -> list[int]:
    """Write a BIDS dataset of simulated scans, with the ground truth as a derivative dataset.

    Args:
        folder: Where to; must not hold anything but the same simulation, interrupted, which then
            goes on.
        plan: What it holds.
        workers: Processes.
        progress: Called after each scan with the scans done, all scans, and the seconds so far.

    Returns:
        The number of visible microbleeds in each scan, participant by participant, the possible
        ones included.

    Raises:
        ValueError: If ``folder`` holds something else already, a number or a name cannot be, the
            anatomy is no label map, or the disk is too small.
        OSError: If something cannot be read or written.
    """
    for name, number, least in (
        ("scans", plan.scans, 1),
        ("sessions", plan.sessions, 1),
        ("workers", workers, 1),
        ("seed", plan.seed, 0),
    ):
        if number < least:
            raise ValueError(f"`{name}` must be at least {least}; found {number}.")
    load_priors(plan.priors)
    resolved = tuple(resolve_protocols(plan.protocols))
    paths = tuple(list_head_models(plan.anatomy)) if plan.anatomy else ()
    for path in paths:
        load_head_model(path)  # better refused now than after an hour
    _check_disk_space(folder, plan.scans * plan.sessions, resolved)
    jobs = [_Job(folder, plan, index, paths, resolved) for index in range(plan.scans)]
    rows = open_record(folder, _describe_content(plan, jobs))
    rows |= _run_jobs([job for job in jobs if job.index not in rows], workers, progress)
    participants = [rows[index] for index in range(plan.scans)]
    _write_dataset(folder, [participant for participant, *_ in participants])
    close_record(folder)
    return [int(row["microbleeds"]) for participant in participants for row in participant]


def _describe_content(plan: DatasetPlan, jobs: Sequence[_Job]) -> dict:
    """Describe all that decides what a dataset holds, wherever its heads and protocols lie."""
    first = jobs[0]
    return {
        **{name: getattr(plan, name) for name in ("scans", "seed", "with_phase", "sessions")},
        "anatomy": [path.name for path in first.paths],
        "protocols": [protocol and asdict(protocol) for protocol in first.protocols],
        "priors": load_priors(plan.priors),
        "version": __version__,
    }


def _check_disk_space(folder: Path, scans: int, protocols: Sequence[Protocol | None]) -> None:
    voxel = min((np.prod(protocol.spacing) for protocol in protocols if protocol), default=0.5)
    needed = scans * FIELD_OF_VIEW_MM**2 * 150 / voxel * BYTES_PER_VOXEL / 2**20
    home = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(home).free / 2**20
    if free < needed:
        raise ValueError(
            f"{folder}: {scans} scans need about {needed:.0f} MB of disk; found {free:.0f} MB free."
        )


def _run_jobs(
    jobs: Sequence[_Job], workers: int, progress: Callable | None
) -> dict[int, list[dict]]:
    """Run jobs, return the rows of their sessions by participant; the first failure ends it."""
    since, rows = time.monotonic(), {}
    if workers == 1:
        outcomes = (
            processes.Outcome(index, **processes.run_job(_simulate_and_write, job))
            for index, job in enumerate(jobs)
        )
    else:
        outcomes = processes.run(_simulate_and_write, jobs, workers=workers)
    for outcome in outcomes:
        job = jobs[outcome.index]
        if outcome.error:
            raise ValueError(f"{job.folder}: scan {job.index + 1}: {outcome.error}")
        rows[job.index] = outcome.result
        add_to_record(job.folder, job.index, outcome.result)
        if progress:
            progress(len(rows), len(jobs), time.monotonic() - since)
    return rows


def _simulate_and_write(job: _Job) -> list[dict]:
    """Simulate and write the scans of a participant; return its row for each session."""
    plan = job.plan
    rng = np.random.default_rng([plan.seed, job.index])
    digits = max(2, len(str(plan.scans)))
    label = f"sub-{job.index + 1:0{digits}d}"
    rows = []
    for number, scan in enumerate(_simulate_sessions(rng, job), start=1):
        session = f"ses-{number}" if plan.sessions > 1 else ""
        place = Path(label, session)
        _write_scan(job.folder, place, scan)
        _write_truth(job.folder / "derivatives" / "truth", place, scan)
        rows.append(_make_participant_row(label, scan))
    if plan.sessions > 1:
        _write_sessions(job.folder / label, rows)
    return rows


def _make_participant_row(label: str, scan: SimulatedScan) -> dict:
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


def _write_sessions(home: Path, rows: Sequence[dict]) -> None:
    """Write the table of a participant's sessions."""
    start = datetime(2000, 1, 1, tzinfo=UTC)
    table = [
        {
            "session_id": f"ses-{number}",
            "acq_time": (start + timedelta(SESSION_INTERVAL_DAYS * (number - 1))).strftime(
                "%Y-%m-%dT%H:%M:%S"
            ),
            **{name: row[name] for name in ("protocol", "snr", "microbleeds")},
        }
        for number, row in enumerate(rows, start=1)
    ]
    path = home / f"{home.name}_sessions.tsv"
    write_table(path, table[0], table)
    columns = {name: PARTICIPANT_COLUMNS[name] for name in ("protocol", "snr", "microbleeds")}
    write_json(
        path.with_suffix(".json"),
        {"acq_time": {"Description": "Made up, a year apart."}, **columns},
    )


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


def _write_scan(folder: Path, place: Path, scan: SimulatedScan) -> None:
    """Write the scan, its phase if it was kept, and their sidecars.

    Args:
        folder: Of the dataset.
        place: Of the participant (and session) within it.
        scan: To write.
    """
    suffix, label = scan.protocol.contrast, "_".join(place.parts)
    stem = folder / place / "anat" / f"{label}_{suffix}"
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


def _write_truth(folder: Path, place: Path, scan: SimulatedScan) -> None:
    """Write label maps and tables of microbleeds and mimics, brain and structures."""
    anat, label = folder / place / "anat", "_".join(place.parts)

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
    write_text(folder / ".bidsignore", RAW_BIDSIGNORE)
    write_text(
        folder / "README.md",
        "Simulated gradient-echo scans with microbleeds, made by bids_cmb: no person was scanned. "
        "What is true of them lies in derivatives/truth.\n",
    )
    about = {"License": "CC0", "Authors": ["bids_cmb", "The bids_cmb developers"]}
    write_text(
        folder / "derivatives" / "truth" / "README.md",
        "What is true of the simulated scans: microbleeds (seg-CMB), all that is dark and no "
        "microbleed (seg-mimics), structures in FreeSurfer's codes, and the brain.\n",
    )
    write_description(folder / "derivatives" / "truth", "Truth of the simulated scans", **about)
    write_description(folder, "Simulated scans with microbleeds", "raw", **about)
