"""Cohorts of any size as the group level hands them to its page: counts by the app, drawn numbers.

The group table is thus that of a large study, though no scan of it was ever read.
"""

from types import SimpleNamespace

import numpy as np

from bids_cmb.anatomy.mars import load_mars_table
from bids_cmb.bids.tables import read_columns
from bids_cmb.lesions.table import classify_burden, count_by_region
from bids_cmb.longitudinal.follow_up import classify_aria_h
from bids_cmb.report.html import Cohort
from bids_cmb.report.prevalence import make_region_rows

PROTOCOLS = ((3.0, 20.0, 0.9, 1.5), (3.0, 20.0, 0.8, 3.0), (1.5, 40.0, 1.0, 4.0))
SITES = 12
FAILED_SHARE = 0.01
MEAN_CMB = 1.6


def draw_cohort(scans, seed=1):
    """Draw a cohort of so many scans: every third participant was scanned twice.

    Returns:
        The cohort of the page, and the MNI positions of its lesions by participant, mm.
    """
    rng = np.random.default_rng(seed)
    rows = [draw_row(rng, *name_scan(number)) for number in range(scans)]
    processed = [row for row in rows if row["status"] == "ok"]
    sites = {row["participant_id"]: f"site {int(row['participant_id'][4:]) % SITES:02d}"
             for row in rows}  # fmt: skip
    positions = {row["participant_id"]: draw_positions(rng, row["n_cmb"]) for row in processed}
    groups = {"site": sites}
    cohort = Cohort(
        rows,
        make_region_rows(processed, groups),
        rng.gamma(4, 0.9, sum(row["n_cmb"] for row in processed)).tolist(),
        groups,
        pairs=draw_pairs(rng, processed),
    )
    return cohort, positions


def name_scan(number):
    """Name a scan: the participant, and the session."""
    person, third = divmod(number, 4)
    number = 3 * person + min(third, 2)
    return f"sub-{number:05d}", "ses-2" if third == 3 else "ses-1"


def draw_row(rng, participant, session):
    """Draw a row of the group table."""
    source = f"{participant}/{session}/anat/{participant}_{session}_T2starw.nii.gz"
    row = {**dict.fromkeys(read_columns("group")), **dict.fromkeys(read_columns("scan"))}
    row |= {"participant_id": participant, "session_id": session, "source": source}
    if rng.random() < FAILED_SHARE:
        return row | {"status": "failed", "reason": "the image has one slice"}
    field, echo, pixel, spacing = PROTOCOLS[rng.integers(len(PROTOCOLS))]
    count = int(rng.negative_binomial(0.4, 0.4 / (0.4 + MEAN_CMB)))
    definite = int(rng.binomial(count, 0.6))
    return row | {
        "status": "ok", "filename": source.replace("_T2starw", "_label-CMB_mask"),
        "n_cmb": count, "n_definite": definite, "n_possible": count - definite, "n_excluded": 0,
        "cmb_volume_mm3": round(float(rng.gamma(4, 5, count).sum()), 3),
        "burden": classify_burden(count), **count_by_region(draw_lesions(rng, count)),
        "detector": "ensemble", "threshold": 0.7, "threshold_definite": 0.9,
        "field_strength_t": field, "echo_time_ms": echo, "voxel_size_1_mm": pixel,
        "voxel_size_2_mm": pixel, "slice_spacing_mm": spacing,
        "brain_ml": round(float(rng.normal(1250, 110)), 1), "fov_truncation_percent": 0.0,
        "brain_snr": round(float(rng.normal(18, 3)), 1), "nonfinite_voxels": 0,
        "ghost_percent": round(float(rng.gamma(2, 0.4)), 1) if rng.random() < 0.5 else None,
        "quality_flags": "header_corrected" if rng.random() < 0.03 else None,
    }  # fmt: skip


def draw_lesions(rng, count):
    """Draw lesions, each in a region of MARS and on a side."""
    regions = load_mars_table()["regions"]
    chosen = [regions[index] for index in rng.integers(len(regions), size=count)]
    return [
        SimpleNamespace(
            side="left", left=bool(rng.integers(2)), mars=region["name"],
            territory=region["territory"],
        )
        for region in chosen
    ]  # fmt: skip


def draw_positions(rng, count):
    """Draw MNI positions within an ellipsoid, mm."""
    away = rng.normal(size=(count, 3))
    away *= rng.random((count, 1)) ** (1 / 3) / np.linalg.norm(away, axis=1, keepdims=True)
    return [tuple(map(float, [0, -18, 15] + place * [60, 75, 55])) for place in away]


def draw_pairs(rng, processed):
    """Draw rows of the table of lesions over time, one for each two sessions of a participant."""
    later = {row["participant_id"]: row for row in processed if row["session_id"] == "ses-2"}
    return [
        draw_pair(rng, row, later[row["participant_id"]])
        for row in processed
        if row["session_id"] == "ses-1" and row["participant_id"] in later
    ]


def draw_pair(rng, first, second):
    """Draw a row of two visits."""
    days, new = int(rng.normal(550, 90)), min(int(rng.poisson(0.5)), second["n_cmb"])
    return {
        **dict.fromkeys(read_columns("followed_pair")),
        "participant_id": first["participant_id"], "session_1": "ses-1", "session_2": "ses-2",
        "filename_1": first["filename"], "filename_2": second["filename"], "consecutive": "yes",
        "status": "ok", "interval_days": days, "n_new": new, "n_not_seen_again": 0,
        "n_persistent": min(first["n_cmb"], second["n_cmb"] - new), "n_uncertain": 0,
        "n_not_comparable": 0, "new_per_year": round(365.25 * new / days, 2),
        "aria_h_class": classify_aria_h(new), "similarity": 0.9, "overlap": 0.99,
        "rotation_deg": 3.0, "shift_mm": 5.0,
    }  # fmt: skip
