"""Regions by rules in mm, on a made-up head that nods and is turned; outside truth is geometry."""

import numpy as np
import pytest
from nibabel.affines import from_matvec
from nibabel.eulerangles import euler2mat
from scipy import ndimage

from bids_cmb.anatomy.mars import LOBAR_LABEL, RIGHT_OFFSET, find_label, index_regions
from bids_cmb.anatomy.region_map import (
    CALLOSUM_MM,
    INTERNAL_CAPSULE_MM,
    build_region_map,
    locate_region,
)
from bids_cmb.anatomy.segmentation import CAPSULE_MM, Anatomy, compute_leftness
from bids_cmb.imaging.volume import Volume

GREY = {10: "thalamus", 11: "basal ganglia", 12: "basal ganglia", 13: "basal ganglia"}
BELOW = {16: "brainstem", 7: "cerebellum", 8: "cerebellum", 17: "temporal"}


@pytest.fixture(scope="module")
def regions(anatomy):
    return build_region_map(anatomy)


def far(codes, wanted):
    return ndimage.distance_transform_edt(~np.isin(codes.data, wanted), codes.spacing)


def at(regions, name):
    return np.isin(regions.data, [find_label(name), find_label(name) + RIGHT_OFFSET])


@pytest.mark.parametrize(("code", "name"), [*GREY.items(), *BELOW.items()])
def test_a_structure_is_of_its_region_on_its_side(anatomy, regions, code, name):
    there = anatomy.structures.data == code
    beside = compute_leftness(anatomy.midline, anatomy.structures.affine, there.shape)
    label = find_label(name)
    assert set(np.unique(regions.data[there & (beside > 0)])) <= {label}
    assert set(np.unique(regions.data[there & (beside <= 0)])) <= {label + RIGHT_OFFSET}


def test_every_voxel_of_tissue_has_a_region_and_no_other_has(anatomy, regions):
    tissue = ~np.isin(anatomy.structures.data, [0, 24, 4, 43, 14, 15])
    assert np.array_equal(regions.data > 0, tissue)


def test_the_internal_capsule_lies_between_lentiform_and_thalamus_or_caudate(anatomy, regions):
    there = at(regions, "internal capsule")
    assert there.any()
    assert far(anatomy.structures, [12, 51, 13, 52])[there].max() <= INTERNAL_CAPSULE_MM
    assert far(anatomy.structures, [10, 49, 11, 50])[there].max() <= INTERNAL_CAPSULE_MM


def test_the_external_capsule_lies_lateral_to_the_putamen(anatomy, regions):
    codes = anatomy.structures
    there = at(regions, "external capsule")
    assert there.any()
    assert far(codes, [12, 51])[there].max() <= CAPSULE_MM
    beside = np.abs(compute_leftness(anatomy.midline, codes.affine, codes.shape))
    putamen = np.isin(codes.data, [12, 51])
    assert beside[there].mean() > beside[putamen].mean()


def test_the_callosum_crosses_the_midline_near_the_ventricles(anatomy, regions):
    codes = anatomy.structures
    there = at(regions, "corpus callosum")
    assert there.any()
    assert (
        np.abs(compute_leftness(anatomy.midline, codes.affine, codes.shape))[there].max()
        <= CALLOSUM_MM
    )
    assert far(codes, [4, 43])[there].max() <= 10


def test_white_matter_is_deep_beside_the_ventricle_and_lobar_under_the_cortex(anatomy, regions):
    codes = anatomy.structures
    white = np.isin(codes.data, [2, 41])
    ventricle, cortex = far(codes, [4, 43]), far(codes, [3, 42])
    kinds = ("deep white matter", "internal capsule", "external capsule", "corpus callosum")
    deep = np.isin(regions.data % RIGHT_OFFSET, [find_label(name) for name in kinds])
    assert deep[white & (ventricle <= 10) & (cortex > 10)].all()
    nuclei = far(codes, [10, 49, 11, 50, 12, 51, 13, 52, 26, 58, 28, 60])
    assert not deep[white & (ventricle > 10) & (nuclei > CAPSULE_MM)].any()


def test_how_far_deep_white_matter_reaches_is_a_parameter(anatomy, regions):
    near = build_region_map(anatomy, deep_wm_distance_mm=4.0)
    assert 0 < at(near, "deep white matter").sum() < at(regions, "deep white matter").sum()


def test_lobes_go_to_lobar_tissue_alone(anatomy, regions):
    everywhere = np.full(regions.shape, find_label("frontal"), np.uint8)
    told = build_region_map(anatomy, everywhere)
    changed = told.data != regions.data
    assert set(np.unique(regions.data[changed])) == {LOBAR_LABEL, LOBAR_LABEL + RIGHT_OFFSET}
    assert set(np.unique(told.data[changed])) == {
        find_label("frontal"),
        find_label("frontal") + RIGHT_OFFSET,
    }


def test_a_lesion_has_the_region_of_its_centre_and_the_next_one(anatomy, regions):
    """Against brute force over the whole head, at places of every kind of tissue."""
    rng = np.random.default_rng(4)
    voxels = np.argwhere(regions.data > 0)
    world = regions.world(voxels)
    labels = regions.data[tuple(voxels.T)].astype(int) % RIGHT_OFFSET
    for place in rng.choice(voxels, 20, replace=False):
        centre = regions.world(place) + rng.uniform(-0.4, 0.4, 3)
        found = locate_region(regions, centre, anatomy.midline)
        own = int(regions.data[tuple(place)]) % RIGHT_OFFSET
        away = np.linalg.norm(world - centre, axis=1)
        others = away[labels != own]
        assert (found.name, found.territory) == index_regions()[own]
        assert found.distance_mm == 0
        if others.min() <= 12:
            assert found.next_distance_mm == pytest.approx(others.min())
        else:
            assert found.next_name is None


def test_a_lesion_has_the_distance_to_the_next_territory(anatomy, regions):
    """Against brute force, and on a plane between two territories against geometry."""
    rng = np.random.default_rng(8)
    voxels = np.argwhere(regions.data > 0)
    world = regions.world(voxels)
    known = index_regions()
    territories = np.array([known[int(label) % RIGHT_OFFSET][1]
                            for label in regions.data[tuple(voxels.T)]])  # fmt: skip
    for name in ("lobar", "deep", "infratentorial"):
        for place in rng.choice(world[territories == name], 8, replace=False):
            found = locate_region(regions, place, anatomy.midline)
            away = np.linalg.norm(world - place, axis=1)[territories != name]
            if away.min() <= 12:
                assert found.next_territory_mm == pytest.approx(away.min())
                assert found.next_territory != found.territory == name
            else:
                assert (found.next_territory, found.next_territory_mm) == (None, None)


def test_the_next_territory_lies_behind_the_regions_of_the_same(anatomy):
    """Slabs of 6 mm along an oblique axis: frontal, parietal (both lobar), thalamus (deep)."""
    affine = from_matvec(euler2mat(0.3, -0.2, 0.1) @ np.diag([-1.0, 2, 1.5]), [5, 6, 7])
    slabs = np.zeros((24, 12, 12), np.uint8)
    for first, name in ((0, "frontal"), (6, "parietal"), (12, "thalamus")):
        slabs[first : first + 6] = find_label(name)
    regions = Volume(slabs, affine)
    found = locate_region(regions, regions.world(np.array([3, 6, 6])), anatomy.midline)
    assert (found.name, found.next_name, found.next_distance_mm) == (
        "frontal", "parietal", pytest.approx(3),
    )  # fmt: skip
    assert (found.next_territory, found.next_territory_mm) == ("deep", pytest.approx(9))


def test_a_lesion_in_fluid_is_of_the_nearest_tissue_and_says_so(anatomy, regions):
    ventricle = np.argwhere(anatomy.structures.data == 4)
    depth = far(anatomy.structures, [2, 41, 10, 49, 11, 50])[tuple(ventricle.T)]
    centre = regions.world(ventricle[np.argmax(depth)])
    found = locate_region(regions, centre, anatomy.midline)
    voxels = np.argwhere(regions.data > 0)
    away = np.linalg.norm(regions.world(voxels) - centre, axis=1)
    assert found.distance_mm == pytest.approx(away.min())
    nearest = {
        int(regions.data[tuple(at)]) % RIGHT_OFFSET for at in voxels[away < away.min() + 1e-6]
    }
    assert found.name in {index_regions()[label][0] for label in nearest}


def test_far_from_everything_there_is_no_region(anatomy, regions):
    found = locate_region(regions, regions.world(np.array([-60, -60, -60])), anatomy.midline)
    assert (found.name, found.territory) == (None, None)


def test_a_head_without_deep_nuclei_has_regions_all_the_same(anatomy):
    """A slab through the top of the head."""
    codes = np.where(np.isin(anatomy.structures.data, [2, 41, 3, 42]), anatomy.structures.data, 0)
    there = Volume(codes, anatomy.structures.affine)
    bare = Anatomy(there, anatomy.brain, anatomy.midline, None, None)
    assert set(np.unique(build_region_map(bare).data)) == {
        0,
        LOBAR_LABEL,
        LOBAR_LABEL + RIGHT_OFFSET,
    }
