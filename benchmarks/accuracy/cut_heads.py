"""Measure how far MNI positions move when the field of view cuts a head.

    python -m benchmarks.accuracy.cut_heads RESULT.json DATA ... [--scans N] [--rescan]

DATA are simulated datasets. The anatomy network segments each whole scan once; then its labels are
cut, from below and from above, at heights in MNI space (where the plane crosses y = -20 mm), and
fitted to MNI again. Of every height: how many heads have an affine, by how many mm the cerebral
cortex and white matter that is left moved in the median place of each head (median, 90th
percentile and maximum over heads), the median uncertainty that the app gives for these places, and
in how many heads it warns of most of them. ``--rescan`` cuts the scan instead and segments what is left
anew.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from bids_cmb.anatomy.mni_fit import find_field_of_view, fit_to_mni
from bids_cmb.anatomy.segmentation import (
    MAX_MNI_UNCERTAINTY_MM,
    Anatomy,
    estimate_mni_uncertainty,
    predict_anatomy,
)
from bids_cmb.anatomy.template import load_template
from bids_cmb.imaging.nifti import load
from bids_cmb.imaging.volume import Volume
from bids_cmb.networks.backend import set_threads
from bids_cmb.networks.model_cards import load_card
from bids_cmb.training.scan_files import find_training_scans

CUTS = {
    **{f"below z = {z:+d} mm": (z, True) for z in (-45, -30, -15, -8, 0, 10)},
    **{f"above z = {z:+d} mm": (z, False) for z in (50, 40, 30)},
}
CEREBRUM = (2, 41, 3, 42)
EVERY = 97  # cerebral voxels, of which one is a place to measure


def main() -> None:
    """Measure and write."""
    options = make_parser().parse_args()
    set_threads(1)
    rows: dict[str, list[dict]] = {name: [] for name in CUTS}
    for data in options.data:
        for paths in find_training_scans(data)[: options.scans]:
            image, _ = load(paths.image)
            whole = predict_anatomy(image)
            for name, (height, keep_top) in CUTS.items():
                if options.rescan:
                    part = predict_anatomy(cut(image, whole.to_mni, height, keep_top=keep_top))
                else:
                    box = find_field_of_view(image)
                    part = refit(whole, box, height, keep_top=keep_top)
                rows[name].append(compare(whole, part))
    summary = {name: summarize(of) for name, of in rows.items()}
    options.result.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("result", type=Path, help="JSON file to write")
    parser.add_argument("data", type=Path, nargs="+", help="simulated datasets")
    parser.add_argument("--scans", type=int, help="of each dataset, the first (default: all)")
    parser.add_argument("--rescan", action="store_true", help="cut the scan, not its labels")
    return parser


def cut(image: Volume, to_mni: np.ndarray, height: float, *, keep_top: bool) -> Volume:
    """Cut a volume along its slices nearest to horizontal."""
    turned = to_mni @ image.affine
    axis = int(np.argmax(np.abs(turned[2, :3]) / np.linalg.norm(turned[:3, :3], axis=0)))
    plane = np.linalg.solve(turned, [0, -20, height, 1])[axis]
    first = int(np.clip(round(plane + 0.5), 0, image.shape[axis]))
    top = keep_top == (turned[2, axis] > 0)
    chosen = [slice(None)] * 3
    chosen[axis] = slice(first, None) if top else slice(first)
    affine = image.affine.copy()
    affine[:3, 3] = image.world([first if top and i == axis else 0 for i in range(3)])
    return Volume(image.data[tuple(chosen)], affine)


def refit(whole: Anatomy, box: np.ndarray, height: float, *, keep_top: bool) -> Anatomy:
    """Cut the labels and the box of their field of view, and fit what is left."""
    codes = cut(whole.structures, whole.to_mni, height, keep_top=keep_top)
    part = Volume(np.ones(codes.shape, bool), codes.affine)
    corners = np.array(np.meshgrid(*[(-0.5, n - 0.5) for n in part.shape])).reshape(3, -1).T
    within = Volume(part.data, box @ codes.affine).world(corners)
    low, high = np.clip(within.min(axis=0), 0, 1), np.clip(within.max(axis=0), 0, 1)
    smaller = np.diag([*(1 / (high - low)), 1.0])
    smaller[:3, 3] = -low / (high - low)
    fit = fit_to_mni(codes, load_card("anatomy")["mni_centroids"], smaller @ box, load_template())
    if fit is None:
        return replace(whole, structures=codes, to_mni=None, fit_mm=None, mni_covariance=None)
    return replace(whole, structures=codes, to_mni=fit.to_mni, fit_mm=fit.fit_mm,
                   mni_covariance=fit.covariance)  # fmt: skip


def compare(whole: Anatomy, part: Anatomy) -> dict[str, float]:
    """Measure how far places moved, and their uncertainty; nothing without an affine."""
    if part.to_mni is None:
        return {}
    codes = part.structures
    places = codes.world(np.argwhere(np.isin(codes.data, CEREBRUM))[::EVERY])
    apart = part.to_mni - whole.to_mni
    moved = np.linalg.norm(places @ apart[:3, :3].T + apart[:3, 3], axis=1)
    given = np.array([estimate_mni_uncertainty(part, place) for place in places])
    return {
        "moved": float(np.median(moved)),
        "given": float(np.median(given)),
        "warned": bool(np.mean(given > MAX_MNI_UNCERTAINTY_MM) > 0.5),
    }


def summarize(rows: list[dict]) -> dict[str, float]:
    """Summarize one height over heads."""
    fitted = [row for row in rows if row]
    figures = {"heads": len(rows), "with an affine": len(fitted)}
    if fitted:
        moved = [row["moved"] for row in fitted]
        figures |= {
            "moved, median, mm": round(float(np.median(moved)), 1),
            "moved, 90th percentile, mm": round(float(np.quantile(moved, 0.9)), 1),
            "moved, maximum, mm": round(max(moved), 1),
            "uncertainty given, median, mm": round(
                float(np.median([r["given"] for r in fitted])), 1
            ),
            "warned": sum(row["warned"] for row in fitted),
        }
    return figures


if __name__ == "__main__":
    main()
