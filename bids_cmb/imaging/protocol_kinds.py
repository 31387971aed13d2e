"""Kinds of protocols by their voxels: detectors differ in what they find in each."""

from collections.abc import Sequence

FINE_PIXELS_MM = 0.6  # in-plane voxel size below which pixels are fine
THICK_SLICES_MM = 2.5  # slice spacing from which slices are thick
THIN = "thin slices"
THICK = "thick slices"
THICK_FINE = "thick slices of fine pixels"
PROTOCOL_KINDS = (THIN, THICK, THICK_FINE)


def classify_protocol(spacing: Sequence[float]) -> str:
    """Classify a protocol by its voxels, as detectors differ in what they find.

    Args:
        spacing: Voxel size along the three axes, mm, in any order.

    Returns:
        `THIN`, `THICK` or `THICK_FINE`.
    """
    in_plane, _, between = sorted(spacing)
    if between < THICK_SLICES_MM:
        return THIN
    return THICK_FINE if in_plane < FINE_PIXELS_MM else THICK
