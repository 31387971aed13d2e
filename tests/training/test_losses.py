"""What a loss asks for: lesions one by one, the small as dear as the large."""

from dataclasses import replace

import keras
import numpy as np
import pandas as pd
import pytest
from keras import ops

from bids_cmb.training.inputs import TrainingData
from bids_cmb.training.losses import (
    DICE_SMOOTH,
    MAX_INSTANCES,
    LesionLoss,
    instance_dice_loss,
    soft_dice_loss,
)
from bids_cmb.training.train import read_recipe, train

BOXES = {  # image, and the corners of a lesion in it
    1: (0, (1, 1, 1), (3, 3, 3)),  # 8 voxels
    2: (0, (3, 1, 1), (10, 8, 5)),  # 196, touching the first
    3: (1, (4, 4, 2), (6, 6, 4)),
}


@pytest.fixture
def numbers():
    """Two images: a small lesion that touches a large one, and one that is alone."""
    given = np.zeros((2, 12, 10, 6, 1), np.float32)
    for number, (image, low, high) in BOXES.items():
        given[(image, *map(slice, low, high))] = number
    return given


def compute(numbers, predicted, weight=None):
    weight = np.ones_like(predicted) if weight is None else weight
    return float(instance_dice_loss(numbers, predicted.astype(np.float32), weight))


def find(numbers, *found):
    return np.isin(numbers, found).astype(np.float32)


def test_a_small_lesion_that_is_missed_costs_as_much_as_a_large_one(numbers):
    all_but_small, all_but_large = find(numbers, 2, 3), find(numbers, 1, 3)
    small, large = compute(numbers, all_but_small), compute(numbers, all_but_large)
    # A missed one costs a third of 1 - s / (size + s): the smoothing aside, a third.
    assert small == pytest.approx((1 - DICE_SMOOTH / (8 + DICE_SMOOTH)) / 3, rel=1e-5)
    assert large == pytest.approx((1 - DICE_SMOOTH / (196 + DICE_SMOOTH)) / 3, rel=1e-5)
    of_all = find(numbers, 1, 2, 3)
    plain = [float(soft_dice_loss(of_all, part)) for part in (all_but_small, all_but_large)]
    assert plain[1] > 20 * plain[0]  # over the batch the small one is next to nothing


def test_a_perfect_answer_costs_nothing_also_where_lesions_touch(numbers):
    assert compute(numbers, find(numbers, 1, 2, 3)) == pytest.approx(0, abs=1e-6)


def test_one_lesion_in_one_image_is_soft_dice(numbers, rng):
    alone = numbers[1:] / 3
    predicted = rng.uniform(size=alone.shape).astype(np.float32)
    weight = rng.integers(0, 2, alone.shape).astype(np.float32)
    expected = float(soft_dice_loss(alone, predicted, weight))
    assert compute(alone, predicted, weight) == pytest.approx(expected, rel=1e-5)


def test_a_false_alarm_costs_the_lesions_of_its_image_only(numbers):
    alarm = find(numbers, 1, 2, 3)
    alarm[1, 8:10, 6:8, 0:2] = 1  # 8 voxels, in the image of the third
    size = 8
    third = 1 - (2 * size + DICE_SMOOTH) / (2 * size + 8 + DICE_SMOOTH)
    assert compute(numbers, alarm) == pytest.approx(third / 3, rel=1e-5)


def test_a_lesion_without_weight_and_an_image_without_lesions_count_nothing(numbers):
    weight = 1 - find(numbers, 2)
    assert compute(numbers, find(numbers, 1, 3), weight) == pytest.approx(0, abs=1e-6)
    assert compute(0 * numbers, find(numbers, 1)) == 0


def test_the_numbers_of_more_lesions_than_are_distinguished_stay_in_their_image(numbers):
    later = np.where(numbers > 0, numbers + MAX_INSTANCES, 0)
    predicted = find(numbers, 2, 3)
    assert compute(later, predicted) == pytest.approx(compute(numbers, predicted), rel=1e-6)


def test_the_loss_has_the_gradient_that_differences_have(numbers, rng):
    loss = LesionLoss(instance_weight=0.7)
    truth = np.concatenate([numbers > 0, np.ones_like(numbers), numbers], -1).astype(np.float32)
    logits = keras.Variable(rng.normal(size=numbers.shape).astype(np.float32))
    plain = float(LesionLoss()(truth[..., :2], logits.value))
    dice = compute(numbers, ops.convert_to_numpy(ops.sigmoid(logits.value)))
    assert float(loss(truth, logits.value)) == pytest.approx(plain + 0.7 * dice, rel=1e-5)

    tensorflow = pytest.importorskip("tensorflow")
    with tensorflow.GradientTape() as tape:
        value = loss(truth, logits.value)
    slope = np.array(tape.gradient(value, logits.value))
    direction = np.sign(slope)
    steps = [float(loss(truth, logits.value + sign * 1e-2 * direction)) for sign in (1, -1)]
    assert (steps[0] - steps[1]) / 2e-2 == pytest.approx(np.abs(slope).sum(), rel=0.01)


def test_a_network_learns_with_it(two_lessons, tmp_path):
    given = read_recipe("ensemble-a")
    recipe = replace(
        given, name="tiny", arguments={"widths": [2, 4], "start": -3}, batch=2, steps=2, epochs=1,
        drawing={**given.drawing, "shape": [16, 16, 16]}, loss={"instance_weight": 1.0},
    )  # fmt: skip
    losses = []
    for number, one in enumerate((recipe, replace(recipe, loss={}))):
        out = tmp_path / str(number)
        train(one, TrainingData((two_lessons,)), out)
        curve = pd.read_csv(out / "curves.tsv", sep="\t")
        losses.append(curve["loss"].iloc[0])
    assert losses[0] > losses[1] + 0.1  # the same batches, at a start that knows no lesion
