"""2D U-Net of residual blocks for a slice with its neighbours as channels.

The layout is that of the tumour segmenter of S. Kierkegaard's MRI-Image-Analysis; only biases that
a normalisation takes away again are left out.
"""

from collections.abc import Sequence

from bids_cmb.networks import layers
from bids_cmb.networks.architectures.blocks import convolve

KIND = {"activation": None, "initializer": "he_normal"}  # of convolutions before a sum


def resunet(
    *, widths: Sequence[int] = (16, 32, 64, 128, 256), inputs: int = 3, start: float = 0.0,
    fused: bool = False,
):  # fmt: skip
    """Build the network; the widths that it has without any are the published ones.

    Args:
        widths: Channels of each level, the finest first.
        inputs: Channels of the image: the slices, the one in question in the middle.
        start: Bias of the answer before training.
        fused: As in `unet`. The normalisations of the finest level come after the rectifier, as
            published, and stay.

    Returns:
        From (B, X, Y, inputs) to logits of the middle slice, float32, (B, X, Y, 1). X and Y must
        be multiples of two to the number of levels but one.
    """
    slices = layers.Input((None, None, inputs), name="slices")  # (B, X, Y, inputs)
    x = slices
    for name in ("down0_first", "down0_second"):
        x = layers.Conv2D(
            widths[0], 3, padding="same", activation="relu", kernel_initializer="he_normal",
            name=name,
        )(x)  # fmt: skip
        x = layers.BatchNormalization(momentum=0.98, name=f"{name}_scaled")(x)
    skips = []
    for level, width in enumerate(widths[1:], start=1):
        skips.append(x)
        x = layers.MaxPooling2D(2, name=f"down{level}_pool")(x)
        x = _residual_block(x, width, f"down{level}", fused=fused)
    for level in reversed(range(len(skips))):
        x = layers.UpSampling2D(2, name=f"up{level}_wide")(x)
        x = layers.Concatenate(name=f"up{level}_skip")([x, skips[level]])
        x = _residual_block(x, widths[level], f"up{level}", fused=fused)
    bias = layers.Constant(start)
    answer = layers.Conv2D(1, 1, dtype="float32", bias_initializer=bias, name="answer")
    return layers.Model(slices, answer(x))


def _residual_block(x, width: int, name: str, *, fused: bool):
    """Apply 1 x 1, 3 x 3, and a shortcut of 1 x 1."""
    shortcut = convolve(x, width, 1, f"{name}_past", fused=fused, **KIND)
    x = convolve(x, width, 1, f"{name}_first", fused=fused, initializer="he_normal")
    x = convolve(x, width, 3, f"{name}_second", fused=fused, **KIND)
    x = layers.Add(name=f"{name}_sum")([x, shortcut])
    return layers.Activation("relu", name=f"{name}_relu")(x)
