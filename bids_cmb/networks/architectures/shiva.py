"""The U-Net of SHIVA-CMB's first release, as Keras layers.

Its name, Unet3Dv2-10.7.2-1.8, says the widths: 10 at the finest of 7 levels with 2 convolutions
each, 1.8 times wider from level to level. Layers and their order after the public
re-implementation of its sister networks in ANTsPyNet. For pictures of the network and for tests;
`networks.external.tiled_unet` computes the same three times faster.
"""

from collections.abc import Sequence

from bids_cmb.networks import layers
from bids_cmb.networks.architectures.blocks import convolve

KIND = {"activation": "silu", "momentum": 0.99}  # of its convolutions; Keras' momentum


def shiva(
    *, widths: Sequence[int], shape: tuple[int, int, int] = (160, 214, 176), last: int = 10,
    fused: bool = False,
):  # fmt: skip
    """Build the network.

    Args:
        widths: Channels of each level, the finest first.
        shape: Voxels of the image; each side at least two to the number of levels.
        last: Channels of the two convolutions after the last level.
        fused: Whether the normalisations are left out, their numbers having been taken into the
            convolutions before them.

    Returns:
        From (B, X, Y, Z, 1) to logits, float32, (B, X, Y, Z, 1).
    """
    image = layers.Input((*shape, 1), name="image")
    x, skips = image, []
    for level, width in enumerate(widths):
        x = convolve(x, width, 3, f"down{level}_first", fused=fused, **KIND)
        x = convolve(x, width, 3, f"down{level}_second", fused=fused, **KIND)
        skips.append(x)
        x = layers.MaxPooling3D(2, name=f"down{level}_pool")(x)
    for level in reversed(range(len(widths))):
        x = layers.UpSampling3D(2, name=f"up{level}_wide")(x)
        sides = zip(skips[level].shape[1:4], x.shape[1:4], strict=True)
        short = [full - part for full, part in sides]
        if any(short):  # halving an odd number of voxels lost the last one: it comes back as zero
            x = layers.ZeroPadding3D([(0, gap) for gap in short], name=f"up{level}_pad")(x)
        x = layers.Concatenate(name=f"up{level}_both")([x, skips[level]])
        x = convolve(x, x.shape[-1], 3, f"up{level}_first", fused=fused, **KIND)
        x = convolve(x, widths[level], 3, f"up{level}_second", fused=fused, **KIND)
    x = convolve(x, last, 3, "last_first", fused=fused, **KIND)
    x = convolve(x, last, 3, "last_second", fused=fused, **KIND)
    return layers.Model(image, layers.Conv3D(1, 1, dtype="float32", name="answer")(x))
