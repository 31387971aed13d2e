"""Where the lesions of a cohort lie in MNI space: a map of participants, and its picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from bids_cmb.files import replacing, write_json
from bids_cmb.imaging.volume import Volume, save

# The grid of TemplateFlow's tpl-MNI152NLin2009cAsym_res-02, so of what fMRIPrep calls res-2.
SHAPE = (97, 115, 97)
VOXEL_MM = 2.0
AFFINE = np.array([[2.0, 0, 0, -96.5], [0, 2, 0, -132.5], [0, 0, 2, -78.5], [0, 0, 0, 1]])
BRAIN_MM = ((-71, 71), (-107, 73), (-68, 82))  # about as far as the template's brain reaches
REACH_MM = 5.0  # a lesion is believed to lie within this distance of its MNI position
STEM = "group_space-MNI152NLin2009cAsym_res-2_desc-frequency_CMB"
REVIEWED = STEM.replace("frequency", "frequencyreviewed")
AFTER = (
    "After review: without rejected and unsure lesions, with accepted and added ones; scans that "
    "nobody reviewed are in it as they were found."
)
ABOUT = (
    "Number of participants with a counted lesion whose centre lies within 5 mm of the voxel, in "
    "MNI152NLin2009cAsym by an affine through the centroids of structures."
)
AXES = ("left to right, mm", "back to front, mm", "down to up, mm")


def write_map(
    folder: Path,
    positions: Mapping[str, Sequence[tuple[float, ...]]],
    participants: int,
    stem: str = STEM,
) -> None:
    """Write the map and its picture, if any lesion has an MNI position; else take them back.

    Args:
        folder: The derivative dataset.
        positions: Of each participant, the MNI positions of the counted lesions, mm.
        participants: That were read.
        stem: ``STEM``, or ``REVIEWED`` for what counts after review.
    """
    image, sidecar, picture = (folder / f"{stem}{end}" for end in (".nii.gz", ".json", ".png"))
    if not any(positions.values()):
        for place in (image, sidecar, picture):
            place.unlink(missing_ok=True)
        return
    found = frequency(positions)
    save(Volume(found, AFFINE), image, dtype=np.uint16)
    about = f"{ABOUT} {AFTER}" if stem == REVIEWED else ABOUT
    said = {"Description": about, "Participants": participants}
    write_json(sidecar, said)
    with replacing(picture) as beside:
        draw(found, participants, beside)


def frequency(positions: Mapping[str, Sequence[tuple[float, ...]]]) -> np.ndarray:
    """How many participants have a lesion within `REACH_MM` of each voxel, uint16 `SHAPE`."""
    total = np.zeros(SHAPE, np.uint16)
    for lesions in positions.values():
        own = np.zeros(SHAPE, bool)
        for place in lesions:
            _ball(own, np.array(place))
        total += own
    return total


def _ball(own: np.ndarray, place: np.ndarray) -> None:
    """Mark the voxels within reach of a place, mm."""
    at = (place - AFFINE[:3, 3]) / VOXEL_MM
    reach = REACH_MM / VOXEL_MM
    low = np.clip(np.floor(at - reach).astype(int), 0, SHAPE)
    high = np.clip(np.ceil(at + reach).astype(int) + 1, low, SHAPE)
    sides = [np.arange(first, end) for first, end in zip(low, high, strict=True)]
    grid = np.stack(np.meshgrid(*sides, indexing="ij"), axis=-1)
    near = np.linalg.norm((grid - at) * VOXEL_MM, axis=-1) <= REACH_MM
    own[tuple(map(slice, low, high))] |= near


def draw(found: np.ndarray, participants: int, path: Path) -> None:
    """Draw the highest number along each axis, in mm of MNI space, and about where the brain is."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 slow to come
    from matplotlib.figure import Figure  # noqa: PLC0415
    from matplotlib.patches import Ellipse  # noqa: PLC0415

    figure = Figure(figsize=(12, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    starts = AFFINE[:3, 3] - VOXEL_MM / 2
    ends = [(start, start + VOXEL_MM * n) for start, n in zip(starts, SHAPE, strict=True)]
    planes = ((0, 1), (0, 2), (1, 2))
    for ax, (across, up) in zip(figure.subplots(1, 3), planes, strict=True):
        (along,) = {0, 1, 2} - {across, up}
        shown = ax.imshow(
            found.max(axis=along).T,
            origin="lower",
            cmap="magma",
            vmin=0,
            vmax=max(1, int(found.max())),
            extent=(*ends[across], *ends[up]),
        )
        ax.set(xlabel=AXES[across], ylabel=AXES[up])
        low, high = np.array([BRAIN_MM[across], BRAIN_MM[up]]).T
        size = high - low
        ax.add_patch(Ellipse((low + high) / 2, *size, fill=False, edgecolor="0.6", linewidth=0.8))
        ax.axhline(0, color="0.5", linewidth=0.5)
        ax.axvline(0, color="0.5", linewidth=0.5)
    figure.colorbar(shown, ax=figure.axes, label=f"participants, of {participants}")
    figure.savefig(path, format="png", dpi=90, metadata={"Software": None})
