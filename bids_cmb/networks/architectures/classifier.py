"""Classifier of the dark spot in the middle of a patch: microbleed or not."""

from collections.abc import Sequence

from bids_cmb.networks import layers
from bids_cmb.networks.architectures.blocks import convolve


def classifier(  # noqa: PLR0913
    *, shape: tuple[int, int, int] = (40, 40, 9), inputs: int = 3, places: int = 32,
    widths: Sequence[int] = (24, 48, 96), place: Sequence[int] = (32, 32), dense: int = 64,
    dropout: float = 0.3, start: float = 0.0, fused: bool = False,
):  # fmt: skip
    """Build the network.

    Args:
        shape: Voxels of a patch, slices last.
        inputs: Channels of a patch.
        places: Numbers that tell where the patch lies.
        widths: Channels of each level. The first has pixels twice as large as the patch, each
            further one twice as large again; slices are joined from the third level on.
        place: Numbers of the layers that see only the place.
        dense: Numbers of the layer that sees all.
        dropout: Share of what it sees that is left out in training.
        start: Bias of the answer before training.
        fused: Whether the normalisations are left out, their numbers having been taken into the
            convolutions before them: for use, not for training.

    Returns:
        From [patches (B, X, Y, Z, inputs), places (B, places)] to logits, float32, (B, 1).
    """
    patch = layers.Input((*shape, inputs), name="patch")
    where = layers.Input((places,), name="place")
    x = convolve(patch, widths[0], (2, 2, 1), "pack", fused=fused, strides=(2, 2, 1))
    for level, width in enumerate(widths):
        x = convolve(x, width, (3, 3, 3), f"level{level}_first", fused=fused)
        x = convolve(x, width, (3, 3, 3), f"level{level}_second", fused=fused)
        if level < len(widths) - 1:
            step = (2, 2, 1) if level == 0 else (2, 2, 2)
            x = layers.MaxPooling3D(step, padding="same", name=f"level{level}_pool")(x)
    sides = [(side // 2, side - side // 2 - 1) for side in x.shape[1:4]]
    middle = layers.Flatten(name="middle")(layers.Cropping3D(sides, name="crop")(x))
    pooled = [
        middle,
        layers.GlobalAveragePooling3D(name="mean")(x),
        layers.GlobalMaxPooling3D(name="highest")(x),
    ]
    located = where
    for turn, width in enumerate(place):
        located = layers.Dense(width, activation="relu", name=f"place{turn}")(located)
    x = layers.Concatenate(name="all")([*pooled, located])
    if not fused:
        x = layers.Dropout(dropout, name="dropout")(x)
    x = layers.Dense(dense, activation="relu", name="dense")(x)
    bias = layers.Constant(start)
    last = layers.Dense(1, dtype="float32", bias_initializer=bias, name="answer")
    return layers.Model([patch, where], last(x))
