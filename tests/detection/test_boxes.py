"""Boxes are decoded, compared, suppressed and linked as they are on paper."""

import numpy as np
from box_answers import ANCHORS, answer_of

from bids_cmb.detection.boxes import (
    CERTAIN,
    UNCERTAIN,
    compute_iou,
    decode_boxes,
    link_boxes,
    make_target_boxes,
    suppress_non_maxima,
)


def random_boxes(rng, count, room=60):
    return np.column_stack(
        [rng.uniform(5, room, (count, 2)), rng.uniform(2, 20, (count, 2)), rng.random(count)]
    )


def test_boxes_come_back_from_what_a_perfect_network_says():
    boxes = [(9.3, 21.7, 5, 3, 0), (9.9, 38.1, 8, 7, 1), (50.2, 2.4, 4, 4, 0)]
    found = decode_boxes(answer_of(boxes, (16, 12)), ANCHORS, 4)
    assert found.shape == (16 * 12 * 2, 5)
    found = found[found[:, 4] > 0.5]
    np.testing.assert_allclose(found[:, :4], np.array(boxes)[:, :4], atol=1e-4)


def test_overlap_is_what_counting_small_squares_gives(rng):
    boxes, others = (np.round(random_boxes(rng, 12)[:, :4] * 2) for _ in range(2))
    boxes[:, 2:], others[:, 2:] = 2 * boxes[:, 2:], 2 * others[:, 2:]  # so that corners are whole
    x, y = np.meshgrid(np.arange(-60, 220) + 0.5, np.arange(-60, 220) + 0.5, indexing="ij")

    def inside(box):
        return (abs(x - box[0]) < box[2] / 2) & (abs(y - box[1]) < box[3] / 2)

    counted = [
        [(inside(a) & inside(b)).sum() / (inside(a) | inside(b)).sum() for b in others]
        for a in boxes
    ]
    np.testing.assert_allclose(compute_iou(boxes, others), counted, atol=1e-9)


def test_boxes_that_stay_are_those_of_a_search_of_all_pairs(rng):
    boxes = random_boxes(rng, 150)
    boxes[10:20, 4] = boxes[10, 4]  # equals
    alive = []
    for one in sorted(range(len(boxes)), key=lambda i: (-boxes[i, 4], i)):
        if all(compute_iou(boxes[[one]], boxes[[other]])[0, 0] <= 0.3 for other in alive):
            alive.append(one)
    kept = suppress_non_maxima(boxes, 0.3)
    assert 10 < len(kept) < 150
    np.testing.assert_array_equal(kept, boxes[alive])
    assert suppress_non_maxima(boxes[:0], 0.3).shape == (0, 5)


def test_a_lesion_of_one_pixel_has_a_box_of_two_mm_and_its_faint_ends_may_be_missed():
    disc = np.argwhere(np.hypot(*np.mgrid[-4:5, -4:5]) <= 3) + [20, 30]  # 7 pixels wide
    lesion = np.array([[*pixel, 5] for pixel in disc] + [[24, 34, 6]])
    boxes = make_target_boxes(lesion, 0.5, certain=True)
    np.testing.assert_allclose(boxes[0], [5, 24.5, 34.5, 7, 7, CERTAIN])
    np.testing.assert_allclose(boxes[1], [6, 24.5, 34.5, 4, 4, UNCERTAIN])
    assert (make_target_boxes(lesion, 0.5, certain=False)[:, 5] == UNCERTAIN).all()
    wide = np.array([[x, 0, 0] for x in range(50)])
    assert make_target_boxes(wide, 0.5, certain=True)[0, 3] == 20  # 10 mm, by definition


def test_boxes_of_neighbouring_slices_are_one_candidate_with_its_slice_weighed():
    slices = [np.zeros((0, 5)) for _ in range(12)]
    slices[4] = np.array([[20.5, 30.5, 5, 5, 0.3]])
    slices[5] = np.array([[21.5, 30.5, 6, 6, 0.9], [50.5, 50.5, 4, 4, 0.5]])
    # Slice 6 has nothing: one slice may be skipped.
    slices[7] = np.array([[21.5, 32.5, 5, 5, 0.6], [27.5, 30.5, 4, 4, 0.2]])
    slices[10] = np.array([[21.5, 32.5, 5, 5, 0.4]])  # two empty slices before it
    found = link_boxes(slices, near=4, gap=1)
    assert [one.boxes for one in found] == [3, 1, 1, 1]
    assert [one.confidence for one in found] == [0.9, 0.5, 0.4, 0.2]
    first = found[0]
    assert (first.slices, first.size) == ((4, 7), (6, 6))
    weights = np.array([0.3, 0.9, 0.6])
    np.testing.assert_allclose(
        first.centre,
        [weights @ [20, 21, 21], weights @ [30, 30, 32], weights @ [4, 5, 7]] / weights.sum(),
    )
    assert link_boxes(slices[:4], near=4, gap=1) == []


def test_what_runs_through_many_slices_is_one_candidate_and_two_side_by_side_are_two():
    vessel = [np.array([[10 + 2 * z, 20, 4, 4, 0.5], [60, 60, 4, 4, 0.4]]) for z in range(9)]
    found = link_boxes(vessel, near=3, gap=0)
    assert [one.slices for one in found] == [(0, 8), (0, 8)]
    assert [one.boxes for one in found] == [9, 9]


def test_the_order_of_boxes_changes_no_candidate(rng):
    slices = [random_boxes(rng, 12) for _ in range(6)]
    for boxes in slices:
        boxes[:, 4] = np.round(boxes[:, 4], 1)  # many equals
    mixed = [rng.permutation(boxes) for boxes in slices]
    assert link_boxes(slices, near=4, gap=1) == link_boxes(mixed, near=4, gap=1)
