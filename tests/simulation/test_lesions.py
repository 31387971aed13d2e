"""What bleeds and what only looks like it lies where it does in patients, in published numbers."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from phantoms import codes_at
from scipy import stats
from scipy.spatial import cKDTree

from bids_cmb.simulation import lesions
from bids_cmb.simulation.geometry import BILATERAL_STRUCTURES, LESION_REGIONS, VENTRICULAR
from bids_cmb.simulation.lesion_priors import load_priors, start_sampling
from bids_cmb.simulation.lesions import sample_sources
from bids_cmb.simulation.microbleeds import sample_spot
from bids_cmb.simulation.sources import MICROBLEED, describe_objects, number_objects
from bids_cmb.simulation.tissue_properties import CSF

SCANS = 200
POOLED = {  # of 957 lesions in five public and clinical sets
    "cortex / grey-white junction": 0.334,
    "subcortical white matter": 0.398,
    "basal ganglia": 0.079,
    "thalamus": 0.054,
    "cerebellum": 0.081,
    "brainstem": 0.044,
}
OBLIGATORY = {
    "cortical vein",
    "pial vessel",
    "medullary vein",
    "septal vein",
    "thalamostriate vein",
    "internal cerebral vein",
    "vein of Galen",
    "straight sinus",
    "superior sagittal sinus",
    "transverse sinus",
    "artery",
    "perforator",
    "choroid plexus",
    "pallidal iron",
    "dentate iron",
    "midbrain iron",
}


def draw_spots(rng, given, terrain):
    """What `sample_sources` begins with: all but vessels, grains and siderosis, which take long."""
    return number_objects(lesions._sample_spots(start_sampling(rng, given, terrain)))


def draws(name, terrain, scans=SCANS):
    """The spots of many scans, each with a seed of its own."""
    given = load_priors(name)
    return [draw_spots(np.random.default_rng([5, at]), given, terrain) for at in range(scans)]


def bodies(sources, wanted):
    """Rows of truth of one kind, or of all kinds that end so."""
    return [row for row in describe_objects(sources) if row["kind"].endswith(wanted)]


@pytest.fixture(scope="module")
def scans(terrain):
    return draws("default", terrain)


# Microbleeds --------------------------------------------------------------------------------------


def test_scans_have_as_many_microbleeds_as_patients(scans):
    counts = np.array([len(bodies(sources, MICROBLEED)) for sources in scans])
    positive = counts[counts > 0]
    assert 0.28 <= (counts == 0).mean() <= 0.44  # VALDO .31, RODEJA .41
    median, three_quarters, nine_tenths = np.percentile(positive, [50, 75, 90])
    assert 1 <= median <= 4
    assert 2.8 <= three_quarters <= 11.8
    assert 5 <= nine_tenths <= 14.5
    assert 13 <= positive.max() <= 83


def test_regions_have_their_published_shares(scans):
    regions = Counter(row["region"] for scan in scans for row in bodies(scan, MICROBLEED))
    for region, share in POOLED.items():
        assert regions[region] / regions.total() == pytest.approx(share, abs=0.05), region


def test_strengths_are_uniform_in_their_logarithm(scans):
    moments = [row["moment_ppm_mm3"] for scan in scans for row in bodies(scan, MICROBLEED)]
    expected = stats.loguniform(0.05, 4)
    assert stats.kstest(moments, expected.cdf).pvalue > 0.01


def test_microbleeds_stay_a_millimetre_from_the_pia_and_from_the_ventricles(scans, askew, rng):
    ways = rng.standard_normal((400, 3))
    ways /= np.linalg.norm(ways, axis=1, keepdims=True)
    for source in (part for scan in scans for part in scan if part.kind == MICROBLEED):
        around = codes_at(askew, source.points[0] + ways * (source.radius[0] + 0.98))
        assert not np.isin(around, (0, CSF, *VENTRICULAR)).any()
        assert around.max() < 500


def test_microbleeds_lie_in_the_structure_they_are_said_to_lie_in(scans, askew):
    for row in (row for scan in scans for row in bodies(scan, MICROBLEED)):
        code = codes_at(askew, np.array([[row["x_mm"], row["y_mm"], row["z_mm"]]]))[0]
        codes, territory = LESION_REGIONS[row["region"]]
        assert code in codes
        assert row["territory"] == territory


def test_the_junction_ends_where_subcortical_white_matter_begins(scans, askew):
    cortex = cKDTree(askew.world(np.argwhere(np.isin(askew.data, BILATERAL_STRUCTURES["cortex"]))))
    away = {"cortex / grey-white junction": [], "subcortical white matter": []}
    for row in (row for scan in scans for row in bodies(scan, MICROBLEED)):
        if row["region"] in away:
            place = row["x_mm"], row["y_mm"], row["z_mm"]
            away[row["region"]].append(cortex.query(place)[0])
    near, far = away.values()
    assert max(near) < 4
    assert min(far) > 1


def test_some_microbleeds_lie_in_the_cortex_itself(scans, askew):
    places = [part.points[0] for scan in scans for part in scan if part.kind == MICROBLEED]
    assert (
        0.02
        < np.isin(codes_at(askew, np.array(places)), BILATERAL_STRUCTURES["cortex"]).mean()
        < 0.35
    )


def test_clusters_come_at_their_rate_and_fit_into_four_millimetres(terrain):
    given = load_priors()
    given["microbleed"] |= {
        "scans_without": 0,
        "count_quantiles": [[0, 7], [1, 7]],
        "region_shares": dict.fromkeys(LESION_REGIONS, 0) | {"basal ganglia": 1},
    }
    given["microbleed"]["region_concentration"] = 1e9
    given["microbleed"]["region_shares"] = {"basal ganglia": 1}
    clustered, sizes = 0, []
    for seed in range(120):
        rows = bodies(draw_spots(np.random.default_rng(seed), given, terrain), MICROBLEED)
        places = np.array([[row["x_mm"], row["y_mm"], row["z_mm"]] for row in rows])
        apart = np.linalg.norm(places[:, None] - places, axis=2)
        together = (apart <= 4.05) & (apart > 0)
        if together.any():
            clustered += 1
            members = np.flatnonzero(together.any(axis=1))
            sizes.append(len(members))
            assert apart[np.ix_(members, members)].max() <= 4.05
    rate = given["microbleed"]["clusters"]["chance"]["basal ganglia"]
    assert clustered / 120 == pytest.approx(rate, abs=0.13)  # three standard errors
    assert min(sizes) == 2
    assert 4 <= max(sizes) <= 6


def test_a_microbleed_is_one_to_three_balls_that_merge(scans):
    numbers = Counter()
    for scan in scans:
        parts = {}
        for source in (part for part in scan if part.kind == MICROBLEED):
            parts.setdefault(source.object_id, []).append(source)
        numbers.update(len(balls) for balls in parts.values())
        for balls in parts.values():
            for one, next_one in pairwise(balls):
                gap = np.linalg.norm(one.points[0] - next_one.points[0])
                assert gap < one.radius[0] + next_one.radius[0] + 0.1 * one.radius[0] + 1e-9
    assert set(numbers) == {1, 2, 3}
    assert numbers[1] > numbers[2] > numbers[3]


# What has their looks -----------------------------------------------------------------------------


def test_dots_have_the_strength_and_the_shape_of_microbleeds(scans):
    lesions = [row for scan in scans for row in bodies(scan, MICROBLEED)]
    dots = [row for scan in scans for row in bodies(scan, " dot")]
    for measure in ("moment_ppm_mm3", "extent_mm"):
        same = stats.ks_2samp([row[measure] for row in lesions], [row[measure] for row in dots])
        assert same.pvalue > 0.01, measure


def test_every_scan_has_dots_and_two_to_five_for_each_microbleed(scans):
    for scan in scans:
        lesions, dots = len(bodies(scan, MICROBLEED)), len(bodies(scan, " dot"))
        assert max(4, 2 * lesions) <= dots <= max(4, 5 * lesions)


def test_dots_lie_where_no_microbleed_can(scans, askew, depths):
    kinds, (within, without) = Counter(), depths
    for row in (row for scan in scans for row in bodies(scan, " dot")):
        kinds[row["kind"]] += 1
        place = np.array([[row["x_mm"], row["y_mm"], row["z_mm"]]])
        index = tuple(np.rint(askew.index(place)).astype(int)[0])
        if row["kind"] == "pial dot":
            assert within[index] <= 2
            assert without[index] <= 2
        elif row["kind"] in ("sulcus dot", "cistern dot"):
            assert within[index] <= 1
    assert set(kinds) == set(load_priors()["dots"]["shares"])


def test_dots_in_ventricles_have_fluid_around_them(scans, askew):
    wet = [
        codes_at(askew, part.points)[0] in VENTRICULAR
        for scan in scans
        for part in scan
        if part.kind == "ventricle dot"
    ]
    assert np.mean(wet) > 0.9


def test_every_scan_has_every_mimic_that_every_head_has(whole):
    for sources in whole:
        assert {source.kind for source in sources} >= OBLIGATORY
        assert sum(source.kind == "pial vessel" for source in sources) >= 100


def test_rare_mimics_come_at_their_rate(scans):
    for kind in ("lacune", "haemorrhage", "cavernoma"):
        seen = np.mean([any(part.kind == kind for part in scan) for scan in scans])
        assert seen == pytest.approx(load_priors()[kind]["share"], abs=0.1)
    large = [row["extent_mm"] for scan in scans for row in bodies(scan, "haemorrhage")]
    assert min(large) > 10


def test_only_calcium_is_diamagnetic_and_only_arteries_have_no_field(whole):
    for source in (part for sources in whole for part in sources):
        assert (source.susceptibility_ppm < 0) == (
            "calcification" in source.kind
        ) or source.kind == "cavernoma"
        if source.kind in ("artery", "perforator"):
            assert source.susceptibility_ppm == 0
            assert source.spin_fraction < 0.5
        if source.kind.endswith(("vein", "sinus")):
            assert 0.2 < source.susceptibility_ppm < 0.8  # methods: .41 to .69, measured .3 to .45
        assert 0 <= source.spin_fraction <= 1
        assert source.points.shape == (len(source.radius), 3)
        assert source.radius.min() > 0
        assert np.isfinite(source.points).all()


def test_iron_and_plexus_lie_on_both_sides(whole, terrain):
    for sources in whole:
        for kind in ("pallidal iron", "choroid plexus", "dentate iron", "midbrain iron"):
            places = np.concatenate([part.points for part in sources if part.kind == kind])
            across = terrain.to_head(places)[:, 0]
            assert across.min() < -2
            assert across.max() > 2


# Order --------------------------------------------------------------------------------------------


def same(one, other):
    return len(one) == len(other) and all(
        a.kind == b.kind
        and a.object_id == b.object_id
        and a.susceptibility_ppm == b.susceptibility_ppm
        and np.array_equal(a.points, b.points)
        for a, b in zip(one, other, strict=True)
    )


def test_the_same_seed_gives_the_same_sources(whole, terrain):
    assert same(whole[1], sample_sources(np.random.default_rng(1), load_priors(), terrain))
    assert not same(whole[1], whole[0])


def test_spots_are_what_a_whole_draw_begins_with(whole, terrain):
    spots = draw_spots(np.random.default_rng(1), load_priors(), terrain)
    assert same(spots, whole[1][: len(spots)])
    assert not any(source.kind.endswith(" dot") for source in whole[1][len(spots) :])


def test_the_other_law_differs_in_strength_number_and_place(scans, terrain):
    others = draws("other", terrain, 100)
    strengths = [
        [row["moment_ppm_mm3"] for scan in both for row in bodies(scan, MICROBLEED)]
        for both in (scans, others)
    ]
    assert stats.ks_2samp(*strengths).pvalue < 0.01
    counts = [[len(bodies(scan, MICROBLEED)) for scan in both] for both in (scans, others)]
    assert stats.ks_2samp(*([n for n in some if n] for some in counts)).pvalue < 0.05
    deep = [
        np.mean([row["territory"] == "deep" for scan in both for row in bodies(scan, MICROBLEED)])
        for both in (scans, others)
    ]
    assert deep[1] > deep[0] + 0.03


def test_some_deep_microbleeds_lie_on_a_striate_vein(terrain):
    """With `crowded-lentiform` about half of them; the default has no such veins."""
    near = []
    for seed in range(3):
        sources = sample_sources(
            np.random.default_rng(seed), load_priors("crowded-lentiform"), terrain
        )
        lines = [line_points(part.points) for part in sources if part.kind == "striate vein"]
        deep = [source.points[0] for source in sources if source.region == "basal ganglia"]
        near.extend(cKDTree(np.concatenate(lines)).query(deep)[0] < 1.0)
    assert len(near) >= 15
    assert 0.25 <= np.mean(near) <= 0.9
    default = sample_sources(np.random.default_rng(3), load_priors("default"), terrain)
    assert all(source.kind != "striate vein" for source in default)


def test_microbleeds_reach_the_ten_millimetres_of_their_definition(terrain):
    """With `crowded-large`, and some are grey: more water is left than in the default's voids."""
    wide = {name: measure_spots(name, terrain) for name in ("default", "crowded-large")}
    assert wide["default"][0].max() < 4  # of the deposit itself; it looks wider
    diameters, water = wide["crowded-large"]
    assert 0.1 < np.mean(diameters > 4) < 0.4
    assert 7 < diameters.max() < 11
    assert np.mean(water > 0.4) > 0.4
    assert wide["default"][1].max() < 0.2


def measure_spots(priors, terrain):
    """Widest extent in mm, and share of spins that give signal, of 300 microbleeds."""
    context = start_sampling(np.random.default_rng(0), load_priors(priors), terrain)
    spots = [sample_spot(context, MICROBLEED) for _ in range(300)]
    extents = [
        max(np.linalg.norm(a.points[0] - b.points[0]) + a.radius[0] + b.radius[0]
            for a in spot for b in spot)
        for spot in spots
    ]  # fmt: skip
    return np.array(extents), np.array([spot[0].spin_fraction for spot in spots])


def line_points(points):
    """Positions 0.3 mm or less apart along a polyline."""
    return np.concatenate([np.linspace(start, end, 6) for start, end in pairwise(points)])
