"""From a network's answer to structures, sides, brain, territories and MNI; no network is asked."""

import numpy as np
import pytest
from nibabel.affines import apply_affine, from_matvec
from nibabel.eulerangles import euler2mat
from scipy import ndimage

from bids_cmb.anatomy.segmentation import (
    MIDLINE_HALF_WIDTH_MM,
    Anatomy,
    compute_centroids,
    decode_anatomy,
    estimate_mni_uncertainty,
    fit_to_mni,
    format_itk_affine,
    locate_structures,
    resample_brain,
)
from bids_cmb.anatomy.user_segmentation import transform_anatomy
from bids_cmb.imaging.volume import Volume
from bids_cmb.networks.model_cards import load_card
from bids_cmb.simulation.tissue_properties import is_brain

CLASSES = load_card("anatomy")["classes"]


def test_a_faultless_answer_gives_back_the_head(known, anatomy):
    codes, _ = known
    lumped = np.zeros(2**16, np.uint16)
    for one in CLASSES:
        for code in one["codes"]:
            lumped[code] = one["left"]
    right = {one["right"]: one["left"] for one in CLASSES}
    found = np.vectorize(lambda code: right.get(code, code))(anatomy.structures.data)
    assert (found == lumped[codes.data]).mean() > 0.99


def test_left_and_right_are_those_of_the_head(known, anatomy):
    codes, _ = known
    there, found = codes.data, anatomy.structures.data
    normal, offset = anatomy.midline
    apart = codes.world(np.argwhere(there >= 0)) @ normal + offset
    beyond = (abs(apart) > 3).reshape(there.shape)  # mm; nearer, the vermis is of both sides
    for left, right in ((2, 41), (8, 47), (10, 49)):
        mine = np.isin(there, (left, right)) & np.isin(found, (left, right)) & beyond
        assert (found[mine] == there[mine]).mean() > 0.99, left


def test_the_brain_mask_holds_the_brain_and_not_the_head(known, anatomy):
    codes, _ = known
    fine = Volume(np.zeros((200, 230, 60)), codes.affine @ np.diag([0.5, 0.5, 1.5, 1]))
    mask = resample_brain(anatomy, fine)
    truth = is_brain(codes.data)
    at = np.rint(codes.index(fine.world(np.argwhere(mask.data)[::97]))).astype(int)
    kept = ((at >= 0) & (at < codes.shape)).all(axis=1)
    assert truth[tuple(at[kept].T)].mean() > 0.85  # the rest are narrow sulci
    inside = truth.sum() * codes.voxel_volume
    seen = anatomy.brain.data.sum() * codes.voxel_volume
    assert inside <= seen < 1.3 * inside


def test_noise_that_is_no_brain_is_left_out(known):
    codes, chances = known
    noisy = chances.copy()
    noisy[:4, :4, :4] = 0
    noisy[:4, :4, :4, 1] = 255  # a crumb of white matter in a corner
    found = decode_anatomy(noisy, codes.affine, CLASSES, {})
    assert not found.structures.data[:4, :4, :4].any()


def test_doubt_between_brain_and_fluid_is_brain_and_between_brain_and_bone_is_not(known):
    codes, chances = known
    names = [one["name"] for one in CLASSES]
    cortex = np.isin(codes.data, (3, 42))
    doubtful = chances.copy()
    doubtful[cortex, :-1] = 0
    doubtful[cortex, names.index("cerebral cortex")] = 64
    doubtful[cortex, names.index("fluid outside the brain")] = 191
    found = decode_anatomy(doubtful, codes.affine, CLASSES, {})
    assert found.brain.data[cortex].mean() > 0.99
    beside = ndimage.binary_dilation(codes.data > 0, iterations=6)
    bone = beside & ~ndimage.binary_dilation(is_brain(codes.data), iterations=3)
    doubtful[bone] = 0
    doubtful[bone, names.index("cerebral cortex")] = 100
    doubtful[bone, names.index("outside")] = 155
    found = decode_anatomy(doubtful, codes.affine, CLASSES, {})
    assert not found.brain.data[bone].any()


def test_an_answer_without_brain_is_refused():
    nothing = np.zeros((16, 16, 16, len(CLASSES) + 1), np.uint8)
    nothing[..., 0] = 255
    with pytest.raises(ValueError, match="No brain was found: the anatomy network saw none"):
        decode_anatomy(nothing, np.eye(4), CLASSES, {})


def test_an_affine_between_heads_is_found_and_one_missed_structure_does_not_turn_it(known):
    codes, _ = known
    turn = from_matvec(euler2mat(0.2, 0.1, -0.15) @ np.diag([1.1, 0.95, 1.05]), [5, -20, 9])
    here = compute_centroids(codes)
    there = {str(code): apply_affine(turn, at).tolist() for code, at in here.items()}
    fit = fit_to_mni(codes, there)
    corners = np.array([[-60, -80, -40], [60, 80, 60], [0, 0, 0]])
    apart = np.linalg.norm(apply_affine(fit.to_mni, corners) - apply_affine(turn, corners), axis=1)
    assert apart.max() < 1  # heads are drawn a little towards the same shape
    assert fit.fit_mm < 0.5
    astray = dict(there)
    astray["10"] = (np.array(there["10"]) + 30).tolist()
    matrix = fit_to_mni(codes, astray).to_mni
    apart = np.linalg.norm(apply_affine(matrix, corners) - apply_affine(turn, corners), axis=1)
    assert apart.max() < 2


def test_too_few_structures_give_no_affine(known):
    assert fit_to_mni(known[0], {"10": [0, 0, 0]}) is None


@pytest.mark.parametrize("height", [-40, -25, -10, 35, 55])
def test_a_cut_head_keeps_its_mni_positions(known, height):
    """Cut at any height (mm in MNI space), from below or above, as clinical slabs are."""
    codes, _ = known
    turn = from_matvec(euler2mat(0.2, 0.1, -0.15) @ np.diag([1.06, 0.97, 1.03]), [0, 0, 0])
    middle = apply_affine(turn, codes.world(np.argwhere(np.isin(codes.data, (10, 49))).mean(0)))
    turn[:3, 3] = [0, -18, 8] - middle
    rng = np.random.default_rng(4)  # no head is an affine image of another
    there = {
        str(code): (apply_affine(turn, at) + rng.normal(0, 1.5, 3)).tolist()
        for code, at in compute_centroids(codes).items()
    }
    whole = fit_to_mni(codes, there).to_mni
    planes = apply_affine(turn @ codes.affine, np.indices(codes.shape).reshape(3, -1).T)
    planes = planes[:, 2].reshape(codes.shape).mean(axis=(0, 1))
    kept = planes > height if height < 0 else planes < height
    first = int(np.flatnonzero(kept)[0])
    affine = codes.affine @ from_matvec(np.eye(3), [0, 0, first])
    part = Volume(codes.data[:, :, kept], affine)
    fit = fit_to_mni(part, there)
    cerebrum = part.world(np.argwhere(np.isin(part.data, (2, 3, 41, 42)))[::7])
    apart = np.linalg.norm(
        apply_affine(fit.to_mni, cerebrum) - apply_affine(whole, cerebrum), axis=1
    )
    assert np.median(apart) <= 3


def test_the_uncertainty_of_a_place_grows_away_from_the_structures_that_were_fitted(known):
    codes, _ = known
    there = {str(code): at.tolist() for code, at in compute_centroids(codes).items()}
    fit = fit_to_mni(codes, there)
    head = Anatomy(codes, codes, (np.array([-1.0, 0, 0]), 0.0), fit.to_mni, fit.fit_mm,
                   fit.covariance)  # fmt: skip
    centre = codes.world(np.argwhere(np.isin(codes.data, (10, 49))).mean(axis=0))
    away = [estimate_mni_uncertainty(head, centre + [0, 0, mm]) for mm in (0, 60, 120)]
    assert 2 < away[0] < away[1] < away[2]
    turn = from_matvec(euler2mat(0.3, -0.2, 0.1), [5, 6, 7])
    moved = transform_anatomy(head, turn)
    there = apply_affine(turn, centre + [0, 0, 60])
    assert estimate_mni_uncertainty(moved, there) == pytest.approx(away[1])
    (place,) = locate_structures(head, [centre], CLASSES)
    assert place.mni_uncertainty_mm == pytest.approx(away[0])


@pytest.mark.parametrize("code", [10, 49, 12, 3, 42, 16, 8, 46])
def test_a_lesion_in_a_structure_has_its_name_and_side(anatomy, code):
    voxels = np.argwhere(anatomy.structures.data == code)
    middle = voxels[len(voxels) // 2]
    centre = anatomy.structures.world(middle)
    (place,) = locate_structures(anatomy, [centre], CLASSES)
    names = {one[side]: one["name"] for one in CLASSES for side in ("left", "right")}
    assert place.structure == names[code]
    left = code in (3, 8, 10, 12)
    normal, offset = anatomy.midline
    if code != 16 and abs(normal @ centre + offset) > MIDLINE_HALF_WIDTH_MM:
        assert place.side == ("left" if left else "right")


def test_far_from_everything_there_is_no_structure(anatomy):
    (place,) = locate_structures(
        anatomy, [anatomy.structures.world(np.array([-60, -60, -60]))], CLASSES
    )
    assert place.structure is None


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
