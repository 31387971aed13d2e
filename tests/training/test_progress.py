"""The learning rate follows steps and budget; patience forgives one lucky epoch."""

import keras
import pytest

from bids_cmb.training.progress import Progress, Schedule


def progress(*losses):
    return Progress(rows=[{"loss": 1.0, "val_loss": loss} for loss in losses])


def test_one_lucky_epoch_does_not_use_up_the_patience():
    """The median of three epochs still falls, though no epoch is better than the second."""
    lucky = progress(1.0, 0.1, 0.9, 0.8, 0.7, 0.6)
    assert not lucky.has_stalled(2)
    assert lucky.best == 2
    assert progress(1.0, 0.9, 0.8, 0.9, 0.9, 0.9).has_stalled(2)


def test_the_rate_is_that_of_a_cosine_with_a_warm_start():
    schedule = Schedule(10, 4, 0.01, 8)
    keras_has = keras.optimizers.schedules.CosineDecay(
        0.01 / 20, 30, alpha=0.01, warmup_target=0.01, warmup_steps=10
    )
    for step in (0, 5, 10, 11, 25, 39):
        assert schedule.rate_at(step) == pytest.approx(float(keras_has(step)), rel=1e-4)


def test_the_rate_falls_with_the_budget_whatever_the_steps():
    schedule = Schedule(100, 1000, 1.0, 8, hours=1.0)
    rates = [schedule.rate_at(3, used) for used in (0.01, 0.05, 0.5, 0.9, 1.0)]
    assert rates[0] < rates[1] == 1
    assert rates[1] > rates[2] > rates[3] > rates[4]
    assert rates[4] == pytest.approx(0.01)
