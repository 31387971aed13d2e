"""Losses of the detector `distilled`.

After Sundaresan et al. 2023, doi:10.3389/fninf.2023.1204186, and for the distillation Hinton et
al. 2015, arXiv:1503.02531.
"""

import keras
from keras import ops

from bids_cmb.training.losses import binary_cross_entropy, soft_dice_loss

DICE_SMOOTH = 1.0  # voxels or patches; a batch without lesions is no catastrophe


class CandidateLoss(keras.losses.Loss):
    """Weighted cross-entropy of voxels and soft Dice of the microbleeds, in equal parts.

    The reference has two channels, (B, X, Y, Z, 2): 1 in a lesion, and the weight of the voxel (0
    where the label is unknown or irrelevant).
    """

    def __init__(self):
        """Take no arguments."""
        super().__init__(name="candidate_loss")

    def call(self, y_true, y_pred):
        """Compute the loss of a batch of logits, (B, X, Y, Z, 2)."""
        return voxel_loss(y_true[..., 0], y_true[..., 1], y_pred)


class TeacherLoss(keras.losses.Loss):
    """Loss of voxels as `CandidateLoss` and of the patch's kind, in equal parts.

    The reference has three channels, (B, X, Y, Z, 3): those of `CandidateLoss`, and 1 everywhere
    in a patch about a microbleed, 0 in others.
    """

    def __init__(self, *, positive_weight: float = 1.0):
        """Weigh patches about a microbleed against others; published: 100."""
        super().__init__(name="teacher_loss")
        self.positive_weight = positive_weight

    def call(self, y_true, y_pred):
        """Compute the loss of a batch of logits, (B, X, Y, Z, 4), as `cdisc_teacher` gives them."""
        voxels = voxel_loss(y_true[..., 0], y_true[..., 1], y_pred[..., :2])
        truth = ops.mean(y_true[..., 2], axis=(1, 2, 3))
        kinds = ops.mean(y_pred[..., 2:], axis=(1, 2, 3))  # the same everywhere
        return voxels + patch_loss(truth, kinds, self.positive_weight)


class StudentLoss(keras.losses.Loss):
    """Loss of the patch's kind, and of its distance from the teacher's prediction.

    Hard loss + alpha T² KL(teacher at T ‖ student at T) + (1 - alpha) cross-entropy. The reference
    has three channels, (B, 3): 1 for a microbleed, and the two logits of the teacher.

    Source:
        Hinton et al. 2015, arXiv:1503.02531.
    """

    def __init__(
        self, *, temperature: float = 4.0, alpha: float = 0.1, positive_weight: float = 1.0
    ):
        """Soften logits by ``temperature``, weigh the teacher by ``alpha``; 0 does without."""
        super().__init__(name="student_loss")
        self.temperature, self.alpha = temperature, alpha
        self.positive_weight = positive_weight

    def call(self, y_true, y_pred):
        """Compute the loss of a batch of logits, (B, 2)."""
        truth, teacher = y_true[:, 0], y_true[:, 1:]
        hard = patch_loss(truth, y_pred, self.positive_weight)
        cross_entropy = _cross_entropy(truth, y_pred, self.positive_weight)
        kl = kl_divergence(teacher, y_pred, self.temperature)
        return hard + self.alpha * self.temperature**2 * kl + (1 - self.alpha) * cross_entropy


def voxel_loss(truth, weight, logits):
    """Compute the weighted mean cross-entropy plus 1 - Dice of the microbleeds over the batch."""
    odds = logits[..., 1] - logits[..., 0]
    known = ops.cast(weight > 0, odds.dtype)
    entropy = ops.sum(weight * binary_cross_entropy(truth, odds)) / (ops.sum(weight) + DICE_SMOOTH)
    return entropy + soft_dice_loss(truth, ops.sigmoid(odds), known, smooth=DICE_SMOOTH)


def patch_loss(truth, logits, positive_weight: float):
    """Compute the weighted mean cross-entropy of patches plus 1 - Dice of the microbleeds."""
    chances = ops.sigmoid(logits[:, 1] - logits[:, 0])
    dice = soft_dice_loss(truth, chances, smooth=DICE_SMOOTH)
    return _cross_entropy(truth, logits, positive_weight) + dice


def kl_divergence(teacher, student, temperature: float):
    """Compute the mean KL(teacher ‖ student) in nats, both softened by ``temperature``."""
    target, predicted = (
        ops.log_softmax(teacher / temperature),
        ops.log_softmax(student / temperature),
    )
    return ops.mean(ops.sum(ops.exp(target) * (target - predicted), axis=-1))


def _cross_entropy(truth, logits, positive_weight: float):
    odds = logits[:, 1] - logits[:, 0]
    weight = 1 + (positive_weight - 1) * truth
    return ops.sum(weight * binary_cross_entropy(truth, odds)) / ops.sum(weight)
