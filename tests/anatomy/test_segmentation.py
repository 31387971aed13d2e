"""From a network's answer to structures, sides, brain, territories and MNI; no network is asked."""

import numpy as np
import pytest
from scipy import ndimage

from bids_cmb.anatomy.segmentation import (
    MIDLINE_HALF_WIDTH_MM,
    decode_anatomy,
    locate_structures,
    resample_brain,
)
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
    found = decode_anatomy(noisy, codes.affine, CLASSES)
    assert not found.structures.data[:4, :4, :4].any()


def test_doubt_between_brain_and_fluid_is_brain_and_between_brain_and_bone_is_not(known):
    codes, chances = known
    names = [one["name"] for one in CLASSES]
    cortex = np.isin(codes.data, (3, 42))
    doubtful = chances.copy()
    doubtful[cortex, :-1] = 0
    doubtful[cortex, names.index("cerebral cortex")] = 64
    doubtful[cortex, names.index("fluid outside the brain")] = 191
    found = decode_anatomy(doubtful, codes.affine, CLASSES)
    assert found.brain.data[cortex].mean() > 0.99
    beside = ndimage.binary_dilation(codes.data > 0, iterations=6)
    bone = beside & ~ndimage.binary_dilation(is_brain(codes.data), iterations=3)
    doubtful[bone] = 0
    doubtful[bone, names.index("cerebral cortex")] = 100
    doubtful[bone, names.index("outside")] = 155
    found = decode_anatomy(doubtful, codes.affine, CLASSES)
    assert not found.brain.data[bone].any()


def test_an_answer_without_brain_is_refused():
    nothing = np.zeros((16, 16, 16, len(CLASSES) + 1), np.uint8)
    nothing[..., 0] = 255
    with pytest.raises(ValueError, match="No brain was found: the anatomy network saw none"):
        decode_anatomy(nothing, np.eye(4), CLASSES)


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
