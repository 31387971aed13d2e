"""A law is the default but for what it says itself."""

import pytest

from bids_cmb.simulation.geometry import LESION_REGIONS
from bids_cmb.simulation.lesion_priors import load_priors


def test_an_unknown_law_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match=r"must be one of default, other, .*; found 'third'"):
        load_priors("third")


def test_a_law_that_says_little_keeps_the_rest_of_the_default():
    default, other = load_priors(), load_priors("other")
    assert other["vessels"]["septal vein"] == default["vessels"]["septal vein"]
    assert other["vessels"]["pial vessel"]["wobble"] == default["vessels"]["pial vessel"]["wobble"]
    assert other["microbleed"]["chi_ppm"] != default["microbleed"]["chi_ppm"]
    assert set(other) == set(default)
    assert set(other["grains"]) == set(default["grains"])


@pytest.mark.parametrize("name", ["default", "other", "deep"])
def test_shares_of_a_law_add_up_to_one(name):
    given = load_priors(name)
    assert sum(given["microbleed"]["region_shares"].values()) == pytest.approx(1)
    assert sum(given["dots"]["shares"].values()) == pytest.approx(1)
    assert sum(given["microbleed"]["balls"]) == pytest.approx(1)
    assert set(given["microbleed"]["region_shares"]) == set(LESION_REGIONS)


def test_nearly_half_of_the_microbleeds_of_the_deep_law_lie_deep():
    """Also in pallidum, hippocampus and amygdala, where the default law puts none."""
    shares, default = (
        load_priors(name)["microbleed"]["region_shares"] for name in ("deep", "default")
    )
    deep = ("basal ganglia", "thalamus", "pallidum", "hippocampus / amygdala")
    assert sum(shares[region] for region in deep) == pytest.approx(0.45)
    assert all(shares[region] > 0 for region in deep)
    assert sum(default[region] for region in deep) < 0.2
