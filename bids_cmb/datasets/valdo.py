"""VALDO 2021, task 2: a folder for each subject, a mask for each T2*-weighted scan.

Source: doi:10.5281/zenodo.4520773; Sudre et al., Med Image Anal 2024;91:103029.
"""

from pathlib import Path

from bids_cmb.datasets.base import LabelledDataset, LabelledScan

SCAN_ENDING, MASK_ENDING = "_space-T2S_desc-masked_T2S.nii.gz", "_space-T2S_CMB.nii.gz"


def read(folder: Path) -> LabelledDataset:
    """Read every subject's scan and mask.

    Raises:
        ValueError: If there are none, or one is without the other.
    """
    paths = {
        ending: {path.name.removesuffix(ending): path for path in folder.rglob(f"sub-*{ending}")}
        for ending in (SCAN_ENDING, MASK_ENDING)
    }
    subjects = sorted(paths[SCAN_ENDING].keys() | paths[MASK_ENDING].keys())
    if not subjects:
        raise ValueError(
            f"{folder}: files sub-…{SCAN_ENDING} and sub-…{MASK_ENDING} are needed; found none of "
            "them."
        )
    for ending in (SCAN_ENDING, MASK_ENDING):
        lacking = [subject for subject in subjects if subject not in paths[ending]]
        if lacking:
            raise ValueError(
                f"{folder}: every scan needs its mask and every mask its scan; "
                f"{lacking[0]}{ending} is missing"
                + (f", and {len(lacking) - 1} more." if len(lacking) > 1 else ".")
            )
    scans = tuple(
        LabelledScan(
            subject, subject, paths[SCAN_ENDING][subject], mask=paths[MASK_ENDING][subject]
        )
        for subject in subjects
    )
    return LabelledDataset(
        title="VALDO 2021, task 2: cerebral microbleeds",
        licence="CC BY-NC-SA 4.0: with attribution, not for commercial use, to be shared alike. "
        "Networks trained on these scans inherit this.",
        scans=scans,
        links=("doi:10.5281/zenodo.4520773", "doi:10.1016/j.media.2023.103029"),
    )
