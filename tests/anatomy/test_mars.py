"""The tables of regions: every code of every atlas belongs to exactly one region."""

import zipfile
from collections import Counter
from importlib.metadata import distribution

import pytest

from bids_cmb.anatomy.mars import (
    LOBAR_LABEL,
    RIGHT_OFFSET,
    classify_pattern,
    find_label,
    index_regions,
    list_label_rows,
    list_regions,
    load_mars_table,
)

LOBES = ["frontal", "parietal", "temporal", "occipital", "insula"]


def test_mars_has_thirteen_regions_in_three_territories():
    assert len(list_regions()) == 13
    assert list_regions("lobar") == LOBES
    assert list_regions("infratentorial") == ["brainstem", "cerebellum"]
    assert len(list_regions("deep")) == 6


@pytest.mark.parametrize("atlas", ["structures", "parcels", "harvard_oxford", "massp20"])
def test_every_label_of_an_atlas_maps_to_exactly_one_region(atlas):
    members = Counter(code for codes in load_mars_table()[atlas].values() for code in codes)
    assert set(members.values()) == {1}
    assert set(load_mars_table()[atlas]) - {"fluid"} <= set(list_regions())


def test_no_parcel_of_the_cortex_is_left_out():
    """Harvard-Oxford has 48 parcels; Desikan-Killiany 1 to 35 (4 is the callosum)."""
    parcels = {code for codes in load_mars_table()["harvard_oxford"].values() for code in codes}
    assert parcels == set(range(1, 49))
    parcels = {code for codes in load_mars_table()["parcels"].values() for code in codes}
    assert parcels == set(range(1, 36))


def templateflow_table(name):
    """A table that TemplateFlow's client carries in its package: (index, name, xyz if given)."""
    # Not by an import, which would unpack it into the user's home.
    skeleton = distribution("templateflow").locate_file("templateflow/conf/templateflow-skel.zip")
    with zipfile.ZipFile(skeleton) as packed:
        rows = packed.read(f"{name.split('_')[0]}/{name}_dseg.tsv").decode().splitlines()[1:]
    return [(int(row.split("\t")[0]), *row.split("\t")[1:]) for row in rows]


def test_names_of_parcels_are_those_of_templateflow():
    """HOCPA's table counts from 1; HOCPAL's from 0, left first, without names with commas."""
    ours = load_mars_table()["harvard_oxford_names"]
    whole = templateflow_table("tpl-MNI152NLin6Asym_atlas-HOCPA")
    assert {index: name.split(" (")[0] for index, name in whole} == dict(enumerate(ours, start=1))
    sided = templateflow_table("tpl-MNI152NLin6Asym_atlas-HOCPAL")
    for index, name, xyz in sided:
        label = index + 1
        side, parcel = ("Left", (label + 1) // 2) if label % 2 else ("Right", label // 2)
        assert name == f"{side} {ours[parcel - 1]}"
        middle = 45  # x runs to the left in FSL's voxels of 2 mm
        assert (int(xyz.split(",")[0]) >= middle) == (side == "Left")


def test_names_of_nuclei_are_those_of_templateflow():
    rows = templateflow_table("tpl-MNI152NLin2009cAsym_res-01_atlas-MASSP20")
    known = {
        label: name
        for name, labels in load_mars_table()["massp20_names"].items()
        for label in labels
    }
    for index, name in rows:
        plain = name.removeprefix("left-").removeprefix("right-").replace("-", " ")
        assert known.pop(index) == plain
    assert not known
    members = {label for labels in load_mars_table()["massp20"].values() for label in labels}
    assert members == {index for index, *_ in rows}


def test_labels_left_and_right_are_all_different():
    indices = [row["index"] for row in list_label_rows()]
    assert len(set(indices)) == len(indices) == 28
    assert find_label("temporal") + RIGHT_OFFSET in indices
    assert index_regions()[LOBAR_LABEL] == (None, "lobar")


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
    assert classify_pattern(found, cerebellar) == said
