"""The affine to MNI space: known affines come back, from whole heads and from parts of them."""

from dataclasses import replace

import numpy as np
import pytest
from nibabel.affines import apply_affine, from_matvec
from nibabel.eulerangles import euler2mat
from scipy import ndimage
from scipy.linalg import polar

from bids_cmb.anatomy.mni_fit import (
    BEYOND_AFFINE_MM,
    estimate_mni_uncertainty,
    find_field_of_view,
    fit_to_mni,
    format_itk_affine,
)
from bids_cmb.anatomy.mni_template import (
    CELL_MM,
    CELLS,
    CORNER_MM,
    GROUPS,
    build_template,
    compose_linear,
    load_template,
    split_linear,
)
from bids_cmb.anatomy.segmentation import (
    Anatomy,
    decode_anatomy,
    fill_structures,
    locate_structures,
)
from bids_cmb.anatomy.user_segmentation import transform_anatomy
from bids_cmb.imaging.cropping import crop
from bids_cmb.imaging.volume import Volume
from bids_cmb.networks.model_cards import load_card

CEREBRUM = (2, 3, 41, 42)


@pytest.fixture(scope="module")
def template(known):
    """The made-up head in MNI space by a known affine, among heads as they are: (template, affine).

    The head lies turned in the scanner; in MNI space its midline is x = 0, and it nods.
    """
    codes, _ = known
    upright = euler2mat(x=-0.2) @ euler2mat(0.06, -0.08, 0.1).T  # `known` is turned so
    linear = np.diag([1.08, 1.03, 1.11]) @ upright
    nuclei = codes.world(np.argwhere(np.isin(codes.data, (10, 49))).mean(axis=0))
    to_mni = from_matvec(linear, np.array([0, -18, 8]) - linear @ nuclei)
    stored = load_template()
    return replace(
        build_template([(codes, to_mni)]), form=stored.form, form_sd=stored.form_sd
    ), to_mni


def measure_shift(structures, found, truth):
    """How far places in the cerebrum of some structures come to lie apart, mm, (N,)."""
    places = structures.world(np.argwhere(np.isin(structures.data, CEREBRUM))[::17])
    return np.linalg.norm(apply_affine(found, places) - apply_affine(truth, places), axis=1)


def test_a_known_affine_is_found_and_one_missed_structure_does_not_turn_it(known, template):
    codes, _ = known
    fit = fit_to_mni(codes, template[0])
    assert np.median(measure_shift(codes, fit.to_mni, template[1])) < 0.7
    assert measure_shift(codes, fit.to_mni, template[1]).max() < 1.5
    assert fit.fit_mm < 2.5  # centroids of parts of blocks of 8 mm
    missed = Volume(np.where(np.isin(codes.data, (10, 51)), 2, codes.data), codes.affine)
    fit = fit_to_mni(missed, template[0])
    assert measure_shift(codes, fit.to_mni, template[1]).max() < 2


@pytest.mark.parametrize(
    ("height", "keep_top"), [(-30, True), (0, True), (10, True), (40, False), (10, False)]
)
def test_a_head_that_is_cut_at_any_height_keeps_its_mni_positions(
    known, template, height, keep_top
):
    """Cut at a height in MNI space, mm, as slabs are; the truth is the affine of the template."""
    codes, _ = known
    planes = apply_affine(template[1] @ codes.affine, np.indices(codes.shape).reshape(3, -1).T)
    planes = planes[:, 2].reshape(codes.shape).mean(axis=(0, 1))
    kept = np.flatnonzero(planes > height if keep_top else planes < height)
    part = crop(codes, np.array([0, 0, kept[0]]), np.array([*codes.shape[:2], kept[-1] + 1]))
    fit = fit_to_mni(part, template[0])
    assert np.median(measure_shift(part, fit.to_mni, template[1])) < 1.5


def test_cortex_that_a_network_half_takes_for_fluid_does_not_turn_the_top_of_a_head(
    known, template
):
    """As at the vertex on voxels of 2 mm: fluid is likelier than cortex, not than all tissue."""
    codes, chances = known
    classes = load_card("anatomy")["classes"]
    names = [entry["name"] for entry in classes]
    tissue = ~np.isin(codes.data, (0, 24)) & (codes.data < 500)
    rim = tissue & ~ndimage.binary_erosion(tissue, iterations=2) & np.isin(codes.data, (3, 42))
    doubtful = chances.copy()
    doubtful[rim, :-1] = 0
    for name, chance in (
        ("cerebral cortex", 95),
        ("cerebral white matter", 60),
        ("fluid outside the brain", 100),
    ):
        doubtful[rim, names.index(name)] = chance
    top = crop(codes, np.array([0, 0, 70]), np.array(codes.shape))
    found = decode_anatomy(doubtful[:, :, 70:], top.affine, classes, template[0])
    assert np.median(measure_shift(top, found.to_mni, template[1])) < 2
    shrunken = fit_to_mni(found.structures, template[0])
    assert np.median(measure_shift(top, shrunken.to_mni, template[1])) > 2
    filled = fill_structures(found.structures, found.probabilities, found.midline, classes)
    assert np.isin(filled.data[rim[:, :, 70:]], (3, 42)).mean() > 0.99
    changed = (filled.data != found.structures.data) & ~rim[:, :, 70:]
    assert (filled.data == top.data)[changed].all()  # islands that the rim joins again


def test_shares_between_cells_are_those_of_linear_interpolation(rng):
    stored = load_template()
    places = rng.uniform(-1, 1, (500, 3)) * [85, 110, 90] + [0, -16, 8]
    cells = ((places - CORNER_MM) / CELL_MM - 0.5).T
    expected = [
        ndimage.map_coordinates(share, cells, order=1, mode="grid-constant")
        for share in stored.shares
    ]
    np.testing.assert_allclose(stored.sample(places), np.transpose(expected), atol=1e-5)
    assert not stored.sample(np.array([[0.0, 0, 500], [-500, 0, 0]])).any()


def test_nothing_is_learnt_from_beyond_the_field_of_view(known, template):
    """Empty slices that pad a slab say nothing of the head; a flipped grid changes nothing."""
    codes, _ = known
    first, end = np.array([0, 0, 55]), np.array(codes.shape)
    slab = crop(codes, first, end)
    padded = np.zeros_like(codes.data)
    padded[:, :, 55:] = slab.data
    alone = fit_to_mni(slab, template[0])
    within = fit_to_mni(Volume(padded, codes.affine), template[0], (first, end))
    np.testing.assert_allclose(within.to_mni, alone.to_mni)
    blind = fit_to_mni(Volume(padded, codes.affine), template[0])
    assert np.median(measure_shift(slab, blind.to_mni, template[1])) > np.median(
        measure_shift(slab, alone.to_mni, template[1])
    )


def test_the_field_of_view_is_where_the_scan_varies(rng):
    data = np.zeros((12, 14, 10))
    data[2:11, 3:14, 4:9] = rng.uniform(1, 2, (9, 11, 5))
    first, end = find_field_of_view(Volume(data, np.diag([-1, 2, 1.5, 1])))
    assert (first.tolist(), end.tolist()) == ([2, 3, 4], [11, 14, 9])
    first, end = find_field_of_view(Volume(np.ones((4, 5, 6)), np.eye(4)))
    assert (first.tolist(), end.tolist()) == ([0, 0, 0], [4, 5, 6])


def test_too_few_structures_give_no_affine(known):
    codes, _ = known
    lone = Volume(np.where(np.isin(codes.data, (10, 49, 16)), codes.data, 0), codes.affine)
    assert fit_to_mni(lone, load_template()) is None


def test_the_uncertainty_of_a_place_grows_away_from_what_the_field_of_view_holds(known, template):
    codes, _ = known
    top = crop(codes, np.array([0, 0, 70]), np.array(codes.shape))
    fit = fit_to_mni(top, template[0])
    head = Anatomy(top, top, (np.array([-1.0, 0, 0]), 0.0), fit.to_mni, fit.fit_mm,
                   fit.covariance)  # fmt: skip
    centre = top.world(np.argwhere(np.isin(top.data, CEREBRUM)).mean(axis=0))
    away = [
        estimate_mni_uncertainty(fit.covariance, fit.fit_mm, centre - [0, 0, mm])
        for mm in (0, 60, 120)
    ]
    assert BEYOND_AFFINE_MM < away[0] < away[1] < away[2]
    turn = from_matvec(euler2mat(0.3, -0.2, 0.1), [5, 6, 7])
    moved = transform_anatomy(head, turn)
    there = apply_affine(turn, centre - [0, 0, 60])
    assert estimate_mni_uncertainty(
        moved.mni_covariance, moved.fit_mm, there
    ) == pytest.approx(away[1])  # fmt: skip
    (place,) = locate_structures(head, [centre], load_card("anatomy")["classes"])
    assert place.mni_uncertainty_mm == pytest.approx(away[0])


def test_forms_are_the_polar_decomposition():
    linear = np.array([[1.1, 0.05, -0.1], [0.02, 0.95, 0.3], [0.08, -0.2, 1.05]])
    turn, stretch = polar(linear, side="left")
    form = split_linear(linear)
    np.testing.assert_allclose(form[3:6], np.diag(stretch))
    np.testing.assert_allclose(compose_linear(form), linear)
    angle = np.arccos((np.trace(turn) - 1) / 2)
    assert np.linalg.norm(form[:3]) == pytest.approx(angle)


def test_the_template_lies_where_the_card_has_the_structures():
    """The card's centroids are those that the network saw in the ICBM template."""
    card, shares = load_card("anatomy")["mni_centroids"], load_template().shares
    axes = [
        corner + CELL_MM * (np.arange(count) + 0.5)
        for corner, count in zip(CORNER_MM, CELLS, strict=True)
    ]
    places = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    for code, side in ((11, -1), (50, 1), (4, -1), (43, 1), (3, -1), (42, 1)):
        group = next(index for index, members in enumerate(GROUPS) if code in members)
        fill = shares[group] * (places[..., 0] * side > 0)
        centroid = (fill[..., None] * places).sum(axis=(0, 1, 2)) / fill.sum()
        assert np.linalg.norm(centroid - card[str(code)]) < 5, code
        assert (np.sign(shares[-1][fill > 0.5]) == -side).all()


def test_the_transform_for_itk_takes_the_template_back_to_the_scan(rng):
    """ITK's convention, written out: x' = A x + t between LPS places, template to scan."""
    to_mni = from_matvec(euler2mat(0.1, -0.2, 0.05) @ np.diag([1.1, 0.9, 1.05]), [3, -12, 7])
    text = format_itk_affine(to_mni)
    assert text.startswith("#Insight Transform File V1.0\n")
    numbers = next(line for line in text.splitlines() if line.startswith("Parameters: "))
    values = np.array(numbers.split()[1:], float)
    scan = rng.uniform(-80, 80, (5, 3))
    template_lps = apply_affine(to_mni, scan) * [-1, -1, 1]
    back = template_lps @ values[:9].reshape(3, 3).T + values[9:]
    np.testing.assert_allclose(back * [-1, -1, 1], scan, atol=1e-5)
