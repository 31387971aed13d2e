"""Counts by region and side add up, and say n/a where nobody could know."""

import json
from dataclasses import replace

import numpy as np
import pytest

from bids_cmb.anatomy.mars import index_regions, list_regions
from bids_cmb.bids.tables import read_columns, read_table, write_table
from bids_cmb.cli.run import main
from bids_cmb.imaging.nifti import save
from bids_cmb.imaging.volume import Volume
from bids_cmb.lesions.measure import Lesion
from bids_cmb.lesions.table import (
    count_by_region,
    count_lesions,
    list_mars_columns,
    make_lesion_row,
)
from bids_cmb.review.merging import get_location

LESION = Lesion(
    index=1, centre=(0, 0, 0), voxel=(0, 0, 0), volume=10, equivalent_diameter=2.7,
    in_plane_diameter=3, slices=2, elongation=1.1, contrast=0.5, distance_to_surface=9,
    probability_mean=0.8, probability_max=0.9, probability_sd=None, certainty="definite",
)  # fmt: skip
TERRITORY = {name: territory for name, territory in index_regions().values() if name}


def lesion(region, side, **more):
    place = {"mars": region, "territory": TERRITORY[region], "side": side, "left": side == "left"}
    return replace(LESION, **{**place, **more})


def test_every_column_of_a_region_is_described():
    described = read_columns("scan")
    assert [column for column, _, _ in list_mars_columns()] == [
        name for name in described if name.endswith(("_left", "_right"))
    ]
    assert len(list_mars_columns()) == 26


def test_the_lesion_table_alone_gives_the_same_counts_by_region(tmp_path, rng):
    """Also on the midline, where the table's side is neither left nor right."""
    lesions = [
        replace(lesion(region, side), side=str(rng.choice([side, "midline"])))
        for region, side in zip(
            rng.choice(list_regions(), 60), rng.choice(["left", "right"], 60), strict=True
        )
    ]
    write_table(
        tmp_path / "a.tsv", read_columns("lesion"), [make_lesion_row(one) for one in lesions]
    )
    found = count_by_region([get_location(row) for row in read_table(tmp_path / "a.tsv")])
    assert found == {name: count_lesions(lesions)[name] for name in found}
    assert len(found) == 5 + len(list_mars_columns())


def test_regions_add_up_to_territories_and_to_all(rng):
    lesions = [
        lesion(region, side)
        for region, side in zip(
            rng.choice(list_regions(), 60), rng.choice(["left", "right"], 60), strict=True
        )
    ]
    found = count_lesions(lesions)
    for territory in ("lobar", "deep", "infratentorial"):
        parts = [c for c, region, _ in list_mars_columns() if TERRITORY[region] == territory]
        assert sum(found[column] for column in parts) == found[f"n_{territory}"]
    assert sum(found[column] for column, _, _ in list_mars_columns()) == 60


def test_what_lies_on_the_midline_goes_to_the_side_it_leans_to():
    found = count_lesions([lesion("brainstem", "midline", left=True)])
    assert (found["n_brainstem_left"], found["n_brainstem_right"]) == (1, 0)


def test_a_lobe_that_is_not_known_makes_lobes_unknown_and_nothing_else():
    found = count_lesions([lesion("frontal", "left", mars=None), lesion("thalamus", "right")])
    assert found["n_lobar"] == 1
    assert found["n_frontal_left"] is found["n_occipital_right"] is None
    assert found["n_thalamus_right"] == 1
    assert found["pattern"] == "mixed"


def test_without_anatomy_nothing_is_known_of_places():
    found = count_lesions([LESION])
    assert found["n_cmb"] == 1
    assert {found[column] for column, _, _ in list_mars_columns()} == {None}
    assert found["pattern"] is found["lobar_class"] is None


def test_without_anatomy_a_scan_without_lesions_has_no_known_regions_either():
    """Counted as 0, only the participants without lesions were in the regional prevalence."""
    found = count_lesions([], located=False)
    assert found["n_cmb"] == 0
    assert {found[column] for column, _, _ in list_mars_columns()} == {None}
    assert {found[f"n_{name}"] for name in ("lobar", "deep", "infratentorial")} == {None}
    assert found["pattern"] is found["lobar_class"] is None


def test_no_lesion_is_none_everywhere():
    found = count_lesions([])
    assert {found[column] for column, _, _ in list_mars_columns()} == {0}
    assert (found["pattern"], found["lobar_class"]) == ("none", "0")


@pytest.mark.parametrize(("lobar", "said"), [(0, "0"), (1, "1"), (2, ">=2"), (30, ">=2")])
def test_lobar_classes(lobar, said):
    assert count_lesions([lesion("insula", "left")] * lobar)["lobar_class"] == said


def test_sizes_are_two_classes_that_hold_all():
    found = count_lesions(
        [lesion("insula", "left", half_depth_diameter=mm) for mm in (3, 4.9, 5, 14)]
    )
    assert (found["n_under_5mm"], found["n_5mm_or_more"]) == (2, 2)


def test_what_is_not_counted_is_in_no_region():
    found = count_lesions([lesion("insula", "left", included=False)])
    assert found["n_insula_left"] == found["n_cmb"] == 0


def test_a_users_segmentation_gives_regions_without_any_network(dataset, known, tmp_path):
    """Codes of the made-up head, laid over the phantom: brain, regions and transform from them."""
    raw, given = dataset({"sub-01/anat/sub-01_T2starw": "six"}), tmp_path / "seg/sub-01/anat"
    given.mkdir(parents=True)
    codes = known[0]
    middle = np.array(codes.shape) / 2
    affine = codes.affine.copy()
    affine[:3, 3] -= codes.world(middle)  # the phantom's brain lies about the origin
    path = given / "sub-01_desc-aparcaseg_dseg.nii.gz"
    stored = codes.data.astype(np.int32)
    stored = np.select([stored == 3, stored == 42], [1028, 2028], stored)  # superior frontal
    save(Volume(stored, affine), path, dtype=np.int32)
    words = [str(raw), str(tmp_path / "out"), "participant", "--derivatives", str(tmp_path / "seg")]
    quick = ["--detector", "radial", "--anatomy", "none", "-q", "--output-level", "full"]
    quick += ["--report", "none"]
    assert main([*words, *quick]) == 0
    home = tmp_path / "out/sub-01/anat"
    made = json.loads((home / "sub-01_space-orig_label-CMB_desc-T2starw_mask.json").read_text())
    assert made["Provenance"]["BrainMask"] == f"found by {path}"
    assert path.name in [one["Path"] for one in made["Provenance"]["Input"]]
    assert made["Provenance"]["Anatomy"] == {"Source": str(path)}
    assert made["Provenance"]["Machine"]["Device"] == "CPU"
    about = json.loads(
        (home / "sub-01_space-orig_seg-structures_desc-T2starw_dseg.json").read_text()
    )
    assert path.name in about["Description"]
    assert (home / "sub-01_from-T2starw_to-MNI152NLin2009cAsym_mode-image_xfm.txt").is_file()
    table = read_table(home / "sub-01_space-orig_seg-regions_desc-T2starw_dseg.tsv")
    assert {"left thalamus", "right cerebellum"} <= {row["name"] for row in table}
    rows = read_table(home / "sub-01_space-orig_seg-CMB_desc-T2starw_dseg.tsv")
    assert rows
    assert all(row["territory"] for row in rows if row["region"])
    assert main([*words, *quick]) == 0  # and again: all is done


def test_a_segmentation_that_is_none_is_a_failure_with_its_name(dataset, tmp_path, capfd):
    raw, given = dataset({"sub-01/anat/sub-01_T2starw": "six"}), tmp_path / "seg/sub-01/anat"
    given.mkdir(parents=True)
    mask = Volume(np.ones((20, 20, 20), np.int32), np.diag([4.0, 4, 4, 1]))
    save(mask, given / "sub-01_desc-aseg_dseg.nii.gz", dtype=np.int32)
    words = [str(raw), str(tmp_path / "out"), "participant", "--derivatives", str(tmp_path / "seg")]
    assert main([*words, "--detector", "radial", "--anatomy", "none", "-q"]) == 1
    assert "must have structures of the brain in FreeSurfer's codes" in capfd.readouterr().err
