"""Loss functions."""

import keras
from keras import ops

DICE_SMOOTH = 5.0  # voxels; a batch without lesions is no catastrophe
FAULTLESS = 1e-7  # what an index lacks to 1 at least: a root has no slope at 0


class LesionLoss(keras.losses.Loss):
    """Cross-entropy with heavy lesions, and Dice over the batch.

    The truth has two channels, (B, X, Y, Z, 2): 1 in a lesion, and the weight of the voxel (0
    where nobody knows, or where nobody will look).
    """

    def __init__(self, *, lesion_weight: float = 5.0, entropy_weight: float = 5.0):
        """Weigh lesions against the rest, and cross-entropy against Dice."""
        super().__init__(name="lesion_loss")
        self.lesion_weight, self.entropy_weight = lesion_weight, entropy_weight

    def call(self, y_true, y_pred):
        """The loss of a batch of logits, (B, X, Y, Z, 1)."""
        truth, weight, logits = y_true[..., :1], y_true[..., 1:], y_pred
        heavy = weight * (1 + (self.lesion_weight - 1) * truth)
        entropy = ops.sum(heavy * _entropy(truth, logits)) / (ops.sum(weight) + 1)
        found = weight * ops.sigmoid(logits)
        common, total = ops.sum(found * truth), ops.sum(found) + ops.sum(weight * truth)
        dice = 1 - (2 * common + DICE_SMOOTH) / (total + DICE_SMOOTH)
        return self.entropy_weight * entropy + dice


class StructuresLoss(keras.losses.Loss):
    """Cross-entropy and Dice of the classes, and cross-entropy of the side within the brain.

    The truth has two channels, (B, X, Y, Z, 2): the class, and the side: 1 left, 0 right, 0.5 where
    there is none. The answer's last channel is the side's logit, the others are the classes'.
    """

    def __init__(self, *, classes: int, side_weight: float = 0.3):
        """For a number of classes; weigh the side against them."""
        super().__init__(name="structures_loss")
        self.classes, self.side_weight = classes, side_weight

    def call(self, y_true, y_pred):
        """The loss of a batch of logits, (B, X, Y, Z, classes + 1)."""
        truth = ops.one_hot(ops.cast(y_true[..., 0], "int32"), self.classes)
        side, sided = y_true[..., 1], ops.cast(y_true[..., 1] != 0.5, "float32")
        logits, turn = y_pred[..., :-1], y_pred[..., -1]
        chances = ops.softmax(logits)
        entropy = -ops.mean(ops.sum(truth * ops.log_softmax(logits), axis=-1))
        common = ops.sum(chances * truth, axis=(0, 1, 2, 3))
        total = ops.sum(chances, axis=(0, 1, 2, 3)) + ops.sum(truth, axis=(0, 1, 2, 3))
        dice = 1 - ops.mean((2 * common + DICE_SMOOTH) / (total + DICE_SMOOTH))
        turned = ops.sum(sided * _entropy(side, turn)) / (ops.sum(sided) + 1)
        return entropy + dice + self.side_weight * turned


class TissueLoss(keras.losses.Loss):
    """Cross-entropy of the kinds of tissue.

    The truth has two channels, (B, X, Y, Z, 2): the kind, and the weight of the voxel.
    """

    def __init__(self, *, kinds: int):
        """For a number of kinds."""
        super().__init__(name="tissue_loss")
        self.kinds = kinds

    def call(self, y_true, y_pred):
        """The loss of a batch of logits, (B, X, Y, Z, kinds)."""
        truth = ops.one_hot(ops.cast(y_true[..., 0], "int32"), self.kinds)
        entropy = -ops.sum(truth * ops.log_softmax(y_pred), axis=-1)
        return ops.sum(entropy * y_true[..., 1]) / (ops.sum(y_true[..., 1]) + 1)


class BoxLoss(keras.losses.Loss):
    """What boxes of a one-stage detector cost, after YOLO v2.

    Each true box is the affair of one predictor: that of the cell its middle lies in whose anchor
    is most alike in shape. It is to say where the box is and to be as confident as its box is good
    (IoU). All others are to have no confidence, but for those whose box is good enough all the
    same, and those whose middle lies in a box that nobody is sure of. Unlike the published loss,
    confidence costs cross-entropy, and the sum is divided by the number of true boxes.

    The truth is a list of boxes, (B, N, 5): x, y, w, h in pixels, and the kind: 1 a box that has to
    be found, 2 one that may be, 0 none.

    Source:
        Redmon & Farhadi 2017, doi:10.1109/CVPR.2017.690; Al-masni et al. 2020.
    """

    def __init__(
        self, *, anchors, stride: int, widest: float, place_weight: float = 1.0,
        found_weight: float = 5.0, silent_weight: float = 1.0, good: float = 0.6,
    ):  # fmt: skip
        """For anchors in pixels and cells of ``stride`` pixels.

        Boxes cost twice minus their area, in units of the ``widest`` square; places, predictors
        with a box and those without have weights; an IoU above ``good`` is good enough.
        """
        super().__init__(name="box_loss")
        self.anchors, self.stride, self.widest = [list(one) for one in anchors], stride, widest
        self.place_weight, self.found_weight = place_weight, found_weight
        self.silent_weight, self.good = silent_weight, good

    def call(self, y_true, y_pred):
        """The loss of a batch of answers, (B, X, Y, 5 x anchors or more)."""
        count, shape = len(self.anchors), ops.shape(y_pred)
        batch, rows, columns = shape[0], shape[1], shape[2]
        every = rows * columns * count
        anchors = ops.convert_to_tensor(self.anchors, "float32")  # (A, 2)
        raw = ops.reshape(y_pred[..., : 4 * count], (batch, every, 4))
        said = ops.reshape(y_pred[..., 4 * count : 5 * count], (batch, every))

        cell = ops.arange(every) // count
        corner = ops.cast(ops.stack([cell // columns, cell % columns], axis=-1), "float32")
        own = ops.reshape(ops.tile(anchors[None], (rows * columns, 1, 1)), (every, 2))
        within = ops.sigmoid(raw[..., :2])
        middle = (corner + within) * self.stride
        sides = own * ops.exp(ops.clip(raw[..., 2:], -4.0, 4.0))
        near = ops.stop_gradient(self._overlap(middle, sides, y_true))  # (B, P, N)

        owner = self._owner(y_true, anchors, columns, every)  # (B, N, P)
        has = ops.max(owner, axis=1)  # (B, P)
        first = ops.argmax(owner, axis=1)  # of boxes that share a predictor, the first
        mine = ops.take_along_axis(y_true, first[..., None], axis=1)  # (B, P, 5)
        mine_near = ops.take_along_axis(near, first[..., None], axis=2)[..., 0]

        apart = ops.sum((within - (mine[..., :2] / self.stride - corner)) ** 2, axis=-1)
        grown = ops.log(ops.maximum(mine[..., 2:4], 1e-3) / own)
        apart = apart + ops.sum((raw[..., 2:] - grown) ** 2, axis=-1)
        heavy = 2 - mine[..., 2] * mine[..., 3] / self.widest**2
        place = ops.sum(has * heavy * apart)

        sure = ops.cast(y_true[:, None, :, 4] == 1, "float32")
        excused = ops.max(near * sure, axis=2) > self.good
        excused = ops.logical_or(excused, self._unsure(middle, y_true))
        silent = (1 - has) * (1 - ops.cast(excused, "float32"))
        entropy = ops.maximum(said, 0) + ops.log1p(ops.exp(-ops.abs(said)))
        found = ops.sum(has * (entropy - said * mine_near))
        quiet = ops.sum(silent * entropy)
        cost = self.place_weight * place + self.found_weight * found + self.silent_weight * quiet
        return cost / (ops.sum(sure) + 1)

    def _overlap(self, middle, sides, y_true):
        """Intersection over union of each predicted box with each true one, (B, P, N)."""
        true_middle, true_sides = y_true[:, None, :, :2], y_true[:, None, :, 2:4]
        middle, sides = middle[:, :, None], sides[:, :, None]
        low = ops.maximum(middle - sides / 2, true_middle - true_sides / 2)
        high = ops.minimum(middle + sides / 2, true_middle + true_sides / 2)
        common = ops.prod(ops.maximum(high - low, 0), axis=-1)
        total = ops.prod(sides, axis=-1) + ops.prod(true_sides, axis=-1) - common
        return common / ops.maximum(total, 1e-6)

    def _owner(self, y_true, anchors, columns, every):
        """1 for the predictor of each box that has to be found, (B, N, P)."""
        sides = y_true[:, :, None, 2:4]
        common = ops.prod(ops.minimum(sides, anchors), axis=-1)  # (B, N, A)
        total = ops.prod(sides, axis=-1) + ops.prod(anchors, axis=-1) - common
        best = ops.argmax(common / total, axis=-1)
        cell = ops.cast(ops.floor(y_true[..., :2] / self.stride), "int32")
        at = (cell[..., 0] * columns + cell[..., 1]) * len(self.anchors) + ops.cast(best, "int32")
        return ops.one_hot(at, every) * ops.cast(y_true[..., 4:] == 1, "float32")

    def _unsure(self, middle, y_true):
        """Whether a predicted box's middle lies in a box that nobody is sure of, (B, P)."""
        away = ops.abs(middle[:, :, None] - y_true[:, None, :, :2])
        inside = ops.all(away <= y_true[:, None, :, 2:4] / 2, axis=-1)
        return ops.any(ops.logical_and(inside, y_true[:, None, :, 4] == 2), axis=-1)


class FocalTverskyLoss(keras.losses.Loss):
    """Focal Tversky of each image (Abraham and Khan 2019), and cross-entropy with heavy lesions.

    The truth has two channels as that of `LesionLoss`, (B, X, Y, 2). The index of an image is (TP +
    s) / (TP + 0.7 FN + 0.3 FP + s): 1 where truth and answer are empty.
    """

    def __init__(
        self, *, missed: float = 0.7, false: float = 0.3, gamma: float = 0.75, smooth: float = 1.0,
        lesion_weight: float = 5.0, entropy_weight: float = 5.0,
    ):  # fmt: skip
        """Weigh missed and false pixels, the exponent, and cross-entropy against the index.

        ``smooth`` is in pixels. The published 1e-6 makes an image without lesions all right or all
        wrong: with one pixel, a fainter false alarm is a smaller fault.
        """
        super().__init__(name="focal_tversky_loss")
        self.missed, self.false, self.gamma, self.smooth = missed, false, gamma, smooth
        self.lesion_weight, self.entropy_weight = lesion_weight, entropy_weight

    def call(self, y_true, y_pred):
        """The loss of a batch of logits, (B, X, Y, 1)."""
        truth, weight, logits = y_true[..., :1], y_true[..., 1:], y_pred
        heavy = weight * (1 + (self.lesion_weight - 1) * truth)
        entropy = ops.sum(heavy * _entropy(truth, logits)) / (ops.sum(weight) + 1)
        found = ops.sigmoid(logits)
        common, missed, false = (
            ops.sum(weight * part, axis=(1, 2, 3))
            for part in (found * truth, (1 - found) * truth, found * (1 - truth))
        )
        wrong = self.missed * missed + self.false * false
        lost = wrong / (common + wrong + self.smooth)  # 1 - index, without what that loses to 1
        lost = ops.maximum(lost, FAULTLESS)
        return ops.mean(lost**self.gamma) + self.entropy_weight * entropy


class TileLoss(keras.losses.Loss):
    """Cross-entropy of tiles.

    The truth has two channels, (B, 2): 1 if the tile holds a lesion, and its weight, 0 where nobody
    knows.
    """

    def __init__(self):
        """Nothing to weigh: batches are balanced."""
        super().__init__(name="tile_loss")

    def call(self, y_true, y_pred):
        """The loss of a batch of logits, (B, 1)."""
        truth, weight = y_true[..., :1], y_true[..., 1:]
        return ops.sum(weight * _entropy(truth, y_pred)) / ops.maximum(ops.sum(weight), 1)


def _entropy(truth, logits):
    return ops.maximum(logits, 0) - logits * truth + ops.log1p(ops.exp(-ops.abs(logits)))
