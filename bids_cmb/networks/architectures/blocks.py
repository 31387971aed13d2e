"""The block that architectures are made of: a convolution, its normalisation, its activation."""

from collections.abc import Sequence

from bids_cmb.networks import layers


def convolve(  # noqa: PLR0913
    x, width: int, kernel: int | Sequence[int], name: str, *, fused: bool, strides=1,
    activation: str | None = "relu", momentum: float = 0.98, initializer: str = "glorot_uniform",
):  # fmt: skip
    """Convolve slices (B, X, Y, C) or volumes (B, X, Y, Z, C), normalise and activate.

    Args:
        x: What to convolve.
        width: Channels of the output.
        kernel: Size of the kernel.
        name: Of the convolution; its normalisation is ``<name>_norm``.
        fused: Whether the normalisation is left out, its numbers having been fused into the
            convolution (`networks.builders.fuse_batchnorm`): for use, not for training.
        strides: Of the convolution.
        activation: After the normalisation; None for none.
        momentum: Of the normalisation.
        initializer: Of the kernel.
    """
    convolution = layers.Conv3D if len(x.shape) == 5 else layers.Conv2D
    x = convolution(
        width, kernel, strides=strides, padding="same", use_bias=fused,
        kernel_initializer=initializer, name=name,
    )(x)  # fmt: skip
    if not fused:
        x = layers.BatchNormalization(momentum=momentum, name=f"{name}_norm")(x)
    return layers.Activation(activation, name=f"{name}_{activation}")(x) if activation else x
