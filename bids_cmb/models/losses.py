"""What the networks are punished for."""

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
