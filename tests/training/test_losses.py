"""What a loss asks for."""

import keras
import numpy as np
import pytest

from bids_cmb.training.losses import DICE_SMOOTH, LesionLoss, soft_dice_loss


def test_soft_dice_is_what_its_formula_says():
    """Two of eight voxels found and two false ones."""
    truth, predicted = np.zeros((1, 4, 4, 4, 1), np.float32), np.zeros((1, 4, 4, 4, 1), np.float32)
    truth[0, :2, :2, :2] = 1
    predicted[0, :2, 0, 0] = predicted[0, 3, 3, :2] = 1
    expected = 1 - (2 * 2 + DICE_SMOOTH) / (8 + 4 + DICE_SMOOTH)
    assert float(soft_dice_loss(truth, predicted)) == pytest.approx(expected, rel=1e-6)


def test_the_loss_of_lesions_has_the_gradient_that_differences_have(rng):
    loss, shape = LesionLoss(), (2, 12, 10, 6, 1)
    truth = np.concatenate([rng.random(shape) < 0.1, rng.random(shape) < 0.9], -1)
    truth = truth.astype(np.float32)
    logits = keras.Variable(rng.normal(size=shape).astype(np.float32))
    tensorflow = pytest.importorskip("tensorflow")
    with tensorflow.GradientTape() as tape:
        value = loss(truth, logits.value)
    slope = np.array(tape.gradient(value, logits.value))
    direction = np.sign(slope)
    steps = [float(loss(truth, logits.value + sign * 1e-2 * direction)) for sign in (1, -1)]
    assert (steps[0] - steps[1]) / 2e-2 == pytest.approx(np.abs(slope).sum(), rel=0.01)
