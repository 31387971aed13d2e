"""Teacher and student that classify a patch of 24 voxels as microbleed or mimic.

The teacher learns two things at once, which voxels are microbleed and what the patch is; the
student has the teacher's layers without those for voxels. Layers and widths after Sundaresan et
al. 2023, doi:10.3389/fninf.2023.1204186; nothing is subclassed, so that a saved network needs none
of our code.
"""

from bids_cmb.networks import layers
from bids_cmb.networks.architectures.candidate_detector import (
    MOMENTUM,
    convolve_twice,
    decode,
    encode,
)

PATCH_SIDE_VOXELS = 24  # voxels of a patch, along each axis
# In 16 bits a CPU's gradient of kernels larger than their image is at times NaN
FULL_PRECISION = "float32"


def cdisc_teacher(
    *, width: int = 64, inputs: int = 2, start: float = 0.0, biased: bool = False,
    fused: bool = False,
):  # fmt: skip
    """Build the teacher.

    Args:
        width: Channels of the finest level; published: 64.
        inputs: Channels of the image.
        start: Log-odds that a voxel is microbleed before training.
        biased: As `candidate_detector.cdet`.
        fused: As `candidate_detector.cdet`.

    Returns:
        From (B, 24, 24, 24, inputs) to logits, float32, (B, 24, 24, 24, 4): of no and of a
        microbleed in the voxel, and of no and of a microbleed in the middle of the patch, the
        latter two the same at every voxel.
    """
    image = layers.Input(
        (PATCH_SIDE_VOXELS, PATCH_SIDE_VOXELS, PATCH_SIDE_VOXELS, inputs), name="image"
    )
    bias = {"biased": biased, "fused": fused}
    levels = encode(image, width, **bias)
    kind = layers.Reshape((1, 1, 1, 2), dtype=FULL_PRECISION, name="kind_voxel")(
        _classify(levels[-1], width, **bias)
    )
    everywhere = layers.UpSampling3D(
        PATCH_SIDE_VOXELS, dtype=FULL_PRECISION, name="kind_everywhere"
    )(kind)
    voxels = decode(levels, width, start=start, **bias)
    return layers.Model(
        image, layers.Concatenate(dtype=FULL_PRECISION, name="both")([voxels, everywhere])
    )


def cdisc_student(*, width: int = 64, inputs: int = 2, biased: bool = False, fused: bool = False):
    """Build the student.

    Args:
        width: As `cdisc_teacher`.
        inputs: As `cdisc_teacher`.
        biased: As `candidate_detector.cdet`.
        fused: As `candidate_detector.cdet`.

    Returns:
        From (B, 24, 24, 24, inputs) to logits of no and of a microbleed in the middle of the
        patch, float32, (B, 2).
    """
    image = layers.Input(
        (PATCH_SIDE_VOXELS, PATCH_SIDE_VOXELS, PATCH_SIDE_VOXELS, inputs), name="image"
    )
    bias = {"biased": biased, "fused": fused}
    return layers.Model(image, _classify(encode(image, width, **bias)[-1], width, **bias))


def _classify(x, width: int, *, biased: bool, fused: bool):
    """Classify the whole patch from the coarsest level, (B, 6, 6, 6, 4 width): logits (B, 2)."""
    x = layers.Conv3D(2 * width, 1, use_bias=biased, dtype=FULL_PRECISION, name="kind_entry")(x)
    # Padded after the convolution, and the normalisation stays when others are fused: TensorFlow
    # computes a padding that is followed by a convolution wrongly on CPUs (`networks.loading`).
    x = layers.ZeroPadding3D(1, dtype=FULL_PRECISION, name="kind_pad")(x)
    x = layers.BatchNormalization(momentum=MOMENTUM, dtype=FULL_PRECISION, name="kind_padded")(x)
    x = layers.Activation("relu", dtype=FULL_PRECISION, name="kind_relu")(x)
    for level in range(2):
        x = layers.MaxPooling3D(2, dtype=FULL_PRECISION, name=f"kind{level}_pool")(x)
        bias = {"biased": biased, "fused": fused}
        x = convolve_twice(x, 2 * width, (3, 3), f"kind{level}", dtype=FULL_PRECISION, **bias)
    x = layers.Flatten(dtype=FULL_PRECISION, name="kind_flat")(x)
    x = layers.Dense(2 * width, dtype=FULL_PRECISION, name="kind_wide")(x)
    x = layers.Dense(width // 2, dtype=FULL_PRECISION, name="kind_narrow")(x)
    return layers.Dense(2, dtype=FULL_PRECISION, name="kind")(x)
