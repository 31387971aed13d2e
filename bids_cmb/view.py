"""The scan that an interactive page carries: small, whole within the brain, beside one viewer.

A page opened from a file may fetch nothing, so the scan lies as text in a script beside it, which
the page loads when the reader asks for it. The viewer, NiiVue, lies once in ``code/niivue``.
"""

import base64
import tempfile
from importlib import resources
from pathlib import Path

import numpy as np

from bids_cmb.files import replacing, write_text
from bids_cmb.preprocessing import Grid, preprocess
from bids_cmb.volume import Volume, resample_like, save

VIEWER = "code/niivue"  # BIDS looks into no folder called code
VIEWER_FILES = ("niivue.umd.js", "LICENSE", "README.md")
MARGIN_MM = 6.0  # that is kept around the brain
MOST_VOXELS = 5_500_000  # some 5 MB of text in the worst case
BRIGHT = 99.5  # percentile of the brain that is white


def write_viewer(folder: Path) -> None:
    """Lay the viewer and its licence into a derivative dataset, unless they lie there."""
    shelf = resources.files("bids_cmb").joinpath("data/viewer")
    for name in VIEWER_FILES:
        content, place = shelf.joinpath(name).read_bytes(), folder / VIEWER / name
        if not place.is_file() or place.stat().st_size != len(content):
            with replacing(place) as beside:
                beside.write_bytes(content)


def write_view(path: Path, image: Volume, brain: Volume, labels: Volume, lesions: list) -> None:
    """Write the scan and its lesions as a script that gives them to the page.

    Args:
        path: Of the script, ``.js``.
        image: The scan.
        brain: Its brain mask, on the scan's grid.
        labels: Each lesion's index in its voxels, on the scan's grid.
        lesions: Rows of the lesion table.
    """
    seen = shrunk(image, brain)
    top = float(np.percentile(seen.image.data[seen.brain.data], BRIGHT)) or 1.0
    grey = np.clip(seen.image.data / top * 255, 0, 255).astype(np.uint8)
    marks = resample_like(labels, seen.image, order=0).data > 0
    for row in lesions:  # small ones may slip through a coarser grid
        at = np.array([float(row[axis]) for axis in ("x_mm", "y_mm", "z_mm")])
        voxel = np.clip(np.rint(seen.image.index(at)).astype(int), 0, np.array(marks.shape) - 1)
        marks[tuple(voxel)] = True
    parts = {
        "scan": _text(Volume(grey, seen.image.affine)),
        "lesions": _text(Volume(marks.astype(np.uint8), seen.image.affine)),
    }
    said = ",".join(f'"{name}":"{text}"' for name, text in parts.items())
    write_text(path, f"window.bids_cmb_view={{{said}}};\n")


def shrunk(image: Volume, brain: Volume):
    """The scan about its brain, in voxels that are as fine as ``MOST_VOXELS`` allows."""
    seen = preprocess(image, brain, Grid(margin=MARGIN_MM))
    if seen.image.data.size <= MOST_VOXELS:
        return seen
    size, fine = np.array(seen.image.shape) * seen.image.spacing, seen.image.spacing
    low, high = float(fine.min()), float(size.max())
    while high - low > 0.01:
        middle = (low + high) / 2
        fits = np.prod(np.ceil(size / np.maximum(fine, middle)) + 1) <= MOST_VOXELS
        low, high = (low, middle) if fits else (middle, high)
    coarse = tuple(float(max(one, high)) for one in fine)
    return preprocess(image, brain, Grid(spacing=coarse, margin=MARGIN_MM))


def _text(volume: Volume) -> str:
    """A volume as NIfTI, compressed, in base64."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "view.nii.gz"
        save(volume, path, dtype=np.uint8)
        return base64.b64encode(path.read_bytes()).decode("ascii")
