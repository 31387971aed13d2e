"""A U-Net of SHIVA's kind computed in stages: the same numbers, a third of the work and memory.

Three quarters of its arithmetic lies in the decoder's two finest levels. There

- only the voxels about the brain are computed, tile by tile (`networks.external.tiling`): what lies
  further off cannot reach them through the few convolutions that are left, and would be set to 0
  anyway. Each convolution keeps only what the next ones will look at;
- a convolution of an image that was only just doubled by repeating its voxels is one transposed
  convolution of the coarse image with a 4 x 4 x 4 kernel: 8 products per voxel instead of 27;
- stacking two images and convolving them is convolving each and adding.

Normalisations have been fused into the convolutions (`networks.builders.fuse_batchnorm`). All this
is exact but for rounding. Nothing is padded right before a convolution: TensorFlow computes that
wrongly on CPUs.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np

from bids_cmb.networks.external.tiling import (
    N_TILED_LEVELS,
    Array,
    LevelPlan,
    box_slices,
    plan_levels,
)

SLAB_VOXELS = 32  # voxels along the first axis that are encoded at a time
N_TRANSPOSED_LEVELS = 3  # levels, from the finest, whose doubling is a transposed convolution
ENCODER_HALO = 2  # voxels by which the encoder's two convolutions of 3 look beyond a slab
LAST_CHANNELS = 10  # channels of the two convolutions after the finest level


def list_kernels(widths: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """List the kernels of the network, in the order of its layers.

    Args:
        widths: Channels of each level, the finest first.

    Returns:
        Shape of each kernel, (3, 3, 3, in, out), under the names of `networks.architectures.shiva`.
    """
    sizes, before = {}, 1
    for level, width in enumerate(widths):
        sizes |= {f"down{level}_first": (before, width), f"down{level}_second": (width, width)}
        before = width
    for level in reversed(range(len(widths))):
        both = before + widths[level]
        sizes |= {f"up{level}_first": (both, both), f"up{level}_second": (both, widths[level])}
        before = widths[level]
    sizes |= {"last_first": (before, LAST_CHANNELS), "last_second": (LAST_CHANNELS, LAST_CHANNELS)}
    return {name: (3, 3, 3, *size) for name, size in sizes.items()} | {
        "answer": (1, 1, 1, LAST_CHANNELS, 1)
    }


def build_tiled_unet(
    tf, arrays: Mapping[str, Array], widths: Sequence[int], *, mixed: bool = False
) -> Callable[[Array, Array | None], Array]:
    """Build the function that predicts.

    Args:
        tf: TensorFlow.
        arrays: Kernels and biases under the names of `networks.architectures.shiva`, fused.
        widths: Channels of each level, the finest first; at least three levels.
        mixed: Whether to compute in 16 bits (bfloat16).

    Returns:
        ``(image, where) → probability``: float32 (X, Y, Z), and True where the probability is
        wanted, or None for everywhere; it is 0 elsewhere.
    """
    stages = _build_stages(tf, tuple(widths), mixed)
    held = {
        name: tf.constant(array, stages.kind)
        for name, array in split_kernels(arrays, widths).items()
    }

    def run(image: Array, where: Array | None) -> Array:
        wanted = np.ones(image.shape, bool) if where is None else where
        if not wanted.any():
            return np.zeros(image.shape, np.float32)
        x, skips = image[..., None], []
        plans = plan_levels(np.packbits(wanted).tobytes(), wanted.shape)
        for level, plan in enumerate(plans):
            skip, x = _encode(partial(stages.down, level, held), x, plan)
            skips.append(skip)
        x = np.asarray(stages.deep(held, x[None]))[0]
        for level, plan in reversed(list(enumerate(plans))):
            x = _pad_to_even(x, plan.shape)
            x = _decode(partial(stages.up, level, held), x, skips.pop(), plan)
        return x[..., 0]

    return run


def split_kernels(arrays: Mapping[str, Array], widths: Sequence[int]) -> dict[str, Array]:
    """Split the first kernel of each decoder level in two, as the stages need it.

    Args:
        arrays: Kernels and biases under the names of `networks.architectures.shiva`, fused.
        widths: Channels of each level, the finest first.

    Returns:
        The same, but ``up<level>_first/kernel`` has become ``up<level>_coarse``, for what comes
        from the coarser level, and ``up<level>_skip``.
    """
    made = {name: np.asarray(array, np.float32) for name, array in arrays.items()}
    for level, width in enumerate(widths):
        kernel = made.pop(f"up{level}_first/kernel")  # (3, 3, 3, coarse + skip, out)
        coarse = kernel.shape[3] - width
        first = kernel[..., :coarse, :]
        made[f"up{level}_coarse"] = (
            make_doubling_kernel(first) if level < N_TRANSPOSED_LEVELS else first
        )
        made[f"up{level}_skip"] = kernel[..., coarse:, :]
    return {name: np.ascontiguousarray(array) for name, array in made.items()}


def make_doubling_kernel(kernel: Array) -> Array:
    """Make the kernel of a transposed convolution that doubles an image and convolves it.

    Args:
        kernel: (3, 3, 3, in, out).

    Returns:
        (4, 4, 4, out, in), for strides of 2: along each axis a voxel of the coarse image is seen
        twice by the middle of the kernel and once or twice by its ends.
    """
    for axis in range(3):
        before, middle, after = np.moveaxis(kernel, axis, 0)
        kernel = np.stack([after, middle + after, before + middle, before], axis)
    return np.swapaxes(kernel, 3, 4)


@lru_cache(maxsize=8)
def _build_stages(tf, widths: tuple[int, ...], mixed: bool) -> "_Stages":  # noqa: FBT001 a key
    return _Stages(tf, widths, tf.bfloat16 if mixed else tf.float32)


class _Stages:
    """The network in pieces, each a graph for images of any size and for the weights of any fold.

    Attributes:
        kind: TensorFlow's type of the weights, in which the stages compute.
    """

    def __init__(self, tf, widths: tuple[int, ...], kind):
        self.tf, self.widths, self.kind = tf, widths, kind
        empty = {
            f"{name}/{part}": np.broadcast_to(
                np.float32(0), shape if part == "kernel" else shape[-1:]
            )
            for name, shape in list_kernels(widths).items()
            for part in ("kernel", "bias")
        }
        self.shapes = {name: array.shape for name, array in split_kernels(empty, widths).items()}
        self._graphs: dict[str, Callable] = {}

    def down(self, level: int, held: Mapping, image: Array) -> tuple[Array, Array]:
        """Encode a level: (X, Y, Z, C) → the skip, and the image halved."""
        channels = self.widths[level - 1] if level else 1
        graph = self._graph(f"down{level}", (f"down{level}_",), self._down, level, channels)
        return tuple(np.asarray(part)[0] for part in graph(held, image[None]))  # not copied

    def deep(self, held: Mapping, image: Array):
        """Compute the levels below the tiles, from the first halved image to what comes back up."""
        levels = range(N_TILED_LEVELS, len(self.widths))
        names = tuple(f"{way}{level}_" for level in levels for way in ("down", "up"))
        return self._graph("deep", names, self._deep, None, self.widths[N_TILED_LEVELS - 1])(
            held, image
        )

    def up(self, level: int, held: Mapping, coarse: Array, skip: Array, *, whole: bool) -> Array:
        """Decode a level: coarse image and skip → image; probabilities at the finest level.

        What has no neighbours on all sides is left out, `DECODER_HALO` voxels of each side, unless
        the ``whole`` is wanted: then 0 is beyond, as it is at the border of the scan.
        """
        names = (f"up{level}_", *(() if level else ("last_", "answer/")))
        channels = self.widths[level + 1], self.widths[level]
        kind, stage = ("whole", self._up) if whole else ("within", self._up_within)
        graph = self._graph(f"up{level} {kind}", names, stage, level, *channels)
        return np.asarray(graph(held, coarse[None], skip[None]))[0]

    def _graph(self, key: str, names: tuple, stage: Callable, level: int | None, *channels: int):
        """Compile a stage, once; it is given the weights whose names begin so."""
        tf = self.tf
        wanted = [name for name in self.shapes if name.startswith(names)]
        if key not in self._graphs:
            weights = {name: tf.TensorSpec(self.shapes[name], self.kind) for name in wanted}
            images = [tf.TensorSpec((1, None, None, None, count)) for count in channels]

            def run(held, *images):
                outputs = stage(level, held, *(tf.cast(image, self.kind) for image in images))
                return tf.nest.map_structure(lambda tensor: tf.cast(tensor, tf.float32), outputs)

            self._graphs[key] = tf.function(
                run, input_signature=[weights, *images], autograph=False
            )
        graph = self._graphs[key]
        return lambda held, *images: graph({name: held[name] for name in wanted}, *images)

    def _down(self, level: int, held: Mapping, x):
        x = self._convolved(held, x, f"down{level}_first")
        x = self._convolved(held, x, f"down{level}_second")
        return x, self.tf.nn.max_pool3d(x, 2, 2, "VALID")

    def _up_within(self, level: int, held: Mapping, x, skip):
        return self._up(level, held, x, skip, "VALID")

    def _up(self, level: int, held: Mapping, x, skip, padding: str = "SAME"):
        tf = self.tf
        x = self._doubled(level, held, x, tf.shape(skip)[1:4])
        if padding == "VALID":
            x = x[:, 1:-1, 1:-1, 1:-1]
        of_skip = tf.nn.conv3d(skip, held[f"up{level}_skip"], [1] * 5, padding)
        x = tf.nn.silu(x + tf.nn.bias_add(of_skip, held[f"up{level}_first/bias"]))
        x = self._convolved(held, x, f"up{level}_second", padding)
        if level > 0:
            return x
        x = self._convolved(held, x, "last_first", padding)
        x = self._convolved(held, x, "last_second", padding)
        logits = tf.nn.conv3d(x, held["answer/kernel"], [1] * 5, "SAME")
        return tf.sigmoid(tf.nn.bias_add(logits, held["answer/bias"]))

    def _deep(self, _: None, held: Mapping, x):
        tf, skips, levels = self.tf, [], range(N_TILED_LEVELS, len(self.widths))
        for level in levels:
            skip, x = self._down(level, held, x)
            skips.append(skip)
        for level in reversed(levels):
            skip = skips.pop()
            short = tf.reshape(tf.shape(skip)[1:4] - 2 * tf.shape(x)[1:4], (3, 1))
            x = tf.pad(x, tf.pad(short, [[1, 1], [1, 0]]))
            x = self._up(level, held, x, skip)
        return x

    def _doubled(self, level: int, held: Mapping, x, size):
        """Double the image, crop it to ``size`` and convolve it."""
        tf, kernel = self.tf, held[f"up{level}_coarse"]
        if level < N_TRANSPOSED_LEVELS:
            shape = tf.concat([[1], 2 * tf.shape(x)[1:4], [kernel.shape[3]]], 0)
            made = tf.nn.conv3d_transpose(x, kernel, shape, 2, "SAME")
            return made[:, : size[0], : size[1], : size[2]]
        for axis in (1, 2, 3):
            x = tf.repeat(x, 2, axis)
        return tf.nn.conv3d(x[:, : size[0], : size[1], : size[2]], kernel, [1] * 5, "SAME")

    def _convolved(self, held: Mapping, x, name: str, padding: str = "SAME"):
        x = self.tf.nn.conv3d(x, held[f"{name}/kernel"], [1] * 5, padding)
        return self.tf.nn.silu(self.tf.nn.bias_add(x, held[f"{name}/bias"]))


@dataclass(frozen=True, eq=False)
class _Part:
    """A box of a larger array, (X, Y, Z, C), and where it begins."""

    data: Array
    first: Array

    def cut(self, low: Array, high: Array) -> Array:
        """Cut the part from ``low`` to ``high``, in voxels of the larger array."""
        return self.data[box_slices(low - self.first, high - self.first)]


def _encode(stage: Callable, x: Array, plan: LevelPlan) -> tuple[_Part, Array]:
    """Encode a level slab by slab.

    Args:
        stage: The network's.
        x: (X, Y, Z, C).
        plan: Of the level's decoder.

    Returns:
        The skip where the decoder will need it, and the whole image halved.
    """
    first = np.min([low for low, _ in plan.tiles], axis=0)
    first = np.maximum(first - plan.halo, 0) // 2 * 2
    end = np.max([high for _, high in plan.tiles], axis=0)
    end = np.minimum(end + 1 + plan.halo, plan.shape)
    skip = halved = None
    for start in range(0, x.shape[0], SLAB_VOXELS):
        stop = min(start + SLAB_VOXELS, x.shape[0])
        low, high = max(0, start - ENCODER_HALO), min(x.shape[0], stop + ENCODER_HALO)
        encoded, pooled = stage(x[low:high])
        if skip is None:
            skip = np.empty((*(end - first), encoded.shape[-1]), np.float32)
            halved = np.empty((*(side // 2 for side in x.shape[:3]), encoded.shape[-1]), np.float32)
        halved[start // 2 : stop // 2] = pooled[(start - low) // 2 :][: stop // 2 - start // 2]
        begin, until = max(start, first[0]), min(stop, end[0])
        if begin < until:
            kept = encoded[begin - low : until - low, first[1] : end[1], first[2] : end[2]]
            skip[begin - first[0] : until - first[0]] = kept
    return _Part(skip, first), halved


def _decode(stage: Callable, x: Array, skip: _Part, plan: LevelPlan) -> Array:
    """Decode a level where it is needed: (X/2, Y/2, Z/2, C) and skip → (X, Y, Z, C)."""
    out, halo = None, plan.halo
    for first, end in plan.tiles:
        low, high = (first - halo) // 2 * 2, -(-(end + halo) // 2) * 2
        whole = bool((low < 0).any() or (high > plan.shape).any())  # it is at the border
        low, high = np.maximum(low, 0), np.minimum(high, plan.shape)
        decoded = stage(x[box_slices(low // 2, -(-high // 2))], skip.cut(low, high), whole=whole)
        if out is None:
            out = np.zeros((*plan.shape, decoded.shape[-1]), np.float32)
        begin = low if whole else low + halo
        out[box_slices(first, end)] = decoded[box_slices(first - begin, end - begin)]
    return out


def _pad_to_even(x: Array, shape: tuple[int, ...]) -> Array:
    """Pad a coarse image by a zero voxel where the finer one has an odd side."""
    short = [-(-side // 2) - size for side, size in zip(shape[:3], x.shape[:3], strict=True)]
    return np.pad(x, [*((0, gap) for gap in short), (0, 0)]) if any(short) else x
