"""A U-Net of SHIVA's kind computed in stages: the same numbers, a third of the work and memory.

Three quarters of its arithmetic lies in the decoder's two finest levels. There

- only the voxels about the brain are computed, slab by slab: what lies further off cannot reach
  them through the few convolutions that are left, and would be set to 0 anyway;
- a convolution of an image that was only just doubled by repeating its voxels is one transposed
  convolution of the coarse image with a 4 x 4 x 4 kernel: 8 products per voxel instead of 27;
- stacking two images and convolving them is convolving each and adding.

Normalisations have been taken into the convolutions (`networks.folded`). All this is exact but for
rounding. Nothing is padded right before a convolution: TensorFlow computes that wrongly on CPUs.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from scipy import ndimage

SLAB = 32  # voxels along the first axis that are computed at a time
IN_SLABS = 2  # levels, from the finest, that are
DOUBLED = 3  # levels, from the finest, whose doubling is a transposed convolution
HALO_DOWN = 2  # voxels by which two convolutions of 3 look beyond a slab
LAST = 10  # channels of the two convolutions after the finest level
Array = np.ndarray


def convolutions(widths: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """The convolutions of the network, in the order of its layers.

    Args:
        widths: Channels of each level, the finest first.

    Returns:
        Shape of each kernel, (3, 3, 3, in, out), under the names of `models.shiva`.
    """
    sizes, before = {}, 1
    for level, width in enumerate(widths):
        sizes |= {f"down{level}_first": (before, width), f"down{level}_second": (width, width)}
        before = width
    for level in reversed(range(len(widths))):
        both = before + widths[level]
        sizes |= {f"up{level}_first": (both, both), f"up{level}_second": (both, widths[level])}
        before = widths[level]
    sizes |= {"last_first": (before, LAST), "last_second": (LAST, LAST)}
    return {name: (3, 3, 3, *size) for name, size in sizes.items()} | {"answer": (1, 1, 1, LAST, 1)}


def staged(
    tf, arrays: Mapping[str, Array], levels: int, *, mixed: bool = False
) -> Callable[[Array, Array | None], Array]:
    """Make the function that asks the network.

    Args:
        tf: TensorFlow.
        arrays: Kernels and biases under the names of `models.shiva`, folded.
        levels: Of the network; at least 3.
        mixed: Whether to compute in 16 bits (bfloat16).

    Returns:
        ``(image, where) → probability``: float32 (X, Y, Z), and True where the probability is
        wanted, or None for everywhere; it is 0 elsewhere.
    """
    kind = tf.bfloat16 if mixed else tf.float32
    held = {name: tf.constant(array, kind) for name, array in split(arrays, levels).items()}
    stages = _Stages(tf, held, levels)

    def run(image: Array, where: Array | None) -> Array:
        wanted = np.ones(image.shape, bool) if where is None else where
        x, skips = image[..., None], []
        for level in range(IN_SLABS):
            skip, x = _down(stages.down[level], x)
            skips.append(skip)
        x = stages.deep(x[None]).numpy()[0]
        for level in reversed(range(IN_SLABS)):
            x = _up(stages.up[level], _grown(x, skips[level].shape), skips.pop(), wanted, level)
        return x[..., 0]

    return run


def split(arrays: Mapping[str, Array], levels: int) -> dict[str, Array]:
    """The kernels as the stages want them: the first of each decoder level in two.

    Args:
        arrays: Kernels and biases under the names of `models.shiva`, folded.
        levels: Of the network.

    Returns:
        The same, but ``up<level>_first/kernel`` has become ``up<level>_coarse``, for what comes
        from the coarser level, and ``up<level>_skip``.
    """
    made = {name: np.asarray(array, np.float32) for name, array in arrays.items()}
    for level in range(levels):
        kernel = made.pop(f"up{level}_first/kernel")  # (3, 3, 3, coarse + skip, out)
        coarse = kernel.shape[3] - made[f"down{level}_second/bias"].size
        first = kernel[..., :coarse, :]
        made[f"up{level}_coarse"] = doubling(first) if level < DOUBLED else first
        made[f"up{level}_skip"] = kernel[..., coarse:, :]
    return {name: np.ascontiguousarray(array) for name, array in made.items()}


def doubling(kernel: Array) -> Array:
    """The kernel of a transposed convolution that doubles an image and convolves it.

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


class _Stages:
    """The network in pieces, each a graph that takes images of any size.

    Attributes:
        down: For each level in slabs: image → (skip, halved image).
        deep: From the first halved image that is computed whole to what comes back up.
        up: For each level in slabs: (coarse image, skip) → image; probabilities at the finest.
    """

    def __init__(self, tf, held: Mapping, levels: int):
        self.tf, self.held, self.levels = tf, held, levels
        self.down = [self._graph(self._down, level, self._inputs(level)) for level in _slabbed()]
        self.up = [
            self._graph(self._up, level, self._outputs(level + 1), self._outputs(level))
            for level in _slabbed()
        ]
        self.deep = self._graph(self._deep, IN_SLABS, self._inputs(IN_SLABS))

    def _graph(self, stage: Callable, level: int, *channels: int):
        shapes = [self.tf.TensorSpec((1, None, None, None, count)) for count in channels]
        kind = self.held["answer/kernel"].dtype

        def run(*images):
            found = stage(level, *(self.tf.cast(image, kind) for image in images))
            return self.tf.nest.map_structure(lambda one: self.tf.cast(one, self.tf.float32), found)

        return self.tf.function(run, input_signature=shapes, autograph=False)

    def _inputs(self, level: int) -> int:
        return self._outputs(level - 1) if level else 1

    def _outputs(self, level: int) -> int:
        return self.held[f"down{level}_second/bias"].shape[0]

    def _down(self, level: int, x):
        x = self._convolved(self._convolved(x, f"down{level}_first"), f"down{level}_second")
        return x, self.tf.nn.max_pool3d(x, 2, 2, "VALID")

    def _up(self, level: int, x, skip):
        first = self._doubled(level, x, self.tf.shape(skip)[1:4])
        first += self._plain(skip, f"up{level}_skip")
        x = self._ended(first, f"up{level}_first/bias")
        x = self._convolved(x, f"up{level}_second")
        if level > 0:
            return x
        x = self._convolved(self._convolved(x, "last_first"), "last_second")
        logits = self.tf.nn.bias_add(self._plain(x, "answer/kernel"), self.held["answer/bias"])
        return self.tf.sigmoid(logits)

    def _deep(self, level: int, x):
        tf, skips = self.tf, []
        for at in range(level, self.levels):
            skip, x = self._down(at, x)
            skips.append(skip)
        for at in reversed(range(level, self.levels)):
            skip = skips.pop()
            short = tf.reshape(tf.shape(skip)[1:4] - 2 * tf.shape(x)[1:4], (3, 1))
            x = tf.pad(x, tf.pad(short, [[1, 1], [1, 0]]))
            x = self._up(at, x, skip)
        return x

    def _doubled(self, level: int, x, size):
        tf, kernel = self.tf, self.held[f"up{level}_coarse"]
        if level < DOUBLED:
            shape = tf.concat([[1], 2 * tf.shape(x)[1:4], [kernel.shape[3]]], 0)
            made = tf.nn.conv3d_transpose(x, kernel, shape, 2, "SAME")
            return made[:, : size[0], : size[1], : size[2]]
        for axis in (1, 2, 3):
            x = tf.repeat(x, 2, axis)
        return self._plain(x[:, : size[0], : size[1], : size[2]], f"up{level}_coarse")

    def _plain(self, x, name: str):
        return self.tf.nn.conv3d(x, self.held[name], [1] * 5, "SAME")

    def _ended(self, x, name: str):
        return self.tf.nn.silu(self.tf.nn.bias_add(x, self.held[name]))

    def _convolved(self, x, name: str):
        return self._ended(self._plain(x, f"{name}/kernel"), f"{name}/bias")


def _slabbed() -> range:
    return range(IN_SLABS)


def _down(stage: Callable, x: Array) -> tuple[Array, Array]:
    """A level of the encoder, slab by slab: (X, Y, Z, C) → skip, and the image halved."""
    skip = halved = None
    for start, end in _cuts(x.shape[0]):
        low, high = max(0, start - HALO_DOWN), min(x.shape[0], end + HALO_DOWN)
        found, pooled = (part.numpy()[0] for part in stage(x[None, low:high]))
        if skip is None:
            skip = np.empty((*x.shape[:3], found.shape[-1]), np.float32)
            halved = np.empty((*(side // 2 for side in x.shape[:3]), found.shape[-1]), np.float32)
        skip[start:end] = found[start - low : end - low]
        kept = pooled[(start - low) // 2 :]
        halved[start // 2 : end // 2] = kept[: end // 2 - start // 2]
    return skip, halved


def _up(stage: Callable, x: Array, skip: Array, wanted: Array, level: int) -> Array:
    """A level of the decoder where it is wanted: (X/2, Y/2, Z/2, C), skip → (X, Y, Z, C)."""
    needed, halo = _needed(wanted, level, skip.shape[:3]), 2 if level else 4
    out = None
    for first, end in _boxes(needed):
        low = np.maximum(first - halo, 0) // 2 * 2
        high = np.minimum(-(-(end + halo) // 2) * 2, skip.shape[:3])
        found = stage(x[_box(low // 2, -(-high // 2))][None], skip[_box(low, high)][None])
        found = found.numpy()[0]
        if out is None:
            out = np.zeros((*skip.shape[:3], found.shape[-1]), np.float32)
        out[_box(first, end)] = found[_box(first - low, end - low)]
    return np.zeros((*skip.shape[:3], 1), np.float32) if out is None else out


def _needed(wanted: Array, level: int, shape: tuple[int, ...]) -> Array:
    """The voxels of a level that can reach what is wanted at the finest one."""
    if level == 0:
        return wanted
    step = 2**level
    sides = np.array(shape) * step
    padded = np.pad(wanted, [(0, max(0, int(n - m))) for n, m in zip(sides, wanted.shape)])  # noqa: B905
    padded = padded[: sides[0], : sides[1], : sides[2]]
    blocks = padded.reshape(shape[0], step, shape[1], step, shape[2], step)
    reach = np.ones((3, 3, 3), bool)
    # Four convolutions reach 4 voxels, two of these; one more for the doubling, one for odd sides.
    return ndimage.binary_dilation(blocks.any(axis=(1, 3, 5)), reach, iterations=4)


def _boxes(needed: Array) -> Iterator[tuple[Array, Array]]:
    """First voxel of, and end beyond, the box about what is needed in each slab."""
    for start, end in _cuts(needed.shape[0]):
        spots = np.argwhere(needed[start:end])
        if len(spots):
            shift = np.array([start, 0, 0])
            yield spots.min(axis=0) + shift, spots.max(axis=0) + 1 + shift


def _cuts(length: int) -> Iterator[tuple[int, int]]:
    for start in range(0, length, SLAB):
        yield start, min(start + SLAB, length)


def _box(first: Array, end: Array) -> tuple[slice, ...]:
    return tuple(slice(int(low), int(high)) for low, high in zip(first, end, strict=True))


def _grown(x: Array, shape: tuple[int, ...]) -> Array:
    """A coarse image with a zero voxel more where the finer one has an odd side."""
    short = [-(-side // 2) - size for side, size in zip(shape[:3], x.shape[:3], strict=True)]
    return np.pad(x, [*((0, gap) for gap in short), (0, 0)]) if any(short) else x
