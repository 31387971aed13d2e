"""Lesion frequency map: the number of participants with a lesion, in MNI space, and its picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from bids_cmb.anatomy.mni_template import CELL_MM, CELLS, CORNER_MM, GROUPS, load_template
from bids_cmb.files import replacing, write_json
from bids_cmb.imaging.nifti import save
from bids_cmb.imaging.volume import Volume

# The grid of TemplateFlow's tpl-MNI152NLin2009cAsym_res-02, which fMRIPrep calls res-2.
SHAPE = (97, 115, 97)
VOXEL_MM = 2.0
AFFINE = np.array([[2.0, 0, 0, -96.5], [0, 2, 0, -132.5], [0, 0, 2, -78.5], [0, 0, 0, 1]])
PLANES = ((0, 1), (0, 2), (1, 2))  # axes across and up
MAX_DISTANCE_MM = 5.0  # a lesion is believed to lie within this distance of its MNI position
MAP_STEM = "group_space-MNI152NLin2009cAsym_res-2_desc-frequency_CMB"
REVIEWED_MAP_STEM = MAP_STEM.replace("frequency", "frequencyreviewed")
REVIEW_DESCRIPTION = (
    "After review: without rejected and unsure lesions, with accepted and added ones; scans that "
    "nobody reviewed are in it as they were found."
)
DESCRIPTION = (
    "Number of participants with a counted lesion whose centre lies within 5 mm of the voxel, in "
    "MNI152NLin2009cAsym by an affine that lays its structures over a mean head's."
)
BACK, TEXT = "#111111", "#e8e8e8"  # dark like pictures of scans, on light pages and dark ones
AXES = ("right (R) to left (L), mm", "back to front, mm", "down to up, mm")


def write_map(
    folder: Path,
    positions: Mapping[str, Sequence[tuple[float, ...]]],
    participants: int,
    stem: str = MAP_STEM,
) -> None:
    """Write the map and its picture, if any lesion has an MNI position; else remove them.

    Args:
        folder: The derivative dataset.
        positions: Of each participant, the MNI positions of the counted lesions, mm.
        participants: Number of participants with a processed scan.
        stem: ``MAP_STEM``, or ``REVIEWED_MAP_STEM`` for the lesions that count after review.
    """
    image, sidecar, picture = (folder / f"{stem}{end}" for end in (".nii.gz", ".json", ".png"))
    if not any(positions.values()):
        for path in (image, sidecar, picture):
            path.unlink(missing_ok=True)
        return
    counts = count_participants(positions)
    save(Volume(counts, AFFINE), image, dtype=np.uint16)
    description = (
        f"{DESCRIPTION} {REVIEW_DESCRIPTION}" if stem == REVIEWED_MAP_STEM else DESCRIPTION
    )
    metadata = {"Description": description, "Participants": participants}
    write_json(sidecar, metadata)
    with replacing(picture) as temporary:
        draw_map(counts, participants, temporary)


def count_participants(positions: Mapping[str, Sequence[tuple[float, ...]]]) -> np.ndarray:
    """Count the participants with a lesion within `MAX_DISTANCE_MM` of each voxel.

    Returns:
        uint16, shape `SHAPE`.
    """
    total = np.zeros(SHAPE, np.uint16)
    for lesions in positions.values():
        near_lesion = np.zeros(SHAPE, bool)
        for position in lesions:
            _mark_ball(near_lesion, np.array(position))
        total += near_lesion
    return total


def _mark_ball(mask: np.ndarray, position: np.ndarray) -> None:
    """Mark the voxels within `MAX_DISTANCE_MM` of a position, mm."""
    voxel = (position - AFFINE[:3, 3]) / VOXEL_MM
    reach = MAX_DISTANCE_MM / VOXEL_MM
    low = np.clip(np.floor(voxel - reach).astype(int), 0, SHAPE)
    high = np.clip(np.ceil(voxel + reach).astype(int) + 1, low, SHAPE)
    sides = [np.arange(first, stop) for first, stop in zip(low, high, strict=True)]
    grid = np.stack(np.meshgrid(*sides, indexing="ij"), axis=-1)
    near = np.linalg.norm((grid - voxel) * VOXEL_MM, axis=-1) <= MAX_DISTANCE_MM
    mask[tuple(map(slice, low, high))] |= near


def draw_map(counts: np.ndarray, participants: int, path: Path) -> None:
    """Draw the maximum projection along each axis, in mm of MNI space, over a mean brain's outline.

    The participant's right is on the left, as on the pages of participants.

    Args:
        counts: Map of participants, shape `SHAPE`.
        participants: Number of participants with a processed scan.
        path: PNG file to write.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 slow to import
    from matplotlib.figure import Figure  # noqa: PLC0415
    from matplotlib.ticker import MaxNLocator  # noqa: PLC0415

    figure = Figure(figsize=(12, 4.2), layout="constrained", facecolor=BACK)
    FigureCanvasAgg(figure)
    brain = load_template().shares[: len(GROUPS)].sum(axis=0)
    starts = AFFINE[:3, 3] - VOXEL_MM / 2
    ends = [(start, start + VOXEL_MM * n) for start, n in zip(starts, SHAPE, strict=True)]
    centres = [corner + CELL_MM * (np.arange(n) + 0.5)
               for corner, n in zip(CORNER_MM, CELLS, strict=True)]  # fmt: skip
    for ax, (across, up) in zip(figure.subplots(1, 3), PLANES, strict=True):
        (along,) = {0, 1, 2} - {across, up}
        image = ax.imshow(
            counts.max(axis=along).T,
            origin="lower",
            cmap="magma",
            vmin=0,
            vmax=max(1, int(counts.max())),
            extent=(*ends[across], *ends[up]),
        )
        outline = brain.max(axis=along).T
        ax.contour(centres[across], centres[up], outline, [0.5], colors="0.65", linewidths=0.8)
        ax.set(xlabel=AXES[across], ylabel=AXES[up], xlim=ends[across], ylim=ends[up])
        if across == 0:
            ax.invert_xaxis()
            for x, letter in ((0.03, "R"), (0.93, "L")):
                ax.text(x, 0.5, letter, color="white", transform=ax.transAxes)
    ticks = MaxNLocator(integer=True)
    label = f"participants, of {participants}"
    figure.colorbar(image, ax=figure.axes, label=label, ticks=ticks).outline.set_edgecolor(TEXT)
    for ax in figure.axes:
        ax.tick_params(colors=TEXT)
        ax.xaxis.label.set_color(TEXT)
        ax.yaxis.label.set_color(TEXT)
        ax.spines[:].set_color(TEXT)
    figure.savefig(path, format="png", dpi=90, metadata={"Software": None})
