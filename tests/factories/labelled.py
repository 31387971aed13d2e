"""Label maps with their tables, as the app and the truth have them."""

import numpy as np
import pandas as pd

from bids_cmb.imaging.nifti import save
from bids_cmb.imaging.volume import Volume

NAME = "sub-{}/anat/sub-{}_space-orig_seg-CMB_desc-{}_dseg"


def write_side(folder, desc, sides, grid, *, table=True, columns=None):
    """Label maps with their tables; ``sides``: label of the participant → ranges of voxels."""
    for label, ranges in sides.items():
        data = np.zeros(grid.shape, np.uint16)
        rows = []
        for number, (start, stop) in enumerate(ranges, start=1):
            data[start:stop, 10:12, 5:6] = number
            centre = grid.world(np.array([(start + stop - 1) / 2, 10.5, 5]))
            rows.append({"index": number, **dict(zip(("x_mm", "y_mm", "z_mm"), centre))})  # noqa: B905
        path = folder / f"{NAME.format(label, label, desc)}.nii.gz"
        save(Volume(data, grid.affine), path, dtype=np.uint16)
        if table:
            rows = pd.DataFrame(rows, columns=["index", "x_mm", "y_mm", "z_mm"])
            rows = rows.assign(**(columns or {}).get(label, {}))
            rows.to_csv(f"{str(path)[:-7]}.tsv", sep="\t", index=False, na_rep="n/a")
    return folder
