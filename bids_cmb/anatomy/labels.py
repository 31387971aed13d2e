"""FreeSurfer's codes of structures: their sides, and their classes for a network."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEFT, RIGHT, NO_SIDE = 1.0, 0.0, 0.5
SULCUS_HALF_WIDTH_MM = 2.0  # sulci up to twice as wide belong to a brain mask
BILATERAL_CODES = (  # the codes of one structure, left and right
    *((2, 41), (3, 42), (4, 43), (5, 44), (7, 46), (8, 47), (10, 49), (11, 50), (12, 51), (13, 52)),
    *((17, 53), (18, 54), (25, 57), (26, 58), (28, 60), (30, 62), (31, 63), (78, 79)),
    *((136, 163), (137, 164)),
)


def make_mirror_table() -> np.ndarray:
    """Make a table from each code to the code of the other side, uint16, (65536,)."""
    table = np.arange(2**16, dtype=np.uint16)
    for left, right in BILATERAL_CODES:
        table[left], table[right] = right, left
    return table


@dataclass(frozen=True, eq=False)
class ClassTable:
    """Class and side of each code, for a network.

    Attributes:
        classes: Class of each code, uint8, (65536,).
        sides: `LEFT`, `RIGHT` or `NO_SIDE` of each code, float32, (65536,).
        count: Number of classes.
    """

    classes: np.ndarray
    sides: np.ndarray
    count: int


def build_class_table(classes: Sequence[dict]) -> ClassTable:
    """Build the table of a recipe's classes, each with its ``codes``; other codes are class 0."""
    table = np.zeros(2**16, np.uint8)
    for index, entry in enumerate(classes):
        table[entry["codes"]] = index
    sides = np.full(2**16, NO_SIDE, np.float32)
    for left, right in BILATERAL_CODES:
        sides[left], sides[right] = LEFT, RIGHT
    return ClassTable(table, sides, len(classes))
