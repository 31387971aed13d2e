"""How far MNI positions move when the field of view cuts a head, and does the app say so?

    python -m benchmarks.accuracy.cut_heads RESULT.json PATH ... [--scans] [--first N]

PATHs are label maps of whole heads that took no part in the template, or with ``--scans`` simulated
datasets of such heads with their truth, whose scans the anatomy network segments whole. Each
segmentation is fitted to MNI space, then cut from below or above at heights in MNI space (where the
plane crosses y = -20 mm) and fitted anew. Of every height:

- by how many mm places in the cerebral cortex and white matter that is left moved, in the median
  place of each head: median and maximum over heads; and by how many the app's covariance says;
- of scans, how far those places then lie from where the fit of the whole true structures has them;
- how far the true centroids of the other structures that are left lie from those of the template
  of MNI space (root mean square), the uncertainty that the app gives these places (likewise), and
  the share of them that lie within it;
- of how many heads the app warns, because a place in the cerebrum is too uncertain.
"""

import argparse
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

import numpy as np
from nibabel.affines import apply_affine

from benchmarks.measurements import show_progress
from benchmarks.mni import compute_centroids, load_head
from bids_cmb.anatomy.mni_fit import (
    MAX_MNI_UNCERTAINTY_MM,
    MniFit,
    estimate_mni_uncertainty,
    fit_to_mni,
)
from bids_cmb.anatomy.mni_template import load_template
from bids_cmb.anatomy.segmentation import fill_structures, predict_anatomy
from bids_cmb.files import write_json
from bids_cmb.imaging.cropping import crop
from bids_cmb.imaging.nifti import load
from bids_cmb.imaging.volume import Volume
from bids_cmb.networks.backend import set_threads
from bids_cmb.networks.model_cards import load_card
from bids_cmb.training.scan_files import find_training_scans

CUTS = {
    **{f"below z = {height:+d} mm": (height, True) for height in (-45, -15, 0, 10, 20)},
    **{f"above z = {height:+d} mm": (height, False) for height in (30,)},
}
CEREBRUM = (2, 41, 3, 42)
EVERY = 97  # of so many cerebral voxels one is looked at


def main() -> None:
    """Measure and write."""
    options = make_parser().parse_args()
    card = load_card("anatomy")
    rows: dict[str, list[dict]] = {name: [] for name in ("whole", *CUTS)}
    for structures, truth in read_heads(options, card["classes"]):
        for name, row in judge_head(structures, truth, card["mni_centroids"]).items():
            rows[name].append(row)
    write_json(options.result, {name: summarize(judged) for name, judged in rows.items()})


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("result", type=Path, help="JSON file that is written")
    parser.add_argument("paths", type=Path, nargs="+", help="label maps, or datasets")
    parser.add_argument("--scans", action="store_true", help="the paths are datasets with truth")
    parser.add_argument("--first", type=int, metavar="N", help="scans of each dataset alone")
    return parser


def read_heads(
    options: argparse.Namespace, classes: Sequence[dict]
) -> Iterator[tuple[Volume, Volume]]:
    """Read each head: what is laid over the template, and its true structures."""
    if not options.scans:
        for path in show_progress(options.paths):
            head = load_head(path, classes)
            yield head, head
        return
    set_threads(1)
    files = [
        paths for data in options.paths for paths in find_training_scans(data)[: options.first]
    ]
    for paths in show_progress(files):
        yield segment(paths.image, classes), load_head(paths.structures, classes)


def segment(path: Path, classes: Sequence[dict]) -> Volume:
    """Segment a scan, as far as its field of view reaches, as the app does to find MNI space."""
    image, _ = load(path)
    anatomy = predict_anatomy(image)
    filled = fill_structures(anatomy.structures, anatomy.probabilities, anatomy.midline, classes)
    corners = np.array(list(product(*((0, size - 1) for size in image.shape))))
    voxels = np.rint(filled.index(image.world(corners))).astype(int)
    first = np.clip(voxels.min(axis=0), 0, filled.shape)
    return crop(filled, first, np.clip(voxels.max(axis=0) + 1, first, filled.shape))


def judge_head(structures: Volume, truth: Volume, centroids: dict) -> dict[str, dict]:
    """Judge a whole head and its parts: a row by the name of the cut."""
    template = load_template()
    whole = fit_to_mni(structures, template)
    true = whole if truth is structures else fit_to_mni(truth, template)
    middles = {
        code: place
        for code, place in compute_centroids(truth).items()
        if str(code) in centroids and code not in CEREBRUM
    }
    here = np.array(list(middles.values()))
    there = np.array([centroids[str(code)] for code in middles])
    rows = {"whole": compare((true, whole), whole, structures, (here, there))}
    for name, (height, keep_top) in CUTS.items():
        part = cut(structures, true.to_mni, height, keep_top=keep_top)
        voxels = part.index(here)
        held = ((voxels > -0.5) & (voxels < np.array(part.shape) - 0.5)).all(axis=1)
        fit = fit_to_mni(part, template)
        rows[name] = compare((true, whole), fit, part, (here[held], there[held])) if fit else {}
    return rows


def cut(volume: Volume, to_mni: np.ndarray, height: float, *, keep_top: bool) -> Volume:
    """Cut a volume between two of its slices, those nearest to horizontal, at a height in MNI."""
    turned = to_mni @ volume.affine
    axis = int(np.argmax(np.abs(turned[2, :3]) / np.linalg.norm(turned[:3, :3], axis=0)))
    plane = np.linalg.solve(turned, [0, -20, height, 1])[axis]
    between = int(np.clip(round(plane + 0.5), 0, volume.shape[axis]))
    first, end = np.zeros(3, int), np.array(volume.shape)
    if keep_top == (turned[2, axis] > 0):
        first[axis] = between
    else:
        end[axis] = between
    return crop(volume, first, end)


def compare(
    fits: tuple[MniFit, MniFit],
    part: MniFit,
    structures: Volume,
    middles: tuple[np.ndarray, np.ndarray],
) -> dict:
    """Compare a part with the whole head, and middles of structures, (N, 3), with MNI space.

    Args:
        fits: Of the whole true structures, and of the whole segmentation.
        part: Fit of the part.
        structures: Of the part.
        middles: In the scan's world, and in MNI space.
    """
    places = structures.world(np.argwhere(np.isin(structures.data, CEREBRUM))[::EVERY])
    at_home = apply_affine(part.to_mni, places)
    off, moved = (
        np.linalg.norm(at_home - apply_affine(fit.to_mni, places), axis=1) for fit in fits
    )
    here, there = middles
    given = [uncertainty(part, place) for place in places]
    return {
        "off": float(np.median(off)),
        "moved": float(np.median(moved)),
        "expected": float(np.median([spread(part, place) for place in places])),
        "given": float(np.median(given)),
        "warned": bool(max(given) > MAX_MNI_UNCERTAINTY_MM),
        "apart": np.linalg.norm(apply_affine(part.to_mni, here) - there, axis=1).tolist(),
        "apart_given": [uncertainty(part, place) for place in here],
    }


def uncertainty(fit: MniFit, place: np.ndarray) -> float:
    """Give the uncertainty of a place as the app does, mm."""
    return estimate_mni_uncertainty(fit.covariance, fit.fit_mm, place)


def spread(fit: MniFit, place: np.ndarray) -> float:
    """Give what the covariance alone says of a place, mm."""
    return float(np.sqrt(3 * np.append(place, 1) @ fit.covariance @ np.append(place, 1)))


def summarize(rows: list[dict]) -> dict[str, float]:
    """Summarize one height over heads."""
    fitted = [row for row in rows if row]
    figures: dict[str, float] = {"heads": len(rows), "with an affine": len(fitted)}
    if not fitted:
        return figures
    apart, given = (np.concatenate([row[key] for row in fitted]) for key in
                    ("apart", "apart_given"))  # fmt: skip
    figures |= {
        "moved, median, mm": round(float(np.median([row["moved"] for row in fitted])), 2),
        "moved, maximum, mm": round(max(row["moved"] for row in fitted), 2),
        "off the true structures' fit, median, mm": round(
            float(np.median([row["off"] for row in fitted])), 2
        ),
        "off the true structures' fit, maximum, mm": round(max(row["off"] for row in fitted), 2),
        "expected by the covariance, median, mm": round(
            float(np.median([row["expected"] for row in fitted])), 2
        ),
        "uncertainty given, median, mm": round(
            float(np.median([row["given"] for row in fitted])), 1
        ),
        "warned": sum(row["warned"] for row in fitted),
    }
    if len(apart):
        figures |= {
            "centroids": len(apart),
            "centroids apart, rms, mm": round(float(np.sqrt(np.mean(apart**2))), 2),
            "uncertainty given there, rms, mm": round(float(np.sqrt(np.mean(given**2))), 2),
            "centroids within it": round(float(np.mean(apart <= given)), 3),
        }
    return figures


if __name__ == "__main__":
    main()
