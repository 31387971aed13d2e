"""Where the structures of a mean head lie in MNI space, and what of them a field of view holds.

``resources/atlases/structures.npz`` holds the left half as points with weights (how much of the
structure lies around each); the right half is its mirror image. ``benchmarks/mni.py`` makes it
from label maps of whole heads; the bundled one is the mean of those that SynthSeg was trained on
(Billot et al. 2023, Apache-2.0).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files

import numpy as np

from bids_cmb.anatomy.labels import make_mirror_table
from bids_cmb.imaging.volume import Volume

CEREBRUM = (2, 41, 3, 42, 4, 43, 10, 49, 11, 50, 12, 51, 13, 52, 17, 53, 18, 54)
SPREAD_OUT = (2, 41, 3, 42, 8, 47)  # structures whose points stand for larger cells
CELL_MM, WIDE_CELL_MM = 4.0, 8.0
MIN_CELL_SHARE = 0.15  # of a cell of `CELL_MM` that a structure fills, on average, to be kept
TENTHS = 10  # of a mm, as stored
MIRROR = np.array([-1.0, 1, 1])


@dataclass(frozen=True, eq=False)
class StructureTemplate:
    """Structures of a mean head in MNI space.

    Attributes:
        points: mm in MNI152NLin2009cAsym, (N, 3).
        codes: FreeSurfer's code of each point, int, (N,).
        volumes: Of the structure around each point, mm³, (N,).
    """

    points: np.ndarray
    codes: np.ndarray
    volumes: np.ndarray

    def measure_parts(
        self, to_box: np.ndarray, size: np.ndarray, codes: Sequence[int]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Measure the parts of structures that lie within a box.

        Args:
            to_box: MNI mm to the box's coordinates, in each of which it reaches from 0 to 1.
            size: Of the box, mm, (3,).
            codes: Structures, sorted, (M,).

        Returns:
            volumes: mm³, (M,).
            centroids: Of what lies within, MNI mm, (M, 3).
            moments: Second central moments of the `CEREBRUM` within, mm², (3, 3).
        """
        inside = self.points @ to_box[:3, :3].T + to_box[:3, 3]
        cell = np.where(np.isin(self.codes, SPREAD_OUT), WIDE_CELL_MM, CELL_MM)[:, None]
        depth = np.minimum(inside, 1 - inside) * size
        held = self.volumes * np.clip(depth / cell + 0.5, 0, 1).prod(axis=1)
        known = np.isin(self.codes, codes)
        index = np.searchsorted(codes, self.codes[known])
        volumes = np.bincount(index, held[known], len(codes))
        sums = [
            np.bincount(index, held[known] * self.points[known, axis], len(codes))
            for axis in range(3)
        ]
        centroids = np.stack(sums, axis=1) / np.maximum(volumes, 1e-6)[:, None]
        weights = np.where(np.isin(self.codes, CEREBRUM), held, 0)
        if not weights.any():
            return volumes, centroids, np.zeros((3, 3))
        return volumes, centroids, np.cov(self.points.T, aweights=weights, ddof=0)


@lru_cache(maxsize=1)
def load_template() -> StructureTemplate:
    """Load the template that comes with the package."""
    path = files("bids_cmb") / "resources" / "atlases" / "structures.npz"
    with path.open("rb") as file, np.load(file) as stored:
        return mirror_template(stored)


def mirror_template(half: Mapping) -> StructureTemplate:
    """Add the right half to the left one, as `build_template` gives it."""
    points, codes = half["points"] / TENTHS, half["codes"].astype(int)
    twin = make_mirror_table()[codes].astype(int)
    volumes = half["volumes"] / np.where(codes == twin, 2, 1)  # those astride are there twice
    return StructureTemplate(
        np.concatenate([points, points * MIRROR]),
        np.concatenate([codes, twin]),
        np.concatenate([volumes, volumes]),
    )


def build_template(heads: Sequence[tuple[Volume, np.ndarray]], codes: Mapping) -> dict:
    """Build the left half of a template from label maps; the right ones are mirrored onto it.

    Args:
        heads: Label maps in FreeSurfer's codes, whole, each with its affine to MNI space.
        codes: Of the structures, as keys.

    Returns:
        ``points`` (tenths of a mm, int16), ``codes`` (uint8) and ``volumes`` (mm³, uint16).
    """
    twin = make_mirror_table()
    points, names, volumes = [], [], []
    for code in sorted(int(code) for code in codes):
        if twin[code] < code:
            continue
        places, weight = [], []
        for labels, to_mni in heads:
            at_home = Volume(labels.data, to_mni @ labels.affine)
            for side, turn in ((code, 1), (int(twin[code]), MIRROR)):
                places.append(at_home.world(np.argwhere(labels.data == side)) * turn)
                weight.append(np.full(len(places[-1]), at_home.voxel_volume / 2 / len(heads)))
        place, mass = np.concatenate(places), np.concatenate(weight)
        wide = WIDE_CELL_MM if code in SPREAD_OUT else CELL_MM
        _, cell = np.unique(np.floor(place / wide).astype(int), axis=0, return_inverse=True)
        volume = np.bincount(cell.ravel(), mass)
        kept = volume > MIN_CELL_SHARE * CELL_MM**3
        middle = [np.bincount(cell.ravel(), mass * place[:, axis]) / volume for axis in range(3)]
        points.append(np.rint(TENTHS * np.stack(middle, axis=1)[kept]))
        names.append(np.full(kept.sum(), code))
        volumes.append(np.rint(volume[kept]))
    return {
        "points": np.concatenate(points).astype(np.int16),
        "codes": np.concatenate(names).astype(np.uint8),
        "volumes": np.concatenate(volumes).astype(np.uint16),
    }
