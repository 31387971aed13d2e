"""A page says what its detector finds and misses, for the kind of scan that it shows."""

import numpy as np
import pytest

from bids_cmb.detection.performance import select_performance
from bids_cmb.imaging.protocol_kinds import THICK, THICK_FINE, THIN
from bids_cmb.networks.model_cards import list_cards, load_card
from bids_cmb.report.performance import describe_performance

CARD = {
    "performance": [
        {
            "data": "simulated", "kind": THIN, "scans": 9, "microbleeds": 20,
            "points": [{"threshold": 0.3, "found": 15, "false_per_scan": 2.0}],
        },
        {
            "data": "simulated", "kind": THICK_FINE, "scans": 1, "microbleeds": 4,
            "points": [{"threshold": 0.3, "found": 3, "false_per_scan": 1.0}],
        },
        {
            "data": "real", "contrast": "T2starw", "scans": 5, "microbleeds": 21,
            "points": [
                {"threshold": 0.03, "found": 12, "false_per_scan": 1.4},
                {"threshold": 0.3, "found": 8, "false_per_scan": 0.0},
            ],
        },
    ],
    "limits": ["It misses faint dots."],
}  # fmt: skip


def describe(contrast, threshold, spacing):
    measured = select_performance(CARD, threshold, spacing)
    performance = {"Contrast": contrast, "Measured": measured, "Limits": CARD["limits"]}
    return describe_performance(
        {"Performance": performance, "Microbleeds": {"threshold": threshold}}
    )


def test_real_scans_come_first_and_simulated_ones_are_of_the_kind_of_the_scan():
    described = describe("T2starw", 0.3, (0.45, 0.45, 4.0))
    assert described["warning"] is None
    assert described["found"] == [
        "On 5 real T2*-weighted scans this detector found 8 of 21 microbleeds, "
        "with 0.0 false per scan.",
        "On 1 simulated scan of this kind (thick slices of fine pixels) this detector found 3 of 4 "
        "microbleeds, with 1.0 false per scan.",
        "A count of 0 does not exclude microbleeds, and some that are counted may be mimics.",
    ]
    assert described["limits"] == ["It misses faint dots."]


def test_figures_are_those_of_the_nearest_threshold_and_name_it_if_it_is_another():
    described = describe("T2starw", 0.02, (0.45, 4.0, 0.45))
    assert (
        "12 of 21 microbleeds, with 1.4 false per scan at threshold 0.03." in described["found"][0]
    )


def test_a_contrast_without_real_scans_is_warned_of():
    described = describe("swi", 0.3, (0.8, 0.8, 1.5))
    assert described["warning"] == (
        "This detector was never tried on real SWI scans with known microbleeds."
    )
    assert "thin slices" in described["found"][1]


def test_a_detector_that_was_not_measured_is_called_so():
    described = describe_performance(
        {"Performance": {"Contrast": "T2starw", "Measured": [], "Limits": []}}
    )
    assert described["found"][0] == "What this detector finds and misses was not measured."
    assert "never tried on real T2*-weighted scans" in described["warning"]
    assert describe_performance({})["found"] == described["found"]


@pytest.mark.parametrize("name", list_cards("cerebral microbleeds"))
def test_every_bundled_detector_states_what_it_finds_at_its_own_threshold(name):
    card = load_card(name)
    [first, *_] = select_performance(card, card["threshold"], (0.45, 0.45, 4.0))
    assert (first["Data"], first["Contrast"], first["Microbleeds"]) == ("real", "T2starw", 21)
    assert first["Threshold"] == card["threshold"]
    assert 0 < first["Found"] < 21


@pytest.mark.parametrize(
    ("spacing", "kind"),
    [((0.45, 0.45, 4), THICK_FINE), ((3.0, 0.9, 0.9), THICK), ((0.5, 0.5, 1.5), THIN)],
)
def test_kinds_go_by_pixels_and_slices_whatever_the_order_of_the_axes(spacing, kind):
    for axes in ([0, 1, 2], [2, 0, 1]):
        measured = select_performance(
            {
                "performance": [
                    {"data": "simulated", "kind": name, "scans": 1, "microbleeds": 1,
                     "points": [{"threshold": 0.5, "found": 1, "false_per_scan": 0.0}]}
                    for name in (THIN, THICK, THICK_FINE)
                ]
            },
            0.5, np.array(spacing)[axes],
        )  # fmt: skip
        assert [entry["Kind"] for entry in measured] == [kind]
