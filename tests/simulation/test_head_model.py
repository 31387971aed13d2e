"""Heads: opened, varied, and looked up on a grid."""

from dataclasses import replace

import numpy as np
import pytest
from phantoms import ball_head, centred_grid

from bids_cmb.anatomy.labels import make_mirror_table
from bids_cmb.imaging import nifti, resampling
from bids_cmb.imaging.volume import Volume
from bids_cmb.simulation import head_model
from bids_cmb.simulation.head_model import (
    PEOPLE,
    DeformationLimits,
    list_head_models,
    load_head_model,
    resample_labels,
    sample_deformation,
)
from bids_cmb.simulation.tissue_properties import CSF, is_brain

STILL = DeformationLimits(*[0.0] * 6)


def limited(head, rng, affine, shape, limits=PEOPLE):
    return resample_labels(sample_deformation(head, rng, limits), affine, shape)


def ml(labels, *codes):
    return np.isin(labels.data, codes).sum() * labels.voxel_volume / 1000


# ------------------------------------------------------------------------------------- opening


def test_a_label_map_is_opened_with_its_codes_in_their_places(tmp_path):
    affine = np.diag([-1.0, 1, 1, 1])
    affine[:3, 3] = 47.3, -47.3, -47.3
    nifti.save(ball_head(affine).labels, tmp_path / "ball.nii.gz", dtype=np.int16)
    head = load_head_model(tmp_path / "ball.nii.gz")
    assert head.name == "ball"
    assert head.labels.data.dtype == np.uint16
    for place, code in (((-20, 0, 0), 2), ((20, 0, 0), 41), ((-32, 0, 0), 3), ((0, 37, 0), CSF)):
        assert head.labels.data[tuple(np.rint(head.labels.index(place)).astype(int))] == code


def test_a_head_is_cut_to_what_is_in_it(tmp_path):
    ball = ball_head().labels
    wide = Volume(np.pad(ball.data, 30), ball.affine)
    nifti.save(wide, tmp_path / "wide.nii.gz", dtype=np.int16)
    labels = load_head_model(tmp_path / "wide.nii.gz").labels
    assert max(labels.shape) <= 2 * 44 + 3
    assert (labels.data > 0).sum() == (ball.data > 0).sum()


def test_crumbs_in_the_fluid_become_fluid_and_the_skull_stays(tmp_path):
    ball = ball_head().labels
    spot = tuple(np.rint(ball.index((37, 0, 0))).astype(int))
    ball.data[spot] = 515
    nifti.save(ball, tmp_path / "crumb.nii.gz", dtype=np.int16)
    labels = load_head_model(tmp_path / "crumb.nii.gz").labels
    assert labels.data[tuple(np.rint(labels.index((37, 0, 0))).astype(int))] == CSF
    assert (labels.data == 515).sum() == (ball.data == 515).sum() - 1


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda d: d * 0.5, r"holds whole numbers; found \d+\.5"),
        (lambda d: d + np.arange(d.size).reshape(d.shape) % 700, "at most 400 different values"),
        (lambda d: np.where(d == 515, 999, d), "every code must be one of .* found 999"),
        (lambda d: d + 10000, "found 10000, 10002, 10003, 10004, 10024 and 4 more"),
        (lambda d: np.where(is_brain(d), 24, d), "needs cerebral white matter .* found only 0, 24"),
    ],
)
def test_what_is_no_head_is_refused(tmp_path, change, sentence):
    labels = ball_head().labels
    odd = Volume(change(labels.data.astype(np.float32)), labels.affine)
    nifti.save(odd, tmp_path / "odd.nii.gz")
    with pytest.raises(ValueError, match=rf"odd\.nii\.gz: .*{sentence}"):
        load_head_model(tmp_path / "odd.nii.gz")


def test_a_folder_lists_its_heads_by_name_and_an_empty_one_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"needs label maps named \*\.nii\.gz; found none"):
        list_head_models(tmp_path)
    for name in ("b.nii.gz", "a.nii.gz", "readme.txt"):
        (tmp_path / name).touch()
    assert [path.name for path in list_head_models(tmp_path)] == ["a.nii.gz", "b.nii.gz"]


# ------------------------------------------------------------------------------------- variation


def test_borders_run_where_the_geometry_says_and_through_the_steps_of_the_map(rng):
    """Shells of known radii, an oblique, flipped, anisotropic grid; nearest voxels do worse."""
    ball = ball_head()
    turn = np.array([[-0.68, 0.1, 0.2], [0.12, 0.69, -0.3], [0.1, 0.1, 1.45]])
    affine = np.eye(4)
    affine[:3, :3] = turn
    affine[:3, 3] = -turn @ (70, 70, 31)
    shape = (141, 141, 63)
    variant = sample_deformation(ball, rng, STILL)
    seen = resample_labels(variant, affine, shape)
    assert seen.data.dtype == np.uint16
    away = np.linalg.norm(seen.world(np.argwhere(np.ones(shape))) + variant.centre, axis=1)
    within = (away < 34).reshape(shape)
    plain = resampling.resample(ball.labels, affine, shape, order=0)
    wrong, worse = (np.mean(is_brain(labels.data) != within) for labels in (seen, plain))
    assert wrong < 0.7 * worse
    assert is_brain(seen.data).mean() == pytest.approx(within.mean(), rel=0.01)


def test_a_mirrored_head_is_the_mirror_image_with_its_sides_swapped(made_up):
    affine, shape = centred_grid()
    plain = limited(made_up, np.random.default_rng(3), affine, shape, STILL)
    turned = limited(made_up, np.random.default_rng(3), affine, shape, replace(STILL, mirror=1.0))
    expected = make_mirror_table()[plain.data[::-1]]
    assert (turned.data == expected).mean() > 0.9999  # ties between two voxels
    assert not np.array_equal(turned.data, plain.data)


def test_left_stays_left_however_a_head_is_mirrored(made_up, rng):
    for mirror in (0.0, 1.0):
        labels = limited(
            made_up, rng, *centred_grid(4.0), DeformationLimits(mirror=mirror, atrophy=0.0)
        )
        x = [labels.world(np.argwhere(labels.data == code))[:, 0].mean() for code in (2, 41)]
        assert x[0] < -10 < 10 < x[1]


def test_one_seed_is_one_person_on_any_grid(made_up):
    fine = limited(made_up, np.random.default_rng(5), *centred_grid(1.5))
    coarse = limited(made_up, np.random.default_rng(5), *centred_grid(3.0))
    same = resampling.resample_like(fine, coarse, order=0)
    assert (same.data == coarse.data).mean() > 0.93  # nearest of finer voxels: borders differ
    shifted = np.roll(same.data, 1, axis=0)
    assert (shifted == coarse.data).mean() < (same.data == coarse.data).mean() - 0.05


def test_two_people_from_one_head_do_not_share_a_brain(made_up):
    affine, shape = centred_grid()
    only_bent = replace(STILL, bend_mm=4.0)
    first, second = (
        np.isin(limited(made_up, np.random.default_rng(s), affine, shape, only_bent).data, (3, 42))
        for s in (1, 2)
    )
    dice = 2 * (first & second).sum() / (first.sum() + second.sum())
    assert 0.4 < dice < 0.97


def test_scaling_changes_the_volume_as_its_matrix_says(made_up, rng):
    variant = sample_deformation(made_up, rng, replace(STILL, scale=0.12, turn_deg=15.0))
    labels = resample_labels(variant, *centred_grid(1.5))
    grown = is_brain(labels.data).sum() * 1.5**3 / is_brain(made_up.labels.data).sum()
    assert grown == pytest.approx(1 / abs(np.linalg.det(variant.matrix)), rel=0.01)
    assert 0.88**3 <= grown <= 1.12**3


@pytest.mark.parametrize("seed", range(4))
def test_bending_never_folds(made_up, seed):
    variant = sample_deformation(made_up, np.random.default_rng(seed))
    slopes = [
        np.stack(np.gradient(part, variant.node_spacing_mm), axis=-1)
        for part in variant.displacement_mm
    ]
    volumes = np.linalg.det(np.stack(slopes, axis=-2) + np.eye(3))
    assert volumes.min() > 0.2
    moved = np.linalg.norm(variant.displacement_mm, axis=0)
    assert 2 < moved.max() < 12


def test_atrophy_widens_sulci_and_ventricles_and_keeps_the_cortex(made_up):
    before = limited(made_up, np.random.default_rng(0), *centred_grid(2.5), STILL)
    after = [
        limited(
            made_up, np.random.default_rng(seed), *centred_grid(2.5), replace(STILL, atrophy=2.0)
        )
        for seed in range(3)
    ]

    def growth(*codes):
        return np.mean([ml(labels, *codes) for labels in after]) / ml(before, *codes)

    assert growth(CSF) > 1.05
    assert growth(4, 43) > 1.05
    assert growth(2, 41) < 0.95
    assert growth(3, 42) == pytest.approx(1, abs=0.08)


def test_ventricles_grow_without_eating_the_caudate(made_up):
    variant = sample_deformation(made_up, np.random.default_rng(0), STILL)
    slope = head_model._ventricle_gradient(made_up.labels, variant.centre, variant.node_spacing_mm)
    wider = head_model.Deformation(
        **(vars(variant) | {"displacement_mm": (50 * slope).astype(np.float32)})
    )
    before, after = (resample_labels(who, *centred_grid(1.5)) for who in (variant, wider))
    assert ml(after, 4, 43) > 1.2 * ml(before, 4, 43)
    assert ml(after, 11, 50) == pytest.approx(ml(before, 11, 50), rel=0.2)
