"""One-stage detector of boxes in slices, after YOLO v2 and Al-masni et al. 2020.

The published layout is the default of the arguments but for the class, which is one only and
teaches nothing. Two convolutions predict: one where the boxes are, one how sure; nothing is
subclassed and no function stored, so that a saved network needs none of our code.
"""

from collections.abc import Sequence

from bids_cmb.networks import layers
from bids_cmb.networks.architectures.blocks import convolve

PUBLISHED_STAGES = (
    (32,),
    (64,),
    (128, 64, 128),
    (256, 128, 256),
    (512, 256, 512, 256, 512),
    (1024, 512, 1024, 512, 1024),
)
VOC_ANCHORS = ((1.3221, 1.73145), (3.19275, 4.00944), (5.05587, 8.09892), (9.47112, 4.84053),
       (11.2364, 10.0071))  # fmt: skip


def yolo(
    *, anchors: Sequence[Sequence[float]] = VOC_ANCHORS,
    stages: Sequence[Sequence[int]] = PUBLISHED_STAGES,
    head: Sequence[int] = (1024, 1024, 1024), passed: int = 64, inputs: int = 3,
    classes: int = 0, start: float = 0.0, fused: bool = False,
):  # fmt: skip
    """Build the network.

    Args:
        anchors: Sizes of boxes that its answers are relative to; here only their number counts.
        stages: Channels of the convolutions of each stage, 3 x 3 and 1 x 1 in turn. Pixels become
            twice as large between stages, so a cell of the answer is two to the number of stages
            less one pixels wide.
        head: Channels of the 3 x 3 convolutions after the last stage, the last of which sees also
            what was passed on.
        passed: Channels that the stage before the last, whose pixels are finer, passes on to the
            end, each four times: one for each of the pixels that make one of the last stage.
        inputs: Channels of the slice.
        classes: To tell apart; none need no answer.
        start: Bias of the confidence before training.
        fused: Whether the normalisations are left out, their numbers having been taken into the
            convolutions before them.

    Returns:
        From (B, X, Y, inputs), X and Y multiples of a cell, to float32
        (B, X / cell, Y / cell, anchors x (5 + classes)): x, y, w, h of each anchor, then the
        confidence of each, then the classes of each. `detection.boxes.decode_boxes` says what they
        mean.
    """
    image = layers.Input((None, None, inputs), name="image")
    x, finer = image, image
    for number, widths in enumerate(stages):
        if number:
            finer = x
            x = layers.MaxPooling2D(2, name=f"stage{number}_pool")(x)
        for turn, width in enumerate(widths):
            x = _convolve(x, width, 3 if turn % 2 == 0 else 1, f"stage{number}_{turn}", fused=fused)
    for turn, width in enumerate(head[:-1]):
        x = _convolve(x, width, 3, f"head_{turn}", fused=fused)
    fine = _space_to_depth(_convolve(finer, passed, 1, "passed", fused=fused))
    x = layers.Concatenate(name="both")([fine, x])
    x = _convolve(x, head[-1], 3, "last", fused=fused)
    count, exact = len(anchors), {"dtype": "float32"}
    where = layers.Conv2D(4 * count, 1, name="where", **exact)(x)
    bias = layers.Constant(start)
    sure = layers.Conv2D((1 + classes) * count, 1, bias_initializer=bias, name="sure", **exact)(x)
    return layers.Model(image, layers.Concatenate(name="answer", **exact)([where, sure]))


def _space_to_depth(x):
    """Stack each 2 x 2 pixels as one with four times the channels, on slices of any size."""
    parts = [(0, 0), (0, 1), (1, 0), (1, 1)]
    shifted = [
        layers.Cropping2D(((i, 0), (j, 0)), name=f"passed_from{i}{j}")(x) if i or j else x
        for i, j in parts
    ]
    every_second = [
        layers.MaxPooling2D(1, strides=2, name=f"passed_every{i}{j}")(part)
        for (i, j), part in zip(parts, shifted, strict=True)
    ]
    return layers.Concatenate(name="passed_packed")(every_second)


def _convolve(x, width: int, kernel: int, name: str, *, fused: bool):
    x = convolve(x, width, kernel, name, fused=fused, activation=None)
    return layers.LeakyReLU(negative_slope=0.1, name=f"{name}_leaky")(x)
