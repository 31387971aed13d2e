"""The structures of a mean head in MNI space, and what heads are like beside it.

``resources/atlases/structures.npz`` holds the left half; the right one is its mirror image.
``benchmarks/mni.py`` makes it from label maps of heads.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from scipy.spatial.transform import Rotation

from bids_cmb.anatomy.labels import make_mirror_table
from bids_cmb.imaging.volume import Volume
from bids_cmb.resource_files import RESOURCES

GROUPS = (  # FreeSurfer's codes that are told apart, left and right together
    *((2, 41), (3, 42), (4, 43), (7, 46, 8, 47), (10, 49, 28, 60), (11, 50), (12, 51, 13, 52)),
    *((17, 53, 18, 54), (16,)),  # the brainstem, the last, has no sides
)
CELL_MM, CELLS, CORNER_MM = 4.0, (40, 50, 42), (-80.0, -116.0, -76.0)
MIRROR = np.array([-1.0, 1, 1])
PAIRS = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))
STORED_STEPS = 255


@dataclass(frozen=True, eq=False)
class MniTemplate:
    """The structures of a mean head in MNI152NLin2009cAsym, and the forms of heads.

    A form is a linear map from a head to MNI space, split into nine numbers: the turns about x, y
    and z, radians, and the symmetric matrix that stretches the head after them (`PAIRS`).

    Attributes:
        shares: What share of each cell each of `GROUPS` fills, 0 to 1, and left minus right
            structures, -1 to 1, float32, (groups + 1, X, Y, Z) of `CELLS`.
        form: Mean over heads, (9,).
        form_sd: Standard deviation over heads, (9,).
    """

    shares: np.ndarray
    form: np.ndarray
    form_sd: np.ndarray

    @cached_property
    def _cells(self) -> np.ndarray:
        """Cells in C order with a rim of empty ones, float32 (cells, groups + 1)."""
        rim = np.pad(self.shares, [(0, 0), (1, 1), (1, 1), (1, 1)])
        return np.ascontiguousarray(rim.reshape(len(rim), -1).T)

    def sample(self, places: np.ndarray) -> np.ndarray:
        """Sample the shares at places in MNI space, mm, (N, 3), linearly: (N, groups + 1).

        All groups at once, which takes a fifth of the time of `scipy.ndimage.map_coordinates`.
        """
        size = np.array(self.shares.shape[1:]) + 2
        position = np.clip((places - CORNER_MM) / CELL_MM + 0.5, 0, size - 1.001)
        low = position.astype(np.intp)
        upper = (position - low).astype(np.float32).T
        strides = np.array([size[1] * size[2], size[2], 1])
        first, sampled = low @ strides, np.zeros((len(places), len(self.shares)), np.float32)
        x, y, z = np.stack([1 - upper, upper], axis=1)
        for i, j, k in np.ndindex(2, 2, 2):
            weight = x[i] * y[j] * z[k]
            sampled += weight[:, None] * self._cells[first + strides @ (i, j, k)]
        return sampled


def index_groups(codes: np.ndarray) -> np.ndarray:
    """Index the group of each FreeSurfer code, uint8; ``len(GROUPS)`` for all others."""
    table = np.full(2**16, len(GROUPS), np.uint8)
    for group, members in enumerate(GROUPS):
        table[list(members)] = group
    return table[codes]


def index_sides(codes: np.ndarray) -> np.ndarray:
    """Index the side of each FreeSurfer code of `GROUPS`: 1 left, -1 right, else 0, int8."""
    table, members = np.zeros(2**16, np.int8), [code for group in GROUPS for code in group]
    table[members] = np.sign(make_mirror_table().astype(int) - np.arange(2**16))[members]
    return table[codes]


def compose_linear(form: np.ndarray) -> np.ndarray:
    """Compose linear maps (…, 3, 3) from their forms (…, 9)."""
    rows, columns = np.transpose(PAIRS)
    stretch = np.empty((*form.shape[:-1], 3, 3))
    stretch[..., rows, columns] = stretch[..., columns, rows] = form[..., 3:]
    return stretch @ Rotation.from_rotvec(form[..., :3]).as_matrix()


def split_linear(linear: np.ndarray) -> np.ndarray:
    """Split a linear map (3, 3) into its form (9,)."""
    left, _, right = np.linalg.svd(linear)
    stretch = linear @ (left @ right).T
    turns = Rotation.from_matrix(left @ right).as_rotvec()
    return np.array([*turns, *(stretch[pair] for pair in PAIRS)])


@lru_cache(maxsize=1)
def load_template() -> MniTemplate:
    """Load the template that comes with the package."""
    path = RESOURCES / "atlases" / "structures.npz"
    with path.open("rb") as file, np.load(file) as stored:
        shares = _add_right(stored["left"].astype(np.float32) / STORED_STEPS)
        return MniTemplate(shares, stored["form"], stored["form_sd"])


def _add_right(left: np.ndarray) -> np.ndarray:
    """Add the right half and the sides to the shares of the left half."""
    half = np.concatenate([left, left[:-1].sum(axis=0, keepdims=True)])
    right = half[:, ::-1] * np.array([1] * len(GROUPS) + [-1])[:, None, None, None]
    return np.concatenate([half, right], axis=1).astype(np.float32)


def build_template(heads: Sequence[tuple[Volume, np.ndarray]]) -> MniTemplate:
    """Build a template from label maps in FreeSurfer's codes, whole, each with its affine to MNI.

    Each head counts twice, as it is and mirrored.
    """
    size, width = int(np.prod(CELLS)), len(GROUPS) + 1
    counts = np.zeros((size + 1) * width)  # the last cell is all that lies outside
    for labels, to_mni in heads:
        groups = index_groups(labels.data).ravel()
        voxels = np.indices(labels.shape).reshape(3, -1).T
        places = Volume(labels.data, to_mni @ labels.affine).world(voxels)
        for turn in (1, MIRROR):
            cell = np.floor((places * turn - CORNER_MM) / CELL_MM).astype(int)
            inside = ((cell >= 0) & (cell < CELLS)).all(axis=1)
            index = np.full(len(cell), size)
            index[inside] = np.ravel_multi_index(cell[inside].T, CELLS)
            counts += np.bincount(index * width + groups, minlength=len(counts))
    counts = counts[:-width].reshape(*CELLS, width)
    shares = np.moveaxis(counts[..., :-1], -1, 0) / np.maximum(counts.sum(axis=-1), 1)
    forms = np.array([split_linear(to_mni[:3, :3]) for _, to_mni in heads])
    spread = forms.std(axis=0, ddof=1) if len(forms) > 1 else np.zeros(9)
    return MniTemplate(_add_right(shares[:, : CELLS[0] // 2]), forms.mean(axis=0), spread)
