"""What the networks are punished for."""

import keras
from keras import ops

DICE_SMOOTH = 5.0  # voxels; a batch without lesions is no catastrophe


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
        entropy = ops.maximum(logits, 0) - logits * truth + ops.log1p(ops.exp(-ops.abs(logits)))
        heavy = weight * (1 + (self.lesion_weight - 1) * truth)
        entropy = ops.sum(heavy * entropy) / (ops.sum(weight) + 1)
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
        turned = ops.maximum(turn, 0) - turn * side + ops.log1p(ops.exp(-ops.abs(turn)))
        turned = ops.sum(sided * turned) / (ops.sum(sided) + 1)
        return entropy + dice + self.side_weight * turned
