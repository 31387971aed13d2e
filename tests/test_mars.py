"""The tables of regions: every code of every atlas belongs to exactly one region."""

from collections import Counter

import pytest

from bids_cmb.mars import LOBAR_LABEL, RIGHT, by_label, label_of, label_rows, names, pattern, table

LOBES = ["frontal", "parietal", "temporal", "occipital", "insula"]


def test_mars_has_thirteen_regions_in_three_territories():
    assert len(names()) == 13
    assert names("lobar") == LOBES
    assert names("infratentorial") == ["brainstem", "cerebellum"]
    assert len(names("deep")) == 6


@pytest.mark.parametrize("atlas", ["structures", "parcels", "harvard_oxford"])
def test_every_label_of_an_atlas_maps_to_exactly_one_region(atlas):
    members = Counter(code for codes in table()[atlas].values() for code in codes)
    assert set(members.values()) == {1}
    assert set(table()[atlas]) <= set(names())


def test_no_parcel_of_the_cortex_is_left_out():
    """Harvard-Oxford has 48 parcels; Desikan-Killiany 1 to 35 (4 is the callosum)."""
    parcels = {code for codes in table()["harvard_oxford"].values() for code in codes}
    assert parcels == set(range(1, 49))
    parcels = {code for codes in table()["parcels"].values() for code in codes}
    assert parcels == set(range(1, 36))


def test_labels_left_and_right_are_all_different():
    indices = [row["index"] for row in label_rows()]
    assert len(set(indices)) == len(indices) == 28
    assert label_of("temporal") + RIGHT in indices
    assert by_label()[LOBAR_LABEL] == (None, "lobar")


@pytest.mark.parametrize(
    ("lobar", "deep", "infratentorial", "cerebellar", "said"),
    [
        (0, 0, 0, 0, "none"),
        (2, 0, 0, 0, "strictly lobar"),
        (2, 0, 3, 3, "strictly lobar"),
        (2, 0, 3, 2, "mixed"),
        (0, 1, 0, 0, "strictly deep"),
        (0, 0, 1, 0, "strictly deep"),
        (1, 1, 0, 0, "mixed"),
        (0, 0, 4, 4, "cerebellar only"),
    ],
)
def test_patterns_are_those_of_boston(lobar, deep, infratentorial, cerebellar, said):
    """The cerebellum counts as neither; the brainstem as deep."""
    found = {"lobar": lobar, "deep": deep, "infratentorial": infratentorial}
    assert pattern(found, cerebellar) == said
