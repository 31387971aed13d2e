"""Residual network that classifies whether a tile of a slice holds a microbleed.

ResNet (He et al. 2016) adapted to small objects: the stem keeps every pixel (at a stride of
32 a microbleed of 6 pixels is gone before it is seen), and every place of the tile gets a logit
of its own; the tile's is their log-sum-exp, a soft maximum. An average would drown one place in all
others.
"""

from collections.abc import Sequence

from bids_cmb.networks import layers
from bids_cmb.networks.architectures.blocks import convolve

BOTTLENECK_EXPANSION = 4  # times a bottleneck's width that it gives on
KIND = {"activation": None, "initializer": "he_normal"}  # of convolutions before a sum
DROPOUT = 0.3  # of the units before the answer, in training


def resnet_gate(
    *, widths: Sequence[int] = (12, 24, 48, 96), blocks: Sequence[int] = (1, 1, 1, 1),
    bottleneck: bool = False, stem: int = 3, dense: Sequence[int] = (64,),
    inputs: int = 3, start: float = 0.0, fused: bool = False,
):  # fmt: skip
    """Build the network.

    The published size, ResNet50 with its head, is ``widths=(64, 128, 256, 512)``, ``blocks=(3, 4,
    6, 3)``, ``bottleneck=True``, ``stem=7`` and ``dense=(1024, 512)``; its two answers with a
    softmax are one with a sigmoid here.

    Args:
        widths: Channels of the blocks of each level; each level but the first halves the pixels.
        blocks: How many blocks each level has.
        bottleneck: Whether a block is narrowed by 1 x 1, convolved by 3 x 3 and widened fourfold by
            1 x 1, as in ResNet50; else it is two convolutions of 3 x 3, as in ResNet18.
        stem: Side of the first convolution in pixels; its stride is 1.
        dense: Units of each layer between a place's features and its answer; in training it loses
            some.
        inputs: Channels of the tile: its slices.
        start: Bias of a place's answer before training.
        fused: As in `unet`.

    Returns:
        From (B, X, Y, inputs) to logits, float32, (B, 1).
    """
    tile = layers.Input((None, None, inputs), name="tile")  # (B, X, Y, inputs)
    x = convolve(tile, widths[0], stem, "stem", fused=fused, initializer="he_normal")
    block = _bottleneck_block if bottleneck else _basic_block
    for level, (width, count) in enumerate(zip(widths, blocks, strict=True)):
        for number in range(count):
            stride = 2 if level and not number else 1
            x = block(x, width, stride, f"level{level}_block{number}", fused=fused)
    for number, units in enumerate(dense):
        x = layers.Conv2D(units, 1, activation="relu", name=f"dense{number}")(x)
        x = layers.Dropout(DROPOUT, name=f"dense{number}_dropout")(x)
    bias = layers.Constant(start)
    places = layers.Conv2D(1, 1, dtype="float32", bias_initializer=bias, name="answer")(x)
    return layers.Model(tile, layers.logsumexp(places, axis=(1, 2)))  # (B, 1)


def _basic_block(x, width: int, stride: int, name: str, *, fused: bool):
    """Apply two convolutions of 3 x 3 beside a shortcut."""
    shortcut = _shortcut(x, width, stride, name, fused=fused)
    x = convolve(x, width, 3, f"{name}_first", fused=fused, strides=stride, initializer="he_normal")
    x = convolve(x, width, 3, f"{name}_second", fused=fused, **KIND)
    return _add_shortcut(x, shortcut, name)


def _bottleneck_block(x, width: int, stride: int, name: str, *, fused: bool):
    """Narrow, convolve and widen beside a shortcut, as in Keras' ResNet50."""
    shortcut = _shortcut(x, BOTTLENECK_EXPANSION * width, stride, name, fused=fused)
    x = convolve(x, width, 1, f"{name}_first", fused=fused, strides=stride, initializer="he_normal")
    x = convolve(x, width, 3, f"{name}_second", fused=fused, initializer="he_normal")
    x = convolve(x, BOTTLENECK_EXPANSION * width, 1, f"{name}_third", fused=fused, **KIND)
    return _add_shortcut(x, shortcut, name)


def _shortcut(x, width: int, stride: int, name: str, *, fused: bool):
    if stride == 1 and x.shape[-1] == width:
        return x
    return convolve(x, width, 1, f"{name}_past", fused=fused, strides=stride, **KIND)


def _add_shortcut(x, shortcut, name: str):
    x = layers.Add(name=f"{name}_sum")([x, shortcut])
    return layers.Activation("relu", name=f"{name}_relu")(x)
