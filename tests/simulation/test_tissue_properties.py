"""What a head is made of: codes, their tissues, and how those differ between people."""

import numpy as np
import pytest
from phantoms import ball_head, centred_grid

from bids_cmb.anatomy.labels import BILATERAL_CODES, make_mirror_table
from bids_cmb.imaging.resampling import resample
from bids_cmb.simulation.tissue_properties import (
    TISSUES,
    classify_tissues,
    get_tissue_constants,
    sample_tissue_maps,
)


def test_every_side_has_its_other_side_and_the_same_tissue():
    table = make_mirror_table()
    np.testing.assert_array_equal(table[table], np.arange(2**16))
    for left, right in BILATERAL_CODES:
        assert table[left] == right
        assert np.ptp(classify_tissues(np.array([left, right]))) == 0


def test_a_code_has_its_tissue_and_an_unknown_code_is_refused():
    assert TISSUES[classify_tissues(np.array([52]))[0]] == "pallidum"
    with pytest.raises(ValueError, match=r"`labels` must hold codes .* lists; found 9999\."):
        classify_tissues(np.array([2, 9999], np.uint16))


def test_the_table_says_what_its_source_says():
    cortex, white = TISSUES.index("cortex"), TISSUES.index("white")
    for field, t2star, t1 in ((1.5, 84, 1197), (3.0, 66, 1607), (7.0, 33.2, 1939)):
        constants = get_tissue_constants(field)
        assert 1000 / constants["r2star_hz"][cortex] == pytest.approx(t2star)
        assert 1000 * constants["t1_s"][cortex] == pytest.approx(t1)
    assert get_tissue_constants(3)["chi_ppm"][white] == pytest.approx(-0.03)


def test_relaxation_lies_on_the_line_between_the_fields():
    low, high, between = (get_tissue_constants(field)["r2star_hz"] for field in (1.5, 3.0, 2.3))
    np.testing.assert_allclose(between, low + (2.3 - 1.5) / 1.5 * (high - low))
    assert (get_tissue_constants(0.2)["r2star_hz"] > 0).all()
    assert (
        get_tissue_constants(9.4)["r2star_hz"] > 0.999 * get_tissue_constants(7)["r2star_hz"]
    ).all()


@pytest.mark.parametrize("field", [-3, 0, 20, np.nan])
def test_an_impossible_field_is_refused(field):
    with pytest.raises(ValueError, match=r"`field_t` must be .* between 0\.2 and 12 T; found"):
        get_tissue_constants(field)


def test_without_chance_the_maps_are_the_table(rng):
    labels = ball_head().labels
    maps = sample_tissue_maps(labels, 3.0, rng, age=45, spread=0, blur_mm=0)
    constants = get_tissue_constants(3.0)
    for name, values in constants.items():
        found = getattr(maps, name)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, values[classify_tissues(labels.data)], rtol=1e-6)


def test_the_blur_mixes_tissues_and_loses_nothing(rng):
    labels = ball_head().labels
    sharp, soft = (
        sample_tissue_maps(labels, 3.0, rng, spread=0, blur_mm=blur).pd for blur in (0.0, 0.8)
    )
    assert soft.sum() == pytest.approx(sharp.sum(), rel=1e-3)
    assert len(np.unique(soft)) > 10 * len(np.unique(sharp))


def test_no_two_people_have_the_same_tissue(made_up):
    labels = resample(made_up.labels, *centred_grid(3.0), order=0)
    first, again, other = (
        sample_tissue_maps(labels, 3.0, np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first.r2star_hz, again.r2star_hz)
    white = np.isin(labels.data, (2, 41))
    assert first.r2star_hz[white].mean() != pytest.approx(other.r2star_hz[white].mean(), rel=1e-3)
    assert 0.01 < first.pd[white].std() / first.pd[white].mean() < 0.2
    for maps in (first, other):
        for part in vars(maps).values():
            assert np.isfinite(part).all()
        assert (maps.r2star_hz > 0).all()
        assert (maps.t1_s > 0).all()


def test_iron_gathers_in_the_deep_grey_with_age(made_up):
    labels = resample(made_up.labels, *centred_grid(2.5), order=0)
    young, old = (
        sample_tissue_maps(labels, 3.0, np.random.default_rng(1), age=age, spread=0)
        for age in (25, 85)
    )
    putamen, cortex = (np.isin(labels.data, codes) for codes in ((12, 51), (3, 42)))
    assert old.r2star_hz[putamen].mean() > 1.15 * young.r2star_hz[putamen].mean()
    assert old.chi_ppm[putamen].mean() > young.chi_ppm[putamen].mean()
    assert old.r2star_hz[cortex].mean() == pytest.approx(young.r2star_hz[cortex].mean(), rel=0.01)


def test_white_matter_grows_ill_with_age(made_up):
    labels = resample(made_up.labels, *centred_grid(2.5), order=0)
    white = np.isin(labels.data, (2, 41))
    t1 = [
        np.mean(
            [
                sample_tissue_maps(
                    labels, 3.0, np.random.default_rng(seed), age=age
                ).t1_s[white].mean()
                for seed in range(3)
            ]
        )
        for age in (30, 90)
    ]  # fmt: skip
    assert t1[1] > t1[0]


def test_laminae_streak_the_lentiform_nucleus_across_and_not_upwards(made_up):
    """Its iron varies more, over shorter ways from side to side than upwards."""
    labels = made_up.labels
    plain, layered = (
        sample_tissue_maps(labels, 3.0, np.random.default_rng(7), age=0, lamina_contrast=given)
        for given in ((), (1.0, 1.0))
    )
    tissue = classify_tissues(labels.data)
    lentiform = np.isin(tissue, [TISSUES.index(name) for name in ("putamen", "pallidum")])
    ratio = np.ones(labels.shape)
    ratio[lentiform] = np.log(layered.r2star_hz / plain.r2star_hz)[lentiform]

    def roughness(axis):
        both = np.take(lentiform, range(1, lentiform.shape[axis]), axis) & np.take(
            lentiform, range(lentiform.shape[axis] - 1), axis
        )
        return np.abs(np.diff(ratio, axis=axis))[both].mean() / labels.spacing[axis]

    assert ratio[lentiform].std() > 0.2

    assert roughness(2) < 0.6 * roughness(0)
