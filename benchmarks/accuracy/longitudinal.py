"""Measure how many new lesions are called new, and how many that are not, on simulated pairs.

    python -m benchmarks.accuracy.longitudinal RESULT.json WORK --pairs 40 --anatomy ANATOMY
    python -m benchmarks.accuracy.longitudinal RESULT.json WORK --real REAL --subjects 101 311
    python -m benchmarks.accuracy.longitudinal RESULT.json WORK --real REAL --registration

The first simulates heads that were scanned twice (every second by another protocol), runs the app,
and scores its follow-ups by the evidence rule and by the threshold alone; what lies in WORK
already is not made again. The second lays each real scan over itself, turned, shifted, resampled
to slices of 3 mm and with noise added: nothing in it is new. The third registers such scans, with
brains outlined by intensity and shape, and measures the error in the brain; and each with those of
other people, to see by how much less the local structure of these agrees.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
from nibabel.affines import apply_affine, from_matvec
from nibabel.eulerangles import euler2mat
from scipy import ndimage
from scipy.spatial.transform import Rotation

from bids_cmb.anatomy.brain_extraction import segment_brain
from bids_cmb.bids.tables import read_table
from bids_cmb.cli.run import main as run_app
from bids_cmb.evaluation.identities import score_identities, summarize_identities
from bids_cmb.files import read_json, write_json
from bids_cmb.imaging.nifti import load, load_labels, save
from bids_cmb.imaging.registration import load_transform
from bids_cmb.imaging.resampling import resample
from bids_cmb.imaging.volume import Volume
from bids_cmb.longitudinal.alignment import align
from bids_cmb.simulation.dataset import DatasetPlan, simulate_dataset

PROTOCOLS = (  # every second participant changes to another one of the same contrast
    *("adni-t2star", "clinical-t2star", "ukb-swi", "aibl-swi"),
    *("parelsnoer-t2star", "alfa-t2star", "generic-swi-3t", "sabre-t2star"),
)
SEED = 27
FIELD_OF_VIEW_MM = (220, 230, 170)  # of a scan that is registered
TURN_DEG, SHIFT_MM, SPACING_MM, NOISE_SHARE = 10.0, 12.0, (1.0, 1.0, 3.0), 0.03


def main() -> None:
    """Measure what the arguments ask for, and write the result."""
    options = make_parser().parse_args()
    if options.registration:
        result = measure_registration(options.real, options.subjects)
    elif options.real:
        result = measure_real(options.real, options.subjects, options.work, options.app_flags)
    else:
        result = measure_simulated(options)
    write_json(options.result, result)
    print(json.dumps(result["figures"], indent=2))


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("result", type=Path, help="JSON file to write")
    parser.add_argument("work", type=Path, help="folder for the scans and what is found in them")
    parser.add_argument("--pairs", type=int, default=40, metavar="N", help="default: 40")
    parser.add_argument(
        "--anatomy", type=Path, help="label maps of heads that no training has seen"
    )
    parser.add_argument("--seed", type=int, default=SEED, help=f"default: {SEED}")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="default: 1")
    parser.add_argument("--real", type=Path, metavar="DIR", help="dataset of real scans, instead")
    parser.add_argument("--subjects", nargs="+", default=[], metavar="LABEL", help="of these scans")
    parser.add_argument("--registration", action="store_true", help="of --real, without the app")
    parser.add_argument(
        "--app-flags", nargs=argparse.REMAINDER, default=[], help="flags for the app, last"
    )
    return parser


def measure_simulated(options: argparse.Namespace) -> dict:
    """Simulate pairs, follow their lesions, and score them."""
    scans, output = options.work / "pairs", options.work / "found"
    if not (scans / "dataset_description.json").exists():  # written last
        plan = DatasetPlan(options.pairs, options.seed, options.anatomy, PROTOCOLS, sessions=2)
        simulate_dataset(scans, plan, workers=options.workers)
    run(scans, output, options.workers, options.app_flags)
    rows = score_identities(output, scans / "derivatives" / "truth")
    return {"seed": options.seed, "figures": summarize_identities(rows), "pairs": rows}


def run(scans: Path, output: Path, workers: int, flags: list[str]) -> None:
    """Run the app; what is complete stays as it is."""
    words = [str(scans), str(output), "participant", "--n-cpus", str(workers), "-q"]
    run_app([*words, "--validate", "off", *flags])


def measure_real(real: Path, subjects: list[str], work: Path, flags: list[str]) -> dict:
    """Follow the lesions of each scan and of itself, moved; what is called new is false."""
    scans, output = work / "moved", work / "moved-found"
    motions = {subject: write_moved(real, subject, scans) for subject in subjects}
    write_json(scans / "dataset_description.json", {"Name": "Moved", "BIDSVersion": "1.11.1"})
    run(scans, output, 1, flags)
    rows = [describe_real(output, subject, motion) for subject, motion in motions.items()]
    names = ("found_1", "found_2", "n_new", "n_not_seen_again")
    figures = {name: sum(row[name] for row in rows) for name in names}
    figures["largest_error_p95_mm"] = max(row["error_p95_mm"] for row in rows)
    return {"figures": figures, "scans": rows}


def write_moved(real: Path, subject: str, scans: Path) -> np.ndarray:
    """Write a scan as two sessions, the second moved; return the motion, (4, 4)."""
    rng = np.random.default_rng(int(subject))
    path = find_scan(real, subject)
    image, _ = load(path)
    axis = rng.standard_normal(3)
    turn = Rotation.from_rotvec(TURN_DEG * axis / np.linalg.norm(axis), degrees=True).as_matrix()
    motion = from_matvec(turn, rng.uniform(-SHIFT_MM, SHIFT_MM, 3))
    sidecar = read_json(path.with_name(f"{path.name[:-7]}.json")) or {}
    for session, volume in (("ses-1", image), ("ses-2", scan_again(image, motion, rng))):
        stem = scans / f"sub-{subject}/{session}/anat/sub-{subject}_{session}_T2starw"
        save(volume, stem.with_name(f"{stem.name}.nii.gz"))
        write_json(stem.with_name(f"{stem.name}.json"), sidecar)
    return motion


def scan_again(image: Volume, motion: np.ndarray, rng: np.random.Generator) -> Volume:
    """Move a scan, resample it to `SPACING_MM` on another grid, and add noise."""
    spacing = np.array(SPACING_MM)
    moved = Volume(image.data, motion @ image.affine)
    corners = moved.corners()
    shape = tuple(np.ceil(np.ptp(corners, axis=0) / spacing).astype(int))
    turn = euler2mat(0.05, 0.02, 0.1) @ np.diag(spacing * [-1, 1, 1])
    middle = (corners.min(axis=0) + corners.max(axis=0)) / 2
    affine = from_matvec(turn, middle - turn @ (np.array(shape) / 2))
    width = np.sqrt(np.maximum(0, spacing**2 - moved.spacing**2)) / 2.4 / moved.spacing
    soft = Volume(ndimage.gaussian_filter(moved.data, width), moved.affine)
    data = resample(soft, affine, shape).data
    noise = NOISE_SHARE * np.median(image.data[image.data > 0])
    noisy = np.hypot(data + rng.normal(0, noise, shape), rng.normal(0, noise, shape))
    return Volume(np.where(data > 0, noisy, 0).astype(np.float32), affine)


def describe_real(output: Path, subject: str, motion: np.ndarray) -> dict:
    """Describe the follow-up of a scan and itself, with the error of the registration."""
    home = output / f"sub-{subject}"
    [pair] = read_table(home / "anat" / f"sub-{subject}_desc-longitudinalT2starw_pairs.tsv")
    [file] = (home / "ses-2" / "anat").glob("*_desc-longitudinal_xfm.txt")
    brain = load_labels(next((home / "ses-1" / "anat").glob("*_label-brain_*_mask.nii.gz")))
    points = brain.world(np.argwhere(brain.data > 0)[::997])
    back = apply_affine(load_transform(file) @ motion, points)
    error = np.linalg.norm(back - points, axis=1)
    counts = {name: int(value) for name, value in pair.items() if name.startswith("n_")}
    return {
        "subject": subject,
        "found_1": count_lesions(output / str(pair["filename_1"])),
        "found_2": count_lesions(output / str(pair["filename_2"])),
        **counts,
        "similarity": float(pair["similarity"]),
        "error_median_mm": round(float(np.median(error)), 3),
        "error_p95_mm": round(float(np.percentile(error, 95)), 3),
    }


def count_lesions(mask: Path) -> int:
    """Count the counted lesions of a lesion mask."""
    name = mask.name.replace("_label-", "_seg-").replace("_mask.nii.gz", "_dseg.tsv")
    return sum(row["included"] == "yes" for row in read_table(mask.with_name(name)))


def measure_registration(real: Path, subjects: list[str]) -> dict:
    """Register each scan with itself, turned about each axis, and with those of other people."""
    rng = np.random.default_rng(0)
    images = {subject: load(find_scan(real, subject))[0] for subject in subjects}
    brains = {subject: segment_brain(image) for subject, image in images.items()}
    same, other = [], []
    for subject, image in images.items():
        motion = from_matvec(
            euler2mat(*np.radians(rng.uniform(-TURN_DEG, TURN_DEG, 3))),
            rng.uniform(-SHIFT_MM, SHIFT_MM, 3),
        )
        again, brain = scan_about_brain(image, brains[subject], motion, rng), brains[subject]
        began = time.process_time()
        fit = align(again, segment_brain(again), image, brain)
        seconds = time.process_time() - began
        points = brain.world(np.argwhere(brain.data)[::997])
        back = apply_affine(fit.to_reference @ motion, points)
        error = np.linalg.norm(back - points, axis=1)
        row = {
            "error_median_mm": round(float(np.median(error)), 2),
            "error_p95_mm": round(float(np.percentile(error, 95)), 2),
            "similarity": fit.similarity,
            "overlap": fit.overlap,
            "processor_seconds": round(seconds, 1),
        }
        same.append({"subject": subject, **row})
        for second in subjects[subjects.index(subject) + 1 :]:
            fit = align(images[second], brains[second], image, brain)
            other.append({"subjects": [subject, second], "similarity": fit.similarity})
    figures = {
        "largest_error_median_mm": max(row["error_median_mm"] for row in same),
        "largest_error_p95_mm": max(row["error_p95_mm"] for row in same),
        "least_similarity_same": min(row["similarity"] for row in same),
        "largest_similarity_other": max((row["similarity"] for row in other), default=None),
    }
    return {"figures": figures, "same": same, "other": other}


def find_scan(real: Path, subject: str) -> Path:
    """Find the T2*-weighted scan of a participant."""
    return sorted(real.glob(f"sub-{subject}/anat/sub-{subject}*_T2starw.nii.gz"))[0]


def scan_about_brain(
    image: Volume, brain: Volume, motion: np.ndarray, rng: np.random.Generator
) -> Volume:
    """Move a scan, resample it to `SPACING_MM` about the brain's middle, and add noise."""
    spacing = np.array(SPACING_MM)
    shape = tuple((np.array(FIELD_OF_VIEW_MM) / spacing).astype(int))
    middle = apply_affine(motion, brain.world(np.argwhere(brain.data).mean(axis=0)))
    turn = euler2mat(0.05, 0.02, 0.1) @ np.diag(spacing * [-1, 1, 1])
    affine = from_matvec(turn, middle - turn @ (np.array(shape) / 2))
    width = np.sqrt(np.maximum(0, spacing**2 - image.spacing**2)) / 2.4 / image.spacing
    soft = Volume(ndimage.gaussian_filter(image.data, width), motion @ image.affine)
    data = resample(soft, affine, shape).data
    noise = NOISE_SHARE * np.median(image.data[brain.data])
    return Volume((data + rng.normal(0, noise, shape)).astype(np.float32), affine)


if __name__ == "__main__":
    main()
