"""The picture of the README: what a run leaves of one scan, drawn over it.

python docs/picture.py SCAN.nii.gz OUTPUT_DIR/sub-XX/anat PICTURE.png
"""

import csv
import sys
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import nibabel as nib
import numpy as np

ROWS, REACH_MM = 5, 12
SHOWN = ("index", "certainty", "probability_max", "diameter_mm", "region", "territory", "side")


def ras(path):
    """An image with its axes nearest to right, anterior, superior; data and voxel sizes."""
    image = nib.as_closest_canonical(nib.load(path))
    return np.asarray(image.dataobj), np.array(image.header.get_zooms()[:3])


def show(ax, plane, sizes, **more):
    """A slice as radiologists do not see it: right is right."""
    ax.imshow(plane.T, cmap="gray", origin="lower", aspect=sizes[1] / sizes[0], **more)
    ax.set_axis_off()


def main(scan, anat, picture):
    """Draw the slice with the most lesions, its neighbourhood, the lesions and their rows."""
    mpl.use("Agg")
    data, sizes = ras(scan)
    labels, _ = ras(next(anat.glob("*_seg-CMB_*_dseg.nii.gz")))
    brain, _ = ras(next(anat.glob("*_label-brain_*_mask.nii.gz")))
    table = next(anat.glob("*_seg-CMB_*_dseg.tsv"))
    rows = list(csv.DictReader(table.open(), delimiter="\t"))[:ROWS]
    bright = np.percentile(data[brain > 0], 99.5)
    per_slice = [len(np.unique(labels[..., k])) - 1 for k in range(labels.shape[2])]
    k = int(np.argmax(per_slice))

    figure = plt.figure(figsize=(11, 6.2), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(3, 1.1))
    axes = top.subplot_mosaic([["slice", "slab", *"01"], ["slice", "slab", *"23"]],
                              width_ratios=(2, 2, 1, 1))  # fmt: skip
    show(axes["slice"], data[..., k], sizes, vmin=0, vmax=bright)
    axes["slice"].contour(brain[..., k].T, levels=[0.5], colors="#56b4e9", linewidths=0.8)
    axes["slice"].contour(labels[..., k].T > 0, levels=[0.5], colors="#e69f00", linewidths=1.5)
    axes["slice"].set_title("brain mask, counted lesions", fontsize=9)
    half = round(6 / sizes[2])
    slab = slice(max(0, k - half), k + half + 1)
    show(axes["slab"], data[..., slab].min(axis=2), sizes, vmin=0, vmax=bright)
    axes["slab"].set_title("minimum over 12 mm, index of each", fontsize=9)
    for number, row in enumerate(rows):
        spot = np.argwhere(labels == int(row["index"]))
        x, y, z = spot.mean(axis=0).round().astype(int)
        if slab.start <= z < slab.stop:
            axes["slab"].text(x + 4 / sizes[0], y, row["index"], color="#e69f00", fontsize=9)
        if number > 3:
            continue
        reach = np.round(REACH_MM / sizes[:2]).astype(int)
        box = tuple(slice(max(0, c - r), c + r) for c, r in zip((x, y), reach, strict=True))
        show(axes[str(number)], data[(*box, z)], sizes, vmin=0, vmax=bright)
        axes[str(number)].set_title(f"{row['index']}: {row['diameter_mm']} mm", fontsize=9)
    ax = bottom.subplots()
    ax.set_axis_off()
    cells = [[row[name] for name in SHOWN] for row in rows]
    drawn = ax.table(cells, colLabels=SHOWN, loc="center", edges="horizontal")
    drawn.set_fontsize(9)
    figure.savefig(picture, dpi=90)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
