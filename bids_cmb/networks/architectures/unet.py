"""3D U-Net whose skips are added, not stacked: a third of the work at the finest level.

The layers and the order of their weights are those that Keras builds; nothing is subclassed, so
that a saved network needs none of our code.
"""

from collections.abc import Sequence

from bids_cmb.networks import layers
from bids_cmb.networks.architectures.blocks import convolve


def unet(
    *, widths: Sequence[int] = (16, 32, 64, 96), inputs: int = 1, outputs: int = 1,
    packed: bool | Sequence[int] = False, flat: int = 0, start: float = 0.0,
    fused: bool = False,
):  # fmt: skip
    """Build the network.

    Args:
        widths: Channels of each level, the finest first.
        inputs: Channels of the image.
        outputs: Channels of the answer.
        packed: Whether the finest level has voxels twice as large as the image: eight times
            less work, and the answer is as fine as the image all the same. Three numbers give
            the factor of each axis: ``(2, 2, 1)`` for slices that are thicker than pixels.
        flat: How many levels, from the finest, look at 3 x 3 x 1 voxels and halve the first two
            axes only: for slices that are thicker than pixels.
        start: Bias of the answer before training.
        fused: Whether the normalisations are left out, their numbers having been taken into the
            convolutions before them, as `networks.builders` does it: for use, not for training.

    Returns:
        From (B, X, Y, Z, inputs) to logits, float32, (B, X, Y, Z, outputs). Each side must be a
        multiple of two to the number of halvings.
    """
    image = layers.Input((None, None, None, inputs), name="image")  # (B, X, Y, Z, inputs)
    kernels = [(3, 3, 1) if level < flat else (3, 3, 3) for level in range(len(widths))]
    steps = [(2, 2, 1) if level < flat else (2, 2, 2) for level in range(len(widths) - 1)]

    pack = (2, 2, 2) if packed is True else tuple(packed or ())
    x = layers.Conv3D(widths[0], pack, strides=pack, name="pack")(image) if pack else image
    skips = []
    for level, (width, kernel) in enumerate(zip(widths, kernels, strict=True)):
        x = _convolve_twice(x, width, kernel, f"down{level}", fused=fused)
        if level < len(steps):
            skips.append(x)
            x = layers.MaxPooling3D(steps[level], name=f"down{level}_pool")(x)
    for level in reversed(range(len(steps))):
        x = convolve(x, widths[level], (1, 1, 1), f"up{level}_narrow", fused=fused)
        x = layers.UpSampling3D(steps[level], name=f"up{level}_wide")(x)
        x = layers.Add(name=f"up{level}_skip")([x, skips[level]])
        x = _convolve_twice(x, widths[level], kernels[level], f"up{level}", fused=fused)
    bias = layers.Constant(start)
    last = {"dtype": "float32", "bias_initializer": bias, "name": "answer"}
    if pack:
        return layers.Model(image, layers.Conv3DTranspose(outputs, pack, strides=pack, **last)(x))
    return layers.Model(image, layers.Conv3D(outputs, 1, **last)(x))


def _convolve_twice(x, width: int, kernel: Sequence[int], name: str, *, fused: bool):
    x = convolve(x, width, kernel, f"{name}_first", fused=fused)
    return convolve(x, width, kernel, f"{name}_second", fused=fused)
