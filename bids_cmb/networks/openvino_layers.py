"""The layers that our architectures use, under Keras' names, as operations of OpenVINO.

Images are channels first, as OpenVINO computes them; the shapes that an architecture sees are
channels last, as Keras has them. Paddings are those of TensorFlow. For use only: what matters in
training, such as an initialiser or a dropout, is ignored.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bids_cmb.networks.backend import get_openvino

NORM_EPSILON = 1e-3  # Keras' default


@dataclass(frozen=True, eq=False)
class Tensor:
    """What a layer returns.

    Attributes:
        output: Of an operation: (B, C, ...) of images, (B, N) else.
        shape: Channels last; None where a side is not known before the image is.
    """

    output: object
    shape: tuple[int | None, ...]


Layer = Callable[[Tensor], Tensor]


class OpenVinoLayers:
    """Layers that take their weights from arrays as they are made.

    What is missing or has another shape is made of zeros, for `builders.check_fit` to find.

    Attributes:
        shapes: Of the arrays that the layers made so far need, by name.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray]):
        """Begin with arrays by name, ``<layer>/kernel`` and the like, as Keras names them."""
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._arrays = arrays
        self._ops = get_openvino().opset13

    # ---- what holds a network together

    def Input(self, shape: Sequence[int | None], name: str) -> Tensor:  # noqa: N802
        """Make an input of a batch of one or more, channels last."""
        ov, ops = get_openvino(), self._ops
        sides = [-1 if side is None else side for side in shape]
        parameter = ops.parameter([-1, *sides], ov.Type.f32, name=name)
        output = parameter.output(0)
        return Tensor(_to_channels_first(ops, output, len(shape) + 1), (None, *shape))

    def Model(self, inputs: Tensor | Sequence[Tensor], output: Tensor):  # noqa: N802
        """Make the model, channels last at either end."""
        inputs = inputs if isinstance(inputs, list) else [inputs]
        parameters = [_find_parameter(tensor.output) for tensor in inputs]
        last = _to_channels_last(self._ops, output.output, len(output.shape))
        return get_openvino().Model([last], parameters, "network")

    @staticmethod
    def Constant(value) -> None:  # noqa: N802
        """Ignore how an array begins in training."""

    # ---- layers with weights

    def Conv2D(self, filters: int, kernel_size, **options) -> Layer:  # noqa: N802
        """Convolve slices."""
        return self._convolve(2, filters, kernel_size, **options)

    def Conv3D(self, filters: int, kernel_size, **options) -> Layer:  # noqa: N802
        """Convolve volumes."""
        return self._convolve(3, filters, kernel_size, **options)

    def _convolve(
        self, axes: int, filters: int, kernel_size, *, name: str, strides=1, padding: str = "valid",
        use_bias: bool = True, activation: str | None = None, **_,
    ) -> Layer:  # fmt: skip
        kernel, strides = _repeat(kernel_size, axes), _repeat(strides, axes)

        def apply(x: Tensor) -> Tensor:
            weights = self._take(f"{name}/kernel", (*kernel, x.shape[-1], filters))
            weights = np.ascontiguousarray(weights.transpose(axes + 1, axes, *range(axes)))
            zero = [0] * axes
            y = self._ops.convolution(
                x.output, self._ops.constant(weights), strides, zero, zero, [1] * axes,
                auto_pad="same_upper" if padding == "same" else "valid", name=name,
            ).output(0)  # fmt: skip
            y = self._add_bias(y, name, filters, axes) if use_bias else y
            return self._activate(_tensor(y, axes + 2), activation)

        return apply

    def Conv3DTranspose(  # noqa: N802
        self, filters: int, kernel_size, *, name: str, strides, padding: str = "valid", **_
    ) -> Layer:
        """Convolve volumes transposed: each voxel becomes as many as the strides."""
        kernel, strides = _repeat(kernel_size, 3), _repeat(strides, 3)
        excess = [
            max(side - stride, 0) if padding == "same" else 0
            for side, stride in zip(kernel, strides, strict=True)
        ]
        before = [gap // 2 for gap in excess]
        after = [gap - part for gap, part in zip(excess, before, strict=True)]

        def apply(x: Tensor) -> Tensor:
            weights = self._take(f"{name}/kernel", (*kernel, filters, x.shape[-1]))
            weights = np.ascontiguousarray(weights.transpose(4, 3, 0, 1, 2))
            y = self._ops.convolution_backprop_data(
                x.output, self._ops.constant(weights), strides, pads_begin=before, pads_end=after,
                name=name,
            ).output(0)  # fmt: skip
            return _tensor(self._add_bias(y, name, filters, 3), 5)

        return apply

    def Dense(  # noqa: N802
        self, units: int, *, name: str, activation: str | None = None, **_
    ) -> Layer:
        """Multiply numbers (B, N) by a matrix."""

        def apply(x: Tensor) -> Tensor:
            kernel = self._ops.constant(self._take(f"{name}/kernel", (x.shape[-1], units)))
            y = self._ops.matmul(x.output, kernel, transpose_a=False, transpose_b=False).output(0)
            return self._activate(_tensor(self._add_bias(y, name, units, 0), 2), activation)

        return apply

    def BatchNormalization(self, *, name: str, **_) -> Layer:  # noqa: N802
        """Normalise each channel by what was learnt."""

        def apply(x: Tensor) -> Tensor:
            width, axes = x.shape[-1], len(x.shape) - 2
            gamma, beta, mean, variance = (
                self._take(f"{name}/{part}", (width,))
                for part in ("gamma", "beta", "moving_mean", "moving_variance")
            )
            scale = gamma / np.sqrt(variance + NORM_EPSILON)
            y = self._ops.multiply(x.output, self._spread(scale, axes)).output(0)
            y = self._ops.add(y, self._spread(beta - mean * scale, axes)).output(0)
            return Tensor(y, x.shape)

        return apply

    # ---- layers without

    def Activation(self, kind: str, *, name: str, **_) -> Layer:  # noqa: ARG002, N802
        """Rectify (``relu``) or the like."""
        return lambda x: self._activate(x, kind)

    def LeakyReLU(self, *, negative_slope: float, name: str) -> Layer:  # noqa: ARG002, N802
        """Rectify, and let a share of what is negative through."""
        slope = self._ops.constant(np.array([negative_slope], np.float32))
        return lambda x: Tensor(self._ops.prelu(x.output, slope).output(0), x.shape)

    def Dropout(self, rate: float, *, name: str) -> Layer:  # noqa: ARG002, N802
        """Do nothing: it is for training."""
        return lambda x: x

    def MaxPooling2D(self, pool_size, **options) -> Layer:  # noqa: N802
        """Take the largest of each few pixels."""
        return self._pool(2, pool_size, **options)

    def MaxPooling3D(self, pool_size, **options) -> Layer:  # noqa: N802
        """Take the largest of each few voxels."""
        return self._pool(3, pool_size, **options)

    def _pool(
        self, axes: int, pool_size, *, name: str, strides=None, padding: str = "valid", **_
    ) -> Layer:
        size = _repeat(pool_size, axes)
        strides = size if strides is None else _repeat(strides, axes)
        zero, ones = [0] * axes, [1] * axes

        def apply(x: Tensor) -> Tensor:
            y = self._ops.max_pool(
                x.output, strides, ones, zero, zero, size,
                auto_pad="same_upper" if padding == "same" else "valid", name=name,
            ).output(0)  # fmt: skip
            return _tensor(y, axes + 2)

        return apply

    def UpSampling2D(self, size, **_) -> Layer:  # noqa: N802
        """Repeat pixels."""
        return self._repeat_voxels(2, size)

    def UpSampling3D(self, size, **_) -> Layer:  # noqa: N802
        """Repeat voxels."""
        return self._repeat_voxels(3, size)

    def _repeat_voxels(self, axes: int, size) -> Layer:
        scales = self._ops.constant(np.array(_repeat(size, axes), np.float32))
        where = self._ops.constant(np.arange(2, axes + 2, dtype=np.int64))

        def apply(x: Tensor) -> Tensor:
            y = self._ops.interpolate(
                x.output, scales, "nearest", "scales", axes=where,
                coordinate_transformation_mode="asymmetric", nearest_mode="floor",
            ).output(0)  # fmt: skip
            return _tensor(y, axes + 2)

        return apply

    def Add(self, *, name: str) -> Callable[[Sequence[Tensor]], Tensor]:  # noqa: ARG002, N802
        """Add two."""
        return lambda pair: _tensor(
            self._ops.add(pair[0].output, pair[1].output).output(0), len(pair[0].shape)
        )

    def Concatenate(self, *, name: str, **_) -> Callable[[Sequence[Tensor]], Tensor]:  # noqa: ARG002, N802
        """Stack channels, or numbers."""
        return lambda parts: _tensor(
            self._ops.concat([part.output for part in parts], 1).output(0), len(parts[0].shape)
        )

    def Cropping2D(self, sides, **_) -> Layer:  # noqa: N802
        """Cut pixels off."""
        return self._crop(sides)

    def Cropping3D(self, sides, **_) -> Layer:  # noqa: N802
        """Cut voxels off."""
        return self._crop(sides)

    def _crop(self, sides: Sequence[tuple[int, int]]) -> Layer:
        axes = np.arange(2, len(sides) + 2, dtype=np.int64)
        begin = np.array([before for before, _ in sides], np.int64)
        end = np.array([-after if after else 2**31 - 1 for _, after in sides], np.int64)

        def apply(x: Tensor) -> Tensor:
            ends = map(self._ops.constant, (begin, end, np.ones_like(begin), axes))
            return _tensor(self._ops.slice(x.output, *ends).output(0), len(x.shape))

        return apply

    def ZeroPadding3D(self, padding, **_) -> Layer:  # noqa: N802
        """Pad voxels with zero."""
        sides = [(padding, padding)] * 3 if isinstance(padding, int) else padding
        begin, end = ([0, 0, *(side[which] for side in sides)] for which in (0, 1))

        def apply(x: Tensor) -> Tensor:
            gaps = (self._ops.constant(np.array(gap, np.int64)) for gap in (begin, end))
            zero = self._ops.constant(np.float32(0))
            return _tensor(self._ops.pad(x.output, *gaps, "constant", zero).output(0), 5)

        return apply

    def Flatten(self, **_) -> Layer:  # noqa: N802
        """Line up the numbers of each image of a batch."""
        return self._reshape(lambda x: (int(np.prod(x.shape[1:])),))

    def Reshape(self, shape: Sequence[int], **_) -> Layer:  # noqa: N802
        """Give the numbers of each image of a batch another shape."""
        return self._reshape(lambda _: tuple(shape))

    def _reshape(self, choose_shape: Callable[[Tensor], tuple[int, ...]]) -> Layer:
        def apply(x: Tensor) -> Tensor:
            shape = choose_shape(x)
            last = _to_channels_last(self._ops, x.output, len(x.shape))
            wanted = self._ops.constant(np.array([0, *shape], np.int64))
            y = self._ops.reshape(last, wanted, special_zero=True).output(0)
            return Tensor(_to_channels_first(self._ops, y, len(shape) + 1), (x.shape[0], *shape))

        return apply

    def GlobalAveragePooling3D(self, **_) -> Layer:  # noqa: N802
        """Average over all voxels."""
        return self._reduce("reduce_mean", (2, 3, 4))

    def GlobalMaxPooling3D(self, **_) -> Layer:  # noqa: N802
        """Take the largest of all voxels."""
        return self._reduce("reduce_max", (2, 3, 4))

    def logsumexp(self, x: Tensor, axis: tuple[int, ...]) -> Tensor:
        """Sum exponentials over axes (channels last) and take the logarithm."""
        axes = tuple(number + 1 for number in axis)
        y = self._ops.log(self._reduce("reduce_sum", axes)(self._exp_shifted(x, axes)).output)
        highest = self._reduce("reduce_max", axes)(x).output
        return _tensor(self._ops.add(y, highest).output(0), len(x.shape) - len(axes))

    # ---- parts

    def _exp_shifted(self, x: Tensor, axes: tuple[int, ...]) -> Tensor:
        where = self._ops.constant(np.array(axes, np.int64))
        highest = self._ops.reduce_max(x.output, where, keep_dims=True)
        return Tensor(self._ops.exp(self._ops.subtract(x.output, highest)).output(0), x.shape)

    def _reduce(self, kind: str, axes: tuple[int, ...]) -> Layer:
        where = self._ops.constant(np.array(axes, np.int64))
        return lambda x: _tensor(
            getattr(self._ops, kind)(x.output, where, keep_dims=False).output(0),
            len(x.shape) - len(axes),
        )

    def _activate(self, x: Tensor, kind: str | None) -> Tensor:
        if kind is None:
            return x
        operation = {"relu": self._ops.relu, "silu": self._ops.swish}[kind]
        return Tensor(operation(x.output).output(0), x.shape)

    def _add_bias(self, output, name: str, width: int, axes: int):
        bias = self._take(f"{name}/bias", (width,))
        return self._ops.add(output, self._spread(bias, axes)).output(0)

    def _spread(self, array: np.ndarray, axes: int):
        return self._ops.constant(array.reshape(1, -1, *[1] * axes))

    def _take(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        self.shapes[name] = shape
        array = self._arrays.get(name)
        fits = array is not None and array.shape == shape
        return array if fits else np.zeros(shape, np.float32)


def _tensor(output, rank: int) -> Tensor:
    sides = [side.get_length() if side.is_static else None for side in output.get_partial_shape()]
    return Tensor(output, (sides[0], *sides[2:], sides[1]) if rank > 2 else tuple(sides))


def _to_channels_first(ops, output, rank: int):
    return output if rank == 2 else _transpose(ops, output, (0, rank - 1, *range(1, rank - 1)))


def _to_channels_last(ops, output, rank: int):
    return output if rank == 2 else _transpose(ops, output, (0, *range(2, rank), 1))


def _transpose(ops, output, order: Sequence[int]):
    return ops.transpose(output, ops.constant(np.array(order, np.int64))).output(0)


def _find_parameter(output):
    """Find the input that an output comes from, itself or through its transposition."""
    node = output.get_node()
    return node if node.get_type_name() == "Parameter" else node.input_value(0).get_node()


def _repeat(value, axes: int) -> list[int]:
    return [value] * axes if isinstance(value, int) else list(value)
