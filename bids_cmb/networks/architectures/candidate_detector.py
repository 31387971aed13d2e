"""The candidate detector CDet: a 3D U-Net of three levels that is to miss nothing.

Layers and widths after Sundaresan et al. 2023, doi:10.3389/fninf.2023.1204186; nothing is
subclassed, so that a saved network needs none of our code.
"""

import keras
from keras import layers

ENTRY = 3  # channels that image and symmetry are mixed into
MOMENTUM = 0.9  # of what normalisations remember: trainings of few hundred steps must forget 1


def cdet(
    *, width: int = 64, inputs: int = 2, start: float = 0.0, biased: bool = False,
    folded: bool = False,
) -> keras.Model:  # fmt: skip
    """Build the network.

    Args:
        width: Channels of the finest level; published: 64.
        inputs: Channels of the image.
        start: Log-odds of a microbleed before training.
        biased: Whether convolutions have a bias although a normalisation follows, which takes it
            away again: so the published ones do, and their parameters are counted.
        folded: Whether the normalisations are left out, their numbers having been taken into the
            convolutions before them, as `networks.inference` does it: for use, not for training.

    Returns:
        From (B, X, Y, Z, inputs) to logits of no and of a microbleed, float32, (B, X, Y, Z, 2).
        Each side must be a multiple of 4.
    """
    image = keras.Input((None, None, None, inputs), name="image")  # (B, X, Y, Z, inputs)
    bias = {"biased": biased, "folded": folded}
    levels = encoded(image, width, **bias)
    return keras.Model(image, decoded(levels, width, start=start, **bias))


def encoded(image, width: int, *, biased: bool, folded: bool) -> list:
    """What each level sees, the finest first: ``width``, twice and four times as many channels."""
    x = layers.Conv3D(ENTRY, 1, name="entry")(image)
    levels = []
    for level in range(3):
        x = layers.MaxPooling3D(2, name=f"down{level}_pool")(x) if level else x
        x = twice(x, width * 2**level, (3, 1), f"down{level}", biased=biased, folded=folded)
        levels.append(x)
    return levels


def decoded(levels: list, width: int, *, start: float, biased: bool, folded: bool):
    """Logits of no and of a microbleed for each voxel of the finest level, float32."""
    *skips, x = levels
    for level in (1, 0):
        wide = layers.Conv3DTranspose(
            width * 2**level, 3, strides=2, padding="same", name=f"up{level}_wide"
        )(x)
        x = layers.Concatenate(name=f"up{level}_both")([skips[level], wide])
        x = twice(x, width * 2**level, (3, 1), f"up{level}", biased=biased, folded=folded)
    bias = keras.initializers.Constant([-start / 2, start / 2])
    return layers.Conv3D(2, 1, dtype="float32", bias_initializer=bias, name="answer")(x)


def twice(
    x, width: int, kernels: tuple[int, int], name: str, *, biased: bool, folded: bool,
    dtype: str | None = None,
):  # fmt: skip
    """Two convolutions, each normalised and cut at 0; of the policy's type without another."""
    for place, kernel in zip(("first", "second"), kernels, strict=True):
        part, bias = f"{name}_{place}", biased or folded
        x = layers.Conv3D(width, kernel, padding="same", use_bias=bias, dtype=dtype, name=part)(x)
        if not folded:
            x = layers.BatchNormalization(momentum=MOMENTUM, dtype=dtype, name=f"{part}_norm")(x)
        x = layers.Activation("relu", dtype=dtype, name=f"{part}_relu")(x)
    return x
