"""3D classifier of patches, microbleed in the middle or not; Al-masni et al. 2020.

Unlike theirs it normalises before the activation, so that the normalisation can be fused into the
convolution, and along the channels.
"""

from collections.abc import Sequence

from bids_cmb.networks import layers
from bids_cmb.networks.architectures.blocks import convolve


def cnn3d(
    *, shape: tuple[int, int, int] = (16, 32, 16), inputs: int = 1,
    stages: Sequence[Sequence[int]] = ((32, 64, 64), (128, 128)),
    dense: Sequence[int] = (32, 8), outputs: int = 2, dropout: float = 0.3, start: float = 0.0,
    fused: bool = False,
):  # fmt: skip
    """Build the network.

    Args:
        shape: Voxels of a patch.
        inputs: Channels of a patch.
        stages: Channels of the convolutions of each stage; after each, voxels become twice as
            large.
        dense: Numbers of the layers that see the whole patch.
        outputs: 2 as published; 1 says the same.
        dropout: Share of the first dense layer that is left out in training.
        start: Bias of the answer before training.
        fused: Whether the normalisations are left out, their numbers having been taken into the
            convolutions before them.

    Returns:
        From (B, X, Y, Z, inputs) to logits, float32, (B, outputs).
    """
    image = layers.Input((*shape, inputs), name="image")
    x = image
    for number, widths in enumerate(stages):
        for turn, width in enumerate(widths):
            x = convolve(x, width, 3, f"stage{number}_{turn}", fused=fused)
        x = layers.MaxPooling3D(2, name=f"stage{number}_pool")(x)
    x = layers.Flatten(name="flat")(x)
    for number, width in enumerate(dense):
        x = layers.Dense(width, activation="relu", name=f"dense{number}")(x)
        if number == 0 and not fused:
            x = layers.Dropout(dropout, name="dropout")(x)
    bias = layers.Constant(start)
    last = layers.Dense(outputs, dtype="float32", bias_initializer=bias, name="answer")
    return layers.Model(image, last(x))
