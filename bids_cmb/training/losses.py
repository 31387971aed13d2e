"""Loss functions."""

import keras
from keras import ops

DICE_SMOOTH = 5.0  # voxels; a batch without lesions is no catastrophe
MIN_INDEX_LOSS = 1e-7  # what an index lacks to 1 at least: a root has no slope at 0


class LesionLoss(keras.losses.Loss):
    """Weighted cross-entropy and soft Dice over the batch.

    ``entropy_weight`` · Σ w (1 + (``lesion_weight`` - 1) t) BCE / (Σ w + 1) + 1 - (2 Σ w p t + s) /
    (Σ w p + Σ w t + s), with probability p, reference t, weight w and s = `DICE_SMOOTH` voxels.

    The reference has two channels, (B, X, Y, Z, 2): t, 1 in a lesion, and w, 0 where the label is
    unknown or irrelevant.

    Source:
        Soft Dice: Milletari et al. 2016, arXiv:1606.04797.
    """

    def __init__(self, *, lesion_weight: float = 5.0, entropy_weight: float = 5.0):
        """Weigh lesions against the rest, and cross-entropy against Dice."""
        super().__init__(name="lesion_loss")
        self.lesion_weight, self.entropy_weight = lesion_weight, entropy_weight

    def call(self, y_true, y_pred):
        """Compute the loss of a batch of logits, (B, X, Y, Z, 1)."""
        truth, weight, logits = y_true[..., :1], y_true[..., 1:], y_pred
        entropy = _mean_entropy(truth, logits, weight, self.lesion_weight)
        dice = soft_dice_loss(truth, ops.sigmoid(logits), weight)
        return self.entropy_weight * entropy + dice


class StructuresLoss(keras.losses.Loss):
    """Cross-entropy and soft Dice of the classes, and cross-entropy of the side within the brain.

    The reference has two channels, (B, X, Y, Z, 2): the class, and the side: 1 left, 0 right, 0.5
    where there is none. The prediction's last channel is the side's logit, the others are those of
    the classes.
    """

    def __init__(self, *, classes: int, side_weight: float = 0.3):
        """Set the number of classes and the weight of the side against them."""
        super().__init__(name="structures_loss")
        self.classes, self.side_weight = classes, side_weight

    def call(self, y_true, y_pred):
        """Compute the loss of a batch of logits, (B, X, Y, Z, classes + 1)."""
        truth = ops.one_hot(ops.cast(y_true[..., 0], "int32"), self.classes)
        side, sided = y_true[..., 1], ops.cast(y_true[..., 1] != 0.5, "float32")
        logits, turn = y_pred[..., :-1], y_pred[..., -1]
        chances = ops.softmax(logits)
        entropy = -ops.mean(ops.sum(truth * ops.log_softmax(logits), axis=-1))
        dice = ops.mean(soft_dice_loss(truth, chances, axis=(0, 1, 2, 3)))
        turned = ops.sum(sided * binary_cross_entropy(side, turn)) / (ops.sum(sided) + 1)
        return entropy + dice + self.side_weight * turned


class TissueLoss(keras.losses.Loss):
    """Weighted cross-entropy of the kinds of tissue.

    The reference has two channels, (B, X, Y, Z, 2): the kind, and the weight of the voxel.
    """

    def __init__(self):
        """Take no arguments."""
        super().__init__(name="tissue_loss")

    def call(self, y_true, y_pred):
        """Compute the loss of a batch of logits, (B, X, Y, Z, kinds)."""
        kinds = ops.cast(y_true[..., 0], "int32")
        entropy = ops.sparse_categorical_crossentropy(kinds, y_pred, from_logits=True)
        return ops.sum(entropy * y_true[..., 1]) / (ops.sum(y_true[..., 1]) + 1)


class BoxLoss(keras.losses.Loss):
    """Loss of a one-stage box detector, after YOLO v2.

    Each true box is assigned to one predictor: that of the cell its centre lies in whose anchor is
    most alike in shape. That predictor learns the box, and a confidence that equals the IoU of its
    box with the true one. All others learn no confidence, except those whose IoU is good enough
    all the same, and those whose centre lies in an uncertain box. Unlike the published loss,
    confidence costs cross-entropy, and the sum is divided by the number of true boxes.

    The reference is a list of boxes, (B, N, 5): x, y, w, h in pixels, and the kind: 1 a box that
    has to be found, 2 an uncertain one, 0 none.

    Source:
        Redmon & Farhadi 2017, doi:10.1109/CVPR.2017.690; Al-masni et al. 2020.
    """

    def __init__(
        self, *, anchors, stride: int, widest: float, place_weight: float = 1.0,
        found_weight: float = 5.0, silent_weight: float = 1.0, good: float = 0.6,
    ):  # fmt: skip
        """Set anchors in pixels and cells of ``stride`` pixels.

        Boxes cost twice minus their area, in units of the ``widest`` square. ``place_weight``
        weighs coordinates, ``found_weight`` predictors with a box (YOLO's object weight),
        ``silent_weight`` those without (its no-object weight); an IoU above ``good`` is ignored.
        """
        super().__init__(name="box_loss")
        self.anchors, self.stride, self.widest = (
            [list(anchor) for anchor in anchors],
            stride,
            widest,
        )
        self.place_weight, self.found_weight = place_weight, found_weight
        self.silent_weight, self.good = silent_weight, good

    def call(self, y_true, y_pred):
        """Compute the loss of a batch of predictions, (B, X, Y, 5 x anchors or more)."""
        count, shape = len(self.anchors), ops.shape(y_pred)
        batch, rows, columns = shape[0], shape[1], shape[2]
        n_predictors = rows * columns * count
        anchors = ops.convert_to_tensor(self.anchors, "float32")  # (A, 2)
        raw = ops.reshape(y_pred[..., : 4 * count], (batch, n_predictors, 4))
        confidence = ops.reshape(y_pred[..., 4 * count : 5 * count], (batch, n_predictors))

        cell = ops.arange(n_predictors) // count
        corner = ops.cast(ops.stack([cell // columns, cell % columns], axis=-1), "float32")
        predictor_anchor = ops.reshape(
            ops.tile(anchors[None], (rows * columns, 1, 1)), (n_predictors, 2)
        )
        within = ops.sigmoid(raw[..., :2])
        middle = (corner + within) * self.stride
        sides = predictor_anchor * ops.exp(ops.clip(raw[..., 2:], -4.0, 4.0))
        iou = ops.stop_gradient(self._box_iou(middle, sides, y_true))  # (B, P, N)

        assignment = self._assign_predictors(y_true, anchors, columns, n_predictors)  # (B, N, P)
        has = ops.max(assignment, axis=1)  # (B, P)
        first = ops.argmax(assignment, axis=1)  # of boxes that share a predictor, the first
        assigned = ops.take_along_axis(y_true, first[..., None], axis=1)  # (B, P, 5)
        assigned_iou = ops.take_along_axis(iou, first[..., None], axis=2)[..., 0]

        distance = ops.sum((within - (assigned[..., :2] / self.stride - corner)) ** 2, axis=-1)
        log_sides = ops.log(ops.maximum(assigned[..., 2:4], 1e-3) / predictor_anchor)
        distance = distance + ops.sum((raw[..., 2:] - log_sides) ** 2, axis=-1)
        box_weight = 2 - assigned[..., 2] * assigned[..., 3] / self.widest**2
        place = ops.sum(has * box_weight * distance)

        sure = ops.cast(y_true[:, None, :, 4] == 1, "float32")
        excused = ops.max(iou * sure, axis=2) > self.good
        excused = ops.logical_or(excused, self._is_uncertain(middle, y_true))
        noobject = (1 - has) * (1 - ops.cast(excused, "float32"))
        object_cost = ops.sum(has * binary_cross_entropy(assigned_iou, confidence))
        noobject_cost = ops.sum(noobject * ops.softplus(confidence))
        cost = (
            self.place_weight * place
            + self.found_weight * object_cost
            + self.silent_weight * noobject_cost
        )
        return cost / (ops.sum(sure) + 1)

    def _box_iou(self, middle, sides, y_true):
        """Compute the intersection over union of predicted and true boxes, (B, P, N)."""
        true_middle, true_sides = y_true[:, None, :, :2], y_true[:, None, :, 2:4]
        middle, sides = middle[:, :, None], sides[:, :, None]
        low = ops.maximum(middle - sides / 2, true_middle - true_sides / 2)
        high = ops.minimum(middle + sides / 2, true_middle + true_sides / 2)
        common = ops.prod(ops.maximum(high - low, 0), axis=-1)
        total = ops.prod(sides, axis=-1) + ops.prod(true_sides, axis=-1) - common
        return common / ops.maximum(total, 1e-6)

    def _assign_predictors(self, y_true, anchors, columns, n_predictors):
        """Assign each box that has to be found to a predictor, one-hot (B, N, P)."""
        sides = y_true[:, :, None, 2:4]
        common = ops.prod(ops.minimum(sides, anchors), axis=-1)  # (B, N, A)
        total = ops.prod(sides, axis=-1) + ops.prod(anchors, axis=-1) - common
        best = ops.argmax(common / total, axis=-1)
        cell = ops.cast(ops.floor(y_true[..., :2] / self.stride), "int32")
        predictor = (cell[..., 0] * columns + cell[..., 1]) * len(self.anchors) + ops.cast(
            best, "int32"
        )
        return ops.one_hot(predictor, n_predictors) * ops.cast(y_true[..., 4:] == 1, "float32")

    def _is_uncertain(self, middle, y_true):
        """Tell whether a predicted box's centre lies in an uncertain box, (B, P)."""
        away = ops.abs(middle[:, :, None] - y_true[:, None, :, :2])
        inside = ops.all(away <= y_true[:, None, :, 2:4] / 2, axis=-1)
        return ops.any(ops.logical_and(inside, y_true[:, None, :, 4] == 2), axis=-1)


class FocalTverskyLoss(keras.losses.Loss):
    """Focal Tversky loss of each image, and weighted cross-entropy.

    The index is (TP + s) / (TP + ``missed`` FN + ``false`` FP + s), 1 where reference and
    prediction are empty; the loss is (1 - index) ^ ``gamma``. The reference has two channels as
    that of `LesionLoss`, (B, X, Y, 2).

    Source:
        Abraham and Khan 2019, doi:10.1109/ISBI.2019.8759329.
    """

    def __init__(
        self, *, missed: float = 0.7, false: float = 0.3, gamma: float = 0.75, smooth: float = 1.0,
        lesion_weight: float = 5.0, entropy_weight: float = 5.0,
    ):  # fmt: skip
        """Weigh missed and false pixels, and cross-entropy against the index.

        ``smooth`` is in pixels. The published 1e-6 makes an image without lesions all right or all
        wrong: with one pixel, a fainter false alarm costs less.
        """
        super().__init__(name="focal_tversky_loss")
        self.missed, self.false, self.gamma, self.smooth = missed, false, gamma, smooth
        self.lesion_weight, self.entropy_weight = lesion_weight, entropy_weight

    def call(self, y_true, y_pred):
        """Compute the loss of a batch of logits, (B, X, Y, 1)."""
        truth, weight, logits = y_true[..., :1], y_true[..., 1:], y_pred
        entropy = _mean_entropy(truth, logits, weight, self.lesion_weight)
        predicted = ops.sigmoid(logits)
        true_positive, missed, false = (
            ops.sum(weight * part, axis=(1, 2, 3))
            for part in (predicted * truth, (1 - predicted) * truth, predicted * (1 - truth))
        )
        wrong = self.missed * missed + self.false * false
        lost = wrong / (
            true_positive + wrong + self.smooth
        )  # 1 - index, without what that loses to 1
        lost = ops.maximum(lost, MIN_INDEX_LOSS)
        return ops.mean(lost**self.gamma) + self.entropy_weight * entropy


class TileLoss(keras.losses.Loss):
    """Weighted cross-entropy of tiles.

    The reference has two channels, (B, 2): 1 if the tile holds a lesion, and its weight, 0 where
    the label is unknown.
    """

    def __init__(self):
        """Take no arguments: batches are balanced."""
        super().__init__(name="tile_loss")

    def call(self, y_true, y_pred):
        """Compute the loss of a batch of logits, (B, 1)."""
        truth, weight = y_true[..., :1], y_true[..., 1:]
        return ops.sum(weight * binary_cross_entropy(truth, y_pred)) / ops.maximum(
            ops.sum(weight), 1
        )


def binary_cross_entropy(truth, logits):
    """Compute the cross-entropy of each element, nats."""
    return ops.softplus(logits) - logits * truth


def _mean_entropy(truth, logits, weight, lesion_weight: float):
    """The mean cross-entropy, with lesions weighed against the rest."""
    weights = weight * (1 + (lesion_weight - 1) * truth)
    return ops.sum(weights * binary_cross_entropy(truth, logits)) / (ops.sum(weight) + 1)


def soft_dice_loss(truth, predicted, weight=1.0, *, axis=None, smooth: float = DICE_SMOOTH):
    """Compute 1 - the soft Dice coefficient.

    1 - (2 Σ w p t + s) / (Σ w p + Σ w t + s), with prediction p, reference t and weight w.

    Args:
        truth: 1 in the structure, else 0.
        predicted: Probability of it.
        weight: Of each element.
        axis: Summed over; all without.
        smooth: s, in elements.

    Source:
        Milletari et al. 2016, arXiv:1606.04797.
    """
    common = ops.sum(weight * predicted * truth, axis=axis)
    total = ops.sum(weight * predicted, axis=axis) + ops.sum(weight * truth, axis=axis)
    return 1 - (2 * common + smooth) / (total + smooth)
