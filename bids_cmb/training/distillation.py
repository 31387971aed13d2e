"""What the networks of the detector `distilled` are punished for.

After Sundaresan et al. 2023, doi:10.3389/fninf.2023.1204186, and for the distillation Hinton et
al. 2015, arXiv:1503.02531.
"""

import keras
from keras import ops

SMOOTH = 1.0  # voxels or patches; a batch without lesions is no catastrophe


class CandidateLoss(keras.losses.Loss):
    """Cross-entropy as the voxels weigh, and Dice of the microbleeds, one for one.

    The truth has two channels, (B, X, Y, Z, 2): 1 in a lesion, and the weight of the voxel (0
    where nobody knows, or where nobody will look).
    """

    def __init__(self):
        """Nothing can be set."""
        super().__init__(name="candidate_loss")

    def call(self, y_true, y_pred):
        """The loss of a batch of logits, (B, X, Y, Z, 2)."""
        return voxels_loss(y_true[..., 0], y_true[..., 1], y_pred)


class TeacherLoss(keras.losses.Loss):
    """Voxels as `CandidateLoss` and the patch's kind, one for one.

    The truth has three channels, (B, X, Y, Z, 3): those of `CandidateLoss`, and 1 everywhere in a
    patch about a microbleed, 0 in others.
    """

    def __init__(self, *, positive_weight: float = 1.0):
        """Weigh patches about a microbleed against others; published: 100."""
        super().__init__(name="teacher_loss")
        self.positive_weight = positive_weight

    def call(self, y_true, y_pred):
        """The loss of a batch of logits, (B, X, Y, Z, 4), as `cdisc_teacher` gives them."""
        voxels = voxels_loss(y_true[..., 0], y_true[..., 1], y_pred[..., :2])
        truth = ops.mean(y_true[..., 2], axis=(1, 2, 3))
        kinds = ops.mean(y_pred[..., 2:], axis=(1, 2, 3))  # the same everywhere
        return voxels + kinds_loss(truth, kinds, self.positive_weight)


class StudentLoss(keras.losses.Loss):
    """The patch's kind, and what the teacher thinks of it.

    Hard loss + alpha T² KL(teacher at T ‖ student at T) + (1 - alpha) cross-entropy. The truth has
    three channels, (B, 3): 1 for a microbleed, and the two logits of the teacher.
    """

    def __init__(
        self, *, temperature: float = 4.0, alpha: float = 0.1, positive_weight: float = 1.0
    ):
        """Soften logits by ``temperature``, weigh the teacher by ``alpha``; 0 does without."""
        super().__init__(name="student_loss")
        self.temperature, self.alpha = temperature, alpha
        self.positive_weight = positive_weight

    def call(self, y_true, y_pred):
        """The loss of a batch of logits, (B, 2)."""
        truth, teacher = y_true[:, 0], y_true[:, 1:]
        hard = kinds_loss(truth, y_pred, self.positive_weight)
        again = _entropy(truth, y_pred, self.positive_weight)
        apart = divergence(teacher, y_pred, self.temperature)
        return hard + self.alpha * self.temperature**2 * apart + (1 - self.alpha) * again


def voxels_loss(truth, weight, logits):
    """Weighted mean of the cross-entropy, plus 1 less Dice of the microbleeds over the batch."""
    odds = logits[..., 1] - logits[..., 0]
    entropy = ops.softplus(odds) - odds * truth
    known = ops.cast(weight > 0, odds.dtype)
    found = known * ops.sigmoid(odds)
    mean = ops.sum(weight * entropy) / (ops.sum(weight) + SMOOTH)
    return mean + _dice(known * truth, found)


def kinds_loss(truth, logits, positive_weight: float):
    """Weighted mean of the cross-entropy of patches, plus 1 less Dice of the microbleeds."""
    chances = ops.sigmoid(logits[:, 1] - logits[:, 0])
    return _entropy(truth, logits, positive_weight) + _dice(truth, chances)


def divergence(teacher, student, temperature: float):
    """Mean of KL(teacher ‖ student) over the batch, both softened by ``temperature``, in nats."""
    meant, said = ops.log_softmax(teacher / temperature), ops.log_softmax(student / temperature)
    return ops.mean(ops.sum(ops.exp(meant) * (meant - said), axis=-1))


def _entropy(truth, logits, positive_weight: float):
    odds = logits[:, 1] - logits[:, 0]
    weight = 1 + (positive_weight - 1) * truth
    return ops.sum(weight * (ops.softplus(odds) - odds * truth)) / ops.sum(weight)


def _dice(truth, found):
    common, total = ops.sum(truth * found), ops.sum(truth) + ops.sum(found)
    return 1 - (2 * common + SMOOTH) / (total + SMOOTH)
