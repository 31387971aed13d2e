"""The summary of a page: every counted lesion once in its table, the scan in plain words."""

import pytest

from bids_cmb.detection.performance import select_performance
from bids_cmb.imaging.protocol_kinds import THICK
from bids_cmb.report.summary import describe_adequacy, tabulate_counts

SCAN = {
    "field_strength_t": 3.0, "echo_time_ms": 20.0, "voxel_size_1_mm": 0.8, "voxel_size_2_mm": 0.8,
    "slice_spacing_mm": 1.5, "fov_truncation_percent": 0.0, "fov_truncation_side": None,
    "brain_ml": 1300.0, "brain_snr": 20.0, "ghost_percent": 0.6, "quality_flags": None,
}  # fmt: skip


def lesion(territory, region, side, size):
    return {
        "territory": territory, "mars_region": region, "mars_side": side,
        "equivalent_diameter_mm": "3", "half_depth_diameter_mm": size,
    }  # fmt: skip


def test_a_lesion_is_counted_by_region_side_and_size():
    rows = tabulate_counts(
        [
            lesion("lobar", "frontal", "left", "2.5"),
            lesion("lobar", "frontal", "right", "5.0"),
            lesion("lobar", None, "right", None),  # no lobe, no size at half depth
            lesion("deep", "thalamus", "left", "7.1"),
        ]
    )
    table = {row["name"]: tuple(row[key] for key in ("left", "right", "small", "large", "all"))
             for row in rows}  # fmt: skip
    assert table == {
        "lobar": (1, 2, 2, 1, 3),
        "frontal": (1, 1, 1, 1, 2),
        "lobe not known": (0, 1, 1, 0, 1),
        "deep": (1, 0, 0, 1, 1),
        "thalamus": (1, 0, 0, 1, 1),
        "infratentorial": (0, 0, 0, 0, 0),
        "all": (2, 2, 2, 2, 4),
    }


def test_what_a_reader_added_counts_without_a_size_and_without_a_place():
    rows = tabulate_counts([lesion("deep", "thalamus", "left", "2"), {"territory": None}])
    assert [row["all"] for row in rows if row["name"] in ("place not known", "all")] == [1, 2]
    assert (rows[-1]["small"], rows[-1]["large"]) == (1, 0)


def test_where_no_place_is_known_no_territory_is_said_to_be_free():
    rows = tabulate_counts([{"equivalent_diameter_mm": "3"}])
    assert [row["name"] for row in rows] == ["place not known", "all"]


@pytest.mark.parametrize(
    ("changed", "words", "doubtful"),
    [
        ({}, "3 T, echo time 20 ms: 60 T ms; about 60 are usual", False),
        ({"echo_time_ms": 8.0}, "24 T ms, too short", True),
        ({"field_strength_t": None}, "the field strength is not known", True),
        ({"echo_time_ms": None, "field_strength_t": None}, "the scan's sidecar has neither", True),
        ({}, "thin enough to tell dots from vessels", False),
        ({"slice_spacing_mm": 2.6}, "2.6 mm apart: thick", False),
        ({"slice_spacing_mm": 3.0}, "Small microbleeds fade in them or are missed", True),
        ({"slice_spacing_mm": 6.0}, "6 mm apart: thick", True),
        ({}, "The whole brain.", False),
        ({"fov_truncation_percent": 12.0, "fov_truncation_side": "inferior"},
         "The inferior edge of the field of view still shows 12 %", False),
        ({"fov_truncation_percent": 40.0, "fov_truncation_side": "superior"},
         "superior edge of the field of view still shows 40 % of the largest cross-section of the "
         "brain: the brain is not covered whole", True),
        ({"fov_truncation_percent": None}, "It is not known.", True),
        ({"slice_spacing_mm": None}, "Their thickness is not known.", True),
        ({"quality_flags": "brain_volume", "brain_ml": 700.0}, "has 700 ml", True),
        ({}, "Ghosts beside the head have 0.6 % of the brain's signal, as those of a head at rest",
         False),
        ({"ghost_percent": 3.0}, "3.0 % of the brain's signal; a head at rest has less than 3 %. "
         "Motion hides small microbleeds", True),
        ({"ghost_percent": None}, "Not measured: ghosts show in the air around a head", False),
        ({"quality_flags": "nonfinite,header_corrected"}, "voxels that are no numbers", True),
    ],
)  # fmt: skip
def test_a_scan_is_described_in_words_and_what_is_doubtful_stands_out(changed, words, doubtful):
    [statement] = [one for one in describe_adequacy(SCAN | changed) if words in one.text]
    assert statement.doubtful == doubtful


def test_thick_slices_say_what_the_detector_found_in_such_slices():
    """From the card: its figures for that kind of protocol, or that there are none."""
    card = {
        "performance": [
            {"data": "real", "contrast": "T2starw", "scans": 5, "microbleeds": 21,
             "points": [{"threshold": 0.7, "found": 9, "false_per_scan": 0.2}]},
            {"data": "simulated", "kind": THICK, "scans": 14, "microbleeds": 30,
             "points": [{"threshold": 0.6, "found": 24, "false_per_scan": 3.2}]},
        ]
    }  # fmt: skip
    scan = SCAN | {"slice_spacing_mm": 3.0, "threshold": 0.7}
    measured = select_performance(card, 0.7, (0.8, 0.8, 3.0))
    [slices] = [one for one in describe_adequacy(scan, measured) if one.name == "slices"]
    assert slices.doubtful
    assert slices.text.endswith(
        "On 14 simulated scans of this kind (thick slices) this detector found 24 of 30 "
        "microbleeds, with 3.2 false per scan at threshold 0.6."
    )
    [slices] = [one for one in describe_adequacy(scan, measured[:1]) if one.name == "slices"]
    assert slices.text.endswith("in such slices was not measured by itself.")


def test_a_scan_of_an_earlier_version_says_that_its_motion_was_not_measured():
    earlier = {name: value for name, value in SCAN.items() if name != "ghost_percent"}
    [motion] = [one for one in describe_adequacy(earlier) if one.name == "motion"]
    assert motion.text.startswith("Not measured")
