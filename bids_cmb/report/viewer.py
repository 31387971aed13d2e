"""Viewer of an interactive page: NiiVue, and the scan in a size that a page can load.

A page opened from a file may fetch nothing, so the scan is text in a script beside it, which the
page loads on demand. The viewer itself is in ``code/niivue`` of the dataset.
"""

import base64
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy import ndimage

from bids_cmb.files import replacing, write_text
from bids_cmb.imaging.cropping import crop, find_bounds
from bids_cmb.imaging.grid import Grid
from bids_cmb.imaging.nifti import save
from bids_cmb.imaging.preprocessing import Preprocessed, preprocess, reorient
from bids_cmb.imaging.resampling import transfer_labels
from bids_cmb.imaging.volume import Volume
from bids_cmb.quality.familiarity import WHITE_PERCENTILE
from bids_cmb.resource_files import RESOURCES

VIEWER = "code/niivue"  # BIDS looks into no folder called code
VIEWER_FILES = ("niivue.umd.js", "LICENSE", "README.md")
MARGIN_MM = 6.0  # that is kept around the brain
MAX_VOXELS = 5_500_000  # 5 MB of text in the worst case
LESION, CANDIDATE = 1, 2  # what a ring is around
GAPS = (1, 2)  # voxels between a lesion and its ring, a candidate and its ring
DASHES = 4  # of a candidate's ring


def write_viewer(folder: Path) -> None:
    """Copy the viewer and its licence into a derivative dataset, unless they are there."""
    source = RESOURCES / "niivue"
    for name in VIEWER_FILES:
        content, path = source.joinpath(name).read_bytes(), folder / VIEWER / name
        if not path.is_file() or path.stat().st_size != len(content):
            with replacing(path) as temporary:
                temporary.write_bytes(content)


def has_viewer(folder: Path) -> bool:
    """Check whether the viewer is in a derivative dataset."""
    return all((folder / VIEWER / name).is_file() for name in VIEWER_FILES)


def write_view(
    path: Path, image: Volume, brain: Volume, labels: Sequence[Volume], stored: Volume
) -> None:
    """Write the scan and its lesions as a script that hands them to the page.

    Args:
        path: Of the script, ``.js``.
        image: The scan, or the part of it around the brain.
        brain: Its brain mask, bool, on the same grid.
        labels: Of the lesions and, if there are any, of the candidates: each one's index in its
            voxels, on any grid. It is handed over as a ring in each slice, a dashed one for a
            candidate, so that nothing covers the lesion itself.
        stored: The scan as stored, whose slices have their numbers.
    """
    prepared = shrink(image, brain)
    white = float(np.percentile(prepared.image.data[prepared.brain.data], WHITE_PERCENTILE)) or 1.0
    grey = np.clip(prepared.image.data / white * 255, 0, 255).astype(np.uint8)
    rings = draw_rings([transfer_labels(part, prepared.image) for part in labels])
    parts = {
        "scan": _encode(Volume(grey, prepared.image.affine)),
        "lesions": _encode(Volume(rings, prepared.image.affine)),
        "slices": number_slices(stored),
    }
    write_text(path, f"window.bids_cmb_view={json.dumps(parts)};\n")


def draw_rings(marks: Sequence[np.ndarray]) -> np.ndarray:
    """Draw a ring around lesions and candidates in every slice, ``GAPS`` away from them.

    Args:
        marks: Of the lesions and, if there are any, of the candidates: each one's index in its
            voxels, (X, Y, Z); slices lie across the last axis.

    Returns:
        ``LESION`` in the rings of lesions, ``CANDIDATE`` in the dashes of candidates, uint8.
    """
    near = [_grow(part > 0, gap) for part, gap in zip(marks, GAPS, strict=False)]
    rings = np.zeros(marks[0].shape, np.uint8)
    for code, part in reversed([*enumerate(near, start=LESION)]):  # lesions over candidates
        ring = _grow(part) & ~np.any(near, axis=0)
        rings[_dash(ring, marks[1]) if code == CANDIDATE else ring] = code
    return rings


def _grow(inside: np.ndarray, voxels: int = 1) -> np.ndarray:
    """Grow a mask in every slice."""
    cross = ndimage.generate_binary_structure(2, 1)[..., None]
    return ndimage.binary_dilation(inside, cross, iterations=voxels)


def _dash(ring: np.ndarray, marks: np.ndarray) -> np.ndarray:
    """Leave ``DASHES`` of each ring by its angle: those that no crosshair on its middle crosses."""
    dashed = ring.copy()
    for index, box in enumerate(ndimage.find_objects(marks), start=1):
        if box is None:
            continue
        middle = np.argwhere(marks[box] == index).mean(axis=0) + [side.start for side in box]
        reach = GAPS[-1] + 1
        sides = [slice(max(side.start - reach, 0), side.stop + reach) for side in box[:2]]
        around = (*sides, box[2])
        i, j = np.ogrid[around[:2]]
        turn = np.arctan2(j - middle[1], i - middle[0]) * DASHES / (2 * np.pi)
        dashed[around] &= (np.abs(turn % 1 - 0.5) < 0.25)[..., None]
    return dashed


def number_slices(stored: Volume) -> dict[str, object]:
    """Number the slices across the participant's long axis, from 1, as a function of a position.

    Returns:
        ``count`` of them, and ``first`` and ``step`` (3,) so that ``first + step · position`` is
        the number, not rounded, of the slice at a position in world mm.
    """
    to_voxel = np.linalg.inv(stored.affine)
    axis = int(np.abs(stored.affine[2, :3] / stored.spacing).argmax())
    first, step = to_voxel[axis, 3] + 1, to_voxel[axis, :3]
    return {"count": stored.shape[axis], "first": float(first), "step": step.tolist()}


def shrink(image: Volume, brain: Volume) -> Preprocessed:
    """Crop the scan to its brain and resample it to the finest grid of ``MAX_VOXELS``."""
    image, brain = (reorient(side, "ras") for side in _crop_to_brain(image, brain))
    if image.data.size <= MAX_VOXELS:
        return preprocess(image, brain, Grid())
    size, spacing = np.array(image.shape) * image.spacing, image.spacing
    low, high = float(spacing.min()), float(size.max())
    while high - low > 0.01:
        middle = (low + high) / 2
        fits = np.prod(np.ceil(size / np.maximum(spacing, middle)) + 1) <= MAX_VOXELS
        low, high = (low, middle) if fits else (middle, high)
    coarsest = tuple(float(max(side, high)) for side in spacing)
    return preprocess(image, brain, Grid(spacing=coarsest))


def _crop_to_brain(image: Volume, brain: Volume) -> tuple[Volume, Volume]:
    """Crop scan and mask to the brain and a margin, without copies."""
    margin = np.ceil(MARGIN_MM / image.spacing).astype(int)
    low, high = find_bounds(brain.data)
    low, high = np.maximum(low - margin, 0), np.minimum(high + margin, image.shape)
    return crop(image, low, high), crop(brain, low, high)


def _encode(volume: Volume) -> str:
    """Encode a volume as compressed NIfTI in base64."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "view.nii.gz"
        save(volume, path, dtype=np.uint8)
        return base64.b64encode(path.read_bytes()).decode("ascii")
