"""The candidate detector CDet: a sensitive 3D U-Net of three levels.

Layers and widths after Sundaresan et al. 2023, doi:10.3389/fninf.2023.1204186; nothing is
subclassed, so that a saved network needs none of our code.
"""

from bids_cmb.networks import layers

ENTRY_CHANNELS = 3  # channels that image and symmetry are mixed into
MOMENTUM = 0.9  # of what normalisations remember: trainings of few hundred steps must forget 1


def cdet(
    *, width: int = 64, inputs: int = 2, start: float = 0.0, biased: bool = False,
    fused: bool = False,
):  # fmt: skip
    """Build the network.

    Args:
        width: Channels of the finest level; published: 64.
        inputs: Channels of the image.
        start: Log-odds of a microbleed before training.
        biased: Whether convolutions have a bias although a normalisation follows, which takes it
            away again: so the published ones do, and their parameters are counted.
        fused: Whether the normalisations are left out, their numbers having been fused into the
            convolutions before them, as `networks.builders.fuse_batchnorm` does it: for use, not
            for training.

    Returns:
        From (B, X, Y, Z, inputs) to logits of no and of a microbleed, float32, (B, X, Y, Z, 2).
        Each side must be a multiple of 4.
    """
    image = layers.Input((None, None, None, inputs), name="image")  # (B, X, Y, Z, inputs)
    bias = {"biased": biased, "fused": fused}
    levels = encode(image, width, **bias)
    return layers.Model(image, decode(levels, width, start=start, **bias))


def encode(image, width: int, *, biased: bool, fused: bool) -> list:
    """Encode an image; the features of each level, the finest first: 1, 2 and 4 times ``width``."""
    x = layers.Conv3D(ENTRY_CHANNELS, 1, name="entry")(image)
    levels = []
    for level in range(3):
        x = layers.MaxPooling3D(2, name=f"down{level}_pool")(x) if level else x
        x = convolve_twice(x, width * 2**level, (3, 1), f"down{level}", biased=biased, fused=fused)
        levels.append(x)
    return levels


def decode(levels: list, width: int, *, start: float, biased: bool, fused: bool):
    """Decode to logits of no and of a microbleed for each voxel of the finest level, float32."""
    *skips, x = levels
    for level in (1, 0):
        wide = layers.Conv3DTranspose(
            width * 2**level, 3, strides=2, padding="same", name=f"up{level}_wide"
        )(x)
        x = layers.Concatenate(name=f"up{level}_both")([skips[level], wide])
        x = convolve_twice(x, width * 2**level, (3, 1), f"up{level}", biased=biased, fused=fused)
    bias = layers.Constant([-start / 2, start / 2])
    return layers.Conv3D(2, 1, dtype="float32", bias_initializer=bias, name="answer")(x)


def convolve_twice(
    x, width: int, kernels: tuple[int, int], name: str, *, biased: bool, fused: bool,
    dtype: str | None = None,
):  # fmt: skip
    """Convolve twice, each normalised and rectified; of the policy's type without another."""
    for place, kernel in zip(("first", "second"), kernels, strict=True):
        part, bias = f"{name}_{place}", biased or fused
        x = layers.Conv3D(width, kernel, padding="same", use_bias=bias, dtype=dtype, name=part)(x)
        if not fused:
            x = layers.BatchNormalization(momentum=MOMENTUM, dtype=dtype, name=f"{part}_norm")(x)
        x = layers.Activation("relu", dtype=dtype, name=f"{part}_relu")(x)
    return x
