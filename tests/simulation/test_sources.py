"""How strong a source is, and what the truth tells of all sources of one body."""

import numpy as np
import pytest

from bids_cmb.simulation.sources import MICROBLEED, SusceptibilitySource, describe_objects


def test_the_strength_of_a_ball_is_its_moment_and_of_a_tube_that_of_its_volume():
    ball = SusceptibilitySource("microbleed", np.zeros((1, 3)), np.array([0.5]), 8.0, 0.0, 0.0)
    assert ball.moment == pytest.approx(1)
    tube = SusceptibilitySource(
        "vein", np.array([[0, 0, 0], [0, 0, 8.0]]), np.array([1.0, 1.0]), 0.5, 1.0, 0.0
    )
    assert tube.moment == pytest.approx(0.5 * 8 * np.pi / (4 / 3 * np.pi))


def test_a_row_of_truth_tells_of_all_parts_of_a_body():
    parts = [
        SusceptibilitySource(
            MICROBLEED, np.array([[x, 2.0, 3.0]]), np.array([1.0]), chi, 0.0, 0.0, 7, "thalamus"
        )
        for x, chi in ((0.0, 1.0), (1.0, 3.0))
    ]
    [row] = describe_objects(parts)
    assert row == {
        "object_id": 7,
        "kind": "microbleed",
        "region": "thalamus",
        "territory": "deep",
        "x_mm": 0.75,
        "y_mm": 2.0,
        "z_mm": 3.0,
        "moment_ppm_mm3": 4.0,
        "extent_mm": 3.0,
    }
