"""How far MNI positions move when the field of view cuts a head, and does the app say so?

    python -m benchmarks.accuracy.cut_heads RESULT.json FILE ... [--scans]

FILEs are label maps of whole heads that took no part in the template, or with ``--scans`` scans of
such heads, which the anatomy network segments whole. Each segmentation is fitted to MNI space, then
cut from below or above at heights in MNI space (where the plane crosses y = -20 mm) and fitted
anew. Of every height:

- by how many mm places in the cerebral cortex and white matter that is left moved, in the median
  place of each head: median and maximum over heads; and by how many the app's covariance says;
- how far the centroids of the other structures that are left lie from those of the template of MNI
  space (root mean square), the uncertainty that the app gives these places (likewise), and the
  share of them that lie within it;
- of how many heads the app warns, because a place in the cerebrum is too uncertain.
"""

import argparse
from pathlib import Path

import numpy as np
from nibabel.affines import apply_affine

from benchmarks.measurements import show_progress
from benchmarks.mni import compute_centroids, load_head
from bids_cmb.anatomy.mni_fit import (
    MAX_MNI_UNCERTAINTY_MM,
    MniFit,
    estimate_mni_uncertainty,
    find_field_of_view,
    fit_to_mni,
)
from bids_cmb.anatomy.mni_template import load_template
from bids_cmb.anatomy.segmentation import predict_anatomy
from bids_cmb.files import write_json
from bids_cmb.imaging.cropping import crop
from bids_cmb.imaging.nifti import load
from bids_cmb.imaging.volume import Volume
from bids_cmb.networks.backend import set_threads
from bids_cmb.networks.model_cards import load_card

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
    for path in show_progress(options.files):
        structures = segment(path) if options.scans else load_head(path, card["classes"])
        for name, row in judge_head(structures, card["mni_centroids"]).items():
            rows[name].append(row)
    write_json(options.result, {name: summarize(judged) for name, judged in rows.items()})


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("result", type=Path, help="JSON file that is written")
    parser.add_argument("files", type=Path, nargs="+", help="label maps, or scans")
    parser.add_argument("--scans", action="store_true", help="the files are scans")
    return parser


def segment(path: Path) -> Volume:
    """Segment a scan, as far as its field of view reaches."""
    set_threads(1)
    image, _ = load(path)
    structures = predict_anatomy(image).structures
    return crop(structures, *find_field_of_view(structures))


def judge_head(structures: Volume, centroids: dict) -> dict[str, dict]:
    """Judge a whole head and its parts: a row by the name of the cut."""
    template = load_template()
    whole = fit_to_mni(structures, template)
    middles = {
        code: place
        for code, place in compute_centroids(structures).items()
        if str(code) in centroids and code not in CEREBRUM
    }
    here = np.array(list(middles.values()))
    there = np.array([centroids[str(code)] for code in middles])
    rows = {"whole": compare(whole, whole, structures, (here, there))}
    for name, (height, keep_top) in CUTS.items():
        part = cut(structures, whole.to_mni, height, keep_top=keep_top)
        voxels = part.index(here)
        held = ((voxels > -0.5) & (voxels < np.array(part.shape) - 0.5)).all(axis=1)
        fit = fit_to_mni(part, template)
        rows[name] = compare(whole, fit, part, (here[held], there[held])) if fit else {}
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
    whole: MniFit, part: MniFit, structures: Volume, middles: tuple[np.ndarray, np.ndarray]
) -> dict:
    """Compare a part with the whole head, and middles of structures, (N, 3), with MNI space."""
    places = structures.world(np.argwhere(np.isin(structures.data, CEREBRUM))[::EVERY])
    moved = apply_affine(part.to_mni, places) - apply_affine(whole.to_mni, places)
    here, there = middles
    given = [uncertainty(part, place) for place in places]
    return {
        "moved": float(np.median(np.linalg.norm(moved, axis=1))),
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
