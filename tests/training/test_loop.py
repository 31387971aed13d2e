"""An interrupted training ends as if it had not been; a budget ends it at a low rate."""

import math
import time

import keras
import numpy as np
import pytest

from bids_cmb.files import read_json
from bids_cmb.training import loop
from bids_cmb.training.loop import Batches, TrainingLoop
from bids_cmb.training.progress import COLUMNS, Schedule


class HaltError(RuntimeError):
    """The power went."""


def network():
    """A network with chance in it, a normalisation and averaged weights."""
    keras.utils.set_random_seed(3)
    layers = [keras.layers.Dense(4), keras.layers.BatchNormalization(), keras.layers.Dropout(0.5)]
    made = keras.Sequential([keras.Input((4, 4, 4, 1)), *layers, keras.layers.Dense(1)])
    optimizer = keras.optimizers.AdamW(0.01, use_ema=True, ema_momentum=0.9)
    made.compile(optimizer, loss="mse", run_eagerly=True)
    return made


def draw(epoch, step):
    images = np.random.default_rng([epoch, step]).random((2, 4, 4, 4, 1), np.float32)
    return images, 1 - images


def course(out, *, schedule=None, drawn=draw, judged=True, say=lambda _: None):
    schedule = schedule or Schedule(3, 4, 0.01, 8)
    return TrainingLoop(
        network(), schedule, Batches(drawn, draw(99, 0) if judged else None, 2), out, say,
        (time.monotonic(), time.process_time()),
    )  # fmt: skip


def weights_of(made):
    """By number: Keras counts layers on, whatever network they are of."""
    return dict(enumerate(keras.ops.convert_to_numpy(one.value) for one in made.network.weights))


@pytest.fixture
def scripted(monkeypatch):
    """Validations whose losses are dictated."""

    def dictate(losses):
        left = iter(losses)
        monkeypatch.setattr(keras.Model, "evaluate", lambda *_, **__: {"loss": next(left)})

    return dictate


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A training that nothing interrupted, and the weights that it began with."""
    made = course(tmp_path_factory.mktemp("whole"))
    before = weights_of(made)
    made.run()
    return made, before


@pytest.mark.parametrize("halt", [(1, 0), (3, 1)])
def test_a_training_that_was_interrupted_ends_like_one_that_was_not(
    whole, tmp_path, monkeypatch, halt
):
    """With a state after every step: the one that was being taken is all that is lost."""
    monkeypatch.setattr(loop, "SAVE_INTERVAL_S", 0.0)

    def fails(epoch, step):
        if (epoch, step) == halt:
            raise HaltError("the power went")
        return draw(epoch, step)

    whole, before = whole
    with pytest.raises(HaltError):
        course(tmp_path / "halted", drawn=fails).run()
    halted = course(tmp_path / "halted")
    halted.run()
    wanted, found = weights_of(whole), weights_of(halted)
    moved = max(np.abs(wanted[name] - before[name]).max() for name in wanted)
    assert moved > 1e-3
    for name in wanted:
        np.testing.assert_allclose(found[name], wanted[name], atol=1e-2 * moved, rtol=0)
    assert halted.progress.voxels == whole.progress.voxels == 4 * 3 * 2 * 64
    for one, other in zip(whole.progress.rows, halted.progress.rows, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-2)
        assert one["val_loss"] == pytest.approx(other["val_loss"], rel=1e-2)


def halted_in(epoch, folder, schedule):
    """A training that the power went from when it had told of an epoch."""

    def fails(text):
        if text.startswith(f"epoch {epoch}"):
            raise HaltError

    with pytest.raises(HaltError):
        course(folder, schedule=schedule, say=fails).run()


def test_the_best_epoch_is_kept_over_an_interruption(tmp_path, scripted):
    scripted([0.9, 0.1, 0.8, 0.7, 0.75])
    schedule = Schedule(2, 5, 0.01, 8)
    halted_in(3, tmp_path, schedule)
    best = course(tmp_path)
    best.network.optimizer.build(best.network.trainable_variables)
    best.network.load_weights(tmp_path / "best.weights.h5")
    went_on = course(tmp_path, schedule=schedule)
    assert went_on.run() == "epochs"
    assert went_on.progress.best == 2
    for name, array in weights_of(best).items():
        np.testing.assert_array_equal(weights_of(went_on)[name], array, err_msg=str(name))


def test_patience_counts_the_epochs_before_an_interruption(tmp_path, scripted):
    scripted([0.5, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6])
    schedule = Schedule(1, 7, 0.01, 3)
    halted_in(2, tmp_path, schedule)
    went_on = course(tmp_path, schedule=schedule)
    assert went_on.run() == "patience"
    assert len(went_on.progress.rows) == 6  # the first median is that of the third epoch


def slow(epoch, step):
    time.sleep(0.05)
    return draw(epoch, step)


def test_a_budget_ends_within_an_epoch_and_at_a_low_rate(tmp_path):
    schedule = Schedule(10**4, 10, 0.01, 8, hours=2 / 3600)
    began = time.monotonic()
    timed = course(tmp_path, schedule=schedule, drawn=slow)
    assert timed.run() == "hours"
    assert time.monotonic() - began < 60  # of ten epochs of ten minutes
    assert timed.progress.rows[-1]["rate"] < 0.3 * schedule.rate


def test_hours_before_an_interruption_count(tmp_path):
    schedule = Schedule(3, 2, 0.01, 8)

    def fails(_):
        raise HaltError

    with pytest.raises(HaltError):
        course(tmp_path, schedule=schedule, say=fails).run()
    used = read_json(tmp_path / "state/state.json")["rows"][0]["hours"]
    went_on = course(tmp_path, schedule=Schedule(3, 2, 0.01, 8, hours=used / 2))
    assert went_on.run() == "hours"
    assert len(went_on.progress.rows) == 1


def test_a_budget_that_reading_used_up_is_refused(tmp_path):
    late = course(tmp_path, schedule=Schedule(3, 2, 0.01, 8, hours=1.0))
    late._wall -= 3600
    with pytest.raises(ValueError, match="A budget must leave time to learn; found 1 hours, of"):
        late.run()
    assert not (tmp_path / "state").exists()


def test_a_loss_that_is_no_number_ends_training_and_leaves_the_state_of_before(tmp_path):
    def breaks(epoch, step):
        images, truths = draw(epoch, step)
        return images, truths * (math.nan if epoch == 1 else 1)

    with pytest.raises(ValueError, match="the loss must stay a number; found nan in epoch 2"):
        course(tmp_path, drawn=breaks).run()
    assert read_json(tmp_path / "state/state.json")["epoch"] == 1


def test_a_state_that_cannot_be_read_is_refused_and_left(tmp_path):
    (tmp_path / "state").mkdir()
    (tmp_path / "state/state.json").write_text('{"epoch": 3')
    with pytest.raises(ValueError, match=r"a training goes on from its state\.json; found none"):
        course(tmp_path).run()
    assert (tmp_path / "state/state.json").read_text() == '{"epoch": 3'


def test_curves_tell_voxels_and_time(tmp_path):
    done = course(tmp_path, judged=False)
    done.run()
    header, *lines = (tmp_path / "curves.tsv").read_text().splitlines()
    assert tuple(header.split("\t")) == COLUMNS
    table = np.genfromtxt(tmp_path / "curves.tsv", names=True, delimiter="\t")
    np.testing.assert_array_equal(table["voxels"], [384, 768, 1152, 1536])
    assert np.isnan(table["val_loss"]).all()
    assert (np.diff(table["core_hours"]) > 0).all()
    assert ((table["waiting"] >= 0) & (table["waiting"] <= 1)).all()
    assert len(lines) == 4
