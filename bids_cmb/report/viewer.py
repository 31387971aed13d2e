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
from bids_cmb.imaging.preprocessing import Grid, Preprocessed, find_bounds, preprocess, reorient
from bids_cmb.imaging.volume import Volume, crop, save, transfer_labels

VIEWER = "code/niivue"  # BIDS looks into no folder called code
VIEWER_FILES = ("niivue.umd.js", "LICENSE", "README.md")
MARGIN_MM = 6.0  # that is kept around the brain
MOST_VOXELS = 5_500_000  # some 5 MB of text in the worst case
BRIGHT = 99.5  # percentile of the brain that is white


def write_viewer(folder: Path) -> None:
    """Lay the viewer and its licence into a derivative dataset, unless they lie there."""
    shelf = resources.files("bids_cmb").joinpath("resources/niivue")
    for name in VIEWER_FILES:
        content, place = shelf.joinpath(name).read_bytes(), folder / VIEWER / name
        if not place.is_file() or place.stat().st_size != len(content):
            with replacing(place) as beside:
                beside.write_bytes(content)


def has_viewer(folder: Path) -> bool:
    """Whether the viewer lies in a derivative dataset."""
    return all((folder / VIEWER / name).is_file() for name in VIEWER_FILES)


def write_view(path: Path, image: Volume, brain: Volume, labels: Volume) -> None:
    """Write the scan and its lesions as a script that gives them to the page.

    Args:
        path: Of the script, ``.js``.
        image: The scan, or what is left of it about the brain.
        brain: Its brain mask, bool, on the same grid.
        labels: Each lesion's index in its voxels, on any grid.
    """
    seen = shrunk(image, brain)
    top = float(np.percentile(seen.image.data[seen.brain.data], BRIGHT)) or 1.0
    grey = np.clip(seen.image.data / top * 255, 0, 255).astype(np.uint8)
    marks = transfer_labels(labels, seen.image) > 0
    parts = {
        "scan": _text(Volume(grey, seen.image.affine)),
        "lesions": _text(Volume(marks.astype(np.uint8), seen.image.affine)),
    }
    said = ",".join(f'"{name}":"{text}"' for name, text in parts.items())
    write_text(path, f"window.bids_cmb_view={{{said}}};\n")


def shrunk(image: Volume, brain: Volume) -> Preprocessed:
    """The scan about its brain, in voxels that are as fine as ``MOST_VOXELS`` allows."""
    image, brain = (reorient(one, "ras") for one in _near(image, brain))
    if image.data.size <= MOST_VOXELS:
        return preprocess(image, brain, Grid())
    size, fine = np.array(image.shape) * image.spacing, image.spacing
    low, high = float(fine.min()), float(size.max())
    while high - low > 0.01:
        middle = (low + high) / 2
        fits = np.prod(np.ceil(size / np.maximum(fine, middle)) + 1) <= MOST_VOXELS
        low, high = (low, middle) if fits else (middle, high)
    coarse = tuple(float(max(one, high)) for one in fine)
    return preprocess(image, brain, Grid(spacing=coarse))


def _near(image: Volume, brain: Volume) -> tuple[Volume, Volume]:
    """The box of both about the brain, nothing copied."""
    kept = np.ceil(MARGIN_MM / image.spacing).astype(int)
    low, high = find_bounds(brain.data)
    low, high = np.maximum(low - kept, 0), np.minimum(high + kept, image.shape)
    return crop(image, low, high), crop(brain, low, high)


def _text(volume: Volume) -> str:
    """A volume as NIfTI, compressed, in base64."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "view.nii.gz"
        save(volume, path, dtype=np.uint8)
        return base64.b64encode(path.read_bytes()).decode("ascii")
